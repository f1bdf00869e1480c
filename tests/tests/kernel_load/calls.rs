//! The system calls servers read and write with, and threads that do not keep to one request.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use profiler_common::{EndReason, KernelCounter, event_flag};
use profiler_daemon::model::RequestEvent;

use crate::harness::{Server, Watch};

const HEAD: &[u8] = b"GET /target HTTP/1.1\r\nHost: test\r\n\r\n";

/// The server of `calls.py` in a mode.
fn server(mode: &str) -> Server {
    Server::start(Command::new("python3").args(["-u", SCRIPT, mode]))
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernel_load/calls.py");

/// Sends one request to a server in a mode, closes, and waits for the request's end.
fn one_request(mode: &str) -> (Server, Watch) {
    let server = server(mode);
    let mut watch = Watch::new(server.pid(), "/target");
    let mut client = server.connect();
    client.send(HEAD);
    client.response();
    client.close();
    watch.wait_for_ends(1);
    assert_eq!(watch.starts().len(), 1);
    (server, watch)
}

/// Flags of the only end event.
fn end_flags(watch: &Watch) -> Vec<u32> {
    let flags = |event: &RequestEvent| match event {
        RequestEvent::End { flags, .. } => Some(*flags),
        _ => None,
    };
    watch.events.iter().filter_map(flags).collect()
}

/// Check that a head read into several buffers and a response written from several are whole.
#[test]
fn vectored_calls_are_gathered() {
    let (_server, watch) = one_request("vector");
    assert_eq!(watch.starts()[0].2.as_bytes(), HEAD);
    assert!(
        watch.responses()[0]
            .1
            .starts_with("HTTP/1.1 200 OK\r\nContent-Length")
    );
}

/// Check that a response sent from a file is one, although its bytes are not seen.
#[test]
fn sendfile_is_a_response() {
    let (_server, watch) = one_request("sendfile");
    assert_eq!(watch.responses()[0].1, "");
    assert!(matches!(
        watch.events.last(),
        Some(RequestEvent::End { written_bytes, .. }) if *written_bytes > 3
    ));
}

/// Check that bytes read twice, peeking first, open one request.
#[test]
fn peeking_opens_no_request() {
    let (_server, watch) = one_request("peek");
    assert_eq!(watch.count(KernelCounter::RequestsSeen), 1);
    assert_eq!(watch.count(KernelCounter::PipelinedHeads), 0);
}

/// Check that `100 Continue` is not the response, and that the body after it opens no request.
#[test]
fn an_interim_response_is_not_the_response() {
    let server = server("continue");
    let mut watch = Watch::new(server.pid(), "/target");
    let mut client = server.connect();
    client.send(HEAD);
    client.response();
    client.send(HEAD);
    client.response();
    client.close();
    watch.wait_for_ends(1);
    assert_eq!(watch.starts().len(), 1);
    assert_eq!(watch.responses().len(), 1);
    assert!(watch.responses()[0].1.starts_with("HTTP/1.1 200"));
    assert_eq!(watch.count(KernelCounter::PipelinedHeads), 1);
}

/// Check that an upgraded connection carries no further requests.
#[test]
fn an_upgraded_connection_carries_no_requests() {
    let server = server("upgrade");
    let mut watch = Watch::new(server.pid(), "/target");
    let mut client = server.connect();
    client.send(HEAD);
    client.response();
    client.send(HEAD);
    client.response();
    client.close();
    watch.wait("close", |watch| watch.kernel.connection_count() == 0);
    assert_eq!(watch.starts().len(), 1);
    assert_eq!(watch.ends(), [(watch.starts()[0].0, EndReason::Upgraded)]);
    assert_eq!(watch.count(KernelCounter::RequestsSeen), 1);
}

/// Check that a head read after the response was shut down is counted and not served.
#[test]
fn a_head_after_shutdown_opens_no_request() {
    let server = server("drain");
    let mut watch = Watch::new(server.pid(), "/target");
    let mut client = server.connect();
    client.send(HEAD);
    client.response();
    watch.wait_for_ends(1);
    client.send(HEAD);
    watch.wait("drained head", |watch| {
        watch.count(KernelCounter::HeadAfterShutdown) == 1
    });
    assert_eq!(watch.starts().len(), 1);
    assert_eq!(watch.ends()[0].1, EndReason::Shutdown);
}

/// Check that duplicating another descriptor over the connection ends its request.
#[test]
fn duplicating_over_a_connection_ends_its_request() {
    let (_server, watch) = one_request("dup");
    assert_eq!(watch.ends()[0].1, EndReason::DupOver);
    assert_eq!(watch.kernel.connection_count(), 0);
}

/// Check that a response written by another thread is noted.
#[test]
fn a_response_of_another_thread_is_noted() {
    let (_server, watch) = one_request("handoff");
    assert_ne!(end_flags(&watch)[0] & event_flag::OTHER_THREAD, 0);
    assert_eq!(end_flags(&watch)[0] & event_flag::INTERLEAVED, 0);
    assert_eq!(watch.kernel.tags(), []);
}

/// Check that two requests served by one thread at the same time are both noted.
#[test]
fn requests_interleaved_on_a_thread_are_noted() {
    let server = server("interleave");
    let mut watch = Watch::new(server.pid(), "/target");
    let mut first = server.connect();
    let mut second = server.connect();
    first.send(HEAD);
    second.send(HEAD);
    first.response();
    second.response();
    first.close();
    second.close();
    watch.wait_for_ends(2);
    for flags in end_flags(&watch) {
        assert_ne!(flags & event_flag::INTERLEAVED, 0);
    }
    assert_eq!(watch.kernel.tags(), []);
}

/// Check that requests over a Unix socket are seen.
#[test]
fn requests_over_a_unix_socket_are_seen() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let mut command = Command::new("python3");
    let server = Server::start(command.args(["-u", SCRIPT, "unix"]).arg(&path));
    let mut watch = Watch::new(server.pid(), "/target");
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(HEAD).unwrap();
    let mut answer = [0; 16];
    client.read_exact(&mut answer).unwrap();
    drop(client);
    watch.wait_for_ends(1);
    assert_eq!(watch.starts()[0].2.as_bytes(), HEAD);
}
