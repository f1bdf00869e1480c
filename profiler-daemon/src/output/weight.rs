//! Turns snapshots into weighted stacks.
//!
//! ```text
//! time      0    10   20   30   40   50 ms
//! stack     A    A    A>B  A>B  C    C         the last one stands for no time: the request is over
//! weight    |-- A: 20 |- A>B: 20|-C: 10|       in ms the weights add up to the request's duration
//! count         2         2        2           and in snapshots to their number
//! ```

use crate::model::{ProfileReport, SegmentReport};

/// One snapshot's stack and what it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Weighted<'a> {
    /// Code signatures, root first.
    pub(super) stack: &'a [String],
    /// Wall-clock milliseconds until the next snapshot; 0 where times run backwards.
    pub(super) wall_ms: i64,
}

/// One weighted stack per snapshot of a segment, in order.
pub(super) fn weigh(segment: &SegmentReport) -> impl Iterator<Item = Weighted<'_>> {
    let snapshots = &segment.snapshots;
    snapshots.iter().enumerate().map(|(index, snapshot)| {
        let next_ms = snapshots
            .get(index + 1)
            .map_or(snapshot.time_ms, |s| s.time_ms);
        Weighted {
            stack: &snapshot.stack,
            wall_ms: next_ms.saturating_sub(snapshot.time_ms).max(0),
        }
    })
}

/// The same for all segments of a report.
pub(super) fn weigh_all(report: &ProfileReport) -> impl Iterator<Item = Weighted<'_>> {
    report.segments.iter().flat_map(weigh)
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    /// Check that weights add up to the request's duration, and that the last snapshot weighs nothing.
    #[test]
    fn weights_add_up_to_the_duration() {
        let report = sample::report();
        let weights: Vec<i64> = weigh_all(&report).map(|w| w.wall_ms).collect();
        assert_eq!(weights, [10, 10, 10, 10, 10, 10, 0]);
        assert_eq!(weights.iter().sum::<i64>(), report.segments[0].duration_ms);
    }

    /// Check that times that run backwards cannot make a negative weight.
    #[test]
    fn backward_times_weigh_nothing() {
        let mut segment = sample::segment("s", &[&["a"], &["a"]]);
        segment.snapshots[1].time_ms = i64::MIN;
        assert!(weigh(&segment).all(|w| w.wall_ms == 0));
    }
}
