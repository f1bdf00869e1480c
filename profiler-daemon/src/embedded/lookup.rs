//! What the query side reads from the [`Store`].
//!
//! In:  ids and names from queries
//! Out: tasks, segments and snapshots that fit; what is not there is an empty list, as in OAP

use super::storage::{StorageError, segments, snapshots, tasks};
use super::store::Store;
use super::task::{LogEntry, TaskRecord};
use super::trace::SegmentSummary;
use crate::model::Snapshot;

impl Store {
    /// All tasks with their logs, newest first.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn logged_tasks(&self) -> Result<Vec<(TaskRecord, Vec<LogEntry>)>, StorageError> {
        self.read(|db| {
            let newest = tasks::all(db)?.into_iter().rev();
            let logged = newest.map(|row| Ok((row.task, tasks::logs(db, row.key)?)));
            logged.collect()
        })
    }

    /// The segments of a task that can be shown, oldest first, without their snapshots.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn listed_segments(&self, task_id: &str) -> Result<Vec<SegmentSummary>, StorageError> {
        self.read(|db| {
            let Some(row) = tasks::find(db, task_id)? else {
                return Ok(Vec::new());
            };
            let listed = segments::listed(db, row.key)?.into_iter();
            Ok(listed.map(|(_, summary)| summary).collect())
        })
    }

    /// The snapshots of a segment, of whichever task.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn snapshots_of(&self, segment_id: &str) -> Result<Vec<Snapshot>, StorageError> {
        self.read(|db| {
            let mut all = Vec::new();
            for key in segments::keys(db, segment_id)? {
                all.extend(snapshots::of_segment(db, key)?);
            }
            Ok(all)
        })
    }

    /// Endpoints of a service by name: those that tasks were created for, and those of profiled requests.
    ///
    /// # Errors
    ///
    /// [`StorageError`], as for all calls.
    pub fn endpoints(&self, service: &str) -> Result<Vec<String>, StorageError> {
        self.read(|db| segments::endpoints(db, service))
    }
}
