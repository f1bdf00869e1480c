//! Runs the `profilerd` binary: exit codes, what goes to which stream, and what refusals say.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use profiler_daemon::model::plain::is_plain;
use profiler_test_support::needs_root;
use serde_json::Value;

const PROFILERD: &str = env!("CARGO_BIN_EXE_profilerd");

/// What a run left.
struct Run {
    code: i32,
    out: String,
    err: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The binary in an environment without variables of ours.
fn profilerd(args: &[&str]) -> Command {
    let mut command = Command::new(PROFILERD);
    command.args(args);
    without_variables(command)
}

fn without_variables(mut command: Command) -> Command {
    command.stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().into_owned();
        if ["PROFILERD_", "SW_AGENT_", "RUST_LOG"]
            .iter()
            .any(|prefix| text.starts_with(prefix))
        {
            command.env_remove(name);
        }
    }
    command
}

fn run(args: &[&str]) -> Run {
    profilerd(args).output().unwrap().into()
}

/// A child that ends with the test.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        Self(
            Command::new("sleep")
                .arg("600")
                .env("SW_AGENT_NAME", "cli-test")
                .spawn()
                .unwrap(),
        )
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Check that help and version are results, and that every command has examples or a description.
#[test]
fn help_is_a_result() {
    let help = run(&["--help"]);
    assert_eq!((help.code, help.err.as_str()), (0, ""));
    for command in [
        "daemon",
        "standalone",
        "record",
        "task",
        "analyze",
        "ps",
        "status",
        "doctor",
    ] {
        assert!(help.out.contains(command), "{command}");
        assert_eq!(run(&[command, "--help"]).code, 0, "{command}");
    }
    assert!(run(&["record", "--help"]).out.contains("Examples:"));
    assert_eq!(run(&["--version"]).code, 0);
}

/// Check that bad usage is exit code 2, says what is accepted, and prints no result.
#[test]
fn bad_usage_is_2_and_says_what_is_accepted() {
    let record = ["record", "--pid", "1", "--endpoint"];
    let with = |extra: &[&'static str]| [&record[..], extra].concat();
    let cases: &[(Vec<&str>, &str)] = &[
        (vec![], "Usage"),
        (vec!["recrod"], "record"),
        (with(&["com.acme.Shop/buy"]), "METHOD:/path"),
        (with(&["GTE:/x"]), "GTE"),
        (with(&["/x", "--period", "0ms"]), "1ms to 10s"),
        (with(&["/x", "--period", "10"]), "such as 30s"),
        (with(&["/x", "--duration", "1h"]), "1s to 15m"),
        (with(&["/x", "--max-requests", "0"]), "1..=1000"),
        (with(&["/x", "-o", "/tmp"]), "is a directory"),
        (with(&["/x", "--format", "xml"]), "possible values"),
        (vec!["record", "--endpoint", "/x"], "--pid"),
        (vec!["ps", "--log-level", "loud"], "accepted are error"),
        (vec!["standalone", "--listen", "nowhere"], "--listen"),
        (
            vec!["task", "list", "--token", "s3cret"],
            "--token is not accepted",
        ),
        (with(&["/x\u{1b}[31m\n"]), "has a control character"),
        (
            vec!["standalone", "--no-token", "--token-file", "t"],
            "cannot be used with",
        ),
        (
            vec!["daemon", "--metrics", "9464"],
            "such as 127.0.0.1:9464, or off",
        ),
        (
            vec!["standalone", "--http-listen", "12800"],
            "127.0.0.1:12800, or off",
        ),
    ];
    for (args, expected) in cases {
        let run = run(args);
        assert_eq!(run.code, 2, "{args:?}: {}", run.err);
        assert!(run.err.contains(expected), "{args:?}: {}", run.err);
        assert!(run.err.lines().all(is_plain), "{args:?}: {:?}", run.err);
        assert!(!run.err.contains("s3cret"), "{}", run.err);
        assert_eq!(run.out, "", "{args:?}");
    }
}

/// Check that an unknown key of the configuration ends every command that reads it, with file, line
/// and the nearest key.
#[test]
fn an_unknown_key_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("profilerd.yaml");
    fs::write(&path, "oap:\n  backend: [a:1]\n").unwrap();
    let path = path.to_str().unwrap();
    let expected = format!("{path}:2:3: unknown key \"backend\"; did you mean \"backends\"?");
    for command in [
        &["ps"][..],
        &["daemon"],
        &["record", "--pid", "1", "--endpoint", "/"],
    ] {
        let run = run(&[command, &["--config", path]].concat());
        assert_eq!(run.code, 1, "{command:?}");
        assert!(run.err.contains(&expected), "{}", run.err);
    }
    let run: Run = profilerd(&["ps"])
        .env("PROFILERD_OAP_POLL_INTERVAL", "1ms")
        .output()
        .unwrap()
        .into();
    assert_eq!(run.code, 1);
    assert!(
        run.err.contains("PROFILERD_OAP_POLL_INTERVAL") && run.err.contains("1s to 5m"),
        "{}",
        run.err
    );
}

/// Check that a daemon without an OAP does not guess one: it says how to name it, and what runs without.
#[test]
fn a_daemon_asks_for_its_oap() {
    let run = run(&["daemon", "--state-dir", "none"]);
    assert_eq!((run.code, run.out.as_str()), (1, ""), "{}", run.err);
    for part in [
        "--backend HOST:PORT",
        "SW_AGENT_COLLECTOR_BACKEND_SERVICES",
        "oap.backends",
        "profilerd standalone",
    ] {
        assert!(run.err.contains(part), "{}", run.err);
    }
}

/// Check that an unknown process or service is exit code 1 with where to look.
#[test]
fn an_unknown_target_is_1() {
    needs_root!();
    for target in [["--pid", "4194303"], ["--service", "no such service"]] {
        let run = run(&[&["record", "--endpoint", "/x"], &target[..]].concat());
        assert_eq!(run.code, 1, "{}", run.err);
        assert!(
            run.err.contains(target[1]) && run.err.contains("profilerd ps"),
            "{}",
            run.err
        );
    }
}

/// Check that a recording in which nothing happens is exit code 3 with the reason, that an object is
/// still written, and a picture is not.
#[test]
fn no_request_is_3_with_the_reason() {
    needs_root!();
    let sleeper = Sleeper::start();
    let pid = sleeper.0.id().to_string();
    let folder = tempfile::tempdir().unwrap();
    let svg = folder.path().join("x.svg");
    let record = [
        "record",
        "--endpoint",
        "/x",
        "--pid",
        &pid,
        "--duration",
        "1s",
    ];
    let json = run(&[&record[..], &["--format", "json"]].concat());
    assert_eq!(json.code, 3, "{}", json.err);
    assert!(
        json.err
            .contains("No process of cli-test has read an HTTP/1 request"),
        "{}",
        json.err
    );
    let report: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(report["coverage"]["requests_seen"], 0);
    assert_eq!(report["task"]["service"], "cli-test");
    let drawn = run(&[&record[..], &["-o", svg.to_str().unwrap()]].concat());
    assert_eq!((drawn.code, drawn.out.as_str()), (3, ""));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Check that without privileges every command that needs them says which and what to do, and that
/// `doctor` fails.
#[test]
fn missing_privileges_are_named() {
    // To give it up.
    needs_root!();
    // The build folder may be closed to others.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = folder.path().join("profilerd");
    fs::copy(PROFILERD, &binary).unwrap();
    let run = |args: &[&str]| -> Run {
        let mut command = Command::new(&binary);
        command.args(args).uid(65_534).gid(65_534).current_dir("/");
        command.output().unwrap().into()
    };
    for args in [
        &["record", "--endpoint", "/x", "--pid", "1"][..],
        &["standalone", "--listen", "127.0.0.1:0", "--no-token"],
        &["daemon", "--backend", "127.0.0.1:1"],
    ] {
        let run = run(args);
        assert_eq!(run.code, 1, "{args:?}: {}", run.err);
        for expected in ["CAP_BPF", "CAP_SYS_PTRACE", "as root"] {
            assert!(run.err.contains(expected), "{args:?}: {}", run.err);
        }
    }
    let doctor = run(&["doctor"]);
    assert_eq!(doctor.code, 1);
    assert!(
        doctor
            .out
            .contains("FAIL  privileges: missing capability CAP_BPF"),
        "{}",
        doctor.out
    );
}

/// Check that in a pid namespace of its own nothing is started, with the reason and what to do, and that no
/// process passes as one that can be profiled.
#[test]
fn a_pid_namespace_of_its_own_is_told() {
    needs_root!();
    let within = |script: &str| -> Run {
        let mut unshare = Command::new("unshare");
        unshare.args([
            "--pid",
            "--fork",
            "--mount-proc",
            "sh",
            "-c",
            script,
            PROFILERD,
        ]);
        without_variables(unshare).output().unwrap().into()
    };
    // The shell is process 1; it must not become what it starts.
    let record = within("\"$0\" record --endpoint '*' --pid 1; exit $?");
    assert_eq!(record.code, 1, "{}", record.err);
    for part in ["in a pid namespace of its own", "hostPID: true"] {
        assert!(record.err.contains(part), "{}", record.err);
    }
    let processes = within("\"$0\" ps --all --json; exit $?");
    let processes: Value = serde_json::from_str(&processes.out).unwrap();
    let shell = processes
        .as_array()
        .unwrap()
        .iter()
        .find(|p| p["pid"] == 1)
        .unwrap();
    assert_eq!(shell["profilable"], false);
    assert!(
        shell["reason"].as_str().unwrap().contains("hostPID: true"),
        "{shell}"
    );
}

/// Check the objects of `doctor --json` and `ps --json`, with a process of a known name.
#[test]
fn json_is_for_programs() {
    let sleeper = Sleeper::start();
    let doctor: Value = serde_json::from_str(&run(&["doctor", "--json"]).out).unwrap();
    assert_eq!(doctor["version"], env!("CARGO_PKG_VERSION"));
    assert!(doctor["works"].is_boolean());
    for finding in doctor["findings"].as_array().unwrap() {
        assert!(
            finding["name"].is_string() && finding["ok"].is_boolean(),
            "{finding}"
        );
        assert!(
            finding["needed"].is_boolean() && finding["fix"].is_string(),
            "{finding}"
        );
    }
    // The name is there once the child has become `sleep`, which is when spawn returns.
    let processes: Value = serde_json::from_str(&run(&["ps", "--json"]).out).unwrap();
    let found = processes.as_array().unwrap().iter();
    let found: Vec<&Value> = found.filter(|p| p["pid"] == sleeper.0.id()).collect();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["service"], "cli-test");
    assert_eq!(found[0]["rule"], "SW_AGENT_NAME");
    assert_eq!(found[0]["profilable"], true);
}

/// Check that a reader who has seen enough is no failure.
#[test]
fn a_closed_pipe_is_no_failure() {
    let mut command = profilerd(&["ps", "--all", "--json"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut err = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{err}");
    assert!(!err.contains("panicked"), "{err}");
}

/// Check that `analyze` reads snapshots from a file and prints trees, and that a missing file is 1.
#[test]
fn snapshots_become_trees() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.jsonl");
    let lines = (0..3).map(|i| {
        format!(
            "{{\"segment_id\":\"s\",\"sequence\":{i},\"time_ms\":{},\"stack\":[\"main\",\"f\"]}}\n",
            i * 10
        )
    });
    fs::write(&path, lines.collect::<String>()).unwrap();
    let done = run(&["analyze", path.to_str().unwrap(), "--format", "json"]);
    assert_eq!(done.code, 0, "{}", done.err);
    let trees: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(trees["trees"][0]["code_signature"], "main");
    assert_eq!(trees["trees"][0]["duration_ms"], 20);
    let missing = run(&["analyze", "/nonexistent"]);
    assert_eq!(missing.code, 1);
    assert!(missing.err.contains("/nonexistent"), "{}", missing.err);
}

/// Check that `status` says how metrics are turned on when it knows no address, and that nobody answers when
/// nobody does.
#[test]
fn a_status_without_a_daemon_is_1_and_says_what_to_do() {
    let unknown = run(&["status"]);
    assert_eq!((unknown.code, unknown.out.as_str()), (1, ""));
    for part in ["--metrics 127.0.0.1:9464", "PROFILERD_METRICS"] {
        assert!(unknown.err.contains(part), "{}", unknown.err);
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let mut by_variable = profilerd(&["status", "--json"]);
    by_variable.env("PROFILERD_METRICS", &address);
    for absent in [
        run(&["status", "--metrics", &address]),
        by_variable.output().unwrap().into(),
    ] {
        assert_eq!((absent.code, absent.out.as_str()), (1, ""));
        let reason = format!("no profilerd answers at {address}");
        assert!(absent.err.contains(&reason), "{}", absent.err);
    }
}

/// Check that variables that name proxies do not lead calls to an OAP away from it, by gRPC and by GraphQL.
#[test]
fn proxies_are_not_used() {
    let listen = || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    };
    let (proxy, proxy_port) = listen();
    for flag in ["--oap", "--graphql"] {
        let (oap, port) = listen();
        let address = match flag {
            "--oap" => format!("127.0.0.1:{port}"),
            _ => format!("http://127.0.0.1:{port}/graphql"),
        };
        let mut command = profilerd(&["task", "list", flag, &address]);
        for name in ["http_proxy", "https_proxy", "all_proxy"] {
            let proxy = format!("http://127.0.0.1:{proxy_port}");
            command.env(name, &proxy).env(name.to_uppercase(), &proxy);
        }
        let mut child = command
            .env_remove("no_proxy")
            .env_remove("NO_PROXY")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let reached = loop {
            match oap.accept() {
                Ok(_) => break true,
                Err(_) if Instant::now() > deadline => break false,
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(reached, "{flag}");
        let asked = proxy.accept().map_err(|error| error.kind());
        assert_eq!(asked.map(|_| ()), Err(ErrorKind::WouldBlock), "{flag}");
    }
}
