//! Keeps the list of processes on the host, with what they are called.
//!
//! In:  /proc, see [`super::procfs`]
//! Out: [`Process`]es with their [`Identity`]; [`Changes`] per scan
//! Lost: processes that live shorter than the time between two scans; kernel threads, the dead and
//!       the daemon itself are left out on purpose
//!
//! ```text
//! pids --> stat --same start, stack, name?--> keep          one file per young process and scan
//!                  |
//!                  `-- no: exe, cmdline, environ, cgroup --> identity
//! namespaces --> listening sockets --changed?--> descriptors of its processes --> ports
//! may serve? --> mapped files, environment, a few small files --> runtime, agent
//! ```
//!
//! # Why a scan
//!
//! Events of the kernel (fork, exec, exit) need programs attached, and at rest nothing is. The price
//! is 30 us for the `stat` of a process or kernel thread. So one that has been looked at a few times
//! is looked at again only every sixth scan: an exec late in its life is noticed that much later, an
//! end and another process with its id at once. What is known of the containers and pods around it comes with its first look.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::agent::Agent;
use super::cgroup::{Cgroup, Container};
use super::container::ContainerNames;
use super::entry::{Host, net_namespace};
use super::identity::{self, Identity};
use super::listen;
use super::namespace::{Members, Namespaces};
use super::owner;
use super::pod::Pods;
use super::procfs::{ProcFolder, Procfs, Stat};
use super::runtime::Runtime;
use super::stand_in;
use crate::config::ServiceRule;
use crate::model::{Pid, ProcessKey, Service};

pub use super::entry::Process;

/// Most processes kept; a host with more has them reported in [`Changes::over_limit`].
const PROCESSES_MAX: usize = 32_768;

/// Scans in which a process counts as young: between fork and exec it still looks like its parent.
const YOUNG_SCANS: u32 = 3;
/// Older processes are read every so many scans.
const OLD_STRIDE: u32 = 6;
/// Runtime and agent of an older process are looked for again every so many scans: an agent that a
/// program starts itself may be loaded late.
const AGENT_STRIDE: u32 = 60;

/// Changes that a scan found.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// New processes.
    pub added: Vec<Pid>,
    /// Processes that are the same and have another program, identity or set of ports.
    pub changed: Vec<Pid>,
    /// Processes that are gone.
    pub removed: Vec<Process>,
    /// Processes left out because there are too many.
    pub over_limit: usize,
}

impl Changes {
    /// Nothing is different.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

/// The processes of the host as of the last scan.
#[derive(Debug)]
pub struct ProcessTable {
    procfs: Procfs,
    own: Pid,
    host: Host,
    rules: Vec<ServiceRule>,
    processes: BTreeMap<Pid, Process>,
    /// Kernel threads and the dead: they stay what they are until the id is in use again.
    others: BTreeMap<Pid, ProcFolder>,
    namespaces: Namespaces,
    /// Names of the containers that processes are in, by id.
    containers: HashMap<String, Arc<ContainerNames>>,
    pods: Arc<Pods>,
    have_pods_changed: bool,
    /// Number of scans, to spread the looks at old processes.
    scans: u32,
}

impl ProcessTable {
    /// An empty table; [`Self::scan`] fills it.
    #[must_use]
    pub fn new(rules: Vec<ServiceRule>) -> Self {
        Self {
            procfs: Procfs::default(),
            own: Pid(std::process::id()),
            host: Host::read(),
            rules,
            processes: BTreeMap::new(),
            others: BTreeMap::new(),
            namespaces: Namespaces::new(net_namespace(Path::new("/proc/self/ns/net"))),
            containers: HashMap::new(),
            pods: Arc::default(),
            have_pods_changed: false,
            scans: 0,
        }
    }

    /// Pods of this node, for the next scan.
    pub fn set_pods(&mut self, pods: Arc<Pods>) {
        self.have_pods_changed |= self.pods != pods;
        self.pods = pods;
    }

    /// Looks at /proc.
    ///
    /// # Errors
    ///
    /// /proc itself cannot be read; the table stays as it was.
    pub fn scan(&mut self) -> io::Result<Changes> {
        let mut changes = Changes::default();
        self.scans = self.scans.wrapping_add(1);
        let pids = self.procfs.pids()?;
        stand_in::refresh(&self.procfs);
        let mut gone = std::mem::take(&mut self.processes);
        let others = std::mem::take(&mut self.others);
        // Processes whose identity may have become another one.
        let mut touched = BTreeSet::new();
        for (pid, folder) in pids {
            if pid == self.own {
                continue;
            }
            if self.processes.len() >= PROCESSES_MAX {
                changes.over_limit += 1;
                continue;
            }
            let is_turn = self.is_turn(pid.0.into(), OLD_STRIDE);
            if let Entry::Occupied(known) = gone.entry(pid)
                && known.get().scans >= YOUNG_SCANS
                && known.get().folder == folder
                && !is_turn
            {
                self.processes.insert(pid, known.remove());
                continue;
            }
            if others.get(&pid) == Some(&folder) && !is_turn {
                self.others.insert(pid, folder);
                continue;
            }
            let Ok(stat) = self.procfs.stat(pid) else {
                continue; // it has just ended
            };
            if stat.is_kernel || stat.is_dead && !stand_in::lives_on(&self.procfs, pid) {
                self.others.insert(pid, folder);
                continue;
            }
            let process = match gone.remove(&pid) {
                Some(mut process) if process.stat == stat => {
                    process.scans = process.scans.saturating_add(1);
                    process.folder = folder;
                    // Of those that may become another user: a server gives up being root once it listens.
                    if process.uid.is_none_or(|uid| uid == 0) {
                        let uid = self.procfs.effective_uid(pid);
                        if std::mem::replace(&mut process.uid, uid) != uid {
                            touched.insert(pid);
                        }
                    }
                    process
                }
                known => {
                    let process = self.read(pid, stat, folder);
                    match known {
                        Some(old) if old.key != process.key => {
                            changes.removed.push(old); // the id is in use again
                            changes.added.push(pid);
                        }
                        Some(_) => {}
                        None => changes.added.push(pid),
                    }
                    touched.insert(pid);
                    process
                }
            };
            self.processes.insert(pid, process);
        }
        changes.removed.extend(gone.into_values());
        self.scan_ports(&mut touched);
        self.scan_pods(&mut touched);
        touched.iter().for_each(|&pid| self.identify(pid));
        for pid in self.scan_agents(&touched) {
            self.identify(pid);
            touched.insert(pid);
        }
        if !touched.is_empty() || !changes.removed.is_empty() {
            touched.extend(owner::separate(&mut self.processes));
        }
        if !changes.removed.is_empty() {
            self.forget_containers();
        }
        changes.added.iter().for_each(|pid| {
            touched.remove(pid);
        });
        changes.changed = touched.into_iter().collect();
        Ok(changes)
    }

    /// Whether it is the turn of one that is looked at every `stride` scans.
    fn is_turn(&self, id: u64, stride: u32) -> bool {
        id.wrapping_add(self.scans.into())
            .is_multiple_of(stride.into())
    }

    /// The process that has an id.
    #[must_use]
    pub fn get(&self, pid: Pid) -> Option<&Process> {
        self.processes.get(&pid)
    }

    /// A process, unless it is gone.
    #[must_use]
    pub fn find(&self, process: ProcessKey) -> Option<&Process> {
        self.get(process.pid).filter(|found| found.key == process)
    }

    /// All processes, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Process> {
        self.processes.values()
    }

    /// The processes of a service instance.
    pub fn processes_of(&self, service: &Service) -> impl Iterator<Item = &Process> {
        self.iter()
            .filter(move |process| &process.identity.service == service)
    }

    /// The processes of all instances of a service.
    pub fn processes_of_name(&self, name: &str) -> impl Iterator<Item = &Process> {
        self.iter()
            .filter(move |process| process.identity.service.name == name)
    }

    /// The instances worth reporting, each once, by the oldest id of its processes: of a server and its
    /// workers that is the server.
    pub fn instances(&self) -> impl Iterator<Item = &Identity> {
        let mut seen = HashSet::new();
        self.serving()
            .map(|process| &process.identity)
            .filter(move |identity| seen.insert(&identity.service))
    }

    /// Services that have different names but the same one as far as an OAP keeps it.
    #[must_use]
    pub fn clashes(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut names: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for identity in self.serving().map(|process| &process.identity) {
            let cut = identity.service.name.as_str();
            let full = identity.uncut.as_deref().unwrap_or(cut);
            names.entry(cut).or_default().insert(full);
        }
        names.retain(|_, full| full.len() > 1);
        names
    }

    /// Processes that are known by the name of a service that is not theirs, with that name: each user's once for a name.
    pub fn posing(&self) -> impl Iterator<Item = (&Process, &str)> {
        let mut seen = HashSet::new();
        self.serving()
            .filter_map(|process| Some((process, process.identity.claimed.as_deref()?)))
            .filter(move |(process, claimed)| seen.insert((process.uid, *claimed)))
    }

    fn serving(&self) -> impl Iterator<Item = &Process> {
        self.iter().filter(|process| process.may_serve())
    }

    /// The host's name as it stands in instance names.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host.name
    }

    /// Reads what is not known of a process; what it hides is left empty. Its identity comes later.
    fn read(&mut self, pid: Pid, stat: Stat, folder: ProcFolder) -> Process {
        let procfs = &self.procfs;
        let is_wanted = |name: &str| identity::VARIABLES.contains(&name);
        let cgroup = Cgroup::parse(&procfs.cgroup(pid).unwrap_or_default());
        let container = match &cgroup.container {
            // A user's own may have the id of another.
            Some(Container::Id(id)) if !cgroup.is_users => {
                let names = || Arc::new(ContainerNames::read(id));
                Some(Arc::clone(
                    self.containers.entry(id.clone()).or_insert_with(names),
                ))
            }
            _ => None,
        };
        let net_namespace = net_namespace(&procfs.path(pid, "ns/net"));
        let listeners = self.namespaces.listeners(net_namespace);
        Process {
            key: stat.key(pid),
            uid: procfs.effective_uid(pid),
            parent: procfs.parent(pid).unwrap_or(Pid(0)),
            comm: stat.name.clone(),
            exe: procfs.exe(pid).ok(),
            command: procfs.command(pid).unwrap_or_default(),
            container,
            pod: self.pods.find(&cgroup).cloned(),
            cgroup,
            listen_ports: listeners
                .map(|listeners| listen::ports_of(procfs, pid, listeners))
                .unwrap_or_default(),
            runtime: None,
            agent: None,
            identity: Identity::unknown(),
            environment: procfs.environ(pid, is_wanted).unwrap_or_default(),
            net_namespace,
            stat,
            folder,
            scans: 0,
        }
    }

    fn identify(&mut self, pid: Pid) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.identity = identity::identify(process.facts(&self.host), &self.rules);
        }
    }

    /// Finds ports anew in the namespaces whose listening sockets have changed.
    fn scan_ports(&mut self, touched: &mut BTreeSet<Pid>) {
        let mut members: HashMap<u64, Members> = HashMap::new();
        for process in self.processes.values() {
            let members = members.entry(process.net_namespace).or_default();
            members.has_young |= process.scans < YOUNG_SCANS;
            members.pids.push(process.key.pid);
        }
        // Others, new processes among them, have been read against what is known.
        for namespace in self.namespaces.scan(&self.procfs, &members) {
            let listeners = self.namespaces.listeners(namespace);
            let pids = members
                .get(&namespace)
                .map_or(&[][..], |members| &members.pids);
            for (pid, listeners) in pids.iter().zip(std::iter::repeat(listeners)) {
                let (Some(process), Some(listeners)) = (self.processes.get_mut(pid), listeners)
                else {
                    continue;
                };
                let ports = listen::ports_of(&self.procfs, *pid, listeners);
                if process.listen_ports != ports {
                    process.listen_ports = ports;
                    touched.insert(*pid);
                }
            }
        }
    }

    /// Gives processes the pods that have come, changed or gone.
    fn scan_pods(&mut self, touched: &mut BTreeSet<Pid>) {
        if !std::mem::take(&mut self.have_pods_changed) {
            return;
        }
        for process in self.processes.values_mut() {
            let pod = self.pods.find(&process.cgroup);
            // A pod that is deleted keeps its processes for a while, and they keep their name.
            if pod.is_some() && process.pod.as_ref() != pod {
                process.pod = pod.cloned();
                touched.insert(process.key.pid);
            }
        }
    }

    /// Looks for runtimes and agents where they may have come since the last look; returns the
    /// processes where they have.
    fn scan_agents(&mut self, touched: &BTreeSet<Pid>) -> Vec<Pid> {
        let due = self.processes.values().filter(|process| {
            process.may_serve()
                && (process.scans < YOUNG_SCANS
                    || touched.contains(&process.key.pid)
                    || self.is_turn(process.key.pid.0.into(), AGENT_STRIDE))
        });
        let due: Vec<Pid> = due.map(|process| process.key.pid).collect();
        let mut found = Vec::new();
        for pid in due {
            let Some(process) = self.processes.get_mut(&pid) else {
                continue;
            };
            let Ok(runtime) = Runtime::detect(pid) else {
                continue; // gone, or not ours to look at
            };
            let agent = Agent::detect(pid, &runtime, &process.command).unwrap_or_default();
            if process.agent != agent || process.runtime.as_ref() != Some(&runtime) {
                process.agent = agent;
                process.runtime = Some(runtime);
                found.push(pid);
            }
        }
        found
    }

    fn forget_containers(&mut self) {
        let groups = self
            .processes
            .values()
            .filter_map(|process| process.cgroup.container.as_ref());
        let used: HashSet<&str> = groups
            .filter_map(|container| match container {
                Container::Id(id) => Some(id.as_str()),
                Container::Name(_) => None,
            })
            .collect();
        self.containers.retain(|id, _| used.contains(id.as_str()));
    }
}

#[cfg(test)]
pub(super) mod tests;
