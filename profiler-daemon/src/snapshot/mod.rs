//! Turns the timeline of a finished request into numbered snapshots.
//!
//! In:  [`Timeline`] + [`FinishedRequest`]
//! Out: [`ProfiledSegment`] to [`crate::oap`]
//! Lost: a request without a stack, by what became of its samples -> [`Counter::RequestsTooShort`],
//!       [`Counter::RequestsProcessGone`], [`Counter::RequestsSamplesLost`], [`Counter::RequestsWithoutStack`]
//!
//! # Why the root is mended
//! OAP builds one tree per distinct root frame and loses the time between two of them. A stack whose
//! walk ended early begins at some inner frame; the outer frames of the nearest whole stack of the
//! same request that contains that frame are put under it. If none does, the stack hangs below the
//! common root by a `...` frame; so does one that has nothing but frames of the interpreter, where only
//! those of the application are shown.

use std::collections::HashMap;
use std::sync::Arc;

use crate::frames::FrameSet;
use crate::model::{
    Binding, Counter, FinishedRequest, Frame, FrameKind, ProfiledSegment, Snapshot, Stack,
    TimedStack, UnwindEnd,
};
use crate::timeline::Timeline;

/// Code signatures, root first.
type Signatures = Arc<[Arc<str>]>;

/// Stands for frames that are not known.
const ELLIPSIS: &str = "...";

/// Builds the segment; `Err` gives the request back if there is nothing to show of it.
///
/// # Errors
///
/// The timeline has no stack with a frame.
pub fn build(
    mut request: FinishedRequest,
    timeline: &Timeline,
    frames: FrameSet,
) -> Result<ProfiledSegment, Box<FinishedRequest>> {
    let clock = request.request.clock;
    let stacks = Stacks::new(&timeline.samples, frames);
    let mut snapshots: Vec<Snapshot> = Vec::with_capacity(timeline.samples.len());
    let mut built: HashMap<*const Stack<Frame>, Signatures> = HashMap::new();
    for sample in &timeline.samples {
        if sample.stack.frames.is_empty() {
            continue;
        }
        // Equal stacks of a request are one: what is built of it is shared as well.
        let stack = built.entry(Arc::as_ptr(&sample.stack));
        let stack = stack.or_insert_with(|| stacks.root_first(&sample.stack));
        let sequence =
            i32::try_from(snapshots.len()).expect("the samples of a request are bounded");
        snapshots.push(Snapshot {
            sequence,
            unix_ms: clock.unix_ms(sample.ktime_ns),
            stack: Arc::clone(stack),
        });
    }
    if snapshots.is_empty() {
        let why = why_empty(&request, timeline);
        request.losses.bump(why);
        return Err(Box::new(request));
    }
    request.losses.bump(Counter::RequestsProfiled);
    request
        .losses
        .add(Counter::SnapshotsTaken, snapshots.len() as u64);
    let start_unix_ms = clock.unix_ms(request.request.start_ktime_ns);
    Ok(ProfiledSegment {
        task_id: request.request.task_id.clone(),
        service: request.request.service.clone(),
        start_unix_ms,
        end_unix_ms: clock.unix_ms(request.end_ktime_ns).max(start_unix_ms),
        request,
        tags: Vec::new(),      // whoever knows the process adds them
        binding: Binding::Own, // as above
        snapshots,
    })
}

/// Why there is nothing to show of a request.
fn why_empty(request: &FinishedRequest, timeline: &Timeline) -> Counter {
    let losses = &request.losses;
    if !timeline.samples.is_empty() || losses.get(Counter::SamplesNoStack) > 0 {
        Counter::RequestsWithoutStack
    } else if losses.get(Counter::SamplesOrphaned) > 0 {
        Counter::RequestsProcessGone
    } else if losses.get(Counter::PeriodsExpected) == 0 {
        Counter::RequestsTooShort
    } else {
        Counter::RequestsSamplesLost
    }
}

/// Builds stacks as they are sent: with their roots mended, and of their frames those that are wanted.
struct Stacks<'a> {
    /// The stacks of the request that reach their root.
    whole: Vec<&'a Arc<Stack<Frame>>>,
    set: FrameSet,
    /// The outermost frame of a whole stack, and the root that is shown of that stack.
    root: Option<(&'a Frame, Frame)>,
}

impl<'a> Stacks<'a> {
    fn new(samples: &'a [TimedStack], set: FrameSet) -> Self {
        let stacks = samples.iter().map(|s| &s.stack);
        let mut whole: Vec<_> = stacks.filter(|s| s.end == UnwindEnd::Root).collect();
        whole.dedup_by(|one, other| Arc::ptr_eq(one, other));
        let is_language = |s: &&&Arc<Stack<Frame>>| {
            let mut frames = s.frames.iter();
            frames.any(|f| f.kind == FrameKind::Python)
        };
        let first = whole.iter().find(is_language).or(whole.first());
        let root = first.and_then(|stack| {
            let shown = set.apply(&stack.frames).pop()?;
            Some((stack.frames.last()?, shown))
        });
        Self { whole, set, root }
    }

    fn root_first(&self, stack: &Stack<Frame>) -> Signatures {
        let own = &stack.frames;
        let (mut shown, is_below_root) = match (stack.end, own.last()) {
            (UnwindEnd::Root, Some(outermost)) => (self.set.apply(own), self.is_root(outermost)),
            (_, Some(outermost)) => match self.callers_of(outermost) {
                Some(callers) => {
                    let mended = [own, callers].concat();
                    let is_below_root = mended.last().is_some_and(|f| self.is_root(f));
                    (self.set.apply(&mended), is_below_root)
                }
                None => (self.set.apply(own), true),
            },
            (_, None) => (Vec::new(), false),
        };
        // Nothing of the application was on the stack: without its root it would be a tree of its own, and
        // the time between the trees would be lost.
        if let Some((_, root)) = &self.root
            && is_below_root
            && shown.last() != Some(root)
        {
            shown.push(Frame::new(ELLIPSIS, FrameKind::Elided));
            shown.push(root.clone());
        }
        let root_first = shown.iter().rev();
        root_first
            .map(|frame| Arc::clone(&frame.signature))
            .collect()
    }

    fn is_root(&self, frame: &Frame) -> bool {
        let root = self.root.as_ref();
        root.is_some_and(|(outermost, _)| outermost.signature == frame.signature)
    }

    /// The frames outside of a frame, in the nearest whole stack that contains it.
    fn callers_of(&self, frame: &Frame) -> Option<&'a [Frame]> {
        self.whole.iter().find_map(|candidate| {
            let mut frames = candidate.frames.iter();
            let position = frames.rposition(|f| f.signature == frame.signature)?;
            Some(&candidate.frames[position + 1..])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        ActiveRequest, Coverage, Pid, ProcessKey, RequestId, Service, Subject, TaskId, TaskSlot,
        Tid, WallClock,
    };

    const MS: u64 = 1_000_000;

    fn finished(end_ms: u64) -> FinishedRequest {
        FinishedRequest {
            request: ActiveRequest {
                id: RequestId(1),
                slot: TaskSlot(0),
                task_id: TaskId("t".into()),
                process: ProcessKey {
                    pid: Pid(1),
                    start_ticks: 0,
                },
                service: Service {
                    name: "shop".into(),
                    instance: "i".into(),
                },
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
            cut: None,
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
            .map(|n| Frame::new(n, FrameKind::Native))
            .collect();
        let end = if cut {
            UnwindEnd::StackCut
        } else {
            UnwindEnd::Root
        };
        TimedStack::at(ms * MS, Arc::new(Stack { frames, end }))
    }

    fn segment(samples: Vec<TimedStack>) -> Result<ProfiledSegment, Box<FinishedRequest>> {
        segment_of(samples, FrameSet::All)
    }

    fn segment_of(
        samples: Vec<TimedStack>,
        frames: FrameSet,
    ) -> Result<ProfiledSegment, Box<FinishedRequest>> {
        build(finished(100), &Timeline { samples }, frames)
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

    /// Check that the frames of the application come at the same times as all, and that a stack with none of
    /// them hangs below the root of the others, as it does among all frames.
    #[test]
    fn the_set_of_frames_changes_no_time() {
        let mark = |mut sample: TimedStack| {
            let stack = Arc::get_mut(&mut sample.stack).unwrap();
            for frame in &mut stack.frames {
                frame.kind = match &*frame.signature {
                    "clone" => FrameKind::CLibrary,
                    "run" | "wait" => FrameKind::RuntimeInternal,
                    _ => FrameKind::Python,
                };
            }
            sample
        };
        let samples = [
            at(0, "clone>run>main>a"),
            at(10, "clone>run>wait"),
            at(20, "clone>run>main>a>wait"),
            at(30, "?>a>b"),
            at(40, "?>wait"),
        ];
        let samples: Vec<TimedStack> = samples.into_iter().map(mark).collect();
        let all = segment_of(samples.clone(), FrameSet::All).unwrap();
        let application = segment_of(samples, FrameSet::Application).unwrap();
        assert_eq!(
            stacks(&application),
            [
                "main>a",
                "main>...>run",
                "main>a",
                "main>a>b",
                "main>...>run"
            ]
        );
        let times = |segment: &ProfiledSegment| -> Vec<i64> {
            segment.snapshots.iter().map(|s| s.unix_ms).collect()
        };
        assert_eq!(times(&application), times(&all));
    }

    /// Check that a request without any stack is given back with the reason: what became of its samples.
    #[test]
    fn a_request_without_stacks_is_given_back() {
        let request = segment(vec![at(0, "")]).unwrap_err();
        assert_eq!(request.losses.get(Counter::RequestsWithoutStack), 1);
        let why = |counters: &[Counter]| {
            let mut request = finished(100);
            counters
                .iter()
                .for_each(|&counter| request.losses.bump(counter));
            let samples = Vec::new();
            let request = build(request, &Timeline { samples }, FrameSet::All).unwrap_err();
            let mut requests = Counter::all().filter(|it| it.subject() == Subject::Requests);
            requests.find(|&counter| request.losses.get(counter) > 0)
        };
        use Counter as C;
        assert_eq!(why(&[]), Some(C::RequestsTooShort));
        assert_eq!(why(&[C::PeriodsExpected]), Some(C::RequestsSamplesLost));
        let gone = [C::PeriodsExpected, C::SamplesOrphaned];
        assert_eq!(why(&gone), Some(C::RequestsProcessGone));
        let unreadable = [C::PeriodsExpected, C::SamplesNoStack];
        assert_eq!(why(&unreadable), Some(C::RequestsWithoutStack));
    }
}
