//! When blocked threads are read ahead of a tick.
//!
//! A thread that waits for its CPU often gets it at the tick, and the memory of a running thread is of no use.
//! So it is read shortly before. The later the read, the fewer blocks end before the tick and were read in
//! vain; but all threads must be read before the tick.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::timerfd::{Expiration, TimerFd, TimerSetTimeFlags};
use profiler_common::SWITCH_OUTS_AHEAD_NS;

use super::clock::new_timer;

/// Time between the read of few threads and the tick: several times the lateness of a timer on a busy host. Threads
/// that leave their CPU after it are recorded by the kernel side.
const LEAD_NS: u64 = SWITCH_OUTS_AHEAD_NS;

/// The timer, armed for one tick at a time.
#[derive(Debug)]
pub(super) struct AheadTimer {
    timer: TimerFd,
    /// The tick it is armed for, `CLOCK_MONOTONIC`.
    tick_ktime_ns: Option<u64>,
    /// How long the latest look took.
    look_ns: u64,
}

impl AheadTimer {
    /// A timer that does not run.
    ///
    /// # Errors
    ///
    /// The system has no descriptor left.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            timer: new_timer().context("failed to create the timer ahead of ticks")?,
            tick_ktime_ns: None,
            look_ns: 0,
        })
    }

    /// Fires once, ahead of this tick; not at all without one.
    ///
    /// # Errors
    ///
    /// The timer is refused.
    pub(super) fn arm(&mut self, tick_ktime_ns: Option<u64>, period: Duration) -> Result<()> {
        if self.tick_ktime_ns == tick_ktime_ns {
            return Ok(());
        }
        self.tick_ktime_ns = tick_ktime_ns;
        match tick_ktime_ns {
            None => self.timer.unset(),
            Some(tick) => {
                let at = Duration::from_nanos(tick.saturating_sub(lead_ns(self.look_ns, period)));
                self.timer.set(
                    Expiration::OneShot(at.into()),
                    TimerSetTimeFlags::TFD_TIMER_ABSTIME,
                )
            }
        }
        .context("failed to arm the timer ahead of ticks")
    }

    /// Whether it has fired since it was armed; once.
    pub(super) fn has_fired(&self) -> bool {
        nix::unistd::read(&self.timer, &mut [0_u8; 8]).is_ok()
    }

    /// Notes how long a look took.
    pub(super) fn on_look(&mut self, look_ns: u64) {
        self.look_ns = look_ns;
    }
}

impl AsFd for AheadTimer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

/// Time between a read and the tick, if the previous read took so long.
fn lead_ns(look_ns: u64, period: Duration) -> u64 {
    let half_ns = u64::try_from(period.as_nanos() / 2).unwrap_or(u64::MAX);
    LEAD_NS.saturating_add(look_ns).min(half_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a look of many threads begins so much earlier, but in the second half of the period.
    #[test]
    fn a_long_look_begins_earlier() {
        let period = Duration::from_millis(10);
        assert_eq!(lead_ns(0, period), LEAD_NS);
        assert_eq!(lead_ns(2_000_000, period), LEAD_NS + 2_000_000);
        assert_eq!(lead_ns(u64::MAX, period), 5_000_000);
        assert_eq!(lead_ns(0, Duration::from_micros(400)), 200_000);
    }

    /// Check that it fires once for a tick, also if that is past, and not for the same one again.
    #[test]
    fn it_fires_once_for_a_tick() {
        let mut timer = AheadTimer::new().unwrap();
        let period = Duration::from_millis(10);
        assert!(!timer.has_fired());
        timer.arm(Some(LEAD_NS + 1), period).unwrap();
        assert!(timer.has_fired() && !timer.has_fired());
        timer.arm(Some(LEAD_NS + 1), period).unwrap();
        assert!(!timer.has_fired());
        timer.arm(Some(LEAD_NS + 2), period).unwrap();
        timer.arm(None, period).unwrap();
        assert!(!timer.has_fired());
    }
}
