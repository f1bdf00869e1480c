//! The servers that are profiled: `server.py` and the sample service.

use std::ops::Deref;
use std::path::Path;
use std::process::Command;

use profiler_tests::{HttpClient, LocalServer, SampleService, build_c, workspace_root};
use tempfile::TempDir;

use crate::DEADLINE;

/// Starts a sample service that is known by this name.
pub(crate) fn sample_service(name: &str) -> SampleService {
    SampleService::start(Path::new("python3"), name, None).unwrap()
}

/// A server of this folder that is one source file in C; ends when dropped.
pub(crate) struct CServer {
    server: LocalServer,
    _folder: TempDir,
}

impl CServer {
    /// Compiles and starts it.
    pub(crate) fn start(source: &str, arguments: &[&str]) -> Self {
        Self::start_with(source, arguments, &[])
    }

    /// The same, known by this name.
    pub(crate) fn start_as(name: &str, source: &str, arguments: &[&str]) -> Self {
        Self::start_with(source, arguments, &[("SW_AGENT_NAME", name)])
    }

    fn start_with(source: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = workspace_root().join("tests/tests/daemon").join(source);
        let program = folder.path().join("server");
        build_c(&mut Command::new("cc"), &source, &program).unwrap();
        let mut command = Command::new(program);
        command.args(arguments).envs(variables.iter().copied());
        let server = LocalServer::start("the server", &mut command);
        Self {
            server: server.unwrap(),
            _folder: folder,
        }
    }
}

impl Deref for CServer {
    type Target = LocalServer;

    fn deref(&self) -> &LocalServer {
        &self.server
    }
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
