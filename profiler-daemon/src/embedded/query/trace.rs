//! Profiled requests and their call trees.

use async_graphql::{Context, ID, InputObject, Object, Result, SimpleObject};

use super::super::storage::StorageError;
use super::super::store::Store;
use super::super::task::instance_id;
use super::super::trace::{SegmentSummary, StoredSegment};
use super::long::Long;
use super::span::{ProfiledSpan, profiled_spans};
use super::{LIST, on_store};
use crate::analyze::{self, Analysis, Element, Query, Row};

/// Most segments analysed as one; a trace has few, and each may have 12,000 snapshots.
const QUERIES_MAX: usize = 100;

#[derive(Debug, Default)]
pub(super) struct TraceQuery;

#[derive(Debug, SimpleObject)]
struct ProfiledTraceSegments {
    trace_id: String,
    instance_id: ID,
    instance_name: String,
    endpoint_names: Vec<String>,
    duration: i32,
    start: String,
    spans: Vec<ProfiledSpan>,
}

#[derive(Debug, InputObject)]
struct ProfileAnalyzeTimeRange {
    start: Long,
    end: Long,
}

#[derive(Debug, InputObject)]
struct SegmentProfileAnalyzeQuery {
    segment_id: String,
    time_range: ProfileAnalyzeTimeRange,
}

#[derive(Debug, SimpleObject)]
struct ProfileStackElement {
    id: ID,
    parent_id: ID,
    code_signature: String,
    duration: i32,
    duration_child_excluded: i32,
    count: i32,
}

#[derive(Debug, SimpleObject)]
struct ProfileStackTree {
    elements: Vec<ProfileStackElement>,
}

#[derive(Debug, SimpleObject)]
struct ProfileAnalyzation {
    tip: Option<String>,
    trees: Vec<ProfileStackTree>,
}

#[Object]
impl TraceQuery {
    /// The profiled requests of a task, oldest first.
    #[graphql(complexity = "LIST + child_complexity")]
    async fn get_profile_task_segments(
        &self,
        context: &Context<'_>,
        #[graphql(name = "taskID")] task_id: ID,
    ) -> Result<Vec<ProfiledTraceSegments>> {
        let segments = on_store(context, move |store| store.listed_segments(&task_id)).await?;
        Ok(traces(segments))
    }

    /// Call trees of parts of segments, analysed as one.
    #[graphql(complexity = "LIST + child_complexity")]
    async fn get_segments_profile_analyze(
        &self,
        context: &Context<'_>,
        queries: Vec<SegmentProfileAnalyzeQuery>,
    ) -> Result<ProfileAnalyzation> {
        if queries.len() > QUERIES_MAX {
            return Err(format!("at most {QUERIES_MAX} segments can be analysed as one").into());
        }
        let analysis = on_store(context, move |store| analyze_segments(store, &queries)).await?;
        Ok(analysis.into())
    }
}

/// Segments of one trace and instance belong to one request.
fn traces(segments: Vec<StoredSegment>) -> Vec<ProfiledTraceSegments> {
    let mut traces: Vec<(ProfiledTraceSegments, i64, i64)> = Vec::new();
    for stored in segments {
        let segment = &stored.summary;
        let same = traces.iter_mut().find(|(trace, ..)| {
            trace.trace_id == segment.trace_id && trace.instance_name == segment.instance
        });
        let (trace, start_ms, end_ms) = match same {
            Some(known) => known,
            None => traces.push_mut((empty_trace(segment), segment.start_ms, segment.end_ms)),
        };
        *start_ms = segment.start_ms.min(*start_ms);
        *end_ms = segment.end_ms.max(*end_ms);
        if !trace.endpoint_names.contains(&segment.endpoint) {
            trace.endpoint_names.push(segment.endpoint.clone());
        }
        trace.spans.extend(profiled_spans(stored));
    }
    traces
        .into_iter()
        .map(|(mut trace, start_ms, end_ms)| {
            let ids = trace.spans.iter().map(|span| span.of_segment().to_string());
            let ids = ids.collect();
            for span in &mut trace.spans {
                span.keep_callers(&ids);
            }
            ProfiledTraceSegments {
                duration: cut(end_ms.saturating_sub(start_ms)),
                start: start_ms.to_string(),
                ..trace
            }
        })
        .collect()
}

fn empty_trace(segment: &SegmentSummary) -> ProfiledTraceSegments {
    ProfiledTraceSegments {
        trace_id: segment.trace_id.clone(),
        instance_id: instance_id(&segment.service, &segment.instance).into(),
        instance_name: segment.instance.clone(),
        endpoint_names: Vec::new(),
        duration: 0,
        start: String::new(),
        spans: Vec::new(),
    }
}

fn analyze_segments(
    store: &Store,
    queries: &[SegmentProfileAnalyzeQuery],
) -> Result<Analysis, StorageError> {
    let mut stored = Vec::with_capacity(queries.len());
    for query in queries {
        stored.push((query, store.snapshots_of(&query.segment_id)?));
    }
    let rows: Vec<Row<'_>> = stored
        .iter()
        .flat_map(|(query, snapshots)| {
            snapshots.iter().map(|snapshot| Row {
                segment: &query.segment_id,
                sequence: snapshot.sequence,
                time_ms: snapshot.unix_ms,
                stack: &snapshot.stack,
            })
        })
        .collect();
    let ranges: Vec<Query<'_>> = queries
        .iter()
        .map(|query| Query {
            segment: &query.segment_id,
            start_ms: query.time_range.start.0,
            end_ms: query.time_range.end.0,
        })
        .collect();
    Ok(analyze::analyze(&rows, &ranges))
}

impl From<Analysis> for ProfileAnalyzation {
    fn from(analysis: Analysis) -> Self {
        let trees = analysis.trees.iter().map(|tree| ProfileStackTree {
            elements: tree.elements().iter().map(element).collect(),
        });
        Self {
            trees: trees.collect(),
            tip: analysis.tip,
        }
    }
}

fn element(element: &Element) -> ProfileStackElement {
    ProfileStackElement {
        id: element.id.into(),
        parent_id: element.parent_id.into(),
        code_signature: element.code_signature.to_string(),
        duration: cut(element.duration_ms),
        duration_child_excluded: cut(element.self_ms),
        count: cut(element.count.into()),
    }
}

/// GraphQL's Int has 32 bits: 24.8 days in milliseconds.
pub(super) fn cut(number: i64) -> i32 {
    let range = i64::from(i32::MIN)..=i64::from(i32::MAX);
    i32::try_from(number.clamp(*range.start(), *range.end())).unwrap_or_default()
}
