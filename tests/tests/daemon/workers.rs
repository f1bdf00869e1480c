//! Servers whose requests are served by processes that they fork, recorded by the process in charge.

use std::path::Path;
use std::process::Command;

use profiler_daemon::model::ProfileReport;
use profiler_tests::{LocalServer, children, needs_root, wait_until};

use crate::DEADLINE;
use crate::recording::{Recorded, Recording, count, has_function};
use crate::skywalking::gunicorn::Gunicorn;

/// A script of this crate's tests that prints its port first.
fn start(script: &str) -> LocalServer {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(script);
    LocalServer::start(
        script.to_str().unwrap(),
        Command::new("python3").arg("-u").arg(&script),
    )
    .unwrap()
}

/// The report of a recording whose every request shows this function, and nothing missing.
#[track_caller]
fn whole(recorded: &Recorded, requests: usize, function: &str) -> ProfileReport {
    recorded.check_prepared_first();
    let report = recorded.report(0);
    assert_eq!(report.segments.len(), requests);
    for segment in &report.segments {
        assert!(has_function(segment, function), "{:#?}", segment.snapshots);
    }
    for loss in [
        "python_partial",
        "python_no_thread",
        "python_merge_mismatch",
    ] {
        assert_eq!(count(&report, loss), 0, "{loss}");
    }
    let notes = &report.coverage.notes;
    let is_blamed = |note: &String| note.contains("no Python frames");
    assert!(!notes.iter().any(is_blamed), "{notes:?}");
    report
}

/// Check that processes that are forked while the recording runs, one for each request, show the Python
/// frames that they are blocked in.
#[test]
fn a_process_forked_for_a_request_shows_what_it_is_blocked_in() {
    needs_root!();
    let server = start("daemon/forking_service.py");
    let recording = Recording::start("GET:/nap", server.id(), &["--max-requests", "3"]);
    for _ in 0..3 {
        let mut client = server.connect(DEADLINE).unwrap();
        assert_eq!(client.request("GET", "/nap", "").unwrap().status, 200);
    }
    whole(&recording.finish(), 3, "nap");
}

/// Check that recording gunicorn's first process records its workers: those there are, and one that takes
/// the place of one that was killed.
#[test]
fn a_worker_that_takes_the_place_of_another_is_recorded() {
    needs_root!();
    let gunicorn = Gunicorn::start("gunicorn-workers");
    let mut recording = Recording::start("GET:/work", gunicorn.id(), &["--max-requests", "4"]);
    recording.wait_until_watched(3);
    let before = children(gunicorn.id()).unwrap();
    assert_eq!(before.len(), 2);
    assert_eq!(gunicorn.get("/work").unwrap(), 200);
    for pid in &before {
        // SAFETY: a system call without memory arguments.
        unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
    }
    wait_until("new workers", DEADLINE, || {
        let now = children(gunicorn.id())?;
        Ok((now.len() == 2 && now.iter().all(|pid| !before.contains(pid))).then_some(()))
    })
    .unwrap();
    for _ in 0..3 {
        assert_eq!(gunicorn.get("/work").unwrap(), 200);
    }
    let report = whole(&recording.finish(), 4, "query");
    let family = format!(
        "process {} was recorded with its descendants",
        gunicorn.id()
    );
    let notes = &report.coverage.notes;
    assert!(
        notes.iter().any(|note| note.starts_with(&family)),
        "{notes:?}"
    );
}

/// Check that a process is prepared before it is watched each time it becomes a target: when the recording begins, by
/// a program that it executes, and by being the child of one that is recorded.
#[test]
fn a_process_is_prepared_before_it_is_watched() {
    needs_root!();
    let server = start("daemon/changing_service.py");
    let mut recording = Recording::start("*", server.id(), &[]);
    for (path, watched) in [("/exec", 2), ("/fork", 3)] {
        let mut client = server.connect(DEADLINE).unwrap();
        client.request("GET", path, "").unwrap();
        recording.wait_until_watched(watched);
    }
    assert_eq!(recording.interrupt().check_prepared_first(), 3);
}

/// Check that a worker that a program has forked by C, without telling the interpreter, shows its Python
/// frames.
#[test]
fn a_worker_forked_by_c_is_recorded() {
    needs_root!();
    let server = start("kernel_load/fork.py");
    let mut recording = Recording::start("*", server.id(), &["--max-requests", "2"]);
    recording.wait_until_watched(2);
    for (path, status) in [("/busy", 200), ("/sleep", 200)] {
        let mut client = server.connect(DEADLINE).unwrap();
        assert_eq!(client.request("GET", path, "").unwrap().status, status);
    }
    whole(&recording.finish(), 2, "serve");
}
