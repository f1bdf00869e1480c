//! The answers of the query side, and what they become.

use std::sync::Arc;

use anyhow::{Context, Result};
use profiler_proto::profilerd as pb;
use serde::Deserialize;

use crate::analyze::{Element, Tree};
use crate::embedded::task::{LogEntry, Operation, TaskRecord, TaskRequest};
use crate::embedded::wire;
use crate::model::{SegmentReport, TAG_CUT};

#[derive(Deserialize)]
pub(super) struct EndpointRow {
    pub(super) name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Created {
    pub(super) id: Option<String>,
    pub(super) error_reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TaskRow {
    pub(super) id: String,
    #[serde(default)]
    pub(super) service_name: Option<String>,
    pub(super) endpoint_name: String,
    pub(super) start_time: i64,
    pub(super) duration: i32,
    pub(super) min_duration_threshold: i32,
    pub(super) dump_period: i32,
    pub(super) max_sampling_count: i32,
    #[serde(default)]
    pub(super) logs: Option<Vec<LogRow>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LogRow {
    #[serde(default)]
    pub(super) instance_name: Option<String>,
    pub(super) operation_type: String,
    pub(super) operation_time: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TraceRow {
    pub(super) trace_id: String,
    #[serde(default)]
    pub(super) instance_name: Option<String>,
    pub(super) spans: Vec<SpanRow>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SpanRow {
    pub(super) span_id: i32,
    pub(super) segment_id: String,
    pub(super) start_time: i64,
    pub(super) end_time: i64,
    #[serde(default)]
    pub(super) endpoint_name: Option<String>,
    #[serde(default)]
    pub(super) tags: Vec<TagRow>,
    pub(super) profiled: bool,
}

#[derive(Deserialize)]
pub(super) struct TagRow {
    pub(super) key: String,
    #[serde(default)]
    pub(super) value: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct AnalysisRow {
    pub(super) tip: Option<String>,
    pub(super) trees: Vec<TreeRow>,
}

#[derive(Deserialize)]
pub(super) struct TreeRow {
    pub(super) elements: Vec<ElementRow>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ElementRow {
    pub(super) id: String,
    pub(super) parent_id: String,
    pub(super) code_signature: String,
    pub(super) duration: i64,
    pub(super) duration_child_excluded: i64,
    pub(super) count: u32,
}

/// A task of the OAP; its creation time stands at the beginning of its id.
pub(super) fn record(id: String, request: TaskRequest) -> TaskRecord {
    let create_ms = id.split('_').next().and_then(|ms| ms.parse().ok());
    TaskRecord {
        create_ms: create_ms.unwrap_or(request.start_ms),
        cancelled_ms: None,
        id,
        request,
    }
}

pub(super) fn detail(row: TaskRow, now_ms: i64) -> pb::TaskDetail {
    let request = TaskRequest {
        service: row.service_name.unwrap_or_default(),
        endpoint: row.endpoint_name,
        start_ms: row.start_time,
        duration_minutes: row.duration,
        min_duration_threshold_ms: row.min_duration_threshold,
        dump_period_ms: row.dump_period,
        max_sampling_count: row.max_sampling_count,
    };
    let task = record(row.id, request);
    let mut logs: Vec<LogEntry> = row
        .logs
        .into_iter()
        .flatten()
        .map(|log| LogEntry {
            instance: log.instance_name.unwrap_or_default(),
            operation: match log.operation_type.as_str() {
                "EXECUTION_FINISHED" => Operation::Finished,
                _ => Operation::Notified,
            },
            time_ms: log.operation_time,
        })
        .collect();
    logs.sort_by_key(|log| std::cmp::Reverse(log.time_ms));
    pb::TaskDetail {
        task: Some(wire::task_to_wire(&task, task.state(&logs, now_ms))),
        logs: logs
            .into_iter()
            .map(|log| pb::TaskLog {
                service_instance: log.instance,
                operation: log.operation.name().to_owned(),
                time_ms: log.time_ms,
            })
            .collect(),
        ..pb::TaskDetail::default()
    }
}

/// The profiled segments of traces, without trees: a trace may hold several, and others.
pub(super) fn profiled_segments(traces: &[TraceRow]) -> Vec<SegmentReport> {
    let mut segments: Vec<SegmentReport> = Vec::new();
    for trace in traces {
        for span in trace.spans.iter().filter(|span| span.profiled) {
            let end_ms = span.end_time;
            let index = segments
                .iter()
                .position(|s| s.segment_id == span.segment_id);
            let Some(segment) = index.map(|index| &mut segments[index]) else {
                let mut report = SegmentReport::default();
                report.read_request(tags(span));
                segments.push(SegmentReport {
                    segment_id: span.segment_id.clone(),
                    trace_id: trace.trace_id.clone(),
                    service_instance: trace.instance_name.clone().unwrap_or_default(),
                    endpoint: span.endpoint_name.clone().unwrap_or_default(),
                    start_ms: span.start_time,
                    duration_ms: end_ms.saturating_sub(span.start_time),
                    status: status(span),
                    cut: tag(span, |key| key == TAG_CUT).map(str::to_owned),
                    ..report
                });
                continue;
            };
            let end_ms = end_ms.max(segment.start_ms.saturating_add(segment.duration_ms));
            segment.start_ms = segment.start_ms.min(span.start_time);
            segment.duration_ms = end_ms.saturating_sub(segment.start_ms);
            if span.span_id == 0 {
                segment.endpoint = span.endpoint_name.clone().unwrap_or_default();
                segment.read_request(tags(span));
                segment.status = status(span).or(segment.status);
            }
        }
    }
    segments
}

pub(super) fn status(span: &SpanRow) -> Option<u16> {
    tag(span, |key| {
        matches!(key, "http.status_code" | "status_code")
    })?
    .parse()
    .ok()
}

fn tags(span: &SpanRow) -> impl Iterator<Item = (&str, &str)> {
    let tags = span.tags.iter();
    tags.filter_map(|tag| Some((tag.key.as_str(), tag.value.as_deref()?)))
}

fn tag(span: &SpanRow, is_wanted: impl Fn(&str) -> bool) -> Option<&str> {
    let tag = span.tags.iter().find(|tag| is_wanted(&tag.key))?;
    tag.value.as_deref()
}

pub(super) fn to_tree(row: TreeRow) -> Result<Tree> {
    let elements = row.elements.into_iter().map(|element| {
        Some(Element {
            id: element.id.parse().ok()?,
            parent_id: element.parent_id.parse().ok()?,
            code_signature: Arc::from(element.code_signature),
            duration_ms: element.duration,
            self_ms: element.duration_child_excluded,
            count: element.count,
        })
    });
    let elements: Option<Vec<Element>> = elements.collect();
    let elements = elements.context("a call tree of the OAP has ids that are not numbers")?;
    Ok(Tree::try_from_elements(elements)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Check that an answer of OAP 10.1.0 becomes a task with its state and log.
    #[test]
    fn a_task_row_becomes_a_task() {
        let row = json!({
            "id": "1795405209971_ZGVtby1zdmM=.1", "serviceId": "x", "serviceName": "demo-svc",
            "endpointName": "/", "startTime": 1_795_405_209_971_i64, "duration": 5,
            "minDurationThreshold": 0, "dumpPeriod": 10, "maxSamplingCount": 5,
            "logs": [
                {"instanceName": "i", "operationType": "NOTIFIED",
                 "operationTime": 1_795_405_219_000_i64},
                {"instanceName": "i", "operationType": "EXECUTION_FINISHED",
                 "operationTime": 1_795_405_519_000_i64},
            ],
        });
        let detail = detail(serde_json::from_value(row).unwrap(), 1_795_405_600_000);
        let task = detail.task.unwrap();
        assert_eq!(task.create_ms, 1_795_405_209_971);
        assert_eq!(task.state(), pb::TaskState::Finished);
        assert_eq!(detail.logs[0].operation, "EXECUTION_FINISHED");
    }

    /// Check that spans of one segment become one request, and that others are left out.
    #[test]
    fn profiled_spans_become_segments() {
        let span = |id: i32, segment: &str, start: i64, end: i64, profiled: bool| {
            json!({
                "spanId": id, "segmentId": segment, "startTime": start, "endTime": end,
                "endpointName": format!("/{id}"), "type": "Entry", "profiled": profiled,
                "tags": [{"key": "http.status_code", "value": "200"}],
            })
        };
        let trace = json!({
            "traceId": "t", "instanceName": "i",
            "spans": [span(1, "a", 105, 120, true), span(0, "a", 100, 110, true),
                      span(0, "b", 90, 200, false)],
        });
        let segments = profiled_segments(&[serde_json::from_value(trace).unwrap()]);
        assert_eq!(segments.len(), 1);
        assert_eq!(segments[0].endpoint, "/0");
        assert_eq!((segments[0].start_ms, segments[0].duration_ms), (100, 20));
        assert_eq!(segments[0].status, Some(200));
    }
}
