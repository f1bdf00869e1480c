//! What leaves the daemon: a profiled segment and its thread snapshots.

use std::sync::Arc;

use super::{Binding, FinishedRequest, Service, TaskId};

/// `ThreadSnapshot` of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// From 0, without holes.
    pub sequence: i32,
    /// Wall-clock epoch milliseconds.
    pub unix_ms: i64,
    /// Code signatures, root first.
    pub stack: Arc<[Arc<str>]>,
}

/// A finished request with its snapshots, ready to be reported.
#[derive(Clone, Debug)]
pub struct ProfiledSegment {
    /// The task.
    pub task_id: TaskId,
    /// The reporting service instance.
    pub service: Service,
    /// The request: ids, times, status, caller.
    pub request: FinishedRequest,
    /// Start, wall-clock epoch milliseconds.
    pub start_unix_ms: i64,
    /// End, wall-clock epoch milliseconds; not before `start_unix_ms`.
    pub end_unix_ms: i64,
    /// Tags of the span beside those that the request gives, from the rules of the configuration.
    pub tags: Vec<(String, String)>,
    /// Whose segment the snapshots hang below.
    pub binding: Binding,
    /// At least one, in order of time.
    pub snapshots: Vec<Snapshot>,
}
