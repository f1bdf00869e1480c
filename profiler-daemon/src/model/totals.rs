//! Sums of the counts of all tasks, which never go back.
//!
//! In:  the running totals of live tasks, again and again; the end of each
//! Out: one sum for each [`Counter`]
//!
//! ```text
//! task a  3 ── 5 ── end          ended 5
//! task b       1 ── 4 ── 4       live  4       sum 9
//! ```

use std::collections::HashMap;

use super::{Counter, Coverage, TaskId};

type Counts = HashMap<Counter, u64>;

/// The sums.
#[derive(Debug, Default)]
pub struct Totals {
    ended: Counts,
    live: HashMap<TaskId, Counts>,
}

impl Totals {
    /// Takes over the running totals of a live task. One that is less than it was, because a map could not
    /// be read for once, stays as it was.
    pub fn update(&mut self, task_id: &TaskId, coverage: &Coverage) {
        if !self.live.contains_key(task_id) {
            self.live.insert(task_id.clone(), Counts::new());
        }
        if let Some(counts) = self.live.get_mut(task_id) {
            for counter in Counter::all() {
                let count = coverage.get(counter);
                if count > 0 {
                    let known = counts.entry(counter).or_default();
                    *known = count.max(*known);
                }
            }
        }
    }

    /// Counts what belongs to no live task.
    pub fn add(&mut self, counter: Counter, n: u64) {
        *self.ended.entry(counter).or_default() += n;
    }

    /// Keeps what a task has counted; what comes under its id later counts from zero.
    pub fn end(&mut self, task_id: &TaskId) {
        for (counter, count) in self.live.remove(task_id).into_iter().flatten() {
            *self.ended.entry(counter).or_default() += count;
        }
    }

    /// The sum over all tasks, ended and live.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        let all = self.live.values().chain([&self.ended]);
        all.filter_map(|counts| counts.get(&counter)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(requests: u64) -> Coverage {
        let mut coverage = Coverage::default();
        coverage.add(Counter::RequestsSeen, requests);
        coverage
    }

    /// Check that live tasks count with what they have now, ended ones with what they had, and that the sum
    /// never goes back: not at an end, not when a total shrinks, not when an id comes again.
    #[test]
    fn sums_never_go_back() {
        let (a, b) = (TaskId("a".to_owned()), TaskId("b".to_owned()));
        let mut totals = Totals::default();
        let mut sums = Vec::new();
        type Step<'a> = &'a dyn Fn(&mut Totals);
        let steps: [Step<'_>; 8] = [
            &|totals| totals.update(&a, &counted(3)),
            &|totals| totals.update(&b, &counted(1)),
            &|totals| totals.update(&a, &counted(5)),
            &|totals| totals.update(&a, &counted(0)),
            &|totals| totals.end(&a),
            &|totals| totals.end(&a),
            &|totals| totals.update(&a, &counted(2)),
            &|totals| totals.update(&b, &counted(4)),
        ];
        for step in steps {
            step(&mut totals);
            sums.push(totals.get(Counter::RequestsSeen));
        }
        assert_eq!(sums, [3, 4, 6, 6, 6, 6, 8, 11]);
        assert_eq!(totals.get(Counter::RequestsMatched), 0);
    }
}
