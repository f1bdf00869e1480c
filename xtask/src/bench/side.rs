//! What a service is measured with: nothing, profilerd, or another profiler.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use profiler_test_support::{ChildGuard, read_json, wait_until};

use super::procfs;
use crate::daemon::{Daemon, TaskRequest};
use crate::report::Report;
use crate::setup::py_spy;

/// An endpoint that nobody asks for.
pub(super) const UNMATCHED: &str = "GET:/nothing-asks-for-this";
/// The most requests that a task of SkyWalking may profile.
pub(super) const REQUESTS_PER_TASK: u32 = 9;
/// From the creation of a task until its programs are attached; the goal is 0.5 s.
const ARMED_DEADLINE: Duration = Duration::from_secs(30);
/// From Ctrl-C until a recording is written.
const WRITTEN_DEADLINE: Duration = Duration::from_secs(60);
/// py-spy says nothing when it begins; it reads the process's symbols first.
const PY_SPY_START: Duration = Duration::from_millis(1500);

/// Starts what measures.
#[derive(Debug)]
pub(super) struct Tools {
    /// `profilerd`, a release build.
    pub(super) binary: PathBuf,
    /// Logs and results.
    pub(super) folder: PathBuf,
}

impl Tools {
    pub(super) fn daemon(&self) -> Result<Daemon> {
        Daemon::start(&self.binary, &self.folder.join("profilerd.log"))
    }

    /// A new daemon with one live task; yields the task's id.
    pub(super) fn armed(&self, service: &str, endpoint: &str) -> Result<(Daemon, String)> {
        self.armed_for(task(service, endpoint))
    }

    /// The same, with any task.
    pub(super) fn armed_for(&self, task: TaskRequest<'_>) -> Result<(Daemon, String)> {
        let mut daemon = self.daemon()?;
        let task_id = daemon.create_task(task)?;
        let tgid = daemon.id();
        wait_until_attached(tgid, || daemon.still_running())?;
        Ok((daemon, task_id))
    }

    /// A recording of a service, one stack every 10 ms.
    pub(super) fn recording(
        &self,
        service: &str,
        endpoint: &str,
        options: &[&str],
    ) -> Result<Recording> {
        let file = self.folder.join(format!("{service}.json"));
        let log = File::create(self.folder.join("record.log"))?;
        let mut command = Command::new(&self.binary);
        command
            .args(["record", "--service", service, "--endpoint", endpoint])
            .args(["--duration", "10m", "--max-requests", "1000"])
            .args(["--format", "json", "-o"])
            .arg(&file)
            .args(options)
            .stdin(Stdio::null())
            .stderr(log);
        let mut child = ChildGuard::spawn("profilerd record", &mut command)?;
        let tgid = child.id();
        wait_until_attached(tgid, || child.still_running())?;
        Ok(Recording { child, file })
    }

    /// `profilerd endpoints` of a service: every request is seen, and nothing sampled.
    pub(super) fn look(&self, service: &str) -> Result<Recording> {
        let file = self.folder.join("endpoints.json");
        let mut command = Command::new(&self.binary);
        command
            .args(["endpoints", "--service", service, "--duration", "10m"])
            .arg("--json")
            .stdin(Stdio::null())
            .stdout(File::create(&file)?)
            .stderr(File::create(self.folder.join("endpoints.log"))?);
        let mut child = ChildGuard::spawn("profilerd endpoints", &mut command)?;
        let tgid = child.id();
        wait_until_attached(tgid, || child.still_running())?;
        Ok(Recording { child, file })
    }

    /// py-spy at 100 Hz, as its users start it.
    pub(super) fn py_spy(&self, tgid: u32, options: &[&str]) -> Result<Recording> {
        let file = self.folder.join("py-spy.txt");
        let mut command = Command::new(py_spy());
        command
            .args(["record", "--rate", "100", "--duration", "600"])
            .args(["--pid", &tgid.to_string(), "--output"])
            .arg(&file)
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(self.folder.join("py-spy.log"))?);
        let mut child = ChildGuard::spawn("py-spy", &mut command)?;
        sleep(PY_SPY_START);
        child.still_running()?;
        Ok(Recording { child, file })
    }
}

/// A profiler that writes a file when it is interrupted.
#[derive(Debug)]
pub(super) struct Recording {
    child: ChildGuard,
    file: PathBuf,
}

impl Recording {
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it; yields its file.
    pub(super) fn finish(mut self) -> Result<PathBuf> {
        self.child.still_running()?;
        self.child.signal(libc::SIGINT);
        self.wait()
    }

    /// Yields its file once it has ended, by itself or not.
    fn wait(mut self) -> Result<PathBuf> {
        let status = self.child.wait(WRITTEN_DEADLINE)?;
        // 3: there was nothing to profile, and the file says so.
        ensure!(
            [Some(0), Some(3)].contains(&status.code()),
            "a recording ended with {status}"
        );
        Ok(self.file)
    }

    /// Ends it; yields what it wrote.
    pub(super) fn finish_report(self) -> Result<Report> {
        read_report(&self.finish()?)
    }

    /// What a recording wrote that has ended, or soon will, with its last request.
    pub(super) fn full_report(self) -> Result<Report> {
        read_report(&self.wait()?)
    }
}

fn read_report(file: &Path) -> Result<Report> {
    let text =
        fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))?;
    read_json(&text).with_context(|| format!("{} is no report", file.display()))
}

/// A task of a quarter of an hour, one stack every 10 ms, with as many requests as it may have.
pub(super) fn task<'a>(service: &'a str, endpoint: &'a str) -> TaskRequest<'a> {
    TaskRequest {
        service,
        endpoint,
        duration_minutes: 15,
        dump_period_ms: 10,
        max_sampling_count: REQUESTS_PER_TASK,
        min_duration_ms: 0,
    }
}

fn wait_until_attached(tgid: u32, mut still_running: impl FnMut() -> Result<()>) -> Result<()> {
    wait_until("the programs to be attached", ARMED_DEADLINE, || {
        still_running()?;
        Ok((procfs::attached(tgid)? > 0).then_some(()))
    })?;
    // The last of several hooks follows the first at once; a request in between would be missed.
    sleep(Duration::from_millis(100));
    Ok(())
}
