use std::cell::Cell;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use profiler_common::EndReason;

use super::*;
use crate::model::{Cut, Subject, TaskId};

const SLOT: TaskSlot = TaskSlot(0);
const PID: Pid = Pid(100);
const PROCESS: ProcessKey = ProcessKey {
    pid: PID,
    start_ticks: 5,
};
const MS: u64 = 1_000_000;

/// No connection is known to the kernel side unless a test says so, and its descriptor then is the socket it
/// was.
#[derive(Default)]
struct Conns {
    known: HashMap<(Pid, i32), Conn>,
    /// Inodes of sockets whose descriptors have been closed.
    closed: Vec<u64>,
    /// How often a descriptor was looked at.
    looks: Cell<usize>,
    /// How often a connection was asked for.
    asked: Cell<usize>,
    /// Whose descriptors are in sets; in others it is the request's own.
    sets: HashMap<WaitSet, Waits>,
    /// How often a set was looked at.
    set_looks: Cell<usize>,
}

impl ConnView for Conns {
    fn conn(&self, pid: Pid, fd: i32) -> Option<Conn> {
        self.asked.set(self.asked.get() + 1);
        self.known.get(&(pid, fd)).copied()
    }

    fn is_socket(&self, _: Pid, _: Tid, _: i32, inode: u64) -> bool {
        self.looks.set(self.looks.get() + 1);
        !self.closed.contains(&inode)
    }

    fn waits(&self, _: &ActiveRequest, set: &WaitSet) -> Waits {
        self.set_looks.set(self.set_looks.get() + 1);
        *self.sets.get(set).unwrap_or(&Waits::ForItself)
    }
}

/// The connection of request 1; `last_write_ms` is 0 if there is no answer yet.
fn conn(inode: u64, last_write_ms: u64, written_bytes: u64) -> Conn {
    Conn {
        sk: 1,
        inode,
        request_id: 1,
        start_ktime_ns: 0,
        last_write_ktime_ns: last_write_ms * MS,
        written_bytes,
        tail: 0,
        reader_tid: 1,
        state: if last_write_ms == 0 { 1 } else { 2 },
        flags: 1,
        slot: 0,
        wait_fd: -1,
        program: 0,
    }
}

fn service() -> Service {
    Service {
        name: "shop".into(),
        instance: "shop-1".into(),
    }
}

fn tracker(threshold_ms: u32, max: u32) -> RequestTracker {
    let mut tracker = RequestTracker::new(TrackerLimits {
        max_open_requests: 4,
    });
    let task = ProfileTask {
        task_id: TaskId("t".into()),
        service: service(),
        endpoint: "GET:/a".into(),
        duration: Duration::from_secs(60),
        min_duration_threshold_ms: threshold_ms,
        dump_period_ms: 10,
        max_sampling_count: max,
        start_unix_ms: 0,
        create_unix_ms: 0,
    };
    tracker.add_task(SLOT, task, Endpoint::parse("GET:/a").unwrap());
    tracker.add_target(SLOT, PROCESS, service());
    tracker
}

fn send(tracker: &mut RequestTracker, event: RequestEvent) -> Vec<Action> {
    let mut actions = Vec::new();
    tracker.on_event(event, WallClock::from_readings(0, 0), &mut actions);
    actions
}

fn start(id: u64, tid: u32, at_ms: u64, line: &str) -> RequestEvent {
    RequestEvent::Start {
        id: RequestId(id),
        slot: SLOT,
        pid: PID,
        tid: Tid(tid),
        fd: tid as i32,
        start_ktime_ns: at_ms * MS,
        flags: 0,
        head: format!("{line} HTTP/1.1\r\nHost: h\r\n\r\n").into_bytes(),
    }
}

fn first_write(id: u64, at_ms: u64, written: u64, head: &str) -> RequestEvent {
    RequestEvent::FirstWrite {
        id: RequestId(id),
        tid: Tid(1),
        ktime_ns: at_ms * MS,
        written_bytes: written,
        flags: 0,
        head: head.as_bytes().to_vec(),
        wait_fd: None,
    }
}

fn more(id: u64, at_ms: u64, written: u64, bytes: &str) -> RequestEvent {
    RequestEvent::MoreResponse {
        id: RequestId(id),
        ktime_ns: at_ms * MS,
        written_bytes: written,
        flags: 0,
        bytes: bytes.as_bytes().to_vec(),
    }
}

fn end(id: u64, at_ms: u64, last_write_ms: u64, reason: EndReason) -> RequestEvent {
    RequestEvent::End {
        id: RequestId(id),
        ktime_ns: at_ms * MS,
        last_write_ktime_ns: last_write_ms * MS,
        written_bytes: 10,
        flags: 0,
        reason,
    }
}

fn finished(actions: &[Action]) -> Vec<&FinishedRequest> {
    actions
        .iter()
        .filter_map(|a| {
            if let Action::Finish(f) = a {
                Some(&**f)
            } else {
                None
            }
        })
        .collect()
}

fn count(tracker: &mut RequestTracker, counter: Counter) -> u64 {
    tracker.coverage_mut(SLOT).unwrap().get(counter)
}

/// Check that of pipelined requests the first is kept if its answer tells its length, the others are
/// counted, and nothing is kept where the answers cannot be told apart.
#[test]
fn pipelined_requests_are_counted_and_not_mixed_up() {
    let mut tracker = tracker(0, 5);
    let two = "GET /a HTTP/1.1\r\n\r\nGET /a";
    send(&mut tracker, start(1, 1, 0, two));
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let written = answer.len() as u64;
    let actions = send(&mut tracker, first_write(1, 20, written, answer));
    assert_eq!(finished(&actions)[0].end_ktime_ns, 20 * MS);
    assert_eq!(count(&mut tracker, Counter::PipelinedHeads), 1);

    send(&mut tracker, start(2, 1, 30, two));
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let actions = send(&mut tracker, first_write(2, 40, 10, chunked));
    assert!(matches!(actions[..], [Action::Drop { .. }]));
    assert_eq!(count(&mut tracker, Counter::RequestsInterleaved), 1);
}

/// Check that a matched request runs from its head to its last write, not to the event that ended it.
#[test]
fn a_request_ends_with_its_last_write() {
    let mut tracker = tracker(0, 5);
    assert!(matches!(
        send(&mut tracker, start(1, 1, 0, "GET /a"))[..],
        [Action::Begin(_)]
    ));
    send(
        &mut tracker,
        first_write(1, 20, 10, "HTTP/1.1 200 OK\r\n\r\n"),
    );
    let actions = send(&mut tracker, end(1, 5000, 30, EndReason::Closed));
    let done = finished(&actions);
    assert_eq!((done[0].end_ktime_ns, done[0].status), (30 * MS, Some(200)));
    assert_eq!(done[0].request.endpoint, "GET:/a");
}

/// Check that a response of known length finishes its request at its last byte, on an idle connection.
#[test]
fn a_whole_response_finishes_without_an_end_event() {
    let mut tracker = tracker(0, 5);
    send(&mut tracker, start(1, 1, 0, "GET /a"));
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    assert!(
        finished(&send(
            &mut tracker,
            first_write(1, 20, head.len() as u64, head)
        ))
        .is_empty()
    );
    let mut conns = Conns::default();
    let written = head.len() as u64 + 5;
    conns.known.insert((PID, 1), conn(0, 25, written));
    let mut actions = Vec::new();
    tracker.on_tick(90 * MS, &conns, &mut actions);
    assert_eq!(finished(&actions)[0].end_ktime_ns, 25 * MS);
    assert!(finished(&send(&mut tracker, end(1, 100, 25, EndReason::NextHead))).is_empty());
}

/// Check that other endpoints are dropped and counted, and never reported.
#[test]
fn other_endpoints_are_dropped() {
    let mut tracker = tracker(0, 5);
    assert!(matches!(
        send(&mut tracker, start(1, 1, 0, "GET /ab"))[..],
        [Action::Drop { .. }]
    ));
    assert!(matches!(
        send(&mut tracker, start(2, 1, 0, "\u{1}"))[..],
        [Action::Drop { .. }]
    ));
    assert_eq!(count(&mut tracker, Counter::RequestsOtherEndpoint), 1);
    assert_eq!(count(&mut tracker, Counter::HeadsMalformed), 1);
    assert_eq!(tracker.open_count(SLOT), 0);
}

/// Check that requests that end before the threshold take no place.
#[test]
fn fast_requests_take_no_place() {
    let mut tracker = tracker(50, 1);
    for id in 1..=3 {
        send(&mut tracker, start(id, 1, 0, "GET /a"));
        send(
            &mut tracker,
            first_write(id, 40, 10, "HTTP/1.1 200 OK\r\n\r\n"),
        );
        assert!(finished(&send(&mut tracker, end(id, 45, 40, EndReason::NextHead))).is_empty());
    }
    assert_eq!(count(&mut tracker, Counter::RequestsBelowThreshold), 3);
    send(&mut tracker, start(4, 1, 0, "GET /a"));
    send(
        &mut tracker,
        first_write(4, 60, 10, "HTTP/1.1 200 OK\r\n\r\n"),
    );
    let actions = send(&mut tracker, end(4, 70, 60, EndReason::NextHead));
    assert_eq!(finished(&actions).len(), 1);
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::CountOnly { on: true, .. }))
    );
}

/// Check that no more than the maximum number of requests is profiled, and the rest counted.
#[test]
fn the_maximum_sampling_count_is_kept() {
    let mut tracker = tracker(0, 2);
    for id in 1..=4 {
        send(&mut tracker, start(id, id as u32, 0, "GET /a"));
    }
    assert_eq!(tracker.open_count(SLOT), 2);
    assert_eq!(count(&mut tracker, Counter::RequestsMatched), 4);
    assert_eq!(count(&mut tracker, Counter::RequestsOverLimit), 2);
}

/// Check that a request answered by another thread is dropped and its place freed.
#[test]
fn handed_off_requests_are_not_attributed() {
    let mut tracker = tracker(0, 1);
    send(&mut tracker, start(1, 1, 0, "GET /a"));
    let RequestEvent::FirstWrite {
        id,
        tid,
        ktime_ns,
        written_bytes,
        head,
        ..
    } = first_write(1, 9, 10, "HTTP/1.1 200 OK\r\n\r\n")
    else {
        unreachable!()
    };
    let flags = event_flag::OTHER_THREAD;
    let event = RequestEvent::FirstWrite {
        id,
        tid,
        ktime_ns,
        written_bytes,
        flags,
        head,
        wait_fd: None,
    };
    let actions = send(&mut tracker, event);
    assert!(actions.iter().any(|a| matches!(a, Action::Drop { .. })));
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::CountOnly { on: false, .. }))
    );
    assert_eq!(count(&mut tracker, Counter::RequestsHandedOff), 1);
    send(&mut tracker, start(2, 1, 0, "GET /a"));
    assert_eq!(tracker.open_count(SLOT), 1);
}

/// Check that two requests on one thread at once are both given up.
#[test]
fn interleaved_requests_are_not_attributed() {
    let mut tracker = tracker(0, 5);
    send(&mut tracker, start(1, 1, 0, "GET /a"));
    let RequestEvent::Start {
        id,
        slot,
        pid,
        tid,
        start_ktime_ns,
        head,
        ..
    } = start(2, 1, 5, "GET /a")
    else {
        unreachable!()
    };
    let flags = event_flag::INTERLEAVED;
    let event = RequestEvent::Start {
        id,
        slot,
        pid,
        tid,
        fd: 9,
        start_ktime_ns,
        flags,
        head,
    };
    send(&mut tracker, event);
    assert_eq!(count(&mut tracker, Counter::RequestsInterleaved), 2);
    assert_eq!(tracker.open_count(SLOT), 0);
}

/// Check that what was captured of a request is kept when its process dies, and that a head nobody
/// answered is not reported.
#[test]
fn a_dying_server_keeps_its_samples_and_an_unanswered_head_does_not() {
    let mut tracker = tracker(0, 5);
    send(&mut tracker, start(1, 1, 0, "GET /a"));
    let mut actions = Vec::new();
    tracker.on_process_gone(PROCESS, 300 * MS, &mut actions);
    let done = finished(&actions);
    assert_eq!((done[0].end_ktime_ns, done[0].status), (300 * MS, None));
    send(&mut tracker, start(2, 1, 0, "GET /a"));
    assert!(finished(&send(&mut tracker, end(2, 9, 0, EndReason::Closed))).is_empty());
    assert_eq!(count(&mut tracker, Counter::RequestsUnanswered), 1);
}

/// Check that a task's end cuts the requests whose response is owed, and keeps them, for the instance that
/// serves them; and that a request is not shown beyond a response that may be whole.
#[test]
fn the_end_of_a_task_cuts_open_requests() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\n";
    for (answer, end_ms) in [
        (None, 80),
        (Some("Content-Length: 2\r\n\r\n"), 80),
        (Some("Transfer-Encoding: chunked\r\n\r\n"), 80),
        (Some("\r\n"), 80),
        (Some("Cut-Head: 1\r\n"), 20),
    ] {
        let mut tracker = tracker(0, 5);
        send(&mut tracker, start(1, 1, 0, "GET /a"));
        if let Some(answer) = answer {
            let head = format!("{HEAD}{answer}");
            send(&mut tracker, first_write(1, 20, head.len() as u64, &head));
        }
        let mut actions = Vec::new();
        tracker.end_task(SLOT, 80 * MS, &mut actions).unwrap();
        let [Action::Finish(finished)] = &actions[..] else {
            panic!("{answer:?}: {actions:?}");
        };
        assert_eq!(finished.end_ktime_ns, end_ms * MS, "{answer:?}");
        assert_eq!(finished.request.service, service());
        let is_cut = end_ms == 80;
        assert_eq!(finished.cut, is_cut.then_some(Cut::TaskEnded), "{answer:?}");
        let unfinished = finished.losses.get(Counter::RequestsUnfinished);
        assert_eq!(unfinished, u64::from(is_cut), "{answer:?}");
    }
}

/// Check that an open request that has not passed the threshold when its task ends counts as unfinished, not as
/// a fast one.
#[test]
fn the_end_of_a_task_makes_no_request_fast() {
    let mut tracker = tracker(100, 5);
    send(&mut tracker, start(1, 1, 0, "GET /a"));
    let mut actions = Vec::new();
    let coverage = tracker.end_task(SLOT, 80 * MS, &mut actions).unwrap();
    assert!(matches!(actions[..], [Action::Drop { .. }]));
    assert_eq!(coverage.get(Counter::RequestsUnfinished), 1);
    assert_eq!(coverage.get(Counter::RequestsBelowThreshold), 0);
}

/// Check that a request whose thread dies while its response is owed is cut there, and that one whose response is
/// whole, or ends with the connection, is not.
#[test]
fn the_end_of_a_thread_cuts_an_owed_response() {
    for (fields, flags, cut_at) in [
        ("Content-Length: 2\r\n", 0, Some(300)),
        ("Transfer-Encoding: chunked\r\n", 0, Some(300)),
        (
            "Transfer-Encoding: chunked\r\n",
            event_flag::LAST_CHUNK,
            None,
        ),
        ("", 0, None),
    ] {
        let mut tracker = tracker(0, 5);
        send(&mut tracker, start(1, 1, 0, "GET /a"));
        let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
        send(&mut tracker, first_write(1, 20, head.len() as u64, &head));
        let actions = send(
            &mut tracker,
            RequestEvent::End {
                id: RequestId(1),
                ktime_ns: 300 * MS,
                last_write_ktime_ns: 20 * MS,
                written_bytes: head.len() as u64,
                flags,
                reason: EndReason::ThreadExit,
            },
        );
        let done = finished(&actions);
        assert_eq!(done[0].end_ktime_ns, cut_at.unwrap_or(20) * MS, "{fields}");
        let cut = cut_at.map(|_| Cut::ThreadEnded);
        assert_eq!(done[0].cut, cut, "{fields} {flags}");
    }
}

/// Check that silence neither ends a request nor keeps its thread from being sampled, whatever tells the end of its
/// response, and that it ends with its last write.
#[test]
fn silence_ends_no_request() {
    for fields in [
        "Content-Length: 2\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n",
        "\r\n",
        "Cut-Head: 1\r\n",
    ] {
        let mut tracker = tracker(0, 5);
        send(&mut tracker, start(1, 1, 0, "GET /a"));
        let head = format!("HTTP/1.1 200 OK\r\n{fields}");
        let written = head.len() as u64;
        send(&mut tracker, first_write(1, 20, written, &head));
        let mut conns = Conns::default();
        let mut actions = Vec::new();
        for look_ms in (50..60_000).step_by(50) {
            conns.known.insert((PID, 1), conn(0, 20, written));
            tracker.on_tick(look_ms * MS, &conns, &mut actions);
        }
        assert!(actions.is_empty(), "{fields}: {actions:?}");
        assert_eq!(tracker.open().count(), 1);
        let actions = send(&mut tracker, end(1, 61_000, 60_000, EndReason::Closed));
        assert_eq!(finished(&actions)[0].end_ktime_ns, 60_000 * MS, "{fields}");
    }
}

/// Check that a chunked response finishes its request at its last chunk, which is not data that looks like one.
#[test]
fn a_chunked_response_ends_with_its_last_chunk() {
    let mut tracker = tracker(0, 5);
    send(&mut tracker, start(1, 1, 0, "GET /a"));
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n";
    send(&mut tracker, first_write(1, 20, head.len() as u64, head));
    let mut conns = Conns::default();
    let mut actions = Vec::new();
    let mut look = |at_ms: u64, write_ms: u64, tail: &[u8; 8]| {
        let tail = u64::from_le_bytes(*tail);
        let conn = Conn {
            tail,
            ..conn(0, write_ms, 1000)
        };
        conns.known.insert((PID, 1), conn);
        tracker.on_tick(at_ms * MS, &conns, &mut actions);
        finished(&actions).iter().map(|f| f.end_ktime_ns).next()
    };
    assert_eq!(look(100, 60, b"a chunk\n"), None);
    // The rest of the chunk follows at once.
    assert_eq!(look(150, 149, b"x\r\n0\r\n\r\n"), None);
    assert_eq!(look(200, 151, b"\n0\r\n\r\n\r\n"), None);
    assert_eq!(look(400, 390, b"x\r\n0\r\n\r\n"), None);
    assert_eq!(look(450, 390, b"x\r\n0\r\n\r\n"), Some(390 * MS));
}

/// Check that a response head that is written in pieces is read like one in a single write, and that a piece that is
/// lost leaves the length open instead of a wrong one.
#[test]
fn a_split_response_head_is_joined() {
    let pieces = ["HTTP/1.1 200 OK\r\n", "Content-Length: 2\r\n", "\r\n"];
    for lost in [None, Some(1)] {
        let mut tracker = tracker(0, 5);
        send(&mut tracker, start(1, 1, 0, "GET /a"));
        let mut written = 0;
        for (index, piece) in pieces.into_iter().enumerate() {
            written += piece.len() as u64;
            let event = match index {
                0 => first_write(1, 20, written, piece),
                _ => more(1, 20, written, piece),
            };
            if lost != Some(index) {
                assert!(send(&mut tracker, event).is_empty());
            }
        }
        let actions = send(&mut tracker, more(1, 30, written + 2, "ok"));
        let ends: Vec<_> = finished(&actions).iter().map(|f| f.end_ktime_ns).collect();
        assert_eq!(
            ends,
            if lost.is_none() {
                vec![30 * MS]
            } else {
                vec![]
            }
        );
    }
}

/// Check that a request whose descriptor was closed unseen ends at its last write, or as unanswered, and that
/// the descriptor is looked at once a second.
#[test]
fn an_unseen_close_ends_a_request() {
    for last_write_ms in [0, 20] {
        let mut tracker = tracker(0, 5);
        send(&mut tracker, start(1, 1, 0, "GET /a"));
        let mut conns = Conns::default();
        conns.known.insert((PID, 1), conn(7, last_write_ms, 10));
        let mut actions = Vec::new();
        for look_ms in (0..3000).step_by(50) {
            tracker.on_tick(look_ms * MS, &conns, &mut actions);
        }
        assert_eq!(conns.looks.get(), 2);
        assert_eq!(tracker.open().count(), 1);
        conns.closed.push(7);
        tracker.on_tick(3000 * MS, &conns, &mut actions);
        assert_eq!(tracker.open().count(), 0);
        let ends: Vec<_> = finished(&actions).iter().map(|f| f.end_ktime_ns).collect();
        if last_write_ms == 0 {
            assert!(ends.is_empty(), "{ends:?}");
            assert_eq!(count(&mut tracker, Counter::RequestsUnanswered), 1);
        } else {
            assert_eq!(ends, [20 * MS]);
        }
    }
}

/// Check that a closed range of descriptors ends the process's requests in it at their last write, and that the
/// connections of other processes, however many, are not looked at for it.
#[test]
fn a_closed_range_ends_the_requests_of_its_process() {
    let mut tracker = tracker(0, 5);
    let other = Pid(101);
    let other_process = ProcessKey {
        pid: other,
        ..PROCESS
    };
    tracker.add_target(SLOT, other_process, service());
    let mut conns = Conns::default();
    for fd in 0..60_000 {
        conns.known.insert((other, fd), conn(0, 500, 100));
    }
    for (id, fd) in [(1, 1), (2, 70), (3, 71)] {
        send(&mut tracker, start(id, fd, 0, "GET /a"));
        let known = Conn {
            request_id: id,
            ..conn(0, if id == 3 { 0 } else { 500 }, 100)
        };
        conns.known.insert((PID, fd as i32), known);
    }
    let mut of_other = start(4, 70, 0, "GET /a");
    if let RequestEvent::Start { pid, .. } = &mut of_other {
        *pid = other;
    }
    send(&mut tracker, of_other);

    let mut actions = Vec::new();
    tracker.on_close_range(PID, 67..=u32::MAX, 900 * MS, &conns, &mut actions);
    assert_eq!(conns.asked.get(), 2);
    let finished = finished(&actions);
    let ends = finished.iter().map(|f| (f.request.id, f.end_ktime_ns));
    assert_eq!(ends.collect::<Vec<_>>(), [(RequestId(2), 500 * MS)]);
    assert_eq!(finished[0].reason, None, "the kernel side is told");
    assert_eq!(count(&mut tracker, Counter::RequestsUnanswered), 1);
    let mut open: Vec<_> = tracker.open().map(|request| request.id.0).collect();
    open.sort_unstable();
    assert_eq!(open, [1, 4]);
}

/// Check that a connection which was given a descriptor of a closed range is not closed with it.
#[test]
fn a_living_connection_in_a_closed_range_goes_on() {
    let mut tracker = tracker(0, 5);
    send(&mut tracker, start(1, 1, 0, "GET /a"));
    let mut conns = Conns::default();
    conns.known.insert((PID, 1), conn(7, 500, 100));
    let mut actions = Vec::new();
    tracker.on_close_range(PID, 0..=10, 900 * MS, &conns, &mut actions);
    assert_eq!(tracker.open().count(), 1);
    conns.closed.push(7);
    tracker.on_close_range(PID, 0..=10, 900 * MS, &conns, &mut actions);
    assert_eq!(tracker.open().count(), 0);
}

/// Check that no descriptor is looked at whose socket is not known.
#[test]
fn descriptors_of_unknown_sockets_are_not_looked_at() {
    let mut tracker = tracker(0, 5);
    send(&mut tracker, start(1, 1, 0, "GET /a"));
    let mut conns = Conns::default();
    conns.known.insert((PID, 1), conn(0, 0, 0));
    let mut actions = Vec::new();
    tracker.on_tick(5000 * MS, &conns, &mut actions);
    assert_eq!(conns.looks.get(), 0);
    assert_eq!(tracker.open().count(), 1);
}

/// Request 1 with a whole answer, before which its thread slept on the epoll set 7.
fn answer_after_wait(tracker: &mut RequestTracker, at_ms: u64) -> Vec<Action> {
    send(tracker, start(1, 1, at_ms, "GET /a"));
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let RequestEvent::FirstWrite {
        id,
        tid,
        ktime_ns,
        written_bytes,
        flags,
        head,
        ..
    } = first_write(1, at_ms + 20, head.len() as u64, head)
    else {
        unreachable!()
    };
    let event = RequestEvent::FirstWrite {
        id,
        tid,
        ktime_ns,
        written_bytes,
        flags,
        head,
        wait_fd: Some(7),
    };
    send(tracker, event)
}

/// Check that a request whose thread waits for other clients before it answers is dropped, also a short one that
/// ends before anybody looks, with all others of that thread, and that the task is told once.
#[test]
fn requests_of_an_event_loop_are_dropped() {
    for waits in [Waits::ForOthers, Waits::ForWorkers] {
        let mut tracker = tracker(0, 5);
        let conns = Conns {
            sets: HashMap::from([(WaitSet::Epoll(7), waits)]),
            ..Conns::default()
        };
        assert!(answer_after_wait(&mut tracker, 0).is_empty());
        assert!(send(&mut tracker, end(1, 30, 20, EndReason::Closed)).is_empty());
        let mut actions = Vec::new();
        tracker.on_tick(50 * MS, &conns, &mut actions);
        assert!(matches!(actions[..], [Action::Drop { .. }]), "{actions:?}");
        let actions = send(&mut tracker, start(2, 1, 60, "GET /a"));
        assert!(matches!(actions[..], [Action::Drop { .. }]), "{actions:?}");
        // Another thread of the process may be of another kind.
        let actions = send(&mut tracker, start(3, 2, 60, "GET /a"));
        assert!(matches!(actions[..], [Action::Begin(_)]), "{actions:?}");
        assert_eq!(count(&mut tracker, Counter::RequestsMatched), 3);
        assert_eq!(count(&mut tracker, Counter::RequestsOnLoop), 2);
        assert_eq!(count(&mut tracker, Counter::ProcessesUnsupported), 1);
        let coverage = tracker.coverage_mut(SLOT).unwrap();
        let notes: Vec<String> = coverage.notes().collect();
        assert_eq!(notes.len(), 1);
        let is_proxy = notes[0].contains("forwards requests");
        assert_eq!(is_proxy, waits == Waits::ForWorkers, "{notes:?}");
        // Its number may be another process's next.
        tracker.on_process_gone(PROCESS, 90 * MS, &mut Vec::new());
        let actions = send(&mut tracker, start(4, 1, 100, "GET /a"));
        assert!(matches!(actions[..], [Action::Begin(_)]), "{actions:?}");
    }
}

/// Check that a sleep in `poll` counts before the answer and between two parts of it, and not behind it, and that
/// whose descriptors it was for decides.
#[test]
fn a_sleep_in_poll_counts_before_the_answers_end() {
    let conns = Conns {
        sets: HashMap::from([(WaitSet::Descriptors(vec![3, 5]), Waits::ForOthers)]),
        ..Conns::default()
    };
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n";
    // Descriptors, whether the answer has begun by then and goes on later, whether that is a loop's.
    for (descriptors, has_begun, goes_on, is_loop) in [
        (vec![3, 5], false, false, true),
        (vec![5], false, false, false),
        (vec![3, 5], true, true, true),
        (vec![5], true, true, false),
        (vec![3, 5], true, false, false),
    ] {
        let mut tracker = tracker(0, 5);
        send(&mut tracker, start(1, 1, 0, "GET /a"));
        if has_begun {
            send(&mut tracker, first_write(1, 10, head.len() as u64, head));
        }
        tracker.on_sleep(RequestId(1), descriptors.clone(), 20 * MS);
        if goes_on {
            send(&mut tracker, end(1, 40, 30, EndReason::Closed));
        }
        let mut actions = Vec::new();
        tracker.on_tick(50 * MS, &conns, &mut actions);
        let on_loop = count(&mut tracker, Counter::RequestsOnLoop);
        let case = format!("{descriptors:?} {has_begun} {goes_on}");
        assert_eq!(on_loop, u64::from(is_loop), "{case}");
        let is_open = !is_loop && !goes_on;
        assert_eq!(tracker.open().count(), usize::from(is_open), "{case}");
    }
}

/// Check that a request that waits for what is its own is kept, with its end, and that its set is looked at once
/// a second at most.
#[test]
fn a_set_of_the_request_s_own_is_no_loop() {
    let mut tracker = tracker(0, 9);
    let conns = Conns::default();
    for (at_ms, looks) in [(0, 1), (500, 1), (1600, 2)] {
        assert!(answer_after_wait(&mut tracker, at_ms).len() <= 1);
        let mut actions = Vec::new();
        tracker.on_tick((at_ms + 50) * MS, &conns, &mut actions);
        assert_eq!(finished(&actions)[0].end_ktime_ns, (at_ms + 20) * MS);
        assert_eq!(conns.set_looks.get(), looks);
    }
}

/// Check that the context of a request's own calls is kept, unless they name several segments.
#[test]
fn the_context_of_own_calls_is_kept() {
    let call = |id: u64, segment: &str| {
        let encode = |text| STANDARD.encode(text);
        let context = [encode("t"), encode(segment), "1".to_owned()].join("-");
        let names = ["shop", "shop-1", "/a", "db:80"].map(encode).join("-");
        let head = format!("GET /b HTTP/1.1\r\nsw8: 1-{context}-{names}\r\n\r\n");
        RequestEvent::Outbound {
            id: RequestId(id),
            head: head.into_bytes(),
        }
    };
    let mut tracker = tracker(0, 9);
    let mut outbound = |id: u64, calls: Vec<RequestEvent>| {
        send(&mut tracker, start(id, 1, 0, "GET /a HTTP/1.1"));
        for call in calls {
            send(&mut tracker, call);
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let actions = send(&mut tracker, first_write(id, 20, head.len() as u64, head));
        let context = finished(&actions)[0].outbound.clone();
        context.map(|context| context.parent_segment_id)
    };
    assert_eq!(outbound(1, Vec::new()), None);
    let plain = RequestEvent::Outbound {
        id: RequestId(2),
        head: b"GET /b HTTP/1.1\r\n\r\n".to_vec(),
    };
    let own = outbound(2, vec![plain, call(2, "own"), call(2, "own")]);
    assert_eq!(own.as_deref(), Some("own"));
    assert_eq!(
        outbound(3, vec![call(3, "a"), call(3, "b"), call(3, "a")]),
        None
    );
}

/// Why the request is not in the result, `None` if it is.
fn why_missing(tracker: &mut RequestTracker) -> Option<Counter> {
    let coverage = tracker.coverage_mut(SLOT).unwrap();
    let mut reasons = Counter::all().filter(|counter| {
        counter.subject() == Subject::Requests && *counter != Counter::RequestsMatched
    });
    reasons.find(|&counter| coverage.get(counter) > 0)
}

/// Check that a request that is left to a child process or another program (CGI) is counted as that, whether its
/// thread wrote the head of the answer or nothing, and that one that its thread answers in full is not.
#[test]
fn a_request_left_to_another_program_is_told_apart() {
    let why = |answer: Option<&str>, end_ms: u64, reason: EndReason| {
        let mut tracker = tracker(0, 5);
        send(&mut tracker, start(1, 1, 0, "GET /a"));
        tracker.on_fork(PROCESS, Tid(1));
        if let Some(head) = answer {
            send(&mut tracker, first_write(1, 2, head.len() as u64, head));
        }
        let last_write_ms = answer.map_or(0, |_| 2);
        send(&mut tracker, end(1, end_ms, last_write_ms, reason));
        why_missing(&mut tracker)
    };
    let left = Some(Counter::RequestsByOtherProgram);
    assert_eq!(why(None, 500, EndReason::Closed), left);
    let head = "HTTP/1.0 200 OK\r\n\r\n";
    assert_eq!(why(Some(head), 500, EndReason::Closed), left);
    assert_eq!(why(None, 3, EndReason::Exec), left);
    let whole = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(why(Some(whole), 500, EndReason::Closed), None);
}

/// Check that a head of a process that is not known is counted as that, and that places stay used when their process
/// is gone.
#[test]
fn a_process_that_is_gone_keeps_its_places() {
    let mut tracker = tracker(0, 1);
    send(&mut tracker, start(1, 1, 0, "GET /a"));
    send(
        &mut tracker,
        first_write(1, 20, 10, "HTTP/1.1 200 OK\r\n\r\n"),
    );
    send(&mut tracker, end(1, 30, 20, EndReason::Closed));
    tracker.remove_target(PROCESS);
    send(&mut tracker, start(2, 1, 40, "GET /a"));
    assert_eq!(
        why_missing(&mut tracker),
        Some(Counter::RequestsUnknownProcess)
    );
    let next = ProcessKey {
        start_ticks: PROCESS.start_ticks + 1,
        ..PROCESS
    };
    tracker.add_target(SLOT, next, service());
    tracker.remove_target(PROCESS); // another one by now
    send(&mut tracker, start(3, 1, 50, "GET /a"));
    assert_eq!(why_missing(&mut tracker), Some(Counter::RequestsOverLimit));
}
