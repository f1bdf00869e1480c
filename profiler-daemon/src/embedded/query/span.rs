//! Spans of stored segments, as pages and `swctl` list them.

use std::collections::BTreeSet;

use async_graphql::{Enum, ID, SimpleObject};
use profiler_proto::skywalking::{
    KeyStringValuePair, Log, RefType as WireRefType, SegmentReference, SpanLayer, SpanObject,
    SpanType,
};

use super::super::trace::{SegmentSummary, StoredSegment};
use super::component::component;
use super::long::Long;

#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq)]
pub(super) enum RefType {
    CrossProcess,
    CrossThread,
}

#[derive(Debug, SimpleObject)]
pub(super) struct Ref {
    trace_id: ID,
    parent_segment_id: ID,
    parent_span_id: i32,
    #[graphql(name = "type")]
    kind: RefType,
}

#[derive(Debug, SimpleObject)]
pub(super) struct KeyValue {
    pub(super) key: String,
    pub(super) value: Option<String>,
}

#[derive(Debug, SimpleObject)]
pub(super) struct LogEntity {
    time: Long,
    data: Option<Vec<KeyValue>>,
}

#[derive(Debug, SimpleObject)]
struct Instant {
    seconds: Long,
    nanos: i32,
}

#[derive(Debug, SimpleObject)]
struct KeyNumericValue {
    key: String,
    value: Long,
}

/// What SkyWalking Rover tells of a span; it does not report here.
#[derive(Debug, SimpleObject)]
struct SpanAttachedEvent {
    start_time: Instant,
    event: String,
    end_time: Instant,
    tags: Vec<Option<KeyValue>>,
    summary: Vec<KeyNumericValue>,
}

#[derive(Debug, SimpleObject)]
pub(super) struct Span {
    trace_id: ID,
    segment_id: ID,
    span_id: i32,
    parent_span_id: i32,
    refs: Vec<Ref>,
    service_code: String,
    service_instance_name: ID,
    start_time: Long,
    end_time: Long,
    endpoint_name: Option<String>,
    #[graphql(name = "type")]
    kind: String,
    peer: Option<String>,
    component: Option<String>,
    is_error: Option<bool>,
    layer: Option<String>,
    tags: Vec<KeyValue>,
    logs: Vec<LogEntity>,
    attached_events: Vec<SpanAttachedEvent>,
}

#[derive(Debug, SimpleObject)]
pub(super) struct ProfiledSpan {
    span_id: i32,
    parent_span_id: i32,
    segment_id: ID,
    refs: Vec<Ref>,
    service_code: String,
    service_instance_name: ID,
    start_time: Long,
    end_time: Long,
    endpoint_name: Option<String>,
    #[graphql(name = "type")]
    kind: String,
    peer: Option<String>,
    component: Option<String>,
    is_error: Option<bool>,
    layer: Option<String>,
    tags: Vec<KeyValue>,
    logs: Vec<LogEntity>,
    profiled: bool,
}

/// The spans of a segment, by their number.
pub(super) fn spans(segment: StoredSegment) -> Vec<Span> {
    let summary = segment.summary;
    let objects = if segment.spans.is_empty() {
        vec![known_span(&summary)]
    } else {
        segment.spans
    };
    let spans = objects.into_iter().map(|span| Span {
        trace_id: summary.trace_id.clone().into(),
        segment_id: summary.segment_id.clone().into(),
        span_id: span.span_id,
        parent_span_id: span.parent_span_id,
        service_code: summary.service.clone(),
        service_instance_name: summary.instance.clone().into(),
        start_time: Long(span.start_time),
        end_time: Long(span.end_time),
        kind: kind(span.span_type()).to_owned(),
        component: Some(component(span.component_id).to_owned()),
        is_error: Some(span.is_error),
        layer: Some(layer(span.span_layer()).to_owned()),
        refs: span.refs.into_iter().map(Ref::of).collect(),
        endpoint_name: Some(span.operation_name),
        peer: Some(span.peer),
        tags: span.tags.into_iter().map(KeyValue::of).collect(),
        logs: span.logs.into_iter().map(LogEntity::of).collect(),
        attached_events: Vec::new(),
    });
    spans.collect()
}

/// The same, for a list of profiled requests.
pub(super) fn profiled_spans(segment: StoredSegment) -> Vec<ProfiledSpan> {
    let profiled = segment.is_profiled;
    let spans = spans(segment).into_iter().map(|span| ProfiledSpan {
        span_id: span.span_id,
        parent_span_id: span.parent_span_id,
        segment_id: span.segment_id,
        refs: span.refs,
        service_code: span.service_code,
        service_instance_name: span.service_instance_name,
        start_time: span.start_time,
        end_time: span.end_time,
        endpoint_name: span.endpoint_name,
        kind: span.kind,
        peer: span.peer,
        component: span.component,
        is_error: span.is_error,
        layer: span.layer,
        tags: span.tags,
        logs: span.logs,
        profiled,
    });
    spans.collect()
}

/// What is known of a segment that was stored without its spans, as its span 0.
fn known_span(summary: &SegmentSummary) -> SpanObject {
    let layer = if summary.status.is_some() {
        SpanLayer::Http
    } else {
        SpanLayer::Unknown
    };
    let tags = summary.tags.iter().cloned();
    SpanObject {
        parent_span_id: -1,
        start_time: summary.start_ms,
        end_time: summary.end_ms,
        operation_name: summary.endpoint.clone(),
        span_layer: layer.into(),
        is_error: summary.is_error,
        tags: tags
            .map(|(key, value)| KeyStringValuePair { key, value })
            .collect(),
        ..SpanObject::default()
    }
}

fn kind(kind: SpanType) -> &'static str {
    match kind {
        SpanType::Entry => "Entry",
        SpanType::Exit => "Exit",
        SpanType::Local => "Local",
    }
}

/// The names of OAP's own list.
fn layer(layer: SpanLayer) -> &'static str {
    match layer {
        SpanLayer::Unknown => "Unknown",
        SpanLayer::Database => "Database",
        SpanLayer::RpcFramework => "RPCFramework",
        SpanLayer::Http => "Http",
        SpanLayer::Mq => "MQ",
        SpanLayer::Cache => "Cache",
        SpanLayer::Faas => "FAAS",
    }
}

impl ProfiledSpan {
    /// Its segment.
    pub(super) fn of_segment(&self) -> &ID {
        &self.segment_id
    }

    /// Leaves out callers that are not among these segments, as OAP does: a list of profiled requests has no place for them.
    pub(super) fn keep_callers(&mut self, segments: &BTreeSet<String>) {
        self.refs
            .retain(|caller| segments.contains(caller.parent_segment_id.as_str()));
    }
}

impl Ref {
    fn of(reference: SegmentReference) -> Self {
        Self {
            kind: match reference.ref_type() {
                WireRefType::CrossProcess => RefType::CrossProcess,
                WireRefType::CrossThread => RefType::CrossThread,
            },
            trace_id: reference.trace_id.into(),
            parent_segment_id: reference.parent_trace_segment_id.into(),
            parent_span_id: reference.parent_span_id,
        }
    }
}

impl KeyValue {
    fn of(pair: KeyStringValuePair) -> Self {
        Self {
            key: pair.key,
            value: Some(pair.value),
        }
    }
}

impl LogEntity {
    fn of(log: Log) -> Self {
        Self {
            time: Long(log.time),
            data: Some(log.data.into_iter().map(KeyValue::of).collect()),
        }
    }
}
