//! How an OAP came to an answer. The built-in one never tells: the fields are there for queries that name them.

use async_graphql::SimpleObject;

use super::long::Long;

#[derive(Debug, SimpleObject)]
pub(super) struct DebuggingTrace {
    trace_id: String,
    condition: String,
    start_time: Long,
    end_time: Long,
    duration: Long,
    spans: Vec<DebuggingSpan>,
}

#[derive(Debug, SimpleObject)]
struct DebuggingSpan {
    span_id: i32,
    parent_span_id: i32,
    operation: String,
    start_time: Long,
    end_time: Long,
    duration: Long,
    msg: Option<String>,
    error: Option<String>,
}
