//! What `profilerd record` asks for, and the progress that it shows.

use std::time::Duration;

use super::Pid;

/// Whom to record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordTarget {
    /// A process and its descendants, those that start later included.
    Pid(Pid),
    /// All processes of a service, those that start later included.
    Service(String),
}

/// One recording: the limits are checked by whoever makes it, see [`crate::cli`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordRequest {
    /// Endpoint as the user wrote it; [`crate::request::Endpoint`] parses it.
    pub endpoint: String,
    /// Whom to record.
    pub target: RecordTarget,
    /// How long to look for requests.
    pub duration: Duration,
    /// One stack per this long, whole milliseconds.
    pub dump_period: Duration,
    /// Only requests that last longer are kept, whole milliseconds.
    pub min_duration: Duration,
    /// Stop after so many profiled requests.
    pub max_requests: u32,
}

/// Where a recording stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgressState {
    /// Time since it is armed.
    pub elapsed: Duration,
    /// Time it may take.
    pub duration: Duration,
    /// Requests to the endpoint so far.
    pub requests_matched: u64,
    /// Snapshots taken so far.
    pub snapshots: u64,
}

/// Somebody who watches a recording. Called a few times a second, from any thread.
pub trait Progress: Send + Sync {
    /// Takes note; must not block.
    fn update(&self, state: ProgressState);
}
