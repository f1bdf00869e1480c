//! Traces: which there are, and the spans of one.
//!
//! A stored segment is one entry of the list, as in an OAP with a relational database.

use async_graphql::{Context, Enum, ID, InputObject, Object, Result, SimpleObject};

use super::super::store::TraceFilter;
use super::super::task::{endpoint_names, instance_names, service_name};
use super::super::trace::StoredSegment;
use super::debug::DebuggingTrace;
use super::page::Pagination;
use super::span::{Span, spans};
use super::time::Duration;
use super::trace::cut;
use super::{LIST, on_store};

/// Most tags of a condition: each is looked for in each segment.
const TAGS_MAX: usize = 10;

#[derive(Debug, Default)]
pub(super) struct SearchQuery;

#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq)]
enum TraceState {
    All,
    Success,
    Error,
}

#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq)]
enum QueryOrder {
    ByStartTime,
    ByDuration,
}

#[derive(Debug, InputObject)]
struct SpanTag {
    key: String,
    value: Option<String>,
}

#[derive(Debug, InputObject)]
struct TraceQueryCondition {
    service_id: Option<ID>,
    service_instance_id: Option<ID>,
    trace_id: Option<String>,
    endpoint_id: Option<ID>,
    query_duration: Option<Duration>,
    /// Milliseconds; 0 is no bound, as in OAP.
    min_trace_duration: Option<i32>,
    /// Milliseconds; 0 is no bound, as in OAP.
    max_trace_duration: Option<i32>,
    trace_state: TraceState,
    query_order: QueryOrder,
    tags: Option<Vec<SpanTag>>,
    paging: Pagination,
}

#[derive(Debug, SimpleObject)]
struct BasicTrace {
    segment_id: String,
    endpoint_names: Vec<String>,
    duration: i32,
    start: String,
    is_error: Option<bool>,
    trace_ids: Vec<String>,
}

#[derive(Debug, SimpleObject)]
struct TraceBrief {
    traces: Vec<BasicTrace>,
    debugging_trace: Option<DebuggingTrace>,
}

#[derive(Debug, SimpleObject)]
struct Trace {
    spans: Vec<Span>,
    debugging_trace: Option<DebuggingTrace>,
}

#[Object]
impl SearchQuery {
    /// Segments, whether they were profiled or not.
    #[graphql(complexity = "LIST + child_complexity")]
    async fn query_basic_traces(
        &self,
        context: &Context<'_>,
        condition: Option<TraceQueryCondition>,
        #[graphql(name = "debug")] _debug: Option<bool>,
    ) -> Result<Option<TraceBrief>> {
        let Some(condition) = condition else {
            return Err("condition is missing".into());
        };
        let segments = match condition.filter()? {
            Some(filter) => on_store(context, move |store| store.find_segments(&filter)).await?,
            None => Vec::new(),
        };
        Ok(Some(TraceBrief {
            traces: segments.into_iter().map(BasicTrace::of).collect(),
            debugging_trace: None,
        }))
    }

    /// Whether traces are listed by `queryTraces` instead. Asked since OAP 10.3.
    #[graphql(name = "hasQueryTracesV2Support")]
    async fn lists_whole_traces(&self) -> bool {
        false
    }

    /// The spans of a trace, segment by segment.
    #[graphql(complexity = "LIST + child_complexity")]
    async fn query_trace(
        &self,
        context: &Context<'_>,
        trace_id: ID,
        #[graphql(name = "debug")] _debug: Option<bool>,
    ) -> Result<Option<Trace>> {
        let segments = on_store(context, move |store| store.segments_of_trace(&trace_id)).await?;
        Ok(Some(Trace {
            spans: segments.into_iter().flat_map(spans).collect(),
            debugging_trace: None,
        }))
    }

    /// Keys of tags that segments have.
    #[graphql(complexity = "LIST + child_complexity")]
    async fn query_trace_tag_autocomplete_keys(
        &self,
        context: &Context<'_>,
        #[graphql(name = "duration")] _duration: Duration,
    ) -> Result<Option<Vec<String>>> {
        Ok(Some(on_store(context, |store| store.tag_keys()).await?))
    }

    /// Values of a tag that segments have.
    #[graphql(complexity = "LIST + child_complexity")]
    async fn query_trace_tag_autocomplete_values(
        &self,
        context: &Context<'_>,
        tag_key: String,
        #[graphql(name = "duration")] _duration: Duration,
    ) -> Result<Option<Vec<String>>> {
        let values = on_store(context, move |store| store.tag_values(&tag_key)).await?;
        Ok(Some(values))
    }
}

impl TraceQueryCondition {
    /// As the store takes it; nothing if an id can be nobody's.
    fn filter(self) -> Result<Option<TraceFilter>> {
        let mut filter = TraceFilter::default();
        if let Some(id) = given(self.service_id) {
            let Some(service) = service_name(&id) else {
                return Ok(None);
            };
            filter.service = Some(service);
        }
        if let Some(id) = given(self.service_instance_id) {
            let Some((_, instance)) = instance_names(&id) else {
                return Ok(None);
            };
            filter.instance = Some(instance);
        }
        if let Some(id) = given(self.endpoint_id) {
            let Some((_, endpoint)) = endpoint_names(&id) else {
                return Ok(None);
            };
            filter.endpoint = Some(endpoint);
        }
        filter.trace_id = self.trace_id.filter(|id| !id.is_empty());
        if let Some(time) = self.query_duration {
            let (since_ms, before_ms) = time.range_ms()?;
            filter.since_ms = Some(since_ms);
            filter.before_ms = Some(before_ms);
        }
        let bound = |ms: Option<i32>| ms.filter(|&ms| ms > 0).map(i64::from);
        filter.duration_ms = (
            bound(self.min_trace_duration),
            bound(self.max_trace_duration),
        );
        filter.is_error = match self.trace_state {
            TraceState::All => None,
            TraceState::Success => Some(false),
            TraceState::Error => Some(true),
        };
        let tags = self.tags.unwrap_or_default();
        if tags.len() > TAGS_MAX {
            return Err(format!(
                "{} tags were asked for, at most {TAGS_MAX} can be",
                tags.len()
            )
            .into());
        }
        let pair = |tag: SpanTag| (tag.key, tag.value.unwrap_or_default());
        filter.tags = tags.into_iter().map(pair).collect();
        filter.by_duration = self.query_order == QueryOrder::ByDuration;
        (filter.skip, filter.count) = self.paging.window()?;
        Ok(Some(filter))
    }
}

/// Pages send empty texts for what is not chosen.
fn given(id: Option<ID>) -> Option<String> {
    id.map(|id| id.0).filter(|id| !id.is_empty())
}

impl BasicTrace {
    fn of(stored: StoredSegment) -> Self {
        let segment = stored.summary;
        Self {
            segment_id: segment.segment_id,
            endpoint_names: vec![segment.endpoint],
            duration: cut(segment.end_ms.saturating_sub(segment.start_ms)),
            start: segment.start_ms.to_string(),
            is_error: Some(segment.is_error),
            trace_ids: vec![segment.trace_id],
        }
    }
}
