//! Puts the samples of a finished request in their places: one per dump period, head and tail.
//!
//! In:  [`TimedStack`]s of one request, in any order, as [`Samples`] has kept them while it was open
//! Out: [`Timeline`] to [`crate::snapshot`]
//! Lost: a period without a sample shows as [`Counter::PeriodsExpected`] above
//!       [`Counter::PeriodsSampled`]
//!
//! ```text
//!  grid      |    |    |    |    |    |    |       one tick per dump period, the same for all CPUs
//!  request     [=========================]
//!  samples        a    a    b    b    b            one per tick; of two (a switch within it) the first
//!  timeline    a  a      ab      b    b  b         a change halfway between its ticks; first stack again at
//!                                                  the start, last one at the end
//!
//!  blocked            <========>                   switched out and in again, by the kernel's clock
//!  samples        a    b    b    c
//!  timeline       a   b        bc                  its first and last sample stand at its edges
//! ```
//!
//! # Why
//! OAP counts the time between the first and the last snapshot of a run, so without head and tail a
//! request would lose up to two periods, and each function on average one. Of a blocked thread it is
//! known since when and until when a stack held. A snapshot of it is true at any instant between, so the
//! first one is given the earliest and the last one the latest: the durations of what blocks become
//! exact, while their number stays one per period.
//!
//! Of a running thread it is only known that its stack changed between two ticks. Their middle is at most
//! half a period wrong, at either end of a function, so that one seen at two ticks is never shown more than a
//! period too long or too short. A snapshot between two changes can stand at one of them: it goes to the
//! one nearer to the root, which ends or begins the longer-lasting function.

mod collect;
mod grid;

use crate::model::{Counter, Coverage, Frame, Stack, TimedStack};

pub use collect::Samples;
pub use grid::{Grid, Grids};

/// Samples of one request in order, from its start to its end.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// Ordered by time, inside the request; empty if there was no sample.
    pub samples: Vec<TimedStack>,
}

/// Builds the timeline of a request that ran from `start_ktime_ns` to `end_ktime_ns`.
#[must_use]
pub fn build(
    mut samples: Vec<TimedStack>,
    grids: &Grids,
    start_ktime_ns: u64,
    end_ktime_ns: u64,
    losses: &mut Coverage,
) -> Timeline {
    let end_ktime_ns = end_ktime_ns.max(start_ktime_ns);
    samples.retain(|s| (start_ktime_ns..=end_ktime_ns).contains(&s.ktime_ns));
    samples.sort_by_key(|s| s.ktime_ns);
    samples.dedup_by_key(|s| grids.tick_of(s.ktime_ns));

    let expected = grids.ticks_between(start_ktime_ns, end_ktime_ns);
    losses.add(Counter::PeriodsExpected, expected);
    losses.add(Counter::PeriodsSampled, expected.min(samples.len() as u64));

    meet_halfway(&mut samples);
    move_to_edges(&mut samples, start_ktime_ns, end_ktime_ns);
    if let (Some(first), Some(last)) = (samples.first().cloned(), samples.last().cloned()) {
        if first.ktime_ns > start_ktime_ns {
            samples.insert(0, TimedStack::at(start_ktime_ns, first.stack));
        }
        if last.ktime_ns < end_ktime_ns {
            samples.push(TimedStack::at(end_ktime_ns, last.stack));
        }
    }
    Timeline { samples }
}

/// Lets stacks that follow each other without a known edge hold until, and since, the middle between them.
fn meet_halfway(samples: &mut [TimedStack]) {
    let known: Vec<(u64, u64)> = samples
        .iter()
        .map(|s| (s.since_ktime_ns, s.until_ktime_ns))
        .collect();
    let shared: Vec<usize> = samples
        .windows(2)
        .map(|pair| shared_frames(&pair[0].stack, &pair[1].stack))
        .collect();
    for (index, sample) in samples.iter_mut().enumerate() {
        let at_ns = sample.ktime_ns;
        if known[index] != (at_ns, at_ns) {
            continue;
        }
        let before = index.checked_sub(1);
        let left = before.map_or(usize::MAX, |before| shared[before]);
        let right = shared.get(index).copied().unwrap_or(usize::MAX);
        if let Some(before) = before
            && left < right
        {
            sample.since_ktime_ns = at_ns - at_ns.saturating_sub(known[before].1) / 2;
        } else if right < left {
            sample.until_ktime_ns = at_ns + known[index + 1].0.saturating_sub(at_ns) / 2;
        }
    }
}

/// How many frames two stacks share from the root on; without end if they are the same.
fn shared_frames(one: &Stack<Frame>, other: &Stack<Frame>) -> usize {
    let frames = one.frames.iter().rev().zip(other.frames.iter().rev());
    let shared = frames.take_while(|(one, other)| one == other).count();
    if shared == one.frames.len() && shared == other.frames.len() {
        usize::MAX
    } else {
        shared
    }
}

/// Gives each sample the instant furthest from its tick at which its stack held; of two, the earlier one.
fn move_to_edges(samples: &mut [TimedStack], start_ktime_ns: u64, end_ktime_ns: u64) {
    let mut earliest_ns = start_ktime_ns;
    for sample in samples {
        let is_first = sample.since_ktime_ns < sample.ktime_ns;
        let edge_ns = if is_first {
            sample.since_ktime_ns
        } else {
            sample.until_ktime_ns
        };
        sample.ktime_ns = edge_ns.min(end_ktime_ns).max(earliest_ns);
        earliest_ns = sample.ktime_ns;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{FrameKind, UnwindEnd};

    const MS: u64 = 1_000_000;

    fn grids() -> Grids {
        let grid = Grid {
            origin_ktime_ns: 3 * MS,
            period_ns: 10 * MS,
        };
        Grids::new(grid, grid.period_ns)
    }

    /// A stack with one letter for each function, the outermost first.
    fn at(ms: u64, names: &str) -> TimedStack {
        let frame = |name: char| Frame::new(name.to_string(), FrameKind::Native);
        let frames = names.chars().rev().map(frame).collect();
        let stack = Arc::new(Stack {
            frames,
            end: UnwindEnd::Root,
        });
        TimedStack::at(ms * MS, stack)
    }

    fn held(sample: TimedStack, since_ms: u64, until_ms: u64) -> TimedStack {
        TimedStack {
            since_ktime_ns: since_ms * MS,
            until_ktime_ns: until_ms * MS,
            ..sample
        }
    }

    /// Draws a timeline as "time name" words.
    fn draw(timeline: &Timeline) -> String {
        let words: Vec<String> = timeline
            .samples
            .iter()
            .map(|s| {
                let frames = s.stack.frames.iter().rev();
                let names: String = frames.map(|frame| frame.signature.to_string()).collect();
                format!("{}{names}", s.ktime_ns / MS)
            })
            .collect();
        words.join(" ")
    }

    /// Check that head and tail are filled with the first and last known stacks.
    #[test]
    fn head_and_tail_carry_the_nearest_stack() {
        let mut losses = Coverage::default();
        let samples = vec![at(23, "a"), at(13, "a"), at(33, "b"), at(43, "b")];
        let timeline = build(samples, &grids(), 8 * MS, 51 * MS, &mut losses);
        assert_eq!(draw(&timeline), "8a 13a 28a 28b 43b 51b");
        assert_eq!(losses.get(Counter::PeriodsExpected), 4);
        assert_eq!(losses.get(Counter::PeriodsSampled), 4);
    }

    /// Check that samples outside the request are left out and two in one tick become one.
    #[test]
    fn samples_outside_and_doubles_are_left_out() {
        let mut losses = Coverage::default();
        let samples = vec![
            at(3, "x"),
            at(13, "a"),
            at(14, "b"),
            at(24, "c"),
            at(60, "x"),
        ];
        let timeline = build(samples, &grids(), 10 * MS, 30 * MS, &mut losses);
        assert_eq!(draw(&timeline), "10a 18a 18c 30c");
        assert_eq!(losses.get(Counter::PeriodsSampled), 2);
    }

    /// Check that a change stands halfway between its ticks, that of a function nearer to the root first, and
    /// that a lost period is shared.
    #[test]
    fn a_change_stands_halfway() {
        let mut losses = Coverage::default();
        let samples = vec![
            at(13, "mab"),
            at(23, "mac"), // below a; the next change is that of a itself
            at(33, "md"),
            at(43, "mde"), // both changes are below d: it stays
            at(53, "mdf"),
            at(73, "mg"),
            at(83, "mg"),
        ];
        let timeline = build(samples, &grids(), 12 * MS, 84 * MS, &mut losses);
        assert_eq!(
            draw(&timeline),
            "12mab 18mab 28mac 28md 43mde 63mdf 63mg 83mg 84mg"
        );
    }

    /// Check that the samples of a block stand at its edges, inside the request, one a period as before.
    #[test]
    fn a_block_reaches_from_switch_to_switch() {
        let mut losses = Coverage::default();
        let samples = vec![
            at(13, "a"),
            held(at(23, "b"), 15, 23),
            at(33, "b"),
            held(at(43, "b"), 43, 51),
            held(at(53, "c"), 52, 55), // of one sample, the earlier edge
            held(at(63, "d"), 61, 63),
            held(at(73, "d"), 73, 90), // it goes on after the request
        ];
        let timeline = build(samples, &grids(), 12 * MS, 80 * MS, &mut losses);
        assert_eq!(draw(&timeline), "12a 14a 15b 33b 51b 52c 61d 80d");
        assert_eq!(losses.get(Counter::PeriodsSampled), 7);
    }

    /// Check that times never run backwards, whatever the clocks of two CPUs say.
    #[test]
    fn times_never_run_backwards() {
        let mut losses = Coverage::default();
        let samples = vec![held(at(13, "a"), 13, 24), held(at(23, "b"), 14, 23)];
        let timeline = build(samples, &grids(), 12 * MS, 30 * MS, &mut losses);
        assert_eq!(draw(&timeline), "12a 24a 24b 30b");
    }

    /// Check that a period without a sample is expected but not sampled.
    #[test]
    fn a_missing_period_shows_in_the_counts() {
        let mut losses = Coverage::default();
        let timeline = build(
            vec![at(13, "a"), at(43, "a")],
            &grids(),
            12 * MS,
            44 * MS,
            &mut losses,
        );
        assert_eq!(draw(&timeline), "12a 13a 43a 44a");
        assert_eq!(losses.get(Counter::PeriodsExpected), 4);
        assert_eq!(losses.get(Counter::PeriodsSampled), 2);
    }

    /// Check that a period that became longer in the middle expects fewer samples from there on.
    #[test]
    fn a_longer_period_expects_fewer_samples() {
        let mut losses = Coverage::default();
        let mut grids = grids();
        let longer = Grid {
            origin_ktime_ns: 30 * MS,
            period_ns: 20 * MS,
        };
        grids.change(30 * MS, longer);
        let samples = vec![at(13, "a"), at(23, "a"), at(50, "a"), at(70, "a")];
        let timeline = build(samples, &grids, 12 * MS, 80 * MS, &mut losses);
        assert_eq!(draw(&timeline), "12a 13a 23a 50a 70a 80a");
        assert_eq!(losses.get(Counter::PeriodsExpected), 4);
        assert_eq!(losses.get(Counter::PeriodsSampled), 4);
    }

    /// Check that a request shorter than a period expects nothing and may have nothing.
    #[test]
    fn a_request_between_two_ticks_expects_nothing() {
        let mut losses = Coverage::default();
        assert!(
            build(Vec::new(), &grids(), 14 * MS, 15 * MS, &mut losses)
                .samples
                .is_empty()
        );
        assert_eq!(losses.get(Counter::PeriodsExpected), 0);
    }
}
