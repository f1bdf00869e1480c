//! Follows requests from their head to their last byte, and decides which of them are profiled.
//!
//! ```text
//!  Start ──match──► open ──elapsed > threshold──► counted ──► finished
//!    │                │                              │
//!    └ other endpoint └ below threshold, handed off, └ (the task's number of requests is used up)
//!      : Cancel         interleaved, over limit: Drop
//! ```
//!
//! A request is sampled from its head on, so the time before the threshold is not blind; it takes one
//! of the task's `max_sampling_count` places only when it passes the threshold. The end is the time
//! of the last write, whatever event revealed it.

use std::collections::HashMap;

use profiler_common::{Conn, EndReason, conn_flag, event_flag};
use uuid::Uuid;

use super::endpoint::Endpoint;
use super::head::RequestHead;
use super::response::ResponseHead;
use super::sw8;
use crate::model::{
    ActiveRequest, Counter, Coverage, FinishedRequest, Pid, ProfileTask, RequestEvent, RequestId,
    Service, TaskId, TaskSlot, Tid, WallClock,
};

/// A response with no write for this long, whose length is unknown, is taken as complete.
const QUIET_END_NS: u64 = 10_000_000_000;
/// A response with no write for this long (or two dump periods) stops being sampled.
const QUIET_UNTAG_NS: u64 = 1_000_000_000;
/// How long an end may be missing after the connection's state is gone, before it is taken as lost.
const LOST_END_NS: u64 = 1_000_000_000;

/// Budgets of the tracker.
#[derive(Clone, Copy, Debug)]
pub struct TrackerLimits {
    /// Most matched requests open at once over all tasks.
    pub max_open_requests: usize,
}

impl Default for TrackerLimits {
    fn default() -> Self {
        // Each holds its samples in memory: 256 requests of one second at 10 ms are 25,600 stacks.
        Self {
            max_open_requests: 256,
        }
    }
}

/// What the owner of kernel and sampler has to do.
#[derive(Debug)]
pub enum Action {
    /// Sample this request from now on.
    Begin(Box<ActiveRequest>),
    /// It is not to be profiled: remove the tag, forget its samples.
    Drop {
        /// The request.
        id: RequestId,
        /// Process.
        pid: Pid,
        /// Thread that carries the tag.
        tid: Tid,
        /// Descriptor.
        fd: i32,
    },
    /// Its thread need not be sampled for now; the request may still go on.
    Untag {
        /// The request.
        id: RequestId,
        /// Thread that carries the tag.
        tid: Tid,
    },
    /// It is over and its samples are wanted.
    Finish(Box<FinishedRequest>),
    /// Every instance of the task has its number of requests (or one place is free again).
    CountOnly {
        /// Slot of the task.
        slot: TaskSlot,
        /// Stop shipping further requests.
        on: bool,
    },
}

/// Looks up the kernel's view of a connection.
pub trait ConnView {
    /// The connection behind a descriptor, if the kernel side knows it.
    fn conn(&self, pid: Pid, fd: i32) -> Option<Conn>;
}

/// A live task as the tracker sees it.
#[derive(Debug)]
struct Task {
    task: ProfileTask,
    endpoint: Endpoint,
    /// Places used, by service instance.
    used: HashMap<Service, u32>,
    targets: HashMap<Pid, Service>,
    count_only: bool,
    coverage: Coverage,
}

#[derive(Debug)]
struct Open {
    request: ActiveRequest,
    /// Holds one of the task's places.
    counted: bool,
    response: Option<ResponseHead>,
    wrote: bool,
    last_write_ktime_ns: u64,
    written_bytes: u64,
    untagged: bool,
    /// When the kernel's connection was first found to be gone.
    gone_since_ktime_ns: Option<u64>,
}

/// The state machine over all tasks and open requests.
#[derive(Debug, Default)]
pub struct RequestTracker {
    tasks: HashMap<TaskSlot, Task>,
    open: HashMap<RequestId, Open>,
    limits: TrackerLimits,
}

impl RequestTracker {
    /// A tracker without tasks.
    #[must_use]
    pub fn new(limits: TrackerLimits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Puts a task into a slot. Its processes follow by [`Self::add_target`].
    pub fn add_task(&mut self, slot: TaskSlot, task: ProfileTask, endpoint: Endpoint) {
        self.tasks.insert(
            slot,
            Task {
                task,
                endpoint,
                used: HashMap::new(),
                targets: HashMap::new(),
                count_only: false,
                coverage: Coverage::default(),
            },
        );
    }

    /// Adds a process that serves the task, under the instance it reports as.
    pub fn add_target(&mut self, slot: TaskSlot, pid: Pid, service: Service) {
        if let Some(task) = self.tasks.get_mut(&slot) {
            task.used.entry(service.clone()).or_default();
            task.targets.insert(pid, service);
        }
    }

    /// Takes a process out; its open requests go on until they end.
    pub fn remove_target(&mut self, slot: TaskSlot, pid: Pid) {
        if let Some(task) = self.tasks.get_mut(&slot) {
            task.targets.remove(&pid);
        }
    }

    /// The instance a process reports as.
    #[must_use]
    pub fn service_of(&self, slot: TaskSlot, pid: Pid) -> Option<&Service> {
        self.tasks.get(&slot)?.targets.get(&pid)
    }

    /// Threads to sample now: every open request that still carries its tag.
    pub fn sampled(&self) -> impl Iterator<Item = &ActiveRequest> {
        self.open
            .values()
            .filter(|open| !open.untagged)
            .map(|open| &open.request)
    }

    /// Open requests of a task.
    #[must_use]
    pub fn open_count(&self, slot: TaskSlot) -> usize {
        self.open
            .values()
            .filter(|open| open.request.slot == slot)
            .count()
    }

    /// The coverage of a task so far, to which other stages add.
    pub fn coverage_mut(&mut self, slot: TaskSlot) -> Option<&mut Coverage> {
        self.tasks.get_mut(&slot).map(|task| &mut task.coverage)
    }

    /// The task in a slot.
    #[must_use]
    pub fn task_id(&self, slot: TaskSlot) -> Option<&TaskId> {
        self.tasks.get(&slot).map(|task| &task.task.task_id)
    }

    /// Takes one event of the kernel side. Process events are not for the tracker.
    pub fn on_event(&mut self, event: RequestEvent, clock: WallClock, actions: &mut Vec<Action>) {
        match event {
            RequestEvent::Start {
                id,
                slot,
                pid,
                tid,
                fd,
                start_ktime_ns,
                flags,
                head,
            } => {
                let request = Head {
                    id,
                    slot,
                    pid,
                    tid,
                    fd,
                    start_ktime_ns,
                    flags,
                };
                self.on_start(&request, &head, clock, actions);
            }
            RequestEvent::FirstWrite {
                id,
                ktime_ns,
                written_bytes,
                flags,
                head,
                ..
            } => {
                let Some(open) = self.open.get_mut(&id) else {
                    return;
                };
                open.wrote = true;
                open.response = ResponseHead::parse(&head, &open.request.method);
                open.last_write_ktime_ns = ktime_ns;
                open.written_bytes = written_bytes;
                if flags & event_flag::OTHER_THREAD != 0 {
                    self.drop_open(id, Counter::RequestsHandedOff, actions);
                } else if self.open[&id].is_complete() {
                    self.finish(id, ktime_ns, None, actions);
                }
            }
            RequestEvent::End {
                id,
                ktime_ns,
                last_write_ktime_ns,
                written_bytes,
                flags,
                reason,
            } => {
                let Some(open) = self.open.get_mut(&id) else {
                    return;
                };
                open.wrote |= last_write_ktime_ns != 0;
                open.last_write_ktime_ns = open.last_write_ktime_ns.max(last_write_ktime_ns);
                open.written_bytes = open.written_bytes.max(written_bytes);
                if flags & event_flag::OTHER_THREAD != 0 {
                    self.drop_open(id, Counter::RequestsHandedOff, actions);
                } else {
                    self.finish(id, ktime_ns, Some(reason), actions);
                }
            }
            RequestEvent::Fork { .. } | RequestEvent::Exec { .. } | RequestEvent::Exit { .. } => {}
        }
    }

    fn on_start(&mut self, start: &Head, head: &[u8], clock: WallClock, actions: &mut Vec<Action>) {
        let drop = Action::Drop {
            id: start.id,
            pid: start.pid,
            tid: start.tid,
            fd: start.fd,
        };
        let open_now = self.open.len();
        let mut interleaved = false;
        if start.flags & event_flag::INTERLEAVED != 0 {
            // The thread's other request lost its tag to this one. If it was answered in full before,
            // nothing is mixed up; else neither can be told from the other.
            let others: Vec<RequestId> = self
                .open
                .values()
                .filter(|o| {
                    o.request.tid == start.tid && o.request.pid == start.pid && !o.is_complete()
                })
                .map(|o| o.request.id)
                .collect();
            interleaved = !others.is_empty();
            for id in others {
                self.drop_open(id, Counter::RequestsInterleaved, actions);
            }
        }
        let Some(task) = self.tasks.get_mut(&start.slot) else {
            actions.push(drop);
            return;
        };
        let refused = |task: &mut Task, counter| {
            task.coverage.bump(counter);
            Some(counter)
        };
        let parsed = RequestHead::parse(head);
        let refusal = match (&parsed, task.targets.get(&start.pid)) {
            (None, _) => refused(task, Counter::HeadsMalformed),
            (Some(head), _)
                if !task
                    .endpoint
                    .matches(&head.method, &head.target, head.host.as_deref()) =>
            {
                refused(task, Counter::RequestsOtherEndpoint)
            }
            (Some(_), None) => refused(task, Counter::RequestsOtherEndpoint),
            (Some(_), Some(service)) => {
                let free =
                    task.used.get(service).copied().unwrap_or(0) < task.task.max_sampling_count;
                task.coverage.bump(Counter::RequestsMatched);
                if interleaved {
                    refused(task, Counter::RequestsInterleaved)
                } else if !free {
                    refused(task, Counter::RequestsOverLimit)
                } else if open_now >= self.limits.max_open_requests {
                    refused(task, Counter::RequestsOverOpenLimit)
                } else {
                    None
                }
            }
        };
        let (Some(head), None) = (parsed, refusal) else {
            actions.push(drop);
            return;
        };
        let request = ActiveRequest {
            id: start.id,
            slot: start.slot,
            task_id: task.task.task_id.clone(),
            pid: start.pid,
            tid: start.tid,
            fd: start.fd,
            start_ktime_ns: start.start_ktime_ns,
            clock,
            endpoint: task.endpoint.as_str().to_owned(),
            path: head.path().to_owned(),
            method: head.method,
            host: head.host,
            segment_id: Uuid::new_v4().simple().to_string(),
            sw8: head.sw8.as_deref().and_then(sw8::parse),
        };
        actions.push(Action::Begin(Box::new(request.clone())));
        let open = Open {
            request,
            counted: false,
            response: None,
            wrote: false,
            last_write_ktime_ns: 0,
            written_bytes: 0,
            untagged: false,
            gone_since_ktime_ns: None,
        };
        self.open.insert(start.id, open);
        if self
            .tasks
            .get(&start.slot)
            .is_some_and(|t| t.task.min_duration_threshold_ms == 0)
        {
            self.count(start.id, actions);
        }
    }

    /// Looks at every open request: thresholds passed, responses complete or quiet, ends lost.
    pub fn on_tick(&mut self, now_ktime_ns: u64, conns: &impl ConnView, actions: &mut Vec<Action>) {
        let ids: Vec<RequestId> = self.open.keys().copied().collect();
        for id in ids {
            self.look_at(id, now_ktime_ns, conns, actions);
        }
    }

    fn look_at(
        &mut self,
        id: RequestId,
        now: u64,
        conns: &impl ConnView,
        actions: &mut Vec<Action>,
    ) {
        let Some(open) = self.open.get_mut(&id) else {
            return;
        };
        let conn = conns
            .conn(open.request.pid, open.request.fd)
            .filter(|conn| conn.request_id == id.0);
        match conn {
            Some(conn) => {
                open.gone_since_ktime_ns = None;
                open.wrote |= conn.last_write_ktime_ns != 0;
                open.last_write_ktime_ns = open.last_write_ktime_ns.max(conn.last_write_ktime_ns);
                open.written_bytes = open.written_bytes.max(conn.written_bytes);
                if conn.flags & conn_flag::HANDED_OFF != 0 {
                    return self.drop_open(id, Counter::RequestsHandedOff, actions);
                }
            }
            None => {
                let since = *open.gone_since_ktime_ns.get_or_insert(now);
                if now.saturating_sub(since) > LOST_END_NS {
                    return self.finish(id, now, None, actions);
                }
            }
        }
        let quiet_ns = now.saturating_sub(open.last_write_ktime_ns);
        let started = open.request.start_ktime_ns;
        let slot = open.request.slot;
        if open.is_complete() || (open.wrote && quiet_ns > QUIET_END_NS) {
            return self.finish(id, now, None, actions);
        }
        let Some(task) = self.tasks.get(&slot) else {
            return;
        };
        let period_ns = u64::from(task.task.dump_period_ms) * 1_000_000;
        let threshold_ns = u64::from(task.task.min_duration_threshold_ms) * 1_000_000;
        if open.wrote && !open.untagged && quiet_ns > QUIET_UNTAG_NS.max(2 * period_ns) {
            open.untagged = true;
            actions.push(Action::Untag {
                id,
                tid: open.request.tid,
            });
        }
        if !open.counted && now.saturating_sub(started) > threshold_ns {
            self.count(id, actions);
        }
    }

    /// Takes one of the task's places for a request that passed the threshold, or drops it.
    fn count(&mut self, id: RequestId, actions: &mut Vec<Action>) -> bool {
        let Some(open) = self.open.get_mut(&id) else {
            return false;
        };
        if open.counted {
            return true;
        }
        let Some(task) = self.tasks.get_mut(&open.request.slot) else {
            return false;
        };
        let max = task.task.max_sampling_count;
        let used = task
            .targets
            .get(&open.request.pid)
            .and_then(|service| task.used.get_mut(service));
        let Some(used) = used.filter(|used| **used < max) else {
            self.drop_open(id, Counter::RequestsOverLimit, actions);
            return false;
        };
        *used += 1;
        open.counted = true;
        if !task.count_only && task.used.values().all(|&used| used >= max) {
            task.count_only = true;
            actions.push(Action::CountOnly {
                slot: open.request.slot,
                on: true,
            });
        }
        true
    }

    /// Gives a place back: the request that held it left no snapshot.
    pub fn release_place(&mut self, slot: TaskSlot, service: &Service, actions: &mut Vec<Action>) {
        let Some(task) = self.tasks.get_mut(&slot) else {
            return;
        };
        if let Some(used) = task.used.get_mut(service) {
            *used = used.saturating_sub(1);
        }
        if task.count_only {
            task.count_only = false;
            actions.push(Action::CountOnly { slot, on: false });
        }
    }

    fn drop_open(&mut self, id: RequestId, why: Counter, actions: &mut Vec<Action>) {
        let Some(open) = self.open.remove(&id) else {
            return;
        };
        let request = open.request;
        if let Some(task) = self.tasks.get_mut(&request.slot) {
            task.coverage.bump(why);
        }
        if open.counted
            && let Some(service) = self.service_of(request.slot, request.pid).cloned()
        {
            self.release_place(request.slot, &service, actions);
        }
        actions.push(Action::Drop {
            id,
            pid: request.pid,
            tid: request.tid,
            fd: request.fd,
        });
    }

    fn finish(
        &mut self,
        id: RequestId,
        now: u64,
        reason: Option<EndReason>,
        actions: &mut Vec<Action>,
    ) {
        let Some(open) = self.open.get(&id) else {
            return;
        };
        let died = matches!(reason, Some(EndReason::ThreadExit | EndReason::Exec));
        // What was captured of a request whose thread died is kept; an answer that never came
        // otherwise means that nobody served the head.
        if !open.wrote && !died {
            return self.drop_open(id, Counter::RequestsUnanswered, actions);
        }
        let end_ktime_ns = if open.wrote {
            open.last_write_ktime_ns
        } else {
            now
        };
        let threshold_ns = self.tasks.get(&open.request.slot).map_or(0, |task| {
            u64::from(task.task.min_duration_threshold_ms) * 1_000_000
        });
        let duration_ns = end_ktime_ns.saturating_sub(open.request.start_ktime_ns);
        // A threshold of zero keeps every request, whatever the clock's resolution.
        if threshold_ns > 0 && duration_ns <= threshold_ns {
            return self.drop_open(id, Counter::RequestsBelowThreshold, actions);
        }
        if !self.count(id, actions) {
            return;
        }
        let Some(open) = self.open.remove(&id) else {
            return;
        };
        let mut losses = Coverage::default();
        if !open.wrote {
            losses.bump(Counter::RequestsUnanswered);
        }
        actions.push(Action::Untag {
            id,
            tid: open.request.tid,
        });
        actions.push(Action::Finish(Box::new(FinishedRequest {
            status: open.response.map(|response| response.status),
            request: open.request,
            end_ktime_ns,
            reason,
            losses,
        })));
    }

    /// Ends a task: its open requests are cut at `now` and kept if they passed the threshold.
    /// Returns what the tracker counted.
    pub fn end_task(
        &mut self,
        slot: TaskSlot,
        now_ktime_ns: u64,
        actions: &mut Vec<Action>,
    ) -> Option<Coverage> {
        let ids: Vec<RequestId> = self
            .open
            .values()
            .filter(|o| o.request.slot == slot)
            .map(|o| o.request.id)
            .collect();
        for id in ids {
            let Some(open) = self.open.get_mut(&id) else {
                continue;
            };
            let answered = open.wrote;
            if !answered {
                open.wrote = true;
                open.last_write_ktime_ns = now_ktime_ns;
                if let Some(task) = self.tasks.get_mut(&slot) {
                    task.coverage.bump(Counter::RequestsUnfinished);
                }
            }
            self.finish(id, now_ktime_ns, None, actions);
        }
        self.tasks.remove(&slot).map(|task| task.coverage)
    }

    /// A process is gone: its open requests end now, with what was captured.
    pub fn on_process_gone(&mut self, pid: Pid, now_ktime_ns: u64, actions: &mut Vec<Action>) {
        let ids: Vec<RequestId> = self
            .open
            .values()
            .filter(|o| o.request.pid == pid)
            .map(|o| o.request.id)
            .collect();
        for id in ids {
            self.finish(id, now_ktime_ns, Some(EndReason::ThreadExit), actions);
        }
    }
}

/// The fixed part of a start event.
struct Head {
    id: RequestId,
    slot: TaskSlot,
    pid: Pid,
    tid: Tid,
    fd: i32,
    start_ktime_ns: u64,
    flags: u32,
}

impl Open {
    /// All bytes of the response are written.
    fn is_complete(&self) -> bool {
        self.wrote
            && self
                .response
                .and_then(|response| response.total_bytes)
                .is_some_and(|total| self.written_bytes >= total)
    }
}

#[cfg(test)]
#[path = "tracker_tests.rs"]
mod tests;
