//! Tells which processes descend from one.
//!
//! In:  [`ProcessTable`], `/proc/PID/stat`
//! Out: [`Family::update`]: the processes of the table that are the first one or descend from it
//! Lost: a process whose parent ended before it was looked at: the kernel has given it another parent
//!
//! A process that was a member stays one when its parent ends. One that was none never becomes one, so
//! each process is asked for its parent once.

use std::collections::HashSet;

use super::procfs::Procfs;
use super::table::ProcessTable;
use crate::model::{Pid, ProcessKey};

/// A process and its descendants.
#[derive(Debug)]
pub struct Family {
    procfs: Procfs,
    first: ProcessKey,
    members: HashSet<ProcessKey>,
    others: HashSet<ProcessKey>,
}

impl Family {
    /// The family of a process.
    #[must_use]
    pub fn of(first: ProcessKey) -> Self {
        Self {
            procfs: Procfs::default(),
            first,
            members: HashSet::new(),
            others: HashSet::new(),
        }
    }

    /// The process that all of them descend from.
    #[must_use]
    pub fn first(&self) -> ProcessKey {
        self.first
    }

    /// The members among the processes of the table that may be profiled, by id.
    pub fn update(&mut self, table: &ProcessTable) -> Vec<ProcessKey> {
        let present: HashSet<ProcessKey> = table.iter().map(|process| process.key).collect();
        self.members.retain(|member| present.contains(member));
        self.others.retain(|other| present.contains(other));
        let is_new = |it: &ProcessKey| !self.members.contains(it) && !self.others.contains(it);
        let mut asked: Vec<(ProcessKey, Pid)> = present
            .iter()
            .copied()
            .filter(is_new)
            .filter_map(|key| Some((key, self.procfs.parent(key.pid).ok()?)))
            .collect();
        // A parent may be as new as its child.
        loop {
            let members: HashSet<Pid> = self.members.iter().map(|member| member.pid).collect();
            let is_member = |&(process, parent): &(ProcessKey, Pid)| {
                process == self.first || members.contains(&parent)
            };
            let (found, left): (Vec<_>, Vec<_>) = asked.into_iter().partition(is_member);
            asked = left;
            if found.is_empty() {
                break;
            }
            self.members.extend(found.into_iter().map(|(key, _)| key));
        }
        self.others.extend(asked.into_iter().map(|(key, _)| key));
        let may_be_profiled =
            |it: &ProcessKey| table.find(*it).is_none_or(|it| it.denial.is_none());
        let members = self.members.iter().copied();
        let mut members: Vec<ProcessKey> = members.filter(may_be_profiled).collect();
        members.sort_unstable();
        members
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    /// Check that children and their children are members, that one stays a member after its parent has
    /// ended, and that other processes are none.
    #[test]
    fn a_family_has_all_generations() {
        let script = "sh -c 'sleep 60 & echo $!; wait' & echo $!; wait";
        let mut first = Command::new("sh")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(first.stdout.take().unwrap());
        let key = |pid: u32| Procfs::default().key(Pid(pid)).unwrap();
        let mut started: Vec<ProcessKey> = output
            .lines()
            .take(2)
            .map(|line| key(line.unwrap().parse().unwrap()))
            .collect();
        let kill = |process: ProcessKey| {
            let pid = nix::unistd::Pid::from_raw(process.pid.0.cast_signed());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        };
        let mut table = ProcessTable::new(Vec::new());
        let first_key = key(first.id());
        let mut family = Family::of(first_key);
        table.scan().unwrap();
        let mut all = started.clone();
        all.push(first_key);
        all.sort_unstable();
        assert_eq!(family.update(&table), all);
        assert_eq!(family.update(&table), all);

        kill(first_key);
        first.wait().unwrap();
        table.scan().unwrap();
        started.sort_unstable();
        assert_eq!(family.update(&table), started);
        started.into_iter().for_each(kill);
    }
}
