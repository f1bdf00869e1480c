//! Tests of [`super::store`].

use std::time::Duration;

use profiler_proto::skywalking::{SegmentObject, SpanObject, ThreadSnapshot, ThreadStack};

use super::storage::database::DataDir;
use super::store::{FindError, Store, StoreLimits, StoreLosses};
use super::task::{Operation, Refusal, TaskRecord, TaskRequest, TaskState};
use crate::model::{Counter, Coverage};

const NOW: i64 = 1_795_405_209_971;

fn request(service: &str) -> TaskRequest {
    TaskRequest {
        service: service.to_owned(),
        endpoint: "/".to_owned(),
        start_ms: 0,
        duration_minutes: 1,
        min_duration_threshold_ms: 0,
        dump_period_ms: 10,
        max_sampling_count: 5,
    }
}

fn segment(id: &str, start_time: i64) -> SegmentObject {
    SegmentObject {
        trace_id: format!("trace-{id}"),
        trace_segment_id: id.to_owned(),
        spans: vec![SpanObject {
            start_time,
            end_time: start_time + 100,
            operation_name: "/".to_owned(),
            ..SpanObject::default()
        }],
        service: "svc".to_owned(),
        service_instance: "one".to_owned(),
        is_size_limited: false,
    }
}

fn snapshot(task: &TaskRecord, segment: &str, sequence: i32, stack: &str) -> ThreadSnapshot {
    let frames = stack.split('>').filter(|frame| !frame.is_empty());
    ThreadSnapshot {
        task_id: task.id.clone(),
        trace_segment_id: segment.to_owned(),
        time: NOW + i64::from(sequence) * 10,
        sequence,
        stack: Some(ThreadStack {
            code_signatures: frames.map(str::to_owned).collect(),
        }),
    }
}

fn shown(store: &Store, task: &TaskRecord) -> Vec<String> {
    let segments = store.segments(&task.id).unwrap().into_iter();
    segments.map(|data| data.summary.segment_id).collect()
}

/// Check that a segment is shown once it has both its segment and its sequence 0, in any order.
#[test]
fn a_segment_needs_its_object_and_sequence_zero() {
    let store = Store::new(StoreLimits::default());
    let task = store.create_task(request("svc"), NOW).unwrap();
    store.add_segments([segment("late", 200)]).unwrap();
    store
        .add_snapshots([snapshot(&task, "late", 1, "main")], NOW)
        .unwrap();
    store
        .add_snapshots([snapshot(&task, "early", 0, "main")], NOW)
        .unwrap();
    assert!(shown(&store, &task).is_empty());
    store
        .add_snapshots([snapshot(&task, "late", 0, "main")], NOW)
        .unwrap();
    assert_eq!(shown(&store, &task), ["late"]);
    store.add_segments([segment("early", 100)]).unwrap();
    assert_eq!(shown(&store, &task), ["early", "late"]);
    let view = store.find_task("", NOW).unwrap();
    assert_eq!((view.segments, view.snapshots), (2, 3));
    assert_eq!(view.coverage.notes().count(), 0);
}

/// Check that bad, unknown and repeated rows are dropped, counted and noted.
#[test]
fn unusable_rows_are_counted() {
    let store = Store::new(StoreLimits::default());
    let task = store.create_task(request("svc"), NOW).unwrap();
    store
        .add_snapshots([snapshot(&task, "s", 0, "main")], NOW)
        .unwrap();
    store
        .add_snapshots([snapshot(&task, "s", 0, "other")], NOW)
        .unwrap();
    store
        .add_snapshots([snapshot(&task, "s", 1, "")], NOW)
        .unwrap();
    let mut microseconds = snapshot(&task, "s", 2, "main");
    microseconds.time *= 1000;
    store.add_snapshots([microseconds], NOW).unwrap();
    let mut stray = snapshot(&task, "s", 3, "main");
    stray.task_id = "unknown".to_owned();
    store.add_snapshots([stray], NOW).unwrap();
    store.add_segments([SegmentObject::default()]).unwrap();
    assert_eq!(
        store.losses(),
        StoreLosses {
            unknown_task: 1,
            bad_snapshots: 2,
            duplicate_snapshots: 1,
            bad_segments: 1,
            ..StoreLosses::default()
        }
    );
    let view = store.find_task(&task.id, NOW).unwrap();
    assert_eq!(view.snapshots, 1);
    let notes = view.coverage.to_report().notes.join("; ");
    assert!(notes.contains("2 snapshots were not stored"), "{notes}");
}

/// Check that commands are delivered by lastCommandTime and logged for the instance, and that a task which its
/// instances have finished makes room for another.
#[test]
fn commands_are_delivered_and_logged() {
    let store = Store::new(StoreLimits::default());
    let task = store.create_task(request("svc"), NOW).unwrap();
    assert!(store.commands("other", "one", -1, NOW).unwrap().is_empty());
    assert_eq!(store.commands("svc", "one", -1, NOW).unwrap().len(), 1);
    assert!(
        store
            .commands("svc", "one", task.create_ms, NOW)
            .unwrap()
            .is_empty()
    );
    store.finished(&task.id, "one", NOW + 5).unwrap();
    store.finished("unknown", "one", NOW + 5).unwrap();
    let view = store.find_task(&task.id, NOW + 5).unwrap();
    assert_eq!(view.state, TaskState::Finished);
    let operations: Vec<_> = view.logs.iter().map(|entry| entry.operation).collect();
    assert_eq!(operations, [Operation::Notified, Operation::Finished]);
    assert_eq!(store.instances().unwrap().len(), 2);
    let next = store.create_task(request("svc"), NOW + 5).unwrap();
    let busy = store.create_task(request("svc"), NOW + 5);
    assert_eq!(busy, Err(Refusal::Busy), "{}", next.id);
}

/// Check that a cancelled task is over at once, is handed to nobody any more and makes room for another, that who runs it
/// hears of it, and that neither a task that is over nor an unknown one can be cancelled.
#[test]
fn a_task_is_cancelled_once() {
    let store = Store::new(StoreLimits::default());
    let task = store.create_task(request("svc"), NOW).unwrap();
    store.commands("svc", "one", -1, NOW).unwrap();
    let report = |store: &Store| store.set_coverage(&task.id, "one", Coverage::default());
    assert_eq!(report(&store), Ok(false));
    let cancelled = store.cancel_task(&task.id[..20], NOW + 1).unwrap();
    assert_eq!(
        (cancelled.id.as_str(), cancelled.cancelled_ms),
        (&*task.id, Some(NOW + 1))
    );
    let view = store.find_task(&task.id, NOW + 1).unwrap();
    assert_eq!((view.state, view.task), (TaskState::Cancelled, cancelled));
    assert!(
        store
            .commands("svc", "two", -1, NOW + 1)
            .unwrap()
            .is_empty()
    );
    assert_eq!(report(&store), Ok(true));
    for (id, text) in [
        (task.id.as_str(), "is over already"),
        ("unknown", "unknown"),
        ("", ""),
    ] {
        let error = store.cancel_task(id, NOW + 2).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    store.finished(&task.id, "one", NOW + 5).unwrap();
    let view = store.find_task(&task.id, NOW + 5).unwrap();
    assert_eq!(view.state, TaskState::Cancelled);
    store.create_task(request("svc"), NOW + 6).unwrap();
}

/// Check that coverage of instances adds up and that a later report replaces the earlier one.
#[test]
fn coverage_of_instances_adds_up() {
    let store = Store::new(StoreLimits::default());
    let task = store.create_task(request("svc"), NOW).unwrap();
    let seen = |n| {
        let mut coverage = Coverage::default();
        coverage.add(Counter::RequestsSeen, n);
        coverage
    };
    store.set_coverage(&task.id, "one", seen(3)).unwrap();
    store.set_coverage(&task.id, "two", seen(4)).unwrap();
    store.set_coverage(&task.id, "one", seen(5)).unwrap();
    let view = store.find_task(&task.id, NOW).unwrap();
    assert_eq!(view.coverage.get(Counter::RequestsSeen), 9);
    assert!(store.set_coverage("unknown", "one", seen(1)).is_err());
}

/// Check that a task is found by id, by unique beginning, or as the newest.
#[test]
fn a_task_is_found_by_its_beginning() {
    let store = Store::new(StoreLimits::default());
    assert_eq!(store.find_task("", NOW).unwrap_err(), FindError::Empty);
    let one = store.create_task(request("one"), NOW).unwrap();
    let two = store.create_task(request("two"), NOW + 1).unwrap();
    let found = |text: &str| store.find_task(text, NOW).map(|view| view.task.id);
    assert_eq!(found(""), Ok(two.id.clone()));
    assert_eq!(found(&one.id), Ok(one.id.clone()));
    assert_eq!(found("1795405209972"), Ok(two.id));
    assert!(matches!(found("1795"), Err(FindError::Ambiguous(..))));
    assert!(matches!(found("x"), Err(FindError::Unknown(_))));
}

/// Check that data of a task that is over makes room, and that without one new rows are dropped.
#[test]
fn old_results_make_room_for_new_ones() {
    let store = Store::new(StoreLimits {
        bytes: 400 << 10,
        ..StoreLimits::default()
    });
    let old = store.create_task(request("old"), NOW).unwrap();
    let new = store.create_task(request("new"), NOW).unwrap();
    let add = |task: &TaskRecord, segment: &str, count, now_ms| {
        let rows = (0..count).map(|i| snapshot(task, segment, i, &format!("f{i:0>500}")));
        store.add_snapshots(rows, now_ms).unwrap();
    };
    store.add_segments([segment("o", 100)]).unwrap();
    add(&old, "o", 50, NOW);
    add(&new, "n", 1000, NOW);
    let lost = store.losses().snapshots_over_limit;
    assert!(lost > 0);
    let rows = |task: &TaskRecord, now| store.find_task(&task.id, now).unwrap().snapshots;
    assert_eq!((rows(&old, NOW), rows(&new, NOW)), (50, 1000 - lost));
    let view = store.find_task(&new.id, NOW).unwrap();
    let notes = view.coverage.to_report().notes;
    assert!(
        notes.contains(&format!("{lost} snapshots were not stored")),
        "{notes:?}"
    );

    let later = NOW + 600_000;
    add(&new, "later", 10, later);
    assert_eq!((rows(&old, later), rows(&new, later)), (0, 1010 - lost));
    let view = store.find_task(&old.id, later).unwrap();
    let notes = view.coverage.to_report().notes;
    assert!(notes[0].contains("make room"), "{notes:?}");
    assert_eq!(store.losses().snapshots_over_limit, lost);
}

/// Check that tasks, logs, instances and loose segments stop growing.
#[test]
fn every_table_is_bounded() {
    let store = Store::new(StoreLimits {
        tasks: 2,
        logs_per_task: 3,
        instances: 2,
        loose_segments: 2,
        ..StoreLimits::default()
    });
    let first = store.create_task(request("a"), NOW).unwrap();
    store.create_task(request("b"), NOW).unwrap();
    assert_eq!(store.create_task(request("c"), NOW), Err(Refusal::Full(2)));
    for i in 0..10 {
        store.commands("a", &format!("i{i}"), -1, NOW).unwrap();
        store
            .add_segments([segment(&format!("s{i}"), 100)])
            .unwrap();
    }
    assert_eq!(store.find_task(&first.id, NOW).unwrap().logs.len(), 3);
    assert_eq!(store.instances().unwrap().len(), 2);
    store.create_task(request("c"), NOW + 600_000).unwrap();
    assert_eq!(store.tasks(NOW).unwrap().len(), 2);
    assert!(store.find_task(&first.id, NOW).is_err());
}

/// Check that segments of no task make room for later ones, and those of a task do not.
#[test]
fn loose_segments_are_bounded() {
    let store = Store::new(StoreLimits {
        loose_segments: 2,
        ..StoreLimits::default()
    });
    let task = store.create_task(request("svc"), NOW).unwrap();
    let segments = (0..5).map(|i| segment(&format!("s{i}"), 100));
    store.add_segments(segments).unwrap();
    for i in 0..5 {
        let row = snapshot(&task, &format!("s{i}"), 0, "main");
        store.add_snapshots([row], NOW).unwrap();
    }
    assert_eq!(shown(&store, &task), ["s3", "s4"]);
    store
        .add_segments((5..9).map(|i| segment(&format!("s{i}"), 100)))
        .unwrap();
    assert_eq!(shown(&store, &task), ["s3", "s4"]);
}

/// Check that everything is there after a restart, and goes on.
#[test]
fn everything_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let place = DataDir::from(dir.path());
    let open = || Store::open(&place, StoreLimits::default()).unwrap();
    let store = open();
    let task = store.create_task(request("svc"), NOW).unwrap();
    store.commands("svc", "one", -1, NOW).unwrap();
    let properties = [("language".to_owned(), "python".to_owned())].into();
    store.seen("svc", "one", Some(properties), NOW).unwrap();
    store
        .add_segments([segment("s", 100), segment("later", 200)])
        .unwrap();
    let rows = (0..3).map(|i| snapshot(&task, "s", i, "main>leaf"));
    store.add_snapshots(rows, NOW).unwrap();
    store
        .add_snapshots([snapshot(&task, "s", 3, "")], NOW)
        .unwrap();
    let mut coverage = Coverage::default();
    coverage.add(Counter::RequestsSeen, 7);
    coverage.note("a note");
    store.set_coverage(&task.id, "one", coverage).unwrap();
    let seen = |store: &Store| {
        let view = store.find_task("", NOW).unwrap();
        let data = store.segments(&task.id).unwrap();
        format!("{view:?} {data:?} {:?}", store.instances().unwrap())
    };
    let before = seen(&store);
    for expected in ["leaf", "python", "a note", "1 snapshots were not stored"] {
        assert!(before.contains(expected), "{before}");
    }
    drop(store);

    let store = open();
    assert_eq!(seen(&store), before);
    // The task is still in its window; its service has one at a time; its segments are known.
    assert_eq!(
        store.commands("svc", "one", -1, NOW + 1000).unwrap().len(),
        1
    );
    let again = store.create_task(request("svc"), NOW + 1000);
    assert_eq!(again, Err(Refusal::Busy));
    let late = [
        snapshot(&task, "s", 0, "main"),
        snapshot(&task, "later", 0, "main"),
    ];
    store.add_snapshots(late, NOW).unwrap();
    assert_eq!(store.losses().duplicate_snapshots, 1);
    assert_eq!(shown(&store, &task), ["s", "later"]);
}

/// Check that what is older than the retention goes, with its results, and nothing else does.
#[test]
fn old_tasks_are_removed() {
    let day_ms = 86_400_000;
    let dir = tempfile::tempdir().unwrap();
    let limits = StoreLimits {
        retention: Duration::from_hours(24),
        ..StoreLimits::default()
    };
    let store = Store::open(&DataDir::from(dir.path()), limits).unwrap();
    let old = store.create_task(request("old"), NOW).unwrap();
    let rows = (0..2000).map(|i| snapshot(&old, "o", i, &format!("f{i:0>500}")));
    store.add_snapshots(rows, NOW).unwrap();
    store
        .add_segments([segment("o", NOW), segment("loose", NOW)])
        .unwrap();
    store.seen("old", "one", None, NOW).unwrap();
    let new = store.create_task(request("new"), NOW + day_ms).unwrap();
    store
        .add_snapshots([snapshot(&new, "n", 0, "main")], NOW)
        .unwrap();
    store.seen("new", "one", None, NOW + day_ms).unwrap();

    store.sweep(old.end_ms() + day_ms).unwrap();
    assert_eq!(store.tasks(NOW).unwrap().len(), 2);
    let length = || dir.path().join("profilerd.db").metadata().unwrap().len();
    store.sweep(old.end_ms() + day_ms + 1).unwrap();
    let tasks = store.tasks(NOW).unwrap();
    assert_eq!(tasks.len(), 1);
    assert_eq!(tasks[0].0, new);
    assert_eq!(store.instances().unwrap().len(), 1);
    assert_eq!(store.find_task(&new.id, NOW).unwrap().snapshots, 1);
    drop(store);
    assert!(length() < 500_000, "{} bytes are left", length());
}

/// Check that a sweep brings a store under its limit when that has become smaller.
#[test]
fn a_smaller_limit_is_reached() {
    let dir = tempfile::tempdir().unwrap();
    let open = |bytes| {
        let limits = StoreLimits {
            bytes,
            ..StoreLimits::default()
        };
        Store::open(&DataDir::from(dir.path()), limits).unwrap()
    };
    let store = open(1 << 30);
    for service in ["a", "b", "c"] {
        let task = store.create_task(request(service), NOW).unwrap();
        let rows = (0..1000).map(|i| snapshot(&task, "s", i, &format!("f{i:0>500}")));
        store.add_snapshots(rows, NOW).unwrap();
    }
    drop(store);
    let store = open(2 << 20);
    store.sweep(NOW + 600_000).unwrap();
    let tasks = store.tasks(NOW).unwrap().into_iter();
    let rows = tasks.map(|(task, _)| store.find_task(&task.id, NOW).unwrap().snapshots);
    assert_eq!(rows.collect::<Vec<_>>(), [1000, 0, 0]);
}

/// Check that an endpoint that stands in no request line is refused with what to write, unless an agent of the service
/// may know it.
#[test]
fn an_endpoint_that_cannot_be_found_is_refused() {
    let store = Store::new(StoreLimits::default());
    let rpc = || TaskRequest {
        endpoint: "com.shop.Orders.get".to_owned(),
        ..request("svc")
    };
    let properties = |key: &str| Some([(key.to_owned(), "1".to_owned())].into());
    let own = properties(crate::process::VERSION_PROPERTY);
    store.seen("svc", "one", own, NOW).unwrap();
    store.seen("svc", "two", None, NOW).unwrap();
    store
        .seen("other", "one", properties("language"), NOW)
        .unwrap();
    let refused = store.create_task(rpc(), NOW).unwrap_err().to_string();
    assert!(refused.contains("has no path"), "{refused}");
    assert!(store.tasks(NOW).unwrap().is_empty());
    store
        .seen("svc", "three", properties("language"), NOW)
        .unwrap();
    store.create_task(rpc(), NOW).unwrap();
}
