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
//! end at once. Listening sockets of the daemon's own network namespace are cheap to ask for; those of
//! another one take milliseconds, so while no process in it is young they are looked at rarely.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::agent::Agent;
use super::cgroup::Cgroup;
use super::identity::{self, Facts, Identity, IdentityRule};
use super::listen::{self, Listeners};
use super::procfs::{Procfs, Stat};
use super::runtime::Runtime;
use super::sock_diag;
use crate::config::ServiceRule;
use crate::model::{Pid, Service};

/// Most processes kept; a host with more has them reported in [`Changes::over_limit`].
const PROCESSES_MAX: usize = 32_768;

/// Scans in which a process counts as young: between fork and exec it still looks like its parent.
const YOUNG_SCANS: u32 = 3;
/// Older processes are looked at every so many scans.
const OLD_STRIDE: u32 = 6;
/// Runtime and agent of an older process are looked for again every so many scans: an agent that a
/// program starts itself may be loaded late.
const AGENT_STRIDE: u32 = 60;
/// Other network namespaces are looked at every so many scans.
const NAMESPACE_STRIDE: u32 = 60;

/// A process of the host.
#[derive(Clone, Debug)]
pub struct Process {
    /// Id in the pid namespace of /proc.
    pub pid: Pid,
    /// Start in clock ticks since boot; with the id it names the process for good.
    pub start_ticks: u64,
    /// Name the kernel shows, at most 15 bytes.
    pub comm: String,
    /// Executable, `None` if we may not look.
    pub exe: Option<PathBuf>,
    /// Arguments.
    pub command: Vec<String>,
    /// Control group, container, unit.
    pub cgroup: Cgroup,
    /// TCP ports it listens on, sorted.
    pub listen_ports: Vec<u16>,
    /// What it runs; known of processes that may serve requests.
    pub runtime: Option<Runtime>,
    /// The SkyWalking agent in it; looked for in processes that may serve requests.
    pub agent: Option<Agent>,
    /// What it is called.
    pub identity: Identity,
    /// Variables for the identity.
    environment: Vec<(String, String)>,
    /// Network namespace, 0 if we may not look.
    net_namespace: u64,
    /// What `stat` said, to notice an exec.
    stat: Stat,
    /// Scans that have found it unchanged.
    scans: u32,
}

impl Process {
    /// Whether it is worth reporting as a service instance: it listens on a port, or somebody gave
    /// it a name. A host runs hundreds of others that never serve a request.
    #[must_use]
    pub fn may_serve(&self) -> bool {
        let is_named = matches!(
            self.identity.rule,
            IdentityRule::Config(_) | IdentityRule::Environment(_)
        );
        is_named || !self.listen_ports.is_empty()
    }
}

/// What a scan found to be different.
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
    host: String,
    own: Pid,
    /// Network namespace of the daemon.
    own_namespace: u64,
    rules: Vec<ServiceRule>,
    processes: BTreeMap<Pid, Process>,
    /// Kernel threads and the dead: they stay what they are until the id is in use again.
    others: BTreeSet<Pid>,
    /// Listening sockets per network namespace at the last scan.
    listeners: HashMap<u64, Listeners>,
    /// Number of scans, to spread the looks at old processes.
    scans: u32,
}

impl ProcessTable {
    /// An empty table; [`Self::scan`] fills it.
    #[must_use]
    pub fn new(rules: Vec<ServiceRule>) -> Self {
        let host = nix::unistd::gethostname().unwrap_or_default();
        let host = host.to_string_lossy().into_owned();
        Self {
            procfs: Procfs::default(),
            host: if host.is_empty() {
                "localhost".to_owned()
            } else {
                host
            },
            own: Pid(std::process::id()),
            own_namespace: net_namespace(Path::new("/proc/self/ns/net")),
            rules,
            processes: BTreeMap::new(),
            others: BTreeSet::new(),
            listeners: HashMap::new(),
            scans: 0,
        }
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
        let mut gone = std::mem::take(&mut self.processes);
        let others = std::mem::take(&mut self.others);
        for pid in pids {
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
                && !is_turn
            {
                self.processes.insert(pid, known.remove());
                continue;
            }
            if others.contains(&pid) && !is_turn {
                self.others.insert(pid);
                continue;
            }
            let Ok(stat) = self.procfs.stat(pid) else {
                continue; // it has just ended
            };
            if stat.is_dead || stat.is_kernel {
                self.others.insert(pid);
                continue;
            }
            let known = gone.remove(&pid);
            let process = match known {
                Some(mut process) if process.stat == stat => {
                    process.scans = process.scans.saturating_add(1);
                    process
                }
                known => {
                    let process = self.read(pid, stat);
                    match known {
                        Some(old) if old.start_ticks != process.start_ticks => {
                            changes.removed.push(old); // the id is in use again
                            changes.added.push(pid);
                        }
                        Some(_) => changes.changed.push(pid),
                        None => changes.added.push(pid),
                    }
                    process
                }
            };
            self.processes.insert(pid, process);
        }
        changes.removed.extend(gone.into_values());
        self.scan_ports(&mut changes);
        self.scan_agents(&mut changes);
        Ok(changes)
    }

    /// Looks for runtimes and agents where they may have come since the last look.
    fn scan_agents(&mut self, changes: &mut Changes) {
        let has_changed: HashSet<Pid> = changes
            .added
            .iter()
            .chain(&changes.changed)
            .copied()
            .collect();
        let due = self.processes.values().filter(|process| {
            process.may_serve()
                && (process.scans < YOUNG_SCANS
                    || has_changed.contains(&process.pid)
                    || self.is_turn(process.pid.0.into(), AGENT_STRIDE))
        });
        for pid in due.map(|process| process.pid).collect::<Vec<_>>() {
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
                if !has_changed.contains(&pid) {
                    changes.changed.push(pid);
                }
            }
        }
    }

    /// Whether it is the turn of one that is looked at every `stride` scans.
    fn is_turn(&self, id: u64, stride: u32) -> bool {
        id.wrapping_add(self.scans.into())
            .is_multiple_of(stride.into())
    }

    /// A process by id.
    #[must_use]
    pub fn get(&self, pid: Pid) -> Option<&Process> {
        self.processes.get(&pid)
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

    /// The host's name as it stands in instance names.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Reads what is not known of a process; what it hides is left empty.
    fn read(&self, pid: Pid, stat: Stat) -> Process {
        let procfs = &self.procfs;
        let is_wanted = |name: &str| identity::VARIABLES.contains(&name);
        let mut process = Process {
            pid,
            start_ticks: stat.start_ticks,
            comm: stat.name.clone(),
            exe: procfs.exe(pid).ok(),
            command: procfs.command(pid).unwrap_or_default(),
            cgroup: Cgroup::parse(&procfs.cgroup(pid).unwrap_or_default()),
            listen_ports: Vec::new(),
            runtime: None,
            agent: None,
            identity: Identity::unknown(),
            environment: procfs.environ(pid, is_wanted).unwrap_or_default(),
            net_namespace: net_namespace(&procfs.path(pid, "ns/net")),
            stat,
            scans: 0,
        };
        if let Some(listeners) = self.listeners.get(&process.net_namespace) {
            process.listen_ports = listen::ports_of(procfs, pid, listeners);
        }
        process.identity = self.identify(&process);
        process
    }

    fn identify(&self, process: &Process) -> Identity {
        let facts = Facts {
            pid: process.pid,
            host: &self.host,
            comm: &process.comm,
            exe: process.exe.as_deref(),
            command: &process.command,
            cgroup: &process.cgroup,
            listen_ports: &process.listen_ports,
            environment: &process.environment,
        };
        identity::identify(facts, &self.rules)
    }

    /// Finds ports anew in the namespaces whose listening sockets have changed.
    fn scan_ports(&mut self, changes: &mut Changes) {
        let mut members: HashMap<u64, (bool, Vec<Pid>)> = HashMap::new();
        for process in self.processes.values() {
            let (has_young, pids) = members.entry(process.net_namespace).or_default();
            *has_young |= process.scans < YOUNG_SCANS;
            pids.push(process.pid);
        }
        self.listeners
            .retain(|namespace, _| members.contains_key(namespace));
        for (namespace, (has_young, pids)) in members {
            let own = (namespace == self.own_namespace).then(sock_diag::listeners);
            let now = match own {
                Some(Ok(listeners)) => listeners,
                _ if has_young || self.is_turn(namespace, NAMESPACE_STRIDE) => {
                    listen::listeners(&self.procfs, pids[0])
                }
                _ => continue,
            };
            if self.listeners.get(&namespace) == Some(&now) {
                continue; // new processes have been read against these
            }
            for pid in pids {
                let ports = listen::ports_of(&self.procfs, pid, &now);
                self.set_ports(pid, ports, changes);
            }
            self.listeners.insert(namespace, now);
        }
    }

    fn set_ports(&mut self, pid: Pid, ports: Vec<u16>, changes: &mut Changes) {
        let Some(process) = self.processes.get(&pid) else {
            return;
        };
        if process.listen_ports == ports {
            return;
        }
        let mut process = process.clone();
        process.listen_ports = ports;
        process.identity = self.identify(&process);
        self.processes.insert(pid, process);
        if !changes.added.contains(&pid) && !changes.changed.contains(&pid) {
            changes.changed.push(pid);
        }
    }
}

/// Identity of the network namespace a link of /proc leads to, 0 if we may not look.
fn net_namespace(link: &Path) -> u64 {
    std::fs::metadata(link).map_or(0, |metadata| metadata.st_ino())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::config::RuleMatch;

    /// A shell that ends with the test, ready when it has said so.
    struct Shell(Child);

    impl Shell {
        fn start(name: &str) -> Self {
            let child = Command::new("sh")
                .arg("-s")
                .env("SW_AGENT_NAME", name)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut shell = Self(child);
            shell.run("echo ready");
            shell
        }

        fn pid(&self) -> Pid {
            Pid(self.0.id())
        }

        /// Sends a line and waits for a line.
        fn run(&mut self, line: &str) -> String {
            writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
            self.read()
        }

        fn read(&mut self) -> String {
            let mut line = String::new();
            let out = self.0.stdout.as_mut().unwrap();
            BufReader::with_capacity(1, out)
                .read_line(&mut line)
                .unwrap();
            line.trim().to_owned()
        }
    }

    impl Drop for Shell {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Check that a process appears once with its name, and disappears when it ends.
    #[test]
    fn a_process_comes_and_goes() {
        let mut table = ProcessTable::new(Vec::new());
        table.scan().unwrap();
        let shell = Shell::start("table-test-a");
        let pid = shell.pid();
        let changes = table.scan().unwrap();
        assert!(changes.added.contains(&pid));
        let process = table.get(pid).unwrap();
        assert_eq!(process.identity.service.name, "table-test-a");
        assert!(process.may_serve() && process.command[0] == "sh");
        let service = process.identity.service.clone();
        assert_eq!(table.processes_of(&service).count(), 1);
        assert!(!table.scan().unwrap().added.contains(&pid));
        drop(shell);
        let changes = table.scan().unwrap();
        assert!(changes.removed.iter().any(|process| process.pid == pid));
        assert!(table.get(pid).is_none());
    }

    /// Check that an exec is noticed although the process is the same, even of the same program.
    #[test]
    fn an_exec_is_noticed() {
        let mut table = ProcessTable::new(Vec::new());
        let mut shell = Shell::start("table-test-b");
        let pid = shell.pid();
        table.scan().unwrap();
        shell.run("SW_AGENT_NAME=table-test-c exec sh -c 'echo ready; read x; read x'");
        let changes = table.scan().unwrap();
        assert!(changes.changed.contains(&pid));
        assert_eq!(
            table.get(pid).unwrap().identity.service.name,
            "table-test-c"
        );
    }

    /// Check that an exec of an old process is noticed too, within one round of looks.
    #[test]
    fn a_late_exec_is_noticed_within_a_round() {
        let mut table = ProcessTable::new(Vec::new());
        let mut shell = Shell::start("table-test-d");
        let pid = shell.pid();
        for _ in 0..=YOUNG_SCANS {
            table.scan().unwrap();
        }
        shell.run("SW_AGENT_NAME=table-test-e exec sh -c 'echo ready; read x; read x'");
        let changed = |_| table.scan().unwrap().changed.contains(&pid);
        assert!((0..OLD_STRIDE).any(changed));
    }

    /// Check that a port rule decides once the process listens, which is after its start.
    #[test]
    fn a_port_that_opens_later_changes_the_identity() {
        let script = "import socket\nprint('up', flush=True)\ninput()\ns=socket.socket()\ns.bind(('127.0.0.1',0))\ns.listen()\nprint(s.getsockname()[1], flush=True)\ninput()";
        let child = Command::new("python3")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(child) = child else {
            eprintln!("skipped: python3 is not installed");
            return;
        };
        let mut child = Shell(child);
        assert_eq!(child.read(), "up");
        let mut table = ProcessTable::new(Vec::new());
        table.scan().unwrap();
        let pid = child.pid();
        assert!(table.get(pid).unwrap().listen_ports.is_empty());
        assert!(!table.get(pid).unwrap().may_serve());
        let port: u16 = child.run("").parse().unwrap();
        table.rules = vec![ServiceRule {
            matches: RuleMatch {
                listen_port: Some(port),
                ..RuleMatch::default()
            },
            service: "by-port".to_owned(),
            instance: None,
            layer: None,
        }];
        assert!(table.scan().unwrap().changed.contains(&pid));
        let process = table.get(pid).unwrap();
        assert_eq!(process.listen_ports, [port]);
        assert_eq!(process.identity.service.name, "by-port");
    }

    /// Check that neither kernel threads nor we are in the table.
    #[test]
    fn kernel_threads_and_we_are_left_out() {
        let mut table = ProcessTable::new(Vec::new());
        table.scan().unwrap();
        assert!(table.get(Pid(std::process::id())).is_none());
        assert!(
            table
                .get(Pid(2))
                .is_none_or(|process| process.comm != "kthreadd")
        );
        assert!(
            table
                .iter()
                .all(|process| !process.identity.service.name.is_empty())
        );
    }
}
