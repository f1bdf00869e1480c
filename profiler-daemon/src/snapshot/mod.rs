//! Turns the timeline of a finished request into numbered snapshots.
//!
//! In:  [`Timeline`] + [`FinishedRequest`]
//! Out: [`ProfiledSegment`] to [`crate::oap`]
//! Lost: no usable stack -> [`Counter::RequestsWithoutStack`]
//!
//! # Why the root is mended
//! OAP builds one tree per distinct root frame and loses the time between two of them. A stack whose
//! walk ended early begins at some inner frame; the outer frames of the nearest whole stack of the
//! same request that contains that frame are put under it. If none does, the stack hangs below the
//! common root by a `...` frame.

use std::sync::Arc;

use crate::model::{
    Binding, Counter, FinishedRequest, Frame, ProfiledSegment, Service, Snapshot, Stack,
    TimedStack, UnwindEnd,
};
use crate::timeline::Timeline;

/// Code signatures, root first.
type Signatures = Arc<[Arc<str>]>;

/// Stands for frames that are not known.
const ELLIPSIS: &str = "...";
/// OAP analyses no more snapshots of a segment (`CoreModuleConfig.maxSizeOfAnalyzeProfileSnapshot`).
const SNAPSHOTS_MAX: usize = 12_000;

/// Builds the segment; `Err` gives the request back if there is nothing to show of it.
///
/// # Errors
///
/// The timeline has no stack with a frame.
pub fn build(
    mut request: FinishedRequest,
    timeline: &Timeline,
    service: Service,
) -> Result<ProfiledSegment, Box<FinishedRequest>> {
    let clock = request.request.clock;
    let whole = timeline
        .samples
        .iter()
        .map(|s| &s.stack)
        .filter(|s| s.end == UnwindEnd::Root);
    let whole: Vec<&Arc<Stack<Frame>>> = whole.collect();
    let mut snapshots: Vec<Snapshot> = Vec::with_capacity(timeline.samples.len());
    let mut previous: Option<(&Arc<Stack<Frame>>, Signatures)> = None;
    for sample in thin(&timeline.samples) {
        if sample.stack.frames.is_empty() {
            continue;
        }
        // A blocked thread repeats its stack; share it instead of building it again.
        let stack = match &previous {
            Some((same, built)) if Arc::ptr_eq(same, &sample.stack) => built.clone(),
            _ => root_first(&sample.stack, &whole),
        };
        previous = Some((&sample.stack, stack.clone()));
        let sequence = i32::try_from(snapshots.len()).expect("at most SNAPSHOTS_MAX snapshots");
        snapshots.push(Snapshot {
            sequence,
            unix_ms: clock.unix_ms(sample.ktime_ns),
            stack,
        });
    }
    if snapshots.is_empty() {
        request.losses.bump(Counter::RequestsWithoutStack);
        return Err(Box::new(request));
    }
    request.losses.bump(Counter::RequestsProfiled);
    request
        .losses
        .add(Counter::SnapshotsTaken, snapshots.len() as u64);
    let start_unix_ms = clock.unix_ms(request.request.start_ktime_ns);
    Ok(ProfiledSegment {
        task_id: request.request.task_id.clone(),
        service,
        start_unix_ms,
        end_unix_ms: clock.unix_ms(request.end_ktime_ns).max(start_unix_ms),
        request,
        tags: Vec::new(),      // whoever knows the process adds them
        binding: Binding::Own, // as above
        snapshots,
    })
}

/// Every n-th sample of a request that is too long for OAP, first and last included.
fn thin(samples: &[TimedStack]) -> impl Iterator<Item = &TimedStack> {
    let step = samples.len().div_ceil(SNAPSHOTS_MAX - 1).max(1);
    let last = samples.len().saturating_sub(1);
    samples
        .iter()
        .enumerate()
        .filter(move |(i, _)| i % step == 0 || *i == last)
        .map(|(_, s)| s)
}

fn root_first(stack: &Stack<Frame>, whole: &[&Arc<Stack<Frame>>]) -> Arc<[Arc<str>]> {
    let own = stack.frames.iter().rev().map(|f| f.signature.clone());
    if stack.end == UnwindEnd::Root {
        return own.collect();
    }
    let Some(outermost) = stack.frames.last() else {
        return own.collect();
    };
    // The nearest whole stack that contains our outermost frame tells what called it.
    let callers = whole.iter().find_map(|candidate| {
        let position = candidate
            .frames
            .iter()
            .rposition(|f| f.signature == outermost.signature)?;
        Some(&candidate.frames[position + 1..])
    });
    match (callers, whole.first().and_then(|s| s.frames.last())) {
        (Some(callers), _) => callers
            .iter()
            .rev()
            .map(|f| f.signature.clone())
            .chain(own)
            .collect(),
        (None, Some(root)) => [root.signature.clone(), Arc::from(ELLIPSIS)]
            .into_iter()
            .chain(own)
            .collect(),
        (None, None) => own.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        ActiveRequest, Coverage, FrameKind, Pid, RequestId, TaskId, TaskSlot, Tid, WallClock,
    };

    const MS: u64 = 1_000_000;

    fn finished(end_ms: u64) -> FinishedRequest {
        FinishedRequest {
            request: ActiveRequest {
                id: RequestId(1),
                slot: TaskSlot(0),
                task_id: TaskId("t".into()),
                pid: Pid(1),
                tid: Tid(1),
                fd: 4,
                start_ktime_ns: 0,
                clock: WallClock::from_readings(0, 1_000 * MS),
                endpoint: "GET:/".into(),
                method: "GET".into(),
                path: "/".into(),
                host: None,
                segment_id: "s".into(),
                sw8: None,
            },
            end_ktime_ns: end_ms * MS,
            status: Some(200),
            reason: None,
            outbound: None,
            losses: Coverage::default(),
        }
    }

    /// A sample whose frames are written root first, as in `main>a>b`; `?>a` has no root.
    fn at(ms: u64, text: &str) -> TimedStack {
        let mut names: Vec<&str> = text.split('>').filter(|n| !n.is_empty()).collect();
        let cut = names.first() == Some(&"?");
        if cut {
            names.remove(0);
        }
        let frames = names
            .into_iter()
            .rev()
            .map(|n| Frame {
                signature: n.into(),
                kind: FrameKind::Native,
            })
            .collect();
        let end = if cut {
            UnwindEnd::StackCut
        } else {
            UnwindEnd::Root
        };
        TimedStack::at(ms * MS, Arc::new(Stack { frames, end }))
    }

    fn segment(samples: Vec<TimedStack>) -> Result<ProfiledSegment, Box<FinishedRequest>> {
        let service = Service {
            name: "shop".into(),
            instance: "i".into(),
        };
        build(finished(100), &Timeline { samples }, service)
    }

    fn stacks(segment: &ProfiledSegment) -> Vec<String> {
        segment
            .snapshots
            .iter()
            .map(|s| s.stack.join(">"))
            .collect()
    }

    /// Check that snapshots are numbered from 0 without holes, root first, in wall-clock time.
    #[test]
    fn snapshots_are_numbered_without_holes() {
        let segment = segment(vec![at(0, "main>a"), at(10, ""), at(20, "main>b")]).unwrap();
        let numbers: Vec<(i32, i64)> = segment
            .snapshots
            .iter()
            .map(|s| (s.sequence, s.unix_ms))
            .collect();
        assert_eq!(numbers, [(0, 1000), (1, 1020)]);
        assert_eq!(stacks(&segment), ["main>a", "main>b"]);
        assert_eq!((segment.start_unix_ms, segment.end_unix_ms), (1000, 1100));
    }

    /// Check that a cut stack gets its callers from a whole stack of the same request.
    #[test]
    fn a_cut_stack_gets_its_callers_back() {
        let segment = segment(vec![at(0, "main>a>b>c"), at(10, "?>b>d"), at(20, "?>z")]).unwrap();
        assert_eq!(stacks(&segment), ["main>a>b>c", "main>a>b>d", "main>...>z"]);
    }

    /// Check that a request without any stack is given back with its reason.
    #[test]
    fn a_request_without_stacks_is_given_back() {
        let request = segment(vec![at(0, "")]).unwrap_err();
        assert_eq!(request.losses.get(Counter::RequestsWithoutStack), 1);
    }

    /// Check that a request longer than OAP analyses is thinned evenly, keeping both ends.
    #[test]
    fn a_very_long_request_is_thinned() {
        let samples: Vec<TimedStack> = (0..30_000).map(|i| at(i, "main")).collect();
        let segment = segment(samples).unwrap();
        assert!(segment.snapshots.len() <= SNAPSHOTS_MAX);
        assert_eq!(segment.snapshots.last().unwrap().unix_ms, 1000 + 29_999);
    }
}
