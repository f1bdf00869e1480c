//! The variables that set a key of the configuration, each with its key and how it is read.
//!
//! Ours are `PROFILERD_` and the key's path in capitals. The names of SkyWalking's agents that mean the same are
//! accepted, since a host that runs agents has them already.

use std::path::PathBuf;

use super::settings::range;
use super::{
    AgentProfiler, CodeSignature, Config, DiscoveryMode, Enabled, LogFormat, LogLevel, Secret,
    TokenFile, discovery, parse_metrics, state_folder,
};
use crate::frames::FrameSet;

/// Sets one value from text.
pub(super) type Setter = fn(&mut Config, &str) -> Result<(), String>;

/// Names, each with the key it sets, in the order in which they are applied: where two mean the same, ours comes last
/// and wins.
pub(super) const VARIABLES: &[(&str, &str, Setter)] = &[
    (
        "SW_AGENT_COLLECTOR_BACKEND_SERVICES",
        "oap.backends",
        backends,
    ),
    (
        "SW_AGENT_AUTHENTICATION",
        "oap.authentication",
        authentication,
    ),
    ("SW_AGENT_FORCE_TLS", "oap.tls.enabled", tls_enabled),
    (
        "SW_AGENT_SSL_TRUSTED_CA_PATH",
        "oap.tls.ca_file",
        tls_ca_file,
    ),
    (
        "SW_AGENT_SSL_CERT_CHAIN_PATH",
        "oap.tls.cert_file",
        tls_cert_file,
    ),
    ("SW_AGENT_SSL_KEY_PATH", "oap.tls.key_file", tls_key_file),
    ("PROFILERD_OAP_BACKENDS", "oap.backends", backends),
    (
        "PROFILERD_OAP_AUTHENTICATION",
        "oap.authentication",
        authentication,
    ),
    (
        "PROFILERD_OAP_TOKEN_FILE",
        "oap.token_file",
        |config, text| {
            config.oap.token_file = Some(text.into());
            Ok(())
        },
    ),
    (
        "PROFILERD_OAP_LOCAL_USERS",
        "oap.local_users",
        |config, text| {
            config.oap.local_users = list(text);
            Ok(())
        },
    ),
    (
        "PROFILERD_OAP_POLL_INTERVAL",
        "oap.poll_interval",
        |config, text| {
            config.oap.poll_interval = range::POLL_INTERVAL.parse(text)?;
            Ok(())
        },
    ),
    (
        "PROFILERD_OAP_HEARTBEAT_INTERVAL",
        "oap.heartbeat_interval",
        |config, text| {
            config.oap.heartbeat_interval = range::HEARTBEAT_INTERVAL.parse(text)?;
            Ok(())
        },
    ),
    ("PROFILERD_OAP_TLS_ENABLED", "oap.tls.enabled", tls_enabled),
    ("PROFILERD_OAP_TLS_CA_FILE", "oap.tls.ca_file", tls_ca_file),
    (
        "PROFILERD_OAP_TLS_CERT_FILE",
        "oap.tls.cert_file",
        tls_cert_file,
    ),
    (
        "PROFILERD_OAP_TLS_KEY_FILE",
        "oap.tls.key_file",
        tls_key_file,
    ),
    (
        "PROFILERD_OAP_TLS_SERVER_NAME",
        "oap.tls.server_name",
        |config, text| {
            config.oap.tls.server_name = Some(text.to_owned());
            Ok(())
        },
    ),
    ("PROFILERD_OAP_QUERY", "oap.query", |config, text| {
        config.oap.query = Some(text.to_owned());
        Ok(())
    }),
    (
        "PROFILERD_OAP_AGENT_PROFILER",
        "oap.agent_profiler",
        |config, text| {
            config.oap.agent_profiler = choose(
                text,
                &[
                    ("leave", AgentProfiler::Leave),
                    ("beside", AgentProfiler::Beside),
                ],
            )?;
            Ok(())
        },
    ),
    (
        "PROFILERD_PROCESSES_SCAN_INTERVAL",
        "processes.scan_interval",
        |config, text| {
            config.processes.scan_interval = range::SCAN_INTERVAL.parse(text)?;
            Ok(())
        },
    ),
    (
        "PROFILERD_DISCOVERY_MODE",
        "discovery.mode",
        |config, text| {
            config.discovery.mode = choose(text, &DiscoveryMode::NAMED)?;
            Ok(())
        },
    ),
    (
        "PROFILERD_DISCOVERY_WINDOW",
        "discovery.window",
        |config, text| {
            config.discovery.window = discovery::WINDOW.parse(text)?;
            Ok(())
        },
    ),
    (
        "PROFILERD_DISCOVERY_INTERVAL",
        "discovery.interval",
        |config, text| {
            config.discovery.interval = discovery::INTERVAL.parse(text)?;
            Ok(())
        },
    ),
    (
        "PROFILERD_KUBERNETES_ENABLED",
        "kubernetes.enabled",
        |config, text| {
            config.kubernetes.enabled = Enabled::parse(text)?;
            Ok(())
        },
    ),
    (
        "PROFILERD_KUBERNETES_API_SERVER",
        "kubernetes.api_server",
        |config, text| {
            config.kubernetes.api_server = Some(text.to_owned());
            Ok(())
        },
    ),
    (
        "PROFILERD_KUBERNETES_NODE_NAME",
        "kubernetes.node_name",
        |config, text| {
            config.kubernetes.node_name = Some(text.to_owned());
            Ok(())
        },
    ),
    (
        "PROFILERD_KUBERNETES_TOKEN_FILE",
        "kubernetes.token_file",
        |config, text| {
            config.kubernetes.token_file = text.into();
            Ok(())
        },
    ),
    (
        "PROFILERD_KUBERNETES_CA_FILE",
        "kubernetes.ca_file",
        |config, text| {
            config.kubernetes.ca_file = text.into();
            Ok(())
        },
    ),
    (
        "PROFILERD_KUBERNETES_DENY_NAMESPACES",
        "kubernetes.deny_namespaces",
        |config, text| {
            config.kubernetes.deny_namespaces = list(text);
            Ok(())
        },
    ),
    (
        "PROFILERD_KUBERNETES_ONLY_ANNOTATED",
        "kubernetes.only_annotated",
        |config, text| {
            config.kubernetes.only_annotated = boolean(text)?;
            Ok(())
        },
    ),
    (
        "PROFILERD_KUBERNETES_HOST_PROCESSES",
        "kubernetes.host_processes",
        |config, text| {
            config.kubernetes.host_processes = boolean(text)?;
            Ok(())
        },
    ),
    (
        "PROFILERD_LIMITS_MAX_CPU_PERCENT",
        "limits.max_cpu_percent",
        |config, text| {
            config.limits.max_cpu_percent = range::MAX_CPU_PERCENT.parse(text)?;
            Ok(())
        },
    ),
    (
        "PROFILERD_LIMITS_END_TASKS_FOR_HOOKS",
        "limits.end_tasks_for_hooks",
        |config, text| {
            config.limits.end_tasks_for_hooks = boolean(text)?;
            Ok(())
        },
    ),
    (
        "PROFILERD_LIMITS_MAX_MEMORY_MB",
        "limits.max_memory_mb",
        |config, text| {
            config.limits.max_memory_mb = range::MAX_MEMORY_MB.parse(text)?;
            Ok(())
        },
    ),
    (
        "PROFILERD_LIMITS_MAX_OPEN_REQUESTS",
        "limits.max_open_requests",
        |config, text| {
            config.limits.max_open_requests = range::MAX_OPEN_REQUESTS.parse(text)?;
            Ok(())
        },
    ),
    (
        "PROFILERD_LIMITS_SAMPLE_QUEUE",
        "limits.sample_queue",
        |config, text| {
            config.limits.sample_queue = range::SAMPLE_QUEUE.parse(text)?;
            Ok(())
        },
    ),
    (
        "PROFILERD_LIMITS_SNAPSHOT_QUEUE",
        "limits.snapshot_queue",
        |config, text| {
            config.limits.snapshot_queue = range::SNAPSHOT_QUEUE.parse(text)?;
            Ok(())
        },
    ),
    (
        "PROFILERD_LIMITS_REQUESTS_RING",
        "limits.requests_ring",
        |config, text| {
            config.limits.requests_ring_bytes = range::RING.parse(text)?;
            Ok(())
        },
    ),
    (
        "PROFILERD_LIMITS_SAMPLES_RING",
        "limits.samples_ring",
        |config, text| {
            config.limits.samples_ring_bytes = range::RING.parse(text)?;
            Ok(())
        },
    ),
    (
        "PROFILERD_LIMITS_SNAPSHOT_MEMORY",
        "limits.snapshot_memory",
        |config, text| {
            config.limits.snapshot_memory_bytes = range::SNAPSHOT_MEMORY.parse(text)?;
            Ok(())
        },
    ),
    ("PROFILERD_LIMITS_SPOOL", "limits.spool", |config, text| {
        config.limits.spool_bytes = range::SPOOL.parse(text)?;
        Ok(())
    }),
    // Of `StateDirectory=` in a systemd unit; several are separated by colons.
    ("STATE_DIRECTORY", "state_dir", |config, text| {
        config.state_dir = text.split(':').next().map(PathBuf::from);
        Ok(())
    }),
    ("PROFILERD_STATE_DIR", "state_dir", |config, text| {
        config.state_dir = state_folder(text);
        Ok(())
    }),
    (
        "PROFILERD_STANDALONE_DATA_DIR",
        "standalone.data_dir",
        |config, text| {
            config.standalone.data_dir = Some(text.into());
            Ok(())
        },
    ),
    (
        "PROFILERD_STANDALONE_TOKEN_FILE",
        "standalone.token_file",
        |config, text| {
            config.standalone.token_file = TokenFile::parse(text);
            Ok(())
        },
    ),
    (
        "PROFILERD_STANDALONE_RETENTION_DAYS",
        "standalone.retention_days",
        |config, text| {
            config.standalone.retention_days = range::RETENTION_DAYS.parse(text)?;
            Ok(())
        },
    ),
    (
        "PROFILERD_STANDALONE_MAX_BYTES",
        "standalone.max_bytes",
        |config, text| {
            config.standalone.max_bytes = range::MAX_BYTES.parse(text)?;
            Ok(())
        },
    ),
    (
        "PROFILERD_CODE_SIGNATURE",
        "code_signature",
        |config, text| {
            config.code_signature = choose(
                text,
                &[
                    ("function", CodeSignature::Function),
                    ("line", CodeSignature::Line),
                ],
            )?;
            Ok(())
        },
    ),
    ("PROFILERD_FRAMES", "frames", |config, text| {
        config.frames = choose(text, &FrameSet::ALL.map(|set| (set.name(), set)))?;
        Ok(())
    }),
    ("PROFILERD_LOG_LEVEL", "log.level", |config, text| {
        use LogLevel as L;
        let levels = [L::Error, L::Warn, L::Info, L::Debug, L::Trace];
        config.log.level = Some(choose(text, &levels.map(|level| (level.name(), level)))?);
        Ok(())
    }),
    ("PROFILERD_LOG_FORMAT", "log.format", |config, text| {
        config.log.format = choose(text, &LogFormat::NAMED)?;
        Ok(())
    }),
    ("PROFILERD_METRICS", "metrics", |config, text| {
        config.metrics = parse_metrics(text)?;
        Ok(())
    }),
    ("PROFILERD_HOST_NAMES", "host_names", |config, text| {
        config.host_names = list(text);
        Ok(())
    }),
];

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
    config.oap.tls.enabled = boolean(text)?;
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

fn boolean(text: &str) -> Result<bool, String> {
    choose(&text.to_lowercase(), &[("true", true), ("false", false)])
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

    /// Check that the names of ours are those of their keys.
    #[test]
    fn ours_are_named_like_their_keys() {
        for (name, key, _) in VARIABLES {
            if name.starts_with("PROFILERD_") {
                let expected = key.to_uppercase().replace('.', "_");
                assert_eq!(*name, format!("PROFILERD_{expected}"));
            }
        }
    }
}
