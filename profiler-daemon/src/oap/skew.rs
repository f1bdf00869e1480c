//! How far the clock of an OAP differs from that of this host.
//!
//! In:  `date` headers of answers; creation times of tasks
//! Out: the least difference that explains them, when it is more than a second, in the log and to whoever
//! asks
//!
//! Tasks begin and end by the clock of this host, as with agents, and snapshots carry its time. An OAP whose
//! clock differs delivers tasks early or late, and shows results at other times than its users expect.
//!
//! ```text
//! asked ──────── the OAP says d ──────── answered         our clock
//!   difference < d + 1 s - asked,  difference >= d - answered   (d is in whole seconds)
//! ```
//! SkyWalking's OAP sends no `date`. The creation time of a task then tells: it was created before it came,
//! and not long before we asked last and did not get it.

use std::sync::{Mutex, PoisonError};

use tonic::metadata::MetadataMap;
use tracing::{info, warn};

/// Differences up to this are not worth a word: whole seconds, and pauses of either side.
const TOLERATED_MS: i64 = 1_000;
/// An OAP looks for new tasks every 10 s; the rest is for its pauses.
const DELIVERY_DELAY_MS: i64 = 20_000;
/// An OAP hands out a task from five minutes before its start.
const DELIVERED_AHEAD_MS: i64 = 5 * 60_000;

/// OAP's clock less ours lies in here, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) least_ms: i64,
    pub(super) most_ms: i64,
}

impl Bounds {
    const UNKNOWN: Self = Self {
        least_ms: i64::MIN,
        most_ms: i64::MAX,
    };

    /// From the `date` of an answer, if it has one.
    pub(super) fn of_answer(
        headers: &MetadataMap,
        asked_ms: i64,
        answered_ms: i64,
    ) -> Option<Self> {
        let date = httpdate::parse_http_date(headers.get("date")?.to_str().ok()?).ok()?;
        let since = date.duration_since(std::time::UNIX_EPOCH).ok()?;
        let date_ms = i64::try_from(since.as_millis()).ok()?;
        Some(Self {
            least_ms: date_ms - answered_ms,
            most_ms: date_ms + 1_000 - asked_ms,
        })
    }

    /// From a task that came now and did not come when we asked before.
    pub(super) fn of_task(
        create_ms: i64,
        start_ms: i64,
        asked_before_ms: Option<i64>,
        now_ms: i64,
    ) -> Self {
        let was_due = start_ms.saturating_sub(create_ms) < DELIVERED_AHEAD_MS;
        let most_ms = asked_before_ms
            .filter(|_| was_due)
            .map(|asked_ms| create_ms.saturating_sub(asked_ms - DELIVERY_DELAY_MS));
        Self {
            least_ms: create_ms.saturating_sub(now_ms),
            most_ms: most_ms.unwrap_or(i64::MAX),
        }
    }

    /// What both allow; the newer one alone if that is nothing, as after a clock was set.
    fn and(self, newer: Self) -> Self {
        let both = Self {
            least_ms: self.least_ms.max(newer.least_ms),
            most_ms: self.most_ms.min(newer.most_ms),
        };
        if both.least_ms <= both.most_ms {
            both
        } else {
            newer
        }
    }

    /// The difference nearest to none that is possible, if that is too much. Positive: the OAP is ahead.
    fn difference_ms(self) -> Option<i64> {
        if self.least_ms > TOLERATED_MS {
            Some(self.least_ms)
        } else if self.most_ms < -TOLERATED_MS {
            Some(self.most_ms)
        } else {
            None
        }
    }
}

/// What is known of the clock of the OAP.
#[derive(Debug)]
pub(super) struct Skew(Mutex<Known>);

#[derive(Debug)]
struct Known {
    bounds: Bounds,
    /// The difference that was logged last.
    told_ms: Option<i64>,
}

impl Default for Skew {
    fn default() -> Self {
        Self(Mutex::new(Known {
            bounds: Bounds::UNKNOWN,
            told_ms: None,
        }))
    }
}

impl Skew {
    /// Learns from an answer or a task, and logs a new difference.
    pub(super) fn learn(&self, bounds: Bounds) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.bounds = known.bounds.and(bounds);
        let now = known.bounds.difference_ms();
        let change_ms = now.unwrap_or(0).abs_diff(known.told_ms.unwrap_or(0));
        if change_ms > TOLERATED_MS.unsigned_abs() {
            known.told_ms = now;
            drop(known);
            match now {
                Some(ms) => warn!("{}", text(ms)),
                None => info!("the clock of the OAP agrees with the clock of this host again"),
            }
        }
    }

    /// Another OAP has another clock.
    pub(super) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).bounds = Bounds::UNKNOWN;
    }

    /// OAP's clock less ours, at least, if that is too much.
    pub(super) fn difference_ms(&self) -> Option<i64> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.bounds.difference_ms()
    }

    /// A sentence about the difference, if there is one.
    pub(super) fn text(&self) -> Option<String> {
        self.difference_ms().map(text)
    }
}

fn text(difference_ms: i64) -> String {
    let seconds = difference_ms.unsigned_abs() as f64 / 1000.0;
    let side = if difference_ms > 0 {
        "ahead of"
    } else {
        "behind"
    };
    format!(
        "the clock of the OAP is at least {seconds:.1} s {side} the clock of this host, by which tasks start \
         and end and snapshots are dated"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_405_209_971;

    fn dated(date: &str, asked_ms: i64, answered_ms: i64) -> Option<Bounds> {
        let mut headers = MetadataMap::new();
        headers.insert("date", date.parse().unwrap());
        Bounds::of_answer(&headers, asked_ms, answered_ms)
    }

    /// Check that a date is right to its second and the time the answer took, and that garbage says nothing.
    #[test]
    fn an_answer_bounds_the_difference() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        let date_ms = 784_111_777_000;
        let bounds = dated(date, date_ms - 100, date_ms + 200).unwrap();
        assert_eq!((bounds.least_ms, bounds.most_ms), (-200, 1_100));
        assert_eq!(bounds.difference_ms(), None);
        let behind = dated(date, date_ms + 7_000, date_ms + 7_300).unwrap();
        assert_eq!(behind.difference_ms(), Some(-6_000));
        let ahead = dated(date, date_ms - 7_300, date_ms - 7_000).unwrap();
        assert_eq!(ahead.difference_ms(), Some(7_000));
        assert_eq!(dated("yesterday", 0, 0), None);
        assert_eq!(Bounds::of_answer(&MetadataMap::new(), 0, 0), None);
    }

    /// Check that a task created later than now shows a clock that is ahead, and one created long before we
    /// asked in vain a clock that is behind, unless it was scheduled for later.
    #[test]
    fn a_task_bounds_the_difference() {
        let of = |create_ms: i64, start_ms, asked| {
            Bounds::of_task(create_ms, start_ms, asked, NOW).difference_ms()
        };
        assert_eq!(of(NOW + 30_000, NOW + 30_000, None), Some(30_000));
        assert_eq!(of(NOW - 9_000, NOW - 9_000, Some(NOW - 2_000)), None);
        let old = NOW - 120_000;
        assert_eq!(of(old, old, None), None); // before we were there
        assert_eq!(of(old, old, Some(NOW - 2_000)), Some(-98_000));
        assert_eq!(of(old, old + DELIVERED_AHEAD_MS, Some(NOW - 2_000)), None);
    }

    /// Check that bounds are narrowed, and start over when a clock was set.
    #[test]
    fn bounds_are_narrowed() {
        let bounds = |least_ms, most_ms| Bounds { least_ms, most_ms };
        let known = Bounds::UNKNOWN.and(bounds(-500, 5_000));
        assert_eq!(known.and(bounds(1_500, 9_000)), bounds(1_500, 5_000));
        assert_eq!(known.and(bounds(60_000, 60_900)), bounds(60_000, 60_900));
        let skew = Skew::default();
        assert_eq!(skew.text(), None);
        skew.learn(bounds(60_000, 60_900));
        assert!(skew.text().unwrap().contains("at least 60.0 s ahead of"));
        skew.forget();
        assert_eq!(skew.text(), None);
    }
}
