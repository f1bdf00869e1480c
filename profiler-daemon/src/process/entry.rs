//! A process of the table, and the host it runs on.

use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use super::agent::Agent;
use super::cgroup::Cgroup;
use super::choice::Denial;
use super::container::ContainerNames;
use super::fact::Facts;
use super::identity::{Identity, InstanceOrigin};
use super::pod::Pod;
use super::procfs::{ProcFolder, Stat};
use super::runtime::Runtime;
use super::settle::Settled;
use crate::model::{Pid, ProcessKey};

/// Addresses of the host that are reported; a host of containers has one per bridge.
const ADDRESSES_MAX: usize = 8;

/// A process of the host.
#[derive(Clone, Debug)]
pub struct Process {
    /// Id in the pid namespace of /proc, and start.
    pub key: ProcessKey,
    /// Its effective user, `None` if we may not look.
    pub uid: Option<u32>,
    /// The process that started it; 0 if that is not known.
    pub(super) parent: Pid,
    /// Name the kernel shows, at most 15 bytes.
    pub comm: String,
    /// Executable, `None` if we may not look.
    pub exe: Option<PathBuf>,
    /// Arguments.
    pub command: Vec<String>,
    /// Control group, container, unit.
    pub cgroup: Cgroup,
    /// What its container is called.
    pub container: Option<Arc<ContainerNames>>,
    /// The pod it is in.
    pub pod: Option<Arc<Pod>>,
    /// TCP ports it listens on, sorted.
    pub listen_ports: Vec<u16>,
    /// What it runs; known of processes that may serve requests.
    pub runtime: Option<Runtime>,
    /// The SkyWalking agent in it; looked for in processes that may serve requests.
    pub agent: Option<Agent>,
    /// Service and instance that it is reported as.
    pub identity: Identity,
    /// Why it is not profiled, if it is not to be.
    pub denial: Option<Denial>,
    /// Variables for the identity.
    pub(super) environment: Vec<(String, String)>,
    /// Network namespace, 0 if we may not look.
    pub(super) net_namespace: u64,
    /// What `stat` said, to notice an exec.
    pub(super) stat: Stat,
    /// The folder of /proc that it was read from.
    pub(super) folder: ProcFolder,
    /// Scans that have found it unchanged.
    pub(super) scans: u32,
    /// Number of the look at ports that found its own.
    pub(super) ports_look: u32,
    /// What its instance is called for good.
    pub(super) settled: Option<Settled>,
    /// The name that its agent has made up for the instance.
    pub(super) agent_instance: AgentInstance,
}

impl Process {
    /// Whether it is worth showing: it listens on a port, or somebody gave it a name. A host runs hundreds of others
    /// that never serve a request.
    #[must_use]
    pub fn is_server(&self) -> bool {
        self.identity.rule.is_given() || !self.listen_ports.is_empty()
    }

    /// Whether it is worth reporting as a service instance.
    #[must_use]
    pub fn may_serve(&self) -> bool {
        self.denial.is_none() && self.is_server()
    }

    /// Whether its instance has the name that it keeps.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.settled.is_some()
    }

    /// Whether it is asked what its agent calls the instance.
    pub(super) fn awaits_agent_instance(&self) -> bool {
        self.agent_instance == AgentInstance::Awaited
            && self.agent.is_some()
            && self.identity.instance_origin == InstanceOrigin::Found
            && !self.is_settled()
    }

    /// The instance that its agent reports as, if that is known.
    #[must_use]
    pub fn known_agent_instance(&self) -> Option<&str> {
        let agent = self.agent.as_ref()?;
        agent.instance.as_deref().or(self.agent_instance.name())
    }

    /// The service that its agent reports as.
    #[must_use]
    pub fn agent_service(&self) -> &str {
        let agent = self.agent.as_ref();
        let name = agent.and_then(|agent| agent.service.as_ref());
        name.unwrap_or(&self.identity.service.name)
    }

    /// What an agent in it may call its host, where profilerd calls the host `host`.
    #[must_use]
    pub fn host_names(&self, host: &str) -> Vec<String> {
        let variable = self.environment.iter().find(|(name, _)| name == "HOSTNAME");
        let variable = variable.map(|(_, name)| name.clone());
        let pod = self.pod.as_ref().map(|pod| pod.name.clone());
        [Some(host.to_owned()), variable, pod]
            .into_iter()
            .flatten()
            .collect()
    }

    /// How long it has been there, when the host has been up for `uptime`.
    pub(super) fn age(&self, uptime: Duration) -> Duration {
        uptime.saturating_sub(self.stat.start_after_boot())
    }

    /// What its identity follows from.
    pub(super) fn facts<'a>(&'a self, host: &'a Host) -> Facts<'a> {
        let shares_network = self.net_namespace == host.net_namespace;
        Facts {
            pid: self.key.pid,
            host: &host.name,
            host_addresses: if shares_network { &host.addresses } else { &[] },
            shares_network,
            comm: &self.comm,
            exe: self.exe.as_deref(),
            command: &self.command,
            cgroup: &self.cgroup,
            container: self.container.as_deref(),
            pod: self.pod.as_deref(),
            listen_ports: &self.listen_ports,
            environment: &self.environment,
            runtime: self.runtime.as_ref(),
            agent: self.agent.as_ref(),
            settled: self.settled.as_ref(),
            agent_instance: self.agent_instance.name(),
        }
    }
}

/// The name that an agent has made up for its instance, as its OAP knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AgentInstance {
    /// Nobody asks.
    Unasked,
    /// It is asked for.
    Awaited,
    /// It was found, or given up.
    Answered(Option<String>),
}

impl AgentInstance {
    fn name(&self) -> Option<&str> {
        match self {
            Self::Answered(name) => name.as_deref(),
            Self::Unasked | Self::Awaited => None,
        }
    }
}

/// Properties of the host itself.
#[derive(Debug)]
pub(super) struct Host {
    /// Its name as it stands in instance names.
    pub(super) name: String,
    /// Its IPv4 addresses but the loopback's, those of interfaces that are up.
    pub(super) addresses: Vec<String>,
    /// Its network namespace.
    pub(super) net_namespace: u64,
}

impl Host {
    pub(super) fn read() -> Self {
        let name = nix::unistd::gethostname().unwrap_or_default();
        let name = name.to_string_lossy();
        // Process 1 of the host, if we see it; in a pod without the host's process ids it is our own.
        let net_namespace = match net_namespace(Path::new("/proc/1/ns/net")) {
            0 => net_namespace(Path::new("/proc/self/ns/net")),
            found => found,
        };
        Self {
            name: if name.is_empty() {
                "localhost".to_owned()
            } else {
                name.into_owned()
            },
            addresses: addresses(),
            net_namespace,
        }
    }
}

fn addresses() -> Vec<String> {
    let interfaces = getifaddrs().into_iter().flatten().filter(|interface| {
        interface.flags.contains(InterfaceFlags::IFF_UP)
            && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
    });
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        Some(address.as_sockaddr_in()?.ip().to_string())
    });
    addresses.take(ADDRESSES_MAX).collect()
}

/// Identity of the network namespace a link of /proc leads to, 0 if we may not look.
pub(super) fn net_namespace(link: &Path) -> u64 {
    std::fs::metadata(link).map_or(0, |metadata| metadata.st_ino())
}
