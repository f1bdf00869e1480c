//! The servers that are profiled: `server.py` and the sample service.

use std::path::Path;
use std::process::Command;

use profiler_tests::{HttpClient, LocalServer, SampleService};

use crate::DEADLINE;

/// Starts a sample service that is known by this name.
pub(crate) fn sample_service(name: &str) -> SampleService {
    SampleService::start(Path::new("python3"), name, None).unwrap()
}

/// A running `server.py`; ends when dropped.
pub(crate) struct Server(LocalServer);

impl Server {
    /// Each connection has its thread.
    pub(crate) fn with_threads() -> Self {
        Self::start("threads")
    }

    /// One thread reads, another one answers.
    pub(crate) fn with_hand_off() -> Self {
        Self::start("handoff")
    }

    fn start(mode: &str) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/daemon/server.py");
        let mut command = Command::new("python3");
        Self(LocalServer::start("the server", command.args([script, mode])).unwrap())
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Waits until it has read the head of a POST.
    pub(crate) fn wait_until_it_reads_a_body(&mut self) {
        assert_eq!(self.0.line().unwrap(), "reading a body");
    }

    /// Kills it as the kernel would, in the middle of what it does.
    pub(crate) fn kill(&mut self) {
        self.0.child().signal(libc::SIGKILL);
        self.0.child().wait(DEADLINE).unwrap();
    }

    /// A new connection.
    pub(crate) fn connect(&self) -> HttpClient {
        self.0.connect(DEADLINE).unwrap()
    }
}
