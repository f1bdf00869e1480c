//! The state of the capture thread: written by that thread alone, read by others without a lock.
//!
//! In:  the thread's own state, after each of its rounds
//! Out: [`CaptureObservation`]
//! Lost: nothing
//!
//! The figures of one reading are of one round: the thread increments a sequence number before and after it
//! writes. A reader that finds an odd number, or another number after the figures than before them, reads again.
//! A lock would let a reader that
//! waits for its CPU hold up the ticks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use super::Capture;
use crate::kernel::{Drained, Kernel};
use crate::model::{CaptureObservation, RingObservation};

/// How often a reader tries again: writing takes less than a microsecond.
const READS_MAX: usize = 1000;

/// The numbers. Asking for them does not wake the thread.
#[derive(Debug)]
pub(in crate::app) struct CaptureState {
    /// Odd while the thread writes.
    writes: AtomicU64,
    is_attached: AtomicBool,
    tick_period_ns: AtomicU64,
    open_requests: AtomicU64,
    queued_samples: AtomicU64,
    queue_size: u64,
    request_ring: Ring,
    sample_ring: Ring,
}

#[derive(Debug)]
struct Ring {
    size_bytes: u64,
    /// Of this second, for the thread itself.
    now_bytes: AtomicU64,
    /// Of the second before.
    used_bytes: AtomicU64,
    peak_bytes: AtomicU64,
}

impl Ring {
    fn new(size_bytes: u32) -> Self {
        Self {
            size_bytes: size_bytes.into(),
            now_bytes: AtomicU64::new(0),
            used_bytes: AtomicU64::new(0),
            peak_bytes: AtomicU64::new(0),
        }
    }

    fn on_read(&self, bytes: usize) {
        // What came while it was read counts as well, so there may be more than fits.
        let bytes = (bytes as u64).min(self.size_bytes);
        self.now_bytes.fetch_max(bytes, Ordering::Relaxed);
        self.peak_bytes.fetch_max(bytes, Ordering::Relaxed);
    }

    fn end_second(&self) {
        let bytes = self.now_bytes.swap(0, Ordering::Relaxed);
        self.used_bytes.store(bytes, Ordering::Relaxed);
    }

    fn rest(&self) {
        self.now_bytes.store(0, Ordering::Relaxed);
        self.used_bytes.store(0, Ordering::Relaxed);
    }

    fn observe(&self) -> RingObservation {
        RingObservation {
            used_bytes: self.used_bytes.load(Ordering::Relaxed),
            peak_bytes: self.peak_bytes.load(Ordering::Relaxed),
            size_bytes: self.size_bytes,
        }
    }
}

impl CaptureState {
    /// At rest, with the sizes that are configured.
    pub(in crate::app) fn new(request_ring: u32, sample_ring: u32, queue_size: u32) -> Self {
        Self {
            writes: AtomicU64::new(0),
            is_attached: AtomicBool::new(false),
            tick_period_ns: AtomicU64::new(0),
            open_requests: AtomicU64::new(0),
            queued_samples: AtomicU64::new(0),
            queue_size: queue_size.into(),
            request_ring: Ring::new(request_ring),
            sample_ring: Ring::new(sample_ring),
        }
    }

    /// The numbers as of the latest round. A thread that has lost its CPU while it wrote is not waited for.
    pub(in crate::app) fn observe(&self) -> CaptureObservation {
        for _ in 0..READS_MAX {
            if let Some(numbers) = self.try_observe() {
                return numbers;
            }
            std::hint::spin_loop();
        }
        self.read()
    }

    /// The numbers, unless they are being written.
    fn try_observe(&self) -> Option<CaptureObservation> {
        let before = self.writes.load(Ordering::Acquire);
        let numbers = self.read();
        fence(Ordering::Acquire);
        let is_whole = before.is_multiple_of(2) && self.writes.load(Ordering::Relaxed) == before;
        is_whole.then_some(numbers)
    }

    fn write(&self, write: impl FnOnce()) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::Release);
        write();
        self.writes.fetch_add(1, Ordering::Release);
    }

    fn read(&self) -> CaptureObservation {
        CaptureObservation {
            is_attached: self.is_attached.load(Ordering::Relaxed),
            tick_period_ns: self.tick_period_ns.load(Ordering::Relaxed),
            open_requests: self.open_requests.load(Ordering::Relaxed),
            queued_samples: self.queued_samples.load(Ordering::Relaxed),
            queue_size: self.queue_size,
            request_ring: self.request_ring.observe(),
            sample_ring: self.sample_ring.observe(),
        }
    }

    /// Notes what a read of the rings has found.
    pub(super) fn on_drained(&self, drained: Drained) {
        self.request_ring.on_read(drained.request_bytes);
        self.sample_ring.on_read(drained.sample_bytes);
    }

    /// A second is over: the backlog of the rings in it can be reported.
    pub(super) fn end_second(&self) {
        self.write(|| {
            self.request_ring.end_second();
            self.sample_ring.end_second();
        });
    }

    fn work(&self, tick_period_ns: u64, open_requests: usize, queued_samples: usize) {
        self.write(|| {
            self.is_attached.store(true, Ordering::Relaxed);
            self.tick_period_ns.store(tick_period_ns, Ordering::Relaxed);
            let (open, queued) = (open_requests as u64, queued_samples as u64);
            self.open_requests.store(open, Ordering::Relaxed);
            self.queued_samples.store(queued, Ordering::Relaxed);
        });
    }

    fn rest(&self) {
        self.write(|| {
            self.is_attached.store(false, Ordering::Relaxed);
            self.tick_period_ns.store(0, Ordering::Relaxed);
            self.open_requests.store(0, Ordering::Relaxed);
            self.queued_samples.store(0, Ordering::Relaxed);
            self.request_ring.rest();
            self.sample_ring.rest();
        });
    }
}

impl Capture {
    /// Notes the state at the end of a round.
    pub(super) fn note_state(&self) {
        if self.kernel.as_ref().is_some_and(Kernel::is_attached) {
            let period_ns = self.clock.grid().period_ns;
            let (open, queued) = (self.tracker.open_total(), self.work.len());
            self.state.work(period_ns, open, queued);
        } else {
            self.state.rest();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained(request_bytes: usize, sample_bytes: usize) -> Drained {
        Drained {
            request_bytes,
            sample_bytes,
        }
    }

    /// Check that a ring tells the most that one read of the second before has found, never more than its
    /// size, that its peak stays, and that it holds nothing at rest.
    #[test]
    fn a_ring_tells_the_most_of_a_second() {
        let state = CaptureState::new(4096, 8192, 16);
        state.on_drained(drained(100, 200));
        state.on_drained(drained(5_000, 50));
        assert_eq!(state.observe().request_ring.used_bytes, 0);
        state.end_second();
        let first = state.observe();
        assert_eq!(first.request_ring.used_bytes, 4096);
        assert_eq!(first.sample_ring.used_bytes, 200);
        state.on_drained(drained(8, 16));
        state.end_second();
        let second = state.observe();
        assert_eq!(second.request_ring.used_bytes, 8);
        assert_eq!(second.sample_ring.used_bytes, 16);
        state.on_drained(drained(8, 16));
        state.rest();
        state.end_second();
        let rest = state.observe();
        assert_eq!(rest.request_ring.used_bytes, 0);
        assert_eq!(
            (rest.request_ring.peak_bytes, rest.sample_ring.peak_bytes),
            (4096, 200)
        );
        assert_eq!((rest.request_ring.size_bytes, rest.queue_size), (4096, 16));
    }

    /// Check that the numbers of an answer belong together, however often they change meanwhile.
    #[test]
    fn an_answer_is_of_one_round() {
        let state = CaptureState::new(4096, 8192, 16);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for n in 1..200_000_usize {
                    match n % 3 {
                        0 => state.rest(),
                        _ => state.work(n as u64, n, n),
                    }
                }
            });
            while !writer.is_finished() {
                let Some(seen) = state.try_observe() else {
                    continue;
                };
                let same = [seen.open_requests, seen.queued_samples];
                assert_eq!(same, [seen.tick_period_ns; 2]);
                assert_eq!(seen.is_attached, seen.tick_period_ns > 0);
            }
        });
    }
}
