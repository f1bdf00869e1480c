use profiler_common::EndReason;

use super::*;
use crate::model::{ProcessKey, TaskSlot, Tid};

const PID: Pid = Pid(7);
const MS: u64 = 1_000_000;

fn watch() -> RequestWatch {
    let mut watch = RequestWatch::new(Arc::default());
    let watched = Watched {
        process: ProcessKey {
            pid: PID,
            start_ticks: 1,
        },
        service: Arc::new(Service {
            name: "shop".to_owned(),
            instance: "one".to_owned(),
        }),
    };
    assert!(watch.add(watched.clone()));
    assert!(!watch.add(watched));
    watch
}

fn no_conn(_: Pid, _: i32) -> Option<Conn> {
    None
}

fn start(id: u64, pid: Pid, head: &str) -> RequestEvent {
    RequestEvent::Start {
        id: RequestId(id),
        slot: TaskSlot(0),
        pid,
        tid: Tid(1),
        fd: id as i32,
        start_ktime_ns: MS,
        flags: 0,
        head: head.as_bytes().to_vec(),
    }
}

fn write(id: u64, at_ms: u64, text: &str, flags: u32) -> RequestEvent {
    RequestEvent::FirstWrite {
        id: RequestId(id),
        tid: Tid(1),
        ktime_ns: at_ms * MS,
        written_bytes: text.len() as u64,
        flags,
        head: text.as_bytes().to_vec(),
        wait_fd: None,
    }
}

fn end(id: u64, last_ms: u64) -> RequestEvent {
    RequestEvent::End {
        id: RequestId(id),
        ktime_ns: 900 * MS,
        last_write_ktime_ns: last_ms * MS,
        written_bytes: last_ms,
        flags: 0,
        reason: EndReason::Closed,
    }
}

/// Takes events and yields endpoint, status and milliseconds of what was seen.
fn seen(
    watch: &mut RequestWatch,
    events: impl IntoIterator<Item = RequestEvent>,
) -> Vec<(String, Option<u16>, Option<u64>)> {
    for event in events {
        watch.on_event(event, &no_conn);
    }
    let seen = watch.take_seen().into_iter();
    seen.map(|seen| {
        let name = seen.endpoint.unwrap_or_default();
        (name, seen.status, seen.duration_ns.map(|ns| ns / MS))
    })
    .collect()
}

const GET: &str = "GET /orders/17?secret=x HTTP/1.1\r\n\r\n";

/// Check that a request ends with its response's last byte, at whatever thread, and is named without id and query.
#[test]
fn a_request_is_seen_to_its_end() {
    let mut watch = watch();
    let flags = event_flag::OTHER_THREAD | event_flag::INTERLEAVED;
    let whole = "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n";
    let found = seen(&mut watch, [start(1, PID, GET), write(1, 31, whole, flags)]);
    let name = "GET:/orders/{id}".to_owned();
    assert_eq!(found, [(name.clone(), Some(503), Some(30))]);
    // Until the connection's end.
    let open = "HTTP/1.0 200 OK\r\n\r\n";
    let found = seen(
        &mut watch,
        [start(2, PID, GET), write(2, 3, open, 0), end(2, 51)],
    );
    assert_eq!(found, [(name, Some(200), Some(50))]);
    assert_eq!(watch.open_count(), 0);
    assert_eq!(watch.take_unseen(), Unseen::default());
}

/// Check that a request without a response has no duration, and a process's end ends its requests.
#[test]
fn a_request_without_a_response_is_seen() {
    let mut watch = watch();
    let exit = RequestEvent::Exit {
        pid: PID,
        ktime_ns: 0,
    };
    let found = seen(
        &mut watch,
        [start(1, PID, GET), end(1, 0), start(2, PID, GET), exit],
    );
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|it| (it.1, it.2) == (None, None)));
    assert_eq!(watch.processes().count(), 0);
    assert!(seen(&mut watch, [start(3, PID, GET)]).is_empty());
    assert_eq!(watch.open_count(), 0);
}

/// Check that children are of the service of their parent.
#[test]
fn children_are_watched() {
    let mut watch = watch();
    let child = Pid(8);
    let fork = RequestEvent::Fork {
        parent: PID,
        tid: Tid(7),
        child,
        ktime_ns: 0,
    };
    let found = seen(&mut watch, [fork, start(1, child, GET), end(1, 5)]);
    assert_eq!(found.len(), 1);
    assert_eq!(watch.processes().count(), 2);
}

/// Check that what is not seen is counted by its reason.
#[test]
fn what_is_not_seen_is_counted() {
    let mut watch = watch();
    seen(
        &mut watch,
        [
            start(1, PID, "no head"),
            start(2, PID, &format!("{GET}{GET}")),
        ],
    );
    watch.end(10 * MS, &no_conn);
    let expected = Unseen {
        still_open: 1,
        malformed: 1,
        pipelined: 1,
        ..Unseen::default()
    };
    assert_eq!(watch.take_unseen(), expected);
    for id in 0..OPEN_MAX as u64 + 3 {
        watch.on_event(start(id, PID, GET), &no_conn);
    }
    assert_eq!(watch.open_count(), OPEN_MAX);
    assert_eq!(watch.take_unseen().over_limit, 3);
}

/// Check that a lost end is noticed, and that the kernel's view of a connection completes a response.
#[test]
fn looks_find_what_events_did_not_tell() {
    let mut watch = watch();
    let partial = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n";
    seen(&mut watch, [start(1, PID, GET), write(1, 3, partial, 0)]);
    let conn = Conn {
        sk: 1,
        inode: 0,
        request_id: 1,
        start_ktime_ns: MS,
        last_write_ktime_ns: 21 * MS,
        written_bytes: partial.len() as u64 + 100,
        tail: 0,
        reader_tid: 1,
        state: 2,
        flags: 0,
        slot: 0,
        wait_fd: -1,
        program: 0,
    };
    watch.on_tick(30 * MS, &|_, _| Some(conn));
    assert_eq!(watch.take_seen()[0].duration_ns, Some(20 * MS));
    seen(&mut watch, [start(2, PID, GET)]);
    watch.on_tick(30 * MS, &no_conn);
    assert!(watch.take_seen().is_empty());
    watch.on_tick(40 * MS + LOST_END_NS, &no_conn);
    assert_eq!(watch.take_seen()[0].duration_ns, None);
}
