//! Takes over what can change while the daemon runs from a configuration that was read again.
//!
//! In:  the configuration in use, the one that was read
//! Out: the configuration in use, with the new values of what can change; [`Change`]s for the log
//! Lost: nothing; what takes a restart is named each time

use std::fmt;

use anyhow::Result;

use super::Config;

/// A key whose value is another one than that in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key as a path.
    pub key: String,
    /// It is in use from now on; else it takes a restart.
    pub is_effective: bool,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let when = match self.is_effective {
            true => "takes effect now",
            false => "takes effect after a restart",
        };
        write!(f, "{} changed; {when}", self.key)
    }
}

/// Whose OAP the daemon talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OapOwner {
    /// Others: `daemon`.
    Others,
    /// The daemon itself: `standalone`, where the token is that of its own callers and stays as long as it runs.
    Daemon,
}

impl Config {
    /// Takes over what can change while the daemon runs; says what has changed, keys from A to Z.
    ///
    /// # Errors
    ///
    /// A path is not UTF-8; nothing has changed then.
    pub fn adopt(&mut self, new: &Self, oap: OapOwner) -> Result<Vec<Change>> {
        let changed = self.differences(new)?;
        self.services.clone_from(&new.services);
        self.log.level = new.log.level;
        if oap == OapOwner::Others {
            self.oap.authentication.clone_from(&new.oap.authentication);
            self.oap.token_file.clone_from(&new.oap.token_file);
        }
        let (pods, new_pods) = (&mut self.kubernetes, &new.kubernetes);
        pods.deny_namespaces.clone_from(&new_pods.deny_namespaces);
        pods.only_annotated = new_pods.only_annotated;
        pods.host_processes = new_pods.host_processes;
        let (limits, new_limits) = (&mut self.limits, &new.limits);
        limits.max_cpu_percent = new_limits.max_cpu_percent;
        limits.end_tasks_for_hooks = new_limits.end_tasks_for_hooks;
        limits.max_memory_mb = new_limits.max_memory_mb;
        limits.max_open_requests = new_limits.max_open_requests;
        let pending = self.differences(new)?;
        let change = |key: String| Change {
            is_effective: !pending.contains(&key),
            key,
        };
        Ok(changed.into_iter().map(change).collect())
    }

    /// Keys whose values differ.
    fn differences(&self, other: &Self) -> Result<Vec<String>> {
        let (ours, others) = (self.entries()?, other.entries()?);
        let pairs = ours.into_iter().zip(others);
        // Secrets are shown alike.
        let is_other_token = self.oap.authentication != other.oap.authentication;
        let differs = |key: &str| key == "oap.authentication" && is_other_token;
        let changed = pairs.filter(|((key, a), (_, b))| a != b || differs(key));
        Ok(changed.map(|((key, _), _)| key).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Secret, file};
    use super::*;

    /// Check what takes effect at once and what does not, that it is named again until the restart, and that a token is
    /// compared and not shown.
    #[test]
    fn what_can_change_does_and_the_rest_is_named() {
        let read = |text: &str| file::parse(text, "f").unwrap();
        let mut config = read("oap: {backends: [a:1], authentication: one}\n");
        let text = "oap: {backends: [b:1], authentication: two}\nlimits: {max_cpu_percent: 7, samples_ring: 8MiB}\n\
                    services: [{match: {exe: a}, service: s}]\nlog: {level: debug, format: json}\n";
        let new = read(text);
        let told = |changes: Vec<Change>| {
            let told = changes.iter().map(Change::to_string);
            told.collect::<Vec<_>>()
        };
        let now = |key: &str| format!("{key} changed; takes effect now");
        let later = |key: &str| format!("{key} changed; takes effect after a restart");
        let pending = [
            later("limits.samples_ring"),
            later("log.format"),
            later("oap.backends"),
        ];
        let changes = told(config.adopt(&new, OapOwner::Others).unwrap());
        let expected = [
            now("limits.max_cpu_percent"),
            pending[0].clone(),
            pending[1].clone(),
            now("log.level"),
            now("oap.authentication"),
            pending[2].clone(),
            now("services"),
        ];
        assert_eq!(changes, expected);
        assert_eq!(config.oap.authentication, Some(Secret("two".to_owned())));
        assert_eq!(config.oap.backends, ["a:1"]);
        assert_eq!(config.limits.max_cpu_percent, 7);
        assert_eq!(told(config.adopt(&new, OapOwner::Others).unwrap()), pending);
        assert!(
            config
                .clone()
                .adopt(&config, OapOwner::Others)
                .unwrap()
                .is_empty()
        );
    }

    /// Check that the token of the built-in OAP stays.
    #[test]
    fn the_token_of_the_built_in_oap_stays() {
        let mut config = Config::default();
        let mut new = Config::default();
        new.oap.authentication = Some(Secret("t".to_owned()));
        let changes = config.adopt(&new, OapOwner::Daemon).unwrap();
        assert!(
            matches!(&changes[..], [it] if !it.is_effective),
            "{changes:?}"
        );
        assert_eq!(config.oap.authentication, None);
    }
}
