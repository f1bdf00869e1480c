//! A `profilerd record` that runs beside the test.

use std::collections::HashMap;
use std::fs::{self, File};
use std::process::{Command, ExitStatus, Stdio};

use profiler_daemon::model::{ProfileReport, SegmentReport, TreeNode};
use profiler_tests::{ChildGuard, profilerd, read_json, wait_until};
use serde_json::Value;
use tempfile::TempDir;

use crate::DEADLINE;

/// A running recording; ends when dropped.
pub(crate) struct Recording {
    child: ChildGuard,
    folder: TempDir,
}

/// What a recording left.
pub(crate) struct Recorded {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// The binary, with a log that tells when a process is watched and without variables that the
/// machine may have set for it.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(profilerd());
    let log = "warn,profiler_daemon::app=debug,profiler_daemon::embedded::unkept=info";
    command.args(args).args(["--log-level", log]);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("PROFILERD_") || text.starts_with("SW_AGENT_") {
            command.env_remove(&name);
        }
    }
    command.stdin(Stdio::null());
    command
}

impl Recording {
    /// Records requests of a process to `endpoint`, in JSON; returns when none is missed any more.
    pub(crate) fn start(endpoint: &str, pid: u32, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pid = pid.to_string();
        let base = ["record", "--endpoint", endpoint, "--pid", &pid];
        let mut command = command(&[&base[..], &["--format", "json"], more].concat());
        command
            .stdout(File::create(folder.path().join("out")).unwrap())
            .stderr(File::create(folder.path().join("err")).unwrap());
        let child = ChildGuard::spawn("profilerd record", &mut command).unwrap();
        let mut recording = Self { child, folder };
        recording.wait_until_watched(1);
        recording
    }

    /// Waits until it watches so many processes.
    pub(crate) fn wait_until_watched(&mut self, processes: usize) {
        wait_until("profilerd to watch the processes", DEADLINE, || {
            let err = self.text("err");
            self.child
                .still_running()
                .map_err(|error| error.context(err.clone()))?;
            let watched = err.matches("process watched").count();
            Ok((watched >= processes).then_some(()))
        })
        .unwrap();
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it as the kernel would, without a chance to tidy up.
    pub(crate) fn kill(&mut self) {
        self.child.signal(libc::SIGKILL);
        self.child.wait(DEADLINE).unwrap();
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, number: i32) {
        self.child.signal(number);
    }

    /// Waits for its end, whatever it has done by then.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait(DEADLINE).unwrap()
    }

    /// Ends it by Ctrl-C, as a user who has waited long enough.
    pub(crate) fn interrupt(self) -> Recorded {
        self.child.signal(libc::SIGINT);
        self.finish()
    }

    /// Waits for its end, by the number of requests or its duration.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Recorded {
        let status = self.child.wait(DEADLINE).unwrap_or_else(|error| {
            // What it has counted by now says what it waits for.
            self.child.signal(libc::SIGINT);
            let ended = self.child.wait(DEADLINE);
            let report: Option<Value> = read_json(&self.text("out")).ok();
            let coverage = report.map(|report| report["coverage"].to_string());
            panic!(
                "{error}; then {ended:?}, {coverage:?}, log:\n{}",
                self.text("err")
            )
        });
        Recorded {
            status,
            out: self.text("out"),
            err: self.text("err"),
        }
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap()
    }
}

impl Recorded {
    /// Checks that every process was prepared before it was watched, as the log tells it; how often one was.
    #[track_caller]
    pub(crate) fn check_prepared_first(&self) -> usize {
        let mut prepared = HashMap::new();
        let mut watched = 0;
        for line in self.err.lines() {
            if let Some(pid) = field(line, "process prepared", "pid=") {
                *prepared.entry(pid).or_insert(0) += 1;
            } else if let Some(pid) = field(line, "process watched", "tgid=") {
                watched += 1;
                let times = prepared.get_mut(pid).filter(|times| **times > 0);
                *times.unwrap_or_else(|| panic!("{line}\n{}", self.err)) -= 1;
            }
        }
        watched
    }

    /// The object on standard output.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        read_json(&self.out)
            .unwrap_or_else(|error| panic!("{error}: {:?}, log:\n{}", self.out, self.err))
    }

    /// The report of a run that ended with this exit code.
    #[track_caller]
    pub(crate) fn report(&self, code: i32) -> ProfileReport {
        assert_eq!(self.status.code(), Some(code), "{}", self.err);
        serde_json::from_value(self.json()).unwrap()
    }
}

/// Value of a field in a line of the log with this message.
fn field<'a>(line: &'a str, message: &str, name: &str) -> Option<&'a str> {
    let (_, fields) = line.split_once(message)?;
    let mut fields = fields.split_whitespace();
    fields.find_map(|field| field.strip_prefix(name))
}

/// A counter of a report.
#[track_caller]
pub(crate) fn count(report: &ProfileReport, counter: &str) -> u64 {
    report.coverage.counters[counter]
}

/// Milliseconds of the calls of a Python function, wherever they stand in the trees.
pub(crate) fn total_ms(nodes: &[TreeNode], function: &str) -> i64 {
    let of = |node: &TreeNode| {
        if is_of(&node.code_signature, function) {
            node.duration_ms
        } else {
            total_ms(&node.children, function)
        }
    };
    nodes.iter().map(of).sum()
}

/// Whether a stack of the segment has a frame of the Python function.
pub(crate) fn has_function(segment: &SegmentReport, function: &str) -> bool {
    let mut stacks = segment.snapshots.iter().map(|snapshot| &snapshot.stack);
    stacks.any(|stack| stack.iter().any(|frame| is_of(frame, function)))
}

/// `sample_service.Handler.do_POST:96` is of `do_POST`.
pub(crate) fn is_of(signature: &str, function: &str) -> bool {
    let name = signature
        .rsplit_once(':')
        .map_or(signature, |(name, _)| name);
    name.rsplit('.').next() == Some(function)
}
