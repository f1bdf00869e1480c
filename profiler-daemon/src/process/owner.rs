//! Keeps processes of one user out of the services of others.
//!
//! In:  processes with the names that they are known by, which a process can choose for itself
//! Out: the same names for those that belong together; to the others their own, `shop (uid 1001)`
//! Lost: nothing
//!
//! # What belongs together
//! Processes of one name are one service if they have the same user, unit, container or workload, or if one has started
//! the other from the same executable, also by way of others. So a master that runs as root and its workers that do not
//! are one service, wherever they run.
//!
//! # Whose name it is
//! If several have the name, it is theirs who run in a system unit, a container or a pod, which only root can set up;
//! then root's, then that of a system user, then that of the user with the lowest id. Who was there first does not
//! matter: an impostor would only have to wait for a restart.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::cgroup::Container;
use super::entry::Process;
use crate::model::Pid;
use crate::model::name::{SERVICE_MAX, marked};

/// First id of an ordinary user: `UID_MIN` of login.defs on all distributions.
const ORDINARY_FIRST: u32 = 1000;
/// Stands for a user who is not known: the process has just ended, or we may not look.
const UNKNOWN: u32 = u32::MAX;

/// Gives each process the name of the service that it belongs to; returns those whose name has changed.
pub(super) fn separate(processes: &mut BTreeMap<Pid, Arc<Process>>) -> Vec<Pid> {
    let names = own_names(processes);
    let mut changed = Vec::new();
    for (pid, process) in processes {
        let plain = plain_name(process);
        let (name, claimed) = match names.get(pid) {
            Some(own) => (own.as_str(), Some(plain)),
            None => (plain, None),
        };
        let identity = &process.identity;
        if identity.service.name == name && identity.claimed.as_deref() == claimed {
            continue; // nearly all, and not copied
        }
        if identity.service.name != name {
            changed.push(*pid);
        }
        let (name, claimed) = (name.to_owned(), claimed.map(str::to_owned));
        let identity = &mut Arc::make_mut(process).identity;
        identity.service.name = name;
        identity.claimed = claimed;
    }
    changed
}

/// Names of those that cannot have the one that they are known by.
fn own_names(processes: &BTreeMap<Pid, Arc<Process>>) -> HashMap<Pid, String> {
    let mut by_name: HashMap<&str, Vec<&Process>> = HashMap::new();
    for process in processes.values() {
        by_name
            .entry(plain_name(process))
            .or_default()
            .push(process);
    }
    let mut names = HashMap::new();
    for (name, same) in by_name {
        let is_of_others = |uid| marked_uid(name).is_some_and(|marked| marked != uid);
        let first = user(same[0]);
        if same.iter().all(|process| user(process) == first) && !is_of_others(first) {
            continue; // nearly all
        }
        let mut groups = groups(&same);
        groups.sort_by_key(|group| group.rank);
        for (place, group) in groups.into_iter().enumerate() {
            let uid = group.rank.1;
            if place == 0 && !is_of_others(uid) {
                continue;
            }
            let mark = format!(" (uid {uid})");
            let own = marked(name, SERVICE_MAX, &mark);
            names.extend(group.pids.into_iter().map(|pid| (pid, own.clone())));
        }
    }
    names
}

/// The user in a name as this module makes them.
fn marked_uid(name: &str) -> Option<u32> {
    let (_, uid) = name.strip_suffix(')')?.rsplit_once(" (uid ")?;
    uid.parse().ok()
}

/// The name that a process is known by, whoever else has it.
fn plain_name(process: &Process) -> &str {
    let identity = &process.identity;
    identity.claimed.as_ref().unwrap_or(&identity.service.name)
}

fn user(process: &Process) -> u32 {
    process.uid.unwrap_or(UNKNOWN)
}

/// Processes that belong together.
struct Group {
    /// Lower comes first: the kind of owner, and the lowest id of a user.
    rank: (u8, u32),
    pids: Vec<Pid>,
}

/// What makes processes of one name one service.
#[derive(PartialEq, Eq, Hash)]
enum Bond<'p> {
    User(u32),
    Unit(&'p str),
    Container(&'p Container),
    Workload(&'p str, &'p str),
}

fn groups(same: &[&Process]) -> Vec<Group> {
    let places: HashMap<Pid, usize> = same.iter().map(|it| it.key.pid).zip(0..).collect();
    let mut sets = Sets((0..same.len()).collect());
    let mut bound: HashMap<Bond<'_>, usize> = HashMap::new();
    for (place, process) in same.iter().enumerate() {
        for bond in bonds(process) {
            let first = *bound.entry(bond).or_insert(place);
            sets.join(first, place);
        }
        let parent = places.get(&process.parent);
        let parent = parent.filter(|&&parent| is_same_program(process, same[parent]));
        if let Some(&parent) = parent {
            sets.join(parent, place);
        }
    }
    let mut groups: BTreeMap<usize, Group> = BTreeMap::new();
    for (place, process) in same.iter().enumerate() {
        let group = groups.entry(sets.of(place)).or_insert(Group {
            rank: (u8::MAX, UNKNOWN),
            pids: Vec::new(),
        });
        let (kind, uid) = (kind(process), user(process));
        group.rank = (group.rank.0.min(kind), group.rank.1.min(uid));
        group.pids.push(process.key.pid);
    }
    groups.into_values().collect()
}

fn bonds(process: &Process) -> impl Iterator<Item = Bond<'_>> {
    let cgroup = &process.cgroup;
    let pod = process.pod.as_deref();
    let container = cgroup.container.as_ref().filter(|_| !cgroup.is_users);
    [
        process.uid.map(Bond::User),
        cgroup.systemd_unit.as_deref().map(Bond::Unit),
        container.map(Bond::Container),
        pod.and_then(|pod| Some(Bond::Workload(&pod.namespace, pod.workload.as_deref()?))),
    ]
    .into_iter()
    .flatten()
}

fn is_same_program(one: &Process, other: &Process) -> bool {
    one.exe.is_some() && one.exe == other.exe
}

/// How much it takes to be such an owner, most first.
fn kind(process: &Process) -> u8 {
    let cgroup = &process.cgroup;
    let is_contained = cgroup.container.is_some() && !cgroup.is_users;
    match process.uid {
        _ if is_contained || cgroup.systemd_unit.is_some() || process.pod.is_some() => 0,
        Some(0) => 1,
        Some(uid) if uid < ORDINARY_FIRST => 2,
        _ => 3,
    }
}

/// Disjoint sets: each place leads to another of its set, the first one to itself.
struct Sets(Vec<usize>);

impl Sets {
    fn of(&mut self, place: usize) -> usize {
        let mut first = place;
        while self.0[first] != first {
            self.0[first] = self.0[self.0[first]];
            first = self.0[first];
        }
        first
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.of(one), self.of(other));
        self.0[one.max(other)] = one.min(other);
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::cgroup::Cgroup;
    use super::super::table::tests::process;
    use super::*;

    const UNIT: &str = "/system.slice/shop.service";

    /// A process called `shop`: its id, its parent's, its user, and its control group.
    fn shop(pid: u32, parent: u32, uid: u32, cgroup: &str) -> Process {
        let mut process = process(Pid(pid), "shop");
        process.parent = Pid(parent);
        process.uid = Some(uid);
        process.cgroup = Cgroup::parse(&format!("0::{cgroup}"));
        process.exe = Some(PathBuf::from("/usr/bin/python3"));
        process
    }

    fn separated(processes: impl IntoIterator<Item = Process>) -> Vec<String> {
        let keyed = processes.into_iter().map(|it| (it.key.pid, Arc::new(it)));
        let mut processes: BTreeMap<Pid, Arc<Process>> = keyed.collect();
        let changed = separate(&mut processes);
        let names: Vec<String> = processes
            .values()
            .map(|it| it.identity.service.name.clone())
            .collect();
        assert_eq!(
            changed.len(),
            names.iter().filter(|name| *name != "shop").count()
        );
        assert!(
            separate(&mut processes).is_empty(),
            "it changes nothing twice"
        );
        names
    }

    /// Check that processes of two users are two services, and whose the name is, whoever came first.
    #[test]
    fn users_have_services_of_their_own() {
        for (first, second, expected) in [
            (0, 1001, ["shop", "shop (uid 1001)"]),
            (1001, 0, ["shop (uid 1001)", "shop"]),
            (1001, 33, ["shop (uid 1001)", "shop"]),
            (1002, 1001, ["shop (uid 1002)", "shop"]),
            (1001, 1001, ["shop", "shop"]),
        ] {
            let processes = [shop(1, 0, first, "/"), shop(2, 0, second, "/")];
            assert_eq!(separated(processes), expected, "{first}, {second}");
        }
        // A unit comes before root.
        let processes = [shop(1, 0, 0, "/"), shop(2, 0, 33, UNIT)];
        assert_eq!(separated(processes), ["shop (uid 0)", "shop"]);
        let unknown = Process {
            uid: None,
            ..shop(2, 0, 0, "/")
        };
        assert_eq!(separated([shop(1, 0, 1001, "/"), unknown])[0], "shop");
    }

    /// Check that a master and workers of another user are one service: in a unit, in a container, and by descent
    /// through several generations of one program; and that a child with another program is not.
    #[test]
    fn a_master_and_its_workers_are_one() {
        let container = format!("/system.slice/docker-{}.scope", "a".repeat(64));
        for cgroup in [UNIT, &container] {
            let processes = [shop(1, 0, 0, cgroup), shop(2, 7, 33, cgroup)];
            assert_eq!(separated(processes), ["shop"; 2]);
        }
        let session = "/user.slice/user-0.slice/session-3.scope";
        let [master, broker, worker] = [(1, 0, 0), (2, 1, 33), (3, 2, 34)]
            .map(|(pid, parent, uid)| shop(pid, parent, uid, session));
        let stranger = shop(4, 0, 1001, session);
        let all = [master.clone(), broker, worker.clone(), stranger];
        assert_eq!(separated(all), ["shop", "shop", "shop", "shop (uid 1001)"]);
        let other = Process {
            parent: Pid(1),
            exe: Some("/tmp/shop".into()),
            ..worker
        };
        assert_eq!(separated([master, other]), ["shop", "shop (uid 34)"]);
    }

    /// Check that a user cannot join a container or a unit by a group of such a name, nor another user by the name that
    /// the other was given here.
    #[test]
    fn what_users_name_binds_nothing() {
        let id = "a".repeat(64);
        let own = "/user.slice/user-1001.slice/user@1001.service";
        let real = shop(1, 0, 33, &format!("/system.slice/docker-{id}.scope"));
        for forged in [
            format!("{own}/docker-{id}.scope"),
            format!("{own}/app.slice/shop.service"),
        ] {
            let processes = [real.clone(), shop(2, 0, 1001, &forged)];
            assert_eq!(
                separated(processes),
                ["shop", "shop (uid 1001)"],
                "{forged}"
            );
        }
        let mut posing = shop(3, 0, 1002, "/");
        posing.identity.service.name = "shop (uid 1001)".to_owned();
        let names = separated([shop(1, 0, 0, "/"), shop(2, 0, 1001, "/"), posing]);
        assert_eq!(names[2], "shop (uid 1001) (uid 1002)");
    }

    /// Check that a name is given back when the other process is gone, and that a name of full length gets its mark.
    #[test]
    fn a_name_is_given_back() {
        let mut processes: BTreeMap<Pid, Arc<Process>> = BTreeMap::new();
        for (pid, uid) in [(1, 0), (2, 1001)] {
            let mut process = shop(pid, 0, uid, "/");
            process.identity.service.name = "n".repeat(SERVICE_MAX);
            processes.insert(Pid(pid), Arc::new(process));
        }
        assert_eq!(separate(&mut processes), [Pid(2)]);
        let marked = processes[&Pid(2)].identity.service.name.clone();
        assert!(marked.ends_with(" (uid 1001)"), "{marked}");
        assert!(marked.encode_utf16().count() <= SERVICE_MAX);
        processes.remove(&Pid(1));
        assert_eq!(separate(&mut processes), [Pid(2)]);
        assert_eq!(processes[&Pid(2)].identity.claimed, None);
        assert_eq!(
            processes[&Pid(2)].identity.service.name,
            "n".repeat(SERVICE_MAX)
        );
    }
}
