//! Decides which of an agent's entry spans is a request's.
//!
//! In this order: the segment that the request's own call named; the span whose caller is the request's
//! caller; the only span of the same instance, endpoint and time. If two fit, none is chosen: a wrong
//! segment is worse than a segment of profilerd beside the agent's.

use super::question::tolerance_ms;
use super::{IsEndpoint, Waiting};
use crate::model::AgentSpan;
use crate::model::name::{SERVICE_MAX, cut};

/// Which span it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// This one.
    Found(usize),
    /// Several fit.
    Several,
    /// No span fits.
    Nothing,
}

/// Chooses among the spans that are not another request's.
pub(super) fn choose(
    waiting: &Waiting,
    spans: &[AgentSpan],
    is_taken: impl Fn(&str) -> bool,
    is_endpoint: IsEndpoint,
) -> Choice {
    let request = &waiting.segment.request;
    let own = || {
        let spans = spans.iter().enumerate();
        spans.filter(|(_, span)| is_of(waiting, span) && !is_taken(&span.segment_id))
    };
    if let Some(context) = &request.outbound {
        let named = own().find(|(_, span)| span.segment_id == context.parent_segment_id);
        return named.map_or(Choice::Nothing, |(index, _)| Choice::Found(index));
    }
    let caller = request.request.sw8.as_ref().filter(|sw8| sw8.sampled);
    if let Some(caller) = caller {
        let called = own().filter(|(_, span)| span.is_called_by(caller) && overlaps(waiting, span));
        match only(called) {
            Choice::Nothing => {}
            // A caller that sends the same context twice, as at a retry.
            Choice::Several => {
                let near =
                    own().filter(|(_, span)| span.is_called_by(caller) && is_near(waiting, span));
                return only(near);
            }
            found @ Choice::Found(_) => return found,
        }
    }
    // A span with other callers is another request's.
    only(own().filter(|(_, span)| {
        span.callers.is_empty()
            && is_near(waiting, span)
            && is_endpoint(&request.request, &span.endpoint)
    }))
}

fn only<'a>(mut fitting: impl Iterator<Item = (usize, &'a AgentSpan)>) -> Choice {
    match (fitting.next(), fitting.next()) {
        (None, _) => Choice::Nothing,
        (Some((index, _)), None) => Choice::Found(index),
        (Some(_), Some(_)) => Choice::Several,
    }
}

/// The agent in the process is the one that reported the span.
fn is_of(waiting: &Waiting, span: &AgentSpan) -> bool {
    let agent = &waiting.agent;
    // An OAP may have cut either.
    let is_same = |a: &str, b: &str| cut(a, SERVICE_MAX) == cut(b, SERVICE_MAX);
    let instance = agent.instance.as_ref();
    is_same(&span.service, &agent.service)
        && instance.is_none_or(|name| is_same(&span.instance, name))
}

fn overlaps(waiting: &Waiting, span: &AgentSpan) -> bool {
    let segment = &waiting.segment;
    span.start_unix_ms <= segment.end_unix_ms && span.end_unix_ms >= segment.start_unix_ms
}

fn is_near(waiting: &Waiting, span: &AgentSpan) -> bool {
    let segment = &waiting.segment;
    let tolerance = tolerance_ms(segment.start_unix_ms, segment.end_unix_ms).unsigned_abs();
    segment.start_unix_ms.abs_diff(span.start_unix_ms) <= tolerance
        && segment.end_unix_ms.abs_diff(span.end_unix_ms) <= tolerance
}
