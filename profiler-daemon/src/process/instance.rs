//! Names the instance of a process.
//!
//! In:  [`Facts`]
//! Out: a name that stays the same when the server is started again, where that is possible
//! Lost: nothing
//!
//! The first that is known: what the agent in it is told to report as, `SW_AGENT_INSTANCE_NAME`,
//! `service.instance.id` of `OTEL_RESOURCE_ATTRIBUTES`, what the agent reports as in fact, `<place>:<port>`,
//! `<place>:<pid>`.
//!
//! The place is the pod, the container's host name (`HOSTNAME`), the container, the host. The port is the
//! lowest the process listens on, below the range from which the kernel gives ports away: a server that
//! opens a second one for its metrics keeps its name, and a port that nobody chose is no name.
//!
//! # Workers
//!
//! Processes that share a listening socket are one instance: a master with its workers is one server,
//! whoever restarts it restarts them all, and a task for the instance profiles all of them. In a network
//! namespace without a place of its own (`PrivateNetwork=` of systemd) ports may repeat, so the process
//! id stays.
//!
//! What follows from place and port is kept once it was told, see [`super::settle`].

use std::fmt::Display;

use super::fact::{Facts, tidy};
use super::identity::InstanceOrigin;
use crate::model::name::{SERVICE_MAX, shorten};

/// First port that Linux gives to sockets that ask for none (`ip_local_port_range`).
const EPHEMERAL_FIRST: u16 = 32_768;

/// A name, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InstanceName {
    pub(super) name: String,
    pub(super) origin: InstanceOrigin,
}

/// The instance's name.
pub(super) fn name(facts: &Facts<'_>) -> InstanceName {
    let given = [
        facts.agent.and_then(|agent| agent.instance.clone()),
        facts.variable("SW_AGENT_INSTANCE_NAME").map(tidy),
        facts.resource_attribute("service.instance.id"),
    ];
    let mut given = given.into_iter().flatten().filter(|name| !name.is_empty());
    if let Some(name) = given.next() {
        return InstanceName {
            name,
            origin: InstanceOrigin::Given,
        };
    }
    if let Some(name) = facts
        .agent_instance
        .map(tidy)
        .filter(|name| !name.is_empty())
    {
        return InstanceName {
            name,
            origin: InstanceOrigin::Agent,
        };
    }
    let place = place(facts);
    let kept = facts.settled.and_then(|settled| settled.name_at(&place));
    let is_unique = facts.shares_network || place != facts.host;
    InstanceName {
        name: match (kept, chosen_port(facts.listen_ports)) {
            (Some(kept), _) => kept.to_owned(),
            (None, Some(port)) if is_unique => of_place(&place, port),
            _ => of_place(&place, facts.pid),
        },
        origin: InstanceOrigin::Found,
    }
}

/// The lowest port that somebody chose.
pub(super) fn chosen_port(listen_ports: &[u16]) -> Option<u16> {
    let mut chosen = listen_ports.iter().filter(|&&port| port < EPHEMERAL_FIRST);
    chosen.next().copied()
}

/// The name of a pod may be longer than an instance's, and what tells instances apart is its end.
fn of_place(place: &str, number: impl Display) -> String {
    shorten(&format!("{place}:{number}"), SERVICE_MAX).into_owned()
}

/// Where the process runs, in one word.
pub(super) fn place(facts: &Facts<'_>) -> String {
    let is_contained = facts.cgroup.container.is_some();
    let own_name = || facts.variable("HOSTNAME").filter(|_| is_contained);
    let name = facts
        .pod_name()
        .or_else(own_name)
        .or_else(|| facts.container_name());
    let name = name.map(tidy).filter(|name| !name.is_empty());
    name.unwrap_or_else(|| facts.host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::fact::tests::Given;
    use super::super::pod::Pod;
    use super::*;

    fn named(given: &Given) -> String {
        name(&given.facts()).name
    }

    /// Check the order of names, and that a container has its own host name.
    #[test]
    fn an_instance_is_where_it_runs() {
        let sw = ("SW_AGENT_INSTANCE_NAME", "sw-1");
        let otel = ("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=i1");
        let host = ("HOSTNAME", "shop-5d9f");
        assert_eq!(named(&Given::new(&[otel, sw], "/")), "sw-1");
        assert_eq!(named(&Given::new(&[otel], "/")), "i1");
        assert_eq!(named(&Given::new(&[host], "/")), "host1:8080");
        let container = format!("/docker/{}", "a".repeat(64));
        assert_eq!(named(&Given::new(&[host], &container)), "shop-5d9f:8080");
        let mut given = Given::new(&[], &container);
        assert_eq!(named(&given), "aaaaaaaaaaaa:8080");
        given.pod = Some(Pod {
            name: "shop-x".to_owned(),
            ..Pod::default()
        });
        assert_eq!(named(&given), "shop-x:8080");
    }

    /// Check that instances in a place with a long name stay two.
    #[test]
    fn instances_with_long_names_do_not_merge() {
        let mut given = Given::new(&[], "/");
        given.pod = Some(Pod {
            name: "p".repeat(100),
            ..Pod::default()
        });
        let first = named(&given);
        assert_eq!(first.len(), SERVICE_MAX + "…".len() - 1);
        given.listen_ports = vec![8081];
        let second = named(&given);
        assert!(first != second && second.contains(":8081#"), "{second}");
    }

    /// Check which port names an instance, and when the process id does.
    #[test]
    fn the_lowest_chosen_port_names_it() {
        let mut given = Given::new(&[], "/");
        given.listen_ports = vec![8080, 9090, 40_000];
        assert_eq!(named(&given), "host1:8080");
        given.listen_ports = vec![40_000];
        assert_eq!(named(&given), "host1:7");
        given.listen_ports = vec![];
        assert_eq!(named(&given), "host1:7");
        given.listen_ports = vec![8080];
        given.shares_network = false;
        assert_eq!(named(&given), "host1:7");
    }
}
