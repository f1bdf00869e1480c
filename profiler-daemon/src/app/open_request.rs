//! Open requests with their samples, which together have a bound.
//!
//! In:  begins, samples and ends of requests, from [`super::resolve`]
//! Out: [`Open`]
//! Lost: samples of the longest requests, evenly -> `Counter::SamplesThinned`, counted when the request ends

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::{ActiveRequest, Counter, Coverage, Frame, RequestId, Stack, TimedStack};
use crate::timeline::{Grids, Samples};

/// Most memory that the samples of all open requests may take: some 40,000 different stacks of 60 frames.
const SAMPLES_MAX_BYTES: usize = 64 << 20;

/// An open request and its samples.
pub(super) struct Open {
    pub(super) request: ActiveRequest,
    pub(super) grids: Grids,
    pub(super) samples: Samples,
    /// Stack of the latest off-CPU sample, or how it was lost.
    pub(super) blocked: Result<Arc<Stack<Frame>>, Counter>,
    pub(super) losses: Coverage,
}

/// All of them.
#[derive(Default)]
pub(super) struct OpenRequests {
    by_id: HashMap<RequestId, Open>,
    /// Memory of the samples of all.
    samples_bytes: usize,
}

impl OpenRequests {
    pub(super) fn begin(&mut self, request: ActiveRequest, grids: Grids) {
        let open = Open {
            request,
            grids,
            samples: Samples::default(),
            blocked: Err(Counter::SamplesOrphaned),
            losses: Coverage::default(),
        };
        self.by_id.insert(open.request.id, open);
    }

    /// Whoever adds samples calls [`Self::bound`] afterwards.
    pub(super) fn get_mut(&mut self, id: RequestId) -> Option<&mut Open> {
        self.by_id.get_mut(&id)
    }

    /// Takes a request out.
    pub(super) fn close(&mut self, id: RequestId) -> Option<Open> {
        let open = self.by_id.remove(&id)?;
        self.samples_bytes -= open.samples.memory_bytes();
        Some(open)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Adds a sample, if there is one, to a request whose samples took `bytes_before` before its stack was looked at.
    pub(super) fn push(&mut self, id: RequestId, bytes_before: usize, stack: Option<TimedStack>) {
        if let (Some(open), Some(stack)) = (self.by_id.get_mut(&id), stack) {
            open.samples.push(stack, &open.grids);
        }
        self.bound(id, bytes_before);
    }

    /// Takes note of the memory that samples of a request have taken, and thins those of the request that has most
    /// until those of all fit.
    fn bound(&mut self, id: RequestId, bytes_before: usize) {
        if let Some(open) = self.by_id.get(&id) {
            self.samples_bytes += open.samples.memory_bytes();
            self.samples_bytes -= bytes_before;
        }
        while self.samples_bytes > SAMPLES_MAX_BYTES {
            let open = self.by_id.values_mut();
            let Some(largest) = open.max_by_key(|open| open.samples.memory_bytes()) else {
                break;
            };
            let before = largest.samples.memory_bytes();
            largest.samples.halve(&largest.grids);
            let after = largest.samples.memory_bytes();
            if after >= before {
                break; // each has its first and its last sample, and there is no more of them than of open requests
            }
            self.samples_bytes -= before - after;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::binding::tests::profiled;
    use crate::model::{FrameKind, UnwindEnd};
    use crate::timeline::Grid;

    /// Check that samples of all open requests together stay below the limit, that the request with most of them is the
    /// one that is thinned, and that nothing is left of their memory when they are over.
    #[test]
    fn samples_of_all_requests_are_bounded() {
        const PERIOD_NS: u64 = 10_000_000;
        let mut requests = OpenRequests::default();
        let (long, short) = (RequestId(1), RequestId(2));
        let grid = Grid {
            origin_ktime_ns: 0,
            period_ns: PERIOD_NS,
        };
        for id in [long, short] {
            let request = ActiveRequest {
                id,
                ..profiled(&[0]).request.request
            };
            requests.begin(request, Grids::new(grid, PERIOD_NS));
        }
        let frame = |name: String| Frame::new(name, FrameKind::Native);
        let callers = vec![frame("main".to_owned()); 499];
        for tick in 1..=8_000 {
            let id = if tick % 8 == 0 { short } else { long };
            let open = requests.get_mut(id).unwrap();
            let before = open.samples.memory_bytes();
            let leaf = frame(format!("leaf {tick}"));
            let stack = open.samples.share(Stack {
                frames: [&[leaf][..], &callers[..]].concat(),
                end: UnwindEnd::Root,
            });
            let sample = TimedStack::at(tick * PERIOD_NS, stack);
            requests.push(id, before, Some(sample));
            assert!(requests.samples_bytes <= SAMPLES_MAX_BYTES);
        }
        let step = |id| requests.by_id.get(&id).unwrap().samples.step();
        assert!(step(long) > 1);
        assert_eq!(step(short), 1);
        assert!(requests.samples_bytes > SAMPLES_MAX_BYTES / 4);
        for id in [long, short] {
            assert!(requests.close(id).is_some());
        }
        assert_eq!(requests.samples_bytes, 0);
    }
}
