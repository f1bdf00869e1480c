//! Says which service and instance a process is.
//!
//! In:  what [`super::table`] has read, the rules of [`crate::config`]
//! Out: [`Identity`], by the first that applies: rule, agent or environment, Kubernetes workload,
//!      container, systemd unit, program
//! Lost: what is behind the 70th character of a name that was given, the middle of a longer one that was found
//!       ([`Identity::uncut`] keeps it)
//!
//! Names are cut here, as OAP cuts them, so that a task's names and the table's are the same texts. Names that were
//! found are shortened so that they stay apart.

use std::fmt;
use std::sync::Arc;

use super::agent::AgentLanguage;
use super::cgroup::Container;
use super::fact::{Facts, tidy};
use super::instance::InstanceName;
use super::program::program_name;
use super::{instance, property};
use crate::config::{RuleMatch, ServiceRule, Template};
use crate::model::Service;
use crate::model::name::{SERVICE_MAX, cut, shorten};

/// Variables that identity is read from.
pub const VARIABLES: [&str; 5] = [
    "SW_AGENT_NAME",
    "SW_AGENT_INSTANCE_NAME",
    "OTEL_SERVICE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
    "HOSTNAME",
];
/// Service, instance, and how they were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Service and instance.
    pub service: Service,
    /// The service's name before it was cut, if it was.
    pub uncut: Option<String>,
    /// The name that the process is known by, if it is that of a service of others: `service` has one of its own then.
    pub claimed: Option<String>,
    /// SkyWalking layer; empty means `GENERAL`.
    pub layer: String,
    /// What gave the instance its name.
    pub instance_origin: InstanceOrigin,
    /// What gave the service its name.
    pub rule: IdentityRule,
    /// Instance properties, in the order they are sent. Shared with who reports them.
    pub properties: Arc<[(String, String)]>,
    /// Tags of the spans that are reported for it.
    pub tags: Vec<(String, String)>,
}

impl Identity {
    /// Before anything is known.
    pub(super) fn unknown() -> Self {
        Self {
            service: Service {
                name: String::new(),
                instance: String::new(),
            },
            uncut: None,
            claimed: None,
            layer: String::new(),
            instance_origin: InstanceOrigin::Found,
            rule: IdentityRule::Program,
            properties: Arc::default(),
            tags: Vec::new(),
        }
    }
}

/// What gave an instance its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceOrigin {
    /// Somebody, for this process.
    Given,
    /// The agent in it made it up, and reports under it.
    Agent,
    /// Place and port, or process id.
    Found,
}

/// What gave a service its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IdentityRule {
    /// The rule with this index under `services`.
    Config(usize),
    /// The settings of the agent in it.
    Agent(AgentLanguage),
    /// A variable of the process.
    Environment(&'static str),
    /// What made the pod, with its namespace.
    Workload,
    /// The container's name.
    Container,
    /// The systemd unit.
    SystemdUnit,
    /// The executable, script or module.
    Program,
}

impl IdentityRule {
    /// Somebody gave the name for this process.
    #[must_use]
    pub const fn is_given(self) -> bool {
        matches!(
            self,
            Self::Config(_) | Self::Agent(_) | Self::Environment(_)
        )
    }
}

impl fmt::Display for IdentityRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(index) => write!(f, "services[{index}]"),
            Self::Agent(language) => write!(f, "{language} agent"),
            Self::Environment(name) => f.write_str(name),
            Self::Workload => f.write_str("workload"),
            Self::Container => f.write_str("container"),
            Self::SystemdUnit => f.write_str("systemd unit"),
            Self::Program => f.write_str("program"),
        }
    }
}

/// Names the service and instance of a process.
pub(super) fn identify(facts: Facts<'_>, rules: &[ServiceRule]) -> Identity {
    let configured = rules.iter().enumerate().find_map(|(index, rule)| {
        let value = |name: &str| facts.placeholder(name, &rule.matches);
        let name = is_match(&rule.matches, &facts).then(|| rule.service.fill(value))??;
        let name = tidy(&name);
        // A label or a group of an expression may be empty.
        (!name.is_empty()).then_some((index, rule, name))
    });
    let (full, rule) = match &configured {
        Some((index, _, name)) => (name.clone(), IdentityRule::Config(*index)),
        None => discovered_name(&facts),
    };
    let configured = configured.map(|(_, rule, _)| rule);
    let fill = |template: &Template| {
        let rule = configured?;
        template.fill(|name| facts.placeholder(name, &rule.matches))
    };
    let given_instance = configured.and_then(|rule| rule.instance.as_ref());
    let instance = given_instance
        .and_then(fill)
        .map(|name| InstanceName {
            name: shorten(&tidy(&name), SERVICE_MAX).into_owned(),
            origin: InstanceOrigin::Given,
        })
        .unwrap_or_else(|| instance::name(&facts));
    let pairs = |of: fn(&ServiceRule) -> &Vec<(String, Template)>| {
        let given = configured.map(of).into_iter().flatten();
        let filled = given.filter_map(|(key, value)| Some((key.clone(), tidy(&fill(value)?))));
        filled.collect::<Vec<_>>()
    };
    let tags = pairs(|rule| &rule.tags);
    // A name that was given is cut as the OAP cuts it for others who report under it.
    let name = if rule.is_given() {
        cut(&full, SERVICE_MAX).to_owned()
    } else {
        shorten(&full, SERVICE_MAX).into_owned()
    };
    Identity {
        properties: property::properties(&facts, pairs(|rule| &rule.properties), &tags).into(),
        service: Service {
            instance: cut(&instance.name, SERVICE_MAX).to_owned(),
            name: name.clone(),
        },
        uncut: (name != full).then_some(full),
        claimed: None,
        instance_origin: instance.origin,
        layer: configured
            .and_then(|rule| rule.layer.clone())
            .unwrap_or_default(),
        rule,
        tags,
    }
}

fn is_match(conditions: &RuleMatch, facts: &Facts<'_>) -> bool {
    let exe = |wanted: &String| {
        facts.exe.is_some_and(|exe| {
            let name = exe.file_name().and_then(|name| name.to_str());
            exe.as_os_str() == wanted.as_str() || name == Some(wanted)
        })
    };
    let command = || facts.command.join(" ");
    let label = |(key, value): (&String, &String)| {
        facts
            .pod
            .is_some_and(|pod| pod.labels.get(key) == Some(value))
    };
    conditions.exe.as_ref().is_none_or(exe)
        && conditions
            .listen_port
            .is_none_or(|port| facts.listen_ports.contains(&port))
        && conditions
            .command
            .as_ref()
            .is_none_or(|p| p.is_in(&command()))
        && conditions
            .cgroup
            .as_ref()
            .is_none_or(|p| p.is_in(&facts.cgroup.path))
        && conditions
            .container
            .as_ref()
            .is_none_or(|p| facts.container_name().is_some_and(|name| p.is_in(name)))
        && conditions
            .namespace
            .as_ref()
            .is_none_or(|namespace| facts.namespace() == Some(namespace))
        && conditions.labels.iter().all(label)
}

fn discovered_name(facts: &Facts<'_>) -> (String, IdentityRule) {
    let variable = |name| {
        facts
            .variable(name)
            .map(tidy)
            .filter(|value| !value.is_empty())
    };
    let by_variable = variable("SW_AGENT_NAME");
    // An OAP knows the process by the name that its agent reports.
    if let Some(agent) = facts.agent
        && let Some(name) = &agent.service
        && by_variable.as_ref() != Some(name)
    {
        return (name.clone(), IdentityRule::Agent(agent.language));
    }
    if let Some(value) = by_variable {
        return (value, IdentityRule::Environment("SW_AGENT_NAME"));
    }
    if let Some(value) = variable("OTEL_SERVICE_NAME") {
        return (value, IdentityRule::Environment("OTEL_SERVICE_NAME"));
    }
    if let Some(value) = facts.resource_attribute("service.name") {
        return (value, IdentityRule::Environment("OTEL_RESOURCE_ATTRIBUTES"));
    }
    if let (Some(workload), Some(namespace)) = (facts.workload(), facts.namespace()) {
        // One cluster may have the same workload for production and for tests.
        return (
            tidy(&format!("{workload}.{namespace}")),
            IdentityRule::Workload,
        );
    }
    let of_container = facts
        .container
        .and_then(|names| names.group.as_ref().or(names.name.as_ref()));
    let lxc = || match &facts.cgroup.container {
        Some(Container::Name(name)) => Some(name),
        _ => None,
    };
    let program = || program_name(facts.exe, facts.comm, facts.command);
    let found = [
        (of_container.or_else(lxc).cloned(), IdentityRule::Container),
        (facts.cgroup.systemd_unit.clone(), IdentityRule::SystemdUnit),
        (Some(program()), IdentityRule::Program),
    ];
    let mut named = found
        .into_iter()
        .filter_map(|(name, rule)| Some((tidy(&name?), rule)));
    // A file name may be all control characters.
    named
        .find(|(name, _)| !name.is_empty())
        .unwrap_or_else(|| ("unknown".to_owned(), IdentityRule::Program))
}

#[cfg(test)]
mod tests {
    use super::super::agent::Agent;
    use super::super::container::ContainerNames;
    use super::super::fact::tests::Given;
    use super::super::pod::Pod;
    use super::*;
    use crate::config::Pattern;

    impl Given {
        pub(in crate::process) fn identity(&self, rules: &[ServiceRule]) -> Identity {
            identify(self.facts(), rules)
        }

        fn named(&self) -> (String, String) {
            let identity = self.identity(&[]);
            (identity.service.name, identity.rule.to_string())
        }
    }

    fn named(environment: &[(&str, &str)], cgroup: &str) -> (String, String) {
        Given::new(environment, cgroup).named()
    }

    fn expected(name: &str, rule: &str) -> (String, String) {
        (name.to_owned(), rule.to_owned())
    }

    fn pod() -> Pod {
        Pod {
            name: "shop-5d9f-x".to_owned(),
            namespace: "prod".to_owned(),
            workload: Some("shop".to_owned()),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            ..Pod::default()
        }
    }

    fn rule(matches: RuleMatch, service: &str) -> ServiceRule {
        let groups = ["site".to_owned()];
        ServiceRule {
            matches,
            service: Template::parse(service, &groups).unwrap(),
            ..ServiceRule::default()
        }
    }

    /// Check the order: agent's variable, OpenTelemetry's, workload, container, unit, program.
    #[test]
    fn the_first_that_applies_names_the_service() {
        let unit = "/system.slice/shop.service";
        let otel = ("OTEL_SERVICE_NAME", "otel");
        let resource = ("OTEL_RESOURCE_ATTRIBUTES", "a=b, service.name=sh%6fp%20x");
        assert_eq!(
            named(&[otel, ("SW_AGENT_NAME", "sw")], unit),
            expected("sw", "SW_AGENT_NAME")
        );
        assert_eq!(
            named(&[resource, otel], unit),
            expected("otel", "OTEL_SERVICE_NAME")
        );
        assert_eq!(
            named(&[resource], unit),
            expected("shop x", "OTEL_RESOURCE_ATTRIBUTES")
        );
        let mut given = Given::new(&[], "/docker/0");
        given.container = Some(ContainerNames {
            name: Some("p-web-1".to_owned()),
            ..ContainerNames::default()
        });
        assert_eq!(given.named(), expected("p-web-1", "container"));
        given.container.as_mut().unwrap().group = Some("web".to_owned());
        assert_eq!(given.named(), expected("web", "container"));
        given.pod = Some(pod());
        assert_eq!(given.named(), expected("shop.prod", "workload"));
        assert_eq!(named(&[], "/lxc.payload.web"), expected("web", "container"));
        assert_eq!(named(&[], unit), expected("shop", "systemd unit"));
        assert_eq!(named(&[], "/"), expected("app", "program"));
        assert_eq!(named(&[("SW_AGENT_NAME", "\u{1b}\u{7}")], "/").0, "app");
    }

    /// Check that the name an agent reports as comes before the variables, when it is another one.
    #[test]
    fn the_agent_knows_its_name() {
        let mut given = Given::new(&[("SW_AGENT_NAME", "shop")], "/");
        let mut agent = Agent {
            language: AgentLanguage::Java,
            version: None,
            evidence: String::new(),
            profiles: None,
            service: Some("shop|eu".to_owned()),
            instance: None,
        };
        given.agent = Some(agent.clone());
        assert_eq!(given.named(), expected("shop|eu", "Java agent"));
        agent.service = Some("shop".to_owned());
        given.agent = Some(agent);
        assert_eq!(given.named(), expected("shop", "SW_AGENT_NAME"));
    }

    /// Check that a rule needs all of its conditions and comes before everything else.
    #[test]
    fn a_rule_decides_if_all_its_conditions_hold() {
        let rule = |listen_port| ServiceRule {
            instance: Some(Template::parse("one", &[]).unwrap()),
            layer: Some("MESH".to_owned()),
            ..rule(
                RuleMatch {
                    exe: Some("python3.11".to_owned()),
                    command: Some(Pattern::new("app\\.py$").unwrap()),
                    cgroup: Some(Pattern::new("^/a").unwrap()),
                    listen_port: Some(listen_port),
                    ..RuleMatch::default()
                },
                "ruled",
            )
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

    /// Check conditions on containers and pods, and that a text that cannot be filled is no match.
    #[test]
    fn rules_know_containers_and_pods() {
        let mut given = Given::new(&[], "/lxc.payload.web");
        let container = RuleMatch {
            container: Some(Pattern::new("^w(?P<site>eb)").unwrap()),
            ..RuleMatch::default()
        };
        let labels = RuleMatch {
            labels: [("app".to_owned(), "web".to_owned())].into(),
            namespace: Some("prod".to_owned()),
            ..RuleMatch::default()
        };
        let rules = [
            rule(labels, "{workload}-{label.app}@{namespace}"),
            rule(container.clone(), "{pod}"),
            rule(container, "{container}-{site}-{exe}-{port}-{pid}-{host}"),
        ];
        let identity = given.identity(&rules);
        assert_eq!(identity.service.name, "web-eb-python3.11-8080-7-web");
        assert_eq!(identity.rule, IdentityRule::Config(2));
        given.pod = Some(pod());
        assert_eq!(given.identity(&rules).service.name, "shop-web@prod");
        given.pod = Some(Pod {
            namespace: "test".to_owned(),
            ..pod()
        });
        assert_eq!(given.identity(&rules).service.name, "shop-5d9f-x");
    }

    /// Check that services whose long names were found stay two.
    #[test]
    fn found_names_do_not_merge() {
        let named = |end: &str| {
            let cgroup = format!("/system.slice/{}{end}.service", "s".repeat(80));
            named(&[], &cgroup).0
        };
        assert_ne!(named("a"), named("b"));
        assert!(named("a").encode_utf16().count() <= SERVICE_MAX);
    }

    /// Check that no service is without a name: a rule whose placeholders are blank names nothing.
    #[test]
    fn a_service_has_a_name() {
        let named = |text: &str| {
            let rule = ServiceRule {
                service: Template::parse(text, &[]).unwrap(),
                ..ServiceRule::default()
            };
            Given::new(&[], "/").identity(&[rule])
        };
        assert_eq!(named("blue").service.name, "blue");
        let unnamed = named(" \t");
        assert_eq!(unnamed.rule, IdentityRule::Program);
        assert!(!unnamed.service.name.is_empty());
    }

    /// Check that names are cut as OAP cuts them, and that the whole name is kept.
    #[test]
    fn long_names_are_cut() {
        let long = "s".repeat(80);
        let identity = Given::new(&[("SW_AGENT_NAME", &long)], "/").identity(&[]);
        assert_eq!(identity.service.name, "s".repeat(70));
        assert_eq!(identity.uncut, Some(long));
        assert_eq!(Given::new(&[], "/").identity(&[]).uncut, None);
    }
}
