//! Inspections of processes that tasks are about to watch, a few at a time.
//!
//! In:  [`Inspection`]s
//! Out: [`Inspected`], in no order
//! Lost: nothing
//!
//! A process may make its inspection last for seconds. Those of others go on beside it, and the control thread waits for none.

use std::collections::VecDeque;

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;

use super::capture::Command;
use super::inspect::inspect;
use crate::model::{ProcessKey, Service, TaskId, TaskSlot};

/// Inspections at a time.
const AT_ONCE_MAX: usize = 4;

/// What is to be inspected.
#[derive(Debug)]
pub(super) struct Inspection {
    pub(super) task_id: TaskId,
    pub(super) slot: TaskSlot,
    pub(super) process: ProcessKey,
    /// The instance it reports as.
    pub(super) service: Service,
    pub(super) has_agent: bool,
}

/// What came of it, as [`inspect`] tells.
#[derive(Debug)]
pub(super) struct Inspected {
    pub(super) task_id: TaskId,
    pub(super) process: ProcessKey,
    pub(super) commands: Option<Vec<Command>>,
}

/// Those that wait and those under way.
#[derive(Debug, Default)]
pub(super) struct Inspections {
    waiting: VecDeque<Inspection>,
    running: JoinSet<Inspected>,
}

impl Inspections {
    /// Adds one.
    pub(super) fn push(&mut self, inspection: Inspection) {
        self.waiting.push_back(inspection);
        self.start();
    }

    /// The next result; `None` if nothing is under way.
    ///
    /// # Errors
    ///
    /// An inspection has panicked.
    pub(super) async fn next(&mut self) -> Option<Result<Inspected>> {
        let result = self.running.join_next().await?;
        self.start();
        Some(result.context("the inspection of a process failed"))
    }

    fn start(&mut self) {
        while self.running.len() < AT_ONCE_MAX
            && let Some(next) = self.waiting.pop_front()
        {
            self.running.spawn_blocking(move || {
                let commands = inspect(next.slot, next.process, next.service, next.has_agent);
                Inspected {
                    task_id: next.task_id,
                    process: next.process,
                    commands,
                }
            });
        }
    }
}
