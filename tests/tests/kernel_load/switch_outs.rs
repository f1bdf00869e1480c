//! Threads that leave their CPU right before a tick: recorded by the kernel side, for nobody else could still read them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid as NixPid;
use profiler_common::{SWITCH_OUTS_AHEAD_NS, SWITCH_OUTS_MAX};
use profiler_daemon::kernel::{instruction_pointer, stack_pointer};
use profiler_daemon::model::SwitchOut;
use profiler_daemon::process::python::PythonRuntime;

use crate::harness::{PERIOD, Server, Watch};
use crate::python::numbers;
use crate::stacks::{c_server, kernel_symbol, ranges, words_in};

/// Switch-outs that are looked at.
const WANTED: usize = 20;
const PERIOD_NS: u64 = PERIOD.as_nanos() as u64;

/// Pushes all other threads off a CPU for a moment, a few thousand times a second.
struct Disturber {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Disturber {
    /// Begins on the only CPU that the server may use from now on.
    fn share_cpu_with(server: &Server) -> Self {
        let allowed = sched_getaffinity(NixPid::from_raw(0)).unwrap();
        let cpu = (0..CpuSet::count())
            .find(|cpu| allowed.is_set(*cpu).unwrap_or(false))
            .unwrap();
        let mut one = CpuSet::new();
        one.set(cpu).unwrap();
        let server = NixPid::from_raw(server.pid().0.cast_signed());
        sched_setaffinity(server, &one).unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            sched_setaffinity(NixPid::from_raw(0), &one).unwrap();
            let priority = libc::sched_param { sched_priority: 1 };
            // SAFETY: the structure is valid; 0 is the calling thread.
            let result =
                unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_micros(200));
                let begin = Instant::now();
                while begin.elapsed() < Duration::from_micros(20) {}
            }
        });
        Self {
            is_over,
            thread: Some(thread),
        }
    }
}

impl Drop for Disturber {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

/// Asks for a target that computes until enough switch-outs are recorded. Checks what all of them have in common, and that
/// the thread's state says of the latest when it ended.
fn disturbed(watch: &mut Watch, server: &Server, target: &str) {
    let disturber = Disturber::share_cpu_with(server);
    let begin = Instant::now();
    let mut known_ends = 0;
    while watch.switch_outs.len() < WANTED {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "{} switch-outs and {} samples in a minute",
            watch.switch_outs.len(),
            watch.samples.len()
        );
        let mut client = server.connect();
        client.get(target);
        watch.drain();
        // Until the connection is closed, the thread has its tag and its state.
        if let Some(last) = watch.switch_outs.last()
            && let Some(state) = watch.kernel.thread_state(last.tid).unwrap()
            && state.recorded_seq == last.seq
        {
            assert_eq!(state.recorded_ktime_ns, last.ktime_ns);
            assert!(state.recorded_end_ktime_ns > last.ktime_ns);
            known_ends += 1;
        }
        client.close();
    }
    assert_ne!(known_ends, 0, "the states say nothing of the records");
    drop(disturber);
    let starts = watch.starts();
    let mut of_tick = HashMap::<u64, u32>::new();
    for out in &watch.switch_outs {
        assert!(
            starts
                .iter()
                .any(|&(request, tid, _)| (request, tid) == (out.request, out.tid))
        );
        assert_eq!(out.pid, server.pid());
        assert!(out.seq != 0 && out.seq.is_multiple_of(2), "{}", out.seq);
        assert_eq!(out.captured.stack.sp, stack_pointer(&out.captured.regs));
        let since_start_ns = out.ktime_ns - watch.ticks.unwrap().last_ktime_ns;
        let to_tick_ns = PERIOD_NS - since_start_ns % PERIOD_NS;
        assert!(to_tick_ns <= SWITCH_OUTS_AHEAD_NS, "{to_tick_ns}");
        *of_tick.entry(since_start_ns / PERIOD_NS).or_default() += 1;
    }
    assert!(of_tick.values().all(|count| *count <= SWITCH_OUTS_MAX));
}

/// Check that a computing C function that is pushed off its CPU before a tick is recorded with its registers, its callers and
/// its way into the scheduler.
#[test]
fn a_thread_that_leaves_before_a_tick_is_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = c_server(&directory);
    let [spin, middle, outer] = ranges(&mut server);
    let mut watch = Watch::new(server.pid(), "/spin");
    disturbed(&mut watch, &server, "/spin");
    let is_whole = |out: &&SwitchOut| {
        let stack = &out.captured.stack.bytes;
        spin.contains(&instruction_pointer(&out.captured.regs))
            && words_in(stack, &middle) != 0
            && words_in(stack, &outer) != 0
            && kernel_symbol(out.captured.kernel_frames[0]) == "__schedule"
    };
    let count = watch.switch_outs.len();
    let whole = watch.switch_outs.iter().filter(is_whole).count();
    assert!(whole * 10 >= count * 8, "{whole} of {count} in spin");
}

/// Check that a Python thread's record has its chain of frames.
#[test]
fn a_python_thread_is_recorded_with_its_frames() {
    let mut server = Server::python("HTTP/1.1");
    let codes = numbers(&server.line());
    let mut watch = Watch::new(server.pid(), "/busy");
    let runtime = PythonRuntime::detect(server.pid()).unwrap().unwrap();
    watch
        .kernel
        .set_python(server.pid(), Some(&runtime.to_kernel()))
        .unwrap();
    disturbed(&mut watch, &server, "/busy");
    let in_handler = |out: &&SwitchOut| {
        let chain = out.captured.python.as_ref();
        let frames = chain.expect("it is a Python process").frames.iter();
        frames
            .map(|frame| frame.code)
            .take(codes.len())
            .eq(codes.iter().copied())
    };
    let count = watch.switch_outs.len();
    let right = watch.switch_outs.iter().filter(in_handler).count();
    assert!(right * 10 >= count * 8, "{right} of {count} in the handler");
}
