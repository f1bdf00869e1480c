//! What waits for delivery, and what became of the rest.
//!
//! In:  profiled segments, coverage and task ends, from the pipeline
//! Out: [`Work`] for the reporter, in order; [`DeliveryStats`] per task
//! Lost: segments over the limits, repeated or empty ones -> [`ReportError`], counted per task; the end of a
//! task over the limits, and counts so far of more than [`TASKS_MAX`] tasks, told in the log
//!
//! ```text
//! report ──> memory, up to the limit ──> reporter
//!        └─> spool, once that is full, up to its limit ──> memory, when that is empty
//! ```
//!
//! While the spool has something all that is new goes behind it, so the order stays. The spool has a lock of
//! its own, held while an item goes to it or to the memory: readers of counts never wait for a disk.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tokio::sync::{Notify, watch};
use tracing::{debug, info, warn};

use super::delivery::DeliveryStats;
use super::ledger::{Ledger, Reported, TASKS_MAX};
use super::outgoing::{Item, Outgoing};
use super::room::QueueRoom;
use super::segment;
use super::spool::{Losses, Pushed, Spool};
use super::spool_file::RECORD_MAX_BYTES;
use crate::model::{Coverage, ProfiledSegment, Service, TaskId};

/// Why a segment was not taken.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ReportError {
    /// The queue is full: the OAP is away or slow.
    #[error("the queue is full: {0} snapshots are waiting for the OAP")]
    Full(usize),
    /// It takes more memory than all that waits may take.
    #[error("the segment takes {0} bytes of memory, more than limits.snapshot_memory allows")]
    TooLarge(usize),
    /// The spool is full.
    #[error("the spool on disk is full (limits.spool)")]
    SpoolFull,
    /// The spool cannot be written; the log has said why.
    #[error("the spool on disk cannot be written")]
    SpoolFailed,
    /// It is longer than the spool keeps.
    #[error(
        "the segment is {0} bytes long as a record of the spool on disk, which takes {max} each, and \
         memory is full; raise limits.snapshot_queue and limits.snapshot_memory to keep more there",
        max = RECORD_MAX_BYTES
    )]
    RecordTooLong(usize),
    /// The same segment id was reported before.
    #[error("the segment was reported before")]
    Repeated,
    /// No snapshot has a frame, or all are larger than a message may be.
    #[error("the segment has no snapshot that can be sent")]
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

#[derive(Debug)]
struct State {
    /// With the bytes each takes.
    items: VecDeque<(Item, usize)>,
    /// Of `items` and of what is in the reporter's hands.
    used: QueueRoom,
    /// Bytes in the reporter's hands.
    held_bytes: usize,
    coverage: BTreeMap<TaskAt, Coverage>,
    ledger: Ledger,
    reported: Reported,
    closed: bool,
}

/// The queue.
#[derive(Debug)]
pub(super) struct Queue {
    limit: QueueRoom,
    spool: Mutex<Option<Spool>>,
    /// Files of the spool and their size; changed with its lock held.
    spool_files: AtomicUsize,
    spool_bytes: AtomicU64,
    /// Locked for a moment, if both then after the spool.
    state: Mutex<State>,
    wake: Notify,
    /// True once nothing is waited for any more.
    stopping: watch::Sender<bool>,
}

impl Queue {
    pub(super) fn new(limit: QueueRoom) -> Self {
        let state = State {
            items: VecDeque::new(),
            used: QueueRoom::NONE,
            held_bytes: 0,
            coverage: BTreeMap::new(),
            ledger: Ledger::default(),
            reported: Reported::default(),
            closed: false,
        };
        Self {
            limit,
            spool: Mutex::default(),
            spool_files: AtomicUsize::new(0),
            spool_bytes: AtomicU64::new(0),
            state: Mutex::new(state),
            wake: Notify::new(),
            stopping: watch::Sender::default(),
        }
    }

    /// With a spool behind the memory; what a crash has cost it is counted here.
    pub(super) fn with_spool(limit: QueueRoom, spool: Spool, losses: Losses) -> Self {
        let queue = Self::new(limit);
        let mut state = queue.lock();
        for (key, lost) in losses.uncertain {
            warn!(
                task_id = %key.0, requests = lost.requests, snapshots = lost.snapshots,
                "requests were being sent when profilerd was killed: they may be lost"
            );
            let stats = state.ledger.of(&key);
            stats.snapshots_lost += lost.snapshots;
            stats.segments_lost += lost.segments;
            stats.requests_incomplete += lost.requests;
        }
        drop(state);
        warn_unreadable(losses.records);
        if !spool.is_empty() {
            let bytes = spool.bytes();
            info!(bytes, "results in the spool are sent first");
        }
        let mut place = queue.lock_spool();
        queue.note_spool(&spool);
        *place = Some(spool);
        drop(place);
        queue
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_spool(&self) -> MutexGuard<'_, Option<Spool>> {
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps for who does not hold the lock what the spool has.
    fn note_spool(&self, spool: &Spool) {
        self.spool_bytes.store(spool.bytes(), Ordering::Relaxed);
        self.spool_files.store(spool.files(), Ordering::Release);
    }

    /// Adds a segment. May write to the disk.
    pub(super) fn report(&self, mut segment: ProfiledSegment) -> Result<(), ReportError> {
        let removed = segment::normalize(&mut segment);
        let outgoing = Outgoing::new(segment);
        let key = outgoing.key.clone();
        let count = outgoing.snapshots.len() as u64;
        let admitted = self.lock().admit(&outgoing);
        let taken = admitted.and_then(|()| self.push(Item::Segment(Box::new(outgoing))));
        let mut state = self.lock();
        let stats = state.ledger.of(&key);
        stats.snapshots_lost += removed;
        if taken.is_err() {
            stats.snapshots_lost += count;
            stats.segments_lost += 1;
            stats.requests_incomplete += 1;
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
        } else {
            drop(state);
            debug!(task_id = %key.0, "counts of too many tasks wait for the OAP; these come with the task's end");
        }
    }

    /// Adds the end of a task, behind everything reported before. May write to the disk.
    pub(super) fn finish(&self, key: TaskAt, coverage: Coverage) {
        self.lock().coverage.remove(&key);
        let task_id = key.0.clone();
        if let Err(error) = self.push(Item::Finish(key, coverage)) {
            warn!(%task_id, %error, "the end of a task will not be reported");
        }
        self.wake.notify_one();
    }

    /// Adds an item behind all others, to the memory or the spool, and counts its snapshots as queued.
    fn push(&self, item: Item) -> Result<(), ReportError> {
        let needs = QueueRoom::of(&item);
        if needs.bytes > self.limit.bytes {
            // It would not have room on its way back either.
            return Err(ReportError::TooLarge(needs.bytes));
        }
        let mut spool = self.lock_spool();
        let is_spooling = spool.as_ref().is_some_and(|spool| !spool.is_empty());
        let waiting = {
            let mut state = self.lock();
            if !is_spooling && state.used.has_place_for(needs, self.limit) {
                state.add(item, needs);
                return Ok(());
            }
            state.used.snapshots
        };
        let spool = spool.as_mut().ok_or(ReportError::Full(waiting))?;
        match spool.push(&item) {
            Ok(Pushed::Written) => {
                self.note_spool(spool);
                self.lock().ledger.of(item.key()).snapshots_queued += needs.snapshots as u64;
                Ok(())
            }
            Ok(Pushed::NoRoom) => Err(ReportError::SpoolFull),
            Ok(Pushed::TooLong(bytes)) => Err(ReportError::RecordTooLong(bytes)),
            Err(error) => {
                warn!(%error, "the spool cannot be written, so results that memory has no room for are lost");
                Err(ReportError::SpoolFailed)
            }
        }
    }

    /// Waits for work; `None` when the queue is closed and empty. At most `batch` snapshots come
    /// together, unless one segment has more. Whoever asks for more has dealt with what there was.
    pub(super) async fn next(self: &Arc<Self>, batch: usize) -> Option<Work> {
        self.lock().release_held();
        loop {
            let woken = self.wake.notified();
            if let Some(work) = self.lock().take_items(batch) {
                return Some(work);
            }
            if self.spool_files.load(Ordering::Acquire) > 0 {
                let queue = Arc::clone(self);
                // Reads and decodes some megabytes.
                let refilled = tokio::task::spawn_blocking(move || queue.refill(batch)).await;
                if matches!(refilled, Ok(true)) {
                    continue;
                }
            }
            {
                let mut state = self.lock();
                if let Some((key, coverage)) = state.coverage.pop_first() {
                    return Some(Work::Coverage(key, coverage));
                }
                if state.closed && state.items.is_empty() {
                    return None;
                }
            }
            woken.await;
        }
    }

    /// Takes items of the spool into the empty memory; false if none could be read.
    fn refill(&self, batch: usize) -> bool {
        let mut place = self.lock_spool();
        let Some(spool) = place.as_mut() else {
            return false;
        };
        let taken = spool.take(batch);
        self.note_spool(spool);
        let taken = match taken {
            Ok(taken) => taken,
            Err(error) => {
                warn!(%error, "the spool cannot be read");
                return false;
            }
        };
        warn_unreadable(taken.unreadable);
        let mut state = self.lock();
        let has_read = !taken.items.is_empty() || taken.unreadable > 0;
        for item in taken.items {
            let needs = QueueRoom::of(&item);
            if !taken.is_inherited {
                // Counted when it was written.
                let stats = state.ledger.of(item.key());
                let count = needs.snapshots as u64;
                stats.snapshots_queued = stats.snapshots_queued.saturating_sub(count);
            }
            state.add(item, needs);
        }
        has_read
    }

    /// Takes back what was not given to a connection, before everything else.
    pub(super) fn put_back(&self, segments: impl DoubleEndedIterator<Item = Outgoing>) {
        let mut state = self.lock();
        for segment in segments.rev() {
            let item = Item::Segment(Box::new(segment));
            let bytes = QueueRoom::of(&item).bytes;
            state.used.bytes += bytes;
            state.items.push_front((item, bytes));
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
        state.used.snapshots = state.used.snapshots.saturating_sub((sent + lost) as usize);
        let stats = state.ledger.of(key);
        stats.snapshots_queued = stats.snapshots_queued.saturating_sub(sent + lost);
        stats.snapshots_sent += sent;
        stats.snapshots_lost += lost;
    }

    /// Notes what became of trace segments.
    pub(super) fn settle_segment(&self, key: &TaskAt, is_sent: bool) {
        let mut state = self.lock();
        let stats = state.ledger.of(key);
        if is_sent {
            stats.segments_sent += 1;
        } else {
            stats.segments_lost += 1;
        }
    }

    /// Notes that something of a request is lost; once for each.
    pub(super) fn settle_incomplete(&self, key: &TaskAt) {
        self.lock().ledger.of(key).requests_incomplete += 1;
    }

    /// Notes that the end of a task was reported.
    pub(super) fn settle_finish(&self, key: &TaskAt) {
        self.lock().ledger.of(key).finished += 1;
    }

    /// What became of the snapshots of one instance.
    pub(super) fn stats_at(&self, key: &TaskAt) -> DeliveryStats {
        self.lock().ledger.at(key)
    }

    /// What became of a task's snapshots, over all instances.
    pub(super) fn stats(&self, task_id: &TaskId) -> DeliveryStats {
        self.lock().ledger.of_task(task_id)
    }

    /// What became of all snapshots so far, tasks that are forgotten included, and what waits in memory or is
    /// being sent: of one instant.
    pub(super) fn observe(&self) -> (DeliveryStats, QueueRoom) {
        let state = self.lock();
        (state.ledger.all(), state.used)
    }

    /// Files of the spool and their size.
    pub(super) fn spooled(&self) -> (usize, u64) {
        let files = self.spool_files.load(Ordering::Acquire);
        (files, self.spool_bytes.load(Ordering::Relaxed))
    }

    /// Takes no more segments; what waits is still handed out.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    /// Leaves what waits to the spool, for the next start, or gives it up; returns the number of
    /// snapshots given up.
    pub(super) fn give_up(&self) -> u64 {
        let mut spool = self.lock_spool();
        let mut state = self.lock();
        let items = std::mem::take(&mut state.items);
        let waiting = || items.iter().map(|(item, _)| item);
        match spool.as_mut().map(|spool| spool.put_back(waiting())) {
            Some(Ok(too_long)) => {
                for item in &too_long {
                    let (lost, bytes) = (item.snapshots() as u64, item.encode().len());
                    warn!(error = %ReportError::RecordTooLong(bytes), lost, "a segment is lost");
                    state.lose(item);
                }
                // Items that are not kept are lost, or in a call that hangs.
                let lost: usize = too_long.iter().map(|item| item.snapshots()).sum();
                let kept = waiting().map(Item::snapshots).sum::<usize>() - lost;
                return state.used.snapshots.saturating_sub(kept) as u64;
            }
            Some(Err(error)) => warn!(%error, "results that wait for the OAP cannot be kept"),
            None => {}
        }
        let ends = waiting().filter(|item| matches!(item, Item::Finish(..)));
        let ends = ends.count();
        if ends > 0 {
            warn!(ends, "the end of tasks will not be reported to the OAP");
        }
        state.coverage.clear();
        state.used = QueueRoom::NONE;
        let mut given_up = 0;
        for (item, _) in &items {
            given_up += item.snapshots() as u64;
            state.lose(item);
        }
        // The rest is on its way in a call that hangs.
        given_up + state.ledger.lose_queued()
    }
}

fn warn_unreadable(lost: u64) {
    if lost > 0 {
        warn!(lost, "profiled requests of the spool cannot be read");
    }
}

impl State {
    /// What waits of a request is lost.
    fn lose(&mut self, item: &Item) {
        let Item::Segment(segment) = item else {
            return;
        };
        let snapshots = item.snapshots() as u64;
        let stats = self.ledger.of(&segment.key);
        stats.snapshots_queued = stats.snapshots_queued.saturating_sub(snapshots);
        stats.snapshots_lost += snapshots;
        stats.segments_lost += u64::from(segment.object.is_some());
        stats.requests_incomplete += 1;
    }

    /// Whether a segment is new and can be shown.
    fn admit(&mut self, segment: &Outgoing) -> Result<(), ReportError> {
        if self.closed {
            return Err(ReportError::Closed);
        }
        if self.reported.contains(&segment.segment_id) {
            return Err(ReportError::Repeated);
        }
        if segment.snapshots.is_empty() {
            return Err(ReportError::Empty);
        }
        self.reported.add(&segment.segment_id);
        Ok(())
    }

    fn add(&mut self, item: Item, needs: QueueRoom) {
        self.used += needs;
        self.ledger.of(item.key()).snapshots_queued += needs.snapshots as u64;
        self.items.push_back((item, needs.bytes));
    }

    fn release_held(&mut self) {
        self.used.bytes = self.used.bytes.saturating_sub(self.held_bytes);
        self.held_bytes = 0;
    }

    fn take_items(&mut self, batch: usize) -> Option<Work> {
        let mut segments: Vec<Outgoing> = Vec::new();
        let mut snapshots = 0;
        while let Some((item, bytes)) = self.items.pop_front() {
            match item {
                Item::Segment(segment)
                    if segments.is_empty() || snapshots + segment.snapshots.len() <= batch =>
                {
                    snapshots += segment.snapshots.len();
                    segments.push(*segment);
                }
                Item::Finish(key, coverage) if segments.is_empty() => {
                    self.held_bytes += bytes;
                    return Some(Work::Finish(key, coverage));
                }
                later => {
                    self.items.push_front((later, bytes));
                    break;
                }
            }
            self.held_bytes += bytes;
        }
        (!segments.is_empty()).then_some(Work::Segments(segments))
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

    fn queue(snapshots: usize) -> Arc<Queue> {
        Arc::new(Queue::new(QueueRoom {
            snapshots,
            ..QueueRoom::default()
        }))
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
        let queue = queue(100);
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
        let queue = queue(3);
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
                requests_incomplete: 2,
                ..DeliveryStats::default()
            }
        );
        assert_eq!(queue.give_up(), 9);
        let stats = queue.stats(&key("t").0);
        assert_eq!((stats.snapshots_lost, stats.requests_incomplete), (13, 3));
    }

    /// Check that a segment is taken once, with at least one frame, and not after the close.
    #[test]
    fn a_segment_is_taken_once() {
        let queue = queue(100);
        queue.report(segment("t", "a", &["m", ""])).unwrap();
        let refused = |id, stacks: &[&str]| queue.report(segment("t", id, stacks)).unwrap_err();
        assert_eq!(refused("a", &["m"]), ReportError::Repeated);
        assert_eq!(refused("b", &["", ""]), ReportError::Empty);
        queue.close();
        assert_eq!(refused("c", &["m"]), ReportError::Closed);
        let stats = queue.stats(&key("t").0);
        assert_eq!((stats.snapshots_queued, stats.snapshots_lost), (1, 5));
    }

    /// Check that memory is counted for all that waits and all that is being sent, that it has a limit, and
    /// that it is free again when all was dealt with.
    #[tokio::test]
    async fn memory_is_bounded_in_bytes() {
        let text = "x".repeat(1000);
        let limit = QueueRoom {
            bytes: 10_000,
            ..QueueRoom::default()
        };
        let queue = Arc::new(Queue::new(limit));
        let report = |n: usize| queue.report(segment("t", &n.to_string(), &[&text]));
        let refused = (0..99).find(|&n| report(n).is_err()).unwrap();
        assert!((3..9).contains(&refused), "{refused}");
        let used = queue.lock().used;
        assert!(used.bytes <= limit.bytes && used.bytes > refused * 1000);
        assert!(matches!(next(&queue, 1).await.as_str(), "0"));
        assert_eq!(queue.lock().used, used); // in the reporter's hands
        queue.settle(&key("t"), 1, 0);
        for n in 1..refused {
            assert_eq!(next(&queue, 1).await, n.to_string());
            queue.settle(&key("t"), 1, 0);
        }
        queue.finish(key("t"), Coverage::default());
        assert_eq!(next(&queue, 1).await, "finish t");
        queue.close();
        assert_eq!(next(&queue, 1).await, "end");
        assert_eq!(queue.lock().used, QueueRoom::NONE);
        let huge = segment("t", "huge", &[&"x".repeat(20_000)]);
        let queue = Arc::new(Queue::new(limit));
        assert!(matches!(queue.report(huge), Err(ReportError::TooLarge(_))));
    }
}
