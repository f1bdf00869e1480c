//! Which trace segment the snapshots of a profiled request belong to.
//!
//! A process without an agent gets a segment made for the request. A SkyWalking agent has a segment of
//! its own for it, and the snapshots belong to that one: a second segment would show as a second
//! request in the trace.

use std::fmt;

use super::{ProfiledSegment, Sw8};

/// The segment that the snapshots of a request belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Ours: the process has no agent.
    Own,
    /// The agent's, which reports it itself.
    Agent(BoundBy),
    /// Ours, although the process has an agent; kept out of the service's statistics, which the
    /// agent's segment is already in.
    Synthetic(Unbound),
}

/// How the agent's segment was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoundBy {
    /// An outbound call of the request named it in its `sw8` header.
    OutboundCall,
    /// The OAP was asked for it.
    Query,
}

/// Why the agent's segment was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unbound {
    /// There is no OAP to ask.
    QueryOff,
    /// The OAP's query side did not answer, or not with what was asked for.
    QueryFailed,
    /// The OAP has no segment that fits.
    NotFound,
    /// The OAP has several that fit.
    Ambiguous,
    /// Another request has been bound to the one that fits.
    Taken,
    /// Too many requests waited for an answer.
    TooMany,
    /// The daemon ended before there was an answer.
    Leaving,
    /// The agent's profiler may report snapshots of it under the same keys.
    AgentProfiles,
}

impl fmt::Display for Unbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::QueryOff => "oap.query is not set, so the OAP cannot be asked for it",
            Self::QueryFailed => "the OAP's query side gave no usable answer",
            Self::NotFound => "the OAP has no segment of that instance, endpoint and time",
            Self::Ambiguous => "several segments of the OAP fit instance, endpoint and time",
            Self::Taken => "the segment that fits is another request's",
            Self::TooMany => "too many requests were waiting for an answer of the OAP",
            Self::Leaving => "profilerd was stopped before the OAP had answered",
            Self::AgentProfiles => "the agent's own profiler is on and would use the same segment",
        })
    }
}

/// An agent inside a process, as far as its segments are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentNames {
    /// The service it reports as.
    pub service: String,
    /// The instance it reports as; most agents make one up, which is not seen from outside.
    pub instance: Option<String>,
}

/// The entry span of an agent's segment, as an OAP has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentSpan {
    /// Id of the segment that has this span.
    pub segment_id: String,
    /// Service.
    pub service: String,
    /// Service instance.
    pub instance: String,
    /// Operation name.
    pub endpoint: String,
    /// Start, epoch milliseconds.
    pub start_unix_ms: i64,
    /// End, epoch milliseconds.
    pub end_unix_ms: i64,
    /// Segment and span of each caller in another process.
    pub callers: Vec<(String, i32)>,
}

impl AgentSpan {
    /// The context of the request that the span is of names this caller.
    #[must_use]
    pub fn is_called_by(&self, caller: &Sw8) -> bool {
        self.callers.iter().any(|(segment_id, span_id)| {
            *segment_id == caller.parent_segment_id && *span_id == caller.parent_span_id
        })
    }
}

impl ProfiledSegment {
    /// Hangs the snapshots below a segment of the agent; with its entry span known, inside that.
    ///
    /// The last snapshot before the span and the first one after it move to its ends: an OAP analyses
    /// what lies inside, and time without a snapshot at either end would be missing.
    pub fn bind(&mut self, segment_id: &str, span: Option<&AgentSpan>, by: BoundBy) {
        segment_id.clone_into(&mut self.request.request.segment_id);
        self.binding = Binding::Agent(by);
        let Some(span) = span else { return };
        let start = span.start_unix_ms;
        let end = span.end_unix_ms.max(start);
        // In order of time.
        let snapshots = &self.snapshots;
        let first = snapshots.partition_point(|snapshot| snapshot.unix_ms <= start);
        let first = first.saturating_sub(1);
        let last = snapshots.partition_point(|snapshot| snapshot.unix_ms < end);
        self.snapshots.truncate(last.max(first) + 1);
        self.snapshots.drain(..first);
        for (snapshot, sequence) in self.snapshots.iter_mut().zip(0..) {
            snapshot.sequence = sequence;
            snapshot.unix_ms = snapshot.unix_ms.clamp(start, end);
        }
        (self.start_unix_ms, self.end_unix_ms) = (start, end);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{
        ActiveRequest, Coverage, FinishedRequest, Pid, ProcessKey, RequestId, Service, Snapshot,
        TaskId, TaskSlot, Tid, WallClock,
    };

    /// A request to `GET /` of the service `shop` at its instance `one`, with a snapshot at each time.
    pub(crate) fn profiled(times: &[i64]) -> ProfiledSegment {
        let service = Service {
            name: "shop".to_owned(),
            instance: "one".to_owned(),
        };
        let request = ActiveRequest {
            id: RequestId(1),
            slot: TaskSlot(0),
            task_id: TaskId("t".to_owned()),
            process: ProcessKey {
                pid: Pid(1),
                start_ticks: 0,
            },
            service: service.clone(),
            tid: Tid(1),
            fd: 5,
            start_ktime_ns: 0,
            clock: WallClock::from_readings(0, 0),
            endpoint: "GET:/".to_owned(),
            method: "GET".to_owned(),
            path: "/".to_owned(),
            host: None,
            segment_id: "ours".to_owned(),
            sw8: None,
        };
        let snapshots = times.iter().zip(0..).map(|(&unix_ms, sequence)| Snapshot {
            sequence,
            unix_ms,
            stack: Arc::from([Arc::from("main")]),
        });
        ProfiledSegment {
            task_id: TaskId("t".to_owned()),
            service,
            request: FinishedRequest {
                request,
                end_ktime_ns: 0,
                status: None,
                cut: None,
                reason: None,
                outbound: None,
                losses: Coverage::default(),
            },
            start_unix_ms: times[0],
            end_unix_ms: times[times.len() - 1],
            tags: Vec::new(),
            binding: Binding::Own,
            snapshots: snapshots.collect(),
        }
    }

    /// The context that the request `segment_id` sends with a call.
    pub(crate) fn context(trace_id: &str, segment_id: &str) -> Sw8 {
        Sw8 {
            sampled: true,
            trace_id: trace_id.to_owned(),
            parent_segment_id: segment_id.to_owned(),
            parent_span_id: 1,
            parent_service: "shop".to_owned(),
            parent_instance: "one".to_owned(),
            parent_endpoint: "/".to_owned(),
            address: "x:80".to_owned(),
        }
    }

    fn bound(times: &[i64], start: i64, end: i64) -> Vec<(i32, i64)> {
        let span = AgentSpan {
            segment_id: "theirs".to_owned(),
            service: "s".to_owned(),
            instance: "i".to_owned(),
            endpoint: "/".to_owned(),
            start_unix_ms: start,
            end_unix_ms: end,
            callers: Vec::new(),
        };
        let mut segment = profiled(times);
        segment.bind("theirs", Some(&span), BoundBy::Query);
        assert_eq!(segment.request.request.segment_id, "theirs");
        assert_eq!((segment.start_unix_ms, segment.end_unix_ms), (start, end));
        let rows = segment.snapshots.iter();
        rows.map(|row| (row.sequence, row.unix_ms)).collect()
    }

    /// Check that snapshots lie inside the agent's span, from its start to its end, numbered from 0.
    #[test]
    fn snapshots_move_inside_the_span() {
        let times = [100, 110, 120, 130, 140];
        let whole = [(0, 100), (1, 110), (2, 120), (3, 130), (4, 140)];
        assert_eq!(bound(&times, 100, 140), whole);
        assert_eq!(bound(&times, 90, 150), whole);
        assert_eq!(
            bound(&times, 102, 137),
            [(0, 102), (1, 110), (2, 120), (3, 130), (4, 137)]
        );
        assert_eq!(bound(&times, 115, 121), [(0, 115), (1, 120), (2, 121)]);
        assert_eq!(bound(&times, 112, 113), [(0, 112), (1, 113)]);
        assert_eq!(bound(&times, 112, 112), [(0, 112), (1, 112)]);
    }

    /// Check that one snapshot is left, wherever the span is.
    #[test]
    fn a_snapshot_is_always_left() {
        assert_eq!(bound(&[100, 110], 200, 300), [(0, 200)]);
        assert_eq!(bound(&[100, 110], 10, 20), [(0, 20)]);
        assert_eq!(bound(&[100], 100, 100), [(0, 100)]);
    }
}
