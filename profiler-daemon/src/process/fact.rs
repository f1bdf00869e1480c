//! What is known of a process, as identity, instance and properties follow from it.

use std::path::Path;

use super::agent::Agent;
use super::cgroup::Cgroup;
use super::container::ContainerNames;
use super::instance;
use super::pod::Pod;
use super::runtime::Runtime;
use super::settle::Settled;
use crate::config::{LABEL, RuleMatch};
use crate::model::{Pid, name};

/// Longest text taken from a process. The name of a Kubernetes workload with its namespace has up to 317 characters.
const TEXT_UNITS_MAX: usize = 400;

/// What identity is derived from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) pid: Pid,
    pub(super) host: &'a str,
    /// Addresses of the host, if the process is in its network namespace.
    pub(super) host_addresses: &'a [String],
    /// The process is in the network namespace of the host.
    pub(super) shares_network: bool,
    pub(super) comm: &'a str,
    pub(super) exe: Option<&'a Path>,
    pub(super) command: &'a [String],
    pub(super) cgroup: &'a Cgroup,
    pub(super) container: Option<&'a ContainerNames>,
    pub(super) pod: Option<&'a Pod>,
    pub(super) listen_ports: &'a [u16],
    /// Those of [`super::identity::VARIABLES`] that are set.
    pub(super) environment: &'a [(String, String)],
    pub(super) runtime: Option<&'a Runtime>,
    pub(super) agent: Option<&'a Agent>,
    /// What the agent calls the instance, if it made that up and an OAP knows it.
    pub(super) agent_instance: Option<&'a str>,
    /// What its instance is called for good.
    pub(super) settled: Option<&'a Settled>,
}

impl<'a> Facts<'a> {
    pub(super) fn variable(&self, name: &str) -> Option<&'a str> {
        let found = self.environment.iter().find(|(given, _)| given == name);
        found.map(|(_, value)| value.as_str())
    }

    /// A value of `OTEL_RESOURCE_ATTRIBUTES`: `key=value` pairs by commas, values percent-encoded
    /// (OpenTelemetry resource SDK, "Specifying resource information via an environment variable").
    pub(super) fn resource_attribute(&self, key: &str) -> Option<String> {
        let pairs = self.variable("OTEL_RESOURCE_ATTRIBUTES")?.split(',');
        let (_, value) = pairs
            .filter_map(|pair| pair.split_once('='))
            .find(|(name, _)| name.trim() == key)?;
        let decoded = percent_encoding::percent_decode_str(value.trim()).decode_utf8_lossy();
        Some(tidy(decoded.trim_matches('"'))).filter(|value| !value.is_empty())
    }

    /// The container's name, or the beginning of its id.
    pub(super) fn container_name(&self) -> Option<&'a str> {
        let name = self.container.and_then(|names| names.name.as_deref());
        let id = || {
            self.cgroup
                .container
                .as_ref()
                .map(|container| container.short())
        };
        name.or_else(id)
    }

    pub(super) fn pod_name(&self) -> Option<&'a str> {
        let known = self.pod.map(|pod| pod.name.as_str());
        known.or_else(|| self.container?.pod.as_deref())
    }

    pub(super) fn namespace(&self) -> Option<&'a str> {
        let known = self.pod.map(|pod| pod.namespace.as_str());
        known.or_else(|| self.container?.namespace.as_deref())
    }

    pub(super) fn workload(&self) -> Option<&'a str> {
        self.pod?.workload.as_deref()
    }

    /// Value of a placeholder, see [`crate::config::Template`].
    pub(super) fn placeholder(&self, name: &str, matches: &RuleMatch) -> Option<String> {
        let value = match name {
            "container" => self.container_name()?.to_owned(),
            "pod" => self.pod_name()?.to_owned(),
            "namespace" => self.namespace()?.to_owned(),
            "workload" => self.workload()?.to_owned(),
            "unit" => self.cgroup.systemd_unit.clone()?,
            "exe" => self.exe?.file_name()?.to_string_lossy().into_owned(),
            "port" => match matches.listen_port {
                Some(port) => port.to_string(),
                None => self.listen_ports.first()?.to_string(),
            },
            "host" => instance::place(self),
            "pid" => self.pid.to_string(),
            _ => match name.strip_prefix(LABEL) {
                Some(key) => self.pod?.labels.get(key)?.clone(),
                None => self.group(name, matches)?,
            },
        };
        Some(tidy(&value))
    }

    /// What a named group of the rule's expressions matched.
    fn group(&self, name: &str, matches: &RuleMatch) -> Option<String> {
        let command = self.command.join(" ");
        let texts = [
            (&matches.command, command.as_str()),
            (&matches.cgroup, self.cgroup.path.as_str()),
            (
                &matches.container,
                self.container_name().unwrap_or_default(),
            ),
        ];
        let mut found = texts.into_iter().filter_map(|(pattern, text)| {
            let group = pattern.as_ref()?.group(name, text)?;
            Some(group.to_owned())
        });
        found.next()
    }
}

/// A name as it is shown and sent.
pub(super) fn tidy(text: &str) -> String {
    name::tidy(text, TEXT_UNITS_MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A process to be named; the default is `python3 /srv/app.py` that listens on 8080.
    pub(in crate::process) struct Given {
        pub(in crate::process) command: Vec<String>,
        pub(in crate::process) cgroup: Cgroup,
        pub(in crate::process) container: Option<ContainerNames>,
        pub(in crate::process) pod: Option<Pod>,
        pub(in crate::process) listen_ports: Vec<u16>,
        pub(in crate::process) environment: Vec<(String, String)>,
        pub(in crate::process) runtime: Option<Runtime>,
        pub(in crate::process) agent: Option<Agent>,
        pub(in crate::process) shares_network: bool,
    }

    impl Given {
        pub(in crate::process) fn new(environment: &[(&str, &str)], cgroup: &str) -> Self {
            let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
            Self {
                command: ["python3", "/srv/app.py"].map(str::to_owned).to_vec(),
                cgroup: Cgroup::parse(&format!("0::{cgroup}")),
                container: None,
                pod: None,
                listen_ports: vec![8080],
                environment: environment.iter().map(own).collect(),
                runtime: None,
                agent: None,
                shares_network: true,
            }
        }

        pub(in crate::process) fn facts(&self) -> Facts<'_> {
            Facts {
                pid: Pid(7),
                host: "host1",
                host_addresses: &[],
                shares_network: self.shares_network,
                comm: "python3",
                exe: Some(Path::new("/usr/bin/python3.11")),
                command: &self.command,
                cgroup: &self.cgroup,
                container: self.container.as_ref(),
                pod: self.pod.as_ref(),
                listen_ports: &self.listen_ports,
                environment: &self.environment,
                runtime: self.runtime.as_ref(),
                agent: self.agent.as_ref(),
                agent_instance: None,
                settled: None,
            }
        }
    }
}
