//! Measures what profiled requests cost while tasks are live, and what hooks do, for the guard.
//!
//! In:  a second that has passed; run times of the programs from the capture thread
//! Out: [`Step`]s, each with the reason, to [`super::control`]
//! Lost: where the programs cannot be measured only the daemon itself is, which the log says once

use std::time::{Duration, Instant};

use super::capture::now_ktime_ns;
use super::statistics::StatisticsKeeper;
use crate::guard::{Budget, Guard, ProgramMeter, Reading, RunTime, Step};
use crate::usage::{Usage, threads_cpu};

/// The threads that work for profiled requests.
const PIPELINE: [&str; 2] = ["capture", "resolve"];

/// The guard and its measurements.
#[derive(Debug)]
pub(super) struct Overhead {
    guard: Guard,
    meter: ProgramMeter,
    keeper: Option<StatisticsKeeper>,
    /// When it was measured last, and the processor time of the threads by then.
    last: Option<(Instant, Duration)>,
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

    /// Holds the daemon to another budget from now on.
    pub(super) fn set_budget(&mut self, budget: Budget) {
        self.guard.set_budget(budget);
    }

    /// Takes a reading; `shortest` is the shortest dump period that a live task asks for.
    pub(super) fn measure(&mut self, shortest: Duration) -> Option<(Step, String)> {
        self.measure_programs();
        let usage = || Ok((threads_cpu(&PIPELINE)?, Usage::now()?.rss_bytes));
        let now = match usage() {
            Ok((threads, rss_bytes)) => (Instant::now(), threads, rss_bytes),
            Err(error) => {
                let error: std::io::Error = error;
                tracing::debug!(%error, "the daemon cannot measure itself");
                return None;
            }
        };
        let (before, threads) = self.last.replace((now.0, now.1))?;
        let elapsed = now.0 - before;
        let (sampling_cpu, hooks_cpu) = self.meter.used_in(elapsed);
        let reading = Reading {
            elapsed,
            daemon_cpu: now.1.saturating_sub(threads),
            sampling_cpu,
            hooks_cpu,
            rss_bytes: now.2,
        };
        self.guard.on_reading(reading, shortest)
    }

    /// Takes the programs' run time at an instant.
    pub(super) fn on_program_time(&mut self, run_time: RunTime, ktime_ns: u64) {
        self.meter.on_run_time(run_time, ktime_ns);
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
