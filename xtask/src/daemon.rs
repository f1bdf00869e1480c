//! Drives `profilerd standalone` and its `task` commands, as a user would.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use profiler_test_support::{ChildGuard, free_port, read_json, target_dir, wait_until};
use serde_json::Value;

use crate::command::{cargo, is_root, run, step};
use crate::setup::CrossTarget;

/// Longest time from start to an open port; loading is far quicker.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Exit status of `profilerd` for a result without any profiled request: complete, and empty.
const EXIT_NO_REQUEST: i32 = 3;
/// A budget that is never exceeded: the demo runs a build for debugging, and the benchmark measures what is
/// used, not what is allowed.
const UNGUARDED: &str = "100000";
/// Tells `standalone` and `task` where the token is.
const TOKEN_VARIABLE: &str = "PROFILERD_STANDALONE_TOKEN_FILE";
/// Lines of its log that an error shows.
const LOG_TAIL_LINES: usize = 20;

/// A running daemon with its built-in OAP; ends when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    binary: PathBuf,
    child: ChildGuard,
    oap: SocketAddr,
    log: PathBuf,
}

/// What a profile task asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TaskRequest<'a> {
    pub(crate) service: &'a str,
    pub(crate) endpoint: &'a str,
    /// Whole minutes, 1 to 15.
    pub(crate) duration_minutes: u32,
    pub(crate) dump_period_ms: u32,
    /// 1 to 9.
    pub(crate) max_sampling_count: u32,
    /// Only requests that last longer.
    pub(crate) min_duration_ms: u32,
}

/// Fails with the way out when we are not root.
pub(crate) fn require_root(command: &str) -> Result<()> {
    ensure!(
        is_root(),
        "profiling needs root; please run: sudo env \"PATH=$PATH\" cargo xtask {command}"
    );
    Ok(())
}

/// Builds `profilerd`; yields its path.
pub(crate) fn build(release: bool) -> Result<PathBuf> {
    let profile = if release { "release" } else { "debug" };
    let options: &[&str] = if release {
        // What is shipped: no feature that only tests need.
        &["--release", "--package", "profiler-daemon"]
    } else {
        &["--workspace"]
    };
    run(build_command().args(options))?;
    Ok(target_dir().join(profile).join("profilerd"))
}

/// Builds `profilerd`, with its BPF object, for another architecture; yields its path.
pub(crate) fn build_for(target: &CrossTarget) -> Result<PathBuf> {
    let mut build = build_command();
    build.arg("--workspace");
    target.configure(&mut build);
    run(&mut build)?;
    Ok(target.target_dir().join("debug/profilerd"))
}

fn build_command() -> Command {
    step("build profilerd (the first time takes minutes)");
    let mut build = cargo();
    build.args(["build", "--locked", "--quiet", "--bin", "profilerd"]);
    build
}

impl Daemon {
    /// Starts it on a free port and returns when the port is open. Its log goes to `log`.
    pub(crate) fn start(binary: &Path, log: &Path) -> Result<Self> {
        Self::start_with(binary, log, &[])
    }

    /// As [`Self::start`], with more options.
    pub(crate) fn start_with(binary: &Path, log: &Path, options: &[&str]) -> Result<Self> {
        let oap = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let log_file =
            File::create(log).with_context(|| format!("failed to create {}", log.display()))?;
        let mut command = Command::new(binary);
        command
            .args(["standalone", "--listen", &oap.to_string()])
            .args(["--data-dir", ":memory:"])
            .args(options);
        if !options.contains(&"--http-listen") {
            command.args(["--http-listen", "off"]);
        }
        command
            .env("PROFILERD_LIMITS_MAX_CPU_PERCENT", UNGUARDED)
            // A window would be measured with whatever runs beside it.
            .env("PROFILERD_DISCOVERY_MODE", "off")
            .env(TOKEN_VARIABLE, token_file(log))
            .stdin(Stdio::null())
            .stdout(log_file.try_clone()?)
            .stderr(log_file);
        let mut daemon = Self {
            binary: binary.to_owned(),
            child: ChildGuard::spawn("profilerd", &mut command)?,
            oap,
            log: log.to_owned(),
        };
        let listens = wait_until("profilerd to listen", START_DEADLINE, || {
            daemon.child.still_running()?;
            Ok(TcpStream::connect(oap).ok())
        });
        listens.with_context(|| daemon.log_tail())?;
        Ok(daemon)
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where its OAP listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.oap
    }

    /// What agents must send to it.
    pub(crate) fn token(&self) -> Result<String> {
        let file = token_file(&self.log);
        let text = fs::read_to_string(&file);
        let text = text.with_context(|| format!("failed to read {}", file.display()))?;
        Ok(text.trim().to_owned())
    }

    /// Whether an instance took the task.
    pub(crate) fn is_notified(&self, task_id: &str) -> Result<bool> {
        Ok(self.task(["show", task_id, "--json"])?.contains("NOTIFIED"))
    }

    /// Whether it looks at requests for the task.
    pub(crate) fn is_armed(&self, task_id: &str) -> bool {
        is_armed(&self.log_text(), task_id)
    }

    /// Fails when it has ended, with the end of its log.
    pub(crate) fn still_running(&mut self) -> Result<()> {
        let running = self.child.still_running();
        running.with_context(|| self.log_tail())
    }

    /// Everything it has logged.
    pub(crate) fn log_text(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Creates a task; yields its id, or what the OAP said against it.
    pub(crate) fn create_task(&self, task: TaskRequest<'_>) -> Result<String> {
        let text = self.task([
            "create",
            "--service",
            task.service,
            "--endpoint",
            task.endpoint,
            "--duration",
            &format!("{}m", task.duration_minutes),
            "--period",
            &format!("{}ms", task.dump_period_ms),
            "--max-requests",
            &task.max_sampling_count.to_string(),
            "--min-duration",
            &format!("{}ms", task.min_duration_ms),
        ])?;
        let id = text.split_whitespace().find(|word| is_task_id(word));
        id.map(str::to_owned)
            .with_context(|| format!("no task id in the answer {text:?}"))
    }

    /// The result so far, in the form of `record --format json`.
    pub(crate) fn result(&self, task_id: &str) -> Result<Value> {
        let text = self.task(["result", task_id, "--format", "json"])?;
        read_json(&text).context("the JSON result of the task")
    }

    /// The result as text for people.
    pub(crate) fn result_tree(&self, task_id: &str) -> Result<String> {
        self.task(["result", task_id, "--format", "tree"])
    }

    /// Writes the result as a flame graph.
    pub(crate) fn write_flame_graph(&self, task_id: &str, file: &Path) -> Result<()> {
        let options: [&OsStr; 6] = [
            "result".as_ref(),
            task_id.as_ref(),
            "--format".as_ref(),
            "svg".as_ref(),
            "-o".as_ref(),
            file.as_ref(),
        ];
        self.task(options).map(drop)
    }

    fn task(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<String> {
        let mut command = Command::new(&self.binary);
        let mut args = args.into_iter();
        command.arg("task").args(args.next());
        command.args(["--oap", &self.oap.to_string()]).args(args);
        let output = command
            .env(TOKEN_VARIABLE, token_file(&self.log))
            .stdin(Stdio::null())
            .output()
            .context("failed to start profilerd task")?;
        let has_answer = [Some(0), Some(EXIT_NO_REQUEST)].contains(&output.status.code());
        if !has_answer {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        String::from_utf8(output.stdout).context("profilerd task printed no text")
    }

    fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
        format!("the end of {}:\n{}", self.log.display(), tail.join("\n"))
    }
}

/// Beside the log: the machine's own token is none of ours.
fn token_file(log: &Path) -> PathBuf {
    log.with_extension("token")
}

/// Whether a daemon's log says that it looks at requests for the task.
pub(crate) fn is_armed(log: &str, task_id: &str) -> bool {
    let mut lines = log.lines();
    lines.any(|line| line.contains(": armed ") && line.contains(task_id))
}

/// `<creation time, epoch ms>_<base64 of the service>.1`
fn is_task_id(word: &str) -> bool {
    word.split_once('_').is_some_and(|(time, service)| {
        time.len() >= 13
            && time.bytes().all(|byte| byte.is_ascii_digit())
            && service.ends_with(".1")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a task id is found among the words of an answer.
    #[test]
    fn a_task_id_is_recognized() {
        assert!(is_task_id("1700000000123_ZGVtby1zYW1wbGU=.1"));
        assert!(!is_task_id("created"));
        assert!(!is_task_id("12_x.1"));
    }
}
