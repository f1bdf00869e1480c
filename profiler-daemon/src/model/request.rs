//! Requests: from the kernel's event to the finished, profiled request.

use std::fmt;

use profiler_common::{EndReason, LITERAL_MAX_BYTES, Rule, rule_flag};

use super::{Coverage, Pid, ProcessKey, Service, TaskId, TaskSlot, Tid, WallClock};

/// Identity of a request while the BPF programs stay loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// The kernel-side form of an endpoint: a prefilter that never refuses what the endpoint matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointRule {
    /// Bits by [`profiler_common::method_bit`].
    pub method_mask: u32,
    /// First bytes of the target on the wire, at most [`profiler_common::LITERAL_MAX_BYTES`].
    pub literal: Vec<u8>,
    /// The path must end after the literal.
    pub exact: bool,
}

impl EndpointRule {
    /// The rule as the programs read it; `None` if the literal is too long.
    #[must_use]
    pub fn to_kernel(&self) -> Option<Rule> {
        let mut literal = [0; LITERAL_MAX_BYTES];
        literal
            .get_mut(..self.literal.len())?
            .copy_from_slice(&self.literal);
        let exact = if self.exact { rule_flag::EXACT } else { 0 };
        Some(Rule {
            flags: rule_flag::LIVE | exact,
            method_mask: self.method_mask,
            literal_len: self.literal.len() as u32,
            pad: 0,
            literal,
        })
    }
}

/// One record of the `REQUESTS` ring, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestEvent {
    /// A request head was read and passed the prefilter.
    Start {
        /// The request.
        id: RequestId,
        /// Task slot whose rule it passed.
        slot: TaskSlot,
        /// Process.
        pid: Pid,
        /// Thread that read the head.
        tid: Tid,
        /// File descriptor.
        fd: i32,
        /// When the read returned.
        start_ktime_ns: u64,
        /// [`profiler_common::event_flag`] bits.
        flags: u32,
        /// The head, possibly cut.
        head: Vec<u8>,
    },
    /// The first bytes of the response were written.
    FirstWrite {
        /// The request.
        id: RequestId,
        /// Thread that wrote.
        tid: Tid,
        /// When the write returned.
        ktime_ns: u64,
        /// Bytes written so far.
        written_bytes: u64,
        /// [`profiler_common::event_flag`] bits.
        flags: u32,
        /// First bytes of the response.
        head: Vec<u8>,
        /// The epoll descriptor that the thread had slept on since it read the request.
        wait_fd: Option<i32>,
    },
    /// More bytes of a response were written whose head may not be whole yet.
    MoreResponse {
        /// The request.
        id: RequestId,
        /// When the write returned.
        ktime_ns: u64,
        /// Bytes written so far.
        written_bytes: u64,
        /// [`profiler_common::event_flag`] bits.
        flags: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// The request's thread called another server.
    Outbound {
        /// The request.
        id: RequestId,
        /// The head it wrote, possibly cut.
        head: Vec<u8>,
    },
    /// The request is over.
    End {
        /// The request.
        id: RequestId,
        /// When the kernel side noticed.
        ktime_ns: u64,
        /// When the response's last byte was written, 0 if none was.
        last_write_ktime_ns: u64,
        /// Bytes written.
        written_bytes: u64,
        /// [`profiler_common::event_flag`] bits gathered over the request.
        flags: u32,
        /// Why it ended.
        reason: EndReason,
    },
    /// A target process closed a range of descriptors, of which the programs have looked at the beginning only.
    CloseRange {
        /// The process.
        pid: Pid,
        /// First descriptor.
        first: u32,
        /// Last descriptor, included; may be far beyond the last one in use.
        last: u32,
        /// When.
        ktime_ns: u64,
    },
    /// A target process forked.
    Fork {
        /// The parent.
        parent: Pid,
        /// The thread that forked.
        tid: Tid,
        /// The child, already in the target set.
        child: Pid,
        /// When, `CLOCK_MONOTONIC`.
        ktime_ns: u64,
    },
    /// A target process executed another program.
    Exec {
        /// The process.
        pid: Pid,
        /// When, `CLOCK_MONOTONIC`.
        ktime_ns: u64,
    },
    /// A target process ended.
    Exit {
        /// The process.
        pid: Pid,
        /// When, `CLOCK_MONOTONIC`.
        ktime_ns: u64,
    },
}

/// The caller's trace context from an inbound `sw8` header (cross process propagation, v3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sw8 {
    /// The caller's trace is sampled.
    pub sampled: bool,
    /// Trace id.
    pub trace_id: String,
    /// The caller's segment.
    pub parent_segment_id: String,
    /// The caller's exit span.
    pub parent_span_id: i32,
    /// The caller's service.
    pub parent_service: String,
    /// The caller's service instance.
    pub parent_instance: String,
    /// The caller's entry endpoint.
    pub parent_endpoint: String,
    /// Address the caller used for us.
    pub address: String,
}

/// An open request that matched a task.
#[derive(Clone, Debug)]
pub struct ActiveRequest {
    /// The request.
    pub id: RequestId,
    /// Task slot on the kernel side.
    pub slot: TaskSlot,
    /// The task.
    pub task_id: TaskId,
    /// Process.
    pub process: ProcessKey,
    /// The instance that the process reports as.
    pub service: Service,
    /// Thread that serves it.
    pub tid: Tid,
    /// File descriptor of the connection.
    pub fd: i32,
    /// Start, `CLOCK_MONOTONIC`.
    pub start_ktime_ns: u64,
    /// Kernel time to wall time, fixed at the start.
    pub clock: WallClock,
    /// Endpoint name reported: the task's own text if that names one path, else the request's own endpoint.
    pub endpoint: String,
    /// Request method on the wire.
    pub method: String,
    /// Path on the wire, without query.
    pub path: String,
    /// `Host` header, if there was one.
    pub host: Option<String>,
    /// Trace segment id chosen for it.
    pub segment_id: String,
    /// Caller's context, if the request carried one.
    pub sw8: Option<Sw8>,
}

/// Tag of the span of a request that is cut: the text of [`Cut`].
pub const TAG_CUT: &str = "profilerd.cut";

/// Why what is shown of a request ends before its response did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The task ended first.
    TaskEnded,
    /// The thread that served the request ended, or its process, or executed another program.
    ThreadEnded,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TaskEnded => "the task ended first",
            Self::ThreadEnded => "its thread ended first",
        })
    }
}

/// A request that is over, with its end known.
#[derive(Clone, Debug)]
pub struct FinishedRequest {
    /// What was known while it ran.
    pub request: ActiveRequest,
    /// Last write of the response, `CLOCK_MONOTONIC`; of a cut request the instant at which it was cut.
    pub end_ktime_ns: u64,
    /// Why the response had not ended by then, if so.
    pub cut: Option<Cut>,
    /// HTTP status, `None` if no response line was seen.
    pub status: Option<u16>,
    /// Why the kernel side ended it; `None` if the response was complete before any such event.
    pub reason: Option<EndReason>,
    /// The context that the request's thread sent with a call of its own: here the parent is the
    /// request itself, by the names its agent has for it.
    pub outbound: Option<Sw8>,
    /// Losses of this request alone.
    pub losses: Coverage,
}
