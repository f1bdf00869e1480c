//! Requests as the state machine sees them.

use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use profiler_common::{EndReason, KernelCounter, event_flag};
use profiler_daemon::kernel::{LoadOptions, RequestHooks};
use profiler_daemon::model::{RequestEvent, Tid};

use crate::harness::{Client, SLOT, Server, Watch, load_options};

/// Check that each request of a keep-alive connection starts, is answered and ends on its own.
#[test]
fn requests_of_a_keep_alive_connection_are_told_apart() {
    for prefer_raw in [false, true] {
        let server = Server::python("HTTP/1.1");
        let options = LoadOptions {
            prefer_raw,
            ..load_options()
        };
        let mut watch = Watch::with_options(server.pid(), "/", &options);
        let mut client = server.connect();
        client.get("/first");
        client.get("/second?a=b");
        client.close();
        watch.wait_for_ends(2);

        let starts = watch.starts();
        assert_eq!(starts.len(), 2);
        assert!(
            starts[0]
                .2
                .starts_with("GET /first HTTP/1.1\r\nHost: test\r\n\r\n")
        );
        assert!(starts[1].2.starts_with("GET /second?a=b HTTP/1.1\r\n"));
        assert_ne!(starts[0].0, starts[1].0);
        let responses = watch.responses();
        assert_eq!(responses.len(), 2);
        assert!(responses[0].1.starts_with("HTTP/1.1 200 OK\r\n"));
        assert_eq!(
            watch.ends(),
            [
                (starts[0].0, EndReason::NextHead),
                (starts[1].0, EndReason::Shutdown)
            ]
        );
        assert_eq!(watch.count(KernelCounter::RequestsSeen), 2);
        assert_eq!(watch.count(KernelCounter::PrefilterPassed), 2);
        watch.wait("close", |watch| watch.kernel.connection_count() == 0);
        assert_eq!(watch.kernel.tags(), []);
    }
}

/// Check that times run start, first write, last write, and that bytes are counted.
#[test]
fn times_and_bytes_of_a_request_are_in_order() {
    let server = Server::python("HTTP/1.1");
    let mut watch = Watch::new(server.pid(), "/sleep");
    let mut client = server.connect();
    let body = client.get("/sleep");
    client.close();
    watch.wait_for_ends(1);
    let mut start = 0;
    let mut first_write = 0;
    for event in &watch.events {
        match event {
            RequestEvent::Start { start_ktime_ns, .. } => start = *start_ktime_ns,
            RequestEvent::FirstWrite { ktime_ns, .. } => first_write = *ktime_ns,
            RequestEvent::End {
                last_write_ktime_ns,
                written_bytes,
                ..
            } => {
                assert!(first_write >= start + 300_000_000);
                assert!(*last_write_ktime_ns >= first_write);
                assert!(*written_bytes > body.len() as u64 + 50);
            }
            _ => {}
        }
    }
    assert_ne!(start, 0);
}

/// Check that a server that shuts the response down ends the request there.
#[test]
fn shutdown_ends_a_request() {
    let server = Server::python("HTTP/1.0");
    let mut watch = Watch::new(server.pid(), "/");
    let mut client = server.connect();
    client.get("/");
    client.close();
    watch.wait_for_ends(1);
    assert_eq!(watch.ends()[0].1, EndReason::Shutdown);
    watch.wait("close", |watch| watch.kernel.connection_count() == 0);
}

/// Check that a request line that arrives byte by byte opens one request with the whole line.
#[test]
fn a_split_request_line_is_joined() {
    let server = Server::python("HTTP/1.1");
    let mut watch = Watch::new(server.pid(), "/split");
    let mut client = server.connect();
    client.send(b"G");
    // Once the connection is known the first byte has been read alone.
    watch.wait("connection", |watch| watch.kernel.connection_count() == 1);
    assert_eq!(watch.starts(), []);
    for byte in b"ET /split/here HTTP/1.1\r\n" {
        client.send(&[*byte]);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    client.send(b"Host: test\r\n\r\n");
    client.response();
    client.close();
    watch.wait_for_ends(1);
    let starts = watch.starts();
    assert_eq!(starts.len(), 1);
    assert!(
        starts[0].2.starts_with("GET /split/here "),
        "{:?}",
        starts[0].2
    );
    assert!(matches!(
        watch.events[0],
        RequestEvent::Start { flags, .. } if flags & event_flag::JOINED != 0
    ));
    assert_eq!(watch.count(KernelCounter::RequestsSeen), 1);
}

/// Check that a slow body that looks like a head opens no request but is counted.
#[test]
fn a_body_that_looks_like_a_head_opens_no_request() {
    let server = Server::python("HTTP/1.1");
    let mut watch = Watch::new(server.pid(), "/");
    let mut client = server.connect();
    client.send(b"POST /body HTTP/1.1\r\nContent-Length: 15\r\n\r\n");
    watch.wait("start", |watch| watch.starts().len() == 1);
    client.send(b"GET / HTTP/1.1\n");
    client.response();
    client.close();
    watch.wait_for_ends(1);
    assert_eq!(watch.starts().len(), 1);
    assert_eq!(watch.count(KernelCounter::RequestsSeen), 1);
    assert_eq!(watch.count(KernelCounter::PipelinedHeads), 1);
    assert!(matches!(
        watch.events.last(),
        Some(RequestEvent::End { flags, .. }) if flags & event_flag::PIPELINED != 0
    ));
}

/// Check that a file that begins like a request opens none; reads of files are seen at system calls only.
#[test]
fn a_log_file_that_begins_with_a_request_opens_none() {
    let server = Server::python("HTTP/1.1");
    let mut watch = Watch::new(server.pid(), "/");
    let mut client = server.connect();
    client.get("/log");
    client.close();
    watch.wait_for_ends(1);
    assert_eq!(watch.starts().len(), 1);
    let is_seen = watch.kernel.request_hooks() == RequestHooks::SystemCalls;
    let count = watch.count(KernelCounter::NotServerSocket);
    assert_eq!(count, u64::from(is_seen));
}

/// Check that a process that is its own client has only the requests it serves.
#[test]
fn a_client_in_the_same_process_opens_no_request() {
    let server = Server::python("HTTP/1.1");
    let mut watch = Watch::new(server.pid(), "/");
    let mut client = server.connect();
    client.get("/self");
    client.close();
    watch.wait_for_ends(2);
    let mut heads: Vec<_> = watch.starts().into_iter().map(|start| start.2).collect();
    heads.sort();
    assert_eq!(heads.len(), 2);
    assert!(heads[0].starts_with("GET /inside "));
    assert!(heads[1].starts_with("GET /self "));
    assert_eq!(watch.count(KernelCounter::RequestsSeen), 2);
}

/// Check that requests no rule passes are counted, and neither shipped nor tagged.
#[test]
fn requests_without_a_rule_are_only_counted() {
    let server = Server::python("HTTP/1.1");
    let mut watch = Watch::new(server.pid(), "/wanted");
    let mut client = server.connect();
    client.get("/something");
    client.get("/want");
    client.get("/%77anted");
    client.get("/wanted");
    client.close();
    watch.wait_for_ends(2);
    let starts = watch.starts();
    assert_eq!(
        starts.len(),
        2,
        "an encoded byte passes, the daemon decodes"
    );
    assert!(starts[1].2.starts_with("GET /wanted "));
    assert_eq!(watch.count(KernelCounter::RequestsSeen), 4);
    assert_eq!(watch.count(KernelCounter::PrefilterPassed), 2);
}

/// Check that a slot that only counts tags nothing, and goes on tagging when told.
#[test]
fn a_counting_slot_tags_nothing() {
    let server = Server::python("HTTP/1.1");
    let mut watch = Watch::new(server.pid(), "/");
    watch.kernel.set_count_only(SLOT, true).unwrap();
    let mut client = server.connect();
    client.get("/counted");
    watch.kernel.set_count_only(SLOT, false).unwrap();
    client.get("/tagged");
    client.close();
    watch.wait_for_ends(1);
    assert_eq!(watch.starts().len(), 1);
    assert_eq!(watch.count(KernelCounter::CountedOnly), 1);
    assert_eq!(watch.count(KernelCounter::PrefilterPassed), 2);
    watch.kernel.clear_rule(SLOT).unwrap();
    assert_eq!(watch.count(KernelCounter::PrefilterPassed), 0);
}

/// Check that who only looks at requests sees them whole, one after the other and at the same time, and tags nothing.
#[test]
fn a_look_tags_nothing() {
    let server = Server::python("HTTP/1.1");
    let options = LoadOptions {
        sees_only: true,
        ..load_options()
    };
    let mut watch = Watch::with_options(server.pid(), "/", &options);
    let mut clients = [server.connect(), server.connect()];
    for client in &mut clients {
        client.send(b"GET /sleep HTTP/1.1\r\nHost: test\r\n\r\n");
    }
    watch.wait("two starts", |watch| watch.starts().len() == 2);
    let tids: Vec<Tid> = watch.starts().iter().map(|(_, tid, _)| *tid).collect();
    assert!(watch.ends().is_empty());
    for tid in tids {
        assert_eq!(watch.kernel.thread_tag(tid).unwrap(), None);
    }
    for client in &mut clients {
        assert_eq!(client.response(), b"ok\n");
        client.get("/next");
    }
    for client in clients {
        client.close();
    }
    watch.wait_for_ends(4);
    let ends = watch.ends();
    assert!(
        ends.iter().all(|(id, _)| watch.written(*id).unwrap() > 40),
        "{ends:?}"
    );
    assert_eq!(watch.starts().len(), 4);
    assert!(watch.samples.is_empty());
}

/// Check that the thread that reads a head is tagged while it serves, and a cancelled request ends
/// silently.
#[test]
fn a_cancelled_request_loses_its_tag_and_ends_silently() {
    let server = Server::python("HTTP/1.1");
    let mut watch = Watch::new(server.pid(), "/sleep");
    let mut client = server.connect();
    client.send(b"GET /sleep HTTP/1.1\r\n\r\n");
    watch.wait("start", |watch| watch.starts().len() == 1);
    let (id, tid, _) = watch.starts()[0].clone();
    let tag = watch.kernel.thread_tag(tid).unwrap().unwrap();
    assert_eq!(tag.request_id, id.0);
    assert_eq!(tag.slot, SLOT.0);
    watch.kernel.cancel(id).unwrap();
    assert_eq!(watch.kernel.tags(), []);
    client.response();
    // The thread itself removes its tag, at the latest when it waits for the next head.
    watch.wait("no tag", |watch| {
        watch.kernel.thread_tag(tid).unwrap().is_none()
    });
    // A second request on the same connection is tracked again.
    client.get("/sleep");
    client.close();
    watch.wait_for_ends(1);
    let starts = watch.starts();
    assert_eq!(starts.len(), 2);
    assert_eq!(watch.ends(), [(starts[1].0, EndReason::Shutdown)]);
    assert_eq!(watch.responses().len(), 1);
}

/// Check that the pieces of a response's head are shipped up to its end and not beyond, and that the last bytes of
/// a response tell a last chunk, however it was written, and tell none where there is none.
#[test]
fn the_pieces_of_a_head_and_a_last_chunk_are_seen() {
    for (path, has_last_chunk) in [
        ("/chunks/bytes", true),
        ("/chunks/buffers", true),
        ("/chunks/file", true),
        ("/chunks/open", false),
    ] {
        let server = Server::python("HTTP/1.1");
        let mut watch = Watch::new(server.pid(), "/chunks");
        let mut client = server.connect();
        client.get(path); // reads the head only
        client.finish();
        watch.wait_for_ends(1);
        let (mut pieces, mut flags_at_end) = (Vec::new(), None);
        for event in &watch.events {
            match event {
                RequestEvent::FirstWrite { head: bytes, .. }
                | RequestEvent::MoreResponse { bytes, .. } => {
                    pieces.push(String::from_utf8_lossy(bytes).into_owned());
                }
                RequestEvent::End { flags, .. } => flags_at_end = Some(*flags),
                _ => {}
            }
        }
        let head = ["HTTP/1.1 200 OK\r\n", "Transfer-Encoding: chunked\r\n\r\n"];
        assert_eq!(pieces, head, "{path}");
        let flag = flags_at_end.unwrap() & event_flag::LAST_CHUNK;
        assert_eq!(flag != 0, has_last_chunk, "{path}");
    }
}

/// Check that a request whose answer has begun ends where its thread reads the head of another connection, whether
/// a task wants that one or not.
#[test]
fn the_head_of_another_connection_ends_an_answered_request() {
    for (literal, starts) in [("/other", 1), ("/", 2)] {
        let server = Server::python("HTTP/1.1");
        let mut watch = Watch::new(server.pid(), literal);
        let mut client = server.connect();
        assert_eq!(client.get("/other"), b"ok\n");
        client.close();
        watch.wait_for_ends(starts);
        assert_eq!(watch.starts().len(), starts);
        let id = watch.starts()[0].0;
        assert!(watch.ends().contains(&(id, EndReason::NextHead)));
        watch.wait("no tag", |watch| watch.kernel.tags().is_empty());
    }
}

/// Check that closing a range of descriptors ends the requests on its first ones, and that the rest of the range is
/// told to the daemon, which ends theirs: once, however many sockets are in it.
#[test]
fn close_range_ends_requests() {
    let server = Server::python("HTTP/1.1");
    let mut watch = Watch::new(server.pid(), "/closerange");
    let mut low = server.connect();
    low.get("/openmany");
    // Accepted before the listener is closed with the rest.
    let mut others: Vec<_> = (0..5).map(|_| server.connect()).collect();
    for client in &mut others {
        client.get("/");
    }
    low.get("/closerange");
    watch.wait_for_ends(1);
    assert_eq!(watch.ends()[0], (watch.starts()[0].0, EndReason::Closed));
    assert_eq!(watch.kernel.tags(), []);

    let mut high = others.pop().unwrap();
    high.get("/closerange");
    let closed = |watch: &Watch| {
        let ranges = watch.events.iter().filter_map(|event| match event {
            RequestEvent::CloseRange {
                pid, first, last, ..
            } => Some((*pid, *first, last.cast_signed())),
            _ => None,
        });
        ranges.collect::<Vec<_>>()
    };
    watch.wait("closed range", |watch| !closed(watch).is_empty());
    let mut fds = watch.events.iter().filter_map(|event| match event {
        RequestEvent::Start { fd, .. } => Some(*fd),
        _ => None,
    });
    let fd = fds.next_back().unwrap();
    // It is the last one of the range.
    watch.wait("its close", |_| high.is_closed());
    watch.drain();
    assert_eq!(closed(&watch), [(server.pid(), 3 + 64, fd)]);
    let conn = watch.kernel.conn(server.pid(), fd).unwrap().unwrap();
    assert_eq!(conn.request_id, watch.starts()[1].0.0, "for the daemon");
}

/// Check that a full ring is counted and does not stop later events.
#[test]
fn a_full_ring_is_counted() {
    let server = Server::python("HTTP/1.1");
    let options = LoadOptions {
        request_ring_bytes: 4096,
        ..load_options()
    };
    let mut watch = Watch::with_options(server.pid(), "/", &options);
    let mut client: Client = server.connect();
    for _ in 0..20 {
        client.get("/a/target/that/takes/some/room/in/the/ring/buffer/of/one/page");
    }
    assert_ne!(watch.count(KernelCounter::RequestRingFull), 0);
    watch.drain();
    let before = watch.starts().len();
    client.get("/last");
    watch.wait("start", |watch| watch.starts().len() > before);
}

/// Check that a reader who sleeps is woken at once, when enough is unread, or not at all, as it wants, and that
/// nothing is lost to it.
#[test]
fn a_sleeping_reader_is_woken_when_it_wants_to() {
    /// Many times as long as two requests take.
    const SLEEP_MS: u16 = 3000;
    let server = Server::python("HTTP/1.1");
    let mut watch = Watch::new(server.pid(), "/");
    let mut client = server.connect();
    let mut count = 0;
    for (unread_bytes, wakes) in [(0, true), (1 << 19, false), (1, true)] {
        watch.kernel.set_request_wakeup(unread_bytes).unwrap();
        let requests = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200)); // the reader sleeps by then
            client.get("/first");
            client.get("/second");
            client
        });
        let mut fds = [PollFd::new(watch.kernel.request_fd(), PollFlags::POLLIN)];
        let begin = Instant::now();
        poll(&mut fds, PollTimeout::from(SLEEP_MS)).unwrap();
        // Who wakes by himself finds the events as well.
        let is_woken = begin.elapsed() < Duration::from_millis(SLEEP_MS.into());
        assert_eq!(is_woken, wakes, "{unread_bytes} bytes");
        client = requests.join().unwrap();
        count += 2;
        watch.wait("answer", |watch| watch.responses().len() == count);
    }
}

/// Check that the calls of a request are shipped with it, up to a number and before the answer, and only
/// of a process that has an agent.
#[test]
fn calls_of_a_request_are_shipped() {
    for prefer_raw in [false, true] {
        let server = Server::python("HTTP/1.1");
        let options = LoadOptions {
            prefer_raw,
            ..load_options()
        };
        let mut watch = Watch::with_options(server.pid(), "/calls", &options);
        let mut client = server.connect();
        client.get("/calls");
        watch.kernel.ship_outbound(server.pid()).unwrap();
        assert_eq!(client.get("/calls"), b"done\n");
        client.close();
        watch.wait_for_ends(2);
        let request = watch.starts()[1].0;
        let expected = (0..7).map(|number| (request, format!("GET /inside/{number} HTTP/1.1")));
        assert_eq!(watch.calls(), expected.collect::<Vec<_>>());
    }
}
