//! Turns `CLOCK_MONOTONIC` of the kernel side into the wall-clock milliseconds of the protocol.

use std::time::{SystemTime, UNIX_EPOCH};

/// The wall clock now, epoch milliseconds.
#[must_use]
pub fn unix_ms_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}

/// Offset between `CLOCK_MONOTONIC` and `CLOCK_REALTIME`, fixed for the life of one request so that
/// its snapshot times never run backwards when the wall clock is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallClock {
    /// `CLOCK_REALTIME - CLOCK_MONOTONIC` in nanoseconds.
    offset_ns: i64,
}

impl WallClock {
    /// Takes the offset from two readings made back to back.
    #[must_use]
    pub const fn from_readings(monotonic_ns: u64, realtime_ns: u64) -> Self {
        Self {
            offset_ns: realtime_ns as i64 - monotonic_ns as i64,
        }
    }

    /// Wall-clock milliseconds since the epoch, rounded down.
    #[must_use]
    pub const fn unix_ms(self, ktime_ns: u64) -> i64 {
        (ktime_ns as i64 + self.offset_ns).div_euclid(1_000_000)
    }

    /// `CLOCK_MONOTONIC` nanoseconds of a wall-clock time.
    #[must_use]
    pub const fn ktime_ns(self, unix_ms: i64) -> u64 {
        let ns = unix_ms * 1_000_000 - self.offset_ns;
        if ns < 0 { 0 } else { ns as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that kernel time converts to the wall-clock millisecond and back.
    #[test]
    fn kernel_time_converts_to_wall_time_and_back() {
        let clock = WallClock::from_readings(5_000_000_000, 1_700_000_000_123_000_000);
        assert_eq!(clock.unix_ms(5_000_000_000), 1_700_000_000_123);
        assert_eq!(clock.unix_ms(5_020_999_999), 1_700_000_000_143);
        assert_eq!(clock.ktime_ns(1_700_000_000_123), 5_000_000_000);
    }
}
