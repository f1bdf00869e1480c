//! Runs `tests/services/sample_service.py`: the unmodified server that is profiled.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{ChildGuard, HttpClient, LocalServer, workspace_root};

/// A running sample service; ends when dropped.
#[derive(Debug)]
pub struct SampleService(LocalServer);

impl SampleService {
    /// Starts the service on a free port and returns when it accepts connections.
    ///
    /// `python` is the interpreter, `service_name` becomes its `SW_AGENT_NAME`, `truth_file` gets the
    /// entry and exit times of its functions.
    ///
    /// # Errors
    /// The interpreter cannot be started or ends before it listens.
    pub fn start(python: &Path, service_name: &str, truth_file: Option<&Path>) -> Result<Self> {
        Self::start_by(Command::new(python), service_name, truth_file)
    }

    /// As [`Self::start`], by a command that takes the path of a Python script.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_by(
        command: Command,
        service_name: &str,
        truth_file: Option<&Path>,
    ) -> Result<Self> {
        Self::start_script(command, "sample_service.py", service_name, truth_file)
    }

    /// As [`Self::start_by`], another script of `tests/services` that takes the same arguments.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_script(
        mut command: Command,
        script: &str,
        service_name: &str,
        truth_file: Option<&Path>,
    ) -> Result<Self> {
        let program = PathBuf::from(command.get_program());
        command
            .arg(workspace_root().join("tests/services").join(script))
            .env("SW_AGENT_NAME", service_name);
        if let Some(file) = truth_file {
            command.arg("--truth").arg(file);
        }
        let server = LocalServer::start("the sample service", &mut command)
            .with_context(|| format!("the sample service did not start with {program:?}"))?;
        Ok(Self(server))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// The process.
    pub fn child(&mut self) -> &mut ChildGuard {
        self.0.child()
    }

    /// A new connection.
    ///
    /// # Errors
    /// The service does not accept it.
    pub fn connect(&self) -> Result<HttpClient> {
        self.0.connect(Duration::from_secs(10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that the service answers its three endpoints on one connection and tells the truth of
    /// what it called, inner calls first.
    #[test]
    fn the_service_answers_and_records_what_it_called() {
        let truth_file =
            std::env::temp_dir().join(format!("profilerd-truth-{}", std::process::id()));
        let service =
            SampleService::start(Path::new("python3"), "sample", Some(&truth_file)).unwrap();
        let mut client = service.connect().unwrap();
        for (method, target, body) in [
            ("POST", "/", "{}"),
            ("GET", "/busy", ""),
            ("GET", "/fast", ""),
        ] {
            assert_eq!(client.request(method, target, body).unwrap().status, 200);
        }
        assert_eq!(client.request("GET", "/other", "").unwrap().status, 404);
        let truth = std::fs::read_to_string(&truth_file).unwrap();
        std::fs::remove_file(&truth_file).unwrap();
        let called: Vec<_> = truth
            .lines()
            .filter_map(|line| line.split("\"function\": \"").nth(1)?.split('"').next())
            .collect();
        assert_eq!(
            called[..7],
            [
                "method1", "method2", "method3", "do_POST", "inner", "outer", "do_GET"
            ]
        );
    }
}
