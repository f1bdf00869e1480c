//! Finds the segment that a process's own agent reports for a profiled request.
//!
//! In:  [`ProfiledSegment`]s of processes with an agent, and what [`Source`] answers
//! Out: the same with their [`Binding`], as [`Settled`]
//! Lost: nothing; a request whose segment is not found keeps its own, with the reason ([`Unbound`])
//!
//! ```text
//!  request ended --2 s--> asked --no answer--> asked again, at growing distances --30 s--> synthetic
//!                           |
//!                           `-- one fits: bound
//! ```
//!
//! Agents send segments in batches and an OAP flushes its storage every few seconds, so requests wait. The
//! first question comes late on purpose: of two requests that look alike both have to be there, or one
//! would be taken for the other.
//!
//! [`question`] puts requests together that one query answers, [`choose`] decides, [`look`] asks.

mod choose;
mod look;
mod question;

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, sleep_until, timeout};

use crate::model::backoff::Backoff;
use crate::model::{
    ActiveRequest, AgentNames, AgentSpan, Binding, BoundBy, ProfiledSegment, Unbound,
};

pub use question::Window;

/// From the end of a request to the first question about it.
const SETTLE: Duration = Duration::from_secs(2);
/// From the end of a request until it is no longer asked for: the flush intervals of agent and OAP are
/// 3 and 15 s at most where they are not changed.
const DEADLINE: Duration = Duration::from_secs(30);
/// First and longest distance between two questions about a request.
const AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
/// First and longest pause after a question that was not answered.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Longest time for the last questions when the daemon ends.
const LEAVE: Duration = Duration::from_secs(4);
/// Requests that may wait.
const WAITING_MAX: usize = 256;
/// Requests that may wait to be waited for, while an answer is awaited.
const QUEUE_MAX: usize = 64;
/// Segments remembered as bound, so that none is bound twice.
const TAKEN_MAX: usize = 4096;

/// Who knows the agents' segments.
pub trait Source: Send + 'static {
    /// Segments that began in a window, as far as they are told without their spans.
    fn segments(&self, window: &Window) -> impl Future<Output = Result<SegmentList>> + Send;
    /// The entry spans of a trace.
    fn spans(&self, trace_id: &str) -> impl Future<Output = Result<Vec<AgentSpan>>> + Send;
}

/// Segments of a window.
#[derive(Clone, Debug, Default)]
pub struct SegmentList {
    /// In no order.
    pub segments: Vec<SegmentRow>,
    /// There are more.
    pub is_cut: bool,
}

/// A segment without its spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentRow {
    /// Id of the trace that has the segment.
    pub trace_id: String,
    /// Start, epoch milliseconds.
    pub start_unix_ms: i64,
    /// End, epoch milliseconds.
    pub end_unix_ms: i64,
}

/// Whether an agent would call this request so.
pub type IsEndpoint = fn(&ActiveRequest, &str) -> bool;

/// A request that is no longer waited for.
#[derive(Debug)]
pub struct Settled {
    /// With its binding.
    pub segment: Box<ProfiledSegment>,
    /// Questions about it that failed.
    pub failures: u64,
}

/// A request that waits.
#[derive(Debug)]
struct Waiting {
    segment: Box<ProfiledSegment>,
    agent: AgentNames,
    deadline: Instant,
    next: Instant,
    pauses: Backoff,
    failures: u64,
    /// What it will be if nothing is found any more.
    so_far: Unbound,
}

/// The way in. The binder ends when it is dropped, after a last look.
#[derive(Debug)]
pub struct Binder {
    requests: mpsc::Sender<Waiting>,
}

impl Binder {
    /// Starts the binder on the current tokio runtime; `snapshots_max` snapshots may wait.
    #[must_use]
    pub fn spawn(
        source: impl Source + Sync,
        is_endpoint: IsEndpoint,
        snapshots_max: usize,
    ) -> (Self, mpsc::Receiver<Settled>) {
        let (requests, queue) = mpsc::channel(QUEUE_MAX);
        let (settled, receiver) = mpsc::channel(QUEUE_MAX);
        let task = Task {
            source,
            is_endpoint,
            snapshots_max,
            queue,
            settled,
            waiting: Vec::new(),
            taken: Taken::default(),
            pauses: Backoff::new(RETRY),
            not_before: Instant::now(),
        };
        tokio::spawn(task.run());
        (Self { requests }, receiver)
    }

    /// Holds a request until its segment is found or given up.
    ///
    /// # Errors
    ///
    /// Too many wait; it is given back.
    pub fn hold(
        &self,
        segment: Box<ProfiledSegment>,
        agent: AgentNames,
    ) -> Result<(), Box<ProfiledSegment>> {
        let now = Instant::now();
        let waiting = Waiting {
            segment,
            agent,
            deadline: now + DEADLINE,
            next: now + SETTLE,
            pauses: Backoff::new(AGAIN),
            failures: 0,
            so_far: Unbound::NotFound,
        };
        self.requests
            .try_send(waiting)
            .map_err(|error| match error {
                TrySendError::Full(waiting) | TrySendError::Closed(waiting) => waiting.segment,
            })
    }
}

/// Segments that requests have been bound to, the latest.
#[derive(Debug, Default)]
pub struct Taken {
    ids: HashSet<String>,
    order: VecDeque<String>,
}

impl Taken {
    fn contains(&self, id: &str) -> bool {
        self.ids.contains(id)
    }

    /// Takes a segment for a request; false if it was taken before.
    pub fn take(&mut self, id: &str) -> bool {
        if !self.ids.insert(id.to_owned()) {
            return false;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > TAKEN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

struct Task<S> {
    source: S,
    is_endpoint: IsEndpoint,
    snapshots_max: usize,
    queue: mpsc::Receiver<Waiting>,
    settled: mpsc::Sender<Settled>,
    waiting: Vec<Waiting>,
    taken: Taken,
    pauses: Backoff,
    /// The source did not answer and gets a pause until then.
    not_before: Instant,
}

impl<S: Source + Sync> Task<S> {
    async fn run(mut self) {
        loop {
            let next = self
                .waiting
                .iter()
                .map(|waiting| waiting.next.max(self.not_before));
            let next = next.min();
            tokio::select! {
                request = self.queue.recv() => match request {
                    Some(request) => self.add(request).await,
                    None => break,
                },
                () = sleep_until(next.unwrap_or(self.not_before)), if next.is_some() => {
                    self.look(Instant::now()).await;
                    self.give_up(Instant::now()).await;
                }
            }
        }
        self.leave().await;
    }

    async fn add(&mut self, waiting: Waiting) {
        let held = self
            .waiting
            .iter()
            .map(|waiting| waiting.segment.snapshots.len());
        let snapshots = held.sum::<usize>() + waiting.segment.snapshots.len();
        let is_first = self.waiting.is_empty();
        let has_room = self.waiting.len() < WAITING_MAX && snapshots <= self.snapshots_max;
        if has_room || is_first {
            self.waiting.push(waiting);
        } else {
            self.settle_without(waiting, Unbound::TooMany).await;
        }
    }

    /// Those that have waited long enough.
    async fn give_up(&mut self, now: Instant) {
        let over = |waiting: &mut Waiting| waiting.deadline <= now;
        let over: Vec<Waiting> = self.waiting.extract_if(.., over).collect();
        for waiting in over {
            let why = waiting.so_far;
            self.settle_without(waiting, why).await;
        }
    }

    /// Everything is settled within some seconds.
    async fn leave(&mut self) {
        let now = Instant::now();
        for waiting in &mut self.waiting {
            waiting.next = now;
        }
        if now >= self.not_before {
            // Requests without an answer in time are settled below.
            let _answered = timeout(LEAVE, self.look(now)).await;
        }
        for waiting in std::mem::take(&mut self.waiting) {
            self.settle_without(waiting, Unbound::Leaving).await;
        }
    }

    /// The request's own calls may still name its segment; else it keeps ours.
    async fn settle_without(&mut self, mut waiting: Waiting, why: Unbound) {
        waiting.segment.binding = match &waiting.segment.request.outbound {
            Some(context) if self.taken.take(&context.parent_segment_id) => {
                let id = context.parent_segment_id.clone();
                waiting.segment.bind(&id, None, BoundBy::OutboundCall);
                waiting.segment.binding
            }
            Some(_) => Binding::Synthetic(Unbound::Taken),
            None => Binding::Synthetic(why),
        };
        self.send(waiting).await;
    }

    async fn settle_with(&mut self, mut waiting: Waiting, span: &AgentSpan) {
        if self.taken.take(&span.segment_id) {
            let by = match waiting.segment.request.outbound {
                Some(_) => BoundBy::OutboundCall,
                None => BoundBy::Query,
            };
            waiting.segment.bind(&span.segment_id, Some(span), by);
        } else {
            waiting.segment.binding = Binding::Synthetic(Unbound::Taken);
        }
        self.send(waiting).await;
    }

    async fn send(&self, waiting: Waiting) {
        let settled = Settled {
            segment: waiting.segment,
            failures: waiting.failures,
        };
        // Fails only when no receiver is left.
        let _gone = self.settled.send(settled).await;
    }
}

#[cfg(test)]
mod tests;
