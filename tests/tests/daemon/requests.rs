//! Requests that are not one head, one answer, one thread.

use std::thread::sleep;
use std::time::Duration;

use profiler_daemon::model::SegmentReport;
use profiler_tests::needs_root;

use crate::recording::{Recording, count, has_function};
use crate::server::Server;

/// The segments that have a frame of the function.
fn of<'a>(segments: &'a [SegmentReport], function: &str) -> Vec<&'a SegmentReport> {
    let segments = segments.iter();
    segments
        .filter(|segment| has_function(segment, function))
        .collect()
}

/// Check that two requests on one connection are two segments, each with its own function only.
#[test]
fn requests_of_a_keep_alive_connection_are_two_segments() {
    needs_root!();
    let server = Server::with_threads();
    let recording = Recording::start("*", server.id(), &["--max-requests", "2"]);
    let mut client = server.connect();
    client.request("GET", "/first", "").unwrap();
    client.request("GET", "/second", "").unwrap();
    let report = recording.finish().report(0);
    let segments = &report.segments;
    assert_eq!(segments.len(), 2);
    assert_ne!(segments[0].segment_id, segments[1].segment_id);
    assert!(has_function(&segments[0], "first") && !has_function(&segments[0], "second"));
    assert!(has_function(&segments[1], "second") && !has_function(&segments[1], "first"));
    assert!(segments[0].start_ms + segments[0].duration_ms <= segments[1].start_ms);
}

/// Check that of two requests in one packet the first is reported and ends with its own answer, and
/// that the second is counted and shown under no other name.
#[test]
fn a_pipelined_request_is_counted_and_not_mistaken_for_another() {
    needs_root!();
    let server = Server::with_threads();
    let recording = Recording::start("*", server.id(), &[]);
    let mut client = server.connect();
    client
        .send_raw(b"GET /first HTTP/1.1\r\n\r\nGET /second HTTP/1.1\r\n\r\n")
        .unwrap();
    assert_eq!(client.read_response().unwrap().1, b"first\n");
    assert_eq!(client.read_response().unwrap().1, b"second\n");
    // An ordinary request on the same connection is told apart again.
    client.request("GET", "/trickle", "").unwrap();
    drop(client);
    let report = recording.interrupt().report(0);
    assert_eq!(report.segments.len(), 2);
    let first = of(&report.segments, "first");
    assert_eq!(first.len(), 1);
    assert!(!has_function(first[0], "trickle"));
    assert!(of(&report.segments, "second").is_empty());
    assert_eq!(of(&report.segments, "trickle").len(), 1);
    assert_eq!(count(&report, "pipelined_heads"), 1);
}

/// Check that a request line that arrives in pieces is one request to the whole path.
#[test]
fn a_split_request_line_is_one_request() {
    needs_root!();
    let server = Server::with_threads();
    let recording = Recording::start("GET:/first", server.id(), &["--max-requests", "1"]);
    let mut client = server.connect();
    for piece in ["G", "ET /fi", "rst HT", "TP/1.1\r\nHost: test\r\n", "\r\n"] {
        client.send_raw(piece.as_bytes()).unwrap();
        // Long enough that the pieces are read one by one.
        sleep(Duration::from_millis(20));
    }
    client.read_response().unwrap();
    let report = recording.finish().report(0);
    assert_eq!(report.segments.len(), 1);
    assert_eq!(report.segments[0].endpoint, "GET:/first");
    assert!(has_function(&report.segments[0], "first"));
    assert_eq!(count(&report, "requests_seen"), 1);
}

/// Check that a request whose body comes later lasts from its head to its answer.
#[test]
fn a_request_with_a_slow_body_begins_with_its_head() {
    needs_root!();
    let mut server = Server::with_threads();
    let recording = Recording::start("POST:/body", server.id(), &["--max-requests", "1"]);
    let mut client = server.connect();
    client
        .send_raw(b"POST /body HTTP/1.1\r\nContent-Length: 16\r\n\r\n")
        .unwrap();
    server.wait_until_it_reads_a_body();
    sleep(Duration::from_millis(300));
    // A body that looks like a head is still one.
    client.send_raw(b"GET / HTTP/1.1\r\n").unwrap();
    assert_eq!(client.read_response().unwrap().1, b"posted\n");
    let report = recording.finish().report(0);
    assert_eq!(report.segments.len(), 1);
    let segment = &report.segments[0];
    assert!(segment.duration_ms >= 290, "{} ms", segment.duration_ms);
    assert_eq!(count(&report, "requests_seen"), 1);
}

/// Check that a request lasts until the last byte of its answer, not the first.
#[test]
fn a_request_with_a_slow_answer_ends_with_its_last_byte() {
    needs_root!();
    let server = Server::with_threads();
    let recording = Recording::start("GET:/trickle", server.id(), &["--max-requests", "1"]);
    let mut client = server.connect();
    client.request("GET", "/trickle", "").unwrap();
    let report = recording.finish().report(0);
    let segment = &report.segments[0];
    assert!(segment.duration_ms >= 290, "{} ms", segment.duration_ms);
    assert!(has_function(segment, "trickle"));
}

/// Check that a process that calls itself has a segment for each request it serves and none for what
/// it sends.
#[test]
fn client_and_server_in_one_process_are_told_apart() {
    needs_root!();
    let server = Server::with_threads();
    let recording = Recording::start("*", server.id(), &[]);
    let mut client = server.connect();
    client.request("GET", "/outside", "").unwrap();
    drop(client);
    let report = recording.interrupt().report(0);
    assert_eq!(report.segments.len(), 2);
    let inside = of(&report.segments, "inside");
    assert_eq!(inside.len(), 1);
    assert!(!has_function(inside[0], "urlopen"));
    assert_eq!(of(&report.segments, "urlopen").len(), 1);
    assert_eq!(count(&report, "requests_seen"), 2);
}

/// Check that requests that another thread answers are counted, explained, and not reported.
#[test]
fn requests_handed_to_another_thread_are_told_and_left_out() {
    needs_root!();
    let server = Server::with_hand_off();
    let recording = Recording::start("*", server.id(), &[]);
    let mut client = server.connect();
    for _ in 0..3 {
        assert_eq!(client.request("GET", "/any", "").unwrap().status, 200);
    }
    drop(client);
    let recorded = recording.interrupt();
    let report = recorded.report(3);
    assert_eq!(count(&report, "requests_matched"), 3);
    assert_eq!(count(&report, "requests_handed_off"), 3);
    let reason = "3 were answered by a thread other than the one that read them";
    assert!(recorded.err.contains(reason), "{}", recorded.err);
}

/// Check that a connection that sends no request, and one that is cut inside a request line, leave
/// nothing and disturb nobody.
#[test]
fn broken_connections_disturb_nobody() {
    needs_root!();
    let server = Server::with_threads();
    let recording = Recording::start("*", server.id(), &[]);
    drop(server.connect());
    let mut cut = server.connect();
    cut.send_raw(b"GET /fi").unwrap();
    drop(cut);
    let mut garbage = server.connect();
    garbage
        .send_raw(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\n")
        .unwrap();
    let mut client = server.connect();
    client.request("GET", "/first", "").unwrap();
    drop(client);
    let report = recording.interrupt().report(0);
    assert_eq!(report.segments.len(), 1);
    assert!(has_function(&report.segments[0], "first"));
}
