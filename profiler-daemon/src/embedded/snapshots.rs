//! The snapshots of one task, with texts and stacks stored once.
//!
//! In:  `ThreadSnapshot`s in any order
//! Out: snapshots of a segment by sequence
//! Lost: nothing here; every insertion tells its outcome and its price in bytes

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::model::Snapshot;

/// Rough price of a map entry beside its content, in bytes.
const ENTRY_BYTES: usize = 64;

type SharedStack = Arc<[Arc<str>]>;

/// One row: time and stack.
#[derive(Clone, Debug)]
struct Row {
    unix_ms: i64,
    stack: SharedStack,
}

/// Snapshots of one task by segment and sequence.
#[derive(Debug, Default)]
pub(super) struct SnapshotTable {
    segments: HashMap<String, BTreeMap<i32, Row>>,
    texts: HashSet<Arc<str>>,
    stacks: HashSet<SharedStack>,
    bytes: usize,
    rows: u64,
}

/// What became of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inserted {
    /// Stored; the first of its segment.
    FirstOfSegment,
    /// Stored.
    Stored,
    /// The segment has that sequence already; the row that came first stays.
    Duplicate,
}

impl SnapshotTable {
    /// Adds a snapshot.
    pub(super) fn insert(
        &mut self,
        segment_id: &str,
        sequence: i32,
        unix_ms: i64,
        stack: Vec<String>,
    ) -> Inserted {
        let known = self.segments.get(segment_id);
        if known.is_some_and(|rows| rows.contains_key(&sequence)) {
            return Inserted::Duplicate;
        }
        let outcome = if known.is_some() {
            Inserted::Stored
        } else {
            self.bytes += ENTRY_BYTES + segment_id.len();
            Inserted::FirstOfSegment
        };
        let stack = self.share(stack);
        self.bytes += ENTRY_BYTES;
        self.rows += 1;
        self.segments
            .entry(segment_id.to_owned())
            .or_default()
            .insert(sequence, Row { unix_ms, stack });
        outcome
    }

    fn share(&mut self, stack: Vec<String>) -> SharedStack {
        let stack: SharedStack = stack
            .into_iter()
            .map(|text| match self.texts.get(text.as_str()) {
                Some(shared) => Arc::clone(shared),
                None => {
                    let shared: Arc<str> = Arc::from(text);
                    self.bytes += ENTRY_BYTES + shared.len();
                    self.texts.insert(Arc::clone(&shared));
                    shared
                }
            })
            .collect();
        if let Some(shared) = self.stacks.get(&stack) {
            return Arc::clone(shared);
        }
        self.bytes += ENTRY_BYTES + stack.len() * size_of::<Arc<str>>();
        self.stacks.insert(Arc::clone(&stack));
        stack
    }

    /// Approximate memory in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of snapshots.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Ids of all segments with a snapshot.
    pub(super) fn segment_ids(&self) -> impl Iterator<Item = &str> {
        self.segments.keys().map(String::as_str)
    }

    /// Whether OAP would list the segment: its sequence 0 is there.
    pub(super) fn is_listed(&self, segment_id: &str) -> bool {
        let rows = self.segments.get(segment_id);
        rows.is_some_and(|rows| rows.contains_key(&0))
    }

    /// The snapshots of a segment, by sequence.
    pub(super) fn snapshots(&self, segment_id: &str) -> Vec<Snapshot> {
        let rows = self.segments.get(segment_id).into_iter().flatten();
        rows.map(|(&sequence, row)| Snapshot {
            sequence,
            unix_ms: row.unix_ms,
            stack: Arc::clone(&row.stack),
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(text: &str) -> Vec<String> {
        text.split('>').map(str::to_owned).collect()
    }

    /// Check that rows come back by sequence and that the first of two equal keys stays.
    #[test]
    fn rows_come_back_by_sequence() {
        let mut table = SnapshotTable::default();
        let outcomes = [(2, "a>c"), (0, "a>b"), (2, "other"), (1, "a>b")]
            .map(|(sequence, text)| table.insert("s", sequence, 100, stack(text)));
        assert_eq!(
            outcomes,
            [
                Inserted::FirstOfSegment,
                Inserted::Stored,
                Inserted::Duplicate,
                Inserted::Stored
            ]
        );
        let snapshots = table.snapshots("s");
        let sequences: Vec<i32> = snapshots.iter().map(|s| s.sequence).collect();
        assert_eq!(sequences, [0, 1, 2]);
        assert_eq!(&*snapshots[2].stack[1], "c");
        assert_eq!(table.rows(), 3);
        assert!(table.is_listed("s"));
    }

    /// Check that repeated texts and stacks are stored once and cost only their row.
    #[test]
    fn equal_stacks_are_stored_once() {
        let mut table = SnapshotTable::default();
        table.insert("s", 0, 100, stack("main>leaf"));
        let before = table.bytes();
        table.insert("s", 1, 110, stack("main>leaf"));
        assert_eq!(table.bytes() - before, ENTRY_BYTES);
        let snapshots = table.snapshots("s");
        assert!(Arc::ptr_eq(&snapshots[0].stack, &snapshots[1].stack));
    }

    /// Check that a segment without sequence 0 is not listed.
    #[test]
    fn without_sequence_zero_a_segment_is_not_listed() {
        let mut table = SnapshotTable::default();
        table.insert("s", 1, 100, stack("main"));
        assert!(!table.is_listed("s"));
        assert!(!table.is_listed("unknown"));
        assert_eq!(table.segment_ids().collect::<Vec<_>>(), ["s"]);
    }
}
