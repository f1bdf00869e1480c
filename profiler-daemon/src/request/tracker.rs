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
use std::sync::Arc;

use profiler_common::{Conn, EndReason, conn_flag, event_flag};
use uuid::Uuid;

use super::endpoint::Endpoint;
use super::event_loop::Loops;
use super::open::OpenRequest;
use super::sw8;
use super::task::LiveTask;
use super::template::Templates;
use crate::model::{
    ActiveRequest, Counter, Coverage, FinishedRequest, LeftOut, Pid, ProcessKey, ProfileTask,
    RequestEvent, RequestId, Service, TaskSlot, Tid, WallClock,
};
use crate::process::wait_set::{WaitSet, Waits};

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

/// An action for the owner of kernel and sampler.
#[derive(Debug)]
pub enum Action {
    /// Sample this request from now on.
    Begin(Box<ActiveRequest>),
    /// It is not to be profiled: remove the tag, forget its samples.
    Drop {
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

    /// Whether a thread's descriptor is the socket with this inode; true if that cannot be found out.
    fn is_socket(&self, pid: Pid, tid: Tid, fd: i32, inode: u64) -> bool;

    /// Whose descriptors are in a set that the thread which serves a request waits for.
    fn waits(&self, request: &ActiveRequest, set: &WaitSet) -> Waits;
}

/// The state machine over all tasks and open requests.
#[derive(Debug, Default)]
pub struct RequestTracker {
    pub(super) tasks: HashMap<TaskSlot, LiveTask>,
    pub(super) open: HashMap<RequestId, OpenRequest>,
    pub(super) loops: Loops,
    limits: TrackerLimits,
    templates: Arc<Templates>,
}

/// The fixed part of a start event.
struct Start {
    id: RequestId,
    slot: TaskSlot,
    pid: Pid,
    tid: Tid,
    fd: i32,
    ktime_ns: u64,
    flags: u32,
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

    /// Names endpoints by these templates.
    #[must_use]
    pub fn with_templates(self, templates: Arc<Templates>) -> Self {
        Self { templates, ..self }
    }

    /// Has other limits from now on; requests that are open stay.
    pub fn set_limits(&mut self, limits: TrackerLimits) {
        self.limits = limits;
    }

    /// Puts a task into a slot. Its processes follow by [`Self::add_target`].
    pub fn add_task(&mut self, slot: TaskSlot, task: ProfileTask, endpoint: Endpoint) {
        self.tasks.insert(slot, LiveTask::new(task, endpoint));
    }

    /// Adds a process that serves the task, under the instance it reports as.
    pub fn add_target(&mut self, slot: TaskSlot, process: ProcessKey, service: Service) {
        if let Some(task) = self.tasks.get_mut(&slot) {
            task.add_target(process, service);
        }
    }

    /// The child of a process serves the same tasks, under the same instances. Returns their slots.
    pub fn add_child(&mut self, parent: ProcessKey, child: ProcessKey) -> Vec<TaskSlot> {
        let mut slots = Vec::new();
        for (&slot, task) in &mut self.tasks {
            let target = task.target(parent.pid).cloned();
            if let Some(target) = target.filter(|target| target.process == parent) {
                task.add_target(child, target.service);
                slots.push(slot);
            }
        }
        slots
    }

    /// A thread has forked: the child may answer what the thread has read.
    pub fn on_fork(&mut self, process: ProcessKey, tid: Tid) {
        let open = self.open.values_mut();
        for open in open.filter(|it| it.request.process == process && it.request.tid == tid) {
            open.has_forked = true;
        }
    }

    /// A process has ended, or is not watched any more. Its requests have been ended before.
    pub fn remove_target(&mut self, process: ProcessKey) {
        self.loops.forget(process);
        for task in self.tasks.values_mut() {
            task.remove_target(process);
        }
    }

    /// Notes places of an instance that were taken before the tracker knew of the task.
    pub fn use_places(&mut self, slot: TaskSlot, service: Service, count: u32) {
        if let Some(task) = self.tasks.get_mut(&slot) {
            task.use_places(service, count);
        }
    }

    /// All open requests: their threads are to be sampled.
    pub fn open(&self) -> impl Iterator<Item = &ActiveRequest> {
        self.open.values().map(|open| &open.request)
    }

    /// When the oldest of the open requests began, `None` if none is open.
    #[must_use]
    pub fn oldest_start_ktime_ns(&self) -> Option<u64> {
        self.open().map(|request| request.start_ktime_ns).min()
    }

    /// Open requests of all tasks.
    #[must_use]
    pub fn open_total(&self) -> usize {
        self.open.len()
    }

    /// Open requests of a task.
    #[must_use]
    pub fn open_count(&self, slot: TaskSlot) -> usize {
        self.open().filter(|request| request.slot == slot).count()
    }

    /// The coverage of a task so far, to which other stages add.
    pub fn coverage_mut(&mut self, slot: TaskSlot) -> Option<&mut Coverage> {
        self.tasks.get_mut(&slot).map(|task| &mut task.coverage)
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
                let start = Start {
                    id,
                    slot,
                    pid,
                    tid,
                    fd,
                    ktime_ns: start_ktime_ns,
                    flags,
                };
                self.on_start(&start, &head, clock, actions);
            }
            RequestEvent::Outbound { id, head } => {
                if let Some(open) = self.open.get_mut(&id) {
                    open.outbound.on_call(&head);
                }
            }
            RequestEvent::FirstWrite {
                id,
                ktime_ns,
                written_bytes,
                flags,
                head,
                wait_fd,
                ..
            } => {
                if let Some(open) = self.open.get_mut(&id) {
                    open.on_wait(wait_fd.map(WaitSet::Epoll));
                    open.on_response(&head, written_bytes);
                }
                self.on_response(id, ktime_ns, written_bytes, flags, actions);
            }
            RequestEvent::MoreResponse {
                id,
                ktime_ns,
                written_bytes,
                flags,
                bytes,
            } => {
                if let Some(open) = self.open.get_mut(&id) {
                    open.on_response(&bytes, written_bytes);
                }
                self.on_response(id, ktime_ns, written_bytes, flags, actions);
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
                let has_last_chunk = flags & event_flag::LAST_CHUNK != 0;
                open.on_write(last_write_ktime_ns, written_bytes, has_last_chunk);
                if flags & event_flag::OTHER_THREAD != 0 {
                    self.drop_open(id, Counter::RequestsHandedOff, actions);
                } else {
                    self.end(id, ktime_ns, Some(reason), actions);
                }
            }
            RequestEvent::CloseRange { .. }
            | RequestEvent::Fork { .. }
            | RequestEvent::Exec { .. }
            | RequestEvent::Exit { .. } => {}
        }
    }

    /// The thread of a request was found asleep in `poll` or `select`, since an instant (`CLOCK_MONOTONIC`).
    pub fn on_sleep(&mut self, id: RequestId, descriptors: Vec<i32>, since_ktime_ns: u64) {
        if let Some(open) = self.open.get_mut(&id) {
            open.on_sleep(WaitSet::Descriptors(descriptors), since_ktime_ns);
        }
    }

    /// Bytes of a response were written.
    fn on_response(
        &mut self,
        id: RequestId,
        ktime_ns: u64,
        written_bytes: u64,
        flags: u32,
        actions: &mut Vec<Action>,
    ) {
        let Some(open) = self.open.get_mut(&id) else {
            return;
        };
        open.on_write(ktime_ns, written_bytes, flags & event_flag::LAST_CHUNK != 0);
        if flags & event_flag::OTHER_THREAD != 0 {
            self.drop_open(id, Counter::RequestsHandedOff, actions);
        } else if open.is_followed && !open.answer.has_length() {
            // Where its response ends and the next one begins is unknown.
            self.drop_open(id, Counter::RequestsInterleaved, actions);
        } else if open.answer.is_over(ktime_ns) {
            self.end(id, ktime_ns, None, actions);
        }
    }

    /// Finishes a request, now or with the next look if it may turn out to be a loop's.
    fn end(
        &mut self,
        id: RequestId,
        ktime_ns: u64,
        reason: Option<EndReason>,
        actions: &mut Vec<Action>,
    ) {
        match self.open.get_mut(&id) {
            Some(open) if open.wait.is_some() => open.ended = Some((ktime_ns, reason)),
            _ => self.finish(id, ktime_ns, reason, actions),
        }
    }

    fn on_start(
        &mut self,
        start: &Start,
        head: &[u8],
        clock: WallClock,
        actions: &mut Vec<Action>,
    ) {
        let is_interleaved =
            start.flags & event_flag::INTERLEAVED != 0 && self.drop_mixed_up(start, actions);
        let open_now = self.open.len();
        let refused = Action::Drop {
            id: start.id,
            tid: start.tid,
        };
        let Some(task) = self.tasks.get_mut(&start.slot) else {
            actions.push(refused);
            return;
        };
        let admitted = task.admit(start.pid, head).and_then(|(head, target)| {
            task.coverage.bump(Counter::RequestsMatched);
            // The kernel side sees one head in a read.
            let followers = head.followers as u64;
            task.coverage.add(Counter::PipelinedHeads, followers);
            if self.loops.has(target.process, start.tid) {
                task.refuse_loop(target.process, self.loops.text(target.process));
                Err(Counter::RequestsOnLoop)
            } else if is_interleaved {
                Err(Counter::RequestsInterleaved)
            } else if !task.has_place(&target.service) {
                Err(Counter::RequestsOverLimit)
            } else if open_now >= self.limits.max_open_requests {
                Err(Counter::RequestsOverOpenLimit)
            } else {
                Ok((head, target))
            }
        });
        let (head, target) = match admitted {
            Ok(admitted) => admitted,
            Err(why) => {
                task.coverage.bump(why);
                actions.push(refused);
                return;
            }
        };
        let service = &target.service.name;
        let endpoint = self.templates.name_of(&task.endpoint, service, &head);
        let request = ActiveRequest {
            id: start.id,
            slot: start.slot,
            task_id: task.task.task_id.clone(),
            process: target.process,
            service: target.service,
            tid: start.tid,
            fd: start.fd,
            start_ktime_ns: start.ktime_ns,
            clock,
            endpoint,
            path: head.path().to_owned(),
            method: head.method,
            host: head.host,
            segment_id: Uuid::new_v4().simple().to_string(),
            sw8: head.sw8.as_deref().and_then(sw8::parse),
        };
        let counts_at_once = task.threshold_ns() == 0;
        actions.push(Action::Begin(Box::new(request.clone())));
        let mut open = OpenRequest::new(request);
        open.is_followed = head.followers > 0;
        self.open.insert(start.id, open);
        if counts_at_once {
            self.count(start.id, actions);
        }
    }

    /// The thread of a new request carried the tag of another one. If that was answered in full
    /// before, nothing is mixed up; else neither can be told from the other. Returns whether one was
    /// dropped.
    fn drop_mixed_up(&mut self, start: &Start, actions: &mut Vec<Action>) -> bool {
        let ids = self.ids(|open| {
            open.request.tid == start.tid
                && open.request.process.pid == start.pid
                && !open.answer.is_complete()
        });
        for &id in &ids {
            self.drop_open(id, Counter::RequestsInterleaved, actions);
        }
        !ids.is_empty()
    }

    /// Looks at every open request: thresholds passed, responses complete, ends lost, closes
    /// that the kernel side does not see.
    pub fn on_tick(&mut self, now_ktime_ns: u64, conns: &impl ConnView, actions: &mut Vec<Action>) {
        for id in self.ids(|_| true) {
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
        let conn = open.conn(conns);
        if conn.is_some_and(|conn| conn.flags & conn_flag::HANDED_OFF != 0) {
            return self.drop_open(id, Counter::RequestsHandedOff, actions);
        }
        let is_lost = open.on_look(conn, now);
        if let Some(set) = &open.wait {
            let (process, tid) = (open.request.process, open.request.tid);
            let waits = || conns.waits(&open.request, set);
            match self.loops.judge(process, tid, set, now, waits) {
                Waits::ForItself => open.on_own_wait(),
                Waits::ForOthers | Waits::ForWorkers => {
                    return self.drop_loop(process, tid, actions);
                }
            }
        }
        if let Some((ended, reason)) = open.ended {
            return self.finish(id, ended, reason, actions);
        }
        let is_closed = conn.is_some_and(|conn| {
            let ActiveRequest {
                process, tid, fd, ..
            } = open.request;
            open.is_descriptor_due(&conn, now) && !conns.is_socket(process.pid, tid, fd, conn.inode)
        });
        if is_lost || is_closed || open.answer.is_over(now) {
            return self.finish(id, now, None, actions);
        }
        let Some(task) = self.tasks.get(&open.request.slot) else {
            return;
        };
        let elapsed_ns = now.saturating_sub(open.request.start_ktime_ns);
        if !open.is_counted && elapsed_ns > task.threshold_ns() {
            self.count(id, actions);
        }
    }

    /// A thread has turned out to be an event loop: nothing of it is reported.
    fn drop_loop(&mut self, process: ProcessKey, tid: Tid, actions: &mut Vec<Action>) {
        let text = self.loops.text(process);
        let serves = |task: &LiveTask| {
            task.target(process.pid)
                .is_some_and(|target| target.process == process)
        };
        for task in self.tasks.values_mut().filter(|task| serves(task)) {
            task.refuse_loop(process, text.clone());
        }
        for id in self.ids(|open| (open.request.process, open.request.tid) == (process, tid)) {
            self.drop_open(id, Counter::RequestsOnLoop, actions);
        }
    }

    /// A process is watched no more: its requests are dropped, and its tasks told why.
    pub fn leave_out(&mut self, process: ProcessKey, why: &LeftOut, actions: &mut Vec<Action>) {
        let (processes, requests, text) = match why {
            LeftOut::Unreadable(text) => (
                Counter::ProcessesUnreadable,
                Counter::RequestsUnreadable,
                text,
            ),
            LeftOut::Denied(text) => (Counter::ProcessesDenied, Counter::RequestsDenied, text),
        };
        let serves = |task: &LiveTask| {
            task.target(process.pid)
                .is_some_and(|target| target.process == process)
        };
        for task in self.tasks.values_mut().filter(|task| serves(task)) {
            task.coverage.bump(processes);
            task.coverage.note(text.as_str());
        }
        for id in self.ids(|open| open.request.process == process) {
            self.drop_open(id, requests, actions);
        }
    }

    pub(super) fn ids(&self, wanted: impl Fn(&OpenRequest) -> bool) -> Vec<RequestId> {
        let open = self.open.values().filter(|open| wanted(open));
        open.map(|open| open.request.id).collect()
    }
}

#[cfg(test)]
#[path = "tracker_tests.rs"]
mod tests;
