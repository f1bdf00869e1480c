//! Measures what the daemon and its programs take while tasks are live, for the guard.
//!
//! In:  a second that has passed; run times of the programs from the capture thread
//! Out: [`Step`]s, each with the reason, to [`super::control`]
//! Lost: where the programs cannot be measured only the daemon itself is, which the log says once

use std::time::{Duration, Instant};

use super::capture::now_ktime_ns;
use super::statistics::StatisticsSwitch;
use crate::guard::{Budget, Guard, ProgramMeter, Reading, Step};
use crate::usage::Usage;

/// The guard and what it is told by.
#[derive(Debug)]
pub(super) struct Overhead {
    guard: Guard,
    meter: ProgramMeter,
    switch: Option<StatisticsSwitch>,
    last: Option<(Instant, Usage)>,
}

impl Overhead {
    /// Nothing is measured yet.
    pub(super) fn new(budget: Budget, switch: Option<StatisticsSwitch>) -> Self {
        Self {
            guard: Guard::new(budget),
            meter: ProgramMeter::default(),
            switch,
            last: None,
        }
    }

    /// Takes a reading; `shortest` is the shortest dump period that a live task asks for.
    pub(super) fn measure(&mut self, shortest: Duration) -> Option<(Step, String)> {
        if let Some(on) = self.meter.switch(now_ktime_ns()) {
            self.count_runs(on);
        }
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
        if self.meter.on_run_time(run_time_ns, ktime_ns) {
            self.count_runs(false);
        }
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
        self.count_runs(false);
        self.last = None;
    }

    fn count_runs(&mut self, on: bool) {
        if let Some(switch) = &mut self.switch
            && let Err(error) = switch.set(on)
        {
            tracing::warn!(%error, "the process that has BPF programs measured is gone: from here on only the daemon itself is");
            self.switch = None;
        }
    }
}
