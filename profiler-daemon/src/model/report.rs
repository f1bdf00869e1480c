//! The result of a task in the form `record --format json` prints. Other programs rely on these
//! names: only add to them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Everything known about one task: what was asked, what was seen, what was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProfileReport {
    /// The task as it was requested.
    pub task: TaskReport,
    /// What was seen, kept and lost.
    pub coverage: CoverageReport,
    /// The profiled requests, oldest first.
    pub segments: Vec<SegmentReport>,
}

/// The task as it was run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskReport {
    /// Task id.
    pub task_id: String,
    /// Service name.
    pub service: String,
    /// Endpoint as the user wrote it.
    pub endpoint: String,
    /// Start, epoch milliseconds.
    pub start_ms: i64,
    /// How long it ran or will run, milliseconds.
    pub duration_ms: i64,
    /// Only requests longer than this are kept.
    pub min_duration_threshold_ms: u32,
    /// One stack per this many milliseconds.
    pub dump_period_ms: u32,
    /// Most profiled requests.
    pub max_sampling_count: u32,
}

/// Counts by [`super::Counter::name`], zero ones included, and notes for people.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CoverageReport {
    /// Every counter.
    #[serde(flatten)]
    pub counters: BTreeMap<String, u64>,
    /// Sentences about the task as a whole.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// One profiled request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SegmentReport {
    /// Trace segment id.
    pub segment_id: String,
    /// Trace id: the caller's, if the request carried one.
    #[serde(default)]
    pub trace_id: String,
    /// Service instance that served it.
    #[serde(default)]
    pub service_instance: String,
    /// Endpoint reported.
    pub endpoint: String,
    /// Start, epoch milliseconds.
    pub start_ms: i64,
    /// From the head read to the last write, or to where the request is cut, milliseconds.
    pub duration_ms: i64,
    /// HTTP status, if a response line was seen.
    pub status: Option<u16>,
    /// Why the request's end is not shown: it lasted longer than `duration_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<String>,
    /// The snapshots, by sequence.
    pub snapshots: Vec<SnapshotReport>,
    /// OAP's analysis of the snapshots over the whole segment.
    pub trees: Vec<TreeNode>,
}

/// One thread snapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// From 0, without holes.
    pub sequence: i32,
    /// Epoch milliseconds.
    pub time_ms: i64,
    /// Code signatures, root first.
    pub stack: Vec<String>,
}

/// A node of a call tree, as OAP computes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TreeNode {
    /// Code signature: the node's identity below its parent.
    pub code_signature: String,
    /// Total, milliseconds.
    pub duration_ms: i64,
    /// Total less the children's, milliseconds.
    pub self_ms: i64,
    /// Snapshots through this node.
    pub count: u32,
    /// Callees, in first-seen order.
    pub children: Vec<Self>,
}
