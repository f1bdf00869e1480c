//! Event loops, which this version does not follow, and servers that only look like one.

use std::path::{Path, PathBuf};
use std::process::Command;

use profiler_tests::{LocalServer, loops_folder, needs_root, workspace_root};

use crate::DEADLINE;
use crate::recording::{Recorded, Recording, count};

fn server(python: &Path, mode: &str) -> LocalServer {
    let script = workspace_root().join("tests/tests/daemon/loop_server.py");
    let mut command = Command::new(python);
    LocalServer::start("the server", command.arg(script).arg(mode)).unwrap()
}

/// Three requests to a server, one after the other on one connection.
fn record(python: &Path, mode: &str, path: &str) -> Recorded {
    let server = server(python, mode);
    let recording = Recording::start("*", server.id(), &[]);
    let mut client = server.connect(DEADLINE).unwrap();
    for _ in 0..3 {
        assert_eq!(client.request("GET", path, "").unwrap().status, 200);
    }
    drop(client);
    recording.interrupt()
}

/// Check that requests of an event loop are left out, counted and explained, though each is alone: what the loop
/// does in the meantime is not theirs.
#[test]
fn an_event_loop_is_told_and_left_out() {
    needs_root!();
    for (python, mode) in [
        (PathBuf::from("python3"), "asyncio"),
        (loops_folder().join("bin/python"), "gevent"),
    ] {
        let recorded = record(&python, mode, "/");
        let report = recorded.report(3);
        assert_eq!(count(&report, "requests_matched"), 3, "{mode}");
        assert_eq!(count(&report, "requests_on_loop"), 3, "{mode}");
        assert_eq!(count(&report, "processes_unsupported"), 1, "{mode}");
        let reason = "3 were served by an event loop";
        assert!(recorded.err.contains(reason), "{}", recorded.err);
        let note = "waits for other clients as well";
        assert!(recorded.err.contains(note), "{}", recorded.err);
    }
}

/// Check that a thread that waits for what is its request's own is not taken for an event loop: a loop that the
/// request runs itself, its client's socket, another server's.
#[test]
fn a_request_that_waits_for_itself_is_profiled() {
    needs_root!();
    for path in ["/asyncio", "/poll", "/select", "/epoll"] {
        let recorded = record(Path::new("python3"), "threads", path);
        let report = recorded.report(0);
        assert_eq!(report.segments.len(), 3, "{path}: {}", recorded.err);
        assert_eq!(count(&report, "requests_on_loop"), 0, "{path}");
        for segment in &report.segments {
            assert!(
                segment.duration_ms >= 140,
                "{path}: {} ms",
                segment.duration_ms
            );
        }
    }
}

/// Check that a process that forwards requests to another one of its program is called what it is.
#[test]
fn a_proxy_is_told_from_the_service() {
    needs_root!();
    let recorded = record(Path::new("python3"), "proxy", "/");
    let report = recorded.report(3);
    assert_eq!(count(&report, "requests_on_loop"), 3);
    let note = "forwards requests to other processes of its program";
    assert!(recorded.err.contains(note), "{}", recorded.err);
}
