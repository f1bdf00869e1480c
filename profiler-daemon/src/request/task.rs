//! A live task: which requests it wants, and how many more.

use std::collections::{HashMap, HashSet};

use super::endpoint::Endpoint;
use super::head::RequestHead;
use crate::model::{Counter, Coverage, Pid, ProcessKey, ProfileTask, Service};

/// A process that serves a task.
#[derive(Clone, Debug)]
pub(super) struct TargetProcess {
    pub(super) process: ProcessKey,
    /// The instance that it reports as.
    pub(super) service: Service,
}

/// A live task as the tracker sees it.
#[derive(Debug)]
pub(super) struct LiveTask {
    pub(super) task: ProfileTask,
    pub(super) endpoint: Endpoint,
    pub(super) coverage: Coverage,
    /// Places used, by service instance.
    used: HashMap<Service, u32>,
    /// By the id that events name them by.
    targets: HashMap<Pid, TargetProcess>,
    /// Processes that are event loops and are in the coverage as such.
    loops: HashSet<ProcessKey>,
    /// The kernel side sends no more requests.
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

    pub(super) fn add_target(&mut self, process: ProcessKey, service: Service) {
        self.used.entry(service.clone()).or_default();
        let target = TargetProcess { process, service };
        self.targets.insert(process.pid, target);
    }

    /// The process is gone. Its instance keeps the places that are used.
    pub(super) fn remove_target(&mut self, process: ProcessKey) {
        if self
            .target(process.pid)
            .is_some_and(|it| it.process == process)
        {
            self.targets.remove(&process.pid);
        }
    }

    pub(super) fn use_places(&mut self, service: Service, count: u32) {
        *self.used.entry(service).or_default() += count;
    }

    /// The process that has an id now, if it serves the task.
    pub(super) fn target(&self, pid: Pid) -> Option<&TargetProcess> {
        self.targets.get(&pid)
    }

    /// Tells, once, that a process is an event loop.
    pub(super) fn refuse_loop(&mut self, process: ProcessKey, text: String) {
        if self.loops.insert(process) {
            self.coverage.bump(Counter::ProcessesUnsupported);
            self.coverage.note(text);
        }
    }

    pub(super) fn period_ns(&self) -> u64 {
        u64::from(self.task.dump_period_ms) * 1_000_000
    }

    pub(super) fn threshold_ns(&self) -> u64 {
        u64::from(self.task.min_duration_threshold_ms) * 1_000_000
    }

    /// The head of a request that this task wants, and the process that serves it.
    ///
    /// # Errors
    ///
    /// The counter that says why not.
    pub(super) fn admit(
        &self,
        pid: Pid,
        head: &[u8],
    ) -> Result<(RequestHead, TargetProcess), Counter> {
        let head = RequestHead::parse(head).ok_or(Counter::HeadsMalformed)?;
        let matches = self
            .endpoint
            .matches(&head.method, &head.target, head.host.as_deref());
        match self.target(pid) {
            Some(target) if matches => Ok((head, target.clone())),
            Some(_) => Err(Counter::RequestsOtherEndpoint),
            None => Err(Counter::RequestsUnknownProcess),
        }
    }

    /// Whether an instance may have another request.
    pub(super) fn has_place(&self, service: &Service) -> bool {
        let used = self.used.get(service);
        used.is_some_and(|&used| used < self.task.max_sampling_count)
    }

    /// Takes a place. Returns whether that was the last one of all instances.
    pub(super) fn take_place(&mut self, service: &Service) -> bool {
        if let Some(used) = self.used.get_mut(service) {
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
