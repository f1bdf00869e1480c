//! Python processes to look at: every CPython on the machine, running `fixtures/python_stacks.py`.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use profiler_daemon::model::Pid;
use serde::Deserialize;

/// What the script says about one of its frames.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct FrameTruth {
    pub(crate) file: String,
    pub(crate) name: String,
    pub(crate) qualname: String,
    pub(crate) line: Option<u32>,
    pub(crate) first_line: u32,
}

/// What the script says about one of its threads.
#[derive(Debug, Deserialize)]
pub(crate) struct ThreadTruth {
    pub(crate) name: String,
    pub(crate) tid: u32,
    pub(crate) ident: u64,
    pub(crate) frames: Vec<FrameTruth>,
}

/// What the script says about itself.
#[derive(Debug, Deserialize)]
pub(crate) struct Truth {
    pub(crate) main: u32,
    pub(crate) threads: Vec<ThreadTruth>,
}

/// A child process that ends with the test.
pub(crate) struct Running {
    pub(crate) child: Child,
    directory: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// Starts the script and waits until all its threads are blocked.
    pub(crate) fn start(python: &Path) -> (Self, Truth) {
        let (running, line) = Self::start_script(Command::new(python), "python_stacks.py");
        let truth = serde_json::from_str(&line).expect("the script prints its truth");
        (running, truth)
    }

    /// Starts a script of `fixtures/` and waits for its first line.
    pub(crate) fn start_script(mut command: Command, script: &str) -> (Self, String) {
        let directory = tempfile::tempdir().unwrap();
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let mut child = command
            .arg(fixtures.join(script))
            .arg(directory.path().join("dump"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        (Self { child, directory }, line)
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid(self.child.id())
    }

    /// All stacks as faulthandler prints them, by `pthread_self()`: lines `File "x", line 1 in f`.
    /// The last one is the main thread's, under key 0.
    pub(crate) fn faulthandler(&self) -> BTreeMap<u64, Vec<String>> {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1).unwrap();
        let dump = self.directory.path().join("dump");
        let deadline = Instant::now() + Duration::from_secs(30);
        let text = loop {
            let text = std::fs::read_to_string(&dump).unwrap_or_default();
            let main = text.rsplit("Current thread").next().unwrap_or_default();
            if text.contains("Current thread") && main.ends_with(" in <module>\n") {
                break text;
            }
            assert!(Instant::now() < deadline, "no dump from faulthandler");
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut stacks = BTreeMap::new();
        let mut ident = 0;
        for line in text.lines() {
            if let Some(frame) = line.strip_prefix("  ") {
                stacks
                    .entry(ident)
                    .or_insert_with(Vec::new)
                    .push(frame.to_owned());
            } else if let Some(thread) = line.strip_prefix("Thread 0x") {
                let digits = thread.split(' ').next().unwrap();
                ident = u64::from_str_radix(digits, 16).unwrap();
            } else if line.starts_with("Current thread") {
                ident = 0;
            }
        }
        stacks
    }
}
