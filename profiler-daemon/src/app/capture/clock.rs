//! The daemon's side of the sampling grid: a timer that fires when every CPU's clock has ticked.
//!
//! While no request is open, ticks are not needed, and the timer fires only once a second, for
//! periodic checks.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::kernel::ClockTicks;
use crate::model::WallClock;
use crate::sampler::Tick;
use crate::timeline::Grid;

/// Most ticks that are made up for at once.
const TICKS_BEHIND_MAX: u64 = 100;
/// Time between two looks of a timer at rest.
const REST: Duration = Duration::from_secs(1);

/// The timer and the grid it follows.
#[derive(Debug)]
pub(super) struct GridTimer {
    timer: TimerFd,
    grid: Grid,
    /// Time between the first and the last CPU's tick.
    spread_ns: u64,
    next_ktime_ns: u64,
    is_resting: bool,
}

/// Ticks that have passed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// The timer has fired; at rest it does so without a tick.
    pub(super) has_fired: bool,
    /// Oldest first.
    pub(super) ticks: Vec<Tick>,
    /// They are sampled more than half a period late.
    pub(super) is_late: bool,
}

impl GridTimer {
    /// A timer that does not run.
    ///
    /// # Errors
    ///
    /// The system has no descriptor left.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            timer: new_timer().context("failed to create the tick's timer")?,
            grid: Grid {
                origin_ktime_ns: 0,
                period_ns: u64::MAX,
            },
            spread_ns: 0,
            next_ktime_ns: 0,
            is_resting: false,
        })
    }

    /// The grid; its period is endless while the timer does not run.
    pub(super) fn grid(&self) -> Grid {
        self.grid
    }

    /// Time between two ticks; endless while the timer does not run.
    pub(super) fn period(&self) -> Duration {
        Duration::from_nanos(self.grid.period_ns)
    }

    /// The next tick that is reported, `CLOCK_MONOTONIC`; none while the timer rests or does not run.
    pub(super) fn next_tick(&self) -> Option<u64> {
        let runs = !self.is_resting && self.grid.period_ns != u64::MAX;
        runs.then_some(self.next_ktime_ns)
    }

    /// Whether the next tick is due within this time.
    pub(super) fn tells_within(&self, ns: u64) -> bool {
        !self.is_resting && self.grid.period_ns <= ns
    }

    /// Follows the clocks of the CPUs.
    ///
    /// # Errors
    ///
    /// The timer is refused.
    pub(super) fn start(&mut self, ticks: ClockTicks, period: Duration) -> Result<()> {
        let period_ns = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.grid = Grid {
            origin_ktime_ns: ticks.last_ktime_ns,
            period_ns,
        };
        self.spread_ns = ticks.last_ktime_ns.saturating_sub(ticks.first_ktime_ns);
        self.next_ktime_ns = ticks.last_ktime_ns.saturating_add(period_ns);
        tracing::debug!(
            spread_ns = self.spread_ns,
            "the clock events of all CPUs began"
        );
        self.is_resting = false;
        self.arm(self.next_ktime_ns, period)
    }

    /// Stops reporting ticks if none is needed, or reports them again, from the first after
    /// `since_ktime_ns` on, which may be in the past.
    ///
    /// # Errors
    ///
    /// The timer is refused.
    pub(super) fn set_needed(&mut self, since_ktime_ns: Option<u64>) -> Result<()> {
        match since_ktime_ns {
            Some(since) if self.is_resting => {
                self.is_resting = false;
                let Grid {
                    origin_ktime_ns,
                    period_ns,
                } = self.grid;
                let ticks = since.saturating_sub(origin_ktime_ns) / period_ns + 1;
                self.next_ktime_ns =
                    origin_ktime_ns.saturating_add(ticks.saturating_mul(period_ns));
                self.arm(self.next_ktime_ns, self.period())
            }
            None if !self.is_resting => {
                self.is_resting = true;
                let first = now_ktime_ns().saturating_add(REST.as_nanos() as u64);
                self.arm(first, REST.max(self.period()))
            }
            _ => Ok(()),
        }
    }

    fn arm(&mut self, first_ktime_ns: u64, interval: Duration) -> Result<()> {
        let expiration = Expiration::IntervalDelayed(
            Duration::from_nanos(first_ktime_ns).into(),
            interval.into(),
        );
        self.timer
            .set(expiration, TimerSetTimeFlags::TFD_TIMER_ABSTIME)
            .context("failed to arm the tick's timer")
    }

    /// Stops it.
    pub(super) fn stop(&mut self) {
        self.grid.period_ns = u64::MAX;
        if let Err(error) = self.timer.unset() {
            tracing::warn!(%error, "the tick's timer could not be stopped");
        }
    }

    /// The ticks that have passed since the last call; empty if the timer has not fired.
    ///
    /// # Errors
    ///
    /// The timer cannot be read.
    pub(super) fn due(&mut self) -> Result<Due> {
        match nix::unistd::read(&self.timer, &mut [0_u8; 8]) {
            Ok(_) => Ok(self.passed(now_ktime_ns())),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Due::default()),
            Err(error) => Err(error).context("failed to read the tick's timer"),
        }
    }

    fn passed(&mut self, now_ktime_ns: u64) -> Due {
        if self.is_resting {
            return Due {
                has_fired: true,
                ..Due::default()
            };
        }
        let period_ns = self.grid.period_ns;
        let behind_ns = now_ktime_ns.saturating_sub(self.next_ktime_ns);
        let forgotten = (behind_ns / period_ns).saturating_sub(TICKS_BEHIND_MAX);
        self.next_ktime_ns = self
            .next_ktime_ns
            .saturating_add(forgotten.saturating_mul(period_ns));
        let mut ticks = Vec::new();
        while self.next_ktime_ns <= now_ktime_ns {
            ticks.push(Tick {
                first_ktime_ns: self.next_ktime_ns.saturating_sub(self.spread_ns),
                last_ktime_ns: self.next_ktime_ns,
            });
            self.next_ktime_ns = self.next_ktime_ns.saturating_add(period_ns);
        }
        Due {
            has_fired: true,
            ticks,
            is_late: behind_ns > period_ns / 2,
        }
    }
}

impl AsFd for GridTimer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

/// A timer by `CLOCK_MONOTONIC` that does not run; reading it never waits.
pub(super) fn new_timer() -> nix::Result<TimerFd> {
    TimerFd::new(
        ClockId::CLOCK_MONOTONIC,
        TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
    )
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub(in crate::app) fn now_ktime_ns() -> u64 {
    clock_ns(nix::time::ClockId::CLOCK_MONOTONIC)
}

/// Kernel time to wall time, as of now.
pub(super) fn wall_clock() -> WallClock {
    WallClock::from_readings(now_ktime_ns(), clock_ns(nix::time::ClockId::CLOCK_REALTIME))
}

fn clock_ns(clock: nix::time::ClockId) -> u64 {
    nix::time::clock_gettime(clock).map_or(0, |time| {
        time.tv_sec().cast_unsigned() * 1_000_000_000 + time.tv_nsec().cast_unsigned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timer() -> GridTimer {
        let mut timer = GridTimer::new().unwrap();
        let ticks = ClockTicks {
            first_ktime_ns: 990,
            last_ktime_ns: 1_000,
        };
        timer.start(ticks, Duration::from_nanos(100)).unwrap();
        timer
    }

    /// Check that every tick that has passed is told once, with the window in which CPUs ticked.
    #[test]
    fn passed_ticks_are_told_once() {
        let mut timer = timer();
        let tick = |last| Tick {
            first_ktime_ns: last - 10,
            last_ktime_ns: last,
        };
        assert_eq!(timer.passed(1_099).ticks, []);
        assert_eq!(
            timer.passed(1_100),
            Due {
                has_fired: true,
                ticks: vec![tick(1_100)],
                is_late: false
            }
        );
        assert_eq!(timer.passed(1_120).ticks, []);
        let late = Due {
            has_fired: true,
            ticks: vec![tick(1_200), tick(1_300)],
            is_late: true,
        };
        assert_eq!(timer.passed(1_350), late);
    }

    /// Check that a timer at rest tells no tick, and afterwards those since it is needed again.
    #[test]
    fn a_timer_at_rest_tells_no_tick() {
        let mut timer = timer();
        timer.set_needed(None).unwrap();
        let due = timer.passed(1_350);
        assert!(due.has_fired && due.ticks.is_empty() && !due.is_late);
        timer.set_needed(Some(1_399)).unwrap();
        let last: Vec<u64> = timer
            .passed(1_520)
            .ticks
            .iter()
            .map(|t| t.last_ktime_ns)
            .collect();
        assert_eq!(last, [1_400, 1_500]);
        timer.set_needed(Some(1_000)).unwrap();
        assert_eq!(timer.passed(1_599).ticks, []);
    }

    /// Check that a daemon that was stopped for long does not look at every tick it missed.
    #[test]
    fn a_long_pause_is_made_up_for_in_part() {
        let due = timer().passed(1_000_000);
        assert_eq!(due.ticks.len() as u64, TICKS_BEHIND_MAX + 1);
        assert_eq!(due.ticks.last().unwrap().last_ktime_ns, 1_000_000);
    }
}
