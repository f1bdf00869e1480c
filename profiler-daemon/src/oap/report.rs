//! Delivers what the [`Queue`] hands out: trace segments, snapshots, coverage, ends of tasks.
//!
//! In:  [`Work`]
//! Out: `collect`, `collectSnapshot`, `ReportCoverage` (built-in OAP only), `reportTaskFinish`;
//!      [`OapEvent::TaskCancelled`], which the built-in OAP says in its answers
//! Lost: snapshots that were given to a connection which then failed -> `snapshots_lost`; a segment that no OAP
//! takes, with its snapshots -> `segments_lost`, `snapshots_lost`; each request with a loss ->
//! `requests_incomplete`
//!
//! One stream is open at a time; what is reported meanwhile rides in the next one, so batches grow
//! with the load and a lone request is delivered at once.
//!
//! # No key is sent twice
//!
//! The key of a segment is its id, that of a snapshot is task, segment and sequence. A second row with one key is an
//! error in SQL storages; BanyanDB before 0.10 keeps both rows, and an OAP then fails to list any request of
//! the task. When a stream fails, what the transport had taken from it may or may not have arrived, so it is not sent
//! again under its key. What the transport had not taken is sent on the next connection.
//!
//! # A request is sent until it can be shown
//!
//! An OAP shows a request if it has its segment and its snapshot 0, and nothing of it otherwise. So a segment that may have
//! arrived is sent again under another id ([`Outgoing::rename`]), and so is a whole request whose snapshot 0 may have
//! been lost. What has arrived of the first is one more trace. Snapshots of which the first has arrived
//! count as lost. A stream of segments that an OAP refuses is sent segment by segment, so one that it cannot take costs itself
//! alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use profiler_proto::profilerd::ReportCoverageRequest;
use profiler_proto::skywalking::{Commands, ProfileTaskFinishReport};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tonic::Status;
use tracing::{debug, warn};

use super::backoff::Backoff;
use super::link::{Connection, Failure, Link, explain};
use super::outgoing::Outgoing;
use super::presence::cut_service;
use super::progress::Progress;
use super::queue::{Queue, TaskAt, Work};
use super::{OapConfig, OapEvent};
use crate::embedded::wire::coverage_to_wire;
use crate::model::Coverage;

/// Attempts of a call that the OAP answers with an error before it has read anything of it.
const ATTEMPTS: u32 = 8;

/// The delivering task.
#[derive(Debug)]
pub(super) struct Reporter {
    pub(super) config: Arc<OapConfig>,
    pub(super) link: Link,
    pub(super) queue: Arc<Queue>,
    pub(super) events: mpsc::Sender<OapEvent>,
    /// Connection whose OAP does not know `ReportCoverage`.
    pub(super) without_coverage: Option<u64>,
}

/// The link is gone: nothing can be delivered any more.
struct Gone;

/// Attempts at one call.
struct Attempts {
    left: u32,
    backoff: Backoff,
}

/// What to do after a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The same call again: nothing of it has reached the OAP.
    Retry,
    /// What the connection had taken is settled as lost; go on behind it.
    GoOn,
    /// The OAP does not take such calls.
    GiveUp,
}

impl Reporter {
    /// Runs until the queue is closed and empty.
    pub(super) async fn run(mut self) {
        while let Some(work) = self.queue.next(self.config.batch_snapshots).await {
            let done = match work {
                Work::Segments(segments) => self.deliver(segments).await,
                Work::Coverage(key, coverage) => self.coverage(&key, coverage).await,
                Work::Finish(key, coverage) => self.finish(&key, coverage).await,
            };
            if done.is_err() {
                return;
            }
        }
    }

    fn attempts(&self) -> Attempts {
        Attempts {
            left: ATTEMPTS,
            backoff: Backoff::new(self.config.retry),
        }
    }

    /// A connection, unless all waiting is over.
    async fn connection(&self) -> Result<Connection, Gone> {
        tokio::select! {
            connection = self.link.connection() => connection.ok_or(Gone),
            () = self.queue.stopped() => Err(Gone),
        }
    }

    /// Waits as long as the failure asks for, and says how to go on. `taken` is the number of
    /// messages that the connection had taken from the stream.
    async fn after_failure(
        &self,
        attempts: &mut Attempts,
        connection: &Connection,
        status: &Status,
        taken: usize,
    ) -> Result<Next, Gone> {
        debug!(taken, "a call to the OAP failed: {}", explain(status));
        match Failure::of(status) {
            Failure::Unimplemented => return Ok(Next::GiveUp),
            Failure::Link if taken == 0 || is_unauthorized(status) => {
                self.next_connection(connection).await?;
                return Ok(Next::Retry);
            }
            Failure::Refused | Failure::Link if taken > 0 => return Ok(Next::GoOn),
            // The OAP turned the call away before it read the stream, and says that it will take it later:
            // the queue behind it is bounded, and has the spool.
            Failure::Busy => {}
            Failure::Refused | Failure::Link => {
                attempts.left -= 1;
                if attempts.left == 0 {
                    let reason = explain(status);
                    warn!(reason, "the OAP keeps refusing a call; it is given up");
                    return Ok(Next::GiveUp);
                }
            }
        }
        self.pause(attempts).await?;
        Ok(Next::Retry)
    }

    /// Waits for a connection after this one, unless all waiting is over.
    async fn next_connection(&self, connection: &Connection) -> Result<(), Gone> {
        tokio::select! {
            next = self.link.connection_after(connection.generation) => next.map(drop).ok_or(Gone),
            () = self.queue.stopped() => Err(Gone),
        }
    }

    async fn pause(&self, attempts: &mut Attempts) -> Result<(), Gone> {
        tokio::select! {
            () = sleep(attempts.backoff.pause()) => Ok(()),
            () = self.queue.stopped() => Err(Gone),
        }
    }

    /// Sends the trace segments that are ours, then the snapshots of all. What no connection has taken when all waiting
    /// ends goes back to the queue.
    async fn deliver(&self, segments: Vec<Outgoing>) -> Result<(), Gone> {
        let mut segments: Arc<[Outgoing]> = segments.into();
        let mut progress = Progress::new(&segments);
        let done = self.deliver_all(&mut segments, &mut progress).await;
        if done.is_err() {
            self.queue.put_back(progress.rest(&segments).into_iter());
        }
        done
    }

    async fn deliver_all(
        &self,
        segments: &mut Arc<[Outgoing]>,
        progress: &mut Progress,
    ) -> Result<(), Gone> {
        loop {
            self.deliver_segments(segments, progress).await?;
            if !self.deliver_snapshots(segments, progress).await? {
                return Ok(());
            }
        }
    }

    async fn deliver_segments(
        &self,
        segments: &mut Arc<[Outgoing]>,
        progress: &mut Progress,
    ) -> Result<(), Gone> {
        let mut attempts = self.attempts();
        let mut is_one_by_one = false;
        loop {
            let mut waiting = progress.waiting();
            if waiting.is_empty() {
                return Ok(());
            }
            if is_one_by_one {
                waiting.truncate(1);
            }
            let connection = self.connection().await?;
            let answers = self.link.state.answers();
            let (result, taken) = self
                .stream_segments(&connection, segments, waiting.clone())
                .await;
            let is_there = match result {
                Ok(_) => true,
                Err(status) => {
                    if may_have_arrived(&status) {
                        for &index in waiting.iter().take(taken) {
                            Arc::make_mut(segments)[index].rename();
                        }
                    }
                    let is_alive = taken > 0 && self.link.state.answers() != answers;
                    let next = self.after_segments(&mut attempts, &connection, &status, is_alive);
                    match next.await? {
                        Next::Retry => continue,
                        _ if waiting.len() > 1 => {
                            is_one_by_one = true;
                            attempts = self.attempts();
                            continue;
                        }
                        _ => false,
                    }
                }
            };
            for index in waiting {
                progress.settle_segment(index, is_there);
                let segment = &segments[index];
                self.queue.settle_segment(&segment.key, is_there);
                if !is_there {
                    warn!(
                        segment_id = segment.segment_id,
                        "no OAP accepted a trace segment: its request will not be shown"
                    );
                    let lost = segment.snapshots.len() as u64;
                    self.queue.settle(&segment.key, 0, lost);
                    self.queue.settle_incomplete(&segment.key);
                }
            }
            attempts = self.attempts();
        }
    }

    /// Waits as long as a failed stream of segments asks for, and says whether they are sent again. An OAP that
    /// is away costs no attempt; one that `is_alive` and breaks off this stream does.
    async fn after_segments(
        &self,
        attempts: &mut Attempts,
        connection: &Connection,
        status: &Status,
        is_alive: bool,
    ) -> Result<Next, Gone> {
        debug!("a stream of segments failed: {}", explain(status));
        match Failure::of(status) {
            Failure::Unimplemented => return Ok(Next::GiveUp),
            Failure::Link => {
                self.next_connection(connection).await?;
                if is_alive && !is_unauthorized(status) {
                    attempts.left -= 1;
                }
            }
            Failure::Busy => self.pause(attempts).await?,
            Failure::Refused => {
                attempts.left -= 1;
                self.pause(attempts).await?;
            }
        }
        Ok(if attempts.left == 0 {
            Next::GiveUp
        } else {
            Next::Retry
        })
    }

    /// Sends snapshots; true as soon as some request is to be sent again whole.
    async fn deliver_snapshots(
        &self,
        segments: &mut Arc<[Outgoing]>,
        progress: &mut Progress,
    ) -> Result<bool, Gone> {
        let rows = progress.rows(segments);
        for batch in rows.chunks(self.config.batch_snapshots.max(1)) {
            let mut next = 0;
            let mut attempts = self.attempts();
            while next < batch.len() {
                let connection = self.connection().await?;
                let rest = &batch[next..];
                let (result, taken) = self
                    .stream_snapshots(&connection, segments, rest.to_vec())
                    .await;
                let mut repeated = Vec::new();
                let (sent, lost) = match result {
                    Ok(_) => (rest.len(), 0),
                    Err(status) => {
                        let next = self.after_failure(&mut attempts, &connection, &status, taken);
                        let next = next.await?;
                        let lost = lost(next, taken, rest.len());
                        let beginnings = rest[..lost].iter().filter(|&&(_, row)| row == 0);
                        for &(index, _) in beginnings.filter(|_| next == Next::GoOn) {
                            if progress.repeat(index, &mut Arc::make_mut(segments)[index]) {
                                repeated.push(index);
                            }
                        }
                        (0, lost)
                    }
                };
                for (position, &(index, _)) in rest.iter().take(sent + lost).enumerate() {
                    if repeated.contains(&index) {
                        continue;
                    }
                    let (sent, lost) = if position < sent { (1, 0) } else { (0, 1) };
                    let key = &segments[index].key;
                    self.queue.settle(key, sent, lost);
                    progress.settle_snapshot(index);
                    if lost > 0 && progress.mark_incomplete(index) {
                        self.queue.settle_incomplete(key);
                    }
                }
                if !repeated.is_empty() {
                    return Ok(true);
                }
                next += sent + lost;
            }
        }
        Ok(false)
    }

    /// One `collect` stream of `those` segments; also says how many were taken.
    async fn stream_segments(
        &self,
        connection: &Connection,
        segments: &Arc<[Outgoing]>,
        those: Vec<usize>,
    ) -> (Result<Commands, Status>, usize) {
        let taken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&taken);
        let segments = Arc::clone(segments);
        let objects = those.into_iter().filter_map(move |index| {
            count.fetch_add(1, Ordering::Relaxed);
            segments[index].object.clone()
        });
        let mut client = connection.trace_segments();
        let call = client.collect(tokio_stream::iter(objects));
        let result = self.link.stream(connection, &taken, call).await;
        (result, taken.load(Ordering::Relaxed))
    }

    /// One `collectSnapshot` stream of `rows`; also says how many were taken.
    async fn stream_snapshots(
        &self,
        connection: &Connection,
        segments: &Arc<[Outgoing]>,
        rows: Vec<(usize, usize)>,
    ) -> (Result<Commands, Status>, usize) {
        let taken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&taken);
        let segments = Arc::clone(segments);
        let messages = rows.into_iter().map(move |(index, row)| {
            count.fetch_add(1, Ordering::Relaxed);
            let segment = &segments[index];
            segment.to_message(&segment.snapshots[row])
        });
        let mut client = connection.profile_task();
        let call = client.collect_snapshot(tokio_stream::iter(messages));
        let result = self.link.stream(connection, &taken, call).await;
        (result, taken.load(Ordering::Relaxed))
    }

    /// Sends counts so far; a SkyWalking OAP does not know the call, which is remembered.
    async fn coverage(&mut self, key: &TaskAt, coverage: Coverage) -> Result<(), Gone> {
        let mut attempts = self.attempts();
        loop {
            let connection = self.connection().await?;
            if self.without_coverage == Some(connection.generation) {
                return Ok(());
            }
            let Err(status) = self.send_coverage(&connection, key, &coverage).await else {
                return Ok(());
            };
            match Failure::of(&status) {
                Failure::Unimplemented => self.without_coverage = Some(connection.generation),
                Failure::Refused => return Ok(()), // for example a task of a former OAP
                Failure::Link | Failure::Busy => {}
            }
            let next = self.after_failure(&mut attempts, &connection, &status, 0);
            if next.await? == Next::GiveUp {
                return Ok(());
            }
        }
    }

    async fn send_coverage(
        &self,
        connection: &Connection,
        key: &TaskAt,
        coverage: &Coverage,
    ) -> Result<(), Status> {
        let mut coverage = coverage.clone();
        self.queue.stats_at(key).add_to(&mut coverage);
        let service = cut_service(&key.1);
        let request = ReportCoverageRequest {
            task_id: key.0.0.clone(),
            service: service.name,
            service_instance: service.instance,
            coverage: Some(coverage_to_wire(&coverage)),
        };
        let mut client = connection.tasks();
        let call = client.report_coverage(request);
        if self.link.call(connection, call).await?.is_cancelled {
            // If there is no room, the answer to the next report says it again.
            let _later = self.events.try_send(OapEvent::TaskCancelled(key.0.clone()));
        }
        Ok(())
    }

    /// Sends the last counts and the end of a task.
    async fn finish(&mut self, key: &TaskAt, coverage: Coverage) -> Result<(), Gone> {
        self.coverage(key, coverage).await?;
        let service = cut_service(&key.1);
        let report = ProfileTaskFinishReport {
            service: service.name,
            service_instance: service.instance,
            task_id: key.0.0.clone(),
        };
        let mut attempts = self.attempts();
        loop {
            let connection = self.connection().await?;
            let mut client = connection.profile_task();
            let call = client.report_task_finish(report.clone());
            let Err(status) = self.link.call(&connection, call).await else {
                self.queue.settle_finish(key);
                self.tell_losses(key);
                return Ok(());
            };
            let next = self.after_failure(&mut attempts, &connection, &status, 0);
            if next.await? == Next::GiveUp {
                warn!(task_id = %key.0, "the OAP did not accept the end of the task");
                return Ok(());
            }
        }
    }
}

impl Reporter {
    /// A SkyWalking OAP has no place for it.
    fn tell_losses(&self, key: &TaskAt) {
        let stats = self.queue.stats_at(key);
        if stats.snapshots_lost > 0 || stats.requests_incomplete > 0 {
            warn!(
                task_id = %key.0, instance = key.1.instance,
                requests_incomplete = stats.requests_incomplete,
                snapshots_lost = stats.snapshots_lost,
                segments_lost = stats.segments_lost,
                "the OAP does not have all requests of the task, or has not confirmed them"
            );
        }
    }
}

/// How many of `rest` messages are lost with a failed stream that had taken `taken`.
fn lost(next: Next, taken: usize, rest: usize) -> usize {
    match next {
        Next::Retry => 0,
        Next::GoOn => taken.min(rest),
        Next::GiveUp => rest,
    }
}

/// Whether what the transport had accepted of a failed stream may be in the OAP.
fn may_have_arrived(status: &Status) -> bool {
    !matches!(Failure::of(status), Failure::Busy) && !is_unauthorized(status)
}

/// The token was refused: the OAP has not read the call.
fn is_unauthorized(status: &Status) -> bool {
    use tonic::Code::{PermissionDenied, Unauthenticated};
    matches!(status.code(), PermissionDenied | Unauthenticated)
}
