//! Tags, off-CPU registers and on-CPU samples: `THREAD_TAGS`, `THREAD_STATES`, ring `SAMPLES`.

/// Words of `struct pt_regs` kept: 21 on x86_64, 34 on aarch64 (`user_pt_regs`).
pub const REGS_MAX: usize = 34;
/// Most user stack bytes copied with an on-CPU sample.
pub const STACK_COPY_MAX_BYTES: usize = 16 * 1024;
/// Most kernel frames kept with a sample.
pub const KERNEL_FRAMES_MAX: usize = 48;

/// Kernel stacks of a thread stored in [`KERNEL_STACKS_WINDOW_NS`]. Unwinding one takes some 2 us, most of what a
/// switch of a tagged thread costs.
pub const KERNEL_STACKS_MAX: u32 = 100;
/// See [`KERNEL_STACKS_MAX`].
pub const KERNEL_STACKS_WINDOW_NS: u64 = 10_000_000;

/// Time before a tick in which the programs record a tagged thread that leaves its CPU: many run again before the
/// daemon has woken up to read them. At most half of the period.
pub const SWITCH_OUTS_AHEAD_NS: u64 = 500_000;
/// Switch-outs of a thread that are recorded ahead of one tick.
pub const SWITCH_OUTS_MAX: u32 = 4;

/// When the CPUs tick: the value of `TICKS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ticks {
    /// `CLOCK_MONOTONIC` of a tick of the last CPU.
    pub origin_ktime_ns: u64,
    /// Time between two ticks; 0: no switch-out is recorded.
    pub period_ns: u64,
}

/// Tag of a thread that serves a profiled request: value of `THREAD_TAGS`, key tid (host).
///
/// Written by the hooks that see requests in the thread, removed at the request's end, by the exit hooks, and by the
/// thread's `sched_switch` once the daemon has let the request go. Only threads with a tag are ever
/// sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ThreadTag {
    /// The request the thread serves.
    pub request_id: u64,
    /// Task slot.
    pub slot: u32,
    /// Process of the thread.
    pub tgid: u32,
    /// Descriptor of the request's connection.
    pub fd: i32,
    /// Zero.
    pub pad: u32,
}

/// Bits of [`ThreadState::flags`].
pub mod thread_state_flag {
    /// The thread is running; registers are those of its last switch-out, or zero.
    pub const ON_CPU: u32 = 1;
    /// The thread was preempted, not blocked: it waits for a CPU.
    pub const RUNNABLE: u32 = 1 << 1;
    /// The kernel stack was not stored: the thread switches too often, see [`super::KERNEL_STACKS_MAX`].
    pub const KERNEL_STACK_SKIPPED: u32 = 1 << 2;
}

/// Registers of a tagged thread at its last switch-out: value of `THREAD_STATES`, key tid (host).
///
/// `seq` is odd while `sched_switch` writes. A reader copies the value, reads the thread's memory,
/// copies the value again and takes the memory as consistent if both copies are equal and even.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ThreadState {
    /// Counts writes; odd while one is under way. A thread never has the same number again, not even when its state
    /// was removed meanwhile.
    pub seq: u64,
    /// `CLOCK_MONOTONIC` of the latest switch, 0 before the first.
    pub ktime_ns: u64,
    /// `CLOCK_MONOTONIC` of the latest switch-in, 0 before the first: the thread has run since it got its tag.
    pub in_ktime_ns: u64,
    /// `CLOCK_MONOTONIC` since which `stacks_in_window` counts.
    pub window_ktime_ns: u64,
    /// Kernel stacks stored since then.
    pub stacks_in_window: u32,
    /// Switch-outs recorded ahead of the latest tick that had any, at most [`SWITCH_OUTS_MAX`].
    pub recorded_count: u32,
    /// `seq` of the latest switch-out that is in `SAMPLES`.
    pub recorded_seq: u64,
    /// `CLOCK_MONOTONIC` of that switch-out.
    pub recorded_ktime_ns: u64,
    /// `CLOCK_MONOTONIC` of the switch-in that followed it, 0 while the thread is still switched out.
    pub recorded_end_ktime_ns: u64,
    /// `task_struct.__state` at switch-out.
    pub prev_state: u32,
    /// [`thread_state_flag`] bits.
    pub flags: u32,
    /// Process of the thread.
    pub tgid: u32,
    /// Used entries of `kernel_frames`.
    pub kernel_frame_count: u32,
    /// The thread pointer when the thread was tagged, 0 if unknown: `fsbase` on x86_64, `tpidr_el0` on
    /// aarch64. Not among `regs`.
    pub thread_pointer: u64,
    /// User registers as words of the architecture's `struct pt_regs`.
    pub regs: [u64; REGS_MAX],
    /// Kernel stack at switch-out, innermost first.
    pub kernel_frames: [u64; KERNEL_FRAMES_MAX],
}

/// Bits of [`SampleHeader::flags`].
pub mod sample_flag {
    /// The user stack is longer than [`super::STACK_COPY_MAX_BYTES`]; its outer part is missing.
    pub const STACK_CUT: u32 = 1;
    /// The stack copy stopped at a page that could not be read, or found no other.
    pub const STACK_PARTIAL: u32 = 1 << 1;
    /// The Python chain is longer than the frames copied; `python_next` is the next frame.
    pub const PYTHON_CUT: u32 = 1 << 2;
    /// The Python chain stopped at an address that could not be read.
    pub const PYTHON_PARTIAL: u32 = 1 << 3;
    /// The process is a Python process but the thread's `PyThreadState` was not found.
    pub const PYTHON_NO_THREAD: u32 = 1 << 4;
    /// The sample interrupted user code (no kernel frames).
    pub const IN_USER: u32 = 1 << 5;
    /// The process is in `PYTHON_PROCS`.
    pub const PYTHON: u32 = 1 << 6;
    /// No tick: the thread left its CPU shortly before one.
    pub const SWITCH_OUT: u32 = 1 << 7;
}

/// First bytes of every record in `SAMPLES`: one tick of one tagged thread that was running, or one switch-out of a
/// tagged thread shortly before a tick.
///
/// ```text
/// | SampleHeader | kernel u64 x n | PythonFrameRecord x m | stack bytes from sp + stack_skipped_bytes upwards |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SampleHeader {
    /// The request the thread served.
    pub request_id: u64,
    /// `CLOCK_MONOTONIC` of the tick or switch-out.
    pub ktime_ns: u64,
    /// [`ThreadState::seq`] of the switch-out, 0 of a tick.
    pub switch_seq: u64,
    /// Process, host pid namespace.
    pub tgid: u32,
    /// Thread, host pid namespace.
    pub tid: u32,
    /// Task slot.
    pub slot: u32,
    /// [`sample_flag`] bits.
    pub flags: u32,
    /// Kernel return addresses that follow, innermost first.
    pub kernel_frame_count: u32,
    /// [`crate::PythonFrameRecord`]s that follow.
    pub python_frame_count: u32,
    /// Stack bytes that follow.
    pub stack_bytes: u32,
    /// Bytes from `sp` on that could not be read and do not follow: as a rule pages that the thread has
    /// not written yet.
    pub stack_skipped_bytes: u32,
    /// Address of the first Python frame not copied, 0 if the chain is whole.
    pub python_next: u64,
    /// User registers as words of the architecture's `struct pt_regs`.
    pub regs: [u64; REGS_MAX],
}

const _: () = assert!(size_of::<ThreadTag>() == 24);
const _: () = assert!(size_of::<ThreadState>() == 88 + 8 * REGS_MAX + 8 * KERNEL_FRAMES_MAX);
const _: () = assert!(size_of::<SampleHeader>() == 64 + 8 * REGS_MAX);
