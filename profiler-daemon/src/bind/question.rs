//! Groups requests that one query can answer.

use std::collections::BTreeMap;

use super::Waiting;

/// A request's times may differ from those of its segment by a tenth of its duration, within these
/// bounds. A span begins when the head has been parsed and ends when the handler returns, before or
/// after the last byte; on a busy host there are some milliseconds in between.
const TOLERANCE_MS: (i64, i64) = (10, 50);
/// A segment may be longer than its entry span, by calls that go on in the background.
const SEGMENT_SLACK: i64 = 4;
/// Requests that began this far apart are asked for together.
const TOGETHER_MS: i64 = 1_000;

/// How far the times of a request and its span may differ.
pub(super) fn tolerance_ms(start_unix_ms: i64, end_unix_ms: i64) -> i64 {
    (end_unix_ms.saturating_sub(start_unix_ms) / 10).clamp(TOLERANCE_MS.0, TOLERANCE_MS.1)
}

/// Which segments to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Service.
    pub service: String,
    /// Service instance, if it is known.
    pub instance: Option<String>,
    /// Began between these, epoch milliseconds.
    pub start_unix_ms: (i64, i64),
    /// Lasted between these, milliseconds.
    pub duration_ms: (i64, i64),
}

impl Window {
    fn of(waiting: &Waiting) -> Self {
        let segment = &waiting.segment;
        let (start, end) = (segment.start_unix_ms, segment.end_unix_ms);
        let slack = SEGMENT_SLACK * tolerance_ms(start, end);
        Self {
            service: waiting.agent.service.clone(),
            instance: waiting.agent.instance.clone(),
            start_unix_ms: (start - slack, start + slack),
            duration_ms: ((end - start - slack).max(0), end - start + slack),
        }
    }

    /// Takes in the other one if they are about the same requests.
    fn try_merge(&mut self, other: &Self) -> bool {
        let is_same = self.service == other.service && self.instance == other.instance;
        let span = other.start_unix_ms.1 - self.start_unix_ms.0;
        if !is_same || span > TOGETHER_MS {
            return false;
        }
        let wider = |a: (i64, i64), b: (i64, i64)| (a.0.min(b.0), a.1.max(b.1));
        self.start_unix_ms = wider(self.start_unix_ms, other.start_unix_ms);
        self.duration_ms = wider(self.duration_ms, other.duration_ms);
        true
    }

    /// Whether a segment of these times can be that of the request.
    pub(super) fn may_be(waiting: &Waiting, start_unix_ms: i64, end_unix_ms: i64) -> bool {
        let own = Self::of(waiting);
        let is_within = |value: i64, (low, high): (i64, i64)| low <= value && value <= high;
        is_within(start_unix_ms, own.start_unix_ms)
            && is_within(end_unix_ms.saturating_sub(start_unix_ms), own.duration_ms)
    }
}

/// Something to ask, for some of the requests that wait.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// The trace is known from a header of the request.
    Trace(String),
    /// Only time and name are known.
    Window(Window),
}

/// What to ask for the requests at these positions, with the positions each question is for.
pub(super) fn questions(waiting: &[Waiting], due: &[usize]) -> Vec<(Question, Vec<usize>)> {
    let mut traces: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    let mut windows: Vec<(Window, Vec<usize>)> = Vec::new();
    let mut others = Vec::new();
    for &index in due {
        match trace_id(&waiting[index]) {
            Some(trace_id) => traces.entry(trace_id).or_default().push(index),
            None => others.push(index),
        }
    }
    others.sort_by_key(|&index| waiting[index].segment.start_unix_ms);
    for index in others {
        let window = Window::of(&waiting[index]);
        let mut known = windows.iter_mut();
        match known.find_map(|(known, positions)| known.try_merge(&window).then_some(positions)) {
            Some(positions) => positions.push(index),
            None => windows.push((window, vec![index])),
        }
    }
    let traces = traces.into_iter();
    let traces = traces.map(|(id, positions)| (Question::Trace(id.to_owned()), positions));
    let windows = windows.into_iter();
    traces
        .chain(windows.map(|(window, positions)| (Question::Window(window), positions)))
        .collect()
}

/// The trace that a header of the request names: its own call's, or its caller's.
fn trace_id(waiting: &Waiting) -> Option<&str> {
    let request = &waiting.segment.request;
    let caller = request.request.sw8.as_ref().filter(|sw8| sw8.sampled);
    let context = request.outbound.as_ref().or(caller)?;
    Some(&context.trace_id)
}
