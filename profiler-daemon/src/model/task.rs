//! Profile tasks and the identities they name.

use std::fmt;
use std::time::Duration;

/// Index of a live task on the kernel side, below [`profiler_common::MAX_TASKS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskSlot(pub u32);

/// `TaskId` of the protocol: opaque text chosen by the OAP.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(pub String);

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A service instance as SkyWalking knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Service {
    /// Service name.
    pub name: String,
    /// Service instance name.
    pub instance: String,
}

/// "Profile endpoint E of service S for N minutes, requests slower than T ms, a stack every P ms".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileTask {
    /// Identity given by the OAP.
    pub task_id: TaskId,
    /// The service instance the command was delivered to.
    pub service: Service,
    /// `EndpointName`, as written by the user.
    pub endpoint: String,
    /// How long the task runs, counted from its actual start here.
    pub duration: Duration,
    /// Only requests that last longer than this are kept, in milliseconds.
    pub min_duration_threshold_ms: u32,
    /// One stack per this many milliseconds.
    pub dump_period_ms: u32,
    /// Most requests profiled per service instance.
    pub max_sampling_count: u32,
    /// Wall-clock start in epoch milliseconds; in the past means at once.
    pub start_unix_ms: i64,
    /// When the OAP created the task, epoch milliseconds; advances `lastCommandTime`.
    pub create_unix_ms: i64,
}

impl ProfileTask {
    /// When its time is over if it starts on time, epoch milliseconds.
    #[must_use]
    pub fn end_unix_ms(&self) -> i64 {
        let lasts_ms = i64::try_from(self.duration.as_millis()).unwrap_or(i64::MAX);
        self.start_unix_ms.saturating_add(lasts_ms)
    }

    /// Whether there is an instant at which both are to run.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start_unix_ms <= other.end_unix_ms() && other.start_unix_ms <= self.end_unix_ms()
    }
}

/// The limits OAP and the agents put on tasks (`ProfileConstants`), checked again before a task runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskLimits;

impl TaskLimits {
    /// Shortest and longest duration in minutes.
    pub const DURATION_MINUTES: std::ops::RangeInclusive<i64> = 1..=15;
    /// Shortest dump period in milliseconds.
    pub const DUMP_PERIOD_MIN_MS: i64 = 10;
    /// Least and most profiled requests per task and instance.
    pub const MAX_SAMPLING_COUNT: std::ops::RangeInclusive<i64> = 1..=9;
}
