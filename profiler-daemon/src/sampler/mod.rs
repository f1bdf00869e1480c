//! Turns ticks and stored registers into samples of threads that are not running.
//!
//! In:  tick + `THREAD_STATES`, written by `profiler-ebpf/src/sched_switch.rs`
//! Out: [`RawSample`] (off-CPU) to [`crate::unwind`]
//! Lost: thread kept running during every try -> [`Counter::SamplesRaced`];
//!       unreadable stack -> [`Counter::SamplesNoStack`]
//!
//! ```text
//!  thread    ──run──┐ switch-out: seq 8, registers            ┌──run──
//!                   └────────────── blocked ──────────────────┘
//!  tick                    ▲ copy entry (seq 8), read stack, copy entry again (seq 8): consistent
//!  next tick                          ▲ seq still 8: the same stack holds, nothing is read
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
    /// Looks at one thread at one tick. `None` if it is running (its CPU's own tick captures it) or
    /// could not be read; the latter is counted.
    pub fn sample(
        &mut self,
        watched: Watched,
        ktime_ns: u64,
        states: &impl ThreadStates,
        memory: &impl ReadMemory,
        walker: &mut impl ChainWalker,
        losses: &mut Coverage,
    ) -> Option<RawSample> {
        let Watched { request, pid, tid } = watched;
        let found = |kind| {
            Some(RawSample {
                request,
                pid,
                tid,
                ktime_ns,
                kind,
            })
        };
        for _ in 0..TRIES {
            let state = states.thread_state(tid)?;
            if state.flags & thread_state_flag::ON_CPU != 0 {
                return None;
            }
            if state.seq % 2 != 0 {
                continue;
            }
            if self.read.get(&tid) == Some(&(request, state.seq)) {
                losses.bump(Counter::SamplesUnchanged);
                return found(SampleKind::Unchanged);
            }
            let stack = self.read_stack(memory, stack_pointer(&state));
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

    fn read_stack(&mut self, memory: &impl ReadMemory, sp: u64) -> StackBytes {
        self.buffer.resize(STACK_READ_MAX_BYTES, 0);
        let n = memory.read(sp, &mut self.buffer).unwrap_or(0);
        StackBytes {
            sp,
            bytes: self.buffer[..n].to_vec(),
            cut: n == STACK_READ_MAX_BYTES,
        }
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
            ktime_ns: seq,
            prev_state: 1,
            flags,
            tgid: 1,
            kernel_frame_count: 1,
            regs: [0; REGS_MAX],
            kernel_frames: [9; KERNEL_FRAMES_MAX],
        }
    }

    fn ticks(states: Vec<ThreadState>, n: usize) -> (Vec<Option<SampleKind>>, u32, Coverage) {
        let thread = Thread {
            states: RefCell::new(states),
            reads: Cell::new(0),
        };
        let mut sampler = Sampler::default();
        let mut losses = Coverage::default();
        let watched = Watched {
            request: RequestId(1),
            pid: Pid(1),
            tid: Tid(1),
        };
        let kinds = (0..n)
            .map(|tick| {
                sampler
                    .sample(
                        watched,
                        tick as u64,
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
        let (kinds, reads, losses) = ticks(vec![state(8, 0), state(10, 0), state(10, 0)], 1);
        assert!(matches!(kinds[0], Some(SampleKind::OffCpu(_))));
        assert_eq!((reads, losses.get(Counter::SamplesRaced)), (2, 0));
    }

    /// Check that a thread that never holds still is counted, not guessed.
    #[test]
    fn a_thread_that_never_holds_still_is_counted() {
        let (kinds, _, losses) = ticks((8..40).map(|seq| state(seq * 2, 0)).collect(), 1);
        assert!(kinds[0].is_none());
        assert_eq!(losses.get(Counter::SamplesRaced), 1);
    }
}
