//! The rate at which BPF programs use processors, from measurements now and then.
//!
//! In:  run times of the programs, told once a second; how long the kernel has counted them
//! Out: when to have it count, and the rate
//!
//! ```text
//!  kernel counts  ▁▁▁█▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁█▁▁▁▁▁▁▁    a fifth of a second, every ten
//!  told            |     |     |     |     |     |      run times move while the kernel counts, and only then
//!                  before      after: the rate until the next measurement
//! ```
//!
//! # Why
//! While the kernel counts, every run of every BPF program of the host takes two readings of a clock more, which
//! is more than programs take that end after one test.

use std::time::Duration;

/// Between two measurements.
const PAUSE_NS: u64 = 10_000_000_000;

/// Time in runs of programs, or in a time of 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunTime {
    /// Programs that run for profiled requests only: at ticks, and at switches of their threads. In nanoseconds.
    pub sampling_ns: u64,
    /// Programs that run for calls of any process: those that look for requests. In nanoseconds.
    pub hooks_ns: u64,
}

/// Says when to count, and makes a rate of what was counted.
#[derive(Debug, Default)]
pub struct ProgramMeter {
    state: State,
    /// Run time told last.
    told: Option<RunTime>,
    /// Processor time in a time of 1, of sampling and of hooks.
    rates: (f64, f64),
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Nothing is under way until this instant.
    Paused { until_ktime_ns: u64 },
    /// The kernel counts.
    Counting { before: RunTime },
    /// It has counted for so long, until this instant.
    Counted {
        before: RunTime,
        counted_ns: u64,
        ktime_ns: u64,
    },
}

impl Default for State {
    fn default() -> Self {
        Self::Paused { until_ktime_ns: 0 }
    }
}

impl ProgramMeter {
    /// Whether the kernel should count for a moment now.
    pub fn is_due(&mut self, now_ktime_ns: u64) -> bool {
        let is_idle = match self.state {
            State::Paused { until_ktime_ns } => until_ktime_ns <= now_ktime_ns,
            State::Counting { .. } | State::Counted { .. } => false,
        };
        let Some(before) = self.told.filter(|_| is_idle) else {
            return false;
        };
        self.state = State::Counting { before };
        true
    }

    /// The kernel has counted for so long, and does not any more.
    pub fn on_counted(&mut self, counted_ns: u64, now_ktime_ns: u64) {
        if let State::Counting { before } = self.state {
            self.state = State::Counted {
                before,
                counted_ns,
                ktime_ns: now_ktime_ns,
            };
        }
    }

    /// Takes the programs' run time at an instant.
    pub fn on_run_time(&mut self, run_time: RunTime, ktime_ns: u64) {
        self.told = Some(run_time);
        let State::Counted {
            before,
            counted_ns,
            ktime_ns: counted_ktime_ns,
        } = self.state
        else {
            return;
        };
        if ktime_ns < counted_ktime_ns {
            return; // waited in a queue meanwhile
        }
        let rate =
            |now: u64, before: u64| now.saturating_sub(before) as f64 / counted_ns.max(1) as f64;
        self.rates = (
            rate(run_time.sampling_ns, before.sampling_ns),
            rate(run_time.hooks_ns, before.hooks_ns),
        );
        self.state = State::Paused {
            until_ktime_ns: ktime_ns.saturating_add(PAUSE_NS),
        };
    }

    /// Processor time of the programs that sample and of the hooks in a while, by the latest measurement; none before the
    /// first.
    #[must_use]
    pub fn used_in(&self, elapsed: Duration) -> (Duration, Duration) {
        let (sampling, hooks) = self.rates;
        (elapsed.mul_f64(sampling), elapsed.mul_f64(hooks))
    }

    /// The programs are gone.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn time(sampling_ns: u64, hooks_ns: u64) -> RunTime {
        RunTime {
            sampling_ns,
            hooks_ns,
        }
    }

    /// Check that what was counted makes a rate, once it is told, and that the next measurement comes later.
    #[test]
    fn what_was_counted_makes_a_rate() {
        let mut meter = ProgramMeter::default();
        assert!(!meter.is_due(S), "nothing to compare with");
        meter.on_run_time(time(1_000, 2_000), S);
        assert!(meter.is_due(S));
        assert!(!meter.is_due(S), "it is under way");
        meter.on_run_time(time(3_000, 4_000), S + S / 10);
        meter.on_counted(S / 5, 2 * S);
        meter.on_run_time(time(4_000, 5_000), 2 * S - 1);
        let nothing = (Duration::ZERO, Duration::ZERO);
        assert_eq!(meter.used_in(Duration::from_secs(10)), nothing);
        meter.on_run_time(time(1_000 + S / 250, 2_000 + S / 100), 2 * S + 1);
        let used = meter.used_in(Duration::from_secs(10));
        assert_eq!(
            used,
            (Duration::from_millis(200), Duration::from_millis(500))
        );
        assert!(!meter.is_due(11 * S));
        assert!(meter.is_due(13 * S));
        assert_eq!(meter.used_in(Duration::from_secs(10)), used);
    }

    /// Check that programs that were loaded anew, and count from zero, do not make a negative rate.
    #[test]
    fn a_count_from_zero_is_no_negative_rate() {
        let mut meter = ProgramMeter::default();
        meter.on_run_time(time(5 * S, 5 * S), S);
        assert!(meter.is_due(S));
        meter.on_counted(S, 2 * S);
        meter.on_run_time(time(3, 3), 3 * S);
        let nothing = (Duration::ZERO, Duration::ZERO);
        assert_eq!(meter.used_in(Duration::from_secs(1)), nothing);
    }
}
