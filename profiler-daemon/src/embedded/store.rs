//! What the embedded OAP remembers: tasks, instances, segments, snapshots, coverage. In memory.
//!
//! In:  calls of the gRPC services, with the time of the call
//! Out: commands for agents; tasks, logs and results for users
//! Lost: rows over a limit, unusable rows, rows of unknown tasks -> [`StoreLosses`] and a note in
//! the coverage of the task they belong to
//!
//! Everything is bounded by [`StoreLimits`]. Data of the oldest tasks that are over makes room for
//! new data; if there is none, the new data is dropped and counted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use profiler_proto::skywalking::{Command, SegmentObject, ThreadSnapshot};
use tokio::sync::Notify;

use super::snapshots::{Inserted, SnapshotTable};
use super::state::{State, TaskEntry};
use super::task::{LogEntry, Operation, Refusal, TaskRecord, TaskRequest, TaskState};
use super::trace::{ID_MAX_BYTES, SegmentSummary};
use crate::analyze::MAX_DEPTH;
use crate::model::{Coverage, Snapshot};

/// Latest time a snapshot may carry, the end of the year 9999 in epoch milliseconds: beyond it lies
/// a reporter that sends another unit.
const TIME_MAX_MS: i64 = 253_402_300_799_999;

/// Sizes at which the store stops growing.
#[derive(Clone, Copy, Debug)]
pub struct StoreLimits {
    /// Tasks kept.
    pub tasks: usize,
    /// Log entries and instances' coverage kept per task.
    pub logs_per_task: usize,
    /// Service instances kept.
    pub instances: usize,
    /// Segments kept that have no snapshot.
    pub loose_segments: usize,
    /// Memory for snapshots, approximate.
    pub snapshot_bytes: usize,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            tasks: 256,
            logs_per_task: 1024,
            instances: 4096,
            loose_segments: 4096,
            snapshot_bytes: 256 << 20,
        }
    }
}

/// Rows that were not stored, over all tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreLosses {
    /// Snapshots of tasks that are not known here.
    pub unknown_task: u64,
    /// Snapshots without frames, too deep, with an unusable id or time.
    pub bad_snapshots: u64,
    /// Snapshots whose key is taken.
    pub duplicate_snapshots: u64,
    /// Snapshots over the memory limit.
    pub snapshots_over_limit: u64,
    /// Segments that OAP would not show either.
    pub bad_segments: u64,
    /// Log entries, instances and coverage reports over their limits.
    pub other_over_limit: u64,
}

/// A service instance that has reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstanceRecord {
    /// Properties, last report.
    pub properties: BTreeMap<String, String>,
    /// Epoch milliseconds.
    pub last_seen_ms: i64,
}

/// A task with what happened to it.
#[derive(Clone, Debug)]
pub struct TaskView {
    /// The task.
    pub task: TaskRecord,
    /// Where it stands.
    pub state: TaskState,
    /// What instances did, oldest first.
    pub logs: Vec<LogEntry>,
    /// Counts over all instances.
    pub coverage: Coverage,
    /// Segments that can be shown.
    pub segments: usize,
    /// Snapshots stored.
    pub snapshots: u64,
}

/// A profiled segment with its snapshots.
#[derive(Clone, Debug)]
pub struct SegmentData {
    /// The segment.
    pub summary: SegmentSummary,
    /// Its snapshots, by sequence.
    pub snapshots: Vec<Snapshot>,
}

/// Why a text names no task.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// The store has no task at all.
    #[error("there is no task")]
    Empty,
    /// No id begins with the text.
    #[error("no task has the id {0}")]
    Unknown(String),
    /// Several do.
    #[error("{0} is the beginning of several task ids: {1}")]
    Ambiguous(String, String),
}

/// The store. Calls lock it for a moment and never wait for anything else.
#[derive(Debug)]
pub struct Store {
    limits: StoreLimits,
    state: Mutex<State>,
    created: Arc<Notify>,
}

impl Store {
    /// An empty store.
    #[must_use]
    pub fn new(limits: StoreLimits) -> Self {
        Self {
            limits,
            state: Mutex::default(),
            created: Arc::default(),
        }
    }

    /// Notified when a task has been accepted.
    #[must_use]
    pub fn created(&self) -> Arc<Notify> {
        Arc::clone(&self.created)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts a task.
    ///
    /// # Errors
    ///
    /// [`Refusal`] by OAP's rules, or because no room can be made for it.
    pub fn create_task(&self, request: TaskRequest, now_ms: i64) -> Result<TaskRecord, Refusal> {
        let mut state = self.lock();
        let service = request.service.clone();
        let others = state.tasks.iter().map(|entry| &entry.task);
        let others = others.filter(|task| task.request.service == service);
        let task = TaskRecord::create(request, others, now_ms)?;
        if state.tasks.len() >= self.limits.tasks {
            let oldest = state.tasks.iter().position(|entry| entry.is_over(now_ms));
            let oldest = oldest.ok_or(Refusal::Full(self.limits.tasks))?;
            state.clear_snapshots(oldest);
            state.tasks.remove(oldest);
        }
        state.tasks.push(TaskEntry {
            task: task.clone(),
            logs: Vec::new(),
            snapshots: SnapshotTable::default(),
            coverage: BTreeMap::new(),
            notes: Coverage::default(),
            lost: 0,
        });
        self.created.notify_one();
        Ok(task)
    }

    /// Commands for an instance that asks; each is noted in its task's log.
    pub fn commands(
        &self,
        service: &str,
        instance: &str,
        last_command_ms: i64,
        now_ms: i64,
    ) -> Vec<Command> {
        self.seen(service, instance, None, now_ms);
        let mut state = self.lock();
        let State { tasks, losses, .. } = &mut *state;
        let mut commands = Vec::new();
        for entry in tasks {
            if entry.task.request.service == service
                && entry.task.is_deliverable(last_command_ms, now_ms)
            {
                commands.push(entry.task.to_command());
                let limit = self.limits.logs_per_task;
                entry.log(instance, Operation::Notified, now_ms, limit, losses);
            }
        }
        commands
    }

    /// Notes that an instance has finished a task.
    pub fn finished(&self, task_id: &str, instance: &str, now_ms: i64) {
        let mut state = self.lock();
        let State { tasks, losses, .. } = &mut *state;
        if let Some(entry) = tasks.iter_mut().find(|entry| entry.task.id == task_id) {
            let limit = self.limits.logs_per_task;
            entry.log(instance, Operation::Finished, now_ms, limit, losses);
        }
    }

    /// Notes that an instance lives, and its properties if it sent them.
    pub fn seen(
        &self,
        service: &str,
        instance: &str,
        properties: Option<BTreeMap<String, String>>,
        now_ms: i64,
    ) {
        let mut state = self.lock();
        let key = (service.to_owned(), instance.to_owned());
        if !state.instances.contains_key(&key) && state.instances.len() >= self.limits.instances {
            state.losses.other_over_limit += 1;
            return;
        }
        let record = state.instances.entry(key).or_default();
        record.last_seen_ms = now_ms;
        if let Some(properties) = properties {
            record.properties = properties;
        }
    }

    /// Stores a segment. Of two with one id the first stays.
    pub fn add_segment(&self, object: SegmentObject) {
        let mut state = self.lock();
        let Ok(summary) = SegmentSummary::try_from_object(object) else {
            state.losses.bad_segments += 1;
            return;
        };
        let id = summary.segment_id.clone();
        if let Some(pinned) = state.pinned.get_mut(&id) {
            pinned.summary.get_or_insert(summary);
            return;
        }
        if state.loose.contains_key(&id) {
            return;
        }
        if state.loose_order.len() >= self.limits.loose_segments
            && let Some(oldest) = state.loose_order.pop_front()
        {
            state.loose.remove(&oldest);
        }
        state.loose_order.push_back(id.clone());
        state.loose.insert(id, summary);
    }

    /// Stores a snapshot.
    pub fn add_snapshot(&self, snapshot: ThreadSnapshot, now_ms: i64) {
        let mut state = self.lock();
        let Some(index) = state.find(&snapshot.task_id) else {
            state.losses.unknown_task += 1;
            return;
        };
        let stack = snapshot.stack.unwrap_or_default().code_signatures;
        if stack.is_empty()
            || stack.len() > MAX_DEPTH
            || snapshot.trace_segment_id.is_empty()
            || snapshot.trace_segment_id.len() > ID_MAX_BYTES
            || !(0..=TIME_MAX_MS).contains(&snapshot.time)
        {
            state.losses.bad_snapshots += 1;
            state.tasks[index].lose("unusable snapshots were dropped: no frames, bad id or time");
            return;
        }
        if !state.make_room(index, self.limits.snapshot_bytes, now_ms) {
            state.losses.snapshots_over_limit += 1;
            state.tasks[index].lose("snapshots over the memory limit were dropped");
            return;
        }
        let id = &snapshot.trace_segment_id;
        let table = &mut state.tasks[index].snapshots;
        match table.insert(id, snapshot.sequence, snapshot.time, stack) {
            Inserted::FirstOfSegment => state.pin(id),
            Inserted::Stored => {}
            Inserted::Duplicate => state.losses.duplicate_snapshots += 1,
        }
    }

    /// Replaces what an instance reported about a task.
    pub fn set_coverage(
        &self,
        task_id: &str,
        instance: &str,
        coverage: Coverage,
    ) -> Result<(), FindError> {
        let mut state = self.lock();
        let index = state.find(task_id);
        let index = index.ok_or_else(|| FindError::Unknown(task_id.to_owned()))?;
        let reports = &mut state.tasks[index].coverage;
        if !reports.contains_key(instance) && reports.len() >= self.limits.logs_per_task {
            state.losses.other_over_limit += 1;
            return Ok(());
        }
        reports.insert(instance.to_owned(), coverage);
        Ok(())
    }

    /// All instances that have reported.
    #[must_use]
    pub fn instances(&self) -> Vec<((String, String), InstanceRecord)> {
        let state = self.lock();
        let cloned = state.instances.iter().map(|(k, v)| (k.clone(), v.clone()));
        cloned.collect()
    }

    /// All tasks, newest first.
    #[must_use]
    pub fn tasks(&self, now_ms: i64) -> Vec<(TaskRecord, TaskState)> {
        let state = self.lock();
        let newest = state.tasks.iter().rev();
        newest
            .map(|entry| (entry.task.clone(), entry.task.state(&entry.logs, now_ms)))
            .collect()
    }

    /// The task with this id or with the only id that begins so; for an empty text the newest.
    ///
    /// # Errors
    ///
    /// [`FindError`] if no task or more than one fits.
    pub fn find_task(&self, text: &str, now_ms: i64) -> Result<TaskView, FindError> {
        let state = self.lock();
        let index = state.find_by_prefix(text)?;
        Ok(state.view(index, now_ms))
    }

    /// The segments of a task that can be shown, oldest first.
    #[must_use]
    pub fn segments(&self, task_id: &str) -> Vec<SegmentData> {
        let state = self.lock();
        let Some(entry) = state.find(task_id).map(|index| &state.tasks[index]) else {
            return Vec::new();
        };
        let mut segments: Vec<SegmentData> = state
            .listed(entry)
            .map(|summary| SegmentData {
                summary: summary.clone(),
                snapshots: entry.snapshots.snapshots(&summary.segment_id),
            })
            .collect();
        segments.sort_by(|a, b| {
            let key = |data: &SegmentData| (data.summary.start_ms, data.summary.segment_id.clone());
            key(a).cmp(&key(b))
        });
        segments
    }

    /// What was not stored.
    #[must_use]
    pub fn losses(&self) -> StoreLosses {
        self.lock().losses
    }
}

#[cfg(test)]
mod tests {
    use profiler_proto::skywalking::{SpanObject, ThreadStack};

    use super::*;
    use crate::model::Counter;

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
        let segments = store.segments(&task.id).into_iter();
        segments.map(|data| data.summary.segment_id).collect()
    }

    /// Check that a segment is shown once it has both its segment and its sequence 0, in any order.
    #[test]
    fn a_segment_needs_its_object_and_sequence_zero() {
        let store = Store::new(StoreLimits::default());
        let task = store.create_task(request("svc"), NOW).unwrap();
        store.add_segment(segment("late", 200));
        store.add_snapshot(snapshot(&task, "late", 1, "main"), NOW);
        store.add_snapshot(snapshot(&task, "early", 0, "main"), NOW);
        assert!(shown(&store, &task).is_empty());
        store.add_snapshot(snapshot(&task, "late", 0, "main"), NOW);
        assert_eq!(shown(&store, &task), ["late"]);
        store.add_segment(segment("early", 100));
        assert_eq!(shown(&store, &task), ["early", "late"]);
        let view = store.find_task("", NOW).unwrap();
        assert_eq!((view.segments, view.snapshots), (2, 3));
        assert!(view.coverage.notes.is_empty());
    }

    /// Check that bad, unknown and repeated rows are dropped, counted and noted.
    #[test]
    fn unusable_rows_are_counted() {
        let store = Store::new(StoreLimits::default());
        let task = store.create_task(request("svc"), NOW).unwrap();
        store.add_snapshot(snapshot(&task, "s", 0, "main"), NOW);
        store.add_snapshot(snapshot(&task, "s", 0, "other"), NOW);
        store.add_snapshot(snapshot(&task, "s", 1, ""), NOW);
        let mut microseconds = snapshot(&task, "s", 2, "main");
        microseconds.time *= 1000;
        store.add_snapshot(microseconds, NOW);
        let mut stray = snapshot(&task, "s", 3, "main");
        stray.task_id = "unknown".to_owned();
        store.add_snapshot(stray, NOW);
        store.add_segment(SegmentObject::default());
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
        let notes = view.coverage.notes.join("; ");
        assert!(notes.contains("2 snapshots were not stored"), "{notes}");
    }

    /// Check that commands are delivered by lastCommandTime and logged for the instance.
    #[test]
    fn commands_are_delivered_and_logged() {
        let store = Store::new(StoreLimits::default());
        let task = store.create_task(request("svc"), NOW).unwrap();
        assert!(store.commands("other", "one", -1, NOW).is_empty());
        assert_eq!(store.commands("svc", "one", -1, NOW).len(), 1);
        assert!(store.commands("svc", "one", task.create_ms, NOW).is_empty());
        store.finished(&task.id, "one", NOW + 5);
        store.finished("unknown", "one", NOW + 5);
        let view = store.find_task(&task.id, NOW + 5).unwrap();
        assert_eq!(view.state, TaskState::Finished);
        let operations: Vec<_> = view.logs.iter().map(|entry| entry.operation).collect();
        assert_eq!(operations, [Operation::Notified, Operation::Finished]);
        assert_eq!(store.instances().len(), 2);
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
            snapshot_bytes: 4000,
            ..StoreLimits::default()
        });
        let old = store.create_task(request("old"), NOW).unwrap();
        let new = store.create_task(request("new"), NOW).unwrap();
        for sequence in 0..10 {
            store.add_segment(segment("o", 100));
            store.add_snapshot(snapshot(&old, "o", sequence, &format!("f{sequence}")), NOW);
        }
        for sequence in 0..100 {
            store.add_snapshot(snapshot(&new, "n", sequence, &format!("f{sequence}")), NOW);
        }
        assert!(store.losses().snapshots_over_limit > 0);
        let rows = |task: &TaskRecord, now| store.find_task(&task.id, now).unwrap().snapshots;
        assert_eq!(rows(&old, NOW), 10);
        let before = rows(&new, NOW);
        let later = NOW + 600_000;
        store.add_snapshot(snapshot(&new, "n", 200, "f"), later);
        assert_eq!((rows(&old, later), rows(&new, later)), (0, before + 1));
        let notes = store.find_task(&old.id, later).unwrap().coverage.notes;
        assert!(notes[0].contains("make room"), "{notes:?}");
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
            store.commands("a", &format!("i{i}"), -1, NOW);
            store.add_segment(segment(&format!("s{i}"), 100));
        }
        assert_eq!(store.find_task(&first.id, NOW).unwrap().logs.len(), 3);
        assert_eq!(store.instances().len(), 2);
        assert_eq!(store.lock().loose.len(), 2);
        store.create_task(request("c"), NOW + 600_000).unwrap();
        assert_eq!(store.tasks(NOW).len(), 2);
        assert!(store.find_task(&first.id, NOW).is_err());
    }
}
