//! Decides when an instance has its name for good, and keeps that.
//!
//! In:  processes of a scan with the names that follow from what is known now
//! Out: the same, settled or not; a settled one keeps its name whatever it does later
//! Lost: nothing
//!
//! An OAP shows an instance for days, so a name that is given too early stays in every list beside the right one: a
//! server has no port before it listens, and a Java program may open a debugger's port first. No OAP hears of a
//! process before it is settled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::entry::{Host, Process};
use super::identity::InstanceOrigin;
use super::instance;
use crate::model::Pid;

/// A process that has lived so long has opened the port that it is known by, if there is one. Large Java programs
/// take most of it.
const SETTLED_AGE: Duration = Duration::from_mins(1);

/// The name of an instance, and where it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settled {
    instance: String,
    place: String,
}

impl Settled {
    /// The name, unless the process is in another place by now: its pod has become known, for example.
    pub(super) fn name_at(&self, place: &str) -> Option<&str> {
        (self.place == place).then_some(self.instance.as_str())
    }
}

/// Settles those that can be; returns them. `look` is the number of the last look at ports.
pub(super) fn settle(
    processes: &mut BTreeMap<Pid, Arc<Process>>,
    host: &Host,
    look: u32,
) -> Vec<Pid> {
    let now = uptime();
    let is_due = |process: &&Arc<Process>| {
        waits(process)
            && (process.identity.instance_origin != InstanceOrigin::Found
                || is_named_by_port(process) && process.ports_look != look
                || process.age(now) >= SETTLED_AGE)
    };
    let due: Vec<Pid> = processes
        .values()
        .filter(is_due)
        .map(|process| process.key.pid)
        .collect();
    for pid in &due {
        let of_server = name_of_server(processes, *pid);
        let Some(process) = processes.get_mut(pid).map(Arc::make_mut) else {
            continue;
        };
        if let Some(name) = of_server {
            process.identity.service.instance = name;
        }
        process.settled = Some(Settled {
            instance: process.identity.service.instance.clone(),
            place: instance::place(&process.facts(host)),
        });
    }
    due
}

/// Whether another look at ports, a moment later, settles a process: a server may open a second port right after the first.
pub(super) fn settles_soon(process: &Process) -> bool {
    waits(process) && is_named_by_port(process)
}

fn waits(process: &Process) -> bool {
    !process.is_settled() && process.may_serve() && !process.awaits_agent_instance()
}

fn is_named_by_port(process: &Process) -> bool {
    let is_pod_awaited = process.cgroup.pod_uid.is_some() && process.pod.is_none();
    !is_pod_awaited && instance::chosen_port(&process.listen_ports).is_some()
}

/// The name of the server that a worker belongs to: that may have opened another port since it got its name.
fn name_of_server(processes: &BTreeMap<Pid, Arc<Process>>, pid: Pid) -> Option<String> {
    let process = processes.get(&pid)?;
    let server = processes.get(&process.parent)?;
    let settled = server.settled.as_ref()?;
    let has = |port: u16| server.listen_ports.contains(&port);
    let is_worker = process.identity.instance_origin == InstanceOrigin::Found
        && instance::chosen_port(&process.listen_ports).is_some_and(has)
        && server.identity.service.name == process.identity.service.name;
    is_worker.then(|| settled.instance.clone())
}

/// Time since the host has started.
fn uptime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::super::agent::{Agent, AgentLanguage};
    use super::super::entry::AgentInstance;
    use super::super::identity::identify;
    use super::super::table::tests::process;
    use super::*;

    /// A young process that somebody gave a service's name, and the table around it.
    struct Scans {
        host: Host,
        processes: BTreeMap<Pid, Arc<Process>>,
        look: u32,
    }

    impl Scans {
        fn new(pids: &[u32]) -> Self {
            let mut host = Host::read();
            host.name = "vm".to_owned();
            let young = |&pid| {
                let mut process = process(Pid(pid), "shop");
                process.stat.start_ticks = u64::MAX;
                process.net_namespace = host.net_namespace;
                process.environment = vec![("SW_AGENT_NAME".to_owned(), "shop".to_owned())];
                (Pid(pid), Arc::new(process))
            };
            Self {
                processes: pids.iter().map(young).collect(),
                host,
                look: 1,
            }
        }

        /// Changes a process; yields its instance as the next scan has it, if it is settled.
        fn next(&mut self, pid: u32, change: impl FnOnce(&mut Process, u32)) -> Option<String> {
            self.look += 1;
            let process = Arc::make_mut(self.processes.get_mut(&Pid(pid)).unwrap());
            change(process, self.look);
            process.identity = identify(process.facts(&self.host), &[]);
            settle(&mut self.processes, &self.host, self.look);
            let process = &self.processes[&Pid(pid)];
            let instance = &process.identity.service.instance;
            process.is_settled().then(|| instance.clone())
        }
    }

    fn listens(ports: &[u16]) -> impl FnOnce(&mut Process, u32) {
        |process, look| {
            process.listen_ports = ports.to_vec();
            process.ports_look = look;
        }
    }

    fn named(name: &str) -> Option<String> {
        Some(name.to_owned())
    }

    /// Check that a server has no name before it listens, and keeps the first one whatever it opens later.
    #[test]
    fn the_first_name_is_given_late_and_kept() {
        let mut scans = Scans::new(&[7]);
        assert_eq!(scans.next(7, |_, _| {}), None);
        assert_eq!(scans.next(7, listens(&[40_000])), None);
        assert_eq!(scans.next(7, listens(&[8080, 40_000])), None);
        assert_eq!(scans.next(7, |_, _| {}), named("vm:8080"));
        assert_eq!(scans.next(7, listens(&[80, 8080])), named("vm:8080"));
        assert_eq!(scans.next(7, listens(&[])), named("vm:8080"));
        // Another place is another instance.
        let moves = |process: &mut Process, _| {
            process
                .environment
                .push(("HOSTNAME".to_owned(), "pod".to_owned()));
            process.cgroup =
                super::super::cgroup::Cgroup::parse(&format!("0::/docker/{}", "a".repeat(64)));
            process.listen_ports = vec![80];
        };
        assert_eq!(scans.next(7, moves), named("pod:80"));
    }

    /// Check that one that never listens, or on no chosen port, has its name when it is old.
    #[test]
    fn age_settles() {
        let mut scans = Scans::new(&[7]);
        assert_eq!(scans.next(7, listens(&[40_000])), None);
        assert_eq!(scans.next(7, |_, _| {}), None);
        let ages = |process: &mut Process, _: u32| process.stat.start_ticks = 1;
        assert_eq!(scans.next(7, ages), named("vm:7"));
        assert_eq!(scans.next(7, listens(&[8080])), named("vm:7"));
    }

    /// Check that a name that somebody gave waits for nothing.
    #[test]
    fn a_given_name_is_settled() {
        let mut scans = Scans::new(&[7]);
        let given = |process: &mut Process, _: u32| {
            let variable = ("SW_AGENT_INSTANCE_NAME".to_owned(), "one".to_owned());
            process.environment.push(variable);
        };
        assert_eq!(scans.next(7, given), named("one"));
    }

    /// Check that a worker is of its server's instance, although the server has opened a lower port since.
    #[test]
    fn a_worker_is_called_as_its_server() {
        let mut scans = Scans::new(&[7, 8]);
        scans.next(7, listens(&[8080]));
        assert_eq!(scans.next(7, |_, _| {}), named("vm:8080"));
        scans.next(7, listens(&[80, 8080]));
        let forks = |process: &mut Process, look| {
            process.parent = Pid(7);
            listens(&[80, 8080])(process, look);
        };
        assert_eq!(scans.next(8, forks), None);
        assert_eq!(scans.next(8, |_, _| {}), named("vm:8080"));
        assert_eq!(scans.next(8, |_, _| {}), named("vm:8080"));
    }

    /// Check that a process waits for the name that its agent has made up, and has that or its own.
    #[test]
    fn an_agents_own_name_is_waited_for() {
        for (found, expected) in [(Some("uuid@ip"), "uuid@ip"), (None, "vm:8080")] {
            let mut scans = Scans::new(&[7]);
            let starts = |process: &mut Process, look| {
                listens(&[8080])(process, look);
                process.stat.start_ticks = 1;
                process.agent_instance = AgentInstance::Awaited;
                process.agent = Some(Agent {
                    language: AgentLanguage::Java,
                    version: None,
                    evidence: String::new(),
                    profiles: None,
                    service: None,
                    instance: None,
                });
            };
            assert_eq!(scans.next(7, starts), None);
            assert_eq!(scans.next(7, |_, _| {}), None);
            let answer = found.map(str::to_owned);
            let answered = |process: &mut Process, _| {
                process.agent_instance = AgentInstance::Answered(answer);
            };
            assert_eq!(scans.next(7, answered).as_deref(), Some(expected));
        }
    }
}
