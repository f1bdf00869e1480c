//! One observation of one thread, before unwinding.

use std::sync::Arc;

use profiler_common::{PythonFrameRecord, REGS_MAX};

use super::{Pid, RequestId, Tid};

/// User stack bytes at and above the stack pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackBytes {
    /// The stack pointer.
    pub sp: u64,
    /// Bytes from `sp` on that could not be read then, as a rule because the thread has not written there yet;
    /// `bytes` begin above them.
    pub skipped: u32,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// More stack exists above the last byte.
    pub cut: bool,
}

/// CPython frames of the thread, innermost first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PythonChain {
    /// The frames.
    pub frames: Vec<PythonFrameRecord>,
    /// Address of the next frame if the chain was cut, else 0.
    pub next: u64,
    /// The walk stopped at an unreadable address.
    pub partial: bool,
    /// The thread has no `PyThreadState`.
    pub no_thread: bool,
}

/// Registers and memory of a thread at one instant: all that unwinding needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Words of the architecture's `struct pt_regs`, user mode.
    pub regs: [u64; REGS_MAX],
    /// User stack.
    pub stack: StackBytes,
    /// Kernel return addresses, innermost first.
    pub kernel_frames: Vec<u64>,
    /// Python frames, `None` if the process is not Python.
    pub python: Option<PythonChain>,
}

/// How a tick found the thread.
#[derive(Clone, Debug)]
pub enum SampleKind {
    /// The thread was running.
    OnCpu(Box<Captured>),
    /// The thread was blocked or waiting for a CPU.
    OffCpu {
        /// `CLOCK_MONOTONIC` of its switch-out: the stack has held since then.
        since_ktime_ns: u64,
        /// Registers and stack of the block.
        captured: Box<Captured>,
    },
    /// The thread has not run since its previous off-CPU sample: the same stack still holds.
    Unchanged,
    /// No sample of its own: the stack of the latest off-CPU sample held until this instant, at which the
    /// thread ran again.
    Ended,
}

/// One sample of one tagged thread.
#[derive(Clone, Debug)]
pub struct RawSample {
    /// The request it served.
    pub request: RequestId,
    /// Process.
    pub pid: Pid,
    /// Thread.
    pub tid: Tid,
    /// `CLOCK_MONOTONIC` of the observation.
    pub ktime_ns: u64,
    /// How the thread was found, with its stack.
    pub kind: SampleKind,
}

/// A tagged thread left its CPU shortly before a tick. A sample only if the tick found it still switched out.
#[derive(Clone, Debug)]
pub struct SwitchOut {
    /// The request it served.
    pub request: RequestId,
    /// Process.
    pub pid: Pid,
    /// Thread.
    pub tid: Tid,
    /// `CLOCK_MONOTONIC`.
    pub ktime_ns: u64,
    /// Number of the switch, `ThreadState::seq`.
    pub seq: u64,
    /// Registers and stack with which it left.
    pub captured: Box<Captured>,
}

/// What the kernel side has seen of a thread.
#[derive(Clone, Debug)]
pub enum SampleRecord {
    /// A tick has found it running.
    Tick(RawSample),
    /// It left its CPU.
    SwitchOut(SwitchOut),
}

impl RawSample {
    /// Memory it takes, near enough to bound what waits.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let captured = match &self.kind {
            SampleKind::OnCpu(captured) | SampleKind::OffCpu { captured, .. } => captured,
            SampleKind::Unchanged | SampleKind::Ended => return size_of::<Self>(),
        };
        let python = captured.python.as_ref();
        let python_frames = python.map_or(0, |python| python.frames.len());
        size_of::<Self>()
            + size_of::<Captured>()
            + captured.stack.bytes.len()
            + size_of_val(&captured.kernel_frames[..])
            + python_frames * size_of::<PythonFrameRecord>()
    }
}

/// A symbolized sample in its place in time.
#[derive(Clone, Debug)]
pub struct TimedStack {
    /// `CLOCK_MONOTONIC` of the observation.
    pub ktime_ns: u64,
    /// Earliest instant at which the stack is known to have held, not after the observation.
    pub since_ktime_ns: u64,
    /// Latest instant at which the stack is known to have held, not before the observation.
    pub until_ktime_ns: u64,
    /// The stack, innermost first.
    pub stack: Arc<super::Stack<super::Frame>>,
}

impl TimedStack {
    /// A stack of which only is known that it held at one instant.
    #[must_use]
    pub fn at(ktime_ns: u64, stack: Arc<super::Stack<super::Frame>>) -> Self {
        Self {
            ktime_ns,
            since_ktime_ns: ktime_ns,
            until_ktime_ns: ktime_ns,
            stack,
        }
    }
}
