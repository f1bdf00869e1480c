//! Keeps the samples of an open request in bounded memory.
//!
//! In:  [`TimedStack`]s as they come
//! Out: the same, in order, equal stacks shared; thinned evenly if they were too many
//! Lost: a sample that is thinned out -> [`Counter::SamplesThinned`]
//!
//! ```text
//!  tick        1  2  3  4  5  6  7  8  9 10
//!  came        a  a  a  a  a  b  b  c  d  d
//!  thinned     a     a     a  b  b  c  d  d     of the inner samples of a run every second tick's
//!  again       a           a  b  b  c  d  d     every fourth tick's
//!  and again   a           a     b  c     d     no inner ones are left: of all every second tick's
//! ```
//!
//! # Why
//! OAP counts the time from the first to the last snapshot of a run of equal ones. The inner ones tell nothing but how
//! often was looked: without them all durations are what they were. Only a request whose stacks differ from sample to
//! sample loses more, and its durations become those of a longer dump period.
//!
//! The first and the last sample of a request stay: they are its head and its tail.

use std::collections::HashSet;
use std::sync::Arc;

use super::Grids;
use crate::model::{Counter, Coverage, Frame, Stack, TimedStack};

/// Most samples kept of a request. With its head and tail these are the snapshots that OAP analyses of a segment
/// (12,000, `CoreModuleConfig.maxSizeOfAnalyzeProfileSnapshot`).
const SAMPLES_MAX: usize = 11_998;
/// Memory of a stack beside its frames: its counts of references, and its place in the set.
const STACK_BYTES: usize = size_of::<Stack<Frame>>() + 6 * size_of::<usize>();
/// Ticks of four months at the shortest dump period: no request is longer.
const STEP_MAX: i64 = 1 << 30;

/// The samples of one request.
#[derive(Debug)]
pub struct Samples {
    /// In the order in which they came, which is nearly that of time.
    kept: Vec<TimedStack>,
    stacks: HashSet<Arc<Stack<Frame>>>,
    stack_bytes: usize,
    step: Step,
    thinned: u64,
    samples_max: usize,
}

/// Of how many ticks one is kept. Powers of two, so that what is kept stays evenly spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    /// Of those inside a run of equal stacks.
    inner: i64,
    /// Of all.
    any: i64,
}

impl Step {
    const ONE: Self = Self { inner: 1, any: 1 };
}

impl Default for Samples {
    fn default() -> Self {
        Self {
            kept: Vec::new(),
            stacks: HashSet::new(),
            stack_bytes: 0,
            step: Step::ONE,
            thinned: 0,
            samples_max: SAMPLES_MAX,
        }
    }
}

impl Samples {
    /// The stack to use for this one: an equal one, if there was one before.
    pub fn share(&mut self, stack: Stack<Frame>) -> Arc<Stack<Frame>> {
        if let Some(known) = self.stacks.get(&stack) {
            return Arc::clone(known);
        }
        let stack = Arc::new(stack);
        self.stack_bytes += stack_bytes(&stack);
        self.stacks.insert(Arc::clone(&stack));
        stack
    }

    /// Takes a sample.
    pub fn push(&mut self, sample: TimedStack, grids: &Grids) {
        self.kept.push(sample);
        if self.kept.len() > self.samples_max {
            self.thin(grids, |samples| {
                samples.kept.len() <= samples.samples_max * 3 / 4
            });
        }
    }

    /// The stack of the latest block held until the thread ran again.
    pub fn end_block(&mut self, blocked: &Arc<Stack<Frame>>, ktime_ns: u64) {
        // Samples of its CPU may have come in between.
        let mut samples = self.kept.iter_mut().rev();
        let is_of_block = |sample: &&mut TimedStack| {
            sample.ktime_ns <= ktime_ns && Arc::ptr_eq(&sample.stack, blocked)
        };
        if let Some(last) = samples.find(is_of_block) {
            last.until_ktime_ns = last.ktime_ns.max(ktime_ns);
        }
    }

    /// Thins the samples until they take half of their memory, or only the first and the last are left.
    pub fn halve(&mut self, grids: &Grids) {
        let before = self.memory_bytes();
        self.thin(grids, |samples| samples.memory_bytes() <= before / 2);
    }

    /// Memory they take, near enough to bound the sum over all requests.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.stack_bytes + size_of_val(&self.kept[..])
    }

    /// How many times as long as the dump period the time between two samples may be.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step.inner.unsigned_abs()
    }

    /// All samples, evenly thinned if they had to be; counts those that are left out.
    #[must_use]
    pub fn finish(mut self, grids: &Grids, losses: &mut Coverage) -> Vec<TimedStack> {
        self.retain(grids); // those since the last time
        losses.add(Counter::SamplesThinned, self.thinned);
        self.kept
    }

    /// Thins the samples as little as will do.
    fn thin(&mut self, grids: &Grids, is_enough: impl Fn(&Self) -> bool) {
        loop {
            self.retain(grids);
            self.forget_stacks();
            if is_enough(self) {
                return;
            }
            let Step { inner, any } = self.step;
            let has_inner = self.are_inner().any(|is_inner| is_inner);
            self.step = if has_inner && inner < STEP_MAX {
                Step {
                    inner: inner * 2,
                    any,
                }
            } else if any < STEP_MAX {
                Step {
                    inner: inner.max(any * 2),
                    any: any * 2,
                }
            } else {
                return; // the first and the last one
            };
        }
    }

    /// Leaves out what the steps leave out.
    fn retain(&mut self, grids: &Grids) {
        if self.step == Step::ONE {
            return;
        }
        self.kept.sort_by_key(|sample| sample.ktime_ns);
        let last = self.kept.len().saturating_sub(1);
        let ticks = self.kept.iter().map(|it| grids.tick_of(it.ktime_ns).1);
        let stays = ticks.zip(self.are_inner()).enumerate();
        let stays: Vec<bool> = stays
            .map(|(at, (tick, is_inner))| {
                let step = if is_inner {
                    self.step.inner
                } else {
                    self.step.any
                };
                at == 0 || at == last || tick.rem_euclid(step) == 0
            })
            .collect();
        self.hand_on_edges(&stays);
        let before = self.kept.len();
        let mut stays = stays.into_iter();
        self.kept.retain(|_| stays.next().unwrap_or(true));
        self.thinned += (before - self.kept.len()) as u64;
    }

    /// Has the neighbours of samples that do not stay, as far as they are of the same run, know since when and until
    /// when its stack held.
    fn hand_on_edges(&mut self, stays: &[bool]) {
        for at in 1..self.kept.len() {
            let (before, after) = self.kept.split_at_mut(at);
            let (from, to) = (&before[at - 1], &mut after[0]);
            let is_known = from.since_ktime_ns < from.ktime_ns;
            if !stays[at - 1] && is_known && Arc::ptr_eq(&from.stack, &to.stack) {
                to.since_ktime_ns = to.since_ktime_ns.min(from.since_ktime_ns);
            }
        }
        for at in (1..self.kept.len()).rev() {
            let (before, after) = self.kept.split_at_mut(at);
            let (from, to) = (&after[0], &mut before[at - 1]);
            let is_known = from.until_ktime_ns > from.ktime_ns;
            if !stays[at] && is_known && Arc::ptr_eq(&from.stack, &to.stack) {
                to.until_ktime_ns = to.until_ktime_ns.max(from.until_ktime_ns);
            }
        }
    }

    /// Whether each sample lies inside a run of equal stacks.
    fn are_inner(&self) -> impl Iterator<Item = bool> {
        let same = |one: usize, other: usize| match (self.kept.get(one), self.kept.get(other)) {
            (Some(one), Some(other)) => Arc::ptr_eq(&one.stack, &other.stack),
            _ => false,
        };
        (0..self.kept.len()).map(move |at| at > 0 && same(at - 1, at) && same(at, at + 1))
    }

    /// Drops the stacks that no sample has any more.
    fn forget_stacks(&mut self) {
        self.stacks.retain(|stack| Arc::strong_count(stack) > 1);
        // What a signature takes may have been the symbolizer's until now; memory does not grow by thinning.
        let bytes = self.stacks.iter().map(|stack| stack_bytes(stack)).sum();
        self.stack_bytes = self.stack_bytes.min(bytes);
    }
}

fn stack_bytes(stack: &Stack<Frame>) -> usize {
    // Signatures are shared with the symbolizer, but for those that are made for one frame.
    let own = stack.frames.iter().map(|frame| &frame.signature);
    let own = own.filter(|signature| Arc::strong_count(signature) == 1);
    STACK_BYTES
        + size_of_val(&stack.frames[..])
        + own.map(|signature| signature.len()).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::super::Grid;
    use super::*;
    use crate::model::{FrameKind, UnwindEnd};

    const MS: u64 = 1_000_000;

    fn grids() -> Grids {
        let grid = Grid {
            origin_ktime_ns: 0,
            period_ns: 10 * MS,
        };
        Grids::new(grid, grid.period_ns)
    }

    fn stack(name: &str) -> Stack<Frame> {
        let frame = |name: &str| Frame::new(name, FrameKind::Native);
        Stack {
            frames: vec![frame(name), frame("main")],
            end: UnwindEnd::Root,
        }
    }

    fn samples(max: usize) -> Samples {
        Samples {
            samples_max: max,
            ..Samples::default()
        }
    }

    /// One sample per tick, each with the stack that its letter stands for.
    fn push_all(samples: &mut Samples, letters: &str) {
        for (letter, tick) in letters.chars().zip(1..) {
            let stack = samples.share(stack(&letter.to_string()));
            samples.push(TimedStack::at(tick * 10 * MS, stack), &grids());
        }
    }

    /// "tick letter" words, and how many were thinned out.
    fn finish(samples: Samples) -> (String, u64) {
        let mut losses = Coverage::default();
        let kept = samples.finish(&grids(), &mut losses);
        let words = kept.iter().map(|sample| {
            let tick = sample.ktime_ns / (10 * MS);
            format!("{tick}{}", sample.stack.frames[0].signature)
        });
        let words: Vec<String> = words.collect();
        (words.join(" "), losses.get(Counter::SamplesThinned))
    }

    /// Check that equal stacks are one in memory, and that nothing is thinned below the limit.
    #[test]
    fn equal_stacks_are_shared() {
        let mut samples = samples(100);
        push_all(&mut samples, "abab");
        assert_eq!(samples.stacks.len(), 2);
        let two = samples.memory_bytes();
        push_all(&mut samples, "ab");
        assert_eq!(samples.memory_bytes(), two + 2 * size_of::<TimedStack>());
        assert_eq!(samples.step(), 1);
        assert_eq!(finish(samples).1, 0);
    }

    /// Check that inner samples of runs go first, every second tick's, and that the first and the last of each run
    /// stay, so that all durations do.
    #[test]
    fn inner_samples_go_first() {
        let mut samples = samples(10);
        push_all(&mut samples, "aaaaabbbccd");
        let (drawn, thinned) = finish(samples);
        assert_eq!(drawn, "1a 5a 6b 8b 9c 10c 11d");
        assert_eq!(thinned, 4);
    }

    /// Check that of a request whose stacks all differ every second, then every fourth tick is kept, evenly over all of
    /// it, with its first and its last sample.
    #[test]
    fn stacks_that_all_differ_are_thinned_evenly() {
        let letters: String = ('a'..='z').cycle().take(100).collect();
        let mut samples = samples(40);
        push_all(&mut samples, &letters);
        assert_eq!(samples.step(), 4);
        let mut losses = Coverage::default();
        let kept = samples.finish(&grids(), &mut losses);
        let ticks: Vec<u64> = kept.iter().map(|it| it.ktime_ns / (10 * MS)).collect();
        let even: Vec<u64> = [1].into_iter().chain((1..=25).map(|it| it * 4)).collect();
        assert_eq!(ticks, even);
        assert_eq!(losses.get(Counter::SamplesThinned), 100 - 26);
    }

    /// Check that what goes leaves to its neighbours in the run since when and until when the stack held.
    #[test]
    fn edges_outlive_their_samples() {
        let mut samples = samples(1_000);
        let (a, b) = (samples.share(stack("a")), samples.share(stack("b")));
        let at = |tick: u64, stack: &Arc<_>| TimedStack::at(tick * 10 * MS, Arc::clone(stack));
        samples.push(at(1, &b), &grids());
        let first = TimedStack {
            since_ktime_ns: 21 * MS,
            ..at(3, &a)
        };
        samples.push(first, &grids());
        samples.push(at(4, &a), &grids());
        samples.push(at(5, &a), &grids());
        samples.end_block(&a, 57 * MS);
        samples.push(at(7, &b), &grids());
        samples.step = Step { inner: 4, any: 4 };
        let kept = samples.finish(&grids(), &mut Coverage::default());
        assert_eq!(kept.len(), 3);
        let block = (kept[1].since_ktime_ns, kept[1].until_ktime_ns);
        assert_eq!((kept[1].ktime_ns, block), (40 * MS, (21 * MS, 57 * MS)));
    }

    /// Check that memory is given back until half is left, and that a request of two samples is left alone.
    #[test]
    fn memory_is_given_back() {
        let mut samples = samples(100_000);
        let letters: String = ('a'..='z').cycle().take(500).collect();
        push_all(&mut samples, &letters);
        for tick in 501..1_000 {
            let stack = samples.share(stack(&format!("long {tick}")));
            samples.push(TimedStack::at(tick * 10 * MS, stack), &grids());
        }
        let before = samples.memory_bytes();
        samples.halve(&grids());
        assert!(samples.memory_bytes() <= before / 2);
        for _ in 0..20 {
            samples.halve(&grids());
        }
        assert_eq!(samples.kept.len(), 2);
        assert_eq!(samples.stacks.len(), 2);
    }
}
