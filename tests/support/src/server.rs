//! Starts a server whose first line of output is the port it listens on.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{ChildGuard, HttpClient};

/// Names the instance that a process is.
const INSTANCE: &str = "SW_AGENT_INSTANCE_NAME";

/// Servers started so far.
static STARTED: AtomicU32 = AtomicU32::new(0);

/// A running server on 127.0.0.1; ends when dropped.
#[derive(Debug)]
pub struct LocalServer {
    child: ChildGuard,
    output: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl LocalServer {
    /// Starts `command` and returns when it has told its port; `name` is what errors call it. Its
    /// standard output and input are taken over. It gets a `SW_AGENT_INSTANCE_NAME` of its own unless it has one or that was
    /// removed: the port is one that nobody chose, so a daemon would wait for a minute before it tells of the server.
    ///
    /// # Errors
    /// The program cannot be started, ends before it listens or prints something else.
    pub fn start(name: &str, command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        if command.get_envs().all(|(key, _)| key != INSTANCE) {
            let number = STARTED.fetch_add(1, Ordering::Relaxed);
            command.env(INSTANCE, format!("test-{}-{number}", std::process::id()));
        }
        let mut child = ChildGuard::spawn(name, command)?;
        let stdout = child.process().stdout.take().expect("stdout is a pipe");
        let mut output = BufReader::new(stdout);
        let port = read_line(&mut output)
            .and_then(|line| line.parse::<u16>().with_context(|| format!("{line:?}")))
            .with_context(|| format!("{name} has not told its port"))?;
        Ok(Self {
            child,
            output,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The process.
    pub fn child(&mut self) -> &mut ChildGuard {
        &mut self.child
    }

    /// Waits for the next line it prints, without the spaces around it.
    ///
    /// # Errors
    /// It has ended.
    pub fn line(&mut self) -> Result<String> {
        read_line(&mut self.output)
    }

    /// A new connection; every read waits `timeout` at most.
    ///
    /// # Errors
    /// The server does not accept it.
    pub fn connect(&self, timeout: Duration) -> Result<HttpClient> {
        HttpClient::connect(self.address, timeout)
    }
}

fn read_line(output: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    ensure!(output.read_line(&mut line)? > 0, "its output has ended");
    Ok(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that the port is the first line, and that the lines behind it are not lost.
    #[test]
    fn the_first_line_is_the_port() {
        let mut command = Command::new("printf");
        let mut server = LocalServer::start("printf", command.arg("4711\\nready\\n")).unwrap();
        assert_eq!(server.address().port(), 4711);
        assert_eq!(server.line().unwrap(), "ready");
        assert!(server.line().is_err());
    }

    /// Check that a program that ends at once, or prints no number, is an error with its name.
    #[test]
    fn a_program_that_tells_no_port_is_an_error() {
        for script in ["exit", "echo ready"] {
            let mut command = Command::new("sh");
            let error = LocalServer::start("the server", command.args(["-c", script])).unwrap_err();
            assert_eq!(error.to_string(), "the server has not told its port");
        }
    }
}
