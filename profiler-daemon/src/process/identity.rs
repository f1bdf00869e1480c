//! Says which service and instance a process is.
//!
//! In:  what [`super::table`] has read, the rules of [`crate::config`]
//! Out: [`Identity`], by the first that applies: rule, environment, systemd unit, program
//! Lost: nothing; every process has an identity
//!
//! The instance is the environment's, else `<host>:<pid>`. In a container the host is the
//! container's own (`HOSTNAME`), which Kubernetes sets to the pod's name.

use std::fmt;
use std::path::Path;

use super::cgroup::Cgroup;
use super::program::program_name;
use crate::config::{RuleMatch, ServiceRule};
use crate::model::{Pid, Service};

/// Variables that identity is read from.
pub const VARIABLES: [&str; 5] = [
    "SW_AGENT_NAME",
    "SW_AGENT_INSTANCE_NAME",
    "OTEL_SERVICE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
    "HOSTNAME",
];
/// Longest name taken from a process; OAP cuts at 70 anyway.
const NAME_MAX_CHARS: usize = 200;

/// Service, instance, and how they were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Service and instance.
    pub service: Service,
    /// SkyWalking layer; empty means `GENERAL`.
    pub layer: String,
    /// What gave the service its name.
    pub rule: IdentityRule,
    /// Instance properties that tell where the process runs.
    pub properties: Vec<(String, String)>,
}

impl Identity {
    /// Before anything is known.
    pub(super) const fn unknown() -> Self {
        Self {
            service: Service {
                name: String::new(),
                instance: String::new(),
            },
            layer: String::new(),
            rule: IdentityRule::Program,
            properties: Vec::new(),
        }
    }
}

/// What gave a service its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IdentityRule {
    /// The rule with this index under `services`.
    Config(usize),
    /// A variable of the process.
    Environment(&'static str),
    /// The systemd unit.
    SystemdUnit,
    /// The executable, script or module.
    Program,
}

impl fmt::Display for IdentityRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(index) => write!(f, "services[{index}]"),
            Self::Environment(name) => f.write_str(name),
            Self::SystemdUnit => f.write_str("systemd unit"),
            Self::Program => f.write_str("program"),
        }
    }
}

/// What identity is derived from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) pid: Pid,
    pub(super) host: &'a str,
    pub(super) comm: &'a str,
    pub(super) exe: Option<&'a Path>,
    pub(super) command: &'a [String],
    pub(super) cgroup: &'a Cgroup,
    pub(super) listen_ports: &'a [u16],
    /// Those of [`VARIABLES`] that are set.
    pub(super) environment: &'a [(String, String)],
}

/// Names the service and instance of a process.
pub(super) fn identify(facts: Facts<'_>, rules: &[ServiceRule]) -> Identity {
    let matching = rules.iter().enumerate();
    let configured = matching
        .into_iter()
        .find(|(_, rule)| is_match(&rule.matches, &facts));
    let (name, rule) = match configured {
        Some((index, rule)) => (rule.service.clone(), IdentityRule::Config(index)),
        None => discovered_name(&facts),
    };
    let configured = configured.map(|(_, rule)| rule);
    let instance = configured
        .and_then(|rule| rule.instance.clone())
        .or_else(|| variable(&facts, "SW_AGENT_INSTANCE_NAME").map(tidy))
        .or_else(|| resource_attribute(&facts, "service.instance.id"))
        .unwrap_or_else(|| default_instance(&facts));
    Identity {
        service: Service { name, instance },
        layer: configured
            .and_then(|rule| rule.layer.clone())
            .unwrap_or_default(),
        rule,
        properties: properties(&facts),
    }
}

fn is_match(conditions: &RuleMatch, facts: &Facts<'_>) -> bool {
    let exe = |wanted: &String| {
        facts.exe.is_some_and(|exe| {
            let name = exe.file_name().and_then(|name| name.to_str());
            exe.as_os_str() == wanted.as_str() || name == Some(wanted)
        })
    };
    conditions.exe.as_ref().is_none_or(exe)
        && conditions
            .command
            .as_ref()
            .is_none_or(|p| p.is_in(&facts.command.join(" ")))
        && conditions
            .cgroup
            .as_ref()
            .is_none_or(|p| p.is_in(&facts.cgroup.path))
        && conditions
            .listen_port
            .is_none_or(|port| facts.listen_ports.contains(&port))
}

fn discovered_name(facts: &Facts<'_>) -> (String, IdentityRule) {
    for name in ["SW_AGENT_NAME", "OTEL_SERVICE_NAME"] {
        if let Some(value) = variable(facts, name)
            .map(tidy)
            .filter(|value| !value.is_empty())
        {
            return (value, IdentityRule::Environment(name));
        }
    }
    if let Some(value) = resource_attribute(facts, "service.name") {
        return (value, IdentityRule::Environment("OTEL_RESOURCE_ATTRIBUTES"));
    }
    match &facts.cgroup.systemd_unit {
        Some(unit) => (tidy(unit), IdentityRule::SystemdUnit),
        None => {
            let name = program_name(facts.exe, facts.comm, facts.command);
            (tidy(&name), IdentityRule::Program)
        }
    }
}

fn variable<'a>(facts: &Facts<'a>, name: &str) -> Option<&'a str> {
    let found = facts.environment.iter().find(|(given, _)| given == name);
    found.map(|(_, value)| value.as_str())
}

/// A value of `OTEL_RESOURCE_ATTRIBUTES`: `key=value` pairs by commas, values percent-encoded
/// (OpenTelemetry resource SDK, "Specifying resource information via an environment variable").
fn resource_attribute(facts: &Facts<'_>, key: &str) -> Option<String> {
    let pairs = variable(facts, "OTEL_RESOURCE_ATTRIBUTES")?.split(',');
    let (_, value) = pairs
        .filter_map(|pair| pair.split_once('='))
        .find(|(name, _)| name.trim() == key)?;
    let decoded = percent_encoding::percent_decode_str(value.trim()).decode_utf8_lossy();
    Some(tidy(decoded.trim_matches('"'))).filter(|value| !value.is_empty())
}

fn default_instance(facts: &Facts<'_>) -> String {
    let own_host = facts
        .cgroup
        .container_id
        .as_ref()
        .and_then(|_| variable(facts, "HOSTNAME"));
    format!(
        "{}:{}",
        own_host.map_or_else(|| facts.host.to_owned(), tidy),
        facts.pid
    )
}

fn properties(facts: &Facts<'_>) -> Vec<(String, String)> {
    let mut properties = Vec::new();
    let mut add = |name: &str, value: &str| properties.push((name.to_owned(), tidy(value)));
    if let Some(exe) = facts.exe {
        add("executable", &exe.to_string_lossy());
    }
    if let Some(id) = &facts.cgroup.container_id {
        add("container id", id);
    }
    if let Some(unit) = &facts.cgroup.systemd_unit {
        add("systemd unit", unit);
    }
    properties
}

/// Names are shown and sent: no control characters, no blanks around, no novel.
fn tidy(text: &str) -> String {
    let shown = text.trim().chars().filter(|c| !c.is_control());
    shown.take(NAME_MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Pattern;

    struct Given {
        command: Vec<String>,
        cgroup: Cgroup,
        environment: Vec<(String, String)>,
    }

    impl Given {
        fn new(environment: &[(&str, &str)], cgroup: &str) -> Self {
            let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
            Self {
                command: ["python3", "/srv/app.py"].map(str::to_owned).to_vec(),
                cgroup: Cgroup::parse(&format!("0::{cgroup}")),
                environment: environment.iter().map(own).collect(),
            }
        }

        fn identity(&self, rules: &[ServiceRule]) -> Identity {
            let facts = Facts {
                pid: Pid(7),
                host: "host1",
                comm: "python3",
                exe: Some(Path::new("/usr/bin/python3.11")),
                command: &self.command,
                cgroup: &self.cgroup,
                listen_ports: &[8080],
                environment: &self.environment,
            };
            identify(facts, rules)
        }

        fn named(&self) -> (String, String, String) {
            let identity = self.identity(&[]);
            (
                identity.service.name,
                identity.service.instance,
                identity.rule.to_string(),
            )
        }
    }

    fn named(environment: &[(&str, &str)], cgroup: &str) -> (String, String, String) {
        Given::new(environment, cgroup).named()
    }

    fn expected(name: &str, instance: &str, rule: &str) -> (String, String, String) {
        (name.to_owned(), instance.to_owned(), rule.to_owned())
    }

    /// Check the order: agent's variable, OpenTelemetry's, unit, program.
    #[test]
    fn the_first_that_applies_names_the_service() {
        let unit = "/system.slice/shop.service";
        let otel = ("OTEL_SERVICE_NAME", "otel");
        let resource = (
            "OTEL_RESOURCE_ATTRIBUTES",
            "a=b, service.name=sh%6fp%20x,service.instance.id=i1",
        );
        assert_eq!(
            named(
                &[
                    otel,
                    ("SW_AGENT_NAME", "sw"),
                    ("SW_AGENT_INSTANCE_NAME", "sw-1")
                ],
                unit
            ),
            expected("sw", "sw-1", "SW_AGENT_NAME")
        );
        assert_eq!(
            named(&[resource, otel], unit),
            expected("otel", "i1", "OTEL_SERVICE_NAME")
        );
        assert_eq!(
            named(&[resource], unit),
            expected("shop x", "i1", "OTEL_RESOURCE_ATTRIBUTES")
        );
        assert_eq!(
            named(&[], unit),
            expected("shop", "host1:7", "systemd unit")
        );
        assert_eq!(named(&[], "/"), expected("app", "host1:7", "program"));
        assert_eq!(named(&[("SW_AGENT_NAME", "\u{1b}\u{7}")], "/").0, "app");
    }

    /// Check that in a container the instance carries the container's host name, elsewhere ours.
    #[test]
    fn a_container_has_its_own_host_name() {
        let container = format!("/kubepods/{}", "a".repeat(64));
        let host = [("HOSTNAME", "shop-5d9f")];
        let (_, instance, _) = named(&host, &container);
        assert_eq!(instance, "shop-5d9f:7");
        assert_eq!(named(&host, "/").1, "host1:7");
        let properties = Given::new(&host, &container).identity(&[]).properties;
        assert_eq!(properties[1], ("container id".to_owned(), "a".repeat(64)));
    }

    /// Check that a rule needs all of its conditions and comes before everything else.
    #[test]
    fn a_rule_decides_if_all_its_conditions_hold() {
        let rule = |listen_port| ServiceRule {
            matches: RuleMatch {
                exe: Some("python3.11".to_owned()),
                command: Some(Pattern::new("app\\.py$").unwrap()),
                cgroup: Some(Pattern::new("^/a").unwrap()),
                listen_port: Some(listen_port),
            },
            service: "ruled".to_owned(),
            instance: Some("one".to_owned()),
            layer: Some("MESH".to_owned()),
        };
        let given = Given::new(&[("SW_AGENT_NAME", "sw")], "/a/b");
        let identity = given.identity(&[rule(9), rule(8080)]);
        assert_eq!(identity.rule, IdentityRule::Config(1));
        assert_eq!(identity.service.name, "ruled");
        assert_eq!(identity.service.instance, "one");
        assert_eq!(identity.layer, "MESH");
        let other = Given::new(&[("SW_AGENT_NAME", "sw")], "/b");
        assert_eq!(other.identity(&[rule(8080)]).service.name, "sw");
    }
}
