//! The tables behind [`super::store`], without lock and limits of their own.
//!
//! Segments are kept for as long as a task has snapshots of them (`pinned`); others (agents report
//! every request) only for a while (`loose`), because a segment may arrive before its snapshots.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::snapshots::SnapshotTable;
use super::store::{FindError, InstanceRecord, StoreLosses, TaskView};
use super::task::{LogEntry, Operation, TaskRecord};
use super::trace::SegmentSummary;
use crate::model::Coverage;

/// A task and all that was reported for it.
#[derive(Debug)]
pub(super) struct TaskEntry {
    pub(super) task: TaskRecord,
    pub(super) logs: Vec<LogEntry>,
    pub(super) snapshots: SnapshotTable,
    pub(super) coverage: BTreeMap<String, Coverage>,
    /// Sentences about losses in this store.
    pub(super) notes: Coverage,
    pub(super) lost: u64,
}

/// A segment that tasks have snapshots of.
#[derive(Debug, Default)]
pub(super) struct PinnedSegment {
    pub(super) tasks: usize,
    pub(super) summary: Option<SegmentSummary>,
}

/// Everything the store knows.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Oldest first.
    pub(super) tasks: Vec<TaskEntry>,
    pub(super) instances: BTreeMap<(String, String), InstanceRecord>,
    pub(super) pinned: HashMap<String, PinnedSegment>,
    pub(super) loose: HashMap<String, SegmentSummary>,
    /// Ids of `loose`, oldest first; may name segments that were pinned since.
    pub(super) loose_order: VecDeque<String>,
    pub(super) losses: StoreLosses,
}

impl TaskEntry {
    pub(super) fn is_over(&self, now_ms: i64) -> bool {
        self.task.state(&self.logs, now_ms).is_over()
    }

    pub(super) fn log(
        &mut self,
        instance: &str,
        operation: Operation,
        time_ms: i64,
        limit: usize,
        losses: &mut StoreLosses,
    ) {
        if self.logs.len() >= limit {
            losses.other_over_limit += 1;
            return;
        }
        self.logs.push(LogEntry {
            instance: instance.to_owned(),
            operation,
            time_ms,
        });
    }

    pub(super) fn lose(&mut self, note: &str) {
        self.lost += 1;
        self.notes.note(note);
    }
}

impl State {
    pub(super) fn find(&self, task_id: &str) -> Option<usize> {
        self.tasks
            .iter()
            .rposition(|entry| entry.task.id == task_id)
    }

    pub(super) fn find_by_prefix(&self, text: &str) -> Result<usize, FindError> {
        if text.is_empty() {
            return self.tasks.len().checked_sub(1).ok_or(FindError::Empty);
        }
        if let Some(index) = self.find(text) {
            return Ok(index);
        }
        let fitting: Vec<usize> = (0..self.tasks.len())
            .filter(|&index| self.tasks[index].task.id.starts_with(text))
            .collect();
        match fitting[..] {
            [] => Err(FindError::Unknown(text.to_owned())),
            [index] => Ok(index),
            _ => {
                let ids = fitting
                    .iter()
                    .map(|&index| self.tasks[index].task.id.as_str());
                let ids: Vec<&str> = ids.take(5).collect();
                Err(FindError::Ambiguous(text.to_owned(), ids.join(", ")))
            }
        }
    }

    /// Segments of a task that have both their segment and their sequence 0.
    pub(super) fn listed<'a>(
        &'a self,
        entry: &'a TaskEntry,
    ) -> impl Iterator<Item = &'a SegmentSummary> {
        entry.snapshots.segment_ids().filter_map(|id| {
            let summary = self.pinned.get(id)?.summary.as_ref()?;
            entry.snapshots.is_listed(id).then_some(summary)
        })
    }

    pub(super) fn view(&self, index: usize, now_ms: i64) -> TaskView {
        let entry = &self.tasks[index];
        let mut coverage = Coverage::default();
        for report in entry.coverage.values() {
            coverage.merge(report);
        }
        coverage.merge(&entry.notes);
        let segments = self.listed(entry).count();
        let hidden = entry.snapshots.segment_ids().count() - segments;
        if hidden > 0 {
            coverage.note(format!(
                "{hidden} segments are not shown: their trace segment or their snapshot 0 has not \
                 arrived"
            ));
        }
        if entry.lost > 0 {
            coverage.note(format!("{} snapshots were not stored", entry.lost));
        }
        TaskView {
            task: entry.task.clone(),
            state: entry.task.state(&entry.logs, now_ms),
            logs: entry.logs.clone(),
            coverage,
            segments,
            snapshots: entry.snapshots.rows(),
        }
    }

    /// Keeps a segment's summary because a task has a snapshot of it.
    pub(super) fn pin(&mut self, segment_id: &str) {
        let loose = self.loose.remove(segment_id);
        let pinned = self.pinned.entry(segment_id.to_owned()).or_default();
        pinned.tasks += 1;
        if let Some(summary) = loose {
            pinned.summary.get_or_insert(summary);
        }
    }

    /// Drops the snapshots of a task, and segments no other task has snapshots of.
    pub(super) fn clear_snapshots(&mut self, index: usize) {
        let table = std::mem::take(&mut self.tasks[index].snapshots);
        for id in table.segment_ids() {
            if let Some(pinned) = self.pinned.get_mut(id) {
                pinned.tasks -= 1;
                if pinned.tasks == 0 {
                    self.pinned.remove(id);
                }
            }
        }
    }

    /// Makes sure that a snapshot of task `index` may be added; false if no room can be made.
    pub(super) fn make_room(&mut self, index: usize, limit_bytes: usize, now_ms: i64) -> bool {
        loop {
            let bytes: usize = self.tasks.iter().map(|e| e.snapshots.bytes()).sum();
            if bytes < limit_bytes {
                return true;
            }
            let oldest = (0..self.tasks.len()).find(|&other| {
                let entry = &self.tasks[other];
                other != index && entry.snapshots.rows() > 0 && entry.is_over(now_ms)
            });
            let Some(oldest) = oldest else {
                return false;
            };
            self.clear_snapshots(oldest);
            let notes = &mut self.tasks[oldest].notes;
            notes.note("the snapshots were dropped to make room for newer ones");
        }
    }
}
