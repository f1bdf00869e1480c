//! A `profilerd standalone` or `daemon` that runs beside the test, and `profilerd task` that asks it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use profiler_daemon::model::ProfileReport;
use profiler_tests::{ChildGuard, free_port, read_json, wait_until};
use serde_json::Value;
use tempfile::TempDir;

use crate::DEADLINE;
use crate::recording::command;

/// A budget no test exceeds: a build for debugging on a busy machine must not have its periods stretched.
const UNGUARDED: &str = "100000";

const LOG: &str = "log";
const TOKEN: &str = "token";
const TOKEN_VARIABLE: &str = "PROFILERD_STANDALONE_TOKEN_FILE";

/// A running daemon; ends when dropped.
pub(crate) struct Daemon {
    child: ChildGuard,
    /// With its log and its token.
    folder: TempDir,
    /// Its OAP, or the one it reports to.
    oap: SocketAddr,
}

/// How a `profilerd task` ended.
pub(crate) struct Answer {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Answer {
    /// Of a command that ends.
    pub(crate) fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Daemon {
    /// With its own OAP; returns when that can be asked.
    pub(crate) fn standalone() -> Self {
        Self::standalone_with(":memory:", &[])
    }

    /// As [`Self::standalone`], with its data in a directory.
    pub(crate) fn standalone_in(data_dir: &str) -> Self {
        Self::standalone_with(data_dir, &[])
    }

    /// As [`Self::standalone_in`], with more variables.
    pub(crate) fn standalone_with(data_dir: &str, variables: &[(&str, &str)]) -> Self {
        Self::standalone_by(&["--data-dir", data_dir], variables)
    }

    /// As [`Self::standalone_in`], for callers without a token.
    pub(crate) fn standalone_without_token(data_dir: &str) -> Self {
        Self::standalone_by(&["--data-dir", data_dir, "--no-token"], &[])
    }

    /// As [`Self::standalone`], serving its metrics.
    pub(crate) fn standalone_measured(metrics: SocketAddr) -> Self {
        let metrics = metrics.to_string();
        let options = ["--data-dir", ":memory:", "--metrics", &metrics];
        Self::standalone_by(&options, &[])
    }

    fn standalone_by(options: &[&str], variables: &[(&str, &str)]) -> Self {
        let oap = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        let listen = oap.to_string();
        let args = [&["standalone", "--listen", &listen], options].concat();
        let mut daemon = Self::start(&args, oap, variables);
        wait_until("the built-in OAP", DEADLINE, || {
            daemon.child.still_running()?;
            Ok(TcpStream::connect(oap).ok())
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log()));
        daemon
    }

    /// For an OAP that may be there or not, asked for tasks every second.
    pub(crate) fn reporting_to(oap: SocketAddr) -> Self {
        Self::reporting_with(oap, &[])
    }

    /// As [`Self::reporting_to`], with more variables.
    pub(crate) fn reporting_with(oap: SocketAddr, variables: &[(&str, &str)]) -> Self {
        Self::start(&["daemon", "--backend", &oap.to_string()], oap, variables)
    }

    fn start(args: &[&str], oap: SocketAddr, variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = File::create(folder.path().join(LOG)).unwrap();
        let mut command = command(args);
        command
            .env(TOKEN_VARIABLE, folder.path().join(TOKEN))
            .env("PROFILERD_OAP_POLL_INTERVAL", "1s")
            .env("PROFILERD_STATE_DIR", "none")
            .env("PROFILERD_HTTP_LISTEN", "off")
            // A window would attach programs where a test expects none.
            .env("PROFILERD_DISCOVERY_MODE", "off")
            .env("PROFILERD_LIMITS_MAX_CPU_PERCENT", UNGUARDED)
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .stderr(log);
        let child = ChildGuard::spawn("profilerd", &mut command).unwrap();
        Self { child, folder, oap }
    }

    /// Address of its OAP.
    pub(crate) fn oap(&self) -> SocketAddr {
        self.oap
    }

    /// Where its token is, if it asks for one.
    pub(crate) fn token_file(&self) -> PathBuf {
        self.folder.path().join(TOKEN)
    }

    /// What callers must send.
    pub(crate) fn token(&self) -> String {
        fs::read_to_string(self.token_file())
            .unwrap()
            .trim()
            .to_owned()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join(LOG)).unwrap()
    }

    /// Waits until it has logged the text so many times.
    #[track_caller]
    pub(crate) fn wait_for_log(&mut self, text: &str, times: usize) {
        wait_until(text, DEADLINE, || {
            self.child.still_running()?;
            Ok((self.log().matches(text).count() >= times).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
    }

    /// Fails when it has ended.
    pub(crate) fn still_running(&mut self) -> anyhow::Result<()> {
        self.child.still_running()
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let status = self.child.wait(DEADLINE);
        status.unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    pub(crate) fn signal(&self, signal: i32) {
        self.child.signal(signal);
    }

    /// Runs `profilerd task`.
    pub(crate) fn task(&self, args: &[&str]) -> Answer {
        let oap = self.oap.to_string();
        self.run(&[&["task", "--oap", &oap], args].concat())
    }

    /// Runs `profilerd`, which may find the token.
    pub(crate) fn run(&self, args: &[&str]) -> Answer {
        let mut command = command(args);
        Answer::of(command.env(TOKEN_VARIABLE, self.token_file()))
    }

    /// Asks for a task of one minute; yields its id when a process of the service is watched for it.
    #[track_caller]
    pub(crate) fn create_task(&mut self, service: &str, endpoint: &str) -> String {
        let watched = self.log().matches("process watched").count();
        let answer = self.task(&creation(service, endpoint));
        assert_eq!(answer.code, Some(0), "{}", answer.err);
        self.wait_for_log("process watched", watched + 1);
        answer.out.trim().to_owned()
    }

    /// `task show --json`.
    #[track_caller]
    pub(crate) fn show(&self, task_id: &str) -> Value {
        let answer = self.task(&["show", task_id, "--json"]);
        assert_eq!(answer.code, Some(0), "{}", answer.err);
        read_json(&answer.out).unwrap()
    }

    /// The result of a task by now.
    pub(crate) fn result(&self, task_id: &str) -> anyhow::Result<ProfileReport> {
        let answer = self.task(&["result", task_id, "--format", "json"]);
        Ok(read_json(&answer.out)?)
    }

    /// Waits until the task has this number of segments, with all of their snapshots; yields its result. A
    /// segment is shown as soon as some of its snapshots are there.
    #[track_caller]
    pub(crate) fn wait_for_segments(&self, task_id: &str, count: usize) -> ProfileReport {
        wait_until("segments of the task", DEADLINE, || {
            let report = self.result(task_id)?;
            let counts = &report.coverage.counters;
            let counted = |name: &str| counts.get(name).copied().unwrap_or(0);
            let is_whole = counted("requests_profiled") >= count as u64
                && counted("snapshots_sent") == counted("snapshots_taken");
            Ok((report.segments.len() >= count && is_whole).then_some(report))
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }
}

/// Arguments of `task create` for a task of one minute.
pub(crate) fn creation<'a>(service: &'a str, endpoint: &'a str) -> Vec<&'a str> {
    let what = ["create", "--service", service, "--endpoint", endpoint];
    [&what[..], &["--duration", "1m"]].concat()
}
