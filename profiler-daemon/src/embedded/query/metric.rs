//! Figures over time: none is kept here, only profiles.
//!
//! In:  names of figures or expressions, what they are of, a time
//! Out: what OAP answers for a figure that it does not know: no results with a text, or steps without values
//! Lost: nothing
//!
//! Profiled requests alone would make wrong figures: nobody knows how many others there were. [`unknown`] and
//! [`without_values`] are the places for figures of another source.

use async_graphql::{Enum, ID, InputObject, Object, Result, SimpleObject};

use super::LIST;
use super::debug::DebuggingTrace;
use super::entity::{Entity, Scope};
use super::long::Long;
use super::page::Order;
use super::span::KeyValue;
use super::time::Duration;
use crate::model::name::cut;

/// Characters of an expression that the answer repeats.
const EXPRESSION_SHOWN: usize = 100;

#[derive(Debug, Default)]
pub(super) struct MetricQuery;

#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq)]
enum MetricsType {
    Unknown,
    RegularValue,
    LabeledValue,
    Heatmap,
    SampledRecord,
}

#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq)]
enum ExpressionResultType {
    Unknown,
    SingleValue,
    TimeSeriesValues,
    SortedList,
    RecordList,
}

#[derive(Debug, InputObject)]
struct MetricsCondition {
    name: String,
    entity: Entity,
}

#[derive(Debug, InputObject)]
struct TopNCondition {
    name: String,
    parent_service: Option<String>,
    normal: Option<bool>,
    scope: Option<Scope>,
    #[graphql(name = "topN")]
    top_n: i32,
    order: Order,
}

#[derive(Debug, InputObject)]
struct RecordCondition {
    name: String,
    parent_entity: Entity,
    #[graphql(name = "topN")]
    top_n: i32,
    order: Order,
}

#[derive(Debug, SimpleObject)]
struct MetricDefinition {
    name: String,
    #[graphql(name = "type")]
    kind: MetricsType,
    catalog: Option<String>,
}

#[derive(Debug, SimpleObject)]
struct Metadata {
    labels: Vec<KeyValue>,
}

#[derive(Debug, SimpleObject)]
#[graphql(name = "MQEValue")]
struct ExpressionValue {
    id: Option<ID>,
    value: Option<String>,
    #[graphql(name = "traceID")]
    trace_id: Option<ID>,
}

#[derive(Debug, SimpleObject)]
#[graphql(name = "MQEValues")]
struct ExpressionValues {
    metric: Metadata,
    values: Vec<ExpressionValue>,
}

#[derive(Debug, SimpleObject)]
struct ExpressionResult {
    #[graphql(name = "type")]
    kind: ExpressionResultType,
    results: Vec<ExpressionValues>,
    error: Option<String>,
    debugging_trace: Option<DebuggingTrace>,
}

#[derive(Debug, SimpleObject)]
struct NullableValue {
    value: Long,
    is_empty_value: bool,
}

#[derive(Debug, SimpleObject)]
#[graphql(name = "KVInt")]
struct StepValue {
    id: ID,
    value: Long,
    is_empty_value: bool,
}

#[derive(Debug, SimpleObject)]
#[graphql(name = "IntValues")]
struct StepValues {
    values: Vec<StepValue>,
}

#[derive(Debug, SimpleObject)]
struct MetricsValues {
    label: Option<String>,
    values: Option<StepValues>,
}

#[derive(Debug, SimpleObject)]
struct HeatMap {
    values: Vec<HeatMapColumn>,
    buckets: Vec<Bucket>,
}

#[derive(Debug, SimpleObject)]
struct HeatMapColumn {
    id: ID,
    values: Vec<Long>,
}

#[derive(Debug, SimpleObject)]
struct Bucket {
    min: String,
    max: String,
}

#[derive(Debug, SimpleObject)]
struct SelectedRecord {
    name: String,
    id: ID,
    value: Option<String>,
    ref_id: Option<ID>,
}

#[derive(Debug, SimpleObject)]
struct Record {
    name: String,
    id: ID,
    value: Option<String>,
    ref_id: Option<ID>,
}

/// The answer to an expression with a figure that is not known.
fn unknown(expression: &str) -> ExpressionResult {
    let text = cut(expression, EXPRESSION_SHOWN);
    ExpressionResult {
        kind: ExpressionResultType::Unknown,
        results: Vec::new(),
        error: Some(format!(
            "{text} is not known: the OAP of profilerd keeps profiles, and no metrics"
        )),
        debugging_trace: None,
    }
}

/// Each step of a time, without a value.
fn without_values(time: &Duration) -> Result<StepValues> {
    let steps = time.steps()?.into_iter();
    let values = steps.map(|step| StepValue {
        id: step.into(),
        value: Long(0),
        is_empty_value: true,
    });
    Ok(StepValues {
        values: values.collect(),
    })
}

#[Object]
impl MetricQuery {
    async fn type_of_metrics(&self, #[graphql(name = "name")] _name: String) -> MetricsType {
        MetricsType::Unknown
    }

    async fn list_metrics(
        &self,
        #[graphql(name = "regex")] _regex: Option<String>,
    ) -> Vec<MetricDefinition> {
        Vec::new()
    }

    /// What the charts of a dashboard ask for.
    async fn exec_expression(
        &self,
        expression: String,
        #[graphql(name = "entity")] _entity: Entity,
        #[graphql(name = "duration")] _duration: Duration,
        #[graphql(name = "debug")] _debug: Option<bool>,
        #[graphql(name = "dumpDBRsp")] _dump: Option<bool>,
    ) -> ExpressionResult {
        unknown(&expression)
    }

    async fn read_metrics_value(
        &self,
        #[graphql(name = "condition")] _condition: MetricsCondition,
        #[graphql(name = "duration")] _duration: Duration,
    ) -> Long {
        Long(0)
    }

    async fn read_nullable_metrics_value(
        &self,
        #[graphql(name = "condition")] _condition: MetricsCondition,
        #[graphql(name = "duration")] _duration: Duration,
    ) -> NullableValue {
        NullableValue {
            value: Long(0),
            is_empty_value: true,
        }
    }

    #[graphql(complexity = "LIST + child_complexity")]
    async fn read_metrics_values(
        &self,
        #[graphql(name = "condition")] _condition: MetricsCondition,
        duration: Duration,
    ) -> Result<MetricsValues> {
        Ok(MetricsValues {
            label: None,
            values: Some(without_values(&duration)?),
        })
    }

    #[graphql(complexity = "LIST + child_complexity")]
    async fn read_labeled_metrics_values(
        &self,
        #[graphql(name = "condition")] _condition: MetricsCondition,
        labels: Vec<String>,
        duration: Duration,
    ) -> Result<Vec<MetricsValues>> {
        let labeled = |label| {
            Ok(MetricsValues {
                label: Some(label),
                values: Some(without_values(&duration)?),
            })
        };
        labels.into_iter().map(labeled).collect()
    }

    async fn read_heat_map(
        &self,
        #[graphql(name = "condition")] _condition: MetricsCondition,
        #[graphql(name = "duration")] _duration: Duration,
    ) -> Option<HeatMap> {
        Some(HeatMap {
            values: Vec::new(),
            buckets: Vec::new(),
        })
    }

    async fn sort_metrics(
        &self,
        #[graphql(name = "condition")] _condition: TopNCondition,
        #[graphql(name = "duration")] _duration: Duration,
    ) -> Vec<SelectedRecord> {
        Vec::new()
    }

    async fn read_sampled_records(
        &self,
        #[graphql(name = "condition")] _condition: TopNCondition,
        #[graphql(name = "duration")] _duration: Duration,
    ) -> Vec<SelectedRecord> {
        Vec::new()
    }

    /// Slow statements and the like.
    async fn read_records(
        &self,
        #[graphql(name = "condition")] _condition: RecordCondition,
        #[graphql(name = "duration")] _duration: Duration,
    ) -> Vec<Record> {
        Vec::new()
    }
}
