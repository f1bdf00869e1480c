//! The life of a task on the capture thread: armed, ended, forgotten. Its processes are in [`super::targets`].

use std::collections::HashSet;
use std::time::Duration;

use anyhow::Result;

use super::blocked::Memory;
use super::clock::now_ktime_ns;
use super::{Capture, Command, Live, Work, nanos};
use crate::kernel::Kernel;
use crate::model::{Counter, Coverage, ProfileTask, TaskSlot};
use crate::request::Endpoint;
use crate::timeline::Grid;

/// How long a task's open requests may run on after its end.
const GRACE_NS: u64 = 2_000_000_000;

impl Capture {
    pub(super) fn obey(&mut self, command: Command) {
        match command {
            Command::StartTask {
                slot,
                task,
                endpoint,
            } => {
                let task_id = task.task_id.clone();
                match self.arm(slot, &task, &endpoint) {
                    Ok(()) => {
                        self.tracker.add_task(slot, *task, *endpoint);
                        self.send(Work::Armed(task_id));
                    }
                    Err(error) => {
                        self.live.remove(&slot);
                        let is_idle = self.disarm_if_idle();
                        self.send(Work::TaskFailed(task_id, error));
                        if is_idle {
                            self.send(Work::Idle);
                        }
                    }
                }
            }
            Command::AddTarget(target) => self.add_target(target),
            Command::Watch(target) => self.watch(target),
            Command::LeaveOut(process, why) => self.leave_out_target(process, &why),
            Command::SetLimits(limits) => self.tracker.set_limits(limits),
            Command::EndTask { slot } => {
                let now = now_ktime_ns();
                if let Some(live) = self.live.get_mut(&slot) {
                    live.ends_ktime_ns.get_or_insert(now + GRACE_NS);
                    self.kernel_do(|kernel| kernel.set_count_only(slot, true));
                }
            }
            Command::ReleasePlace { slot, service } => {
                let mut actions = Vec::new();
                self.tracker.release_place(slot, &service, &mut actions);
                self.act(actions);
            }
            Command::UsePlaces {
                slot,
                service,
                count,
            } => self.tracker.use_places(slot, service, count),
            Command::Note {
                slot,
                counter,
                text,
            } => {
                if let Some(coverage) = self.tracker.coverage_mut(slot) {
                    if let Some(counter) = counter {
                        coverage.bump(counter);
                    }
                    coverage.note(text);
                }
            }
            Command::Stretch(stretch) => {
                if let Err(error) = self.set_stretch(stretch) {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "dump periods could not be changed"
                    );
                }
            }
            Command::TellProgramTime => self.tells_program_time = true,
            Command::Shutdown => {
                self.leaving = true;
                let now = now_ktime_ns();
                for live in self.live.values_mut() {
                    live.ends_ktime_ns = Some(now);
                }
            }
        }
    }

    fn arm(&mut self, slot: TaskSlot, task: &ProfileTask, endpoint: &Endpoint) -> Result<()> {
        let period = Duration::from_millis(u64::from(task.dump_period_ms.max(1)));
        let live = Live {
            task_id: task.task_id.clone(),
            period,
            ends_ktime_ns: None,
            targets: HashSet::new(),
            left_out_before: self.kernel.as_ref().map_or(0, Kernel::left_out_runs),
        };
        self.live.insert(slot, live);
        let kernel = match &mut self.kernel {
            Some(kernel) => kernel,
            None => self.kernel.insert(Kernel::load(&self.options)?),
        };
        kernel.set_rule(slot, &endpoint.rule())?;
        let period = period.saturating_mul(self.stretch);
        if !kernel.is_attached() {
            self.clock.start(kernel.attach(period)?, period)?;
        } else if period < self.clock.period() {
            self.set_period(period)?;
        }
        Ok(())
    }

    /// Multiplies all dump periods that tasks ask for by this, at once.
    fn set_stretch(&mut self, stretch: u32) -> Result<()> {
        let before = std::mem::replace(&mut self.stretch, stretch.max(1));
        let shortest = self.live.values().map(|live| live.period).min();
        let result = shortest.map_or(Ok(()), |period| {
            self.set_period(period.saturating_mul(self.stretch))
        });
        if result.is_err() {
            self.stretch = before;
        }
        result
    }

    /// Has the CPUs tick at another period. Open requests are sampled by the new grid from now on.
    fn set_period(&mut self, period: Duration) -> Result<()> {
        let Some(kernel) = &mut self.kernel else {
            return Ok(());
        };
        let ticks = kernel.set_period(period)?;
        self.clock.start(ticks, period)?;
        for request in self.tracker.open() {
            let grid = self.grid_of(request.slot);
            self.send(Work::Regrid(request.id, ticks.last_ktime_ns, grid));
        }
        Ok(())
    }

    /// The grid by which a task's requests are sampled now.
    pub(super) fn grid_of(&self, slot: TaskSlot) -> Grid {
        let grid = self.clock.grid();
        let asked = self.live.get(&slot).map(|live| live.period);
        let period_ns = asked.map_or(grid.period_ns, |asked| {
            nanos(asked.saturating_mul(self.stretch))
        });
        Grid { period_ns, ..grid }
    }

    pub(super) fn end_task(&mut self, slot: TaskSlot, now: u64) {
        let coverage = self.coverage(slot);
        let mut actions = Vec::new();
        let unfinished = self.tracker.end_task(slot, now, &mut actions);
        self.act(actions);
        let Some(live) = self.live.remove(&slot) else {
            return;
        };
        for process in &live.targets {
            self.kernel_do(|kernel| kernel.remove_target(process.pid, slot));
        }
        self.kernel_do(|kernel| kernel.clear_rule(slot));
        self.unwatch(live.targets);
        let mut coverage = coverage.map_or_else(Coverage::default, |(_, coverage)| coverage);
        if let Some(last) = unfinished {
            // What cutting the open requests added since.
            for counter in Counter::all() {
                if last.get(counter) > coverage.get(counter) {
                    coverage.set(counter, last.get(counter));
                }
            }
        }
        // Whoever hears of the end of the last task finds nothing attached.
        let is_idle = self.disarm_if_idle();
        self.send(Work::TaskDone(live.task_id, coverage));
        if is_idle {
            self.send(Work::Idle);
        }
    }

    /// Detaches everything, and reports it, if no task is live; true if so.
    fn disarm_if_idle(&mut self) -> bool {
        let is_idle = self.live.is_empty();
        if is_idle {
            self.kernel = None;
            self.processes.clear();
            self.runtimes.clear();
            self.memory = Memory::default();
            self.clock.stop();
            self.note_state();
        }
        is_idle
    }
}
