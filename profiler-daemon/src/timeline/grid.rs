//! The instants at which a request's thread is sampled.
//!
//! ```text
//!  piece 0   |    |    |    |   .                        one tick per dump period
//!  piece 1                      .|         |         |   since here: another period, another origin
//! ```

/// Ticks at one distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// `CLOCK_MONOTONIC` of some tick.
    pub origin_ktime_ns: u64,
    /// Distance between two ticks: the dump period, in nanoseconds; not 0.
    pub period_ns: u64,
}

impl Grid {
    /// Number of the tick nearest to an instant. Numbers before the origin are negative.
    #[must_use]
    pub fn tick_of(self, ktime_ns: u64) -> i64 {
        let offset = i128::from(ktime_ns) - i128::from(self.origin_ktime_ns);
        let period = i128::from(self.period_ns.max(1));
        ((offset + period / 2).div_euclid(period)) as i64
    }

    /// First tick strictly after an instant.
    #[must_use]
    fn tick_after(self, ktime_ns: u64) -> i64 {
        let offset = i128::from(ktime_ns) - i128::from(self.origin_ktime_ns);
        (offset.div_euclid(i128::from(self.period_ns.max(1))) + 1) as i64
    }

    /// Ticks after `from_ktime_ns`, up to and with `to_ktime_ns`.
    fn ticks_between(self, from_ktime_ns: u64, to_ktime_ns: u64) -> u64 {
        let ticks = self.tick_after(to_ktime_ns) - self.tick_after(from_ktime_ns);
        ticks.max(0).cast_unsigned()
    }
}

/// The grids that a request has lived through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grids {
    asked_period_ns: u64,
    /// In order of time, with the instant since which each holds; the first one from the beginning on.
    pieces: Vec<(u64, Grid)>,
}

impl Grids {
    /// One grid, for a task that asked for `asked_period_ns`.
    #[must_use]
    pub fn new(grid: Grid, asked_period_ns: u64) -> Self {
        Self {
            asked_period_ns,
            pieces: vec![(0, grid)],
        }
    }

    /// Another grid holds since an instant, after those before.
    pub fn change(&mut self, since_ktime_ns: u64, grid: Grid) {
        self.pieces.push((since_ktime_ns, grid));
    }

    /// Tick nearest to an instant, by the grid that held then; equal for two instants of one tick only.
    pub(super) fn tick_of(&self, ktime_ns: u64) -> (usize, i64) {
        let after = self
            .pieces
            .partition_point(|(since, _)| *since <= ktime_ns)
            .max(1);
        (after, self.pieces[after - 1].1.tick_of(ktime_ns))
    }

    /// Ticks after `from_ktime_ns`, up to and with `to_ktime_ns`.
    pub(super) fn ticks_between(&self, from_ktime_ns: u64, to_ktime_ns: u64) -> u64 {
        let ends = self.pieces.iter().skip(1).map(|(since, _)| *since);
        let ends = ends.chain([u64::MAX]);
        let pieces = self.pieces.iter().zip(ends);
        let ticks = pieces.map(|((since, grid), end)| {
            let (from, to) = (from_ktime_ns.max(*since), to_ktime_ns.min(end));
            if from < to {
                grid.ticks_between(from, to)
            } else {
                0
            }
        });
        ticks.sum()
    }

    /// The longest period, up to an instant, of a request of which fewer samples were kept than the task had asked for:
    /// of every `step` ticks one.
    #[must_use]
    pub fn stretched_period_ns(&self, until_ktime_ns: u64, step: u64) -> Option<u64> {
        let held = self
            .pieces
            .iter()
            .filter(|(since, _)| *since < until_ktime_ns);
        let longest = held.map(|(_, grid)| grid.period_ns).max()?;
        let longest = longest.saturating_mul(step);
        (longest > self.asked_period_ns).then_some(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn grid(origin_ms: u64, period_ms: u64) -> Grid {
        Grid {
            origin_ktime_ns: origin_ms * MS,
            period_ns: period_ms * MS,
        }
    }

    /// Check that ticks are counted by the grid that held, each once.
    #[test]
    fn ticks_are_counted_by_the_grid_that_held() {
        let mut grids = Grids::new(grid(3, 10), 10 * MS);
        assert_eq!(grids.ticks_between(10 * MS, 43 * MS), 4); // 13 23 33 43
        grids.change(40 * MS, grid(40, 20));
        grids.change(90 * MS, grid(90, 10));
        assert_eq!(grids.ticks_between(10 * MS, 39 * MS), 3); // 13 23 33
        assert_eq!(grids.ticks_between(10 * MS, 80 * MS), 5); // and 60 80
        assert_eq!(grids.ticks_between(50 * MS, 120 * MS), 5); // 60 80, 100 110 120
        assert_eq!(grids.ticks_between(95 * MS, 99 * MS), 0);
    }

    /// Check that two instants near one tick have its number, and that ticks of two grids differ.
    #[test]
    fn instants_of_one_tick_have_one_number() {
        let mut grids = Grids::new(grid(3, 10), 10 * MS);
        grids.change(40 * MS, grid(40, 20));
        assert_eq!(grids.tick_of(12 * MS), grids.tick_of(14 * MS));
        assert_ne!(grids.tick_of(14 * MS), grids.tick_of(24 * MS));
        assert_eq!(grids.tick_of(59 * MS), grids.tick_of(62 * MS));
        assert_ne!(grids.tick_of(39 * MS), grids.tick_of(41 * MS));
    }

    /// Check that a period longer than asked for is told, and only if it held before the end.
    #[test]
    fn a_stretched_period_is_told() {
        let mut grids = Grids::new(grid(0, 10), 10 * MS);
        assert_eq!(grids.stretched_period_ns(100 * MS, 1), None);
        grids.change(50 * MS, grid(50, 40));
        grids.change(70 * MS, grid(70, 20));
        assert_eq!(grids.stretched_period_ns(50 * MS, 1), None);
        assert_eq!(grids.stretched_period_ns(50 * MS, 4), Some(40 * MS));
        assert_eq!(grids.stretched_period_ns(100 * MS, 1), Some(40 * MS));
    }
}
