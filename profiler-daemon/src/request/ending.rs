//! How a request leaves the tracker: kept, with one of the task's places, or dropped and counted.

use std::ops::RangeInclusive;

use profiler_common::{Conn, EndReason, conn_flag};

use super::event_loop::Loops;
use super::task::LiveTask;
use super::tracker::{Action, ConnView, RequestTracker};
use crate::model::{
    Counter, Coverage, Cut, FinishedRequest, Pid, ProcessKey, RequestId, Service, TaskSlot,
};

impl RequestTracker {
    /// Takes one of the task's places for a request that passed the threshold, or drops it.
    pub(super) fn count(&mut self, id: RequestId, actions: &mut Vec<Action>) -> bool {
        let Some(open) = self.open.get_mut(&id) else {
            return false;
        };
        if open.is_counted {
            return true;
        }
        let (slot, service) = (open.request.slot, &open.request.service);
        let Some(task) = self.tasks.get_mut(&slot) else {
            return false;
        };
        if !task.has_place(service) {
            self.drop_open(id, Counter::RequestsOverLimit, actions);
            return false;
        }
        open.is_counted = true;
        if task.take_place(service) {
            actions.push(Action::CountOnly { slot, on: true });
        }
        true
    }

    /// Gives a place back: the request that held it left no snapshot.
    pub fn release_place(&mut self, slot: TaskSlot, service: &Service, actions: &mut Vec<Action>) {
        if self
            .tasks
            .get_mut(&slot)
            .is_some_and(|task| task.give_back(service))
        {
            actions.push(Action::CountOnly { slot, on: false });
        }
    }

    pub(super) fn drop_open(&mut self, id: RequestId, why: Counter, actions: &mut Vec<Action>) {
        let Some(open) = self.open.remove(&id) else {
            return;
        };
        let request = open.request;
        if let Some(task) = self.tasks.get_mut(&request.slot) {
            task.coverage.bump(why);
            if open.is_counted {
                self.release_place(request.slot, &request.service, actions);
            }
        }
        actions.push(Action::Drop {
            id,
            tid: request.tid,
        });
    }

    /// Ends a request that is over, or whose thread is.
    pub(super) fn finish(
        &mut self,
        id: RequestId,
        now: u64,
        reason: Option<EndReason>,
        actions: &mut Vec<Action>,
    ) {
        let Some(open) = self.open.get(&id) else {
            return;
        };
        let has_died = matches!(reason, Some(EndReason::ThreadExit | EndReason::Exec));
        // Samples of a request whose thread died are kept; otherwise a missing response means
        // that the head was not served.
        if !open.answer.has_begun && !has_died {
            let why = if open.has_forked {
                Counter::RequestsByOtherProgram
            } else {
                Counter::RequestsUnanswered
            };
            return self.drop_open(id, why, actions);
        }
        let end = if has_died && open.answer.is_owed_at_close() {
            End::cut(now, Cut::ThreadEnded)
        } else {
            End::at(open.answer.last_write_ktime_ns)
        };
        let task = self.tasks.get(&open.request.slot);
        let period_ns = task.map_or(0, LiveTask::period_ns);
        let duration_ns = end.ktime_ns.saturating_sub(open.request.start_ktime_ns);
        // Its own part of it is over at once, and says nothing of how long it took.
        let is_left =
            reason == Some(EndReason::Exec) || (open.has_forked && !open.answer.is_complete());
        if is_left && duration_ns < period_ns {
            return self.drop_open(id, Counter::RequestsByOtherProgram, actions);
        }
        self.close(id, end, reason, Counter::RequestsBelowThreshold, actions);
    }

    /// Keeps a request, or drops it if it did not pass the threshold.
    fn close(
        &mut self,
        id: RequestId,
        end: End,
        reason: Option<EndReason>,
        too_short: Counter,
        actions: &mut Vec<Action>,
    ) {
        let Some(open) = self.open.get(&id) else {
            return;
        };
        let task = self.tasks.get(&open.request.slot);
        let threshold_ns = task.map_or(0, LiveTask::threshold_ns);
        let duration_ns = end.ktime_ns.saturating_sub(open.request.start_ktime_ns);
        // A threshold of zero keeps every request, whatever the clock's resolution.
        if threshold_ns > 0 && duration_ns <= threshold_ns {
            return self.drop_open(id, too_short, actions);
        }
        if !self.count(id, actions) {
            return;
        }
        let Some(open) = self.open.remove(&id) else {
            return;
        };
        let mut losses = Coverage::default();
        if !open.answer.has_begun && end.cut == Some(Cut::ThreadEnded) {
            losses.bump(Counter::RequestsUnanswered);
        }
        if end.cut == Some(Cut::TaskEnded) {
            losses.bump(Counter::RequestsUnfinished);
        }
        let finished = FinishedRequest {
            status: open.answer.head.map(|response| response.status),
            request: open.request,
            end_ktime_ns: end.ktime_ns,
            cut: end.cut,
            reason,
            outbound: open.outbound.into_context(),
            losses,
        };
        actions.push(Action::Finish(Box::new(finished)));
    }

    /// Ends a task: its open requests are cut at `now` and kept if they passed the threshold. Of those whose
    /// response may be whole already the end is the last write, as ever.
    /// Returns what the tracker counted.
    pub fn end_task(
        &mut self,
        slot: TaskSlot,
        now_ktime_ns: u64,
        actions: &mut Vec<Action>,
    ) -> Option<Coverage> {
        for id in self.ids(|open| open.request.slot == slot) {
            if self.open.get(&id).is_some_and(|open| open.answer.is_owed()) {
                let end = End::cut(now_ktime_ns, Cut::TaskEnded);
                self.close(id, end, None, Counter::RequestsUnfinished, actions);
            } else {
                self.finish(id, now_ktime_ns, None, actions);
            }
        }
        let task = self.tasks.remove(&slot);
        if self.tasks.is_empty() {
            // The end of processes is not reported from now on.
            self.loops = Loops::default();
        }
        task.map(|task| task.coverage)
    }

    /// A process is gone: its open requests end now, with what was captured.
    pub fn on_process_gone(
        &mut self,
        process: ProcessKey,
        now_ktime_ns: u64,
        actions: &mut Vec<Action>,
    ) {
        for id in self.ids(|open| open.request.process == process) {
            self.finish(id, now_ktime_ns, Some(EndReason::ThreadExit), actions);
        }
        self.loops.forget(process);
    }

    /// A process closed a range of descriptors: the requests on them end. What is looked up is the process's open
    /// requests, of which there are few, however many connections it and the others have.
    pub fn on_close_range(
        &mut self,
        pid: Pid,
        descriptors: RangeInclusive<u32>,
        ktime_ns: u64,
        conns: &impl ConnView,
        actions: &mut Vec<Action>,
    ) {
        let closed = self.ids(|open| {
            open.request.process.pid == pid
                && descriptors.contains(&open.request.fd.cast_unsigned())
        });
        for id in closed {
            let Some(open) = self.open.get_mut(&id) else {
                continue;
            };
            let conn = open.conn(conns);
            if conn.is_some_and(|conn| conn.flags & conn_flag::HANDED_OFF != 0) {
                self.drop_open(id, Counter::RequestsHandedOff, actions);
                continue;
            }
            let tid = open.request.tid;
            let is_socket = |conn: Conn| {
                let fd = open.request.fd;
                conn.inode != 0 && conns.is_socket(pid, tid, fd, conn.inode)
            };
            if conn.is_some_and(is_socket) {
                continue; // of a connection that was given the descriptor after the close
            }
            if let Some(conn) = conn {
                open.on_conn(&conn);
            }
            // Without a reason: the kernel side does not know of this end, so it gets a message.
            self.finish(id, ktime_ns, None, actions);
        }
    }
}

/// When a request ends, or what is shown of it.
#[derive(Clone, Copy)]
struct End {
    ktime_ns: u64,
    cut: Option<Cut>,
}

impl End {
    fn at(ktime_ns: u64) -> Self {
        Self {
            ktime_ns,
            cut: None,
        }
    }

    fn cut(ktime_ns: u64, why: Cut) -> Self {
        Self {
            ktime_ns,
            cut: Some(why),
        }
    }
}
