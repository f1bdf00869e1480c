//! The configuration: defaults, then a YAML file, then the environment, then flags; the later wins.
//!
//! In:  a file, variables (`SW_AGENT_*` as language agents know them, `PROFILERD_*`)
//! Out: [`Config`]
//! Lost: nothing; an unknown key or a value out of range ends the start, an unknown `PROFILERD_*`
//!       variable is a warning (Kubernetes sets such for a Service named `profilerd`)
//!
//! docs/configuration.md has every key with default, unit, range and reason; a test reads it.

mod environment;
mod file;
mod kubernetes;
mod rule;
mod template;
mod unit;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::embedded::store::StoreLimits;
use crate::embedded::{DataDir, EmbeddedConfig};
use crate::frames::FrameSet;
use crate::guard::Budget;
use crate::oap::graphql::GraphqlClient;
use crate::oap::{OapConfig, QueueRoom, TlsConfig};

pub use file::{ConfigError, nearest};
pub use kubernetes::{Enabled, KubernetesSettings};
pub use rule::{Pattern, RuleMatch, ServiceRule};
pub use template::{LABEL, Template};
pub use unit::{DurationRange, SizeRange, duration_text, parse_duration};

/// As the file system hierarchy has it for what programs keep between runs.
const STATE_DIR: &str = "/var/lib/profilerd";

/// Where a token is kept if nothing is to outlive a restart of the host.
const RUNTIME_DIR: &str = "/run/profilerd";

/// Name of the token's file in these folders.
const TOKEN_FILE: &str = "token";

/// A folder, or `none`.
fn state_folder(text: &str) -> Option<PathBuf> {
    (text != "none").then(|| PathBuf::from(text))
}

fn state_dir<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    Ok(text.as_deref().and_then(state_folder))
}

/// An address, or `off`.
///
/// # Errors
///
/// Says what is accepted; `example` is an address of that kind.
pub fn parse_listen(text: &str, example: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" {
        return Ok(None);
    }
    let address = text
        .parse()
        .map_err(|_| format!("{text:?} is not an address: write one such as {example}, or off"))?;
    Ok(Some(address))
}

/// Where metrics are served.
///
/// # Errors
///
/// As [`parse_listen`].
pub fn parse_metrics(text: &str) -> Result<Option<SocketAddr>, String> {
    parse_listen(text, "127.0.0.1:9464")
}

fn metrics<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    text.map_or(Ok(None), |text| parse_metrics(&text))
        .map_err(serde::de::Error::custom)
}

/// Everything that can be configured.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where results go.
    #[serde(deserialize_with = "file::section")]
    pub oap: OapSettings,
    /// Which process belongs to which service; the first that matches decides.
    #[serde(deserialize_with = "file::section")]
    pub services: Vec<ServiceRule>,
    /// How processes are found.
    #[serde(deserialize_with = "file::section")]
    pub processes: ProcessSettings,
    /// Names, labels and owners of pods.
    #[serde(deserialize_with = "file::section")]
    pub kubernetes: KubernetesSettings,
    /// Budgets of memory and work.
    #[serde(deserialize_with = "file::section")]
    pub limits: Limits,
    /// Where `daemon` keeps what a restart has to know, and `standalone` its data; `None` keeps nothing.
    #[serde(deserialize_with = "state_dir")]
    pub state_dir: Option<PathBuf>,
    /// The OAP of `standalone`.
    #[serde(deserialize_with = "file::section")]
    pub standalone: StandaloneSettings,
    /// What the text of a stack frame stands for.
    pub code_signature: CodeSignature,
    /// Which frames of a stack are shown and sent.
    pub frames: FrameSet,
    /// What is logged.
    #[serde(deserialize_with = "file::section")]
    pub log: LogSettings,
    /// Where the daemon's own figures are served over HTTP, if at all.
    #[serde(deserialize_with = "metrics")]
    pub metrics: Option<SocketAddr>,
}

/// The OAP and how to talk to it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OapSettings {
    /// OAPs as `host:port`; the first that can be reached is used.
    pub backends: Vec<String>,
    /// Token sent as `authentication` metadata.
    pub authentication: Option<Secret>,
    /// Time between two task queries of a service. Agents ask every 20 s, which is the largest part of a
    /// task's start latency; a query is one small call. Above 100 services it grows with their number.
    #[serde(deserialize_with = "OapSettings::poll_interval")]
    pub poll_interval: Duration,
    /// Time between two heartbeats of an instance. 30 s, as agents do: OAP takes an instance for gone
    /// after a few minutes of silence.
    #[serde(deserialize_with = "OapSettings::heartbeat_interval")]
    pub heartbeat_interval: Duration,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentProfiler {
    /// Leave such processes to their agents.
    #[default]
    Leave,
    /// Profile them as well, with segments of our own beside the agent's.
    Beside,
}

/// Files for TLS, in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessSettings {
    /// Time between two scans of /proc: how soon a new process is known to the OAP.
    #[serde(deserialize_with = "ProcessSettings::scan_interval")]
    pub scan_interval: Duration,
}

/// Budgets of memory and work.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Processor time of the daemon and its BPF programs while tasks are live, in percent of one core. Over
    /// it for long, dump periods become longer, then tasks fewer. 2 % goes unnoticed.
    #[serde(deserialize_with = "Limits::max_cpu_percent")]
    pub max_cpu_percent: u32,
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
    #[serde(rename = "requests_ring", deserialize_with = "Limits::requests_ring")]
    pub requests_ring_bytes: u32,
    /// Size of the ring of on-CPU samples. 4 MiB holds 200 samples of the largest size.
    #[serde(rename = "samples_ring", deserialize_with = "Limits::samples_ring")]
    pub samples_ring_bytes: u32,
    /// Memory of these snapshots. 128 MiB holds the largest request an OAP can show, 12,000 stacks of 500
    /// frames that all differ.
    #[serde(
        rename = "snapshot_memory",
        deserialize_with = "Limits::snapshot_memory"
    )]
    pub snapshot_memory_bytes: u32,
    /// Size of the files that keep what the queue has no room for, in `state_dir`. 256 MiB holds hours of
    /// tasks: names and stacks are written once a request.
    #[serde(rename = "spool", deserialize_with = "Limits::spool")]
    pub spool_bytes: u32,
}

/// The OAP of `standalone`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StandaloneSettings {
    /// Where tasks and results are kept, `:memory:` for nowhere; if not given, in [`Config::state_dir`].
    pub data_dir: Option<PathBuf>,
    /// Where its token is kept; [`OapSettings::authentication`], if given, is the token instead.
    #[serde(deserialize_with = "token_file")]
    pub token_file: TokenFile,
    /// Days for which a task and its results are kept after its end. A week: who looks at a result
    /// comes back to it within days.
    #[serde(deserialize_with = "StandaloneSettings::retention_days")]
    pub retention_days: u32,
    /// Most space for all tasks. 1 GiB holds tens of millions of snapshots.
    #[serde(deserialize_with = "StandaloneSettings::max_bytes")]
    pub max_bytes: u64,
}

/// Where the token is that callers of the OAP of `standalone` must send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TokenFile {
    /// `token` in [`Config::state_dir`].
    #[default]
    InStateDir,
    /// In this file.
    At(PathBuf),
    /// No token is asked for.
    Off,
}

impl TokenFile {
    fn parse(text: &str) -> Self {
        match text {
            "none" => Self::Off,
            path => Self::At(path.into()),
        }
    }
}

fn token_file<'de, D: serde::Deserializer<'de>>(from: D) -> Result<TokenFile, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    Ok(text.as_deref().map(TokenFile::parse).unwrap_or_default())
}

/// What the text of a stack frame stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CodeSignature {
    /// The function: stable while it runs, so that OAP's durations are right.
    #[default]
    Function,
    /// The line that executes, as agents print it; a function that spans lines becomes many nodes.
    Line,
}

/// What is logged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// Least severity shown; if not given, `info` for what runs on and `warn` for what ends.
    pub level: Option<LogLevel>,
}

/// Severity of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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

impl Default for Config {
    fn default() -> Self {
        Self {
            oap: Default::default(),
            services: Default::default(),
            processes: Default::default(),
            kubernetes: Default::default(),
            limits: Default::default(),
            state_dir: Some(PathBuf::from(STATE_DIR)),
            standalone: Default::default(),
            code_signature: Default::default(),
            frames: Default::default(),
            log: Default::default(),
            metrics: None,
        }
    }
}

impl Default for OapSettings {
    fn default() -> Self {
        Self {
            backends: vec!["127.0.0.1:11800".to_owned()],
            authentication: None,
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
mod range {
    use super::unit::NumberRange;
    use super::{DurationRange, SizeRange};

    pub(super) const POLL_INTERVAL: DurationRange = DurationRange::ms(1_000, 300_000);
    pub(super) const HEARTBEAT_INTERVAL: DurationRange = DurationRange::ms(1_000, 300_000);
    pub(super) const SCAN_INTERVAL: DurationRange = DurationRange::ms(500, 300_000);
    pub(super) const MAX_CPU_PERCENT: NumberRange = NumberRange::new(1, 102_400);
    pub(super) const MAX_MEMORY_MB: NumberRange = NumberRange::new(64, 1 << 20);
    pub(super) const MAX_OPEN_REQUESTS: NumberRange = NumberRange::new(1, 65_536);
    pub(super) const SAMPLE_QUEUE: NumberRange = NumberRange::new(16, 65_536);
    pub(super) const SNAPSHOT_QUEUE: NumberRange = NumberRange::new(1_000, 10_000_000);
    pub(super) const SNAPSHOT_MEMORY: SizeRange = SizeRange::new(1 << 20, 2 << 30);
    pub(super) const SPOOL: SizeRange = SizeRange::new(1 << 20, 2 << 30);
    pub(super) const RING: SizeRange = SizeRange::powers_of_two(64 << 10, 256 << 20);
    pub(super) const RETENTION_DAYS: NumberRange = NumberRange::new(1, 3650);
    pub(super) const MAX_BYTES: SizeRange = SizeRange::new(16 << 20, 1 << 40);
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

impl Config {
    /// Defaults, then `file`, then the environment. Warnings come with it, for the log that is not
    /// there yet.
    ///
    /// # Errors
    ///
    /// The file cannot be read, has an unknown key, or a value is out of range; the text names the
    /// place and what is accepted.
    pub fn load(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(Self, Vec<String>)> {
        let mut config = match file {
            Some(path) => file::read(path)?,
            None => Self::default(),
        };
        let warnings = environment::apply(&mut config, variables)?;
        config.check()?;
        Ok((config, warnings))
    }

    /// Reads the text of a file as [`Self::load`] does.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let config = file::parse(text, "text")?;
        config.check()?;
        Ok(config)
    }

    /// Checks what concerns more than one value.
    ///
    /// # Errors
    ///
    /// Names the keys that do not fit each other.
    pub fn check(&self) -> Result<()> {
        let tls = &self.oap.tls;
        if tls.cert_file.is_some() != tls.key_file.is_some() {
            bail!(
                "oap.tls.cert_file and oap.tls.key_file belong together: give both for mutual TLS, or \
                 none"
            );
        }
        if !tls.enabled && (tls.ca_file.is_some() || tls.cert_file.is_some()) {
            bail!("oap.tls has files but oap.tls.enabled is false; set it to true, or remove them");
        }
        if let Some(url) = &self.oap.query {
            GraphqlClient::new(url).context("oap.query cannot be used")?;
        }
        self.oap_config().check()
    }

    /// Files in which the token of `standalone` may be, the first being where it is made; none if no token is
    /// asked for.
    #[must_use]
    pub fn token_files(&self) -> Vec<PathBuf> {
        match &self.standalone.token_file {
            TokenFile::Off => Vec::new(),
            TokenFile::At(path) => vec![path.clone()],
            TokenFile::InStateDir => {
                let folders = self.state_dir.as_deref().into_iter();
                let folders = folders.chain([Path::new(RUNTIME_DIR)]);
                folders.map(|folder| folder.join(TOKEN_FILE)).collect()
            }
        }
    }

    /// What the OAP of `standalone` needs.
    #[must_use]
    pub fn embedded_config(
        &self,
        listen: SocketAddr,
        http_listen: Option<SocketAddr>,
        token: Option<String>,
    ) -> EmbeddedConfig {
        let standalone = &self.standalone;
        let data_dir = standalone.data_dir.as_ref().or(self.state_dir.as_ref());
        EmbeddedConfig {
            listen,
            http_listen,
            token,
            data: data_dir.map_or(DataDir::Memory, |dir| dir.as_path().into()),
            limits: StoreLimits {
                bytes: standalone.max_bytes,
                retention: Duration::from_hours(24 * u64::from(standalone.retention_days)),
                ..StoreLimits::default()
            },
        }
    }

    /// What the overhead guard holds the daemon to.
    #[must_use]
    pub fn budget(&self) -> Budget {
        Budget {
            cpu_percent: self.limits.max_cpu_percent,
            memory_bytes: u64::from(self.limits.max_memory_mb) << 20,
        }
    }

    /// What the OAP client needs.
    #[must_use]
    pub fn oap_config(&self) -> OapConfig {
        let oap = &self.oap;
        let tls = oap.tls.enabled.then(|| TlsConfig {
            ca_file: oap.tls.ca_file.clone(),
            identity: oap.tls.cert_file.clone().zip(oap.tls.key_file.clone()),
            domain: oap.tls.server_name.clone(),
        });
        OapConfig {
            token: oap.authentication.as_ref().map(|token| token.0.clone()),
            tls,
            poll_interval: oap.poll_interval,
            heartbeat_interval: oap.heartbeat_interval,
            queue: QueueRoom {
                snapshots: self.limits.snapshot_queue as usize,
                bytes: self.limits.snapshot_memory_bytes as usize,
            },
            ..OapConfig::new(oap.backends.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that the page in docs lists every key with its default: its example is the default.
    #[test]
    fn the_documented_example_is_the_default() {
        let page = include_str!("../../../docs/configuration.md");
        let begin = page.find("```yaml\n").unwrap() + "```yaml\n".len();
        let example = &page[begin..begin + page[begin..].find("```").unwrap()];
        let config = file::parse(example, "docs").unwrap();
        assert_eq!(config, Config::default());
        for key in [
            "backends",
            "authentication",
            "poll_interval",
            "heartbeat_interval",
            "ca_file",
            "cert_file",
            "key_file",
            "server_name",
            "query",
            "agent_profiler",
            "scan_interval",
            "max_cpu_percent",
            "max_memory_mb",
            "max_open_requests",
            "sample_queue",
            "snapshot_queue",
            "snapshot_memory",
            "requests_ring",
            "samples_ring",
            "data_dir",
            "standalone.token_file",
            "retention_days",
            "max_bytes",
            "code_signature",
            "frames",
            "level",
            "metrics",
            "api_server",
            "node_name",
            "token_file",
            "listen_port",
            "container",
            "namespace",
            "labels",
            "properties",
            "tags",
        ] {
            assert!(page.contains(key), "{key} is not documented");
        }
    }

    /// Check that the later source wins: file over default, environment over file.
    #[test]
    fn the_environment_wins_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.yaml");
        std::fs::write(
            &path,
            "oap:\n  backends: [file:1]\n  authentication: from-file\n",
        )
        .unwrap();
        let variables = [("SW_AGENT_COLLECTOR_BACKEND_SERVICES", "a:1, b:2")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let (config, warnings) = Config::load(Some(&path), variables).unwrap();
        assert_eq!(config.oap.backends, ["a:1", "b:2"]);
        assert_eq!(config.oap.authentication.unwrap().0, "from-file");
        assert!(warnings.is_empty());
    }

    /// Check that metrics are off unless an address is given, and that anything else is refused with an
    /// example.
    #[test]
    fn metrics_have_an_address_or_are_off() {
        let of = |text: &str| file::parse(text, "p.yaml").map(|config| config.metrics);
        assert_eq!(of("metrics:\n").unwrap(), None);
        assert_eq!(of("metrics: off\n").unwrap(), None);
        let address = "127.0.0.1:9464".parse().unwrap();
        assert_eq!(of("metrics: 127.0.0.1:9464\n").unwrap(), Some(address));
        let error = of("metrics: localhost:9464\n").unwrap_err().to_string();
        assert!(
            error.starts_with("p.yaml:1:") && error.contains("such as 127.0.0.1:9464, or off"),
            "{error}"
        );
    }

    /// Check where the token of `standalone` is looked for, and that `none` asks for none.
    #[test]
    fn the_token_is_in_the_state_folder() {
        let files = |text: &str| {
            let config = file::parse(text, "p.yaml").unwrap();
            let files = config.token_files().into_iter();
            let files = files.map(|path| path.display().to_string());
            files.collect::<Vec<_>>()
        };
        let run = "/run/profilerd/token";
        assert_eq!(files(""), ["/var/lib/profilerd/token", run]);
        assert_eq!(files("state_dir: /x\n"), ["/x/token", run]);
        assert_eq!(files("state_dir: none\n"), [run]);
        assert_eq!(files("standalone:\n  token_file: /etc/t\n"), ["/etc/t"]);
        assert_eq!(files("standalone:\n  token_file: null\n").len(), 2);
        assert_eq!(files("standalone:\n  token_file: none\n"), [""; 0]);
    }

    /// Check that a token is not shown, and that half of mutual TLS is refused.
    #[test]
    fn secrets_are_hidden_and_halves_refused() {
        let mut config = Config::default();
        config.oap.authentication = Some(Secret("s3cret".to_owned()));
        assert!(!format!("{config:?}").contains("s3cret"));
        config.oap.tls.enabled = true;
        config.oap.tls.cert_file = Some("c.pem".into());
        assert!(
            config
                .check()
                .unwrap_err()
                .to_string()
                .contains("belong together")
        );
        config.oap.tls.key_file = Some("k.pem".into());
        config.check().unwrap();
        assert!(config.oap_config().tls.unwrap().identity.is_some());
    }
}
