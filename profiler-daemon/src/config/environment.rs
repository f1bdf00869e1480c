//! Applies variables to a configuration: the names of SkyWalking's agents, and our own.
//!
//! Ours are `PROFILERD_` and the key's path in capitals. The agents' names that mean the same are
//! accepted, since a host that runs agents has them already. An empty value counts as unset, as
//! templates of deployments leave them.

use std::path::PathBuf;

use super::{
    AgentProfiler, CodeSignature, Config, ConfigError, DiscoveryMode, Enabled, LogLevel, Secret,
    TokenFile, discovery, nearest, parse_metrics, range, state_folder,
};
use crate::frames::FrameSet;
use crate::model::plain::check_plain;

/// Sets one value from text.
type Setter = fn(&mut Config, &str) -> Result<(), String>;

/// Names in the order in which they are applied: where two mean the same, ours comes last and wins.
const VARIABLES: &[(&str, Setter)] = &[
    ("SW_AGENT_COLLECTOR_BACKEND_SERVICES", backends),
    ("SW_AGENT_AUTHENTICATION", authentication),
    ("SW_AGENT_FORCE_TLS", tls_enabled),
    ("SW_AGENT_SSL_TRUSTED_CA_PATH", tls_ca_file),
    ("SW_AGENT_SSL_CERT_CHAIN_PATH", tls_cert_file),
    ("SW_AGENT_SSL_KEY_PATH", tls_key_file),
    ("PROFILERD_OAP_BACKENDS", backends),
    ("PROFILERD_OAP_AUTHENTICATION", authentication),
    ("PROFILERD_OAP_LOCAL_USERS", |config, text| {
        config.oap.local_users = list(text);
        Ok(())
    }),
    ("PROFILERD_OAP_POLL_INTERVAL", |config, text| {
        config.oap.poll_interval = range::POLL_INTERVAL.parse(text)?;
        Ok(())
    }),
    ("PROFILERD_OAP_HEARTBEAT_INTERVAL", |config, text| {
        config.oap.heartbeat_interval = range::HEARTBEAT_INTERVAL.parse(text)?;
        Ok(())
    }),
    ("PROFILERD_OAP_TLS_ENABLED", tls_enabled),
    ("PROFILERD_OAP_TLS_CA_FILE", tls_ca_file),
    ("PROFILERD_OAP_TLS_CERT_FILE", tls_cert_file),
    ("PROFILERD_OAP_TLS_KEY_FILE", tls_key_file),
    ("PROFILERD_OAP_TLS_SERVER_NAME", |config, text| {
        config.oap.tls.server_name = Some(text.to_owned());
        Ok(())
    }),
    ("PROFILERD_OAP_QUERY", |config, text| {
        config.oap.query = Some(text.to_owned());
        Ok(())
    }),
    ("PROFILERD_OAP_AGENT_PROFILER", |config, text| {
        config.oap.agent_profiler = choose(
            text,
            &[
                ("leave", AgentProfiler::Leave),
                ("beside", AgentProfiler::Beside),
            ],
        )?;
        Ok(())
    }),
    ("PROFILERD_PROCESSES_SCAN_INTERVAL", |config, text| {
        config.processes.scan_interval = range::SCAN_INTERVAL.parse(text)?;
        Ok(())
    }),
    ("PROFILERD_DISCOVERY_MODE", |config, text| {
        config.discovery.mode = choose(text, &DiscoveryMode::NAMED)?;
        Ok(())
    }),
    ("PROFILERD_DISCOVERY_WINDOW", |config, text| {
        config.discovery.window = discovery::WINDOW.parse(text)?;
        Ok(())
    }),
    ("PROFILERD_DISCOVERY_INTERVAL", |config, text| {
        config.discovery.interval = discovery::INTERVAL.parse(text)?;
        Ok(())
    }),
    ("PROFILERD_KUBERNETES_ENABLED", |config, text| {
        config.kubernetes.enabled = Enabled::parse(text)?;
        Ok(())
    }),
    ("PROFILERD_KUBERNETES_API_SERVER", |config, text| {
        config.kubernetes.api_server = Some(text.to_owned());
        Ok(())
    }),
    ("PROFILERD_KUBERNETES_NODE_NAME", |config, text| {
        config.kubernetes.node_name = Some(text.to_owned());
        Ok(())
    }),
    ("PROFILERD_KUBERNETES_TOKEN_FILE", |config, text| {
        config.kubernetes.token_file = text.into();
        Ok(())
    }),
    ("PROFILERD_KUBERNETES_CA_FILE", |config, text| {
        config.kubernetes.ca_file = text.into();
        Ok(())
    }),
    ("PROFILERD_LIMITS_MAX_CPU_PERCENT", |config, text| {
        config.limits.max_cpu_percent = range::MAX_CPU_PERCENT.parse(text)?;
        Ok(())
    }),
    ("PROFILERD_LIMITS_END_TASKS_FOR_HOOKS", |config, text| {
        config.limits.end_tasks_for_hooks =
            choose(&text.to_lowercase(), &[("true", true), ("false", false)])?;
        Ok(())
    }),
    ("PROFILERD_LIMITS_MAX_MEMORY_MB", |config, text| {
        config.limits.max_memory_mb = range::MAX_MEMORY_MB.parse(text)?;
        Ok(())
    }),
    ("PROFILERD_LIMITS_MAX_OPEN_REQUESTS", |config, text| {
        config.limits.max_open_requests = range::MAX_OPEN_REQUESTS.parse(text)?;
        Ok(())
    }),
    ("PROFILERD_LIMITS_SAMPLE_QUEUE", |config, text| {
        config.limits.sample_queue = range::SAMPLE_QUEUE.parse(text)?;
        Ok(())
    }),
    ("PROFILERD_LIMITS_SNAPSHOT_QUEUE", |config, text| {
        config.limits.snapshot_queue = range::SNAPSHOT_QUEUE.parse(text)?;
        Ok(())
    }),
    ("PROFILERD_LIMITS_REQUESTS_RING", |config, text| {
        config.limits.requests_ring_bytes = range::RING.parse(text)?;
        Ok(())
    }),
    ("PROFILERD_LIMITS_SAMPLES_RING", |config, text| {
        config.limits.samples_ring_bytes = range::RING.parse(text)?;
        Ok(())
    }),
    ("PROFILERD_LIMITS_SNAPSHOT_MEMORY", |config, text| {
        config.limits.snapshot_memory_bytes = range::SNAPSHOT_MEMORY.parse(text)?;
        Ok(())
    }),
    ("PROFILERD_LIMITS_SPOOL", |config, text| {
        config.limits.spool_bytes = range::SPOOL.parse(text)?;
        Ok(())
    }),
    // Of `StateDirectory=` in a systemd unit; several are separated by colons.
    ("STATE_DIRECTORY", |config, text| {
        config.state_dir = text.split(':').next().map(PathBuf::from);
        Ok(())
    }),
    ("PROFILERD_STATE_DIR", |config, text| {
        config.state_dir = state_folder(text);
        Ok(())
    }),
    ("PROFILERD_STANDALONE_DATA_DIR", |config, text| {
        config.standalone.data_dir = Some(text.into());
        Ok(())
    }),
    ("PROFILERD_STANDALONE_TOKEN_FILE", |config, text| {
        config.standalone.token_file = TokenFile::parse(text);
        Ok(())
    }),
    ("PROFILERD_STANDALONE_RETENTION_DAYS", |config, text| {
        config.standalone.retention_days = range::RETENTION_DAYS.parse(text)?;
        Ok(())
    }),
    ("PROFILERD_STANDALONE_MAX_BYTES", |config, text| {
        config.standalone.max_bytes = range::MAX_BYTES.parse(text)?;
        Ok(())
    }),
    ("PROFILERD_CODE_SIGNATURE", |config, text| {
        config.code_signature = choose(
            text,
            &[
                ("function", CodeSignature::Function),
                ("line", CodeSignature::Line),
            ],
        )?;
        Ok(())
    }),
    ("PROFILERD_FRAMES", |config, text| {
        config.frames = choose(text, &FrameSet::ALL.map(|set| (set.name(), set)))?;
        Ok(())
    }),
    ("PROFILERD_LOG_LEVEL", |config, text| {
        use LogLevel as L;
        let levels = [L::Error, L::Warn, L::Info, L::Debug, L::Trace];
        config.log.level = Some(choose(text, &levels.map(|level| (level.name(), level)))?);
        Ok(())
    }),
    ("PROFILERD_METRICS", |config, text| {
        config.metrics = parse_metrics(text)?;
        Ok(())
    }),
    ("PROFILERD_HOST_NAMES", |config, text| {
        config.host_names = list(text);
        Ok(())
    }),
];

/// Read elsewhere: by the command line.
const OTHERS: &[&str] = &[
    "PROFILERD_CONFIG",
    "PROFILERD_HTTP_LISTEN",
    "PROFILERD_LISTEN",
];

/// Applies all variables that are known; returns warnings about unknown ones of ours.
pub(super) fn apply(
    config: &mut Config,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<String>, ConfigError> {
    let mut given: Vec<(String, String)> = variables
        .into_iter()
        .filter(|(name, value)| is_of_interest(name) && !value.trim().is_empty())
        .collect();
    given.sort();
    for (name, set) in VARIABLES {
        if let Some((_, value)) = given.iter().find(|(given, _)| given == name) {
            let failed = |problem| ConfigError::Variable {
                name: (*name).to_owned(),
                problem,
            };
            let value = value.trim();
            check_plain("it", value).map_err(failed)?;
            set(config, value).map_err(failed)?;
        }
    }
    let known = |name: &str| VARIABLES.iter().any(|&(n, _)| n == name) || OTHERS.contains(&name);
    let unknown = given
        .iter()
        .filter(|(name, _)| name.starts_with("PROFILERD_") && !known(name));
    Ok(unknown.map(|(name, _)| warning(name)).collect())
}

fn is_of_interest(name: &str) -> bool {
    name.starts_with("PROFILERD_") || name.starts_with("SW_AGENT_") || name == "STATE_DIRECTORY"
}

fn warning(name: &str) -> String {
    let ours = VARIABLES
        .iter()
        .map(|&(n, _)| n)
        .filter(|n| n.starts_with("PROFILERD_"));
    match nearest(name, ours) {
        Some(known) => {
            format!("the variable {name} is unknown and has no effect; the nearest is {known}")
        }
        None => format!("the variable {name} is unknown and has no effect"),
    }
}

fn backends(config: &mut Config, text: &str) -> Result<(), String> {
    config.oap.backends = list(text);
    Ok(())
}

/// Words with commas between them.
fn list(text: &str) -> Vec<String> {
    let words = text.split(',').map(str::trim);
    let words = words.filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

fn authentication(config: &mut Config, text: &str) -> Result<(), String> {
    config.oap.authentication = Some(Secret(text.to_owned()));
    Ok(())
}

fn tls_enabled(config: &mut Config, text: &str) -> Result<(), String> {
    config.oap.tls.enabled = choose(&text.to_lowercase(), &[("true", true), ("false", false)])?;
    Ok(())
}

fn tls_ca_file(config: &mut Config, text: &str) -> Result<(), String> {
    config.oap.tls.ca_file = Some(text.into());
    Ok(())
}

fn tls_cert_file(config: &mut Config, text: &str) -> Result<(), String> {
    config.oap.tls.cert_file = Some(text.into());
    Ok(())
}

fn tls_key_file(config: &mut Config, text: &str) -> Result<(), String> {
    config.oap.tls.key_file = Some(text.into());
    Ok(())
}

fn choose<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let found = choices.iter().find(|&&(name, _)| name == text);
    found.map(|&(_, value)| value).ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|&(name, _)| name).collect();
        format!("{text:?} is not one of {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::DataDir;

    fn applied(variables: &[(&str, &str)]) -> Result<(Config, Vec<String>), ConfigError> {
        let mut config = Config::default();
        let owned = variables
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()));
        let warnings = apply(&mut config, owned)?;
        Ok((config, warnings))
    }

    /// Check that the data of `standalone` goes to the folder of systemd, unless another is given, and to
    /// memory without either.
    #[test]
    fn data_goes_to_the_state_folder() {
        let state = ("STATE_DIRECTORY", "/state/one:/state/two");
        let data_of = |variables: &[(&str, &str)]| {
            let (config, warnings) = applied(variables).unwrap();
            assert!(warnings.is_empty(), "{warnings:?}");
            let any_port = "127.0.0.1:0".parse().unwrap();
            config.embedded_config(any_port, None, None).data
        };
        let directory = |path: &str| DataDir::Directory(path.into());
        assert_eq!(data_of(&[]), directory("/var/lib/profilerd"));
        assert_eq!(data_of(&[state]), directory("/state/one"));
        let given = ("PROFILERD_STANDALONE_DATA_DIR", "/ours");
        assert_eq!(data_of(&[state, given]), directory("/ours"));
        let none = ("PROFILERD_STATE_DIR", "none");
        assert_eq!(data_of(&[none]), DataDir::Memory);
        assert_eq!(data_of(&[none, given]), directory("/ours"));
    }

    /// Check that agents' names work, that ours win, and that empty ones do nothing.
    #[test]
    fn ours_win_over_the_agents() {
        let (config, warnings) = applied(&[
            ("PROFILERD_OAP_BACKENDS", "ours:1"),
            ("SW_AGENT_COLLECTOR_BACKEND_SERVICES", "theirs:1"),
            ("SW_AGENT_AUTHENTICATION", " token "),
            ("SW_AGENT_FORCE_TLS", "True"),
            ("SW_AGENT_NAME", "of another program"),
            ("PROFILERD_LOG_LEVEL", ""),
            ("PROFILERD_LIMITS_SAMPLES_RING", "8MiB"),
        ])
        .unwrap();
        assert_eq!(config.oap.backends, ["ours:1"]);
        assert_eq!(config.oap.authentication, Some(Secret("token".to_owned())));
        assert!(config.oap.tls.enabled);
        assert_eq!(config.limits.samples_ring_bytes, 8 << 20);
        assert_eq!(config.log.level, None);
        assert!(warnings.is_empty(), "{warnings:?}");
    }

    /// Check that a bad value is refused under the variable's name, without showing secrets.
    #[test]
    fn a_bad_value_names_its_variable() {
        let error = applied(&[("PROFILERD_OAP_POLL_INTERVAL", "5")])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("PROFILERD_OAP_POLL_INTERVAL") && error.contains("1s to 5m"),
            "{error}"
        );
        let error = applied(&[("PROFILERD_CODE_SIGNATURE", "x")])
            .unwrap_err()
            .to_string();
        assert!(error.contains("not one of function, line"), "{error}");
    }

    /// Check that what Kubernetes sets for a Service of our name is a warning, and a slip names the
    /// nearest.
    #[test]
    fn an_unknown_variable_is_a_warning() {
        let (_, warnings) = applied(&[
            ("PROFILERD_SERVICE_HOST", "10.0.0.1"),
            ("PROFILERD_OAP_POLL_INTERVALL", "5s"),
        ])
        .unwrap();
        assert_eq!(warnings.len(), 2);
        assert!(
            warnings[0].ends_with("PROFILERD_OAP_POLL_INTERVAL"),
            "{warnings:?}"
        );
    }
}
