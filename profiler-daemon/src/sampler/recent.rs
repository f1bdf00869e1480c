//! What the kernel side has recorded around the latest ticks: who ran at one, and who left its CPU shortly before.
//!
//! Kept until the tick has been looked at. A thread has one switch-out here, the newest: only that one can have lasted
//! until the tick.

use std::collections::HashMap;

use profiler_common::{SWITCH_OUTS_AHEAD_NS, ThreadState};

use super::{Tick, Watched};
use crate::model::{RawSample, RequestId, SampleRecord, SwitchOut, Tid};

/// Most bytes of stacks that are kept; switch-outs beyond are left out, and their threads are read like others.
const STACKS_MAX_BYTES: usize = 16 * 1024 * 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Recent {
    outs: HashMap<Tid, SwitchOut>,
    stack_bytes: usize,
    /// When ticks have found threads running, `CLOCK_MONOTONIC`.
    ran: HashMap<(Tid, RequestId), Vec<u64>>,
}

impl Recent {
    /// Notes a record, until the tick has been looked at. Gives back what is a sample by itself.
    pub(super) fn note(&mut self, record: SampleRecord) -> Option<RawSample> {
        match record {
            SampleRecord::Tick(sample) => {
                let ran = self.ran.entry((sample.tid, sample.request)).or_default();
                ran.push(sample.ktime_ns);
                Some(sample)
            }
            SampleRecord::SwitchOut(out) => {
                self.keep(out);
                None
            }
        }
    }

    fn keep(&mut self, out: SwitchOut) {
        self.forget(out.tid, None);
        let bytes = stack_bytes(&out);
        if self.stack_bytes + bytes <= STACKS_MAX_BYTES {
            self.stack_bytes += bytes;
            self.outs.insert(out.tid, out);
        }
    }

    /// Whether the thread's CPU has captured it at the tick.
    pub(super) fn has_run(&self, watched: Watched, tick: Tick) -> bool {
        let of_tick = tick.first_ktime_ns..tick.last_ktime_ns.saturating_add(SWITCH_OUTS_AHEAD_NS);
        let ran = self.ran.get(&(watched.tid, watched.request));
        ran.is_some_and(|ran| ran.iter().any(|ktime_ns| of_tick.contains(ktime_ns)))
    }

    /// The switch-out that the thread was in at the tick, if it has run since.
    pub(super) fn take_left(
        &mut self,
        watched: Watched,
        tick: Tick,
        state: &ThreadState,
    ) -> Option<SwitchOut> {
        let out = self.outs.get(&watched.tid)?;
        let lasted =
            out.ktime_ns <= tick.last_ktime_ns && state.recorded_end_ktime_ns > tick.first_ktime_ns;
        let is_it = out.request == watched.request && out.seq == state.recorded_seq;
        if !(is_it && lasted) {
            return None;
        }
        let out = self.outs.remove(&watched.tid)?;
        self.stack_bytes -= stack_bytes(&out);
        Some(out)
    }

    /// Forgets what a thread did in this request, or in any.
    pub(super) fn forget(&mut self, tid: Tid, request: Option<RequestId>) {
        let is_it = |out: &SwitchOut| request.is_none_or(|request| out.request == request);
        if self.outs.get(&tid).is_some_and(is_it)
            && let Some(out) = self.outs.remove(&tid)
        {
            self.stack_bytes -= stack_bytes(&out);
        }
    }

    /// Forgets all that happened up to this instant: its ticks have been looked at.
    pub(super) fn forget_until(&mut self, ktime_ns: u64) {
        self.outs.retain(|_, out| out.ktime_ns > ktime_ns);
        self.stack_bytes = self.outs.values().map(stack_bytes).sum();
        let next_ktime_ns = ktime_ns.saturating_add(SWITCH_OUTS_AHEAD_NS);
        self.ran.retain(|_, ran| {
            ran.retain(|&ran_ktime_ns| ran_ktime_ns >= next_ktime_ns);
            !ran.is_empty()
        });
    }

    /// Bytes and number of switch-outs.
    #[cfg(test)]
    pub(super) fn kept(&self) -> (usize, usize) {
        (self.stack_bytes, self.outs.len())
    }
}

fn stack_bytes(out: &SwitchOut) -> usize {
    size_of::<SwitchOut>() + out.captured.stack.bytes.len()
}
