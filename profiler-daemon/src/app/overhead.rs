//! Measures the CPU time and memory of the daemon and its programs while tasks are live, for the guard.
//!
//! In:  a second that has passed; run times of the programs from the capture thread
//! Out: [`Step`]s, each with the reason, to [`super::control`]
//! Lost: where the programs cannot be measured only the daemon itself is, which the log says once

use std::time::{Duration, Instant};

use super::capture::now_ktime_ns;
use super::statistics::StatisticsKeeper;
use crate::guard::{Budget, Guard, ProgramMeter, Reading, Step};
use crate::usage::Usage;

/// The guard and its measurements.
#[derive(Debug)]
pub(super) struct Overhead {
    guard: Guard,
    meter: ProgramMeter,
    keeper: Option<StatisticsKeeper>,
    last: Option<(Instant, Usage)>,
}

impl Overhead {
    /// Nothing is measured yet.
    pub(super) fn new(budget: Budget, keeper: Option<StatisticsKeeper>) -> Self {
        Self {
            guard: Guard::new(budget),
            meter: ProgramMeter::default(),
            keeper,
            last: None,
        }
    }

    /// Takes a reading; `shortest` is the shortest dump period that a live task asks for.
    pub(super) fn measure(&mut self, shortest: Duration) -> Option<(Step, String)> {
        self.measure_programs();
        let now = match Usage::now() {
            Ok(usage) => (Instant::now(), usage),
            Err(error) => {
                tracing::debug!(%error, "the daemon cannot measure itself");
                return None;
            }
        };
        let (before, usage) = self.last.replace(now)?;
        let elapsed = now.0 - before;
        let reading = Reading {
            elapsed,
            daemon_cpu: now.1.cpu.saturating_sub(usage.cpu),
            programs_cpu: self.meter.used_in(elapsed),
            rss_bytes: now.1.rss_bytes,
        };
        self.guard.on_reading(reading, shortest)
    }

    /// Takes the programs' run time at an instant.
    pub(super) fn on_program_time(&mut self, run_time_ns: u64, ktime_ns: u64) {
        self.meter.on_run_time(run_time_ns, ktime_ns);
    }

    /// Why no further task can be taken on, if so.
    pub(super) fn refusal(&self, shortest: Duration) -> Option<String> {
        self.guard.refusal(shortest)
    }

    /// How many times as long dump periods are as tasks ask for.
    pub(super) fn stretch(&self) -> u32 {
        self.guard.stretch()
    }

    /// No task is live any more.
    pub(super) fn rest(&mut self) {
        self.guard.reset();
        self.meter.reset();
        self.last = None;
    }

    fn measure_programs(&mut self) {
        let Some(keeper) = &mut self.keeper else {
            return;
        };
        let now = now_ktime_ns();
        let talk = keeper.answer().and_then(|counted_ns| {
            if let Some(counted_ns) = counted_ns {
                self.meter.on_counted(counted_ns, now);
            }
            if self.meter.is_due(now) {
                keeper.ask()?;
            }
            Ok(())
        });
        if let Err(error) = talk {
            tracing::warn!(
                %error,
                "the process profilerd-stats has ended: from now on the time in BPF programs is not measured"
            );
            self.keeper = None;
        }
    }
}
