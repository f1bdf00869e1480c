//! Delivers what the [`Queue`] hands out: trace segments, snapshots, coverage, ends of tasks.
//!
//! In:  [`Work`]
//! Out: `collect`, `collectSnapshot`, `ReportCoverage` (embedded OAP only), `reportTaskFinish`
//! Lost: snapshots that were given to a connection which then failed -> `snapshots_lost`
//!
//! One stream is open at a time; what is reported meanwhile rides in the next one, so batches grow
//! with the load and a lone request is delivered at once.
//!
//! # No snapshot is sent twice
//!
//! The key of a snapshot is task, segment and sequence; a second row with one key is an error in
//! SQL storages. When a stream fails, what the transport had taken from it may or may not have
//! arrived: it counts as lost and is not sent again. What the transport had not taken is sent on
//! the next connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use profiler_proto::profilerd::ReportCoverageRequest;
use profiler_proto::skywalking::{Commands, ProfileTaskFinishReport};
use tokio::time::sleep;
use tonic::Status;
use tracing::{debug, warn};

use super::OapConfig;
use super::backoff::Backoff;
use super::link::{Connection, Failure, Link, explain};
use super::outgoing::Outgoing;
use super::presence::cut_service;
use super::queue::{Queue, TaskAt, Work};
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

/// What was dealt with of some segments.
#[derive(Default)]
struct Progress {
    objects: usize,
    /// Over all segments, in order.
    snapshots: usize,
}

impl Progress {
    /// How many snapshots of one segment were dealt with.
    fn snapshots_of(&self, index: usize, segments: &[Outgoing]) -> usize {
        let before: usize = segments[..index].iter().map(|s| s.snapshots.len()).sum();
        self.snapshots
            .saturating_sub(before)
            .min(segments[index].snapshots.len())
    }
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
                tokio::select! {
                    next = self.link.connection_after(connection.generation) => {
                        next.ok_or(Gone)?;
                    }
                    () = self.queue.stopped() => return Err(Gone),
                }
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
        tokio::select! {
            () = sleep(attempts.backoff.pause()) => Ok(Next::Retry),
            () = self.queue.stopped() => Err(Gone),
        }
    }

    /// Sends the trace segments that are ours, then the snapshots of all. What no connection has taken when all waiting
    /// ends goes back to the queue.
    async fn deliver(&self, segments: Vec<Outgoing>) -> Result<(), Gone> {
        let segments: Arc<[Outgoing]> = segments.into();
        let mut progress = Progress::default();
        let done = self.deliver_all(&segments, &mut progress).await;
        if done.is_err() {
            let rest = segments.iter().enumerate().filter_map(|(index, segment)| {
                let is_sent = index < progress.objects;
                let from = progress.snapshots_of(index, &segments);
                let rest = Outgoing {
                    object: segment.object.clone().filter(|_| !is_sent),
                    snapshots: segment.snapshots[from..].to_vec(),
                    ..segment.clone()
                };
                (!rest.snapshots.is_empty()).then_some(rest)
            });
            self.queue.put_back(rest.collect::<Vec<_>>().into_iter());
        }
        done
    }

    async fn deliver_all(
        &self,
        segments: &Arc<[Outgoing]>,
        progress: &mut Progress,
    ) -> Result<(), Gone> {
        let mut attempts = self.attempts();
        // What hangs below an agent's segment has no object of ours.
        while segments[progress.objects..]
            .iter()
            .any(|segment| segment.object.is_some())
        {
            let connection = self.connection().await?;
            let next = progress.objects;
            let (result, taken) = self.stream_segments(&connection, segments, next).await;
            let rest = segments.len() - next;
            let (sent, lost) = match result {
                Ok(_) => (rest, 0),
                Err(status) => {
                    let next = self.after_failure(&mut attempts, &connection, &status, taken);
                    (0, lost(next.await?, taken, rest))
                }
            };
            for (index, segment) in segments[next..].iter().take(sent + lost).enumerate() {
                if segment.object.is_some() {
                    self.queue.settle_segment(&segment.key, index < sent);
                }
            }
            progress.objects += sent + lost;
        }

        let rows: Vec<(usize, usize)> = (0..segments.len())
            .flat_map(|index| (0..segments[index].snapshots.len()).map(move |row| (index, row)))
            .collect();
        for batch in rows.chunks(self.config.batch_snapshots.max(1)) {
            let mut next = 0;
            let mut attempts = self.attempts();
            while next < batch.len() {
                let connection = self.connection().await?;
                let rest = &batch[next..];
                let (result, taken) = self
                    .stream_snapshots(&connection, segments, rest.to_vec())
                    .await;
                let (sent, lost) = match result {
                    Ok(_) => (rest.len(), 0),
                    Err(status) => {
                        let next = self.after_failure(&mut attempts, &connection, &status, taken);
                        (0, lost(next.await?, taken, rest.len()))
                    }
                };
                for (position, &(index, _)) in rest.iter().take(sent + lost).enumerate() {
                    let (sent, lost) = if position < sent { (1, 0) } else { (0, 1) };
                    self.queue.settle(&segments[index].key, sent, lost);
                }
                next += sent + lost;
                progress.snapshots += sent + lost;
            }
        }
        Ok(())
    }

    /// One `collect` stream of the segments from `first` on; also says how many were taken.
    async fn stream_segments(
        &self,
        connection: &Connection,
        segments: &Arc<[Outgoing]>,
        first: usize,
    ) -> (Result<Commands, Status>, usize) {
        let taken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&taken);
        let segments = Arc::clone(segments);
        let objects = (first..segments.len()).filter_map(move |index| {
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
        let stats = self.queue.stats_at(key);
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
        self.link
            .call(connection, client.report_coverage(request))
            .await?;
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
                return Ok(());
            };
            let next = self.after_failure(&mut attempts, &connection, &status, 0);
            if next.await? == Next::GiveUp {
                warn!(task_id = %key.0, "the OAP did not take the end of the task");
                return Ok(());
            }
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

/// The token was refused: the OAP has not looked at the call.
fn is_unauthorized(status: &Status) -> bool {
    use tonic::Code::{PermissionDenied, Unauthenticated};
    matches!(status.code(), PermissionDenied | Unauthenticated)
}
