//! Types that cross the line between the BPF programs and the daemon, and nothing else.
//!
//! Every type here is `repr(C)` with fixed-width integers and explicit padding, so that both sides
//! agree on each byte; sizes are asserted beside the type. The daemon enables the `user` feature to
//! use them as map keys and values.
#![no_std]

mod counter;
mod filter;
mod kernel;
mod line;
mod python;
mod request;
mod rule;
mod sample;

pub use counter::{KERNEL_COUNTERS, KernelCounter};
pub use filter::FILTER_LEN;
pub use kernel::{KernelOffsets, Settings, setting_flag};
pub use line::{
    LINE_MAX_BYTES, Line, METHOD_MAX_BYTES, SKIPS_MAX, before, line, line_of, line_status, target,
    token, version,
};
pub use python::{
    PYTHON_FRAMES_MAX, PythonFrameRecord, PythonOffsets, PythonProcess, PythonThread, is_thread_id,
    python_flag, thread_id_span, tstate_offset,
};
pub use request::{
    Conn, ConnKey, EndReason, HEAD_MAX_BYTES, PARTIAL_HEAD_MAX_BYTES, PartialHead,
    RESPONSE_HEAD_MAX_BYTES, RequestEventHeader, RequestEventKind, cancel, conn_flag, conn_state,
    ends_chunks, event_flag,
};
pub use rule::{
    ANY_METHOD, LITERAL_MAX_BYTES, MAX_TASKS, Method, PROGRAM_UNIT_BITS, Rule, Target, method_bit,
    rule_flag, target_flag,
};
pub use sample::{
    KERNEL_FRAMES_MAX, KERNEL_STACKS_MAX, KERNEL_STACKS_WINDOW_NS, REGS_MAX, STACK_COPY_MAX_BYTES,
    SWITCH_OUTS_AHEAD_NS, SWITCH_OUTS_MAX, SampleHeader, ThreadState, ThreadTag, Ticks,
    sample_flag, thread_state_flag,
};

/// Implements `aya::Pod` for types that have no padding and accept every bit pattern.
#[cfg(feature = "user")]
macro_rules! pod {
    ($($t:ty),+ $(,)?) => {$(
        // SAFETY: the type is `repr(C)`, consists of integers and arrays of them, and its size
        // assertion shows that it has no padding.
        unsafe impl aya::Pod for $t {}
    )+};
}

#[cfg(feature = "user")]
pod!(
    Conn,
    ConnKey,
    KernelOffsets,
    PartialHead,
    PythonProcess,
    PythonThread,
    Rule,
    SampleHeader,
    Settings,
    Target,
    ThreadState,
    ThreadTag,
    Ticks,
);
