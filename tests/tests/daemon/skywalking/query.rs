//! What a user of the OAP's interface asks for, in GraphQL.

use std::collections::HashSet;
use std::thread::sleep;
use std::time::Duration;

use profiler_daemon::model::clock::unix_ms_now;
use profiler_daemon::model::date::utc;
use profiler_tests::{SkywalkingOap, read_json, wait_until};
use serde::Deserialize;
use serde_json::{Value, json};

use super::TASK_ARRIVES;
use crate::DEADLINE;

const CREATE: &str = "mutation ($r: ProfileTaskCreationRequest) { \
    it: createProfileTask(creationRequest: $r) { id errorReason } }";
const LOGS: &str = "query ($t: String) { \
    it: getProfileTaskLogs(taskID: $t) { instanceName operationType } }";
const SEGMENTS: &str = "query ($t: ID!) { it: getProfileTaskSegments(taskID: $t) { \
    traceId instanceName endpointNames duration start spans { spanId parentSpanId segmentId \
    serviceCode serviceInstanceName startTime endTime endpointName type layer isError \
    tags { key value } profiled } } }";
const ANALYZE: &str = "query ($q: [SegmentProfileAnalyzeQuery!]!) { \
    it: getSegmentsProfileAnalyze(queries: $q) { tip trees { elements { \
    id parentId codeSignature duration durationChildExcluded count } } } }";

const TRACE: &str =
    "query ($t: ID!) { it: queryTrace(traceId: $t) { spans { segmentId serviceInstanceName } } }";
const SERVICES: &str = "query { it: listServices(layer: \"GENERAL\") { name } }";

const ENDPOINTS: &str = "query ($s: ID!) { \
    it: findEndpoint(keyword: \"\", serviceId: $s, limit: 100) { name } }";
const INSTANCES: &str = "query ($d: Duration!, $s: ID!) { \
    it: listInstances(duration: $d, serviceId: $s) { name attributes { name value } } }";
const REQUESTS: &str = "query ($e: Entity!, $d: Duration!) { \
    it: execExpression(expression: \"service_cpm\", entity: $e, duration: $d) { \
    error results { values { value } } } }";

/// Within it an OAP goes on storing what has come in one stream.
const STORED: Duration = Duration::from_millis(100);

/// A profiled request as the OAP lists it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Profiled {
    pub(crate) trace_id: String,
    pub(crate) instance_name: String,
    pub(crate) endpoint_names: Vec<String>,
    pub(crate) duration: i64,
    pub(crate) spans: Vec<Span>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Span {
    pub(crate) span_id: i32,
    pub(crate) segment_id: String,
    pub(crate) service_code: String,
    pub(crate) service_instance_name: String,
    pub(crate) start_time: i64,
    pub(crate) end_time: i64,
    pub(crate) endpoint_name: String,
    pub(crate) r#type: String,
    pub(crate) layer: String,
    pub(crate) tags: Vec<Tag>,
    pub(crate) profiled: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Tag {
    pub(crate) key: String,
    pub(crate) value: String,
}

/// One node of a tree.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) parent_id: String,
    pub(crate) code_signature: String,
    pub(crate) duration: i64,
    pub(crate) duration_child_excluded: i64,
    pub(crate) count: u32,
}

impl Node {
    /// Whether it is a call of the function: ours is `sample_service.method3:43`, the Python agent's
    /// `.../sample_service.py.method3: 43`.
    pub(crate) fn is_of(&self, function: &str) -> bool {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let mut words = self.code_signature.split(|c| !is_word(c));
        words.any(|word| word == function)
    }
}

fn ask<T: for<'de> Deserialize<'de>>(oap: &SkywalkingOap, query: &str, variables: Value) -> T {
    let mut data = oap.graphql(query, &variables).unwrap();
    read_json(&data["it"].take().to_string()).unwrap()
}

/// The id that an OAP gives a service of the layer GENERAL.
fn service_id(service: &str) -> String {
    profiler_daemon::embedded::task::service_id(service)
}

/// Asks for a profile of an endpoint: one minute, 10 ms, five requests.
#[track_caller]
pub(crate) fn create_task(oap: &SkywalkingOap, service: &str, endpoint: &str) -> String {
    let request = json!({
        "serviceId": service_id(service), "endpointName": endpoint, "startTime": null,
        "duration": 1, "minDurationThreshold": 0, "dumpPeriod": 10, "maxSamplingCount": 5,
    });
    let created: Value = ask(oap, CREATE, json!({ "r": request }));
    assert_eq!(created["errorReason"], Value::Null);
    created["id"].as_str().unwrap().to_owned()
}

/// Whether a user can choose the service.
pub(crate) fn has_service(oap: &SkywalkingOap, name: &str) -> bool {
    let services: Vec<Value> = ask(oap, SERVICES, Value::Null);
    services.iter().any(|service| service["name"] == name)
}

/// Waits until a user can choose the service.
#[track_caller]
pub(crate) fn wait_for_service(oap: &SkywalkingOap, name: &str) {
    wait_until("the service in the OAP", DEADLINE, || {
        Ok(has_service(oap, name).then_some(()))
    })
    .unwrap();
}

/// The endpoints of a service that a user can choose.
pub(crate) fn endpoints(oap: &SkywalkingOap, service: &str) -> Vec<String> {
    let found: Vec<Value> = ask(oap, ENDPOINTS, json!({ "s": service_id(service) }));
    let names = found
        .iter()
        .map(|endpoint| endpoint["name"].as_str().unwrap().to_owned());
    names.collect()
}

/// The instances of a service that were heard of in the last minutes.
pub(crate) fn instances(oap: &SkywalkingOap, service: &str) -> Vec<Value> {
    let variables = json!({ "s": service_id(service), "d": minutes_ago(10) });
    ask(oap, INSTANCES, variables)
}

/// The time from so many minutes ago until the next one.
fn minutes_ago(minutes: i64) -> Value {
    let minute = |in_ms: i64| {
        let time = utc(unix_ms_now() + in_ms);
        format!("{} {}{}", &time[..10], &time[11..13], &time[14..16])
    };
    json!({ "start": minute(-60_000 * minutes), "end": minute(60_000), "step": "MINUTE" })
}

/// Requests of a service in each minute of the last ten that has a number.
#[track_caller]
pub(crate) fn requests_per_minute(oap: &SkywalkingOap, service: &str) -> Vec<i64> {
    let answer: Value = ask(
        oap,
        REQUESTS,
        json!({
            "e": { "serviceName": service, "normal": true },
            "d": minutes_ago(10),
        }),
    );
    assert_eq!(answer["error"], Value::Null);
    let results = answer["results"].as_array().unwrap().iter();
    let values = results.flat_map(|result| result["values"].as_array().unwrap());
    let numbers = values.filter_map(|value| value["value"].as_str()?.parse().ok());
    numbers.collect()
}

/// What instances did with a task, as `<instance> <operation>`.
pub(crate) fn logs(oap: &SkywalkingOap, task_id: &str) -> Vec<String> {
    let logs: Vec<Value> = ask(oap, LOGS, json!({ "t": task_id }));
    let text = |log: &Value, key: &str| log[key].as_str().unwrap().to_owned();
    logs.iter()
        .map(|log| {
            format!(
                "{} {}",
                text(log, "instanceName"),
                text(log, "operationType")
            )
        })
        .collect()
}

/// Waits until an instance has the task.
#[track_caller]
pub(crate) fn wait_until_notified(oap: &SkywalkingOap, task_id: &str) {
    wait_until("the task to be taken", TASK_ARRIVES, || {
        Ok((!logs(oap, task_id).is_empty()).then_some(()))
    })
    .unwrap();
}

/// The profiled requests of a task that are there by now.
pub(crate) fn profiled(oap: &SkywalkingOap, task_id: &str) -> Vec<Profiled> {
    ask(oap, SEGMENTS, json!({ "t": task_id }))
}

/// The segments of a trace that an instance has reported.
pub(crate) fn segments_of_trace(
    oap: &SkywalkingOap,
    trace_id: &str,
    instance: &str,
) -> HashSet<String> {
    let trace: Value = ask(oap, TRACE, json!({ "t": trace_id }));
    let spans = trace["spans"].as_array().unwrap().iter();
    let own = spans.filter(|span| span["serviceInstanceName"] == instance);
    own.map(|span| span["segmentId"].as_str().unwrap().to_owned())
        .collect()
}

/// The profiled requests of a task, when there are so many, by their start.
#[track_caller]
pub(crate) fn wait_for_profiled(oap: &SkywalkingOap, task_id: &str, count: usize) -> Vec<Profiled> {
    let mut profiled = wait_until("profiled requests in the OAP", DEADLINE, || {
        let profiled = profiled(oap, task_id);
        Ok((profiled.len() >= count).then_some(profiled))
    })
    .unwrap();
    profiled.sort_by_key(|request| request.spans[0].start_time);
    profiled
}

/// The trees of a segment between two times, as the OAP analyses it, when they are as they were a moment before: it
/// lists a request when the first of its snapshots is stored, and stores them in several steps.
#[track_caller]
pub(crate) fn analyze(oap: &SkywalkingOap, span: &Span) -> Vec<Vec<Node>> {
    let mut last = Vec::new();
    wait_until("trees that stay", DEADLINE, || {
        let before = std::mem::replace(&mut last, analyze_now(oap, span));
        let stays = !last.is_empty() && last == before;
        sleep(STORED);
        Ok(stays.then_some(()))
    })
    .unwrap();
    last
}

#[track_caller]
fn analyze_now(oap: &SkywalkingOap, span: &Span) -> Vec<Vec<Node>> {
    #[derive(Deserialize)]
    struct Tree {
        elements: Vec<Node>,
    }
    #[derive(Deserialize)]
    struct Analysis {
        tip: Option<String>,
        trees: Vec<Tree>,
    }
    let range = json!({ "start": span.start_time, "end": span.end_time });
    let query = json!([{ "segmentId": span.segment_id, "timeRange": range }]);
    let analysis: Analysis = ask(oap, ANALYZE, json!({ "q": query }));
    assert_eq!(analysis.tip, None);
    analysis
        .trees
        .into_iter()
        .map(|tree| tree.elements)
        .collect()
}
