//! The configuration: defaults, then a YAML file, then the environment, then flags; the later wins.
//!
//! In:  a file, variables (`SW_AGENT_*` as language agents know them, `PROFILERD_*`)
//! Out: [`Config`]
//! Lost: nothing; an unknown key or a value out of range ends the start, an unknown `PROFILERD_*`
//!       variable is a warning (Kubernetes sets such for a Service named `profilerd`)
//!
//! docs/configuration.md has every key with default, unit, range and reason; a test reads it.

mod change;
mod discovery;
mod entry;
mod environment;
mod file;
mod kubernetes;
mod options;
mod origin;
mod plain;
mod rule;
mod settings;
mod source;
mod template;
mod unit;
mod variable;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize, Serializer};

use crate::embedded::store::StoreLimits;
use crate::embedded::{DataDir, EmbeddedConfig};
use crate::frames::FrameSet;
use crate::guard::Budget;
use crate::oap::graphql::GraphqlClient;
use crate::oap::{OapConfig, QueueRoom, TlsConfig, TokenSource};
use crate::request::TrackerLimits;

pub use change::{Change, OapOwner};
pub use discovery::{DiscoveryMode, DiscoverySettings, TemplateRule};
pub use file::{ConfigError, nearest};
pub use kubernetes::{Enabled, KubernetesSettings};
pub use options::Options;
pub use origin::{Origin, Origins};
pub use rule::{Pattern, RuleMatch, ServiceRule};
pub use settings::{
    AgentProfiler, CodeSignature, Limits, LogFormat, LogLevel, LogSettings, OapSettings,
    ProcessSettings, Secret, StandaloneSettings, TlsSettings, TokenFile,
};
pub use source::{ConfigSource, Loaded};
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

fn as_state_dir<S: Serializer>(folder: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
    match folder {
        Some(folder) => folder.serialize(to),
        None => to.serialize_str("none"),
    }
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

fn user_id(name: &str) -> Result<u32> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let user = nix::unistd::User::from_name(name)
        .with_context(|| format!("oap.local_users: failed to look up the user {name:?}"))?;
    let user = user.with_context(|| {
        format!("oap.local_users: this host has no user {name:?}; give a name or a number")
    })?;
    Ok(user.uid.as_raw())
}

fn metrics<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    text.map_or(Ok(None), |text| parse_metrics(&text))
        .map_err(serde::de::Error::custom)
}

/// Everything that can be configured.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
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
    /// Looking for endpoints.
    #[serde(deserialize_with = "file::section")]
    pub discovery: DiscoverySettings,
    /// Names, labels and owners of pods.
    #[serde(deserialize_with = "file::section")]
    pub kubernetes: KubernetesSettings,
    /// Budgets of memory and work.
    #[serde(deserialize_with = "file::section")]
    pub limits: Limits,
    /// Where `daemon` keeps what a restart has to know, and `standalone` its data; `None` keeps nothing.
    #[serde(deserialize_with = "state_dir", serialize_with = "as_state_dir")]
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
    /// Names by which the HTTP servers may be asked, beside addresses, `localhost` and the name of this host.
    #[serde(deserialize_with = "file::section")]
    pub host_names: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            oap: Default::default(),
            services: Default::default(),
            processes: Default::default(),
            discovery: Default::default(),
            kubernetes: Default::default(),
            limits: Default::default(),
            state_dir: Some(PathBuf::from(STATE_DIR)),
            standalone: Default::default(),
            code_signature: Default::default(),
            frames: Default::default(),
            log: Default::default(),
            metrics: None,
            host_names: Vec::new(),
        }
    }
}

impl Config {
    /// Reads the text of a file as [`ConfigSource::load`] does.
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
        if self.oap.authentication.is_some() && self.oap.token_file.is_some() {
            bail!("oap.authentication and oap.token_file are both given: give one of them");
        }
        self.kubernetes.check()?;
        if let Some(url) = &self.oap.query {
            GraphqlClient::new(url).context("oap.query cannot be used")?;
        }
        self.local_users()?;
        self.templates()
            .context("discovery.templates cannot be used")?;
        self.oap_config().check_given()
    }

    /// Ids of the users of `oap.local_users`.
    ///
    /// # Errors
    ///
    /// This host has no such user; the text names it.
    pub fn local_users(&self) -> Result<Vec<u32>> {
        self.oap
            .local_users
            .iter()
            .map(|name| user_id(name))
            .collect()
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
            host_names: self.host_names.clone(),
            token,
            data: data_dir.map_or(DataDir::Memory, |dir| dir.as_path().into()),
            limits: StoreLimits {
                bytes: standalone.max_bytes,
                retention: Duration::from_hours(24 * u64::from(standalone.retention_days)),
                ..StoreLimits::default()
            },
        }
    }

    /// What is tracked at once.
    #[must_use]
    pub fn tracker_limits(&self) -> TrackerLimits {
        TrackerLimits {
            max_open_requests: self.limits.max_open_requests as usize,
        }
    }

    /// What the overhead guard holds the daemon to.
    #[must_use]
    pub fn budget(&self) -> Budget {
        Budget {
            cpu_percent: self.limits.max_cpu_percent,
            ends_for_hooks: self.limits.end_tasks_for_hooks,
            memory_bytes: u64::from(self.limits.max_memory_mb) << 20,
        }
    }

    /// Where the token for the OAP is.
    #[must_use]
    pub fn token_source(&self) -> TokenSource {
        match (&self.oap.authentication, &self.oap.token_file) {
            (Some(Secret(token)), _) => TokenSource::Given(token.clone()),
            (None, Some(file)) => TokenSource::File(file.clone()),
            (None, None) => TokenSource::None,
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
            token: self.token_source(),
            tls,
            // Names that are none were refused at the start.
            local_users: self.local_users().unwrap_or_default(),
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
            "local_users",
            "poll_interval",
            "heartbeat_interval",
            "ca_file",
            "cert_file",
            "key_file",
            "server_name",
            "query",
            "agent_profiler",
            "scan_interval",
            "discovery.mode",
            "discovery.window",
            "discovery.interval",
            "discovery.templates",
            "max_cpu_percent",
            "end_tasks_for_hooks",
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
            "format",
            "oap.token_file",
            "deny_namespaces",
            "only_annotated",
            "host_processes",
            "metrics",
            "host_names",
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

    /// Check that users are names or numbers of this host, and that one that is not is refused by name.
    #[test]
    fn local_users_are_users_of_this_host() {
        let of = |text: &str| file::parse(text, "p.yaml").unwrap();
        let users = |text: &str| of(text).local_users().unwrap();
        assert_eq!(users(""), [0; 0]);
        assert_eq!(users("oap: {local_users: [root, 4711]}\n"), [0, 4711]);
        let config = of("oap: {local_users: [no-such-user]}\n");
        let error = config.check().unwrap_err().to_string();
        assert!(
            error.contains("oap.local_users") && error.contains("no-such-user"),
            "{error}"
        );
    }

    /// Check that only `daemon` needs an OAP, and that it says how to name one.
    #[test]
    fn a_daemon_needs_an_oap() {
        let config = Config::default();
        config.check().unwrap();
        let error = config.oap_config().check().unwrap_err().to_string();
        for way in [
            "--backend",
            "SW_AGENT_COLLECTOR_BACKEND_SERVICES",
            "oap.backends",
            "profilerd standalone",
        ] {
            assert!(error.contains(way), "{error}");
        }
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
