//! Turns ticks and stored registers into samples of threads that are not running.
//!
//! In:  tick + `THREAD_STATES` and switch-outs, written by `profiler-ebpf/src/sched_switch.rs`
//! Out: [`RawSample`] (off-CPU) to [`crate::unwind`]
//! Lost: thread kept running during every try, or was in a block at the tick that was neither read nor recorded and is
//!       over -> [`Counter::SamplesRaced`];
//!       the same of a thread that has blocked again: the new block is sampled, with its own time ->
//!       [`Counter::SamplesLate`];
//!       unreadable stack -> [`Counter::SamplesNoStack`];
//!       kernel frames, if the thread blocks thousands of times a second -> [`Counter::KernelStacksSkipped`];
//!       end of a block, if the thread blocked twice since the last tick (its durations are less exact)
//!
//! ```text
//!  thread    ──run──┐ switch-out: seq 8, registers                      ┌ switch-in: seq 10 ──run──
//!                   └───────────────────── blocked ─────────────────────┘
//!  ahead of a tick     ▲ copy entry (8), read stack; nothing is reported
//!  tick                    ▲ still 8: the read was consistent, the sample is reported
//!                            (not read ahead: read stack, copy entry again)
//!  next tick                          ▲ still 8: the same stack holds
//!  last tick                                                     ▲ · · · · read too late: 10,
//!                                     but it was the same block at the tick: the stack still holds
//!                                     (12 and blocked again: likewise. If the block was not read before, the
//!                                     kernel side has recorded it; if not that either, the new one is read)
//!  then                                                                 10, or 12 and blocked again:
//!                                     the end of the block is known to the nanosecond
//! ```
//!
//! # Why
//! A switch costs the thread a register copy only; page faults are allowed here, and a thread that
//! sleeps for a second is read once, not a hundred times. A thread that waits for its CPU often gets it at the tick:
//! what it was blocked in must be read before. And if it has left its CPU right before the tick, so that nobody could
//! read it any more, what it was doing is in the record of that switch ([`recent`]).

use std::collections::HashMap;

use profiler_common::{ThreadState, thread_state_flag};

use crate::model::{
    Captured, Counter, Coverage, ProcessKey, PythonChain, RawSample, RequestId, SampleKind,
    SampleRecord, StackBytes, SwitchOut, Tid,
};
use crate::process::ReadMemory;
use crate::process::poll_call::polled;
use recent::Recent;

mod recent;

/// How often a read is tried again when the thread ran meanwhile.
const TRIES: u32 = 3;
/// Most stack bytes read of a blocked thread. Deeper stacks are finished frame by frame.
const STACK_READ_MAX_BYTES: usize = 64 * 1024;

/// Looks up what the kernel side stored at a thread's last switch-out.
pub trait ThreadStates {
    /// The entry of a tagged thread.
    fn thread_state(&self, tid: Tid) -> Option<ThreadState>;
}

/// Walks the interpreter's frames of a blocked thread.
pub trait ChainWalker {
    /// The thread's Python frames; `None` if its process is not Python. `thread_pointer` is 0 if unknown.
    fn walk(&mut self, process: ProcessKey, tid: Tid, thread_pointer: u64) -> Option<PythonChain>;
}

/// When the CPUs' clocks ticked: somewhere between two instants, for they do not tick together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// No CPU ticked before.
    pub first_ktime_ns: u64,
    /// Every CPU had ticked.
    pub last_ktime_ns: u64,
}

/// A thread to sample.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    /// The request it serves.
    pub request: RequestId,
    /// When the request began.
    pub start_ktime_ns: u64,
    /// Process.
    pub process: ProcessKey,
    /// Thread.
    pub tid: Tid,
}

/// The sources that a thread is sampled from.
#[derive(Debug)]
pub struct Sources<'a, S, M, W> {
    /// Latest switches of threads.
    pub states: &'a S,
    /// Memory of the thread's process.
    pub memory: &'a M,
    /// Walker of the interpreter's frames.
    pub walker: &'a mut W,
    /// Tells `CLOCK_MONOTONIC`.
    pub now_ktime_ns: fn() -> u64,
}

/// The block of a thread that was read last.
#[derive(Debug)]
struct Block {
    request: RequestId,
    seq: u64,
    since_ktime_ns: u64,
    /// It was read by then.
    read_ktime_ns: u64,
    is_without_kernel_frames: bool,
    /// What was read of it, until a tick falls into it: without one nothing is told of a block.
    untold: Option<Box<Captured>>,
    /// What the thread waits for, if it sleeps in `poll` or `select`; until the block is told.
    polled: Option<Vec<i32>>,
    /// Its end was told, or cannot be any more.
    is_over: bool,
}

/// A thread of a request was asleep in `poll` or `select` at a tick.
#[derive(Debug)]
pub struct Sleep {
    /// The request it serves.
    pub request: RequestId,
    /// Since when, `CLOCK_MONOTONIC`.
    pub since_ktime_ns: u64,
    /// What it waits for.
    pub descriptors: Vec<i32>,
}

/// Remembers which switch-out was read last, per thread.
#[derive(Debug, Default)]
pub struct Sampler {
    read: HashMap<Tid, Block>,
    recent: Recent,
    buffer: Vec<u8>,
    sleeps: Vec<Sleep>,
}

impl Sampler {
    /// Notes what the kernel side has recorded. Call it before [`Self::sample`] of the tick in question. Gives back what is
    /// a sample by itself.
    pub fn note(&mut self, record: SampleRecord) -> Option<RawSample> {
        self.recent.note(record)
    }

    /// All ticks up to this instant have been looked at.
    pub fn end_ticks(&mut self, ktime_ns: u64) {
        self.recent.forget_until(ktime_ns);
    }

    /// Reads the stack of a thread that is blocked a moment before a tick: at the tick it may run. Adds the end of
    /// its block before to `found` if it is known; the block itself is told at the tick.
    pub fn look_ahead<S: ThreadStates, M: ReadMemory, W: ChainWalker>(
        &mut self,
        watched: Watched,
        sources: &mut Sources<'_, S, M, W>,
        found: &mut Vec<RawSample>,
    ) {
        let Some(state) = sources.states.thread_state(watched.tid) else {
            return;
        };
        if state.seq % 2 != 0 {
            return;
        }
        self.tell_end(watched, &state, found);
        let is_running = state.flags & thread_state_flag::ON_CPU != 0;
        if !is_running && !self.has_read(watched, state.seq) {
            // Whether the thread has held still is seen at the tick.
            let block = self.read_block(watched, &state, sources);
            self.read.insert(watched.tid, block);
        }
    }

    /// Says what one thread did at a tick, a moment ago. Nothing is added to `found` if it was running
    /// then (its CPU's own tick captured it) or could not be read; the latter is counted.
    pub fn sample<S: ThreadStates, M: ReadMemory, W: ChainWalker>(
        &mut self,
        watched: Watched,
        tick: Tick,
        sources: &mut Sources<'_, S, M, W>,
        losses: &mut Coverage,
        found: &mut Vec<RawSample>,
    ) {
        if tick.last_ktime_ns < watched.start_ktime_ns {
            return;
        }
        let has_run = self.recent.has_run(watched, tick);
        for _ in 0..TRIES {
            let Some(state) = sources.states.thread_state(watched.tid) else {
                return;
            };
            if state.seq % 2 != 0 {
                continue;
            }
            if has_run {
                return self.tell_end(watched, &state, found);
            }
            let is_running = state.flags & thread_state_flag::ON_CPU != 0;
            let has_left_since = !is_running && state.ktime_ns > tick.last_ktime_ns;
            // The latest switch-in came after the tick: the thread was off its CPU at the tick, in the
            // block before, also if it is blocked again by now.
            let woke_since =
                (is_running || has_left_since) && state.in_ktime_ns > tick.first_ktime_ns;
            let before = state.seq.checked_sub(if is_running { 2 } else { 4 });
            let is_in = !has_left_since && self.has_read(watched, state.seq);
            let was_in = woke_since
                && before.is_some_and(|seq| self.has_read(watched, seq))
                && self.was_read_before(watched, state.in_ktime_ns);
            if is_in || was_in {
                self.tell_block(watched, tick.last_ktime_ns, losses, found);
                return self.tell_end(watched, &state, found);
            }
            if let Some(out) = self.recent.take_left(watched, tick, &state) {
                self.tell_end(watched, &state, found);
                return self.tell_left(watched, tick, &state, out, (losses, found));
            }
            let is_late = woke_since && state.in_ktime_ns > tick.last_ktime_ns;
            if is_late && is_running {
                break;
            }
            self.tell_end(watched, &state, found);
            // Running at the tick, or still: its CPU's tick has it.
            if !is_late && (is_running || has_left_since) {
                return;
            }
            let block = self.read_block(watched, &state, sources);
            if sources.states.thread_state(watched.tid).as_ref() != Some(&state) {
                continue;
            }
            self.read.insert(watched.tid, block);
            if is_late {
                losses.bump(Counter::SamplesLate);
            }
            let ktime_ns = tick.last_ktime_ns.max(state.ktime_ns);
            return self.tell_block(watched, ktime_ns, losses, found);
        }
        if !has_run {
            losses.bump(Counter::SamplesRaced);
        }
    }

    /// Tells of a block that was recorded as it began, and is over.
    fn tell_left(
        &mut self,
        watched: Watched,
        tick: Tick,
        state: &ThreadState,
        out: SwitchOut,
        (losses, found): (&mut Coverage, &mut Vec<RawSample>),
    ) {
        let block = Block {
            request: out.request,
            seq: out.seq,
            since_ktime_ns: out.ktime_ns,
            read_ktime_ns: out.ktime_ns,
            is_without_kernel_frames: false,
            untold: Some(out.captured),
            polled: None,
            is_over: true,
        };
        self.read.insert(watched.tid, block);
        self.tell_block(watched, tick.last_ktime_ns, losses, found);
        found.push(watched.sample(state.recorded_end_ktime_ns, SampleKind::Ended));
    }

    /// Whether this switch-out is the one that was read last.
    fn has_read(&self, watched: Watched, seq: u64) -> bool {
        let block = self.read.get(&watched.tid);
        block.is_some_and(|block| block.request == watched.request && block.seq == seq)
    }

    /// Whether the read was done before an instant at which the thread ran again.
    fn was_read_before(&self, watched: Watched, in_ktime_ns: u64) -> bool {
        let block = self.read.get(&watched.tid);
        block.is_some_and(|block| block.read_ktime_ns < in_ktime_ns)
    }

    /// Reads the block that a thread is in. It is worth nothing if the thread has run meanwhile.
    fn read_block<S: ThreadStates, M: ReadMemory, W: ChainWalker>(
        &mut self,
        watched: Watched,
        state: &ThreadState,
        sources: &mut Sources<'_, S, M, W>,
    ) -> Block {
        let stack = read_stack(&mut self.buffer, sources.memory, stack_pointer(state));
        let python = sources
            .walker
            .walk(watched.process, watched.tid, state.thread_pointer);
        let is_asleep = state.flags & thread_state_flag::RUNNABLE == 0;
        let polled = is_asleep
            .then(|| polled(&state.regs, sources.memory))
            .flatten();
        let kernel_frames = (state.kernel_frame_count as usize).min(state.kernel_frames.len());
        let captured = Captured {
            regs: state.regs,
            stack,
            kernel_frames: state.kernel_frames[..kernel_frames].to_vec(),
            python,
        };
        Block {
            request: watched.request,
            seq: state.seq,
            since_ktime_ns: state.ktime_ns,
            read_ktime_ns: (sources.now_ktime_ns)(),
            is_without_kernel_frames: state.flags & thread_state_flag::KERNEL_STACK_SKIPPED != 0,
            untold: Some(Box::new(captured)),
            polled,
            is_over: false,
        }
    }

    /// Tells of the block that was read last: what was read, and after that, that it goes on.
    fn tell_block(
        &mut self,
        watched: Watched,
        ktime_ns: u64,
        losses: &mut Coverage,
        found: &mut Vec<RawSample>,
    ) {
        let Some(block) = self.read.get_mut(&watched.tid) else {
            return;
        };
        let kind = if let Some(captured) = block.untold.take() {
            losses.bump(Counter::SamplesOffCpu);
            if let Some(descriptors) = block.polled.take() {
                self.sleeps.push(Sleep {
                    request: watched.request,
                    since_ktime_ns: block.since_ktime_ns,
                    descriptors,
                });
            }
            if captured.stack.bytes.is_empty() {
                losses.bump(Counter::SamplesNoStack);
            }
            if block.is_without_kernel_frames {
                losses.bump(Counter::KernelStacksSkipped);
            }
            SampleKind::OffCpu {
                since_ktime_ns: block.since_ktime_ns,
                captured,
            }
        } else {
            losses.bump(Counter::SamplesUnchanged);
            SampleKind::Unchanged
        };
        found.push(watched.sample(ktime_ns, kind));
    }

    /// Tells when the block that was read last ended; once, only if it was told itself, and only if the thread
    /// has not blocked and run again since, for then later switches have overwritten the time.
    fn tell_end(&mut self, watched: Watched, state: &ThreadState, found: &mut Vec<RawSample>) {
        let Some(block) = self.read.get_mut(&watched.tid) else {
            return;
        };
        if block.is_over || block.request != watched.request || block.seq == state.seq {
            return;
        }
        block.is_over = true;
        let is_running = state.flags & thread_state_flag::ON_CPU != 0;
        let is_known = matches!(
            (state.seq.wrapping_sub(block.seq), is_running),
            (2, true) | (4, false)
        );
        if is_known && block.untold.is_none() {
            found.push(watched.sample(state.in_ktime_ns, SampleKind::Ended));
        }
    }

    /// The sleeps that ticks have found since this was last asked.
    pub fn take_sleeps(&mut self) -> Vec<Sleep> {
        std::mem::take(&mut self.sleeps)
    }

    /// Forgets what a thread did in a request that is over, or whose sample did not reach the unwinder.
    pub fn forget(&mut self, tid: Tid, request: RequestId) {
        self.recent.forget(tid, Some(request));
        // The thread may be at its next request.
        if self
            .read
            .get(&tid)
            .is_some_and(|block| block.request == request)
        {
            self.read.remove(&tid);
        }
    }
}

impl Watched {
    fn sample(self, ktime_ns: u64, kind: SampleKind) -> RawSample {
        RawSample {
            request: self.request,
            pid: self.process.pid,
            tid: self.tid,
            ktime_ns,
            kind,
        }
    }
}

fn read_stack(buffer: &mut Vec<u8>, memory: &impl ReadMemory, sp: u64) -> StackBytes {
    buffer.resize(STACK_READ_MAX_BYTES, 0);
    let n = memory.read(sp, buffer).unwrap_or(0);
    StackBytes {
        sp,
        skipped: 0,
        bytes: buffer[..n].to_vec(),
        cut: n == STACK_READ_MAX_BYTES,
    }
}

/// `sp` in the words of `struct pt_regs` (x86_64: arch/x86/include/asm/ptrace.h v6.1, word 19;
/// aarch64: `user_pt_regs`, word 31).
fn stack_pointer(state: &ThreadState) -> u64 {
    state.regs[if cfg!(target_arch = "aarch64") {
        31
    } else {
        19
    }]
}

#[cfg(test)]
mod tests;
