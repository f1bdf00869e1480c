//! Finds other daemons of this host that report to the same OAP: each request would be profiled by both.
//!
//! In:  `/proc/PID/{comm,fd,ns/net}`; our addresses and tasks
//! Out: a warning at the start of the second one, or with the first task that both run
//! Lost: a daemon in a pid namespace that we do not see, or whose program has another name
//!
//! ```text
//!  daemon A    /proc/A/fd/7 -> /memfd:profilerd-oap (deleted)      "oap1:11800\noap2:11800\ntask 179..\n"
//!                                  ^ read at its start, and when a task comes, by
//!  daemon B    /proc/B/fd/7 -> /memfd:profilerd-oap (deleted)      "10.0.0.5:11800\n"
//! ```
//!
//! An OAP has many addresses: names, those of its replicas, of a proxy. Names are resolved and their addresses compared.
//! What that does not tell, a task does: its id is made by the OAP and is found in one OAP only.
//!
//! # Why
//! A package and a container share neither files nor, as a rule, the network, so a lock file or an abstract socket
//! of one is not seen by the other. Both see the processes of the host, or they would not profile the same
//! ones. A file in memory that a process holds open is seen where the process is, says what is in it, and is gone
//! when the process is, `kill -9` included.

use std::collections::{HashSet, VecDeque};
use std::fs::{self, File};
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::model::TaskId;

/// Name of the file, as it is in `/proc/PID/fd`.
const NAME: &str = "profilerd-oap";
/// Names of our processes begin with this.
const PROGRAM: &str = "profilerd";
/// Bytes read of one: dozens of addresses and tasks.
const TEXT_MAX_BYTES: u64 = 64 << 10;
/// Tasks that a mark has, the latest; there are fewer slots.
const TASKS_MAX: usize = 64;
/// What the line of a task begins with; no address has a blank.
const TASK: &str = "task ";
/// How long the start waits for names to be resolved.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(2);
/// Most descriptors of a process that are read.
const DESCRIPTORS_MAX: usize = 65_536;

/// Says where we report to and what we run, for as long as it is kept.
#[derive(Debug)]
pub(super) struct Mark {
    /// None on a host on which that cannot be done.
    file: Option<File>,
    addresses: Vec<String>,
    tasks: VecDeque<TaskId>,
    /// Daemons that a warning was about.
    told: HashSet<u32>,
}

/// Another daemon.
#[derive(Debug, PartialEq, Eq)]
struct Neighbour {
    pid: u32,
    addresses: Vec<String>,
    tasks: Vec<String>,
    /// An address of the loopback means the same for both.
    shares_network: bool,
}

/// Says where we report to, and warns of those who were here first and do so as well.
pub(super) fn announce(addresses: &[String]) -> Mark {
    let file = memfd_create(NAME, MFdFlags::MFD_CLOEXEC).map(File::from);
    let mut mark = Mark {
        file: file
            .inspect_err(|error| tracing::debug!(%error, "other daemons cannot notice this one"))
            .ok(),
        addresses: addresses.to_vec(),
        tasks: VecDeque::new(),
        told: HashSet::new(),
    };
    mark.write();
    for neighbour in neighbours() {
        mark.tell_start(&neighbour);
    }
    mark
}

impl Mark {
    /// Says that we run a task, and warns of those who run it as well. Of two that get it at the same time, at least the
    /// second sees the first.
    pub(super) fn add_task(&mut self, task_id: &TaskId) {
        if self.tasks.contains(task_id) {
            return;
        }
        self.tasks.push_back(task_id.clone());
        if self.tasks.len() > TASKS_MAX {
            self.tasks.pop_front();
        }
        self.write();
        for neighbour in neighbours() {
            if neighbour.tasks.contains(&task_id.0) && self.told.insert(neighbour.pid) {
                tracing::warn!(
                    pid = neighbour.pid, %task_id, addresses = ?neighbour.addresses,
                    "another profilerd of this host runs the same task: it reports to the same OAP by another address, \
                     every request is profiled twice, and takes two of the task's places. Stop one of the two"
                );
            }
        }
    }

    fn write(&self) {
        let Some(file) = &self.file else {
            return;
        };
        let text = self.text();
        let written = file.write_all_at(text.as_bytes(), 0);
        if let Err(error) = written.and_then(|()| file.set_len(text.len() as u64)) {
            tracing::debug!(%error, "no other daemon will see this one");
        }
    }

    fn text(&self) -> String {
        let tasks = self.tasks.iter().map(|task_id| format!("{TASK}{task_id}"));
        let lines = self.addresses.iter().cloned().chain(tasks);
        lines.collect::<Vec<_>>().join("\n")
    }

    fn tell_start(&mut self, neighbour: &Neighbour) {
        let pid = neighbour.pid;
        let ours = &self.addresses;
        let shared = neighbour.shared(ours).map(str::to_owned);
        match shared.or_else(|| neighbour.shared_resolved(ours)) {
            Some(address) => {
                self.told.insert(pid);
                tracing::warn!(
                    pid,
                    "another profilerd of this host reports to {address} as well: every request is profiled \
                     twice, and takes two of its task's places. Stop one of the two; they may be a package and a \
                     container"
                );
            }
            None => tracing::info!(
                pid,
                addresses = ?neighbour.addresses,
                "another profilerd of this host reports elsewhere; if that is the same OAP by another address, a \
                 warning comes with the first task that both run"
            ),
        }
    }
}

impl Neighbour {
    /// An address that both of us report to.
    fn shared<'a>(&self, ours: &'a [String]) -> Option<&'a str> {
        let is_same = |our: &str, their: &str| match (place(our), place(their)) {
            (Some((Host::This, our)), Some((Host::This, their))) => {
                our == their && self.shares_network
            }
            (Some(our), Some(their)) => our == their,
            _ => false,
        };
        let theirs = &self.addresses;
        let shared = ours
            .iter()
            .find(|our| theirs.iter().any(|their| is_same(our, their)));
        shared.map(String::as_str)
    }
}

impl Neighbour {
    /// From what its mark says.
    fn new(pid: u32, text: &str, shares_network: bool) -> Self {
        let (tasks, addresses): (Vec<&str>, Vec<&str>) =
            text.lines().partition(|line| line.starts_with(TASK));
        let tasks = tasks.into_iter().filter_map(|line| line.strip_prefix(TASK));
        Self {
            pid,
            addresses: addresses.into_iter().map(str::to_owned).collect(),
            tasks: tasks.map(str::to_owned).collect(),
            shares_network,
        }
    }

    /// An address of ours that has an address of the network in common with one of theirs.
    fn shared_resolved(&self, ours: &[String]) -> Option<String> {
        let theirs = resolve(self.addresses.clone());
        let theirs: HashSet<SocketAddr> = theirs.into_iter().flat_map(|(_, found)| found).collect();
        let is_shared = |address: &SocketAddr| {
            let is_local = address.ip().is_loopback() || address.ip().is_unspecified();
            theirs.contains(address) && (self.shares_network || !is_local)
        };
        let mut ours = resolve(ours.to_vec()).into_iter();
        ours.find(|(_, found)| found.iter().any(is_shared))
            .map(|(name, _)| name)
    }
}

/// What addresses with names stand for, as far as that is known in time.
fn resolve(addresses: Vec<String>) -> Vec<(String, Vec<SocketAddr>)> {
    let (sender, receiver) = mpsc::channel();
    let resolve = move || {
        for address in addresses {
            let found = address.to_socket_addrs();
            let found = found.map_or_else(|_| Vec::new(), Iterator::collect);
            if sender.send((address, found)).is_err() {
                return; // too late
            }
        }
    };
    // The resolver of the C library may take long, and cannot be told to stop.
    if let Err(error) = thread::Builder::new()
        .name("resolve-oap".to_owned())
        .spawn(resolve)
    {
        tracing::debug!(%error, "names of OAPs are not compared");
    }
    let end = std::time::Instant::now() + RESOLVE_DEADLINE;
    let left = || end.saturating_duration_since(std::time::Instant::now());
    std::iter::from_fn(|| receiver.recv_timeout(left()).ok()).collect()
}

/// The host of an address.
#[derive(Debug, PartialEq, Eq)]
enum Host {
    /// The loopback, or all addresses of a network namespace.
    This,
    Named(String),
}

fn place(address: &str) -> Option<(Host, &str)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
    let is_this = host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback() || address.is_unspecified());
    let host = if is_this {
        Host::This
    } else {
        Host::Named(host)
    };
    Some((host, port))
}

fn neighbours() -> Vec<Neighbour> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid: &u32| pid != std::process::id())
        .filter_map(neighbour)
        .collect()
}

/// What a process says of itself, if it is one of us. Another user's is not believed.
fn neighbour(pid: u32) -> Option<Neighbour> {
    let process = Path::new("/proc").join(pid.to_string());
    let name = fs::read_to_string(process.join("comm")).ok()?;
    let owner = fs::metadata(&process).ok()?.uid();
    if !name.starts_with(PROGRAM) || (owner != 0 && owner != nix::unistd::geteuid().as_raw()) {
        return None;
    }
    let wanted = format!("/memfd:{NAME} (deleted)");
    let descriptors = fs::read_dir(process.join("fd")).ok()?;
    let mark = descriptors
        .take(DESCRIPTORS_MAX)
        .flatten()
        .map(|entry| entry.path())
        .find(|path| fs::read_link(path).is_ok_and(|target| target.as_os_str() == &*wanted))?;
    let mut text = String::new();
    let file = File::open(mark).ok()?;
    file.take(TEXT_MAX_BYTES).read_to_string(&mut text).ok()?;
    let network = |process: &Path| fs::read_link(process.join("ns/net")).ok();
    let shares_network = network(&process) == network(Path::new("/proc/self"));
    Some(Neighbour::new(pid, &text, shares_network))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    /// Check which addresses are one OAP: by name and port, and those of the loopback in one network only.
    #[test]
    fn one_oap_has_one_address() {
        let shared = |theirs: &[&str], shares_network: bool, ours: &[&str]| {
            let neighbour = Neighbour::new(1, &theirs.join("\n"), shares_network);
            neighbour.shared(&texts(ours)).map(str::to_owned)
        };
        let found = shared(&["a:1", "OAP:11800"], false, &["b:1", "oap:11800"]);
        assert_eq!(found.as_deref(), Some("oap:11800"));
        assert_eq!(
            shared(&["oap:11800"], true, &["oap:11801", "oap2:11800"]),
            None
        );
        for local in [
            "127.0.0.1:11800",
            "localhost:11800",
            "[::1]:11800",
            "0.0.0.0:11800",
        ] {
            assert!(
                shared(&[local], true, &["127.0.0.1:11800"]).is_some(),
                "{local}"
            );
            assert_eq!(
                shared(&[local], false, &["127.0.0.1:11800"]),
                None,
                "{local}"
            );
            assert_eq!(shared(&[local], true, &["127.0.0.1:1"]), None, "{local}");
        }
        assert_eq!(shared(&[], true, &["oap:11800"]), None);
        assert_eq!(shared(&["garbage"], true, &["garbage"]), None);
    }

    /// Check that two names of one address are one OAP, and that a name that nobody knows is none.
    #[test]
    fn names_are_resolved() {
        let shared = |theirs: &str, shares_network: bool, ours: &str| {
            let neighbour = Neighbour::new(1, theirs, shares_network);
            neighbour.shared_resolved(&texts(&["nowhere.invalid:11800", ours]))
        };
        let found = shared("192.0.2.1:11800", false, "192.0.2.1:11800");
        assert_eq!(found.as_deref(), Some("192.0.2.1:11800"));
        let found = shared("localhost:11800", true, "127.0.0.1:11800");
        assert_eq!(found.as_deref(), Some("127.0.0.1:11800"));
        assert_eq!(shared("localhost:11800", false, "127.0.0.1:11800"), None);
        assert_eq!(shared("192.0.2.1:11801", true, "192.0.2.1:11800"), None);
        assert_eq!(
            shared("nowhere.invalid:11800", true, "192.0.2.1:11800"),
            None
        );
    }

    /// Check that a mark is seen from outside the process as long as it is kept.
    #[test]
    fn a_mark_is_seen_while_it_is_kept() {
        let seen = || {
            let fds = fs::read_dir("/proc/self/fd").unwrap().flatten();
            let targets = fds.filter_map(|entry| {
                let target = fs::read_link(entry.path()).ok()?;
                let is_mark = target.to_str()?.contains(NAME);
                // Other tests of this process make marks as well.
                let is_ours = is_mark && fs::read_to_string(entry.path()).ok()?.starts_with("a:1");
                is_ours.then(|| entry.path())
            });
            targets.collect::<Vec<_>>()
        };
        let mut mark = announce(&texts(&["a:1", "b:2"]));
        let [path] = &seen()[..] else {
            panic!("{:?}", seen())
        };
        assert_eq!(fs::read_to_string(path).unwrap(), "a:1\nb:2");
        for n in 0..=TASKS_MAX {
            mark.add_task(&TaskId(n.to_string()));
        }
        let text = fs::read_to_string(path).unwrap();
        let neighbour = Neighbour::new(1, &text, true);
        assert_eq!(neighbour.addresses, ["a:1", "b:2"]);
        let tasks = (1..=TASKS_MAX).map(|n| n.to_string());
        assert!(neighbour.tasks.into_iter().eq(tasks));
        drop(mark);
        assert_eq!(seen().len(), 0);
    }
}
