//! What the store is bounded by, what it hands out, and what it says it lost.

use std::collections::BTreeMap;
use std::time::Duration;

use super::storage::StorageError;
use super::task::{LogEntry, TaskRecord, TaskState};
use super::trace::SegmentSummary;
use crate::model::{Coverage, Snapshot};

/// Sizes at which the store stops growing.
#[derive(Clone, Copy, Debug)]
pub struct StoreLimits {
    /// Tasks kept.
    pub tasks: usize,
    /// Log entries and instances' coverage kept per task.
    pub logs_per_task: usize,
    /// Service instances kept.
    pub instances: usize,
    /// Segments kept that have no snapshot.
    pub loose_segments: usize,
    /// Size of the whole database.
    pub bytes: u64,
    /// How long a task is kept after its end.
    pub retention: Duration,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            tasks: 256,
            logs_per_task: 1024,
            instances: 4096,
            loose_segments: 4096,
            bytes: 1 << 30,
            retention: Duration::from_hours(7 * 24),
        }
    }
}

/// Rows that were not stored, over all tasks, since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreLosses {
    /// Snapshots of tasks that are not known here.
    pub unknown_task: u64,
    /// Snapshots without frames, too deep, with an unusable id or time.
    pub bad_snapshots: u64,
    /// Snapshots whose key is taken.
    pub duplicate_snapshots: u64,
    /// Snapshots over the size of the database.
    pub snapshots_over_limit: u64,
    /// Segments that OAP would not show either.
    pub bad_segments: u64,
    /// Spans of segments, and logs, references and tags of spans, over their sizes.
    pub span_parts_over_limit: u64,
    /// Log entries, instances and coverage reports over their limits. Of instances, the one that was
    /// silent for longest goes.
    pub other_over_limit: u64,
}

/// A service instance that has reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstanceRecord {
    /// Properties, last report.
    pub properties: BTreeMap<String, String>,
    /// Epoch milliseconds.
    pub last_seen_ms: i64,
}

/// Service name and instance name, with what the instance has reported.
pub type NamedInstance = ((String, String), InstanceRecord);

/// A task with what happened to it.
#[derive(Clone, Debug)]
pub struct TaskView {
    /// The task.
    pub task: TaskRecord,
    /// Where it stands.
    pub state: TaskState,
    /// What instances did, oldest first.
    pub logs: Vec<LogEntry>,
    /// Counts over all instances.
    pub coverage: Coverage,
    /// Segments that can be shown.
    pub segments: usize,
    /// Snapshots stored.
    pub snapshots: u64,
}

/// Which segments to list; what is not set does not matter.
#[derive(Clone, Debug, Default)]
pub struct TraceFilter {
    /// Service name.
    pub service: Option<String>,
    /// Service instance name.
    pub instance: Option<String>,
    /// Endpoint name.
    pub endpoint: Option<String>,
    /// Trace id.
    pub trace_id: Option<String>,
    /// Began then or later, epoch milliseconds.
    pub since_ms: Option<i64>,
    /// Began earlier than this, epoch milliseconds.
    pub before_ms: Option<i64>,
    /// Lasted so long at least, and at most, milliseconds.
    pub duration_ms: (Option<i64>, Option<i64>),
    /// Whether one of its spans is marked as failed.
    pub is_error: Option<bool>,
    /// Tags of its entry span, all of them.
    pub tags: Vec<(String, String)>,
    /// The longest first; the latest first otherwise.
    pub by_duration: bool,
    /// Segments left out at the beginning.
    pub skip: usize,
    /// Segments listed at most.
    pub count: usize,
}

/// A profiled segment with its snapshots.
#[derive(Clone, Debug)]
pub struct SegmentData {
    /// The segment.
    pub summary: SegmentSummary,
    /// Its snapshots, by sequence.
    pub snapshots: Vec<Snapshot>,
}

/// Why a text names no task.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// The store has no task at all.
    #[error("there is no task")]
    Empty,
    /// No id begins with the text.
    #[error("no task has the id {0}")]
    Unknown(String),
    /// Several do.
    #[error("{0} is the beginning of several task ids: {1}")]
    Ambiguous(String, String),
    /// It cannot be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<rusqlite::Error> for FindError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Storage(error.into())
    }
}
