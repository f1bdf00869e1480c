//! Turns a [`ProfiledSegment`] into the messages of the protocol: one trace segment, many snapshots.
//!
//! An OAP shows snapshots only below a stored segment with the same id, so a process without an
//! agent gets a synthetic one: a single entry span for the request. The segment of an agent comes from the
//! agent, and only the snapshots from us.

use std::sync::Arc;

use profiler_proto::skywalking as pb;

use super::name::{ENDPOINT_MAX, ID_MAX, cut};
use super::presence::cut_service;
use crate::model::{Binding, ProfiledSegment, Sw8};

/// `http` in OAP's `component-libraries.yml` (id 49 in 10.1.0): plain HTTP, whatever serves it.
const COMPONENT_HTTP: i32 = 49;

/// Tag that says why a request is not shown in the segment of its agent.
const TAG_SYNTHETIC: &str = "profilerd.synthetic";

/// Whether the segment is ours to send.
pub(super) fn is_ours(segment: &ProfiledSegment) -> bool {
    !matches!(segment.binding, Binding::Agent(_))
}

/// The synthetic segment: span 0, entry, from the request's head to its last written byte.
///
/// It stays out of the statistics: they would count the requests that are profiled for all that there are, and beside an
/// agent's segment the same request twice.
///
/// A sampled caller's trace goes on in it. A caller that is not sampled has no segment in the OAP,
/// so a reference to it would lead nowhere; the request is then a trace of its own, named like its
/// segment.
pub(super) fn to_object(segment: &ProfiledSegment) -> pb::SegmentObject {
    let request = &segment.request.request;
    let service = cut_service(&segment.service);
    let caller = request.sw8.as_ref().filter(|sw8| is_usable(sw8));
    let trace_id = caller.map_or(&request.segment_id, |sw8| &sw8.trace_id);
    let url = match &request.host {
        Some(host) => format!("http://{host}{}", request.path),
        None => request.path.clone(),
    };
    let mut tags = vec![tag("url", url), tag("http.method", request.method.clone())];
    if let Some(status) = segment.request.status {
        tags.push(tag("http.status_code", status.to_string()));
    }
    tags.extend(
        segment
            .tags
            .iter()
            .map(|(key, value)| tag(key, value.clone())),
    );
    let unbound = match segment.binding {
        Binding::Synthetic(unbound) => Some(unbound),
        Binding::Own | Binding::Agent(_) => None,
    };
    tags.extend(unbound.map(|why| tag(TAG_SYNTHETIC, why.to_string())));
    let span = pb::SpanObject {
        span_id: 0,
        parent_span_id: -1,
        start_time: segment.start_unix_ms,
        end_time: segment.end_unix_ms.max(segment.start_unix_ms),
        refs: caller.map(reference).into_iter().collect(),
        operation_name: cut(&request.endpoint, ENDPOINT_MAX).to_owned(),
        span_type: pb::SpanType::Entry.into(),
        span_layer: pb::SpanLayer::Http.into(),
        component_id: COMPONENT_HTTP,
        is_error: segment.request.status.is_some_and(|status| status >= 500),
        tags,
        skip_analysis: true,
        ..pb::SpanObject::default()
    };
    pb::SegmentObject {
        trace_id: trace_id.clone(),
        trace_segment_id: request.segment_id.clone(),
        spans: vec![span],
        service: service.name,
        service_instance: service.instance,
        is_size_limited: false,
    }
}

/// Largest message sent, the limit of gRPC servers that are not told another: an OAP takes 50 MiB, what
/// stands before it may take less, and a message that is refused costs those beside it.
const MESSAGE_MAX_BYTES: usize = 4 << 20;
/// Bytes around a frame, and around a message: tags and lengths.
const FRAME_OVERHEAD_BYTES: usize = 6;
const MESSAGE_OVERHEAD_BYTES: usize = 4096;

/// Makes the snapshots what an OAP can show: none empty (one empty stack makes OAP 10.1.0 fail the
/// whole analysis), none too large, numbered from 0 without holes, inside the span. Returns how many were
/// removed.
pub(super) fn normalize(segment: &mut ProfiledSegment) -> u64 {
    let before = segment.snapshots.len();
    segment
        .snapshots
        .retain(|snapshot| !snapshot.stack.is_empty() && fits_message(&snapshot.stack));
    let end_unix_ms = segment.end_unix_ms.max(segment.start_unix_ms);
    for (snapshot, sequence) in segment.snapshots.iter_mut().zip(0..) {
        snapshot.sequence = sequence;
        snapshot.unix_ms = snapshot.unix_ms.clamp(segment.start_unix_ms, end_unix_ms);
    }
    (before - segment.snapshots.len()) as u64
}

fn fits_message(stack: &[Arc<str>]) -> bool {
    let frames = stack.iter().map(|frame| frame.len() + FRAME_OVERHEAD_BYTES);
    frames.sum::<usize>() + MESSAGE_OVERHEAD_BYTES <= MESSAGE_MAX_BYTES
}

/// The caller's segment can be expected in the OAP, under ids that fit its columns.
fn is_usable(sw8: &Sw8) -> bool {
    let fits = |id: &str| !id.is_empty() && id.encode_utf16().count() <= ID_MAX;
    sw8.sampled && fits(&sw8.trace_id) && fits(&sw8.parent_segment_id)
}

fn reference(sw8: &Sw8) -> pb::SegmentReference {
    let parent = cut_service(&crate::model::Service {
        name: sw8.parent_service.clone(),
        instance: sw8.parent_instance.clone(),
    });
    pb::SegmentReference {
        ref_type: pb::RefType::CrossProcess.into(),
        trace_id: sw8.trace_id.clone(),
        parent_trace_segment_id: sw8.parent_segment_id.clone(),
        parent_span_id: sw8.parent_span_id,
        parent_service: parent.name,
        parent_service_instance: parent.instance,
        parent_endpoint: cut(&sw8.parent_endpoint, ENDPOINT_MAX).to_owned(),
        network_address_used_at_peer: sw8.address.clone(),
    }
}

fn tag(key: &str, value: String) -> pb::KeyStringValuePair {
    pb::KeyStringValuePair {
        key: key.to_owned(),
        value,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::super::outgoing::Outgoing;
    use super::*;
    use crate::model::{
        ActiveRequest, BoundBy, Coverage, FinishedRequest, Pid, ProcessKey, RequestId, Service,
        Snapshot, TaskId, TaskSlot, Tid, Unbound, WallClock,
    };

    /// A profiled request with one snapshot per stack, 10 ms apart.
    pub(in crate::oap) fn segment(task: &str, id: &str, stacks: &[&str]) -> ProfiledSegment {
        let start_unix_ms = 1_795_405_209_971;
        let service = Service {
            name: "svc".to_owned(),
            instance: "one".to_owned(),
        };
        let request = ActiveRequest {
            id: RequestId(1),
            slot: TaskSlot(0),
            task_id: TaskId(task.to_owned()),
            process: ProcessKey {
                pid: Pid(1),
                start_ticks: 0,
            },
            service: service.clone(),
            tid: Tid(1),
            fd: 5,
            start_ktime_ns: 0,
            clock: WallClock::from_readings(0, 0),
            endpoint: "POST:/".to_owned(),
            method: "POST".to_owned(),
            path: "/a".to_owned(),
            host: Some("shop:8080".to_owned()),
            segment_id: id.to_owned(),
            sw8: None,
        };
        let snapshots = stacks.iter().zip(0..).map(|(stack, sequence)| Snapshot {
            sequence,
            unix_ms: start_unix_ms + i64::from(sequence) * 10,
            stack: stack
                .split('>')
                .filter(|frame| !frame.is_empty())
                .map(Arc::from)
                .collect(),
        });
        ProfiledSegment {
            task_id: TaskId(task.to_owned()),
            service,
            request: FinishedRequest {
                request,
                end_ktime_ns: 0,
                status: Some(200),
                cut: None,
                reason: None,
                outbound: None,
                losses: Coverage::default(),
            },
            start_unix_ms,
            end_unix_ms: start_unix_ms + 560,
            tags: Vec::new(),
            binding: Binding::Own,
            snapshots: snapshots.collect(),
        }
    }

    fn sw8(sampled: bool) -> Sw8 {
        Sw8 {
            sampled,
            trace_id: "caller-trace".to_owned(),
            parent_segment_id: "caller-segment".to_owned(),
            parent_span_id: 3,
            parent_service: "front".to_owned(),
            parent_instance: "front-1".to_owned(),
            parent_endpoint: "/buy".to_owned(),
            address: "shop:8080".to_owned(),
        }
    }

    fn tags(object: &pb::SegmentObject) -> Vec<(&str, &str)> {
        let tags = object.spans[0].tags.iter();
        tags.map(|tag| (tag.key.as_str(), tag.value.as_str()))
            .collect()
    }

    /// Check the synthetic segment of a request without a caller.
    #[test]
    fn a_request_becomes_one_entry_span() {
        let object = to_object(&segment("t", "s", &["main"]));
        assert_eq!(object.trace_segment_id, "s");
        assert_eq!(object.trace_id, "s");
        assert_eq!(object.service_instance, "one");
        let span = &object.spans[0];
        assert_eq!((span.span_id, span.parent_span_id), (0, -1));
        assert_eq!(span.span_type(), pb::SpanType::Entry);
        assert_eq!(span.span_layer(), pb::SpanLayer::Http);
        assert_eq!(span.operation_name, "POST:/");
        assert_eq!(span.end_time - span.start_time, 560);
        assert!(!span.is_error && span.refs.is_empty());
        assert_eq!(
            tags(&object),
            [
                ("url", "http://shop:8080/a"),
                ("http.method", "POST"),
                ("http.status_code", "200")
            ]
        );
    }

    /// Check that a 5xx status is an error, that no status has no tag, and that names are cut.
    #[test]
    fn status_and_long_names() {
        let mut request = segment("t", "s", &["main"]);
        request.request.status = Some(503);
        request.request.request.endpoint = "e".repeat(200);
        let object = to_object(&request);
        assert!(object.spans[0].is_error);
        assert_eq!(object.spans[0].operation_name.len(), 150);
        request.request.status = None;
        request.request.request.host = None;
        let object = to_object(&request);
        assert!(!object.spans[0].is_error);
        assert_eq!(tags(&object), [("url", "/a"), ("http.method", "POST")]);
        request.tags = vec![("team".to_owned(), "blue".to_owned())];
        assert_eq!(tags(&to_object(&request))[2], ("team", "blue"));
    }

    /// Check that every segment is kept out of the statistics, and that one beside an agent's says why it is there.
    #[test]
    fn no_segment_is_counted() {
        let mut request = segment("t", "s", &["main"]);
        assert!(to_object(&request).spans[0].skip_analysis);
        request.binding = Binding::Synthetic(Unbound::NotFound);
        assert!(is_ours(&request));
        let object = to_object(&request);
        assert!(object.spans[0].skip_analysis);
        let why = tags(&object)[3];
        assert_eq!(why, (TAG_SYNTHETIC, &*Unbound::NotFound.to_string()));
        request.binding = Binding::Agent(BoundBy::Query);
        assert!(!is_ours(&request));
    }

    /// Check that a sampled caller's trace goes on, and that an unsampled one is left alone.
    #[test]
    fn the_trace_of_a_sampled_caller_goes_on() {
        let mut request = segment("t", "s", &["main"]);
        request.request.request.sw8 = Some(sw8(true));
        let object = to_object(&request);
        assert_eq!(object.trace_id, "caller-trace");
        let reference = &object.spans[0].refs[0];
        assert_eq!(reference.ref_type(), pb::RefType::CrossProcess);
        assert_eq!(reference.parent_trace_segment_id, "caller-segment");
        assert_eq!(reference.parent_span_id, 3);
        assert_eq!(reference.network_address_used_at_peer, "shop:8080");

        request.request.request.sw8 = Some(sw8(false));
        let object = to_object(&request);
        assert_eq!(object.trace_id, "s");
        assert!(object.spans[0].refs.is_empty());

        let mut long = sw8(true);
        long.trace_id = "x".repeat(151);
        request.request.request.sw8 = Some(long);
        assert_eq!(to_object(&request).trace_id, "s");
    }

    /// Check that a snapshot larger than a message goes, and the largest that is not stays.
    #[test]
    fn oversized_snapshots_go() {
        use prost::Message as _;
        let frame = "x".repeat(4000);
        let stack = |frames: usize| vec![frame.as_str(); frames].join(">");
        let mut request = segment("t", "s", &[&stack(1045), &stack(1046), &stack(1050)]);
        assert_eq!(normalize(&mut request), 2);
        let largest = crate::oap::outgoing::Outgoing::new(request);
        let bytes = largest.to_message(&largest.snapshots[0]).encoded_len();
        assert!((4_000_000..MESSAGE_MAX_BYTES).contains(&bytes), "{bytes}");
    }

    /// Check that empty stacks go, that numbers close up, and that times stay inside the span.
    #[test]
    fn snapshots_are_made_showable() {
        let mut request = segment("t", "s", &["", "main", "", "main>a"]);
        request.snapshots[1].unix_ms = 0;
        request.snapshots[3].unix_ms = i64::MAX;
        assert_eq!(normalize(&mut request), 2);
        let rows: Vec<_> = request
            .snapshots
            .iter()
            .map(|snapshot| (snapshot.sequence, snapshot.unix_ms))
            .collect();
        assert_eq!(rows, [(0, request.start_unix_ms), (1, request.end_unix_ms)]);
        let outgoing = Outgoing::new(request);
        let message = outgoing.to_message(&outgoing.snapshots[1]);
        assert_eq!(message.stack.unwrap().code_signatures, ["main", "a"]);
        assert_eq!(message.trace_segment_id, "s");
    }
}
