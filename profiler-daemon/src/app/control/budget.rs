//! Keeps tasks within the budget: carries out the steps of the overhead guard and tells of them.
//!
//! In:  [`Step`]s of [`super::Overhead`]
//! Out: [`Command`]s to the pipeline; a note in the coverage of each task that a step concerns
//! Lost: nothing

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::tasks::Live;
use super::{Command, Control};
use crate::guard::Step;
use crate::model::clock::unix_ms_now;
use crate::model::{Counter, ProcessKey, ProfileTask, date};
use crate::output::clean;
use crate::process::procfs::Procfs;

impl Control {
    /// Gives up what has to be when tasks cost too much.
    pub(super) fn mind_overhead(&mut self) {
        let Some(shortest) = self.shortest_period() else {
            return;
        };
        if self.system_ticks.is_empty() {
            self.note_callers();
        }
        let Some((step, reason)) = self.overhead.measure(shortest) else {
            return;
        };
        match step {
            Step::Stretch(times) | Step::Relax(times) => {
                tracing::warn!(times, "dump periods are multiplied: {reason}");
                self.pipeline.send(Command::Stretch(times));
                for live in self.live.values().filter(|live| !live.ending) {
                    self.note_guard(live, period_note(&live.task, times, &reason));
                }
            }
            Step::TellHooks => {
                let who = self.busiest_caller();
                tracing::warn!("hooks are expensive: {reason}{who}");
                for live in self.live.values().filter(|live| !live.ending) {
                    self.note_guard(live, format!("{reason}{who}"));
                }
            }
            Step::EndNewest => {
                let live = self.live.values_mut().filter(|live| !live.ending);
                let Some(live) = live.max_by_key(|live| live.began) else {
                    return;
                };
                tracing::warn!(task_id = %live.task.task_id, "the task that began last is ended: {reason}");
                let now = Instant::now();
                live.instances.values_mut().for_each(|ends| *ends = now);
                let task_id = live.task.task_id.clone();
                let text = format!("cut short by the overhead guard: {reason}");
                self.note_guard(&self.live[&task_id], text);
            }
        }
    }

    /// Notes how long each process has been in system calls so far, for [`Self::busiest_caller`]; yields what was noted before.
    pub(super) fn note_callers(&mut self) -> HashMap<ProcessKey, u64> {
        let procfs = Procfs::default();
        let ticks = self.processes.iter().filter_map(|process| {
            let ticks = procfs.system_ticks(process.key.pid).ok()?;
            Some((process.key, ticks))
        });
        let ticks = ticks.collect();
        std::mem::replace(&mut self.system_ticks, ticks)
    }

    /// Which process has spent the most time in system calls since that was noted, as the end of a sentence.
    fn busiest_caller(&mut self) -> String {
        let before = self.note_callers();
        let mut busiest = None;
        for process in self.processes.iter() {
            let Some(&ticks) = self.system_ticks.get(&process.key) else {
                continue;
            };
            let since = ticks.saturating_sub(before.get(&process.key).copied().unwrap_or(0));
            if busiest.is_none_or(|(most, _)| since > most) {
                busiest = Some((since, process));
            }
        }
        busiest.map_or_else(String::new, |(_, process)| {
            let user = process
                .uid
                .map_or_else(|| "unknown".to_owned(), |user| user.to_string());
            format!(
                "; the process with the most time in system calls is {} ({}, user {user})",
                process.key.pid,
                clean(&process.comm)
            )
        })
    }

    pub(super) fn note_guard(&self, live: &Live, text: String) {
        self.pipeline.send(Command::Note {
            slot: live.slot,
            counter: Some(Counter::GuardSteps),
            text,
        });
    }

    /// The shortest dump period that a live task asks for.
    pub(super) fn shortest_period(&self) -> Option<Duration> {
        let live = self.live.values().filter(|live| !live.ending);
        let shortest_ms = live.map(|live| live.task.dump_period_ms).min()?;
        Some(Duration::from_millis(shortest_ms.into()))
    }
}

/// What the coverage of a task says of a dump period that it did not ask for.
pub(super) fn period_note(task: &ProfileTask, times: u32, reason: &str) -> String {
    let (asked_ms, now) = (task.dump_period_ms, date::utc(unix_ms_now()));
    let period_ms = u64::from(asked_ms) * u64::from(times);
    format!(
        "from {now} on one snapshot every {period_ms} ms, the task asks for {asked_ms}: {reason}"
    )
}
