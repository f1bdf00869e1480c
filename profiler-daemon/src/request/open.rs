//! An open request, from its head to its last byte.

use profiler_common::Conn;

use super::head::RequestHead;
use super::response::ResponseHead;
use super::sw8;
use super::tracker::ConnView;
use crate::model::{ActiveRequest, Sw8};

/// A response with no write for this long, whose length is unknown, is taken as complete.
const QUIET_END_NS: u64 = 10_000_000_000;
/// A response with no write for this long (or two dump periods) stops being sampled.
const QUIET_UNTAG_NS: u64 = 1_000_000_000;
/// How long an end may be missing after the connection's state is gone, before it is taken as lost.
const LOST_END_NS: u64 = 1_000_000_000;

/// How often the descriptor of a request is looked at, where not every close is seen.
const DESCRIPTOR_NS: u64 = 1_000_000_000;

/// The contexts that a request's own calls carry.
#[derive(Debug, Default)]
pub(super) enum Outbound {
    /// No call had one.
    #[default]
    None,
    /// All had the same segment.
    One(Box<Sw8>),
    /// Segments of several: which one is the request's cannot be told.
    Several,
}

impl Outbound {
    pub(super) fn on_call(&mut self, head: &[u8]) {
        let context = RequestHead::parse(head).and_then(|head| sw8::parse(head.sw8.as_deref()?));
        let Some(context) = context.filter(|context| context.sampled) else {
            return;
        };
        match self {
            Self::None => *self = Self::One(Box::new(context)),
            Self::One(first) if first.parent_segment_id != context.parent_segment_id => {
                *self = Self::Several;
            }
            Self::One(_) | Self::Several => {}
        }
    }

    pub(super) fn into_context(self) -> Option<Sw8> {
        match self {
            Self::One(context) => Some(*context),
            Self::None | Self::Several => None,
        }
    }
}

/// What is known of a request that runs.
#[derive(Debug)]
pub(super) struct OpenRequest {
    pub(super) request: ActiveRequest,
    /// Holds one of the task's places.
    pub(super) is_counted: bool,
    pub(super) response: Option<ResponseHead>,
    /// At least one byte of the response was written.
    pub(super) is_answered: bool,
    pub(super) last_write_ktime_ns: u64,
    pub(super) written_bytes: u64,
    pub(super) is_untagged: bool,
    /// Its head came together with the next one's: what is written after its answer is not its own.
    pub(super) is_followed: bool,
    pub(super) outbound: Outbound,
    /// Its thread has forked since: what a child writes is not seen.
    pub(super) has_forked: bool,
    /// When the kernel's connection was first found to be gone.
    gone_since_ktime_ns: Option<u64>,
    /// When the descriptor was looked at last.
    descriptor_ktime_ns: u64,
}

impl OpenRequest {
    pub(super) fn new(request: ActiveRequest) -> Self {
        Self {
            descriptor_ktime_ns: request.start_ktime_ns,
            request,
            is_counted: false,
            response: None,
            is_answered: false,
            last_write_ktime_ns: 0,
            written_bytes: 0,
            is_untagged: false,
            is_followed: false,
            outbound: Outbound::default(),
            has_forked: false,
            gone_since_ktime_ns: None,
        }
    }

    /// Its connection, while the kernel side knows it and it serves no later request.
    pub(super) fn conn(&self, conns: &impl ConnView) -> Option<Conn> {
        let conn = conns.conn(self.request.process.pid, self.request.fd)?;
        (conn.request_id == self.request.id.0).then_some(conn)
    }

    /// Takes note of the latest write; 0 is none.
    pub(super) fn on_write(&mut self, last_write_ktime_ns: u64, written_bytes: u64) {
        self.is_answered |= last_write_ktime_ns != 0;
        // The kernel side tags the thread again when it writes.
        self.is_untagged &= last_write_ktime_ns <= self.last_write_ktime_ns;
        self.last_write_ktime_ns = self.last_write_ktime_ns.max(last_write_ktime_ns);
        self.written_bytes = self.written_bytes.max(written_bytes);
    }

    /// Takes note of the kernel's view of the connection, `None` if it serves another request by now.
    /// Returns whether the end must have been lost.
    pub(super) fn on_look(&mut self, conn: Option<Conn>, now_ktime_ns: u64) -> bool {
        if let Some(conn) = conn {
            self.gone_since_ktime_ns = None;
            self.on_write(conn.last_write_ktime_ns, conn.written_bytes);
            return false;
        }
        let since = *self.gone_since_ktime_ns.get_or_insert(now_ktime_ns);
        now_ktime_ns.saturating_sub(since) > LOST_END_NS
    }

    /// Whether it is time to look at the descriptor, and what to look for is known.
    pub(super) fn is_descriptor_due(&mut self, conn: &Conn, now_ktime_ns: u64) -> bool {
        let is_due = conn.inode != 0
            && now_ktime_ns.saturating_sub(self.descriptor_ktime_ns) >= DESCRIPTOR_NS;
        if is_due {
            self.descriptor_ktime_ns = now_ktime_ns;
        }
        is_due
    }

    /// How long the response is has been read from its head.
    pub(super) fn has_length(&self) -> bool {
        self.response
            .is_some_and(|response| response.total_bytes.is_some())
    }

    /// All bytes of the response are written.
    pub(super) fn is_complete(&self) -> bool {
        let total = self.response.and_then(|response| response.total_bytes);
        self.is_answered && total.is_some_and(|total| self.written_bytes >= total)
    }

    /// No byte was written for so long that none is expected.
    pub(super) fn is_over(&self, now_ktime_ns: u64) -> bool {
        self.is_complete()
            || self
                .quiet_ns(now_ktime_ns)
                .is_some_and(|quiet| quiet > QUIET_END_NS)
    }

    /// No byte was written for so long that the thread is probably doing something else.
    pub(super) fn is_quiet(&self, now_ktime_ns: u64, period_ns: u64) -> bool {
        let limit = QUIET_UNTAG_NS.max(2 * period_ns);
        self.quiet_ns(now_ktime_ns)
            .is_some_and(|quiet| quiet > limit)
    }

    fn quiet_ns(&self, now_ktime_ns: u64) -> Option<u64> {
        self.is_answered
            .then(|| now_ktime_ns.saturating_sub(self.last_write_ktime_ns))
    }
}
