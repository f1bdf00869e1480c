//! The rate at which BPF programs use processors, from measurements now and then.
//!
//! In:  run times of the programs, told once a second while a task is live
//! Out: when to count them, and the rate
//!
//! ```text
//!  statistics  ▁▁▁████▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁████▁▁▁▁
//!  told           | |  |  |  |  |  |  |   | |
//!                  ^^^ the rate until the next measurement
//! ```
//!
//! # Why
//! While the kernel counts, every run of every BPF program of the host takes some 20 to 40 ns more, which is
//! much for programs that end after one test. Two seconds in ten are enough for a budget of minutes.

use std::time::Duration;

/// Between two measurements.
const PAUSE_NS: u64 = 10_000_000_000;
/// The switch takes effect within this.
const SWITCHING_NS: u64 = 100_000_000;

/// Says when to count, and makes a rate of what was counted.
#[derive(Debug, Default)]
pub struct ProgramMeter {
    state: State,
    /// Processor time in a time of 1.
    rate: f64,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    New,
    Counting {
        since_ktime_ns: u64,
        /// Run time and instant of the first reading that counts.
        first: Option<(u64, u64)>,
    },
    Paused {
        until_ktime_ns: u64,
    },
}

impl ProgramMeter {
    /// Whether the kernel should count from now on; `None` if nothing changes.
    pub fn switch(&mut self, now_ktime_ns: u64) -> Option<bool> {
        match self.state {
            State::Paused { until_ktime_ns } if now_ktime_ns < until_ktime_ns => None,
            State::New | State::Paused { .. } => {
                self.state = State::Counting {
                    since_ktime_ns: now_ktime_ns,
                    first: None,
                };
                Some(true)
            }
            State::Counting { .. } => None,
        }
    }

    /// Takes the programs' run time at an instant; true if the kernel should not count any more.
    pub fn on_run_time(&mut self, run_time_ns: u64, ktime_ns: u64) -> bool {
        let State::Counting {
            since_ktime_ns,
            first,
        } = &mut self.state
        else {
            return false;
        };
        if ktime_ns < since_ktime_ns.saturating_add(SWITCHING_NS) {
            return false;
        }
        let Some((before_ns, at_ns)) = *first else {
            *first = Some((run_time_ns, ktime_ns));
            return false;
        };
        let elapsed_ns = ktime_ns.saturating_sub(at_ns).max(1);
        self.rate = run_time_ns.saturating_sub(before_ns) as f64 / elapsed_ns as f64;
        self.state = State::Paused {
            until_ktime_ns: ktime_ns.saturating_add(PAUSE_NS),
        };
        true
    }

    /// Processor time of the programs in a while, by the latest measurement; none before the first.
    #[must_use]
    pub fn used_in(&self, elapsed: Duration) -> Duration {
        elapsed.mul_f64(self.rate.max(0.0))
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

    /// Check that two readings while the kernel counts make a rate, and that it then pauses.
    #[test]
    fn two_readings_make_a_rate() {
        let mut meter = ProgramMeter::default();
        assert_eq!(meter.switch(S), Some(true));
        assert_eq!(meter.switch(2 * S), None);
        assert!(
            !meter.on_run_time(7, S + 1),
            "may be from before the switch"
        );
        assert!(!meter.on_run_time(1_000, 2 * S));
        assert!(meter.on_run_time(1_000 + S / 50, 3 * S));
        let used = meter.used_in(Duration::from_secs(10));
        assert_eq!(used, Duration::from_millis(200));
        assert!(!meter.on_run_time(9 * S, 4 * S), "nothing is counted now");
        assert_eq!(meter.switch(12 * S), None);
        assert_eq!(meter.switch(13 * S), Some(true));
        assert_eq!(meter.used_in(Duration::from_secs(10)), used);
    }

    /// Check that programs that were loaded anew, and count from zero, do not make a negative rate.
    #[test]
    fn a_count_from_zero_is_no_negative_rate() {
        let mut meter = ProgramMeter::default();
        meter.switch(0);
        meter.on_run_time(5 * S, S);
        meter.on_run_time(3, 2 * S);
        assert_eq!(meter.used_in(Duration::from_secs(1)), Duration::ZERO);
    }
}
