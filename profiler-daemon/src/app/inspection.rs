//! Inspections of processes that tasks are about to watch, a few at a time.
//!
//! In:  [`Inspection`]s
//! Out: [`Inspected`], in no order
//! Lost: nothing
//!
//! A process may make its inspection last for seconds, and a service may have any number of processes. Those of others
//! go on beside it, and the control thread waits for none.

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;

use super::capture::Command;
use super::inspect::inspect;
use super::turns::Turns;
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
#[derive(Debug)]
pub(super) struct Inspections {
    turns: Turns<Inspection>,
    /// With the name of the service.
    running: JoinSet<(String, Inspected)>,
}

impl Default for Inspections {
    fn default() -> Self {
        Self {
            turns: Turns::new(AT_ONCE_MAX),
            running: JoinSet::new(),
        }
    }
}

impl Inspections {
    /// Adds one.
    pub(super) fn push(&mut self, inspection: Inspection) {
        let service = inspection.service.name.clone();
        self.turns.push(&service, inspection);
        self.start();
    }

    /// The next result; `None` if nothing is under way.
    ///
    /// # Errors
    ///
    /// An inspection has panicked.
    pub(super) async fn next(&mut self) -> Option<Result<Inspected>> {
        let result = self.running.join_next().await?;
        let result = result.context("the inspection of a process failed");
        Some(result.map(|(service, inspected)| {
            self.turns.end(&service);
            self.start();
            inspected
        }))
    }

    fn start(&mut self) {
        while let Some(next) = self.turns.begin() {
            self.running.spawn_blocking(move || {
                let name = next.service.name.clone();
                let commands = inspect(next.slot, next.process, next.service, next.has_agent);
                let inspected = Inspected {
                    task_id: next.task_id,
                    process: next.process,
                    commands,
                };
                (name, inspected)
            });
        }
    }
}
