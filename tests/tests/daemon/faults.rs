//! Servers and daemons that die in the middle of a request, and daemons side by side.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use profiler_tests::{needs_root, wait_until};

use crate::DEADLINE;
use crate::attached::{Attached, pinned};
use crate::recording::{Recording, count, has_function};
use crate::server::{Server, sample_service};

/// Check that a server killed in the middle of a request leaves what was captured of it until then.
#[test]
fn of_a_killed_server_is_kept_what_was_captured() {
    needs_root!();
    let mut server = Server::with_threads();
    let recording = Recording::start("GET:/forever", server.id(), &["--max-requests", "1"]);
    let mut client = server.connect();
    client.send_raw(b"GET /forever HTTP/1.1\r\n\r\n").unwrap();
    wait_until_asleep(server.id());
    // For some dump periods: names of functions can only be read while the process is there.
    sleep(Duration::from_millis(500));
    server.kill();
    client.read_response().unwrap_err();
    let report = recording.finish().report(0);
    assert_eq!(report.segments.len(), 1);
    let segment = &report.segments[0];
    assert_eq!(segment.status, None);
    assert!(has_function(segment, "forever"), "{:?}", segment.snapshots);
    assert_eq!(count(&report, "requests_profiled"), 1);
    assert_eq!(count(&report, "requests_unanswered"), 1);
}

/// Check that a server that ends between requests leaves those before.
#[test]
fn of_a_server_that_ended_the_requests_are_kept() {
    needs_root!();
    let mut server = Server::with_threads();
    let recording = Recording::start("*", server.id(), &["--duration", "3s"]);
    let mut client = server.connect();
    client.request("GET", "/first", "").unwrap();
    server.kill();
    let report = recording.finish().report(0);
    assert_eq!(report.segments.len(), 1);
    assert_eq!(report.segments[0].status, Some(200));
}

/// Check that a daemon killed in the middle of a profiled request leaves nothing in the kernel, and
/// that the service neither fails that request nor the next ones.
#[test]
fn a_killed_recording_leaves_nothing_and_harms_nobody() {
    needs_root!();
    let pinned_before = pinned();
    let service = sample_service("unharmed-sample");
    let mut recording = Recording::start("POST:/", service.id(), &[]);
    let attached = Attached::of_live(recording.id());
    let mut client = service.connect().unwrap();
    client.send_raw(b"POST / HTTP/1.1\r\n\r\n").unwrap();
    wait_until_asleep(service.id());
    recording.kill();
    assert_eq!(client.read_response().unwrap().0, 200);
    assert_eq!(client.request("POST", "/", "{}").unwrap().status, 200);
    attached.wait_until_gone();
    assert_eq!(pinned(), pinned_before);
}

/// Check that a recording that ends by itself leaves nothing in the kernel either.
#[test]
fn a_finished_recording_leaves_nothing() {
    needs_root!();
    let pinned_before = pinned();
    let server = Server::with_threads();
    let recording = Recording::start("*", server.id(), &["--max-requests", "1"]);
    let attached = Attached::of_live(recording.id());
    let mut client = server.connect();
    client.request("GET", "/first", "").unwrap();
    recording.finish().report(0);
    attached.wait_until_gone();
    assert_eq!(pinned(), pinned_before);
}

/// Check that two recordings of one process both see all its requests.
#[test]
fn two_recordings_of_one_process_both_work() {
    needs_root!();
    let server = Server::with_threads();
    let recordings =
        ["GET:/first", "*"].map(|endpoint| Recording::start(endpoint, server.id(), &[]));
    let mut client = server.connect();
    client.request("GET", "/first", "").unwrap();
    client.request("GET", "/second", "").unwrap();
    drop(client);
    let [one, all] = recordings.map(|recording| recording.interrupt().report(0));
    assert_eq!(one.segments.len(), 1);
    assert_eq!(all.segments.len(), 2);
    assert!(has_function(&one.segments[0], "first"));
    assert!(has_function(&all.segments[0], "first"));
    assert!(has_function(&all.segments[1], "second"));
}

/// Waits until a thread of the process sleeps, as handlers do: the request is being served.
fn wait_until_asleep(pid: u32) {
    wait_until("the request to be served", DEADLINE, || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task"))?;
        let is_asleep = |path: &Path| {
            let call = std::fs::read_to_string(path.join("syscall")).unwrap_or_default();
            call.split(' ').next() == Some(&libc::SYS_clock_nanosleep.to_string())
        };
        let mut threads = threads.filter_map(|thread| Some(thread.ok()?.path()));
        Ok(threads.any(|path| is_asleep(&path)).then_some(()))
    })
    .unwrap();
}
