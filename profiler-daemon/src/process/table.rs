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
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::agent::Agent;
use super::cgroup::{Cgroup, Container};
use super::choice::Choice;
use super::container::ContainerNames;
use super::entry::{AgentInstance, Host, net_namespace};
use super::identity::{self, Identity};
use super::listen;
use super::listing::Processes;
use super::mapped_image::mapped_images;
use super::namespace::{Members, Namespaces};
use super::owner;
use super::pod::Pods;
use super::procfs::{ProcFolder, Procfs, Stat};
use super::runtime::Runtime;
use super::scan_budget::ScanBudget;
use super::settle::{settle, settles_soon};
use super::{patience, stand_in};
use crate::config::ServiceRule;
use crate::model::{Pid, ProcessKey};

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
    pub removed: Vec<Arc<Process>>,
    /// Processes left out because there are too many.
    pub over_limit: usize,
    /// Looks that wait for a later scan because those at the user's other processes took too long, by user.
    pub postponed: BTreeMap<Option<u32>, usize>,
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
    choice: Choice,
    /// Rules or choice are others than at the last scan.
    have_rules_changed: bool,
    processes: Processes,
    /// Kernel threads and the dead: they stay what they are until the id is in use again.
    others: BTreeMap<Pid, ProcFolder>,
    namespaces: Namespaces,
    /// Names of the containers that processes are in, by id.
    containers: HashMap<String, Arc<ContainerNames>>,
    pods: Arc<Pods>,
    have_pods_changed: bool,
    /// Number of scans, to spread the looks at old processes.
    scans: u32,
    /// Number of looks at ports.
    looks: u32,
    /// Somebody asks what agents call their instances, see [`Self::set_agent_instances`].
    asks_agent_instances: bool,
    /// What was answered since the last scan.
    agent_instances: HashMap<ProcessKey, Option<String>>,
    /// What scans may take; none for those that are asked for by a person.
    budget: Option<ScanBudget>,
    began: Instant,
    /// Processes whose runtime and agent could not be looked for in time.
    owed: BTreeSet<Pid>,
}

impl Deref for ProcessTable {
    type Target = Processes;

    fn deref(&self) -> &Processes {
        &self.processes
    }
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
            choice: Choice::default(),
            have_rules_changed: false,
            processes: Processes::default(),
            others: BTreeMap::new(),
            namespaces: Namespaces::new(net_namespace(Path::new("/proc/self/ns/net"))),
            containers: HashMap::new(),
            pods: Arc::default(),
            have_pods_changed: false,
            scans: 0,
            looks: 0,
            asks_agent_instances: false,
            agent_instances: HashMap::new(),
            budget: None,
            began: Instant::now(),
            owed: BTreeSet::new(),
        }
    }

    /// The same, with a limit to what scans take: for one that scans all the time.
    #[must_use]
    pub fn with_budget(self) -> Self {
        Self {
            budget: Some(ScanBudget::new(self.began.elapsed())),
            ..self
        }
    }

    /// The same, in which a process with an agent that makes up its instance's name is an instance once that name is
    /// known or given up, see [`Self::set_agent_instances`].
    #[must_use]
    pub fn asking_agent_instances(self, asks: bool) -> Self {
        Self {
            asks_agent_instances: asks,
            ..self
        }
    }

    /// What agents call their instances, for the next scan; `None` where that is not found out.
    pub fn set_agent_instances(&mut self, found: HashMap<ProcessKey, Option<String>>) {
        self.agent_instances.extend(found);
    }

    /// The processes as of the last scan.
    #[must_use]
    pub fn processes(&self) -> &Processes {
        &self.processes
    }

    /// The same, for a choice of processes.
    #[must_use]
    pub fn with_choice(self, choice: Choice) -> Self {
        Self { choice, ..self }
    }

    /// Rules and choice from the next scan on.
    pub fn set_rules(&mut self, rules: Vec<ServiceRule>, choice: Choice) {
        self.have_rules_changed |= self.rules != rules || self.choice != choice;
        self.rules = rules;
        self.choice = choice;
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
        self.looks = self.looks.wrapping_add(1);
        let pids = self.procfs.pids()?;
        stand_in::refresh(&self.procfs);
        patience::refresh(&self.procfs);
        if let Some(budget) = &mut self.budget {
            budget.forget_idle(self.began.elapsed());
        }
        let mut gone = std::mem::take(&mut self.processes.0);
        let others = std::mem::take(&mut self.others);
        // Processes whose identity may have become another one, and those whose name alone has.
        let (mut touched, mut renamed) = (BTreeSet::new(), Vec::new());
        for (pid, folder) in pids {
            if pid == self.own {
                continue;
            }
            if self.processes.0.len() >= PROCESSES_MAX {
                changes.over_limit += 1;
                continue;
            }
            let is_turn = self.is_turn(pid.0.into(), OLD_STRIDE);
            if let Entry::Occupied(known) = gone.entry(pid)
                && known.get().scans >= YOUNG_SCANS
                && known.get().folder == folder
                && !is_turn
            {
                self.processes.0.insert(pid, known.remove());
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
                Some(mut known) if self.is_same(&known, &stat) => {
                    let process = Arc::make_mut(&mut known);
                    process.scans = process.scans.saturating_add(1);
                    process.folder = folder;
                    // Of those that may become another user: a server gives up being root once it listens.
                    if process.uid.is_none_or(|uid| uid == 0) {
                        let uid = self.procfs.effective_uid(pid);
                        if std::mem::replace(&mut process.uid, uid) != uid {
                            touched.insert(pid);
                        }
                    }
                    if process.stat.name != stat.name {
                        process.comm.clone_from(&stat.name);
                        process.stat = stat;
                        renamed.push(pid);
                    }
                    known
                }
                known => {
                    let user = self.procfs.effective_uid(pid);
                    let look = |table: &mut Self| Arc::new(table.read(pid, stat, folder, user));
                    let read = self.in_budget(user, &mut changes, look);
                    // The id is in use again, or what it runs now is not known yet.
                    let is_other =
                        |old: &Process| read.as_ref().is_none_or(|new| new.key != old.key);
                    let before = known.is_some();
                    let removed = known.filter(|old| is_other(old));
                    if read.is_some() && (!before || removed.is_some()) {
                        changes.added.push(pid);
                    }
                    changes.removed.extend(removed);
                    let Some(read) = read else {
                        continue;
                    };
                    touched.insert(pid);
                    read
                }
            };
            self.processes.0.insert(pid, process);
        }
        changes.removed.extend(gone.into_values());
        self.scan_ports(&mut touched, &mut changes);
        self.scan_pods(&mut touched);
        self.take_agent_instances(&mut touched);
        if std::mem::take(&mut self.have_rules_changed) {
            touched.extend(self.processes.0.keys().copied());
        }
        for &pid in &touched {
            self.identify(pid);
        }
        let has_changed = |table: &mut Self, pid: &Pid| table.identify(*pid);
        touched.extend(renamed.into_iter().filter(|pid| has_changed(self, pid)));
        for pid in self.scan_agents(&touched, &mut changes) {
            self.identify(pid);
            touched.insert(pid);
        }
        self.name(&mut touched, !changes.removed.is_empty());
        if !changes.removed.is_empty() {
            self.forget_containers();
        }
        changes.added.iter().for_each(|pid| {
            touched.remove(pid);
        });
        changes.changed = touched.into_iter().collect();
        Ok(changes)
    }

    /// Looks at ports again, for processes that get their name by them, see [`Self::settles_soon`].
    pub fn scan_settling(&mut self) -> Changes {
        let mut changes = Changes::default();
        let mut touched = BTreeSet::new();
        self.looks = self.looks.wrapping_add(1);
        self.scan_ports(&mut touched, &mut changes);
        for &pid in &touched {
            self.identify(pid);
        }
        self.name(&mut touched, false);
        changes.changed = touched.into_iter().collect();
        changes
    }

    /// Whether a process gets its name by another look at ports, a moment after the last.
    #[must_use]
    pub fn settles_soon(&self) -> bool {
        self.processes.iter().any(settles_soon)
    }

    /// Settles the names of instances, and those of services among users; adds whose name has changed.
    fn name(&mut self, touched: &mut BTreeSet<Pid>, has_removed: bool) {
        touched.extend(settle(&mut self.processes.0, &self.host, self.looks));
        if !touched.is_empty() || has_removed {
            touched.extend(owner::separate(&mut self.processes.0));
        }
    }

    /// Whether a process still runs the program that it ran when it was read.
    ///
    /// A process may call itself anything at any time, so its name alone says nothing. Where stacks are not at random
    /// addresses (`setarch -R`), an exec shows by the name and the executable.
    fn is_same(&self, known: &Process, stat: &Stat) -> bool {
        let is_other =
            || known.stat.name != stat.name && known.exe != self.procfs.exe(known.key.pid).ok();
        known.stat.is_same_program(stat) && known.stat.is_dead == stat.is_dead && !is_other()
    }

    /// Looks at a process of a user; `None` if looks at the user's others have taken too long.
    fn in_budget<T>(
        &mut self,
        user: Option<u32>,
        changes: &mut Changes,
        look: impl FnOnce(&mut Self) -> T,
    ) -> Option<T> {
        let begin = self.began.elapsed();
        if let Some(budget) = &mut self.budget
            && !budget.has_time(user, begin)
        {
            *changes.postponed.entry(user).or_default() += 1;
            return None;
        }
        let found = look(self);
        let now = self.began.elapsed();
        if let Some(budget) = &mut self.budget {
            budget.spend(user, now.saturating_sub(begin), now);
        }
        Some(found)
    }

    /// Whether it is the turn of one that is looked at every `stride` scans.
    fn is_turn(&self, id: u64, stride: u32) -> bool {
        id.wrapping_add(self.scans.into())
            .is_multiple_of(stride.into())
    }

    /// The host's name as it stands in instance names.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host.name
    }

    /// Reads what is not known of a process; what it hides is left empty. Its identity comes later.
    fn read(&mut self, pid: Pid, stat: Stat, folder: ProcFolder, uid: Option<u32>) -> Process {
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
            uid,
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
            denial: None,
            environment: procfs.environ(pid, is_wanted).unwrap_or_default(),
            net_namespace,
            stat,
            folder,
            scans: 0,
            ports_look: self.looks,
            settled: None,
            agent_instance: if self.asks_agent_instances {
                AgentInstance::Awaited
            } else {
                AgentInstance::Unasked
            },
        }
    }

    /// Names the service of a process anew; whether that has changed.
    fn identify(&mut self, pid: Pid) -> bool {
        let Some(process) = self.processes.0.get_mut(&pid) else {
            return false;
        };
        let identity = identity::identify(process.facts(&self.host), &self.rules);
        let mut known = process.identity.clone();
        if let Some(claimed) = known.claimed.take() {
            known.service.name = claimed;
        }
        let denial = self.choice.denial(&process.cgroup, process.pod.as_deref());
        let has_changed = known != identity || process.denial != denial;
        if has_changed {
            let process = Arc::make_mut(process);
            process.identity = identity;
            process.denial = denial;
        }
        has_changed
    }

    /// Finds ports anew in the namespaces whose listening sockets have changed.
    fn scan_ports(&mut self, touched: &mut BTreeSet<Pid>, changes: &mut Changes) {
        let mut members: HashMap<u64, Members> = HashMap::new();
        for process in self.processes.iter() {
            let members = members.entry(process.net_namespace).or_default();
            members.has_young |= process.scans < YOUNG_SCANS;
            members.pids.push(process.key.pid);
        }
        // Others, new processes among them, have been read against what is known.
        for namespace in self.namespaces.scan(&self.procfs, &members) {
            let pids = members
                .get(&namespace)
                .map_or(&[][..], |members| &members.pids);
            for &pid in pids {
                let Some(user) = self.get(pid).map(|process| process.uid) else {
                    continue;
                };
                let look = |table: &mut Self| {
                    let listeners = table.namespaces.listeners(namespace)?;
                    Some(listen::ports_of(&table.procfs, pid, listeners))
                };
                let ports = self.in_budget(user, changes, look).flatten();
                if let Some(ports) = ports
                    && let Some(process) = self.processes.0.get_mut(&pid)
                    && process.listen_ports != ports
                {
                    let process = Arc::make_mut(process);
                    process.listen_ports = ports;
                    process.ports_look = self.looks;
                    touched.insert(pid);
                }
            }
        }
    }

    /// Gives processes the pods that have come, changed or gone.
    fn scan_pods(&mut self, touched: &mut BTreeSet<Pid>) {
        if !std::mem::take(&mut self.have_pods_changed) {
            return;
        }
        for process in self.processes.0.values_mut() {
            let pod = self.pods.find(&process.cgroup);
            // A pod that is deleted keeps its processes for a while, and they keep their name.
            if pod.is_some() && process.pod.as_ref() != pod {
                Arc::make_mut(process).pod = pod.cloned();
                touched.insert(process.key.pid);
            }
        }
    }

    fn take_agent_instances(&mut self, touched: &mut BTreeSet<Pid>) {
        for (key, name) in std::mem::take(&mut self.agent_instances) {
            let process = self.processes.0.get_mut(&key.pid);
            if let Some(process) = process.filter(|process| process.key == key) {
                Arc::make_mut(process).agent_instance = AgentInstance::Answered(name);
                touched.insert(key.pid);
            }
        }
    }

    /// Looks for runtimes and agents where they may have come since the last look; returns the
    /// processes where they have.
    fn scan_agents(&mut self, touched: &BTreeSet<Pid>, changes: &mut Changes) -> Vec<Pid> {
        let owed = std::mem::take(&mut self.owed);
        let due = self.processes.iter().filter(|process| {
            let pid = process.key.pid;
            process.may_serve()
                && (process.scans < YOUNG_SCANS
                    || touched.contains(&pid)
                    || owed.contains(&pid)
                    || self.is_turn(pid.0.into(), AGENT_STRIDE))
        });
        let due: Vec<Arc<Process>> = due
            .filter_map(|it| self.processes.0.get(&it.key.pid))
            .cloned()
            .collect();
        let mut found = Vec::new();
        for process in due {
            let pid = process.key.pid;
            let command = process.command.clone();
            let look = |_: &mut Self| {
                patience::look(pid, move || {
                    let images = mapped_images(pid)?;
                    let runtime = Runtime::detect_in(pid, &images)?;
                    let agent = Agent::detect_in(pid, &images, &runtime, &command);
                    Ok::<_, io::Error>((runtime, agent.unwrap_or_default()))
                })
            };
            let Some(looked) = self.in_budget(process.uid, changes, look) else {
                self.owed.insert(pid);
                continue;
            };
            let Ok(Ok((runtime, agent))) = looked else {
                continue; // gone, or not ours to look at
            };
            if process.agent != agent || process.runtime.as_ref() != Some(&runtime) {
                if let Some(process) = self.processes.0.get_mut(&pid) {
                    let process = Arc::make_mut(process);
                    process.agent = agent;
                    process.runtime = Some(runtime);
                }
                found.push(pid);
            }
        }
        found
    }

    fn forget_containers(&mut self) {
        let groups = self
            .processes
            .iter()
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
