//! An open request, from its head to its last byte.
//!
//! A pause ends no request: a handler may take a minute between two writes. A request ends by the framing
//! of its response ([`Answer`]), or by an event of the kernel side.

use profiler_common::{Conn, EndReason, conn_flag, ends_chunks};

use super::answer::Answer;
use super::head::RequestHead;
use super::sw8;
use super::tracker::ConnView;
use crate::model::{ActiveRequest, Sw8};
use crate::process::wait_set::WaitSet;

/// How long an end may be missing after the connection's state is gone, before it is taken as lost.
pub(super) const LOST_END_NS: u64 = 1_000_000_000;

/// How often the descriptor of a request is checked, where not every close is seen.
const DESCRIPTOR_NS: u64 = 1_000_000_000;

/// The contexts that a request's own calls carry.
#[derive(Debug, Default)]
pub(super) enum Outbound {
    /// No call had one.
    #[default]
    None,
    /// All had the same segment.
    One(Box<Sw8>),
    /// Several segments: which one is the request's is unknown.
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

/// A request that runs.
#[derive(Debug)]
pub(super) struct OpenRequest {
    pub(super) request: ActiveRequest,
    /// Holds one of the task's places.
    pub(super) is_counted: bool,
    pub(super) answer: Answer,
    /// The client pipelined: later writes on this connection belong to the next request.
    pub(super) is_followed: bool,
    pub(super) outbound: Outbound,
    /// Its thread has forked since: what a child writes is not seen.
    pub(super) has_forked: bool,
    /// The set that its thread slept on, as long as nobody has found out who else is in it.
    pub(super) wait: Option<WaitSet>,
    /// The set whose others were found to be none.
    own_wait: Option<WaitSet>,
    /// A set that its thread slept on, and since when (`CLOCK_MONOTONIC`): behind the answer's latest write, so that it
    /// counts if another one follows.
    last_wait: Option<(WaitSet, u64)>,
    /// When and why it ended, if its end waits for that.
    pub(super) ended: Option<(u64, Option<EndReason>)>,
    /// When the kernel's connection was first found to be gone.
    gone_since_ktime_ns: Option<u64>,
    /// When the descriptor was checked last.
    descriptor_ktime_ns: u64,
}

impl OpenRequest {
    pub(super) fn new(request: ActiveRequest) -> Self {
        Self {
            descriptor_ktime_ns: request.start_ktime_ns,
            request,
            is_counted: false,
            answer: Answer::default(),
            is_followed: false,
            outbound: Outbound::default(),
            has_forked: false,
            wait: None,
            own_wait: None,
            last_wait: None,
            ended: None,
            gone_since_ktime_ns: None,
        }
    }

    /// Its connection, while the kernel side knows it and it serves no later request.
    pub(super) fn conn(&self, conns: &impl ConnView) -> Option<Conn> {
        let conn = conns.conn(self.request.process.pid, self.request.fd)?;
        (conn.request_id == self.request.id.0).then_some(conn)
    }

    /// Takes note of the latest write; 0 is none.
    pub(super) fn on_write(
        &mut self,
        last_write_ktime_ns: u64,
        written_bytes: u64,
        has_last_chunk: bool,
    ) {
        self.answer
            .on_write(last_write_ktime_ns, written_bytes, has_last_chunk);
        let last_write_ktime_ns = self.answer.last_write_ktime_ns;
        let is_followed = |(_, since): &mut (WaitSet, u64)| *since < last_write_ktime_ns;
        if let Some((set, _)) = self.last_wait.take_if(is_followed) {
            self.on_wait(Some(set));
        }
    }

    /// Takes note of what the kernel side has seen of the response.
    pub(super) fn on_conn(&mut self, conn: &Conn) {
        let has_last_chunk = ends_chunks(conn.tail);
        self.on_write(conn.last_write_ktime_ns, conn.written_bytes, has_last_chunk);
    }

    /// Takes bytes of the response, with which so many are written.
    pub(super) fn on_response(&mut self, bytes: &[u8], written_bytes: u64) {
        self.answer
            .on_bytes(bytes, written_bytes, &self.request.method);
    }

    /// The thread slept on a set before the answer, or between two parts of it.
    pub(super) fn on_wait(&mut self, set: Option<WaitSet>) {
        if self.own_wait.is_none() || self.own_wait != set {
            self.wait = set.or(self.wait.take());
        }
    }

    /// The thread sleeps on a set since an instant.
    pub(super) fn on_sleep(&mut self, set: WaitSet, since_ktime_ns: u64) {
        if self.answer.has_begun && since_ktime_ns >= self.answer.last_write_ktime_ns {
            self.last_wait = Some((set, since_ktime_ns));
        } else {
            self.on_wait(Some(set));
        }
    }

    /// The set that the thread slept on has been found to be the request's own.
    pub(super) fn on_own_wait(&mut self) {
        self.own_wait = self.wait.take();
    }

    /// Takes note of the kernel's view of the connection, `None` if it serves another request by now.
    /// Returns whether the end must have been lost.
    pub(super) fn on_look(&mut self, conn: Option<Conn>, now_ktime_ns: u64) -> bool {
        if let Some(conn) = conn {
            self.gone_since_ktime_ns = None;
            let has_waited = conn.flags & conn_flag::WAITED != 0;
            self.on_wait(has_waited.then_some(WaitSet::Epoll(conn.wait_fd)));
            self.on_conn(&conn);
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
}
