//! One round of the capture thread: reads the rings and samples blocked threads, in the order in which data
//! would be lost.
//!
//! In:  rings of [`crate::kernel`], ticks
//! Out: [`Work`] to [`super::super::resolve`]
//! Lost: see [`super`]
//!
//! It has two halves, because what it looks at in between may never return ([`super::blocked`]).

use std::collections::HashMap;

use anyhow::Result;
use crossbeam_channel::TrySendError;

use super::blocked::{Look, Occasion, Seen};
use super::clock::{now_ktime_ns, wall_clock};
use super::targets::Changed;
use super::{Capture, Work, nanos};
use crate::kernel::Drained;
use crate::model::{Counter, Coverage, RawSample, RequestEvent, SampleKind, TaskSlot};
use crate::request::Action;
use crate::timeline::Grids;

/// The first half of a round, kept for the second.
#[derive(Default)]
pub(super) struct Round {
    actions: Vec<Action>,
    /// Of threads that ran.
    running: Vec<RawSample>,
    gone: Vec<Changed>,
    has_ticked: bool,
    /// Samples that the look between the halves may find, by task.
    samples: HashMap<TaskSlot, u64>,
}

impl Capture {
    /// Reads the request ring. Yields what is to be looked at before [`Self::end_round`], if a tick is due or near.
    pub(super) fn begin_round(&mut self) -> Result<Option<Look>> {
        let due = self.clock.due()?;
        if due.is_late {
            self.count_all(Counter::TicksLate, 1);
        }
        let (actions, gone) = self.take_requests();
        let is_ahead = self.ahead.has_fired() && due.ticks.is_empty();
        // Who ran at the tick, and who left its CPU right before it.
        let running = if due.ticks.is_empty() {
            Vec::new()
        } else {
            self.take_samples()
        };
        // Before anything that takes time: the ring keeps its samples, but a thread that waits for its CPU may
        // run again at any moment. For all ticks but the first we are too late. Still, a thread that has been blocked all
        // the time is known at each.
        let look = if is_ahead {
            self.look_at_threads(Occasion::Ahead, &[])
        } else if due.ticks.is_empty() {
            None
        } else {
            self.look_at_threads(Occasion::Ticks(due.ticks), &actions)
        };
        if is_ahead && look.is_none() {
            self.ahead.on_look(0);
        }
        if due.has_fired && look.is_none() {
            self.memory.sampler.end_ticks(now_ktime_ns());
        }
        self.round = Some(Round {
            actions,
            running,
            gone,
            has_ticked: due.has_fired,
            samples: look.as_ref().map(Look::samples).unwrap_or_default(),
        });
        Ok(look)
    }

    /// Passes on what a look has found and what is in the rings. Without what was asked for in the first half, its
    /// samples are lost.
    pub(super) fn end_round(&mut self, seen: Option<Seen>) {
        let Some(round) = self.round.take() else {
            return;
        };
        let Round {
            mut actions,
            mut running,
            mut gone,
            has_ticked,
            samples,
        } = round;
        let mut blocked = Vec::new();
        if let Some(seen) = seen {
            self.memory = seen.memory;
            self.ahead.on_look(seen.took_ns);
            blocked = seen.found;
            for (slot, losses) in seen.losses {
                self.add_losses(slot, &losses);
            }
        } else {
            for (slot, lost) in samples {
                let mut losses = Coverage::default();
                losses.add(Counter::SamplesHeldUp, lost);
                self.add_losses(slot, &losses);
            }
        }
        // Requests right before samples: a sample is of one that is known, and those of one that has ended are all
        // in the ring.
        let (more, more_gone) = self.take_requests();
        actions.extend(more);
        gone.extend(more_gone);
        running.extend(self.take_samples());
        let (mut finished, now): (Vec<_>, Vec<_>) = actions
            .into_iter()
            .partition(|action| matches!(action, Action::Finish(_)));
        self.act(now);
        self.send_samples(blocked, &mut finished);
        self.send_samples(running, &mut finished);
        // Behind the events: what follows a sleep that a tick has found is known by now.
        for sleep in self.memory.sampler.take_sleeps() {
            self.tracker
                .on_sleep(sleep.request, sleep.descriptors, sleep.since_ktime_ns);
        }
        self.act(finished);
        // Their last requests need what is known of them until here.
        self.forget(gone);
        if has_ticked {
            self.look_at_times();
        }
    }

    fn add_losses(&mut self, slot: TaskSlot, losses: &Coverage) {
        if let Some(coverage) = self.tracker.coverage_mut(slot) {
            coverage.merge(losses);
        }
    }

    /// What request events lead to, and the processes that are not what they were.
    fn take_requests(&mut self) -> (Vec<Action>, Vec<Changed>) {
        let (mut actions, mut gone) = (Vec::new(), Vec::new());
        let Some(kernel) = &mut self.kernel else {
            return (actions, gone);
        };
        let clock = wall_clock();
        let mut events = Vec::new();
        let mut bad = 0;
        kernel.drain_requests(|event| match event {
            Ok(event) => events.push(event),
            Err(error) => {
                tracing::debug!(%error, "bad request record");
                bad += 1;
            }
        });
        self.state.on_drained(Drained {
            sample_bytes: 0, // not read yet
            ..kernel.drained()
        });
        for event in events {
            if let RequestEvent::CloseRange {
                pid,
                first,
                last,
                ktime_ns,
            } = event
                && let Some(kernel) = &self.kernel
            {
                self.tracker
                    .on_close_range(pid, first..=last, ktime_ns, kernel, &mut actions);
            }
            gone.extend(self.on_process_event(&event, &mut actions));
            self.tracker.on_event(event, clock, &mut actions);
        }
        self.count_all(Counter::BadRecords, bad);
        (actions, gone)
    }

    fn take_samples(&mut self) -> Vec<RawSample> {
        let mut samples = Vec::new();
        let Some(kernel) = &mut self.kernel else {
            return samples;
        };
        let mut bad = 0;
        let sampler = &mut self.memory.sampler;
        kernel.drain_samples(|record| match record {
            Ok(record) => samples.extend(sampler.note(record)),
            Err(error) => {
                tracing::debug!(%error, "bad sample record");
                bad += 1;
            }
        });
        self.state.on_drained(kernel.drained());
        self.count_all(Counter::BadRecords, bad);
        samples
    }

    pub(super) fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Begin(request) => {
                    let asked = self.live.get(&request.slot).map(|live| live.period);
                    let asked_ns = asked.map_or(self.clock.grid().period_ns, nanos);
                    let grids = Grids::new(self.grid_of(request.slot), asked_ns);
                    self.send(Work::Begin(request, grids));
                }
                Action::Drop { id, tid } => {
                    self.memory.sampler.forget(tid, id);
                    self.kernel_do(|kernel| kernel.cancel(id));
                    self.send(Work::Drop(id));
                }
                Action::CountOnly { slot, on } => {
                    self.kernel_do(|kernel| kernel.set_count_only(slot, on));
                }
                Action::Finish(finished) => {
                    let (tid, id) = (finished.request.tid, finished.request.id);
                    self.memory.sampler.forget(tid, id);
                    if finished.reason.is_none() {
                        // The kernel side does not know yet that it is over.
                        self.kernel_do(|kernel| kernel.cancel(id));
                    }
                    self.send(Work::Finish(finished));
                }
            }
        }
    }

    /// Queues samples of open requests, and of those that are about to finish.
    pub(super) fn send_samples(&mut self, samples: Vec<RawSample>, finished: &mut [Action]) {
        for sample in samples {
            self.send_sample(sample, finished);
        }
    }

    fn send_sample(&mut self, sample: RawSample, finished: &mut [Action]) {
        let (tid, id) = (sample.tid, sample.request);
        let (is_end, has_stack) = match sample.kind {
            SampleKind::OnCpu(_) | SampleKind::OffCpu { .. } => (false, true),
            SampleKind::Unchanged => (false, false),
            SampleKind::Ended => (true, false),
        };
        if self.try_send(sample) || is_end {
            return; // without an end a duration is less exact, and no period is lost
        }
        if has_stack {
            // The next tick must not say "as before" of a stack that never arrived.
            self.memory.sampler.forget(tid, id);
        }
        let slot = self.tracker.open().find(|r| r.id == id).map(|r| r.slot);
        let of_open = slot.and_then(|slot| self.tracker.coverage_mut(slot));
        let losses = of_open.or_else(|| {
            finished.iter_mut().find_map(|action| match action {
                Action::Finish(over) if over.request.id == id => Some(&mut over.losses),
                _ => None,
            })
        });
        // Whoever asked for a request that was dropped meanwhile misses nothing.
        if let Some(losses) = losses {
            losses.bump(Counter::SamplesQueueFull);
        }
    }

    /// Queues a sample for the resolve thread; `false` if there is no room for it.
    fn try_send(&self, sample: RawSample) -> bool {
        if !self.waiting.try_add(&sample) {
            return false;
        }
        match self.work.try_send(Work::Sample(sample)) {
            Err(TrySendError::Full(Work::Sample(sample))) => {
                self.waiting.remove(&sample);
                false
            }
            // Without a resolve thread the daemon is leaving.
            Ok(()) | Err(_) => true,
        }
    }
}
