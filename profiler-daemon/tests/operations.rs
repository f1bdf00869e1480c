//! What an operator and scripts meet: checks of the configuration, completions, man pages, readiness, reload, lines of the log.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use profiler_test_support::{ChildGuard, HttpClient, free_port, needs_root, wait_until};
use serde_json::Value;
use tempfile::TempDir;

const PROFILERD: &str = env!("CARGO_BIN_EXE_profilerd");
const DEADLINE: Duration = Duration::from_secs(30);

/// A binary in an environment without variables of ours.
fn command(binary: impl AsRef<Path>, args: &[&str]) -> Command {
    let mut command = Command::new(binary.as_ref());
    command.args(args).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().into_owned();
        let ours = ["PROFILERD_", "SW_AGENT_", "RUST_LOG", "KUBERNETES_"];
        if ours.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

/// Exit code, standard output, standard error.
fn run(args: &[&str]) -> (i32, String, String) {
    let output = command(PROFILERD, args).output().unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// A daemon that serves its metrics.
struct Daemon {
    child: ChildGuard,
    metrics: SocketAddr,
    folder: TempDir,
}

impl Daemon {
    /// Starts what `prepare` makes of the command; nobody listens where its OAP should be.
    fn start(folder: TempDir, binary: &Path, prepare: impl FnOnce(&mut Command)) -> Self {
        let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        let oap = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        let mut command = command(binary, &["daemon", "--state-dir", "none"]);
        command
            .args(["--metrics", &metrics.to_string()])
            .args(["--backend", &oap.to_string()])
            .env("PROFILERD_DISCOVERY_MODE", "off")
            .stdout(Stdio::null())
            .stderr(File::create(folder.path().join("log")).unwrap());
        prepare(&mut command);
        Self {
            child: ChildGuard::spawn("profilerd", &mut command).unwrap(),
            metrics,
            folder,
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    #[track_caller]
    fn wait_for_log(&mut self, text: &str) {
        wait_until(text, DEADLINE, || {
            self.child.still_running()?;
            Ok(self.log().contains(text).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
    }

    /// Status and text.
    fn ask(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let mut client = HttpClient::connect(self.metrics, DEADLINE)?;
        let answer = client.request("GET", path, "")?;
        Ok((answer.status, String::from_utf8(answer.body)?))
    }

    /// Waits until it is not ready for a reason with this text; yields all reasons.
    #[track_caller]
    fn wait_for_obstacle(&mut self, text: &str) -> String {
        wait_until(text, DEADLINE, || {
            self.child.still_running()?;
            let answer = self.ask("/readyz").ok();
            let answer = answer.filter(|(_, body)| body.contains(text));
            Ok(answer.map(|(status, body)| {
                assert_eq!(status, 503, "{body}");
                body
            }))
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    /// Ends it as an operator does.
    #[track_caller]
    fn stop(mut self) -> String {
        self.child.signal(libc::SIGTERM);
        let status = self.child.wait(DEADLINE).unwrap();
        assert_eq!(status.code(), Some(0), "{}", self.log());
        self.log()
    }
}

/// Check that a file is accepted or refused with place, key and what is accepted.
#[test]
fn a_file_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.yaml");
    let check = |text: &str| {
        fs::write(&path, text).unwrap();
        run(&["config", "check", path.to_str().unwrap()])
    };
    let (code, out, err) = check("oap: {backends: [a:1]}\n");
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.ends_with("p.yaml can be used\n"), "{out}");
    let (code, _, err) = check("# nothing\n");
    assert_eq!(code, 0);
    assert!(err.contains("oap.backends is empty"), "{err}");
    for (text, expected) in [
        (
            "oap:\n  poll_interval: 1ms\n",
            "oap.poll_interval: 1ms is out of range: accepted is 1s to 5m, the nearest is 1s",
        ),
        ("oap:\n  backend: [a:1]\n", "did you mean \"backends\"?"),
        ("log: {format: xml}\n", "log.format: unknown value \"xml\""),
        (
            "services: [{match: {exe: a}, service: '{x}'}]\n",
            "services[0]: unknown placeholder {x}",
        ),
        (
            "kubernetes: {only_annotated: true}\n",
            "need kubernetes.enabled: set it to true",
        ),
        (
            "oap: {authentication: s3cret, token_file: /t}\n",
            "oap.authentication and oap.token_file are both given",
        ),
    ] {
        let (code, out, err) = check(text);
        assert_eq!((code, out.as_str()), (1, ""), "{text}");
        assert!(err.contains(expected), "{err}");
        assert!(!err.contains("s3cret"), "{err}");
    }
    assert_eq!(run(&["config", "check"]).0, 2);
}

/// Check that every value is shown with its source, as `daemon` would use it, and secrets are not.
#[test]
fn values_are_shown_with_their_source() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.yaml");
    fs::write(&path, "limits: {spool: 3MiB}\n").unwrap();
    let output = command(PROFILERD, &["config", "show", "--json", "--backend", "a:1"])
        .args(["--config", path.to_str().unwrap()])
        .env("SW_AGENT_AUTHENTICATION", "s3cret")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains("s3cret"), "{text}");
    let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
    let of = |key: &str| {
        let row = rows.iter().find(|row| row["key"] == key).unwrap();
        let name = row["name"].as_str().unwrap_or_default();
        format!(
            "{} {} {name}",
            row["value"],
            row["source"].as_str().unwrap()
        )
    };
    assert_eq!(of("oap.backends"), "[\"a:1\"] option --backend");
    assert_eq!(of("limits.spool"), "\"3MiB\" file ");
    assert_eq!(of("log.format"), "\"text\" default ");
    let token = "\"(secret)\" variable SW_AGENT_AUTHENTICATION";
    assert_eq!(of("oap.authentication"), token);
}

/// Check that completions ask the binary, for each shell, and that man pages are written.
#[test]
fn completions_and_man_pages_are_written() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, out, err) = run(&["completions", shell]);
        assert_eq!((code, err.as_str()), (0, ""), "{shell}");
        assert!(
            out.contains("COMPLETE") && out.contains("profilerd"),
            "{out}"
        );
    }
    assert_eq!(run(&["completions", "tcsh"]).0, 2);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("man1");
    assert_eq!(run(&["man", folder.to_str().unwrap()]).0, 0);
    assert!(folder.join("profilerd-config-check.1").is_file());
    assert_eq!(run(&["man", "/proc/none"]).0, 1);
}

/// Check that the version is that of the package, alone or with seven digits of a revision.
#[test]
fn the_version_may_have_a_revision() {
    let (_, out, _) = run(&["--version"]);
    let begin = concat!("profilerd ", env!("CARGO_PKG_VERSION"));
    let revision = out.trim_end().strip_prefix(begin).unwrap();
    if !revision.is_empty() {
        let digits = revision.strip_prefix(" (").unwrap();
        let digits = digits.strip_suffix(')').unwrap();
        assert_eq!(digits.len(), 7, "{out}");
        assert!(digits.chars().all(|c| c.is_ascii_hexdigit()), "{out}");
    }
}

/// Check that the reason why a daemon ends is a line of its log, in the form that was asked for.
#[test]
fn the_reason_for_an_end_is_a_line_of_the_log() {
    let end = |more: &[&str]| run(&[&["daemon", "--state-dir", "none"], more].concat());
    let (code, _, err) = end(&["--log-format", "json"]);
    assert_eq!(code, 1);
    let line: Value = serde_json::from_str(err.trim_end()).unwrap();
    assert_eq!(line["level"], "ERROR");
    assert!(
        line["message"]
            .as_str()
            .unwrap()
            .starts_with("no OAP is named"),
        "{line}"
    );
    assert!(end(&[]).2.starts_with("profilerd: no OAP is named"));
    assert_eq!(end(&["--log-format", "xml"]).0, 2);
}

/// Check that a daemon whose OAP, API server and token file are away stays, alive and not ready, with a reason for each; that
/// it reads its configuration again on SIGHUP, says what that changes, and keeps what it has if the file cannot be used;
/// and that all it logs is JSON without the token.
#[test]
fn what_waiting_heals_keeps_the_daemon_running() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.yaml");
    let token = folder.path().join("token");
    let kubernetes =
        "kubernetes: {enabled: true, api_server: 'http://127.0.0.1:1', node_name: n}\n";
    let common = format!("{kubernetes}oap: {{token_file: '{}'}}\n", token.display());
    fs::write(&path, &common).unwrap();
    let config = path.clone();
    let mut daemon = Daemon::start(folder, Path::new(PROFILERD), |command| {
        command.env("PROFILERD_CONFIG", config);
        command.args(["--log-format", "json"]);
    });
    daemon.wait_for_obstacle("pods cannot be read from Kubernetes");
    let obstacles = daemon.wait_for_obstacle("oap.token_file: failed to read");
    assert_eq!(obstacles.lines().count(), 2, "{obstacles}");
    assert_eq!(daemon.ask("/healthz").unwrap().0, 200);

    fs::write(&token, "s3cret-token\n").unwrap();
    let more = "limits: {max_cpu_percent: 5, samples_ring: 8MiB}\nlog: {level: debug}\n\
                services: [{match: {exe: nothing}, service: s}]\n";
    fs::write(&path, format!("{common}{more}")).unwrap();
    daemon.child.signal(libc::SIGHUP);
    for line in [
        "limits.max_cpu_percent changed; takes effect now",
        "limits.samples_ring changed; takes effect after a restart",
        "log.level changed; takes effect now",
        "services changed; takes effect now",
    ] {
        daemon.wait_for_log(line);
    }
    daemon.wait_for_obstacle("failed to connect to the OAP");
    daemon.wait_for_log("\"level\":\"DEBUG\"");

    fs::write(&path, "limits: {max_cpu_percent: 0}\n").unwrap();
    daemon.child.signal(libc::SIGHUP);
    daemon.wait_for_log("nothing changes");
    daemon.wait_for_log("limits.max_cpu_percent: 0 is out of range");
    let log = daemon.stop();
    assert!(!log.contains("s3cret"), "{log}");
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        for key in ["timestamp", "level", "target", "message"] {
            assert!(line[key].is_string(), "{line}");
        }
    }
}

/// Check that in a pod a daemon without privileges stays, alive and not ready, with the same line for each reason in the log
/// and in the answer; and that on a host it ends.
#[test]
fn a_pod_that_cannot_work_says_why_and_stays() {
    // To give it up.
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary: PathBuf = folder.path().join("profilerd");
    fs::copy(PROFILERD, &binary).unwrap();
    let mut daemon = Daemon::start(folder, &binary, |command| {
        command.env("KUBERNETES_SERVICE_HOST", "10.0.0.1");
        command.uid(65_534).gid(65_534).current_dir("/");
    });
    let obstacles = daemon.wait_for_obstacle("privileges: missing capability CAP_BPF");
    assert!(
        obstacles.contains("missing capability CAP_SYS_PTRACE"),
        "{obstacles}"
    );
    assert_eq!(daemon.ask("/healthz").unwrap().0, 200);
    for line in obstacles.lines() {
        daemon.wait_for_log(&format!("not ready: {line}"));
    }
    daemon.stop();
}
