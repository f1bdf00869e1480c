//! Turns ticks and stored registers into samples of threads that are not running.
//!
//! In:  tick + `THREAD_STATES`, written by `profiler-ebpf/src/sched_switch.rs`
//! Out: [`RawSample`] (off-CPU) to [`crate::unwind`]
//! Lost: thread kept running during every try -> [`Counter::SamplesRaced`];
//!       unreadable stack -> [`Counter::SamplesNoStack`]
//!
//! ```text
//!  thread    ──run──┐ switch-out: seq 8, registers                      ┌ switch-in: seq 10 ──run──
//!                   └───────────────────── blocked ─────────────────────┘
//!  tick                    ▲ copy entry (8), read stack, copy entry again (8): consistent
//!  next tick                          ▲ still 8: the same stack holds, nothing is read
//!  last tick                                                     ▲ · · · · looked at too late: 10,
//!                                     but it was the same block at the tick: the stack still holds
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

/// Remembers which switch-out was read last, per thread.
#[derive(Debug, Default)]
pub struct Sampler {
    read: HashMap<Tid, (RequestId, u64)>,
    buffer: Vec<u8>,
}

impl Sampler {
    /// Says what one thread did at the tick at `tick_ktime_ns`, a moment ago. `None` if it was running
    /// then (its CPU's own tick captured it) or could not be read; the latter is counted.
    pub fn sample(
        &mut self,
        watched: Watched,
        tick_ktime_ns: u64,
        states: &impl ThreadStates,
        memory: &impl ReadMemory,
        walker: &mut impl ChainWalker,
        losses: &mut Coverage,
    ) -> Option<RawSample> {
        let Watched {
            request,
            start_ktime_ns,
            pid,
            tid,
        } = watched;
        if tick_ktime_ns < start_ktime_ns {
            return None;
        }
        let found = |kind| {
            Some(RawSample {
                request,
                pid,
                tid,
                ktime_ns: tick_ktime_ns,
                kind,
            })
        };
        let read = |seq| self.read.get(&tid) == Some(&(request, seq));
        for _ in 0..TRIES {
            let state = states.thread_state(tid)?;
            if state.seq % 2 != 0 {
                continue;
            }
            let is_running = state.flags & thread_state_flag::ON_CPU != 0;
            // The latest switch-in came after the tick: the thread was off its CPU at the tick.
            let woke_since = is_running && state.ktime_ns > tick_ktime_ns;
            if read(state.seq) || (woke_since && state.seq >= 2 && read(state.seq - 2)) {
                losses.bump(Counter::SamplesUnchanged);
                return found(SampleKind::Unchanged);
            }
            if woke_since {
                break;
            }
            // Running at the tick, or still: its CPU's tick has it.
            if is_running || state.ktime_ns > tick_ktime_ns {
                return None;
            }
            let stack = read_stack(&mut self.buffer, memory, stack_pointer(&state));
            let python = walker.walk(pid, tid);
            if states.thread_state(tid).as_ref() != Some(&state) {
                continue;
            }
            if stack.bytes.is_empty() {
                losses.bump(Counter::SamplesNoStack);
            }
            let kernel_frames = (state.kernel_frame_count as usize).min(state.kernel_frames.len());
            self.read.insert(tid, (request, state.seq));
            losses.bump(Counter::SamplesOffCpu);
            return found(SampleKind::OffCpu(Box::new(Captured {
                regs: state.regs,
                stack,
                kernel_frames: state.kernel_frames[..kernel_frames].to_vec(),
                python,
            })));
        }
        losses.bump(Counter::SamplesRaced);
        None
    }

    /// Forgets a thread whose request is over, or whose sample did not reach the unwinder.
    pub fn forget(&mut self, tid: Tid) {
        self.read.remove(&tid);
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
            prev_state: 1,
            flags,
            tgid: 1,
            kernel_frame_count: 1,
            regs: [0; REGS_MAX],
            kernel_frames: [9; KERNEL_FRAMES_MAX],
        }
    }

    /// Ticks at 100, 110, 120 ...; `state(n, _)` switched at 10 * n.
    fn ticks(states: Vec<ThreadState>, n: u64) -> (Vec<Option<SampleKind>>, u32, Coverage) {
        let thread = Thread {
            states: RefCell::new(states),
            reads: Cell::new(0),
        };
        let mut sampler = Sampler::default();
        let mut losses = Coverage::default();
        let watched = Watched {
            request: RequestId(1),
            start_ktime_ns: 100,
            pid: Pid(1),
            tid: Tid(1),
        };
        let kinds = (0..n)
            .map(|tick| {
                sampler
                    .sample(
                        watched,
                        100 + 10 * tick,
                        &thread,
                        &thread,
                        &mut NoPython,
                        &mut losses,
                    )
                    .map(|sample| sample.kind)
            })
            .collect();
        (kinds, thread.reads.get(), losses)
    }

    /// Check that a thread that sleeps over several ticks is read once.
    #[test]
    fn a_sleeping_thread_is_read_once() {
        let (kinds, reads, losses) = ticks(vec![state(8, 0)], 3);
        assert!(matches!(kinds[0], Some(SampleKind::OffCpu(_))));
        assert!(matches!(
            kinds[1..],
            [Some(SampleKind::Unchanged), Some(SampleKind::Unchanged)]
        ));
        assert_eq!((reads, losses.get(Counter::SamplesUnchanged)), (1, 2));
    }

    /// Check that a running thread is left to its CPU's tick.
    #[test]
    fn a_running_thread_is_not_read() {
        let (kinds, reads, _) = ticks(vec![state(8, thread_state_flag::ON_CPU)], 1);
        assert!(kinds[0].is_none());
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
        assert!(matches!(kinds[0], Some(SampleKind::OffCpu(_))));
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
        assert!(kinds[0].is_none());
        assert_eq!(losses.get(Counter::SamplesRaced), 1);
    }

    /// Check that the last tick of a block counts although the thread ran before we looked.
    #[test]
    fn a_thread_that_woke_after_the_tick_was_blocked_at_it() {
        let off = state(8, 0);
        let woken = ThreadState {
            ktime_ns: 111,
            ..state(10, thread_state_flag::ON_CPU)
        };
        let (kinds, reads, losses) = ticks(vec![off, off, woken], 2);
        assert!(matches!(
            kinds[..],
            [Some(SampleKind::OffCpu(_)), Some(SampleKind::Unchanged)]
        ));
        assert_eq!((reads, losses.get(Counter::SamplesRaced)), (1, 0));
    }

    /// Check that a block that began and ended around one tick, too short to be read, is counted.
    #[test]
    fn a_block_that_was_over_before_we_looked_is_counted() {
        let woken = ThreadState {
            ktime_ns: 101,
            ..state(10, thread_state_flag::ON_CPU)
        };
        let (kinds, reads, losses) = ticks(vec![woken], 1);
        assert!(kinds[0].is_none());
        assert_eq!((reads, losses.get(Counter::SamplesRaced)), (0, 1));
    }

    /// Check that a thread that blocked after the tick is left to its CPU, which saw it running.
    #[test]
    fn a_thread_that_blocked_after_the_tick_was_running_at_it() {
        let (kinds, reads, losses) = ticks(vec![state(12, 0)], 1);
        assert!(kinds[0].is_none());
        assert_eq!((reads, losses.get(Counter::SamplesRaced)), (0, 0));
    }

    /// Check that a tick before the request is not sampled.
    #[test]
    fn a_tick_before_the_request_is_not_its() {
        let thread = Thread {
            states: RefCell::new(vec![state(8, 0)]),
            reads: Cell::new(0),
        };
        let watched = Watched {
            request: RequestId(1),
            start_ktime_ns: 100,
            pid: Pid(1),
            tid: Tid(1),
        };
        let mut losses = Coverage::default();
        let sample =
            Sampler::default().sample(watched, 99, &thread, &thread, &mut NoPython, &mut losses);
        assert!(sample.is_none());
    }
}
