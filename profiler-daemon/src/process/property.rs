//! Properties of an instance as reported to an OAP, with the keys of agents where they have one.
//!
//! In:  [`Facts`], properties and tags of the rule
//! Out: key and value, in the order they are sent; `ipv4` may repeat, other keys do not
//! Lost: what is over [`PROPERTIES_MAX`]
//!
//! Nothing here comes from a command line or from a variable that might hold a secret.

use super::fact::{Facts, tidy};
use super::instance;
use super::runtime::Runtime;

/// Most properties of an instance. An OAP keeps them as one text of JSON.
const PROPERTIES_MAX: usize = 48;

/// The property that an instance has if profilerd has reported it.
pub const VERSION_PROPERTY: &str = "profilerd version";

/// The properties. Those of the rule replace what was found.
pub(super) fn properties(
    facts: &Facts<'_>,
    of_rule: Vec<(String, String)>,
    tags: &[(String, String)],
) -> Vec<(String, String)> {
    let (language, version) = facts.runtime.map_or((None, None), language);
    let container = facts.cgroup.container.as_ref();
    let mut found: Vec<(String, String)> = Vec::new();
    let mut add = |key: &str, value: Option<&str>| {
        if let Some(value) = value.map(tidy).filter(|value| !value.is_empty()) {
            found.push((key.to_owned(), value));
        }
    };
    add("language", language);
    add("OS Name", Some(std::env::consts::OS));
    add("Process No.", Some(&facts.pid.to_string()));
    add("hostname", Some(&instance::place(facts)));
    match facts.pod.and_then(|pod| pod.ip.as_deref()) {
        Some(ip) => add("ipv4", Some(ip)),
        None => facts
            .host_addresses
            .iter()
            .for_each(|address| add("ipv4", Some(address))),
    }
    if let Some((key, version)) = version {
        add(key, Some(&version));
    }
    add(
        "executable",
        facts.exe.map(|exe| exe.to_string_lossy()).as_deref(),
    );
    add("systemd unit", facts.cgroup.systemd_unit.as_deref());
    add("container", container.and_then(|_| facts.container_name()));
    add("container id", container.map(|container| container.short()));
    add("pod", facts.pod_name());
    add("namespace", facts.namespace());
    add("workload", facts.workload());
    add(
        "agent",
        facts.agent.map(|agent| agent.to_string()).as_deref(),
    );
    add(VERSION_PROPERTY, Some(env!("CARGO_PKG_VERSION")));
    for (key, value) in of_rule.into_iter().chain(tags.iter().cloned()) {
        found.retain(|(known, _)| *known != key);
        found.push((key, value));
    }
    found.truncate(PROPERTIES_MAX);
    found
}

/// The runtime's name as its agent reports it, and the key and value of its version.
fn language(runtime: &Runtime) -> (Option<&'static str>, Option<(&'static str, String)>) {
    match runtime {
        Runtime::CPython(version) => (
            Some("python"),
            Some(("python_version", version.to_string())),
        ),
        Runtime::Go { version } => {
            let version = version
                .as_ref()
                .map(|text| text.trim_start_matches("go").to_owned());
            (
                Some("golang"),
                version.map(|version| ("go_version", version)),
            )
        }
        Runtime::Jvm { version } => {
            let version = version.clone().map(|version| ("java_version", version));
            (Some("java"), version)
        }
        Runtime::Node => (Some("NodeJS"), None),
        Runtime::Ruby => (Some("ruby"), None),
        Runtime::Php => (Some("php"), None),
        Runtime::Native => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fact::tests::Given;
    use super::super::python::PythonVersion;
    use super::*;

    /// Check the keys that agents use, and that a rule may replace what was found.
    #[test]
    fn an_instance_is_described_as_agents_do() {
        let mut given = Given::new(&[], "/system.slice/shop.service");
        given.runtime = Some(Runtime::CPython(PythonVersion {
            major: 3,
            minor: 11,
            micro: 7,
        }));
        let addresses = ["10.0.0.1".to_owned(), "10.0.0.2".to_owned()];
        let mut facts = given.facts();
        facts.host_addresses = &addresses;
        let rule = vec![("hostname".to_owned(), "h".to_owned())];
        let tags = [("team".to_owned(), "blue".to_owned())];
        let properties = properties(&facts, rule, &tags);
        let pairs: Vec<_> = properties
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(
            pairs,
            [
                ("language", "python"),
                ("OS Name", "linux"),
                ("Process No.", "7"),
                ("ipv4", "10.0.0.1"),
                ("ipv4", "10.0.0.2"),
                ("python_version", "3.11.7"),
                ("executable", "/usr/bin/python3.11"),
                ("systemd unit", "shop"),
                ("profilerd version", env!("CARGO_PKG_VERSION")),
                ("hostname", "h"),
                ("team", "blue"),
            ]
        );
    }

    /// Check that no argument and no variable is told.
    #[test]
    fn nothing_secret_is_told() {
        let mut given = Given::new(&[("SW_AGENT_AUTHENTICATION", "s3cret")], "/");
        given.command.push("--password=s3cret".to_owned());
        let told = format!("{:?}", given.identity(&[]).properties);
        assert!(!told.contains("s3cret"), "{told}");
    }
}
