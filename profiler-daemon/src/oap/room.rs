//! How much may wait for an OAP in memory, and how much does.
//!
//! Snapshots are what a user thinks in, bytes are what the host has. Stacks and texts that snapshots of a
//! request share count once; what requests share among each other, and with the caches of the daemon, counts
//! for each of them, so the memory is never more than what is counted.

use std::collections::HashSet;
use std::sync::Arc;

use prost::Message;

use super::outgoing::{Item, Outgoing};
use crate::model::Snapshot;

/// Counters in front of what an `Arc` points to.
const ARC_BYTES: usize = 16;
/// A message takes about so many times the bytes it is sent as: texts have a pointer, a length and a room.
const MESSAGE_FACTOR: usize = 4;
/// A finish report and its counts; notes come on top.
const FINISH_BYTES: usize = 4096;

/// An amount of snapshots and of their memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueRoom {
    /// Snapshots.
    pub snapshots: usize,
    /// Bytes.
    pub bytes: usize,
}

impl Default for QueueRoom {
    fn default() -> Self {
        Self {
            // Nine requests of two minutes at 10 ms.
            snapshots: 108_000,
            // The largest request an OAP can show: 12,000 stacks of 500 frames that all differ.
            bytes: 128 << 20,
        }
    }
}

impl QueueRoom {
    pub(super) const NONE: Self = Self {
        snapshots: 0,
        bytes: 0,
    };

    /// Snapshots and memory of an item.
    pub(super) fn of(item: &Item) -> Self {
        let bytes = match item {
            Item::Segment(segment) => segment_bytes(segment),
            Item::Finish(_, coverage) => {
                FINISH_BYTES + coverage.notes().map(|note| note.len()).sum::<usize>()
            }
        };
        Self {
            snapshots: item.snapshots(),
            bytes,
        }
    }

    /// Whether `more` can be added to `self` within `limit`. A request of more snapshots than the limit has
    /// its place when nothing else waits; bytes have no exception.
    pub(super) fn has_place_for(self, more: Self, limit: Self) -> bool {
        let snapshots = self.snapshots + more.snapshots;
        (self.snapshots == 0 || snapshots <= limit.snapshots)
            && self.bytes + more.bytes <= limit.bytes
    }
}

impl std::ops::AddAssign for QueueRoom {
    fn add_assign(&mut self, more: Self) {
        self.snapshots += more.snapshots;
        self.bytes += more.bytes;
    }
}

fn segment_bytes(segment: &Outgoing) -> usize {
    let object = segment.object.as_ref();
    let mut bytes = size_of::<Outgoing>()
        + MESSAGE_FACTOR * object.map_or(0, Message::encoded_len)
        + segment.snapshots.capacity() * size_of::<Snapshot>();
    let mut stacks = HashSet::new();
    let mut texts = HashSet::new();
    for snapshot in &segment.snapshots {
        if stacks.insert(Arc::as_ptr(&snapshot.stack).cast::<()>()) {
            bytes += ARC_BYTES + size_of_val(&*snapshot.stack);
            for text in snapshot.stack.iter() {
                if texts.insert(Arc::as_ptr(text).cast::<()>()) {
                    bytes += ARC_BYTES + text.len();
                }
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::segment::tests::segment;
    use super::*;

    fn bytes(snapshots: Vec<Snapshot>) -> usize {
        let mut outgoing = Outgoing::new(segment("t", "s", &["m"]));
        outgoing.object = None;
        outgoing.snapshots = snapshots;
        QueueRoom::of(&Item::Segment(Box::new(outgoing))).bytes
    }

    fn snapshot(stack: &Arc<[Arc<str>]>) -> Snapshot {
        Snapshot {
            sequence: 0,
            unix_ms: 0,
            stack: Arc::clone(stack),
        }
    }

    /// Check that what snapshots share is counted once, and what they do not share is counted.
    #[test]
    fn what_is_shared_counts_once() {
        let text: Arc<str> = Arc::from("x".repeat(1000));
        let stack: Arc<[Arc<str>]> = vec![Arc::clone(&text); 10].into();
        let same: Arc<[Arc<str>]> = vec![Arc::clone(&text); 10].into();
        let empty = bytes(Vec::new());
        let one = bytes(vec![snapshot(&stack)]);
        assert_eq!(
            one - empty,
            size_of::<Snapshot>() + ARC_BYTES + 10 * size_of::<Arc<str>>() + ARC_BYTES + 1000
        );
        let shared = bytes(vec![snapshot(&stack), snapshot(&stack)]);
        assert_eq!(shared - one, size_of::<Snapshot>());
        let two = bytes(vec![snapshot(&stack), snapshot(&same)]);
        assert_eq!(two - shared, ARC_BYTES + 10 * size_of::<Arc<str>>());
    }

    /// Check that a request over the number of snapshots has a place when it is alone, and one over the
    /// bytes has none.
    #[test]
    fn bytes_have_no_exception() {
        let room = |snapshots, bytes| QueueRoom { snapshots, bytes };
        let limit = room(10, 100);
        assert!(room(0, 0).has_place_for(room(99, 100), limit));
        assert!(!room(0, 0).has_place_for(room(1, 101), limit));
        assert!(!room(1, 0).has_place_for(room(10, 1), limit));
        assert!(!room(0, 1).has_place_for(room(0, 100), limit));
    }
}
