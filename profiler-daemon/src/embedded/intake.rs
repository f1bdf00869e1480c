//! Snapshots on their way into the store: checked, given room, stored.
//!
//! In:  `ThreadSnapshot`s of any tasks, in one transaction
//! Out: rows of [`super::storage::snapshots`]
//! Lost: unknown task, unusable, repeated, no room -> [`StoreLosses`], and a note in the task's
//! coverage where there is a task

use std::collections::HashMap;

use profiler_proto::skywalking::ThreadSnapshot;
use rusqlite::{Connection, Result};

use super::storage::snapshots::Writer;
use super::storage::{retention, tasks};
use super::store::StoreLosses;
use super::trace::ID_MAX_BYTES;
use crate::analyze::MAX_DEPTH;

/// Latest time a snapshot may carry, the end of the year 9999 in epoch milliseconds: beyond it lies
/// a reporter that sends another unit.
const TIME_MAX_MS: i64 = 253_402_300_799_999;

/// The snapshots of one transaction.
pub(super) struct Intake<'a> {
    db: &'a Connection,
    limit_bytes: u64,
    now_ms: i64,
    losses: &'a mut StoreLosses,
    /// By task id; none for a task that is not known.
    targets: HashMap<String, Option<Target<'a>>>,
}

struct Target<'a> {
    task: i64,
    writer: Writer<'a>,
    /// No room can be made for this task: not tried again for each of its snapshots.
    is_full: bool,
}

impl<'a> Intake<'a> {
    pub(super) fn new(
        db: &'a Connection,
        limit_bytes: u64,
        now_ms: i64,
        losses: &'a mut StoreLosses,
    ) -> Self {
        Self {
            db,
            limit_bytes,
            now_ms,
            losses,
            targets: HashMap::new(),
        }
    }

    /// Stores a snapshot, or counts why not.
    pub(super) fn add(&mut self, snapshot: ThreadSnapshot) -> Result<()> {
        let task_id = snapshot.task_id.clone();
        let mut target = match self.targets.remove(&task_id) {
            Some(target) => target,
            None => tasks::find(self.db, &task_id)?.map(|row| Target {
                task: row.key,
                writer: Writer::new(self.db, row.key),
                is_full: false,
            }),
        };
        match &mut target {
            Some(target) => self.add_to(target, snapshot)?,
            None => self.losses.unknown_task += 1,
        }
        self.targets.insert(task_id, target);
        Ok(())
    }

    fn add_to(&mut self, target: &mut Target<'a>, snapshot: ThreadSnapshot) -> Result<()> {
        let stack = snapshot.stack.unwrap_or_default().code_signatures;
        let segment_id = snapshot.trace_segment_id;
        if stack.is_empty()
            || stack.len() > MAX_DEPTH
            || segment_id.is_empty()
            || segment_id.len() > ID_MAX_BYTES
            || !(0..=TIME_MAX_MS).contains(&snapshot.time)
        {
            self.losses.bad_snapshots += 1;
            let why = "unusable snapshots were dropped: they have no frames, or a bad id or time";
            return tasks::lose(self.db, target.task, why);
        }
        if !self.make_room(target)? {
            self.losses.snapshots_over_limit += 1;
            let why = "snapshots over the size of the store were dropped";
            return tasks::lose(self.db, target.task, why);
        }
        let (sequence, time) = (snapshot.sequence, snapshot.time);
        if !target.writer.insert(segment_id, sequence, time, stack)? {
            self.losses.duplicate_snapshots += 1;
        }
        Ok(())
    }

    /// Makes sure that a snapshot may be added; false if no room can be made.
    fn make_room(&mut self, target: &mut Target<'a>) -> Result<bool> {
        while !target.is_full && retention::used_bytes(self.db)? >= self.limit_bytes {
            // What writers of other tasks remember may be among what goes.
            self.targets.clear();
            target.is_full = !retention::clear_oldest(self.db, Some(target.task), self.now_ms)?;
        }
        Ok(!target.is_full)
    }
}
