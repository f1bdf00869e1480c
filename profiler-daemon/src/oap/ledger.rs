//! Keeps what became of the requests of each task, and the ids of those that were reported.
//!
//! In:  what [`super::queue`] and [`super::report`] settle
//! Out: [`DeliveryStats`] of an instance of a task, of a task, of all
//! Lost: counts of tasks beyond [`TASKS_MAX`], which stay in the sum of all; ids beyond [`SEGMENTS_MAX`]: such a segment would
//! be taken again

use std::collections::{BTreeMap, HashSet, VecDeque};

use super::delivery::DeliveryStats;
use super::queue::TaskAt;
use crate::model::TaskId;

/// Tasks whose counts are kept.
pub(super) const TASKS_MAX: usize = 1024;
/// Segment ids remembered to recognise one that is reported again.
const SEGMENTS_MAX: usize = 4096;

/// What became of snapshots and segments, by task and instance.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    stats: BTreeMap<TaskAt, DeliveryStats>,
    /// Keys of `stats`, oldest first.
    order: VecDeque<TaskAt>,
    /// Sum of what is no longer in `stats`.
    forgotten: DeliveryStats,
}

impl Ledger {
    /// The counts of one instance, to be changed.
    pub(super) fn of(&mut self, key: &TaskAt) -> &mut DeliveryStats {
        if !self.stats.contains_key(key) {
            if self.order.len() >= TASKS_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.forgotten += self.stats.remove(&oldest).unwrap_or_default();
            }
            self.order.push_back(key.clone());
        }
        self.stats.entry(key.clone()).or_default()
    }

    /// The counts of one instance.
    pub(super) fn at(&self, key: &TaskAt) -> DeliveryStats {
        self.stats.get(key).copied().unwrap_or_default()
    }

    /// The counts of a task, over all instances.
    pub(super) fn of_task(&self, task_id: &TaskId) -> DeliveryStats {
        let fitting = self.stats.iter().filter(|((id, _), _)| id == task_id);
        fitting.map(|(_, stats)| *stats).sum()
    }

    /// All counts so far, tasks that are forgotten included.
    pub(super) fn all(&self) -> DeliveryStats {
        self.stats.values().copied().chain([self.forgotten]).sum()
    }

    /// All that waits is lost; returns how many snapshots.
    pub(super) fn lose_queued(&mut self) -> u64 {
        let mut lost = 0;
        for stats in self.stats.values_mut() {
            lost += stats.snapshots_queued;
            stats.snapshots_lost += stats.snapshots_queued;
            stats.snapshots_queued = 0;
        }
        lost
    }
}

/// The latest segments that were reported.
#[derive(Debug, Default)]
pub(super) struct Reported {
    ids: HashSet<String>,
    order: VecDeque<String>,
}

impl Reported {
    pub(super) fn contains(&self, segment_id: &str) -> bool {
        self.ids.contains(segment_id)
    }

    pub(super) fn add(&mut self, segment_id: &str) {
        if self.order.len() >= SEGMENTS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        self.ids.insert(segment_id.to_owned());
        self.order.push_back(segment_id.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Service;

    /// Check that counts of old tasks stay in the sum, and that ids are forgotten, the oldest first.
    #[test]
    fn both_are_bounded() {
        let mut ledger = Ledger::default();
        let key = |n: usize| {
            let service = Service {
                name: "svc".to_owned(),
                instance: "one".to_owned(),
            };
            (TaskId(n.to_string()), service)
        };
        let mut reported = Reported::default();
        for n in 0..=TASKS_MAX {
            ledger.of(&key(n)).snapshots_sent += 1;
        }
        assert_eq!(ledger.at(&key(0)), DeliveryStats::default());
        assert_eq!(ledger.of_task(&key(1).0).snapshots_sent, 1);
        assert_eq!(ledger.all().snapshots_sent, TASKS_MAX as u64 + 1);
        for n in 0..=SEGMENTS_MAX {
            reported.add(&n.to_string());
        }
        assert!(!reported.contains("0") && reported.contains("1"));
    }
}
