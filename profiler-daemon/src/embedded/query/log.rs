//! Logs of agents: accepted and forgotten, so there are none to list.

use async_graphql::{Enum, ID, InputObject, Object, SimpleObject};

use super::debug::DebuggingTrace;
use super::long::Long;
use super::page::{Order, Pagination};
use super::span::KeyValue;
use super::time::Duration;

#[derive(Debug, Default)]
pub(super) struct LogQuery;

#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq)]
enum ContentType {
    Text,
    Json,
    Yaml,
}

#[derive(Debug, SimpleObject)]
struct Log {
    service_name: Option<String>,
    service_id: Option<ID>,
    service_instance_name: Option<String>,
    service_instance_id: Option<ID>,
    endpoint_name: Option<String>,
    endpoint_id: Option<ID>,
    trace_id: Option<String>,
    timestamp: Long,
    content_type: ContentType,
    content: Option<String>,
    tags: Option<Vec<KeyValue>>,
}

#[derive(Debug, SimpleObject)]
struct Logs {
    error_reason: Option<String>,
    logs: Vec<Log>,
    debugging_trace: Option<DebuggingTrace>,
}

#[derive(Debug, InputObject)]
struct TraceScopeCondition {
    trace_id: String,
    segment_id: Option<String>,
    span_id: Option<i32>,
}

#[derive(Debug, InputObject)]
struct LogTag {
    key: String,
    value: Option<String>,
}

#[derive(Debug, InputObject)]
struct LogQueryCondition {
    service_id: Option<ID>,
    service_instance_id: Option<ID>,
    endpoint_id: Option<ID>,
    related_trace: Option<TraceScopeCondition>,
    query_duration: Option<Duration>,
    paging: Pagination,
    tags: Option<Vec<LogTag>>,
    keywords_of_content: Option<Vec<String>>,
    excluding_keywords_of_content: Option<Vec<String>>,
    query_order: Option<Order>,
}

#[Object]
impl LogQuery {
    async fn support_query_logs_by_keywords(&self) -> bool {
        false
    }

    async fn query_logs(
        &self,
        #[graphql(name = "condition")] _condition: Option<LogQueryCondition>,
        #[graphql(name = "debug")] _debug: Option<bool>,
    ) -> Option<Logs> {
        Some(Logs {
            error_reason: None,
            logs: Vec::new(),
            debugging_trace: None,
        })
    }

    async fn query_log_tag_autocomplete_keys(
        &self,
        #[graphql(name = "duration")] _duration: Duration,
    ) -> Option<Vec<String>> {
        Some(Vec::new())
    }

    async fn query_log_tag_autocomplete_values(
        &self,
        #[graphql(name = "tagKey")] _tag_key: String,
        #[graphql(name = "duration")] _duration: Duration,
    ) -> Option<Vec<String>> {
        Some(Vec::new())
    }
}
