//! Turns ticks and stored registers into samples of threads that are not running.
//!
//! In:  tick + `THREAD_STATES`, written by `profiler-ebpf/src/sched_switch.rs`
//! Out: [`RawSample`] (off-CPU) to [`crate::unwind`]
//! Lost: thread kept running during every try, or was blocked at the tick and runs by now ->
//!       [`Counter::SamplesRaced`];
//!       block at the tick that is over, of a thread that is in the next one by now: that one is told, with its own
//!       time -> [`Counter::SamplesLate`];
//!       unreadable stack -> [`Counter::SamplesNoStack`];
//!       kernel frames, if the thread blocks thousands of times a second -> [`Counter::KernelStacksSkipped`];
//!       end of a block, if the thread blocked twice since the last tick (its durations are less exact)
//!
//! ```text
//!  thread    ──run──┐ switch-out: seq 8, registers                      ┌ switch-in: seq 10 ──run──
//!                   └───────────────────── blocked ─────────────────────┘
//!  tick                    ▲ copy entry (8), read stack, copy entry again (8): consistent
//!  next tick                          ▲ still 8: the same stack holds, nothing is read
//!  last tick                                                     ▲ · · · · looked at too late: 10,
//!                                     but it was the same block at the tick: the stack still holds
//!                                     (12 and blocked again: likewise; if the block was not read before, the
//!                                     new one is)
//!  then                                                                 10, or 12 and blocked again:
//!                                     the end of the block is known to the nanosecond
//! ```
//!
//! # Why
//! A switch costs the thread a register copy only; page faults are allowed here, and a thread that
//! sleeps for a second is read once, not a hundred times.

use std::collections::HashMap;

use profiler_common::{ThreadState, thread_state_flag};

use crate::model::{
    Captured, Counter, Coverage, Pid, PythonChain, RawSample, RequestId, SampleKind, StackBytes,
    Tid,
};
use crate::process::ReadMemory;

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
    /// The thread's Python frames; `None` if its process is not Python.
    fn walk(&mut self, pid: Pid, tid: Tid) -> Option<PythonChain>;
}

/// When the CPUs' clocks ticked: somewhere between two instants, for they do not tick together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// No CPU ticked before.
    pub first_ktime_ns: u64,
    /// Every CPU had ticked.
    pub last_ktime_ns: u64,
}

/// A thread to look at.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    /// The request it serves.
    pub request: RequestId,
    /// When the request began.
    pub start_ktime_ns: u64,
    /// Process.
    pub pid: Pid,
    /// Thread.
    pub tid: Tid,
}

/// The block of a thread that was read last.
#[derive(Clone, Copy, Debug)]
struct Block {
    request: RequestId,
    seq: u64,
    /// Its end was told, or cannot be any more.
    is_over: bool,
}

/// Remembers which switch-out was read last, per thread.
#[derive(Debug, Default)]
pub struct Sampler {
    read: HashMap<Tid, Block>,
    buffer: Vec<u8>,
}

impl Sampler {
    /// Says what one thread did at a tick, a moment ago. Nothing is added to `found` if it was running
    /// then (its CPU's own tick captured it) or could not be read; the latter is counted. A thread that
    /// switched between the first and the last CPU's tick may be found here as well as by its CPU.
    #[expect(
        clippy::too_many_arguments,
        reason = "what is looked at, by what, and what comes of it"
    )]
    pub fn sample(
        &mut self,
        watched: Watched,
        tick: Tick,
        states: &impl ThreadStates,
        memory: &impl ReadMemory,
        walker: &mut impl ChainWalker,
        losses: &mut Coverage,
        found: &mut Vec<RawSample>,
    ) {
        let Watched {
            request,
            start_ktime_ns,
            pid,
            tid,
        } = watched;
        if tick.last_ktime_ns < start_ktime_ns {
            return;
        }
        let mut tell = |ktime_ns, kind| {
            found.push(RawSample {
                request,
                pid,
                tid,
                ktime_ns,
                kind,
            });
        };
        let read = |seq| {
            let block = self.read.get(&tid);
            block.is_some_and(|block| block.request == request && block.seq == seq)
        };
        for _ in 0..TRIES {
            let Some(state) = states.thread_state(tid) else {
                return;
            };
            if state.seq % 2 != 0 {
                continue;
            }
            let is_running = state.flags & thread_state_flag::ON_CPU != 0;
            let has_left_since = !is_running && state.ktime_ns > tick.last_ktime_ns;
            // The latest switch-in came after the tick: the thread was off its CPU at the tick, in the
            // block before, also if it is blocked again by now.
            let woke_since =
                (is_running || has_left_since) && state.in_ktime_ns > tick.first_ktime_ns;
            let before = state.seq.checked_sub(if is_running { 2 } else { 4 });
            if read(state.seq) || (woke_since && before.is_some_and(read)) {
                losses.bump(Counter::SamplesUnchanged);
                tell(tick.last_ktime_ns, SampleKind::Unchanged);
                if let Some(end_ktime_ns) = self.end_of_block(request, tid, &state) {
                    tell(end_ktime_ns, SampleKind::Ended);
                }
                return;
            }
            let is_late = woke_since && state.in_ktime_ns > tick.last_ktime_ns;
            if is_late && is_running {
                break;
            }
            // Running at the tick, or still: its CPU's tick has it.
            if !is_late && (is_running || has_left_since) {
                if let Some(end_ktime_ns) = self.end_of_block(request, tid, &state) {
                    tell(end_ktime_ns, SampleKind::Ended);
                }
                return;
            }
            let stack = read_stack(&mut self.buffer, memory, stack_pointer(&state));
            let python = walker.walk(pid, tid);
            if states.thread_state(tid).as_ref() != Some(&state) {
                continue;
            }
            if stack.bytes.is_empty() {
                losses.bump(Counter::SamplesNoStack);
            }
            if state.flags & thread_state_flag::KERNEL_STACK_SKIPPED != 0 {
                losses.bump(Counter::KernelStacksSkipped);
            }
            if let Some(end_ktime_ns) = self.end_of_block(request, tid, &state) {
                tell(end_ktime_ns, SampleKind::Ended);
            }
            let kernel_frames = (state.kernel_frame_count as usize).min(state.kernel_frames.len());
            let block = Block {
                request,
                seq: state.seq,
                is_over: false,
            };
            self.read.insert(tid, block);
            losses.bump(Counter::SamplesOffCpu);
            if is_late {
                losses.bump(Counter::SamplesLate);
            }
            let captured = Captured {
                regs: state.regs,
                stack,
                kernel_frames: state.kernel_frames[..kernel_frames].to_vec(),
                python,
            };
            let kind = SampleKind::OffCpu {
                since_ktime_ns: state.ktime_ns,
                captured: Box::new(captured),
            };
            return tell(tick.last_ktime_ns.max(state.ktime_ns), kind);
        }
        losses.bump(Counter::SamplesRaced);
    }

    /// When the block that was read last ended; once, and only if the thread has not blocked and run again
    /// since, for then later switches have overwritten the time.
    fn end_of_block(&mut self, request: RequestId, tid: Tid, state: &ThreadState) -> Option<u64> {
        let block = self.read.get_mut(&tid)?;
        if block.is_over || block.request != request || block.seq == state.seq {
            return None;
        }
        block.is_over = true;
        let is_running = state.flags & thread_state_flag::ON_CPU != 0;
        match (state.seq.wrapping_sub(block.seq), is_running) {
            (2, true) | (4, false) => Some(state.in_ktime_ns),
            _ => None,
        }
    }

    /// Forgets what a thread did in a request that is over, or whose sample did not reach the unwinder.
    pub fn forget(&mut self, tid: Tid, request: RequestId) {
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

fn read_stack(buffer: &mut Vec<u8>, memory: &impl ReadMemory, sp: u64) -> StackBytes {
    buffer.resize(STACK_READ_MAX_BYTES, 0);
    let n = memory.read(sp, buffer).unwrap_or(0);
    StackBytes {
        sp,
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
mod tests {
    use std::cell::{Cell, RefCell};
    use std::io::Error;

    use profiler_common::{KERNEL_FRAMES_MAX, REGS_MAX};

    use super::*;

    struct Thread {
        states: RefCell<Vec<ThreadState>>,
        reads: Cell<u32>,
    }

    impl ThreadStates for Thread {
        fn thread_state(&self, _tid: Tid) -> Option<ThreadState> {
            let mut states = self.states.borrow_mut();
            if states.len() > 1 {
                Some(states.remove(0))
            } else {
                states.first().copied()
            }
        }
    }

    impl ReadMemory for Thread {
        fn read(&self, _address: u64, buffer: &mut [u8]) -> Result<usize, Error> {
            self.reads.set(self.reads.get() + 1);
            buffer[..8].copy_from_slice(&7_u64.to_ne_bytes());
            Ok(8)
        }
    }

    struct NoPython;

    impl ChainWalker for NoPython {
        fn walk(&mut self, _pid: Pid, _tid: Tid) -> Option<PythonChain> {
            None
        }
    }

    fn state(seq: u64, flags: u32) -> ThreadState {
        ThreadState {
            seq,
            ktime_ns: 10 * seq,
            in_ktime_ns: 0,
            window_ktime_ns: 0,
            stacks_in_window: 0,
            pad: 0,
            prev_state: 1,
            flags,
            tgid: 1,
            kernel_frame_count: 1,
            regs: [0; REGS_MAX],
            kernel_frames: [9; KERNEL_FRAMES_MAX],
        }
    }

    fn at(ktime_ns: u64) -> Tick {
        Tick {
            first_ktime_ns: ktime_ns - 2,
            last_ktime_ns: ktime_ns,
        }
    }

    fn watched() -> Watched {
        Watched {
            request: RequestId(1),
            start_ktime_ns: 100,
            pid: Pid(1),
            tid: Tid(1),
        }
    }

    /// What was found at a tick, as words.
    fn draw(found: &[RawSample]) -> String {
        let word = |sample: &RawSample| match sample.kind {
            SampleKind::OnCpu(_) => "on".to_owned(),
            SampleKind::OffCpu { since_ktime_ns, .. } => {
                assert!(since_ktime_ns <= sample.ktime_ns);
                format!("off since {since_ktime_ns}")
            }
            SampleKind::Unchanged => "unchanged".to_owned(),
            SampleKind::Ended => format!("ended {}", sample.ktime_ns),
        };
        found.iter().map(word).collect::<Vec<_>>().join(", ")
    }

    /// Ticks at 100, 110, 120 ...; `state(n, _)` switched at 10 * n.
    fn ticks(states: Vec<ThreadState>, n: u64) -> (Vec<String>, u32, Coverage) {
        let thread = Thread {
            states: RefCell::new(states),
            reads: Cell::new(0),
        };
        let mut sampler = Sampler::default();
        let mut losses = Coverage::default();
        let ticks = (0..n)
            .map(|tick| {
                let mut found = Vec::new();
                sampler.sample(
                    watched(),
                    at(100 + 10 * tick),
                    &thread,
                    &thread,
                    &mut NoPython,
                    &mut losses,
                    &mut found,
                );
                draw(&found)
            })
            .collect();
        (ticks, thread.reads.get(), losses)
    }

    /// Check that a thread that sleeps over several ticks is read once.
    #[test]
    fn a_sleeping_thread_is_read_once() {
        let (kinds, reads, losses) = ticks(vec![state(8, 0)], 3);
        assert_eq!(kinds, ["off since 80", "unchanged", "unchanged"]);
        assert_eq!((reads, losses.get(Counter::SamplesUnchanged)), (1, 2));
    }

    /// Check that a running thread is left to its CPU's tick.
    #[test]
    fn a_running_thread_is_not_read() {
        let (kinds, reads, _) = ticks(vec![state(8, thread_state_flag::ON_CPU)], 1);
        assert_eq!(kinds, [""]);
        assert_eq!(reads, 0);
    }

    /// Check that a read is repeated when the thread ran meanwhile, and then succeeds.
    #[test]
    fn a_read_that_raced_is_repeated() {
        let (kinds, reads, losses) = ticks(
            vec![
                state(8, 0),
                ThreadState {
                    seq: 12,
                    ..state(9, 0)
                },
                ThreadState {
                    seq: 12,
                    ..state(9, 0)
                },
            ],
            1,
        );
        assert_eq!(kinds, ["off since 90"]);
        assert_eq!((reads, losses.get(Counter::SamplesRaced)), (2, 0));
    }

    /// Check that a thread that never holds still is counted, not guessed.
    #[test]
    fn a_thread_that_never_holds_still_is_counted() {
        let states = (0..40)
            .map(|n| ThreadState {
                seq: n * 4,
                ..state(1, 0)
            })
            .collect();
        let (kinds, _, losses) = ticks(states, 1);
        assert_eq!(kinds, [""]);
        assert_eq!(losses.get(Counter::SamplesRaced), 1);
    }

    /// Check that the last tick of a block counts although the thread ran before we looked.
    #[test]
    fn a_thread_that_woke_after_the_tick_was_blocked_at_it() {
        let off = state(8, 0);
        let woken = ThreadState {
            ktime_ns: 111,
            in_ktime_ns: 111,
            ..state(10, thread_state_flag::ON_CPU)
        };
        let (kinds, reads, losses) = ticks(vec![off, off, woken], 3);
        assert_eq!(kinds, ["off since 80", "unchanged, ended 111", ""]);
        assert_eq!((reads, losses.get(Counter::SamplesRaced)), (1, 0));
    }

    /// Check that the end of a block is told once, whether the thread runs or is blocked again, and not
    /// guessed if it has been on a CPU twice since.
    #[test]
    fn the_end_of_a_block_is_told_if_it_is_known() {
        let off = state(8, 0);
        let running = ThreadState {
            ktime_ns: 104,
            in_ktime_ns: 104,
            ..state(10, thread_state_flag::ON_CPU)
        };
        let (kinds, ..) = ticks(vec![off, off, running], 3);
        assert_eq!(kinds, ["off since 80", "ended 104", ""]);
        let blocked_again = |seq| ThreadState {
            ktime_ns: 106,
            in_ktime_ns: 104,
            ..state(seq, 0)
        };
        let (kinds, ..) = ticks(vec![off, off, blocked_again(12)], 3);
        assert_eq!(
            kinds,
            ["off since 80", "ended 104, off since 106", "unchanged"]
        );
        let (kinds, ..) = ticks(vec![off, off, blocked_again(16)], 3);
        assert_eq!(kinds, ["off since 80", "off since 106", "unchanged"]);
    }

    /// Check that a block that began and ended around one tick, too short to be read, is counted.
    #[test]
    fn a_block_that_was_over_before_we_looked_is_counted() {
        let woken = ThreadState {
            ktime_ns: 101,
            in_ktime_ns: 101,
            ..state(10, thread_state_flag::ON_CPU)
        };
        let (kinds, reads, losses) = ticks(vec![woken], 1);
        assert_eq!(kinds, [""]);
        assert_eq!((reads, losses.get(Counter::SamplesRaced)), (0, 1));
    }

    /// Check that a thread that woke after the tick and is blocked again was off its CPU at the tick: in the
    /// block that was read, or else its next block is told, which began after the tick.
    #[test]
    fn a_thread_that_is_blocked_again_was_blocked_at_the_tick() {
        let off = state(8, 0);
        let again = |in_ktime_ns, ktime_ns| ThreadState {
            ktime_ns,
            in_ktime_ns,
            ..state(12, 0)
        };
        let (kinds, reads, losses) = ticks(vec![off, off, again(112, 115)], 3);
        assert_eq!(
            kinds,
            ["off since 80", "unchanged, ended 112", "off since 115"]
        );
        assert_eq!((reads, losses.get(Counter::SamplesRaced)), (2, 0));
        let (kinds, reads, losses) = ticks(vec![again(102, 105)], 2);
        assert_eq!(kinds, ["off since 105", "unchanged"]);
        assert_eq!((reads, losses.get(Counter::SamplesRaced)), (1, 0));
        assert_eq!(losses.get(Counter::SamplesLate), 1);
    }

    /// Check that a thread that blocked after the tick is left to its CPU, which saw it running.
    #[test]
    fn a_thread_that_blocked_after_the_tick_was_running_at_it() {
        let (kinds, reads, losses) = ticks(vec![state(12, 0)], 1);
        assert_eq!(kinds, [""]);
        assert_eq!((reads, losses.get(Counter::SamplesRaced)), (0, 0));
    }

    /// Check that a thread that woke while the CPUs ticked is left to its CPU, and not counted as lost.
    #[test]
    fn a_thread_that_woke_during_the_tick_is_left_to_its_cpu() {
        let woken = ThreadState {
            ktime_ns: 99,
            in_ktime_ns: 99,
            ..state(10, thread_state_flag::ON_CPU)
        };
        let (kinds, _, losses) = ticks(vec![woken], 1);
        assert_eq!(kinds, [""]);
        assert_eq!(losses.get(Counter::SamplesRaced), 0);
    }

    /// Check that a tick before the request is not sampled.
    #[test]
    fn a_tick_before_the_request_is_not_its() {
        let thread = Thread {
            states: RefCell::new(vec![state(8, 0)]),
            reads: Cell::new(0),
        };
        let mut losses = Coverage::default();
        let mut found = Vec::new();
        Sampler::default().sample(
            watched(),
            at(99),
            &thread,
            &thread,
            &mut NoPython,
            &mut losses,
            &mut found,
        );
        assert!(found.is_empty());
    }
}
