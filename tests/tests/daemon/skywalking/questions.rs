//! The questions of SkyWalking's UI and of `swctl`, put to a SkyWalking OAP and to the built-in one about the same request.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use profiler_daemon::embedded::task::{endpoint_id, instance_id, service_id};
use profiler_daemon::embedded::{EmbeddedConfig, EmbeddedOap};
use profiler_daemon::model::clock::unix_ms_now;
use profiler_daemon::model::date::utc;
use profiler_proto::skywalking::management_service_client::ManagementServiceClient;
use profiler_proto::skywalking::profile_task_client::ProfileTaskClient;
use profiler_proto::skywalking::trace_segment_report_service_client::TraceSegmentReportServiceClient;
use profiler_proto::skywalking::{
    InstancePingPkg, InstanceProperties, KeyStringValuePair, Log, ProfileTaskCommandQuery,
    SegmentObject, SegmentReference, SpanLayer, SpanObject, SpanType, ThreadSnapshot, ThreadStack,
};
use profiler_tests::{SkywalkingOap, ask, known_queries, wait_until};
use serde_json::{Value, json};
use tonic::transport::Endpoint;

use super::TASK_ARRIVES;
use crate::DEADLINE;

const SERVICE: &str = "questions";
const INSTANCE: &str = "questions-1";
const ENDPOINT: &str = "POST:/buy";
const TRACE: &str = "trace-of-the-caller";
const SEGMENT: &str = "segment-of-questions";
const REQUEST_MS: i64 = 95;

const CREATE: &str = "mutation ($r: ProfileTaskCreationRequest) { \
    it: createProfileTask(creationRequest: $r) { id errorReason } }";

/// What the two do not answer alike, and why.
const DIFFERENT: [(&str, &str); 15] = [
    (
        "charts",
        "each says in its own words that there is no such figure",
    ),
    ("clock", "time passes"),
    ("dashboards", "the OAP of the tests has none"),
    (
        "endpoints",
        "theirs knows those of requests in its figures, ours those of tasks as well",
    ),
    ("hierarchy", "the OAP of the tests has it switched off"),
    (
        "instance",
        "theirs gathers the addresses of an instance under one name",
    ),
    ("instances", "the same"),
    ("layer_list", "theirs has all layers, with services or not"),
    (
        "metrics_exec",
        "each says in its own words that there is no such figure",
    ),
    ("metrics_list", "theirs has those of its modules"),
    (
        "metrics_thermodynamic",
        "ours has no columns, theirs empty ones",
    ),
    (
        "service_list",
        "theirs makes a service of the database that is called",
    ),
    ("task_create", "the id has the time"),
    ("trace_tags", "theirs keeps some tags only"),
    ("version", "ours has a suffix"),
];

/// What the OAP of the tests answers with an error, and why.
const REFUSED: [(&str, &str); 5] = [
    ("endpoints_of_time", "since OAP 10.2"),
    ("health", "it has no health checker"),
    ("lifetime", "since OAP 10.2"),
    ("menu", "it has no menu"),
    ("trace_dialect", "since OAP 10.3"),
];

/// Check that every question is understood by both, and answered alike where both know the answer.
#[test]
fn both_oaps_answer_the_same_questions() {
    let folder = tempfile::tempdir().unwrap();
    let theirs = SkywalkingOap::start(folder.path()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let any_port: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let ours = runtime.block_on(EmbeddedOap::start_with(EmbeddedConfig {
        http_listen: Some(any_port),
        ..EmbeddedConfig::new(any_port)
    }));
    let ours = ours.unwrap();

    let start_ms = unix_ms_now();
    let ask_ours = |query: &str, variables: &Value| {
        ask(ours.query_addr().unwrap(), query, variables, DEADLINE).unwrap()
    };
    let ask_theirs = |query: &str, variables: &Value| theirs.answer(query, variables).unwrap();
    let our_task = tell(ours.local_addr(), &ask_ours, start_ms);
    let their_task = tell(theirs.grpc(), &ask_theirs, start_ms);
    let queries = known_queries().unwrap();
    // Theirs writes what it was told now and then.
    for name in ["requests", "services"] {
        let query = queries.iter().find(|query| query.name == name).unwrap();
        wait_until("what was told in the OAP", TASK_ARRIVES, || {
            let variables = query.variables(&values(&their_task, start_ms))?;
            let listed = ask_theirs(&query.text, &variables);
            Ok((listed["data"]["it"] != json!([])).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    let mut differences = Vec::new();
    for query in queries {
        let name = query.name.as_str();
        let of = |task: &str| query.variables(&values(task, start_ms)).unwrap();
        let mut ours = ask_ours(&query.text, &of(&our_task));
        let mut theirs = ask_theirs(&query.text, &of(&their_task));
        assert_eq!(ours.get("errors"), None, "{name}: {ours}");
        let is_known = !REFUSED.iter().any(|(refused, _)| *refused == name);
        assert_eq!(theirs.get("errors").is_none(), is_known, "{name}: {theirs}");
        if !is_known {
            continue;
        }
        if DIFFERENT.iter().any(|(different, _)| *different == name) {
            continue;
        }
        without_task(&mut ours, &our_task);
        without_task(&mut theirs, &their_task);
        if ours["data"] != theirs["data"] {
            let (ours, theirs) = (&ours["data"], &theirs["data"]);
            differences.push(format!("{name}\n  ours:   {ours}\n  theirs: {theirs}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Reports an instance, takes a task for it, and reports a request with its snapshots; yields the task's id.
fn tell(grpc: SocketAddr, ask: &dyn Fn(&str, &Value) -> Value, start_ms: i64) -> String {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let channel = runtime.block_on(async {
        let endpoint = Endpoint::from_shared(format!("http://{grpc}")).unwrap();
        let channel = endpoint.connect().await.unwrap();
        let mut management = ManagementServiceClient::new(channel.clone());
        let properties = InstanceProperties {
            service: SERVICE.to_owned(),
            service_instance: INSTANCE.to_owned(),
            properties: vec![pair("language", "python"), pair("hostname", "one")],
            layer: String::new(),
        };
        management
            .report_instance_properties(properties)
            .await
            .unwrap();
        let ping = InstancePingPkg {
            service: SERVICE.to_owned(),
            service_instance: INSTANCE.to_owned(),
            layer: String::new(),
        };
        management.keep_alive(ping).await.unwrap();
        channel
    });
    let request = json!({ "r": {
        "serviceId": service_id(SERVICE), "endpointName": ENDPOINT, "startTime": start_ms,
        "duration": 5, "minDurationThreshold": 0, "dumpPeriod": 10, "maxSamplingCount": 5,
    } });
    let created = ask(CREATE, &request);
    let task_id = created["data"]["it"]["id"]
        .as_str()
        .expect("a task")
        .to_owned();
    wait_until("the task to be given", TASK_ARRIVES, || {
        let query = ProfileTaskCommandQuery {
            service: SERVICE.to_owned(),
            service_instance: INSTANCE.to_owned(),
            last_command_time: -1,
        };
        let mut client = ProfileTaskClient::new(channel.clone());
        let commands = runtime.block_on(client.get_profile_task_commands(query))?;
        Ok((!commands.into_inner().commands.is_empty()).then_some(()))
    })
    .unwrap();
    runtime.block_on(async {
        let segments = tokio_stream::iter([segment(start_ms)]);
        let mut client = TraceSegmentReportServiceClient::new(channel.clone());
        client.collect(segments).await.unwrap();
        let snapshots = tokio_stream::iter(snapshots(&task_id, start_ms));
        let mut client = ProfileTaskClient::new(channel);
        client.collect_snapshot(snapshots).await.unwrap();
    });
    task_id
}

fn pair(key: &str, value: &str) -> KeyStringValuePair {
    KeyStringValuePair {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

/// A request of a known caller, with one call that fails and is of no library that has a number.
fn segment(start_ms: i64) -> SegmentObject {
    let entry = SpanObject {
        span_id: 0,
        parent_span_id: -1,
        start_time: start_ms,
        end_time: start_ms + REQUEST_MS,
        refs: vec![SegmentReference {
            trace_id: TRACE.to_owned(),
            parent_trace_segment_id: "segment-of-gate".to_owned(),
            parent_span_id: 3,
            parent_service: "gate".to_owned(),
            parent_service_instance: "gate-1".to_owned(),
            parent_endpoint: "/".to_owned(),
            network_address_used_at_peer: "questions:8080".to_owned(),
            ..SegmentReference::default()
        }],
        operation_name: ENDPOINT.to_owned(),
        span_layer: SpanLayer::Http.into(),
        component_id: 49,
        tags: vec![
            pair("url", "http://questions:8080/buy"),
            pair("http.method", "POST"),
            pair("http.status_code", "200"),
        ],
        // No figures, and no map: the built-in OAP has neither.
        skip_analysis: true,
        ..SpanObject::default()
    };
    let exit = SpanObject {
        span_id: 1,
        parent_span_id: 0,
        start_time: start_ms + 20,
        end_time: start_ms + 60,
        operation_name: "read".to_owned(),
        peer: "db:3306".to_owned(),
        span_type: SpanType::Exit.into(),
        span_layer: SpanLayer::Database.into(),
        is_error: true,
        logs: vec![Log {
            time: start_ms + 59,
            data: vec![pair("event", "error")],
        }],
        skip_analysis: true,
        ..SpanObject::default()
    };
    SegmentObject {
        trace_id: TRACE.to_owned(),
        trace_segment_id: SEGMENT.to_owned(),
        spans: vec![entry, exit],
        service: SERVICE.to_owned(),
        service_instance: INSTANCE.to_owned(),
        is_size_limited: false,
    }
}

fn snapshots(task_id: &str, start_ms: i64) -> Vec<ThreadSnapshot> {
    let snapshot = |sequence: i32| ThreadSnapshot {
        task_id: task_id.to_owned(),
        trace_segment_id: SEGMENT.to_owned(),
        time: start_ms + i64::from(sequence) * 10,
        sequence,
        stack: Some(ThreadStack {
            code_signatures: ["main", if sequence < 4 { "read" } else { "work" }]
                .map(str::to_owned)
                .into(),
        }),
    };
    (0..10).map(snapshot).collect()
}

/// What stands for names and times in the questions.
fn values(task_id: &str, start_ms: i64) -> BTreeMap<&'static str, Value> {
    let minute = |ms: i64| {
        utc(ms)
            .replace(':', "")
            .chars()
            .take(15)
            .collect::<String>()
    };
    let quarter = i64::try_from(Duration::from_mins(15).as_millis()).unwrap();
    [
        ("SERVICE", json!(service_id(SERVICE))),
        ("OTHER_SERVICE", json!(service_id("bank"))),
        ("INSTANCE", json!(instance_id(SERVICE, INSTANCE))),
        ("ENDPOINT", json!(endpoint_id(SERVICE, ENDPOINT))),
        ("TASK", json!(task_id)),
        ("TRACE", json!(TRACE)),
        ("SEGMENT", json!(SEGMENT)),
        ("START", json!(minute(start_ms - quarter))),
        ("END", json!(minute(start_ms + quarter))),
        ("START_MS", json!(start_ms)),
        ("END_MS", json!(start_ms + REQUEST_MS)),
    ]
    .into()
}

/// Takes out what the two have given a task themselves: its id, and times of its log.
fn without_task(answer: &mut Value, task_id: &str) {
    match answer {
        Value::String(text) if text.contains(task_id) => "a task".clone_into(text),
        Value::Array(inner) => inner.iter_mut().for_each(|it| without_task(it, task_id)),
        Value::Object(inner) => {
            inner.remove("operationTime");
            inner.values_mut().for_each(|it| without_task(it, task_id));
        }
        _ => {}
    }
}
