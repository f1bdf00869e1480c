//! Applies variables to a configuration: the names of SkyWalking's agents, and our own.
//!
//! An empty value counts as unset, as templates of deployments leave them.

use super::origin::{Origin, Origins};
use super::variable::VARIABLES;
use super::{Config, ConfigError, nearest};
use crate::model::plain::check_plain;

/// Read elsewhere: by the command line.
const OTHERS: &[&str] = &[
    "PROFILERD_CONFIG",
    "PROFILERD_HTTP_LISTEN",
    "PROFILERD_LISTEN",
];

/// Applies all variables that are known; returns warnings about unknown ones of ours.
pub(super) fn apply(
    config: &mut Config,
    origins: &mut Origins,
    variables: &[(String, String)],
) -> Result<Vec<String>, ConfigError> {
    let mut given: Vec<&(String, String)> = variables
        .iter()
        .filter(|(name, value)| is_of_interest(name) && !value.trim().is_empty())
        .collect();
    given.sort();
    for &(name, key, set) in VARIABLES {
        if let Some((_, value)) = given.iter().find(|(given, _)| given == name) {
            let failed = |problem| ConfigError::Variable {
                name: name.to_owned(),
                problem,
            };
            let value = value.trim();
            check_plain("it", value).map_err(failed)?;
            set(config, value).map_err(failed)?;
            origins.set(key, Origin::Variable(name));
        }
    }
    let known = |name: &str| VARIABLES.iter().any(|&(n, ..)| n == name) || OTHERS.contains(&name);
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
        .map(|&(n, ..)| n)
        .filter(|n| n.starts_with("PROFILERD_"));
    match nearest(name, ours) {
        Some(known) => {
            format!("the variable {name} is unknown and has no effect; the nearest is {known}")
        }
        None => format!("the variable {name} is unknown and has no effect"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Secret;
    use super::*;
    use crate::embedded::DataDir;

    fn applied(variables: &[(&str, &str)]) -> Result<(Config, Vec<String>), ConfigError> {
        let mut config = Config::default();
        let owned = variables
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()));
        let owned: Vec<_> = owned.collect();
        let warnings = apply(&mut config, &mut Origins::default(), &owned)?;
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
