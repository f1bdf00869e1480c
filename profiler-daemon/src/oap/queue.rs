//! What waits for delivery, and what became of the rest.
//!
//! In:  profiled segments, coverage and task ends, from the pipeline; never waits
//! Out: [`Work`] for the reporter, in order; [`DeliveryStats`] per task
//! Lost: segments over the limit, repeated or empty ones -> [`ReportError`], counted per task

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tokio::sync::Notify;

use super::segment;
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
    Segments(Vec<ProfiledSegment>),
    /// Counts so far.
    Coverage(TaskAt, Coverage),
    /// The end of a task; everything reported before has been dealt with.
    Finish(TaskAt, Coverage),
}

#[derive(Debug)]
enum Item {
    Segment(Box<ProfiledSegment>),
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
    closed: bool,
}

/// The queue. Calls lock it for a moment.
#[derive(Debug)]
pub(super) struct Queue {
    limit: usize,
    state: Mutex<State>,
    wake: Notify,
}

impl Queue {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            state: Mutex::default(),
            wake: Notify::new(),
        }
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
        let refusal = if state.closed {
            Some(ReportError::Closed)
        } else if state.reported.contains(&segment.request.request.segment_id) {
            Some(ReportError::Repeated)
        } else if count == 0 {
            Some(ReportError::Empty)
        } else if state.snapshots > 0 && state.snapshots + count > self.limit {
            Some(ReportError::Full(state.snapshots))
        } else {
            None
        };
        let stats = state.stats(&key);
        stats.snapshots_lost += removed;
        if let Some(refusal) = refusal {
            stats.snapshots_lost += count as u64;
            stats.segments_lost += 1;
            return Err(refusal);
        }
        stats.snapshots_queued += count as u64;
        state.snapshots += count;
        state.remember(&segment.request.request.segment_id);
        state.items.push_back(Item::Segment(Box::new(segment)));
        drop(state);
        self.wake.notify_one();
        Ok(())
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
            state.finishes += 1;
            state.coverage.remove(&key);
            state.items.push_back(Item::Finish(key, coverage));
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Waits for work; `None` when the queue is closed and empty. At most `batch` snapshots come
    /// together, unless one segment has more.
    pub(super) async fn next(&self, batch: usize) -> Option<Work> {
        loop {
            let woken = self.wake.notified();
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

    /// Gives up what waits; returns the number of snapshots given up.
    pub(super) fn give_up(&self) -> u64 {
        let mut state = self.lock();
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

    fn take(&mut self, batch: usize) -> Option<Work> {
        let mut segments: Vec<ProfiledSegment> = Vec::new();
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

    async fn next(queue: &Queue, batch: usize) -> String {
        match queue.next(batch).await {
            Some(Work::Segments(segments)) => segments
                .iter()
                .map(|segment| segment.request.request.segment_id.as_str())
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
        let queue = Queue::new(100);
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
        let queue = Queue::new(3);
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
        let queue = Queue::new(100);
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
