//! The sections of the configuration: keys, defaults, ranges, and the reason of each.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use super::file;
use super::unit::{DurationRange, NumberRange, SizeRange, as_duration, as_size};

/// The OAP and how to talk to it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OapSettings {
    /// OAPs as `host:port`; the first that can be reached is used. `daemon` needs one.
    #[serde(deserialize_with = "file::section")]
    pub backends: Vec<String>,
    /// Token sent as `authentication` metadata.
    pub authentication: Option<Secret>,
    /// File with that token instead. Read again while we run, because Kubernetes replaces the files of a Secret.
    pub token_file: Option<PathBuf>,
    /// Time between two task queries of a service. Agents ask every 20 s, which is the largest part of a
    /// task's start latency; a query is one small call. Above 100 services it grows with their number.
    #[serde(
        deserialize_with = "OapSettings::poll_interval",
        serialize_with = "as_duration"
    )]
    pub poll_interval: Duration,
    /// Time between two heartbeats of an instance. 30 s, as agents do: OAP takes an instance for gone
    /// after a few minutes of silence.
    #[serde(
        deserialize_with = "OapSettings::heartbeat_interval",
        serialize_with = "as_duration"
    )]
    pub heartbeat_interval: Duration,
    /// Names or numbers of users who may run the OAP on this host, beside root and our own. Without TLS nothing
    /// is sent to a port of this host that another user listens on.
    #[serde(deserialize_with = "file::section")]
    pub local_users: Vec<String>,
    /// Transport encryption.
    #[serde(deserialize_with = "file::section")]
    pub tls: TlsSettings,
    /// The OAP's query side, as `http://host:12800/graphql`: asked for the segments that agents report
    /// for profiled requests. Not asked if it is not given.
    pub query: Option<String>,
    /// What to do with processes whose own agent runs profile tasks.
    pub agent_profiler: AgentProfiler,
}

/// What to do with processes whose own agent runs profile tasks. An OAP keeps one row per task, segment and
/// sequence: two reporters of one segment destroy each other's result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentProfiler {
    /// Leave such processes to their agents.
    #[default]
    Leave,
    /// Profile them as well, with segments of our own beside the agent's.
    Beside,
}

/// Files for TLS, in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSettings {
    /// Speak TLS. Off by default, as OAP's port 11800 does not.
    pub enabled: bool,
    /// Certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Our certificate chain, for an OAP that asks for one; with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// The key of `cert_file`.
    pub key_file: Option<PathBuf>,
    /// Name in the server's certificate, if it differs from the address.
    pub server_name: Option<String>,
}

/// How processes are found.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessSettings {
    /// Time between two scans of /proc: how soon a new process is known to the OAP.
    #[serde(
        deserialize_with = "ProcessSettings::scan_interval",
        serialize_with = "as_duration"
    )]
    pub scan_interval: Duration,
}

/// Budgets of memory and work.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Processor time that profiled requests take in the daemon and its BPF programs, in percent of one core. Over
    /// it for long, dump periods become longer, then tasks fewer. 2 % goes unnoticed. Hooks may take as much again.
    #[serde(deserialize_with = "Limits::max_cpu_percent")]
    pub max_cpu_percent: u32,
    /// Tasks are ended when hooks take more than `max_cpu_percent`, which any user of the host can bring about.
    pub end_tasks_for_hooks: bool,
    /// Resident memory of the daemon, in MiB, with the same consequences. 512 has room for the symbols of
    /// large programs and for what waits for an OAP.
    #[serde(deserialize_with = "Limits::max_memory_mb")]
    pub max_memory_mb: u32,
    /// Most matched requests open at once over all tasks; more are counted, not sampled. Each holds
    /// its samples in memory until it ends.
    #[serde(deserialize_with = "Limits::max_open_requests")]
    pub max_open_requests: u32,
    /// Samples that may wait for unwinding: 1,024 are ten threads for one second at 10 ms.
    #[serde(deserialize_with = "Limits::sample_queue")]
    pub sample_queue: u32,
    /// Snapshots that may wait for an OAP that is away: nine requests of two minutes at 10 ms.
    #[serde(deserialize_with = "Limits::snapshot_queue")]
    pub snapshot_queue: u32,
    /// Size of the ring of request events. 1 MiB holds the starts of 250 requests with long heads.
    #[serde(
        rename = "requests_ring",
        deserialize_with = "Limits::requests_ring",
        serialize_with = "as_size"
    )]
    pub requests_ring_bytes: u32,
    /// Size of the ring of on-CPU samples. 4 MiB holds 200 samples of the largest size.
    #[serde(
        rename = "samples_ring",
        deserialize_with = "Limits::samples_ring",
        serialize_with = "as_size"
    )]
    pub samples_ring_bytes: u32,
    /// Memory of these snapshots. 128 MiB holds the largest request an OAP can show, 12,000 stacks of 500
    /// frames that all differ.
    #[serde(
        rename = "snapshot_memory",
        deserialize_with = "Limits::snapshot_memory",
        serialize_with = "as_size"
    )]
    pub snapshot_memory_bytes: u32,
    /// Size of the files that keep what the queue has no room for, in `state_dir`. 256 MiB holds hours of
    /// tasks: names and stacks are written once a request.
    #[serde(
        rename = "spool",
        deserialize_with = "Limits::spool",
        serialize_with = "as_size"
    )]
    pub spool_bytes: u32,
}

/// The OAP of `standalone`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct StandaloneSettings {
    /// Where tasks and results are kept, `:memory:` for nowhere; if not given, in [`super::Config::state_dir`].
    pub data_dir: Option<PathBuf>,
    /// Where its token is kept; [`OapSettings::authentication`], if given, is the token instead.
    #[serde(deserialize_with = "token_file")]
    pub token_file: TokenFile,
    /// Days for which a task and its results are kept after its end. A week: who looks at a result
    /// comes back to it within days.
    #[serde(deserialize_with = "StandaloneSettings::retention_days")]
    pub retention_days: u32,
    /// Most space for all tasks. 1 GiB holds tens of millions of snapshots.
    #[serde(
        deserialize_with = "StandaloneSettings::max_bytes",
        serialize_with = "as_size"
    )]
    pub max_bytes: u64,
}

/// Where the token is that callers of the OAP of `standalone` must send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TokenFile {
    /// `token` in [`super::Config::state_dir`].
    #[default]
    InStateDir,
    /// In this file.
    At(PathBuf),
    /// No token is asked for.
    Off,
}

impl TokenFile {
    pub(super) fn parse(text: &str) -> Self {
        match text {
            "none" => Self::Off,
            path => Self::At(path.into()),
        }
    }
}

impl Serialize for TokenFile {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::InStateDir => to.serialize_none(),
            Self::At(path) => path.serialize(to),
            Self::Off => to.serialize_str("none"),
        }
    }
}

fn token_file<'de, D: serde::Deserializer<'de>>(from: D) -> Result<TokenFile, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    Ok(text.as_deref().map(TokenFile::parse).unwrap_or_default())
}

/// What the text of a stack frame stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CodeSignature {
    /// The function: stable while it runs, so that OAP's durations are right.
    #[default]
    Function,
    /// The line that executes, as agents print it; a function that spans lines becomes many nodes.
    Line,
}

/// What is logged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// Least severity shown; if not given, `info` for what runs on and `warn` for what ends.
    pub level: Option<LogLevel>,
    /// How a line is written. Text by default: a person reads the journal.
    pub format: LogFormat,
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// A JSON object, for programs that collect logs.
    Json,
}

impl LogFormat {
    /// Every format with its name.
    pub const NAMED: [(&str, Self); 2] = [("text", Self::Text), ("json", Self::Json)];
}

/// Severity of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// We stopped doing something.
    Error,
    /// Degraded, and counted.
    Warn,
    /// Life cycle, tasks.
    Info,
    /// Per process.
    Debug,
    /// Per sample.
    Trace,
}

/// Text that is not shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{self:?}"))
    }
}

impl Default for OapSettings {
    fn default() -> Self {
        Self {
            backends: Vec::new(),
            authentication: None,
            token_file: None,
            local_users: Vec::new(),
            poll_interval: Duration::from_secs(2),
            heartbeat_interval: Duration::from_secs(30),
            tls: TlsSettings::default(),
            query: None,
            agent_profiler: AgentProfiler::default(),
        }
    }
}

impl Default for ProcessSettings {
    fn default() -> Self {
        Self {
            scan_interval: Duration::from_secs(5),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_cpu_percent: 2,
            end_tasks_for_hooks: false,
            max_memory_mb: 512,
            max_open_requests: 256,
            sample_queue: 4096,
            snapshot_queue: 108_000,
            snapshot_memory_bytes: 128 << 20,
            requests_ring_bytes: 1 << 20,
            samples_ring_bytes: 4 << 20,
            spool_bytes: 256 << 20,
        }
    }
}

impl Default for StandaloneSettings {
    fn default() -> Self {
        Self {
            data_dir: None,
            token_file: TokenFile::default(),
            retention_days: 7,
            max_bytes: 1 << 30,
        }
    }
}

impl LogLevel {
    /// Name in configuration, flags and filters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Accepted values, the same in file and environment.
pub(super) mod range {
    use super::{DurationRange, NumberRange, SizeRange};

    pub(in crate::config) const POLL_INTERVAL: DurationRange = DurationRange::ms(1_000, 300_000);
    pub(in crate::config) const HEARTBEAT_INTERVAL: DurationRange =
        DurationRange::ms(1_000, 300_000);
    pub(in crate::config) const SCAN_INTERVAL: DurationRange = DurationRange::ms(500, 300_000);
    pub(in crate::config) const MAX_CPU_PERCENT: NumberRange = NumberRange::new(1, 102_400);
    pub(in crate::config) const MAX_MEMORY_MB: NumberRange = NumberRange::new(64, 1 << 20);
    pub(in crate::config) const MAX_OPEN_REQUESTS: NumberRange = NumberRange::new(1, 65_536);
    pub(in crate::config) const SAMPLE_QUEUE: NumberRange = NumberRange::new(16, 65_536);
    pub(in crate::config) const SNAPSHOT_QUEUE: NumberRange = NumberRange::new(1_000, 10_000_000);
    pub(in crate::config) const SNAPSHOT_MEMORY: SizeRange = SizeRange::new(1 << 20, 2 << 30);
    pub(in crate::config) const SPOOL: SizeRange = SizeRange::new(1 << 20, 2 << 30);
    pub(in crate::config) const RING: SizeRange = SizeRange::powers_of_two(64 << 10, 256 << 20);
    pub(in crate::config) const RETENTION_DAYS: NumberRange = NumberRange::new(1, 3650);
    pub(in crate::config) const MAX_BYTES: SizeRange = SizeRange::new(16 << 20, 1 << 40);
}

/// Deserializers that refuse what is out of range.
macro_rules! ranged {
    ($($owner:ty: $($name:ident: $value:ty = $range:expr),+;)+) => {$(
        impl $owner {$(
            fn $name<'de, D: serde::Deserializer<'de>>(from: D) -> Result<$value, D::Error> {
                $range.deserialize(from)
            }
        )+}
    )+};
}

ranged! {
    OapSettings:
        poll_interval: Duration = range::POLL_INTERVAL,
        heartbeat_interval: Duration = range::HEARTBEAT_INTERVAL;
    ProcessSettings:
        scan_interval: Duration = range::SCAN_INTERVAL;
    Limits:
        max_cpu_percent: u32 = range::MAX_CPU_PERCENT,
        max_memory_mb: u32 = range::MAX_MEMORY_MB,
        max_open_requests: u32 = range::MAX_OPEN_REQUESTS,
        sample_queue: u32 = range::SAMPLE_QUEUE,
        snapshot_queue: u32 = range::SNAPSHOT_QUEUE,
        requests_ring: u32 = range::RING,
        samples_ring: u32 = range::RING,
        snapshot_memory: u32 = range::SNAPSHOT_MEMORY,
        spool: u32 = range::SPOOL;
    StandaloneSettings:
        retention_days: u32 = range::RETENTION_DAYS,
        max_bytes: u64 = range::MAX_BYTES;
}
