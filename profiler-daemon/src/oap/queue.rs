//! What waits for delivery, and what became of the rest.
//!
//! In:  profiled segments, coverage and task ends, from the pipeline; never waits
//! Out: [`Work`] for the reporter, in order; [`DeliveryStats`] per task
//! Lost: segments over the limit, repeated or empty ones -> [`ReportError`], counted per task
//!
//! ```text
//! report ──> memory, up to the limit ──> reporter
//!        └─> spool, once that is full, up to its limit ──> memory, when that is empty
//! ```
//!
//! While the spool has something all that is new goes behind it, so the order stays.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tokio::sync::{Notify, watch};
use tracing::warn;

use super::outgoing::{Item, Outgoing};
use super::segment;
use super::spool::{Losses, Spool};
use crate::model::{Coverage, ProfiledSegment, Service, TaskId};

/// Segment ids remembered to recognise one that is reported again.
const REMEMBERED_SEGMENTS: usize = 4096;
/// Tasks whose counts are kept, and ends of tasks that may wait.
const TASKS_MAX: usize = 1024;

/// What became of a task's snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeliveryStats {
    /// Accepted by the OAP.
    pub snapshots_sent: u64,
    /// Not delivered, or not known to be.
    pub snapshots_lost: u64,
    /// Waiting.
    pub snapshots_queued: u64,
    /// Trace segments accepted by the OAP.
    pub segments_sent: u64,
    /// Trace segments not delivered, or not known to be.
    pub segments_lost: u64,
    /// Service instances for which the end of the task was reported.
    pub finished: u64,
}

/// Why a segment was not taken.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ReportError {
    /// The queue is full: the OAP is away or slow.
    #[error("the queue is full: {0} snapshots are waiting for the OAP")]
    Full(usize),
    /// The spool is full, or cannot be written.
    #[error("the spool on disk has no room for what waits for the OAP (limits.spool)")]
    SpoolFull,
    /// The same segment id was reported before.
    #[error("the segment was reported before")]
    Repeated,
    /// No snapshot has a frame.
    #[error("the segment has no snapshot")]
    Empty,
    /// The client is shutting down.
    #[error("the OAP client is shutting down")]
    Closed,
}

/// A task at a service instance.
pub(super) type TaskAt = (TaskId, Service);

/// Something to send.
#[derive(Debug)]
pub(super) enum Work {
    /// Segments, to be delivered together.
    Segments(Vec<Outgoing>),
    /// Counts so far.
    Coverage(TaskAt, Coverage),
    /// The end of a task; everything reported before has been dealt with.
    Finish(TaskAt, Coverage),
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    finishes: usize,
    /// Snapshots in `items` and in the reporter's hands.
    snapshots: usize,
    coverage: BTreeMap<TaskAt, Coverage>,
    stats: BTreeMap<TaskAt, DeliveryStats>,
    /// Keys of `stats`, oldest first.
    stats_order: VecDeque<TaskAt>,
    reported: HashSet<String>,
    reported_order: VecDeque<String>,
    spool: Option<Spool>,
    closed: bool,
}

/// The queue. Calls lock it for a moment.
#[derive(Debug)]
pub(super) struct Queue {
    limit: usize,
    state: Mutex<State>,
    wake: Notify,
    /// True once nothing is waited for any more.
    stopping: watch::Sender<bool>,
}

impl Queue {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            state: Mutex::default(),
            wake: Notify::new(),
            stopping: watch::Sender::default(),
        }
    }

    /// With a spool behind the memory; what a crash has cost it is counted here.
    pub(super) fn with_spool(limit: usize, spool: Spool, losses: Losses) -> Self {
        let queue = Self::new(limit);
        let mut state = queue.lock();
        for (key, lost) in losses.snapshots {
            warn!(task_id = %key.0, lost, "snapshots were being sent when profilerd died: they may be lost");
            state.stats(&key).snapshots_lost += lost;
        }
        if losses.records > 0 {
            warn!(
                lost = losses.records,
                "profiled requests of the spool cannot be read"
            );
        }
        state.spool = Some(spool);
        drop(state);
        queue
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a segment. A segment larger than the whole limit is taken if nothing else waits.
    pub(super) fn report(&self, mut segment: ProfiledSegment) -> Result<(), ReportError> {
        let removed = segment::normalize(&mut segment);
        let count = segment.snapshots.len();
        let key = (segment.task_id.clone(), segment.service.clone());
        let mut state = self.lock();
        state.stats(&key).snapshots_lost += removed;
        let taken = if state.closed {
            Err(ReportError::Closed)
        } else if state.reported.contains(&segment.request.request.segment_id) {
            Err(ReportError::Repeated)
        } else if count == 0 {
            Err(ReportError::Empty)
        } else {
            let segment_id = segment.request.request.segment_id.clone();
            let item = Item::Segment(Box::new(Outgoing::new(segment)));
            let taken = state.push(item, self.limit);
            if taken.is_ok() {
                state.remember(&segment_id);
            }
            taken
        };
        let stats = state.stats(&key);
        match taken {
            Ok(()) => stats.snapshots_queued += count as u64,
            Err(_) => {
                stats.snapshots_lost += count as u64;
                stats.segments_lost += 1;
            }
        }
        drop(state);
        self.wake.notify_one();
        taken
    }

    /// Replaces the counts of a task that are to be sent.
    pub(super) fn coverage(&self, key: TaskAt, coverage: Coverage) {
        let mut state = self.lock();
        if state.coverage.len() < TASKS_MAX || state.coverage.contains_key(&key) {
            state.coverage.insert(key, coverage);
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Adds the end of a task, behind everything reported before.
    pub(super) fn finish(&self, key: TaskAt, coverage: Coverage) {
        let mut state = self.lock();
        if state.finishes < TASKS_MAX {
            state.coverage.remove(&key);
            if state.push(Item::Finish(key, coverage), self.limit).is_err() {
                warn!("the spool is full: the end of a task will not be reported");
            }
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Waits for work; `None` when the queue is closed and empty. At most `batch` snapshots come
    /// together, unless one segment has more.
    pub(super) async fn next(self: &Arc<Self>, batch: usize) -> Option<Work> {
        loop {
            let woken = self.wake.notified();
            let needs_file = {
                let mut state = self.lock();
                // Whoever asks for more has dealt with what there was.
                let needs_file = state.items.is_empty() && state.spool.is_some();
                if !needs_file && let Some(work) = state.take(batch) {
                    return Some(work);
                }
                needs_file
            };
            if needs_file {
                let queue = Arc::clone(self);
                // Reads and decodes some megabytes.
                let _done = tokio::task::spawn_blocking(move || queue.lock().refill()).await;
            }
            {
                let mut state = self.lock();
                if let Some(work) = state.take(batch) {
                    return Some(work);
                }
                if state.closed {
                    return None;
                }
            }
            woken.await;
        }
    }

    /// Takes back what was not given to a connection, before everything else.
    pub(super) fn put_back(&self, segments: impl DoubleEndedIterator<Item = Outgoing>) {
        let mut state = self.lock();
        for segment in segments.rev() {
            state.items.push_front(Item::Segment(Box::new(segment)));
        }
    }

    /// Ends all waiting for a connection.
    pub(super) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Waits for [`Self::stop`].
    pub(super) async fn stopped(&self) {
        let mut stopping = self.stopping.subscribe();
        // It fails only when the queue is gone.
        let _stopped = stopping.wait_for(|stop| *stop).await;
    }

    /// Notes what became of queued snapshots.
    pub(super) fn settle(&self, key: &TaskAt, sent: u64, lost: u64) {
        let mut state = self.lock();
        state.snapshots = state.snapshots.saturating_sub((sent + lost) as usize);
        let stats = state.stats(key);
        stats.snapshots_queued = stats.snapshots_queued.saturating_sub(sent + lost);
        stats.snapshots_sent += sent;
        stats.snapshots_lost += lost;
    }

    /// Notes what became of trace segments.
    pub(super) fn settle_segment(&self, key: &TaskAt, is_sent: bool) {
        let mut state = self.lock();
        let stats = state.stats(key);
        if is_sent {
            stats.segments_sent += 1;
        } else {
            stats.segments_lost += 1;
        }
    }

    /// Notes that the end of a task was reported.
    pub(super) fn settle_finish(&self, key: &TaskAt) {
        self.lock().stats(key).finished += 1;
    }

    /// What became of the snapshots of one instance.
    pub(super) fn stats_at(&self, key: &TaskAt) -> DeliveryStats {
        self.lock().stats.get(key).copied().unwrap_or_default()
    }

    /// What became of a task's snapshots, over all instances.
    pub(super) fn stats(&self, task_id: &TaskId) -> DeliveryStats {
        let state = self.lock();
        let fitting = state.stats.iter().filter(|((id, _), _)| id == task_id);
        fitting.fold(DeliveryStats::default(), |mut sum, (_, stats)| {
            sum.snapshots_sent += stats.snapshots_sent;
            sum.snapshots_lost += stats.snapshots_lost;
            sum.snapshots_queued += stats.snapshots_queued;
            sum.segments_sent += stats.segments_sent;
            sum.segments_lost += stats.segments_lost;
            sum.finished += stats.finished;
            sum
        })
    }

    /// Takes no more segments; what waits is still handed out.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    /// Leaves what waits to the spool, for the next start, or gives it up; returns the number of
    /// snapshots given up.
    pub(super) fn give_up(&self) -> u64 {
        let mut state = self.lock();
        let State { items, spool, .. } = &mut *state;
        match spool.as_mut().map(|spool| spool.put_back(items.iter())) {
            Some(Ok(())) => {
                // The rest is on its way in a call that hangs.
                let kept = items.iter().map(Item::snapshots).sum();
                let hanging = state.snapshots.saturating_sub(kept);
                state.items.clear();
                return hanging as u64;
            }
            Some(Err(error)) => warn!(%error, "what waits for the OAP cannot be kept"),
            None => {}
        }
        state.items.clear();
        state.coverage.clear();
        state.finishes = 0;
        state.snapshots = 0;
        let mut given_up = 0;
        for stats in state.stats.values_mut() {
            given_up += stats.snapshots_queued;
            stats.snapshots_lost += stats.snapshots_queued;
            stats.snapshots_queued = 0;
        }
        given_up
    }
}

impl State {
    fn stats(&mut self, key: &TaskAt) -> &mut DeliveryStats {
        if !self.stats.contains_key(key) {
            if self.stats_order.len() >= TASKS_MAX
                && let Some(oldest) = self.stats_order.pop_front()
            {
                self.stats.remove(&oldest);
            }
            self.stats_order.push_back(key.clone());
        }
        self.stats.entry(key.clone()).or_default()
    }

    fn remember(&mut self, segment_id: &str) {
        if self.reported_order.len() >= REMEMBERED_SEGMENTS
            && let Some(oldest) = self.reported_order.pop_front()
        {
            self.reported.remove(&oldest);
        }
        self.reported.insert(segment_id.to_owned());
        self.reported_order.push_back(segment_id.to_owned());
    }

    /// Adds an item behind all others, to the memory or the spool.
    fn push(&mut self, item: Item, limit: usize) -> Result<(), ReportError> {
        let count = item.snapshots();
        let is_spooling = self.spool.as_ref().is_some_and(|spool| !spool.is_empty());
        let has_room = self.snapshots == 0 || self.snapshots + count <= limit;
        if is_spooling || !has_room {
            let spool = self
                .spool
                .as_mut()
                .ok_or(ReportError::Full(self.snapshots))?;
            return match spool.push(&item) {
                Ok(true) => Ok(()),
                Ok(false) => Err(ReportError::SpoolFull),
                Err(error) => {
                    warn!(%error, "the spool cannot be written");
                    Err(ReportError::SpoolFull)
                }
            };
        }
        self.snapshots += count;
        self.finishes += usize::from(matches!(item, Item::Finish(..)));
        self.items.push_back(item);
        Ok(())
    }

    /// Takes a file of the spool into the empty memory.
    fn refill(&mut self) {
        let Some(spool) = &mut self.spool else { return };
        let (items, unreadable) = match spool.take() {
            Ok(taken) => taken.unwrap_or_default(),
            Err(error) => {
                warn!(%error, "the spool cannot be read");
                return;
            }
        };
        if unreadable > 0 {
            warn!(
                lost = unreadable,
                "profiled requests of the spool cannot be read"
            );
        }
        for item in &items {
            self.snapshots += item.snapshots();
            self.finishes += usize::from(matches!(item, Item::Finish(..)));
            // Nothing was counted of what a daemon before this one has left.
            let count = item.snapshots() as u64;
            let stats = self.stats(item.key());
            stats.snapshots_queued = stats.snapshots_queued.max(count);
        }
        self.items.extend(items);
    }

    fn take(&mut self, batch: usize) -> Option<Work> {
        let mut segments: Vec<Outgoing> = Vec::new();
        let mut snapshots = 0;
        while let Some(item) = self.items.pop_front() {
            match item {
                Item::Segment(segment) => {
                    let count = segment.snapshots.len();
                    if !segments.is_empty() && snapshots + count > batch {
                        self.items.push_front(Item::Segment(segment));
                        break;
                    }
                    snapshots += count;
                    segments.push(*segment);
                }
                Item::Finish(key, coverage) if segments.is_empty() => {
                    self.finishes -= 1;
                    return Some(Work::Finish(key, coverage));
                }
                finish @ Item::Finish(..) => {
                    self.items.push_front(finish);
                    break;
                }
            }
        }
        if !segments.is_empty() {
            return Some(Work::Segments(segments));
        }
        let (key, coverage) = self.coverage.pop_first()?;
        Some(Work::Coverage(key, coverage))
    }
}

#[cfg(test)]
mod tests {
    use super::super::segment::tests::segment;
    use super::*;

    fn key(task: &str) -> TaskAt {
        let segment = segment(task, "", &[]);
        (segment.task_id, segment.service)
    }

    async fn next(queue: &Arc<Queue>, batch: usize) -> String {
        match queue.next(batch).await {
            Some(Work::Segments(segments)) => segments
                .iter()
                .map(|segment| segment.segment_id.as_str())
                .collect::<Vec<_>>()
                .join("+"),
            Some(Work::Coverage((task, _), _)) => format!("coverage {task}"),
            Some(Work::Finish((task, _), _)) => format!("finish {task}"),
            None => "end".to_owned(),
        }
    }

    /// Check that segments come in batches, a task's end behind them, and coverage when idle.
    #[tokio::test]
    async fn work_comes_in_order() {
        let queue = Arc::new(Queue::new(100));
        queue.report(segment("t", "a", &["m", "m"])).unwrap();
        queue.report(segment("t", "b", &["m"])).unwrap();
        queue.report(segment("t", "c", &["m"])).unwrap();
        queue.coverage(key("u"), Coverage::default());
        queue.finish(key("t"), Coverage::default());
        queue.report(segment("u", "d", &["m"; 9])).unwrap();
        queue.close();
        let mut order = Vec::new();
        loop {
            let work = next(&queue, 3).await;
            if work == "end" {
                break;
            }
            order.push(work);
        }
        assert_eq!(order, ["a+b", "c", "finish t", "d", "coverage u"]);
    }

    /// Check that a full queue refuses the newest and counts it, and that settling makes room.
    #[tokio::test]
    async fn a_full_queue_refuses_the_newest() {
        let queue = Arc::new(Queue::new(3));
        queue.report(segment("t", "a", &["m", "m"])).unwrap();
        assert_eq!(
            queue.report(segment("t", "b", &["m", "m"])),
            Err(ReportError::Full(2))
        );
        assert!(queue.next(10).await.is_some());
        assert_eq!(
            queue.report(segment("t", "c", &["m", "m"])),
            Err(ReportError::Full(2)) // still in the reporter's hands
        );
        queue.settle(&key("t"), 2, 0);
        queue.report(segment("t", "huge", &["m"; 9])).unwrap();
        assert_eq!(
            queue.stats(&key("t").0),
            DeliveryStats {
                snapshots_sent: 2,
                snapshots_lost: 4,
                snapshots_queued: 9,
                segments_lost: 2,
                ..DeliveryStats::default()
            }
        );
        assert_eq!(queue.give_up(), 9);
        assert_eq!(queue.stats(&key("t").0).snapshots_lost, 13);
    }

    /// Check that a segment is taken once, with at least one frame, and not after the close.
    #[test]
    fn a_segment_is_taken_once() {
        let queue = Arc::new(Queue::new(100));
        queue.report(segment("t", "a", &["m", ""])).unwrap();
        let refused = |id, stacks: &[&str]| queue.report(segment("t", id, stacks)).unwrap_err();
        assert_eq!(refused("a", &["m"]), ReportError::Repeated);
        assert_eq!(refused("b", &["", ""]), ReportError::Empty);
        queue.close();
        assert_eq!(refused("c", &["m"]), ReportError::Closed);
        let stats = queue.stats(&key("t").0);
        assert_eq!((stats.snapshots_queued, stats.snapshots_lost), (1, 5));
    }
}
