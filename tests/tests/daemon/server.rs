//! The server of `server.py`.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{ChildStdout, Command, Stdio};

use profiler_tests::{ChildGuard, HttpClient};

use crate::DEADLINE;

/// A running server; ends when dropped.
pub(crate) struct Server {
    child: ChildGuard,
    output: BufReader<ChildStdout>,
    address: SocketAddr,
}

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
        command.args([script, mode]).stdout(Stdio::piped());
        let mut child = ChildGuard::spawn("the server", &mut command).unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(child.process().stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        let port = line.trim().parse().unwrap();
        Self {
            child,
            output,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has read the head of a POST.
    pub(crate) fn wait_until_it_reads_a_body(&mut self) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line, "reading a body\n");
    }

    /// Kills it as the kernel would, in the middle of what it does.
    pub(crate) fn kill(&mut self) {
        self.child.signal(libc::SIGKILL);
        self.child.wait(DEADLINE).unwrap();
    }

    /// A new connection.
    pub(crate) fn connect(&self) -> HttpClient {
        HttpClient::connect(self.address, DEADLINE).unwrap()
    }
}
