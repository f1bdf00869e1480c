//! The system calls servers read and write with, and threads that do not keep to one request.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use profiler_common::{EndReason, KernelCounter, event_flag};
use profiler_daemon::kernel::RequestHooks;
use profiler_daemon::model::{RequestEvent, Tid};
use profiler_daemon::process::descriptor;
use profiler_daemon::process::procfs::Procfs;
use tempfile::TempDir;

use crate::harness::{DEADLINE, Server, Watch};

const HEAD: &[u8] = b"GET /target HTTP/1.1\r\nHost: test\r\n\r\n";

/// The server of `calls.py` in a mode.
pub(crate) fn server(mode: &str) -> Server {
    Server::start(Command::new("python3").args(["-u", SCRIPT, mode]))
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernel_load/calls.py");

/// Sends one request to a server in a mode, closes, and waits for the request's end.
fn one_request(mode: &str) -> (Server, Watch) {
    let server = server(mode);
    let mut watch = Watch::new(server.pid(), "/target");
    let mut client = server.connect();
    client.send(HEAD);
    client.response_behind_interim();
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

/// Check that a response is seen behind interim ones in the same write, however long they are and in whatever
/// buffers, without them; and that interim responses alone, also in pieces of one write, are none.
#[test]
fn a_response_is_seen_behind_interim_ones_in_one_write() {
    for mode in ["hints", "hints-long", "hints-buffers", "hints-alone"] {
        let (_server, watch) = one_request(mode);
        let responses = watch.responses();
        assert_eq!(responses.len(), 1, "{mode}");
        let (id, response) = &responses[0];
        assert!(
            response.starts_with("HTTP/1.1 200 OK\r\n"),
            "{mode}: {response}"
        );
        assert!(response.ends_with("\r\n\r\nok\n"), "{mode}: {response}");
        assert_eq!(watch.written(*id), Some(response.len() as u64), "{mode}");
    }
}

/// Check that a client that closes its side only gets the rest of its answer within the same request.
#[test]
fn an_answer_goes_on_behind_the_end_of_its_clients_side() {
    let server = server("half");
    let mut watch = Watch::new(server.pid(), "/target");
    let mut client = server.connect();
    client.send(HEAD);
    client.finish();
    watch.wait_for_ends(1);
    let ends = watch.events.iter().filter_map(|event| match event {
        RequestEvent::End {
            written_bytes,
            reason,
            ..
        } => Some((*written_bytes, *reason)),
        _ => None,
    });
    // "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"
    assert_eq!(ends.collect::<Vec<_>>(), [(41, EndReason::Closed)]);
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

/// The server of `calls.py` in a mode, behind a Unix socket.
struct UnixServer {
    directory: TempDir,
    server: Server,
}

impl UnixServer {
    fn start(mode: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("python3");
        command.args(["-u", SCRIPT, mode]);
        let server = Server::start(command.arg(directory.path().join("socket")));
        Self { directory, server }
    }

    fn connect(&self) -> UnixStream {
        let client = UnixStream::connect(self.directory.path().join("socket")).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client
    }
}

/// Sends a request; returns the first bytes of its answer, none if the connection was closed.
fn ask(client: &mut UnixStream) -> Vec<u8> {
    client.write_all(HEAD).unwrap();
    let mut answer = [0; 1000];
    let len = client.read(&mut answer).unwrap();
    answer[..len].to_vec()
}

/// Why a request over a Unix socket ends whose client leaves. At sockets the close that follows is not seen.
fn client_gone(watch: &Watch) -> EndReason {
    match watch.kernel.request_hooks() {
        RequestHooks::Sockets => EndReason::PeerClosed,
        RequestHooks::SystemCalls => EndReason::Closed,
    }
}

/// Check that requests over a Unix socket are seen.
#[test]
fn requests_over_a_unix_socket_are_seen() {
    let server = UnixServer::start("unix");
    let mut watch = Watch::new(server.server.pid(), "/target");
    assert_ne!(ask(&mut server.connect()), b"");
    watch.wait_for_ends(1);
    assert_eq!(watch.starts()[0].2.as_bytes(), HEAD);
    assert_eq!(watch.ends()[0].1, client_gone(&watch));
}

/// Check that a request whose Unix connection is closed unanswered has ended when its thread reads the next
/// head, whether or not that is on the same descriptor, and that the two are not taken as interleaved.
#[test]
fn a_dropped_unix_connection_is_not_mixed_up_with_the_next() {
    for (mode, reason) in [
        ("dropped", EndReason::Closed),
        ("reused", EndReason::SocketReplaced),
    ] {
        let server = UnixServer::start(mode);
        let mut watch = Watch::new(server.server.pid(), "/target");
        assert_eq!(ask(&mut server.connect()), b"");
        let mut client = server.connect();
        assert_ne!(ask(&mut client), b"");
        drop(client);
        watch.wait_for_ends(2);
        let starts = watch.starts();
        assert_eq!(starts.len(), 2, "{mode}");
        let reason = match watch.kernel.request_hooks() {
            RequestHooks::Sockets => reason,
            RequestHooks::SystemCalls => EndReason::Closed,
        };
        let expected = [(starts[0].0, reason), (starts[1].0, client_gone(&watch))];
        assert_eq!(watch.ends(), expected, "{mode}");
        for flags in end_flags(&watch) {
            assert_eq!(flags & event_flag::INTERLEAVED, 0, "{mode}");
        }
        assert_eq!(watch.count(KernelCounter::PipelinedHeads), 0, "{mode}");
        assert_eq!(watch.kernel.tags(), []);
    }
}

/// Check that the record of a connection has the inode that /proc shows of its descriptor until it is closed,
/// by which the daemon finds closes that no hook sees.
#[test]
fn the_record_of_a_connection_has_its_inode() {
    let server = UnixServer::start("unix");
    let pid = server.server.pid();
    let mut watch = Watch::new(pid, "/target");
    let mut client = server.connect();
    assert_ne!(ask(&mut client), b"");
    watch.wait("start", |watch| watch.starts().len() == 1);
    let Some(&RequestEvent::Start { fd, .. }) = watch.events.first() else {
        panic!("it is the first event");
    };
    let inode = watch.kernel.conn(pid, fd).unwrap().unwrap().inode;
    let is_open = || descriptor::is_socket(&Procfs::default(), pid, Tid(pid.0), fd, inode);
    assert!(is_open());
    drop(client);
    watch.wait("close", |_| !is_open());
}

/// Check that a head read after a Unix connection's response was shut down is counted and not served.
#[test]
fn a_head_after_shutdown_of_a_unix_socket_opens_no_request() {
    let server = UnixServer::start("drain");
    let mut watch = Watch::new(server.server.pid(), "/target");
    let mut client = server.connect();
    assert_ne!(ask(&mut client), b"");
    assert_eq!(ask(&mut client), b"", "the response is over");
    watch.wait("drained head", |watch| {
        watch.count(KernelCounter::HeadAfterShutdown) == 1
    });
    watch.wait_for_ends(1);
    assert_eq!(watch.starts().len(), 1);
    assert_eq!(watch.ends()[0].1, EndReason::Shutdown);
}
