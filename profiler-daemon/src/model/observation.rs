//! The state of the daemon at one moment: its own figures, for metrics and `profilerd status`.
//!
//! Nothing in here is about a single service, endpoint or task: a reader learns how much the daemon
//! does, but not for whom.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// All figures. A figure that another version of profilerd does not report is 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Observation {
    /// The process.
    pub process: ProcessObservation,
    /// Why it is not ready to work, a sentence each; none if it is.
    pub obstacles: Vec<String>,
    /// Tasks and what they are for.
    pub tasks: TaskObservation,
    /// The capture thread and its kernel side.
    pub capture: CaptureObservation,
    /// Looks for endpoints.
    pub discovery: DiscoveryObservation,
    /// What goes to the OAP.
    pub delivery: DeliveryObservation,
    /// Every [`super::Counter`] by name, summed over all tasks since the start.
    pub counters: BTreeMap<String, u64>,
}

/// What the daemon takes of the host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessObservation {
    /// Version of profilerd.
    pub version: String,
    /// When it started.
    pub start_unix_ms: i64,
    /// Processor time of all its threads since then, in user and kernel mode.
    pub cpu_seconds: f64,
    /// Resident memory.
    pub resident_bytes: u64,
    /// Open descriptors.
    pub open_fds: u64,
}

/// Tasks, and the processes they can be for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskObservation {
    /// Tasks that run, or that ended and wait for what belongs to them.
    pub live: u64,
    /// Tasks that wait for their start, once for each instance.
    pub waiting: u64,
    /// Tasks started since the start of the daemon.
    pub started: u64,
    /// Tasks that were refused, once for each instance.
    pub refused: u64,
    /// Tasks that the kernel side could not carry out.
    pub failed: u64,
    /// How many times as long dump periods are as tasks ask for: more than 1 if the overhead guard acts.
    pub period_factor: u64,
    /// Processes known.
    pub processes: u64,
    /// Those among them that are left out because they do not let themselves be read.
    pub processes_left_out: u64,
    /// Those among them that are not to be profiled, by their pod or the configuration.
    pub processes_refused: u64,
    /// Service instances reported to the OAP.
    pub instances: u64,
    /// Their services.
    pub services: u64,
    /// Profiled requests that wait for the segment of their agent.
    pub requests_unbound: u64,
}

/// The capture thread. All is 0 while no task is live, but for sizes and peaks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CaptureObservation {
    /// The BPF programs are attached.
    pub is_attached: bool,
    /// Time between two ticks, at which threads are sampled: the shortest dump period of the live tasks.
    pub tick_period_ns: u64,
    /// Matched requests that are open.
    pub open_requests: u64,
    /// Samples that wait for unwinding.
    pub queued_samples: u64,
    /// Samples that may wait.
    pub queue_size: u64,
    /// The ring of request events.
    pub request_ring: RingObservation,
    /// The ring of on-CPU samples.
    pub sample_ring: RingObservation,
}

/// A ring buffer between kernel and daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RingObservation {
    /// Largest backlog found by one read during the last second.
    pub used_bytes: u64,
    /// Largest backlog found by one read since the start of the daemon.
    pub peak_bytes: u64,
    /// Size of the ring.
    pub size_bytes: u64,
}

/// Looks for endpoints of services.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiscoveryObservation {
    /// A window is open: programs that see requests are attached.
    pub is_looking: bool,
    /// Windows that have ended.
    pub windows: u64,
    /// Windows that failed because the BPF programs could not be set up.
    pub failed: u64,
    /// Requests seen in them.
    pub requests: u64,
    /// Requests that were not seen, or not to their end, as far as that is known.
    pub unseen: u64,
    /// Requests that count under other endpoints because there are too many names.
    pub requests_over_limit: u64,
    /// Endpoints known.
    pub endpoints: u64,
    /// Sights of endpoints that are not kept because there are too many.
    pub endpoints_over_limit: u64,
}

/// Delivery to the OAP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeliveryObservation {
    /// An OAP has answered on the present connection.
    pub is_connected: bool,
    /// Connections made since the start of the daemon.
    pub connections: u64,
    /// When a call was answered last.
    pub last_answer_unix_ms: Option<i64>,
    /// The OAP's clock less ours, at least; 0 while it may be less than a second.
    pub clock_skew_ms: i64,
    /// Snapshots that the OAP accepted; [`Observation::counters`] has it too.
    pub snapshots_sent: u64,
    /// Snapshots not delivered, or without the OAP's confirmation; [`Observation::counters`] has it too.
    pub snapshots_lost: u64,
    /// Requests of which something was lost; [`Observation::counters`] has it too.
    pub requests_incomplete: u64,
    /// Trace segments that the OAP accepted.
    pub segments_sent: u64,
    /// Trace segments not delivered, or without the OAP's confirmation.
    pub segments_lost: u64,
    /// Ends of tasks that the OAP was told, once for each instance.
    pub ends_reported: u64,
    /// Snapshots that wait in memory, or are being sent.
    pub queued_snapshots: u64,
    /// Memory they take.
    pub queued_bytes: u64,
    /// Size of the spool.
    pub spool_bytes: u64,
    /// Files of the spool.
    pub spool_files: u64,
}
