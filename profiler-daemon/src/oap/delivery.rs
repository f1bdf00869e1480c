//! What became of snapshots and segments, of one task or of many.

use std::iter::Sum;
use std::ops::AddAssign;

use crate::model::{Counter, Coverage};

/// What became of a task's snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeliveryStats {
    /// Accepted by the OAP.
    pub snapshots_sent: u64,
    /// Not delivered, or without the OAP's confirmation.
    pub snapshots_lost: u64,
    /// Waiting.
    pub snapshots_queued: u64,
    /// Trace segments accepted by the OAP.
    pub segments_sent: u64,
    /// Trace segments not delivered, or without the OAP's confirmation.
    pub segments_lost: u64,
    /// Requests of which a snapshot or the segment was lost.
    pub requests_incomplete: u64,
    /// Service instances for which the end of the task was reported.
    pub finished: u64,
}

impl DeliveryStats {
    /// Adds to the counts of a task what became of its requests since the client started.
    pub fn add_to(&self, coverage: &mut Coverage) {
        coverage.add(Counter::SnapshotsSent, self.snapshots_sent);
        coverage.add(Counter::SnapshotsLost, self.snapshots_lost);
        coverage.add(Counter::RequestsIncomplete, self.requests_incomplete);
    }
}

impl AddAssign for DeliveryStats {
    fn add_assign(&mut self, other: Self) {
        self.snapshots_sent += other.snapshots_sent;
        self.snapshots_lost += other.snapshots_lost;
        self.snapshots_queued += other.snapshots_queued;
        self.segments_sent += other.segments_sent;
        self.segments_lost += other.segments_lost;
        self.requests_incomplete += other.requests_incomplete;
        self.finished += other.finished;
    }
}

impl Sum for DeliveryStats {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, stats| {
            sum += stats;
            sum
        })
    }
}
