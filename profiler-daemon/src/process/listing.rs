//! The processes that a scan has found, for those who look for one.
//!
//! In:  scans of [`super::table`]
//! Out: [`Process`]es by id, service, instance
//! Lost: nothing
//!
//! A list is cheap to copy, and stays as it is while the next scan is under way.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::choice::Denial;
use super::entry::Process;
use super::identity::Identity;
use crate::model::{Pid, ProcessKey, Service};

/// The processes of the host at one moment, by id.
#[derive(Clone, Debug, Default)]
pub struct Processes(pub(super) BTreeMap<Pid, Arc<Process>>);

impl Processes {
    /// The process that has an id.
    #[must_use]
    pub fn get(&self, pid: Pid) -> Option<&Process> {
        self.0.get(&pid).map(|process| &**process)
    }

    /// A process, unless it is gone.
    #[must_use]
    pub fn find(&self, process: ProcessKey) -> Option<&Process> {
        self.get(process.pid).filter(|found| found.key == process)
    }

    /// All processes, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Process> {
        self.0.values().map(|process| &**process)
    }

    /// The processes of a service instance that may be profiled.
    pub fn processes_of(&self, service: &Service) -> impl Iterator<Item = &Process> {
        self.allowed()
            .filter(move |process| &process.identity.service == service)
    }

    /// The processes of all instances of a service that may be profiled.
    pub fn processes_of_name(&self, name: &str) -> impl Iterator<Item = &Process> {
        self.allowed()
            .filter(move |process| process.identity.service.name == name)
    }

    /// Why no process of a service may be profiled, if it has any.
    #[must_use]
    pub fn denial_of_name(&self, name: &str) -> Option<&Denial> {
        let mut processes = self.iter();
        processes.find_map(|process| {
            let is_its = process.identity.service.name == name;
            process.denial.as_ref().filter(|_| is_its)
        })
    }

    /// The instances worth reporting, each once, by the oldest id of its processes: of a server and its
    /// workers that is the server. One whose name may still become another waits.
    pub fn instances(&self) -> impl Iterator<Item = &Identity> {
        let mut seen = HashSet::new();
        self.serving()
            .filter(|process| process.is_settled())
            .map(|process| &process.identity)
            .filter(move |identity| seen.insert(&identity.service))
    }

    /// Processes whose agent has made up a name for the instance that is asked for.
    pub fn await_agent_instance(&self) -> impl Iterator<Item = &Process> {
        self.serving()
            .filter(|process| process.awaits_agent_instance())
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

    fn allowed(&self) -> impl Iterator<Item = &Process> {
        self.iter().filter(|process| process.denial.is_none())
    }

    fn serving(&self) -> impl Iterator<Item = &Process> {
        self.iter().filter(|process| process.may_serve())
    }
}
