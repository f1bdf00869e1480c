//! Memory of the samples that wait for the resolve thread.
//!
//! The queue between the two counts samples (`limits.sample_queue`), and a sample takes from nothing to the 64 KiB
//! of stack that are read of a blocked thread: a limit of their number does not limit the memory.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::model::RawSample;

/// Most bytes that may wait: a thousand of the largest samples.
const WAITING_MAX_BYTES: usize = 64 << 20;

/// Bytes that wait. The capture thread adds, the resolve thread takes away.
#[derive(Debug, Default)]
pub(in crate::app) struct WaitingBytes(AtomicUsize);

impl WaitingBytes {
    /// Counts a sample in; `false`, and nothing is counted, if there is no room for it.
    pub(super) fn try_add(&self, sample: &RawSample) -> bool {
        let bytes = sample.memory_bytes();
        // Nobody else adds: what is there by the next line is not more than here.
        if self.0.load(Ordering::Relaxed) + bytes > WAITING_MAX_BYTES {
            return false;
        }
        self.0.fetch_add(bytes, Ordering::Relaxed);
        true
    }

    /// Counts out a sample that was counted in.
    pub(in crate::app) fn remove(&self, sample: &RawSample) {
        self.0.fetch_sub(sample.memory_bytes(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use profiler_common::REGS_MAX;

    use super::*;
    use crate::model::{Captured, Pid, RequestId, SampleKind, StackBytes, Tid};

    fn sample(stack_bytes: usize) -> RawSample {
        let captured = Captured {
            regs: [0; REGS_MAX],
            stack: StackBytes {
                sp: 0,
                skipped: 0,
                bytes: vec![0; stack_bytes],
                cut: false,
            },
            kernel_frames: Vec::new(),
            python: None,
        };
        RawSample {
            request: RequestId(1),
            pid: Pid(1),
            tid: Tid(1),
            ktime_ns: 0,
            kind: SampleKind::OnCpu(Box::new(captured)),
        }
    }

    /// Check that large samples are refused where as many small ones are not, and that there is room again
    /// once they are taken.
    #[test]
    fn bytes_are_bounded_and_not_samples_alone() {
        let waiting = WaitingBytes::default();
        let (small, large) = (sample(1 << 10), sample(64 << 10));
        assert!((0..4096).all(|_| waiting.try_add(&small)));
        (0..4096).for_each(|_| waiting.remove(&small));
        let fit = (0..4096).take_while(|_| waiting.try_add(&large)).count();
        assert!((1000..1024).contains(&fit), "{fit}");
        waiting.remove(&large);
        assert!(waiting.try_add(&large));
        assert!(!waiting.try_add(&large));
    }
}
