//! A live task: which requests it wants, and how many more.

use std::collections::{HashMap, HashSet};

use super::endpoint::Endpoint;
use super::head::RequestHead;
use crate::model::{Counter, Coverage, Pid, ProfileTask, Service};

/// A live task as the tracker sees it.
#[derive(Debug)]
pub(super) struct LiveTask {
    pub(super) task: ProfileTask,
    pub(super) endpoint: Endpoint,
    pub(super) coverage: Coverage,
    /// Places used, by service instance.
    used: HashMap<Service, u32>,
    targets: HashMap<Pid, Service>,
    /// Processes that are event loops, as far as the coverage tells.
    loops: HashSet<Pid>,
    /// The kernel side was told to ship no more requests.
    is_count_only: bool,
}

impl LiveTask {
    pub(super) fn new(task: ProfileTask, endpoint: Endpoint) -> Self {
        Self {
            task,
            endpoint,
            coverage: Coverage::default(),
            used: HashMap::new(),
            targets: HashMap::new(),
            loops: HashSet::new(),
            is_count_only: false,
        }
    }

    pub(super) fn add_target(&mut self, pid: Pid, service: Service) {
        self.used.entry(service.clone()).or_default();
        self.targets.insert(pid, service);
    }

    pub(super) fn use_places(&mut self, service: Service, count: u32) {
        *self.used.entry(service).or_default() += count;
    }

    pub(super) fn service_of(&self, pid: Pid) -> Option<&Service> {
        self.targets.get(&pid)
    }

    /// Tells, once, that a process is an event loop.
    pub(super) fn refuse_loop(&mut self, pid: Pid, text: String) {
        if self.loops.insert(pid) {
            self.coverage.bump(Counter::ProcessesUnsupported);
            self.coverage.note(text);
        }
    }

    pub(super) fn threshold_ns(&self) -> u64 {
        u64::from(self.task.min_duration_threshold_ms) * 1_000_000
    }

    /// The head of a request this task wants; counts why not.
    ///
    /// # Errors
    ///
    /// The counter that says why not.
    pub(super) fn admit(&self, pid: Pid, head: &[u8]) -> Result<RequestHead, Counter> {
        let head = RequestHead::parse(head).ok_or(Counter::HeadsMalformed)?;
        let matches = self
            .endpoint
            .matches(&head.method, &head.target, head.host.as_deref());
        if matches && self.targets.contains_key(&pid) {
            Ok(head)
        } else {
            Err(Counter::RequestsOtherEndpoint)
        }
    }

    /// Whether the process's instance may have another request.
    pub(super) fn has_place(&self, pid: Pid) -> bool {
        let used = self
            .targets
            .get(&pid)
            .and_then(|service| self.used.get(service));
        used.is_some_and(|&used| used < self.task.max_sampling_count)
    }

    /// Takes a place. Returns whether that was the last one of all instances.
    pub(super) fn take_place(&mut self, pid: Pid) -> bool {
        if let Some(used) = self
            .targets
            .get(&pid)
            .and_then(|service| self.used.get_mut(service))
        {
            *used += 1;
        }
        let max = self.task.max_sampling_count;
        let is_full = self.used.values().all(|&used| used >= max);
        is_full && !std::mem::replace(&mut self.is_count_only, true)
    }

    /// Gives a place back. Returns whether the kernel side has to ship requests again.
    pub(super) fn give_back(&mut self, service: &Service) -> bool {
        if let Some(used) = self.used.get_mut(service) {
            *used = used.saturating_sub(1);
        }
        std::mem::take(&mut self.is_count_only)
    }
}
