//! Hooks in the middle of each other. From Linux 7.0 on a thread can be preempted inside a hook, and the next
//! thread of the CPU runs the same or another one; before, this only shows that nothing is mixed up.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::wait::waitpid;
use nix::unistd::gettid;
use profiler_common::{EndReason, KernelCounter};
use profiler_daemon::kernel::LoadOptions;
use profiler_daemon::model::{Pid, RequestEvent, RequestId, Tid};

use crate::harness::{SLOT, Watch, load_options};

/// Threads of one CPU. Each is followed by another one when it ends.
const WORKERS: usize = 24;
/// Requests that a thread serves before it ends with one open.
const REQUESTS: u32 = 12;
/// Room for all events: the reader has to share its CPU.
const RING_BYTES: u32 = 16 << 20;
/// How long threads are started.
const TIME: Duration = Duration::from_secs(3);

/// What all threads use.
#[derive(Default)]
struct Shared {
    /// The next request's number.
    number: AtomicU32,
    /// Threads that serve or have served.
    tids: Mutex<Vec<Tid>>,
    is_over: AtomicBool,
}

/// What one thread did.
struct Served {
    tid: Tid,
    /// Number and response length of its requests; the last one was open when the thread ended.
    requests: Vec<(u32, usize)>,
    children: Vec<Pid>,
    /// Both ends of the last connection, which must not be closed while the thread lives.
    _open: (TcpStream, TcpStream),
}

/// Starts a process that ends at once. It shares the descriptors: as copies they would keep the other threads' sockets
/// open, whose close nobody sees then.
fn fork_and_leave() -> nix::unistd::Pid {
    let flags = libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: without a stack of its own and without shared memory it is as a fork, and the child does nothing but
    // leave.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if child == 0 {
        // SAFETY: nothing of the parent's is run at exit.
        unsafe { libc::_exit(0) }
    }
    nix::unistd::Pid::from_raw(i32::try_from(child).unwrap())
}

/// Serves requests that the thread itself asks for, and forks between reading and answering some of them.
fn serve(shared: &Shared) -> Served {
    let tid = Tid(gettid().as_raw().cast_unsigned());
    shared.tids.lock().unwrap().push(tid);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (mut requests, mut children) = (Vec::new(), Vec::new());
    loop {
        let number = shared.number.fetch_add(1, Ordering::Relaxed);
        let mut client = TcpStream::connect(address).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        // In one write: of several, the second waits until the first is acknowledged, and may come too late for the read.
        let head = format!("GET /crowd/{number} HTTP/1.1\r\n\r\n");
        client.write_all(head.as_bytes()).unwrap();
        let mut bytes = [0; 256];
        assert_ne!(server.read(&mut bytes).unwrap(), 0);
        if number.is_multiple_of(4) {
            let child = fork_and_leave();
            children.push(Pid(child.as_raw().cast_unsigned()));
            waitpid(child, None).unwrap();
        }
        let response = format!(
            "HTTP/1.1 200 OK\r\n\r\n{}",
            ".".repeat(number as usize % 89)
        );
        server.write_all(response.as_bytes()).unwrap();
        assert_ne!(client.read(&mut bytes).unwrap(), 0);
        requests.push((number, response.len()));
        if requests.len() == REQUESTS as usize {
            return Served {
                tid,
                requests,
                children,
                _open: (client, server),
            };
        }
        drop(server);
    }
}

/// Puts the current thread and those it starts on one CPU. Every other worker gets a real-time priority, with which it
/// preempts the rest whenever it wakes, at whatever place they are.
fn share_a_cpu(worker: usize) {
    let this = nix::unistd::Pid::from_raw(0);
    let allowed = sched_getaffinity(this).unwrap();
    let first = (0..CpuSet::count()).find(|&cpu| allowed.is_set(cpu).unwrap());
    let mut cpu = CpuSet::new();
    cpu.set(first.unwrap()).unwrap();
    sched_setaffinity(this, &cpu).unwrap();
    if worker.is_multiple_of(2) {
        let priority = libc::sched_param { sched_priority: 1 };
        // Where this is refused, threads preempt each other at the end of their slice only.
        // SAFETY: the parameter is read, and 0 is the current thread.
        let _refused =
            unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    }
}

/// Starts threads one after the other for a while; what they did.
fn work(worker: usize, shared: &Shared) -> Vec<Served> {
    share_a_cpu(worker);
    let begin = Instant::now();
    let mut served = Vec::new();
    while begin.elapsed() < TIME {
        let thread = std::thread::scope(|scope| scope.spawn(|| serve(shared)).join());
        served.push(thread.unwrap());
        // Comes back by a timer, in the middle of what another thread does.
        std::thread::sleep(Duration::from_micros(50));
    }
    served
}

/// The highest number seen of each thread's state.
#[derive(Default)]
struct Numbers(HashMap<Tid, u64>);

impl Numbers {
    fn look(&mut self, watch: &Watch, tids: &[Tid]) {
        for &tid in tids {
            if let Some(state) = watch.kernel.thread_state(tid).unwrap() {
                let highest = self.0.entry(tid).or_default();
                assert!(*highest <= state.seq, "{highest} and then {}", state.seq);
                *highest = state.seq;
            }
        }
    }
}

/// Check that threads of one CPU that begin and end requests, fork and end all at once leave whole events: each of
/// the request, thread and process it says, once, and all of them but for what is counted as left out; and that the
/// number of a thread's state never goes back.
#[test]
fn hooks_in_the_middle_of_each_other_tell_whole_events() {
    let this = Pid(std::process::id());
    let options = LoadOptions {
        request_ring_bytes: RING_BYTES,
        ..load_options()
    };
    let mut watch = Watch::with_options(this, "/crowd/", &options);
    let shared = &Shared::default();
    let served: Vec<Served> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| scope.spawn(move || work(worker, shared)))
            .collect();
        let all = scope.spawn(move || {
            let served: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            shared.is_over.store(true, Ordering::Relaxed);
            served
        });
        let mut numbers = Numbers::default();
        while !shared.is_over.load(Ordering::Relaxed) {
            watch.drain();
            let tids = shared.tids.lock().unwrap().clone();
            numbers.look(&watch, &tids[tids.len().saturating_sub(2 * WORKERS)..]);
        }
        let served = all.join().unwrap().into_iter();
        served.flat_map(|served| served.unwrap()).collect()
    });
    watch.drain();
    check(&watch, this, &served);
}

/// Compares the events with what the threads did.
fn check(watch: &Watch, this: Pid, served: &[Served]) {
    let left_out = watch.kernel.left_out_runs() + watch.count(KernelCounter::HookBusy);
    assert_eq!(watch.count(KernelCounter::RequestRingFull), 0);
    let mut requests = HashMap::new();
    for thread in served {
        let last = thread.requests.len() - 1;
        for (index, &(number, bytes)) in thread.requests.iter().enumerate() {
            requests.insert(number, (thread.tid, bytes, index == last));
        }
    }
    let children: HashSet<_> = served.iter().flat_map(|thread| &thread.children).collect();

    let mut started: HashMap<RequestId, u32> = HashMap::new();
    let (mut answered, mut ended) = (HashSet::new(), HashSet::new());
    let (mut forked, mut gone) = (HashSet::new(), HashSet::new());
    let mut times: HashMap<RequestId, u64> = HashMap::new();
    for event in &watch.events {
        match event {
            RequestEvent::Start {
                id,
                pid,
                tid,
                start_ktime_ns,
                head,
                ..
            } => {
                let head = String::from_utf8_lossy(head);
                let number = head.strip_prefix("GET /crowd/").unwrap();
                let number = number.strip_suffix(" HTTP/1.1\r\n\r\n").unwrap();
                let number = number.parse().unwrap();
                assert_eq!((*pid, *tid), (this, requests[&number].0));
                assert_eq!(started.insert(*id, number), None, "two requests are {id:?}");
                times.insert(*id, *start_ktime_ns);
            }
            RequestEvent::FirstWrite {
                id,
                tid,
                ktime_ns,
                written_bytes,
                ..
            } => {
                let (reader, bytes, _) = requests[&started[id]];
                assert_eq!((*tid, *written_bytes), (reader, bytes as u64));
                assert!(times[id] <= *ktime_ns);
                assert!(answered.insert(*id));
            }
            RequestEvent::End {
                id,
                ktime_ns,
                last_write_ktime_ns,
                written_bytes,
                reason,
                ..
            } => {
                let (_, bytes, is_last) = requests[&started[id]];
                assert!(ended.insert(*id), "{id:?} ended twice");
                assert!(times[id] <= *ktime_ns);
                if answered.contains(id) {
                    assert_eq!(*written_bytes, bytes as u64);
                    assert!(times[id] <= *last_write_ktime_ns);
                }
                // A close gives the descriptor away before it is told: the thread that gets it may have read a head
                // from it by then.
                let is_expected = match reason {
                    EndReason::ThreadExit => is_last,
                    EndReason::Closed | EndReason::SocketReplaced => !is_last,
                    _ => false,
                };
                assert!(is_expected || left_out > 0, "{reason:?}, {is_last}");
            }
            RequestEvent::Fork { parent, child, .. } => {
                assert_eq!(*parent, this);
                assert!(children.contains(child) && forked.insert(*child));
            }
            RequestEvent::Exit { pid, .. } => {
                assert!(children.contains(pid) && gone.insert(*pid));
            }
            other => panic!("nothing did this: {other:?}"),
        }
    }
    let expected = 3 * requests.len() + 2 * children.len();
    let told = started.len() + answered.len() + ended.len() + forked.len() + gone.len();
    println!("{told} of {expected} events, {left_out} hook runs left out");
    println!(
        "of {} requests {} heads, {} answers, {} ends; of {} children {} forks, {} exits",
        requests.len(),
        started.len(),
        answered.len(),
        ended.len(),
        children.len(),
        forked.len(),
        gone.len()
    );
    println!("{:?}", watch.kernel.counters(SLOT).unwrap());
    // With the head of a request its response and its end are lost, with a fork the child's exit.
    let missing = (expected - told) as u64;
    assert!(missing <= 3 * left_out, "{missing} events are missing");
    assert!(started.len() > 100, "{} requests", started.len());
}
