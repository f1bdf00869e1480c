//! A server under watch: the process, the kernel side attached to it, the events it caused.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use profiler_common::{ANY_METHOD, EndReason, KernelCounter};
use profiler_daemon::kernel::{ClockTicks, Kernel, LoadOptions};
use profiler_daemon::model::{
    EndpointRule, Pid, RawSample, RequestEvent, RequestId, SampleRecord, SwitchOut, TaskSlot, Tid,
};
use profiler_tests::LocalServer;

/// Longest wait for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
/// Time between two ticks.
pub(crate) const PERIOD: Duration = Duration::from_millis(10);
/// The task slot the tests use.
pub(crate) const SLOT: TaskSlot = TaskSlot(2);

/// Has requests seen at system calls where sockets could be hooked, see [`load_options`].
pub(crate) const SYS_EXIT: &str = "PROFILERD_TEST_SYS_EXIT";

/// What the tests load: the kernel's best hooks, or `sys_exit` if the environment says so.
pub(crate) fn load_options() -> LoadOptions {
    LoadOptions {
        prefer_sys_exit: std::env::var_os(SYS_EXIT).is_some(),
        ..LoadOptions::default()
    }
}

/// A process that dies with the test.
pub(crate) struct Server(LocalServer);

impl Server {
    /// Starts a program whose first line of output is its port.
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(LocalServer::start("the server", command).unwrap())
    }

    /// The Python server of `server.py`.
    pub(crate) fn python(http_version: &str) -> Self {
        Self::python_by(Path::new("python3"), http_version)
    }

    /// As [`Self::python`], by another interpreter than that on `PATH`.
    pub(crate) fn python_by(python: &Path, http_version: &str) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernel_load/server.py");
        Self::start(Command::new(python).args(["-u", script, http_version]))
    }

    /// The next line the program prints.
    pub(crate) fn line(&mut self) -> String {
        self.0.line().unwrap()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid(self.0.id())
    }

    pub(crate) fn kill(&mut self) {
        self.0.child().signal(libc::SIGKILL);
        self.0.child().wait(DEADLINE).unwrap();
    }

    pub(crate) fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.0.address()).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Client { stream }
    }
}

/// One connection.
pub(crate) struct Client {
    stream: TcpStream,
}

impl Client {
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Reads one response with a `Content-Length`; returns its body.
    pub(crate) fn response(&mut self) -> Vec<u8> {
        let head = self.head();
        self.body(&head)
    }

    /// As [`Self::response`], behind any number of interim ones.
    pub(crate) fn response_behind_interim(&mut self) -> Vec<u8> {
        loop {
            let head = self.head();
            if !head.starts_with("HTTP/1.1 1") {
                return self.body(&head);
            }
        }
    }

    fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        String::from_utf8(head).unwrap()
    }

    fn body(&mut self, head: &str) -> Vec<u8> {
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "))
            .map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        body
    }

    /// Sends a GET and reads its response.
    pub(crate) fn get(&mut self, target: &str) -> Vec<u8> {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes());
        self.response()
    }

    /// Whether the server has closed the connection; to be asked when no response is due.
    pub(crate) fn is_closed(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        !matches!(self.stream.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// Closes its own side only, and reads the rest of the response up to the server's close.
    pub(crate) fn finish(mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
        self.stream.read_to_end(&mut Vec::new()).unwrap();
    }

    pub(crate) fn close(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// The kernel side, attached to a server.
pub(crate) struct Watch {
    pub(crate) kernel: Kernel,
    /// The first ones, unless it only sees.
    pub(crate) ticks: Option<ClockTicks>,
    /// All events so far.
    pub(crate) events: Vec<RequestEvent>,
    /// All samples so far.
    pub(crate) samples: Vec<RawSample>,
    /// All switch-outs ahead of ticks so far.
    pub(crate) switch_outs: Vec<SwitchOut>,
}

impl Watch {
    /// Watches a process for requests whose target begins with `literal`.
    pub(crate) fn new(pid: Pid, literal: &str) -> Self {
        Self::with_options(pid, literal, &load_options())
    }

    pub(crate) fn with_options(pid: Pid, literal: &str, options: &LoadOptions) -> Self {
        let mut kernel = Kernel::load(options).unwrap();
        let rule = EndpointRule {
            method_mask: ANY_METHOD,
            literal: literal.as_bytes().to_vec(),
            exact: false,
        };
        kernel.set_rule(SLOT, &rule).unwrap();
        kernel.add_target(pid, SLOT).unwrap();
        let ticks = if options.sees_only {
            kernel.attach_sight().unwrap();
            None
        } else {
            Some(kernel.attach(PERIOD).unwrap())
        };
        Self {
            kernel,
            ticks,
            events: Vec::new(),
            samples: Vec::new(),
            switch_outs: Vec::new(),
        }
    }

    /// Takes what has arrived.
    pub(crate) fn drain(&mut self) {
        let events = &mut self.events;
        self.kernel
            .drain_requests(|event| events.push(event.unwrap()));
        let (samples, switch_outs) = (&mut self.samples, &mut self.switch_outs);
        self.kernel.drain_samples(|record| match record.unwrap() {
            SampleRecord::Tick(sample) => samples.push(sample),
            SampleRecord::SwitchOut(out) => switch_outs.push(out),
        });
    }

    /// Drains until `done` holds.
    #[track_caller]
    pub(crate) fn wait(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let begin = Instant::now();
        loop {
            self.drain();
            if done(self) {
                return;
            }
            assert!(
                begin.elapsed() < DEADLINE,
                "no {what}; events: {:#?}, counters: {:?}",
                self.events,
                self.kernel.counters(SLOT)
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Asks for a target that computes, again and again until there are so many samples: a machine that is emulated, or
    /// that others use as well, has few ticks in the time of one request.
    #[track_caller]
    pub(crate) fn ask_until_sampled(&mut self, server: &Server, target: &str, samples: usize) {
        const REQUESTS_MAX: usize = 50;
        for request in 1..=REQUESTS_MAX {
            let mut client = server.connect();
            client.get(target);
            client.close();
            self.wait_for_ends(request);
            if self.samples.len() >= samples {
                return;
            }
        }
        panic!("{} samples of {REQUESTS_MAX} requests", self.samples.len());
    }

    /// Drains until so many requests have ended.
    #[track_caller]
    pub(crate) fn wait_for_ends(&mut self, count: usize) {
        self.wait("end of requests", |watch| watch.ends().len() >= count);
    }

    /// Bytes of a request's answer, as its end tells.
    pub(crate) fn written(&self, request: RequestId) -> Option<u64> {
        self.events.iter().find_map(|event| match event {
            RequestEvent::End {
                id, written_bytes, ..
            } if *id == request => Some(*written_bytes),
            _ => None,
        })
    }

    /// `(id, tid, head)` of each start event.
    pub(crate) fn starts(&self) -> Vec<(RequestId, Tid, String)> {
        let start = |event: &RequestEvent| match event {
            RequestEvent::Start { id, tid, head, .. } => {
                Some((*id, *tid, String::from_utf8_lossy(head).into_owned()))
            }
            _ => None,
        };
        self.events.iter().filter_map(start).collect()
    }

    /// Request and reason of each end event.
    pub(crate) fn ends(&self) -> Vec<(RequestId, EndReason)> {
        let end = |event: &RequestEvent| match event {
            RequestEvent::End { id, reason, .. } => Some((*id, *reason)),
            _ => None,
        };
        self.events.iter().filter_map(end).collect()
    }

    /// First bytes of each response.
    pub(crate) fn responses(&self) -> Vec<(RequestId, String)> {
        let response = |event: &RequestEvent| match event {
            RequestEvent::FirstWrite { id, head, .. } => {
                Some((*id, String::from_utf8_lossy(head).into_owned()))
            }
            _ => None,
        };
        self.events.iter().filter_map(response).collect()
    }

    /// First line of each call that a request made, with the request.
    pub(crate) fn calls(&self) -> Vec<(RequestId, String)> {
        let call = |event: &RequestEvent| match event {
            RequestEvent::Outbound { id, head } => {
                let head = String::from_utf8_lossy(head);
                Some((*id, head.lines().next()?.to_owned()))
            }
            _ => None,
        };
        self.events.iter().filter_map(call).collect()
    }

    pub(crate) fn count(&self, counter: KernelCounter) -> u64 {
        let counters = self.kernel.counters(SLOT).unwrap();
        counters
            .iter()
            .find(|(name, _)| *name == counter)
            .unwrap()
            .1
    }
}
