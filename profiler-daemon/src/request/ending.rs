//! How a request leaves the tracker: kept, with one of the task's places, or dropped and counted.

use std::ops::RangeInclusive;

use profiler_common::{EndReason, conn_flag};

use super::task::LiveTask;
use super::tracker::{Action, ConnView, RequestTracker};
use crate::model::{
    Counter, Coverage, FinishedRequest, Pid, ProcessKey, RequestId, Service, TaskSlot,
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
        // What was captured of a request whose thread died is kept; an answer that never came
        // otherwise means that nobody served the head.
        if !open.is_answered && !has_died {
            let why = if open.has_forked {
                Counter::RequestsByOtherProgram
            } else {
                Counter::RequestsUnanswered
            };
            return self.drop_open(id, why, actions);
        }
        let end_ktime_ns = if open.is_answered {
            open.last_write_ktime_ns
        } else {
            now
        };
        let task = self.tasks.get(&open.request.slot);
        let threshold_ns = task.map_or(0, LiveTask::threshold_ns);
        let period_ns = task.map_or(0, LiveTask::period_ns);
        let duration_ns = end_ktime_ns.saturating_sub(open.request.start_ktime_ns);
        // Its own part of it is over at once, and says nothing of how long it took.
        let is_left = reason == Some(EndReason::Exec) || (open.has_forked && !open.is_complete());
        if is_left && duration_ns < period_ns {
            return self.drop_open(id, Counter::RequestsByOtherProgram, actions);
        }
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
        if !open.is_answered {
            losses.bump(Counter::RequestsUnanswered);
        }
        actions.push(Action::Finish(Box::new(FinishedRequest {
            status: open.response.map(|response| response.status),
            request: open.request,
            end_ktime_ns,
            reason,
            outbound: open.outbound.into_context(),
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
        for id in self.ids(|open| open.request.slot == slot) {
            let Some(open) = self.open.get_mut(&id) else {
                continue;
            };
            if !open.is_answered {
                open.on_write(now_ktime_ns, 0);
                if let Some(task) = self.tasks.get_mut(&slot) {
                    task.coverage.bump(Counter::RequestsUnfinished);
                }
            }
            self.finish(id, now_ktime_ns, None, actions);
        }
        self.tasks.remove(&slot).map(|task| task.coverage)
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
            if let Some(conn) = conn {
                open.on_write(conn.last_write_ktime_ns, conn.written_bytes);
            }
            // Without a reason: the kernel side does not know of this end and is told.
            self.finish(id, ktime_ns, None, actions);
        }
    }
}
