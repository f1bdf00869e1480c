//! Answers that are not over when they have begun: streams, server-sent events, slow bodies.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use profiler_daemon::model::SegmentReport;
use profiler_tests::{
    ChildGuard, HttpClient, LocalServer, children, free_port, needs_root, python_agent_folder,
    wait_until, workspace_root,
};

use crate::DEADLINE;
use crate::recording::{Recording, has_function, total_ms};
use crate::server::CServer;

/// Two dump periods, and what a busy machine adds to a sleep.
const TOLERANCE_MS: i64 = 60;

fn folder() -> std::path::PathBuf {
    workspace_root().join("tests/tests/daemon")
}

fn server() -> LocalServer {
    let mut command = Command::new("python3");
    LocalServer::start("the server", command.arg(folder().join("stream_server.py"))).unwrap()
}

fn child_of(pid: u32) -> Option<u32> {
    children(pid).ok()?.into_iter().next()
}

#[track_caller]
fn assert_about(what: &str, found_ms: i64, expected_ms: i64) {
    assert!(
        (found_ms - expected_ms).abs() <= TOLERANCE_MS,
        "{what}: {found_ms} ms, expected about {expected_ms}"
    );
}

/// Checks that a request has the time of both functions between the parts of its answer.
#[track_caller]
fn check_work(segment: &SegmentReport) {
    assert_about("first", total_ms(&segment.trees, "first"), 1200);
    assert_about("second", total_ms(&segment.trees, "second"), 2400);
    assert_about("all", segment.duration_ms, 3600);
}

/// Check that work behind the beginning of an answer is shown for as long as it took, whatever tells the answer's
/// end, and that an answer whose end is known ends its request without another event on the connection.
#[test]
fn work_behind_the_beginning_of_an_answer_is_shown() {
    needs_root!();
    let server = server();
    let recording = Recording::start("*", server.id(), &["--max-requests", "3"]);
    let mut clients: Vec<HttpClient> = ["length", "chunked", "close"]
        .into_iter()
        .map(|path| {
            let mut client = server.connect(DEADLINE).unwrap();
            let request = format!("GET /{path} HTTP/1.1\r\n\r\n");
            client.send_raw(request.as_bytes()).unwrap();
            client
        })
        .collect();
    for client in &mut clients {
        client.read_until(b"ok").unwrap();
    }
    let report = recording.finish().report(0);
    assert_eq!(report.segments.len(), 3);
    report.segments.iter().for_each(check_work);
    drop(clients);
}

/// Check that what a thread does behind a chunked answer, waiting for the next request, is not of the request.
#[test]
fn an_idle_connection_is_not_of_the_request_before() {
    needs_root!();
    let server = server();
    let recording = Recording::start("*", server.id(), &["--max-requests", "2"]);
    let mut client = server.connect(DEADLINE).unwrap();
    for _ in 0..2 {
        client.send_raw(b"GET /brief HTTP/1.1\r\n\r\n").unwrap();
        client.read_until(b"0\r\n\r\n").unwrap();
        sleep(Duration::from_millis(700));
    }
    let report = recording.finish().report(0);
    assert_eq!(report.segments.len(), 2);
    for segment in &report.segments {
        assert_about("brief", total_ms(&segment.trees, "brief"), 100);
        assert_about("all", segment.duration_ms, 100);
    }
    drop(client);
}

/// Check that server-sent events are one request, from its head to the last event.
#[test]
fn events_are_one_request() {
    needs_root!();
    let server = server();
    let recording = Recording::start("GET:/events", server.id(), &["--max-requests", "1"]);
    let mut client = server.connect(DEADLINE).unwrap();
    client.send_raw(b"GET /events HTTP/1.1\r\n\r\n").unwrap();
    client.read_until(b"data: 3\n\n").unwrap();
    let report = recording.finish().report(0);
    assert_eq!(report.segments.len(), 1);
    let segment = &report.segments[0];
    assert_about("event", total_ms(&segment.trees, "event"), 1200);
    assert_eq!(segment.cut, None);
}

/// One request to the server in C, whose client does as it is told; what its segment shows.
fn record_c(path: &str, read: impl FnOnce(&mut HttpClient)) -> SegmentReport {
    let server = CServer::start("stream_server.c", &[]);
    let recording = Recording::start("*", server.id(), &["--max-requests", "1"]);
    let mut client = server.connect(DEADLINE).unwrap();
    let request = format!("GET /{path} HTTP/1.1\r\n\r\n");
    client.send_raw(request.as_bytes()).unwrap();
    read(&mut client);
    let report = recording.finish().report(0);
    assert_eq!(report.segments.len(), 1, "{path}");
    let segment = report.segments.into_iter().next().unwrap();
    assert_eq!(segment.cut, None, "{path}");
    segment
}

/// Check that a long poll of a native server is one request from its head to its last byte: the wait before its
/// answer, and the silence behind the head.
#[test]
fn a_long_poll_is_one_request() {
    needs_root!();
    let segment = record_c("poll", |client| {
        client.read_until(b"0\r\n\r\n").unwrap();
    });
    assert_about("news", total_ms(&segment.trees, "news (server)"), 400);
    assert_about("silence", total_ms(&segment.trees, "silence (server)"), 800);
    assert_about("all", segment.duration_ms, 1200);
}

/// Check that an answer goes on when its client has closed its own side.
#[test]
fn an_answer_to_a_client_that_has_closed_its_side_is_whole() {
    needs_root!();
    let segment = record_c("half", |client| {
        client.read_until(b"ha").unwrap();
        client.finish_sending().unwrap();
        client.read_until(b"lf").unwrap();
    });
    assert_about("rest", total_ms(&segment.trees, "rest (server)"), 600);
    assert_about("all", segment.duration_ms, 600);
}

/// Check that an answer whose head came with interim ones in one write has its length: it ends with its last byte.
#[test]
fn an_answer_behind_interim_ones_is_whole() {
    needs_root!();
    let segment = record_c("hints", |client| {
        client.read_until(b"\r\n\r\nok").unwrap();
        // The connection stays open until the request is reported.
    });
    assert_about("rest", total_ms(&segment.trees, "rest (server)"), 600);
    assert_about("all", segment.duration_ms, 600);
}

/// Check that the parts of a streamed answer of gunicorn, with the work between them, are one request, on a
/// connection that is closed behind it and on one that is kept.
#[test]
fn a_stream_of_gunicorn_is_one_request() {
    needs_root!();
    for class in ["sync", "gthread"] {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        let mut command = Command::new(python_agent_folder().join("bin/gunicorn"));
        command
            .args([
                "--worker-class",
                class,
                "--threads",
                "2",
                "--log-level",
                "error",
            ])
            .args(["--bind", &address.to_string(), "--chdir"])
            .arg(folder())
            .arg("stream_server:application");
        let mut gunicorn = ChildGuard::spawn("gunicorn", &mut command).unwrap();
        let worker = wait_until("a worker of gunicorn", DEADLINE, || {
            gunicorn.still_running()?;
            Ok(child_of(gunicorn.id()))
        })
        .unwrap();
        let recording = Recording::start("*", worker, &["--max-requests", "1"]);
        let mut client = HttpClient::connect(address, DEADLINE).unwrap();
        client
            .send_raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        client.read_until(b"end\r\n0\r\n\r\n").unwrap();
        let report = recording.finish().report(0);
        assert_eq!(report.segments.len(), 1, "{class}");
        check_work(&report.segments[0]);
        assert!(has_function(&report.segments[0], "application"), "{class}");
        drop(client);
    }
}
