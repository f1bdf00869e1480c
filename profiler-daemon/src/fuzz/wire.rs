//! Binary formats: records of the BPF programs, the kernel's types, gRPC messages.

use profiler_common::{Conn, MAX_TASKS};
use profiler_proto::parts::{self, PARTS_MAX};
use profiler_proto::profilerd as pb;
use profiler_proto::skywalking::{LogData, SegmentCollection, SegmentObject, ThreadSnapshot};
use prost::Message;
use std::sync::Arc;
use std::time::Duration;

use super::service;
use crate::discovery::Traffic;
use crate::embedded::store::{Store, StoreLimits};
use crate::embedded::task::TaskRequest;
use crate::embedded::wire;
use crate::kernel::{KernelTypes, decode_request, decode_sample};
use crate::model::plain::is_plain;
use crate::model::{
    ActiveRequest, Pid, ProcessKey, ProfileTask, RequestEvent, TaskId, TaskSlot, Tid, WallClock,
    Watched,
};
use crate::process::wait_set::{WaitSet, Waits};
use crate::request::{ConnView, Endpoint, RequestTracker, RequestWatch, TrackerLimits};

/// Splits `len u16 | bytes` repeated; what is left over is the last part.
fn parts(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, rest) = data.split_first_chunk()?;
        let len = usize::from(u16::from_le_bytes(*len)).min(rest.len());
        let (part, rest) = rest.split_at(len);
        data = rest;
        Some(part)
    })
}

/// A file of the spool, as a daemon before has left it.
pub fn spool_file(data: &[u8]) {
    let _items = crate::oap::read_spool_file(data);
}

/// The journal of tasks, as a daemon before has left it.
pub fn task_journal(data: &[u8]) {
    let _tasks = crate::state::parse_journal(data);
}

/// The task that the tracker runs, for any endpoint.
fn task() -> ProfileTask {
    ProfileTask {
        task_id: TaskId("t".to_owned()),
        service: service(),
        endpoint: "*".to_owned(),
        duration: Duration::from_secs(60),
        min_duration_threshold_ms: 0,
        dump_period_ms: 10,
        max_sampling_count: 3,
        start_unix_ms: 0,
        create_unix_ms: 0,
    }
}

/// A kernel side that has forgotten every connection.
struct NoConns;

impl ConnView for NoConns {
    fn conn(&self, _: Pid, _: i32) -> Option<Conn> {
        None
    }

    fn is_socket(&self, _: Pid, _: Tid, _: i32, _: u64) -> bool {
        true
    }

    fn waits(&self, _: &ActiveRequest, set: &WaitSet) -> Waits {
        match set {
            WaitSet::Epoll(fd) if fd % 2 == 0 => Waits::ForItself,
            WaitSet::Epoll(_) | WaitSet::Descriptors(_) => Waits::ForOthers,
        }
    }
}

fn key(pid: Pid) -> ProcessKey {
    ProcessKey {
        pid,
        start_ticks: 0,
    }
}

/// Records of the `REQUESTS` ring, one after the other, and what the tracker makes of them.
pub fn request_records(data: &[u8]) {
    let mut tracker = RequestTracker::new(TrackerLimits::default());
    let mut watch = RequestWatch::new(Arc::default());
    let slots = 0..MAX_TASKS;
    for slot in slots.clone().map(TaskSlot) {
        let endpoint = Endpoint::parse("*").expect("matches everything");
        tracker.add_task(slot, task(), endpoint);
    }
    let clock = WallClock::from_readings(0, 1_700_000_000_000_000_000);
    let mut actions = Vec::new();
    for record in parts(data) {
        let Ok(event) = decode_request(record) else {
            continue;
        };
        match event {
            RequestEvent::Start { slot, pid, .. } => {
                tracker.add_target(slot, key(pid), service());
                watch.add(Watched {
                    process: key(pid),
                    service: Arc::new(service()),
                });
            }
            RequestEvent::Fork { parent, child, .. } => {
                tracker.add_child(key(parent), key(child));
            }
            RequestEvent::Exit { pid, .. } => {
                tracker.on_process_gone(key(pid), 0, &mut actions);
                tracker.remove_target(key(pid));
            }
            RequestEvent::CloseRange {
                pid, first, last, ..
            } => tracker.on_close_range(pid, first..=last, 0, &NoConns, &mut actions),
            _ => {}
        }
        watch.on_event(event.clone(), &|_, _| None);
        tracker.on_event(event, clock, &mut actions);
        // As the capture thread does, which carries the actions out.
        actions.clear();
    }
    for now_ktime_ns in [0, 1 << 40, u64::MAX] {
        tracker.on_tick(now_ktime_ns, &NoConns, &mut actions);
        watch.on_tick(now_ktime_ns, &|_, _| None);
    }
    watch.end(u64::MAX, &|_, _| None);
    assert_eq!(watch.open_count(), 0);
    let mut traffic = Traffic::default();
    watch.take_seen().iter().for_each(|seen| traffic.add(seen));
    let counted: u64 = traffic.figures().iter().map(|row| row.requests).sum();
    assert_eq!(counted, traffic.requests());
    for slot in slots.map(TaskSlot) {
        tracker.end_task(slot, u64::MAX, &mut actions);
    }
}

/// A record of the `SAMPLES` ring.
pub fn sample_record(data: &[u8]) {
    let _ = decode_sample(data);
}

/// The kernel's type information.
pub fn kernel_types(data: &[u8]) {
    let Ok(types) = KernelTypes::parse(data) else {
        return;
    };
    for (name, member) in [("task_struct", "pid"), ("a", "x"), ("a", "y"), ("", "")] {
        let _ = types.offset_of(name, member);
        let _ = types.size_of(name);
        let _ = types.has_enumerator(member);
    }
}

/// What agents report to the built-in OAP: segments and snapshots in turn, and the result they give.
pub fn agent_reports(data: &[u8]) {
    const WORKS: &str = "a database in memory takes all that is checked";
    let store = Store::new(StoreLimits::default());
    let request = TaskRequest {
        service: "s".to_owned(),
        endpoint: "/".to_owned(),
        start_ms: 1_700_000_000_000,
        duration_minutes: 1,
        min_duration_threshold_ms: 0,
        dump_period_ms: 10,
        max_sampling_count: 9,
    };
    let now_ms = request.start_ms;
    let task = store
        .create_task(request, now_ms)
        .expect("a task within all limits");
    for (index, message) in parts(data).enumerate() {
        if index % 2 == 0 {
            if let Ok(segment) = SegmentObject::decode(message) {
                store.add_segments([segment]).expect(WORKS);
            }
        } else if let Ok(mut snapshot) = ThreadSnapshot::decode(message) {
            snapshot.task_id.clone_from(&task.id);
            store.add_snapshots([snapshot], now_ms).expect(WORKS);
        }
    }
    for segment in store.segments(&task.id).expect(WORKS) {
        wire::segment_report(wire::segment_to_wire(&segment)).expect("what we say we understand");
    }
}

/// A log of an agent, of which the built-in OAP keeps service and endpoint.
pub fn agent_log(data: &[u8]) {
    const WORKS: &str = "a database in memory takes all that is checked";
    let Ok(log) = LogData::decode(data) else {
        return;
    };
    let store = Store::new(StoreLimits::default());
    store
        .seen_endpoints(vec![(log.service.clone(), log.endpoint)], 0)
        .expect(WORKS);
    for endpoint in store.endpoints(&log.service).expect(WORKS) {
        assert!(is_plain(&endpoint));
    }
}

/// Messages of agents, which are counted before they are decoded: no more parts are decoded than were counted.
pub fn agent_messages(data: &[u8]) {
    let mut left = PARTS_MAX;
    if parts::count::<SegmentCollection>(data, &mut left).is_ok()
        && let Ok(message) = SegmentCollection::decode(data)
    {
        let spans = message.segments.iter().map(|segment| segment.spans.len());
        let decoded = message.segments.len() + spans.sum::<usize>();
        assert!(decoded <= (PARTS_MAX - left) as usize, "{decoded} parts");
    }
    let mut left = PARTS_MAX;
    if parts::count::<ThreadSnapshot>(data, &mut left).is_ok()
        && let Ok(message) = ThreadSnapshot::decode(data)
    {
        let decoded = message.stack.map_or(0, |stack| stack.code_signatures.len());
        assert!(decoded <= (PARTS_MAX - left) as usize, "{decoded} parts");
    }
}

/// What the built-in OAP and its clients say to each other.
pub fn client_segment(data: &[u8]) {
    if let Ok(segment) = pb::Segment::decode(data) {
        let _ = wire::segment_report(segment);
    }
    if let Ok(coverage) = pb::Coverage::decode(data) {
        let _ = wire::coverage_from_wire(&coverage);
    }
    if let Ok(request) = pb::CreateTaskRequest::decode(data) {
        let _ = wire::request_from_wire(request).check();
    }
}
