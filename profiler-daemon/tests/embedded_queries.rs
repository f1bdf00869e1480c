//! The questions of SkyWalking's UI and of `swctl`, and the answers of the built-in OAP.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use std::{env, fs};

use profiler_daemon::embedded::store::Store;
use profiler_daemon::embedded::task::{TaskRequest, endpoint_id, instance_id, service_id};
use profiler_daemon::embedded::{EmbeddedConfig, EmbeddedOap};
use profiler_proto::skywalking::{
    KeyStringValuePair, Log, SegmentObject, SegmentReference, SpanLayer, SpanObject, SpanType,
    ThreadSnapshot, ThreadStack,
};
use profiler_test_support::{ask, known_queries};
use serde_json::{Value, json};

/// Longest wait for an answer; reached only by a failing test.
const DEADLINE: Duration = Duration::from_secs(30);
const ANSWERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/answers.json");
/// 2026-11-30 08:10:00 UTC, in the time that the questions name.
const START_MS: i64 = 1_796_026_200_000;
const TRACE: &str = "trace-of-the-caller";
const SEGMENT: &str = "segment-of-shop";
/// What depends on the clock or on the version.
const CHANGING: [&str; 3] = ["clock", "version", "task_create"];

fn pair(key: &str, value: &str) -> KeyStringValuePair {
    KeyStringValuePair {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

/// A request with one call of a database, as an agent reports it.
fn segment() -> SegmentObject {
    let entry = SpanObject {
        span_id: 0,
        parent_span_id: -1,
        start_time: START_MS,
        end_time: START_MS + 95,
        refs: vec![SegmentReference {
            trace_id: TRACE.to_owned(),
            parent_trace_segment_id: "segment-of-gate".to_owned(),
            parent_span_id: 3,
            ..SegmentReference::default()
        }],
        operation_name: "POST:/buy".to_owned(),
        span_layer: SpanLayer::Http.into(),
        component_id: 7001,
        tags: vec![
            pair("http.method", "POST"),
            pair("url", "http://shop:8080/buy"),
            pair("http.status_code", "200"),
        ],
        ..SpanObject::default()
    };
    let exit = SpanObject {
        span_id: 1,
        parent_span_id: 0,
        start_time: START_MS + 20,
        end_time: START_MS + 60,
        operation_name: "Mysql/PyMsql/execute".to_owned(),
        peer: "db:3306".to_owned(),
        span_type: SpanType::Exit.into(),
        span_layer: SpanLayer::Database.into(),
        component_id: 7003,
        is_error: true,
        logs: vec![Log {
            time: START_MS + 59,
            data: vec![pair("event", "error")],
        }],
        ..SpanObject::default()
    };
    SegmentObject {
        trace_id: TRACE.to_owned(),
        trace_segment_id: SEGMENT.to_owned(),
        spans: vec![entry, exit],
        service: "shop".to_owned(),
        service_instance: "shop-1".to_owned(),
        is_size_limited: false,
    }
}

/// An instance, a task, and a profiled request; yields the task's id.
fn report(store: &Store) -> String {
    let properties = [
        ("language".to_owned(), "python".to_owned()),
        ("hostname".to_owned(), "one".to_owned()),
    ];
    store
        .seen("shop", "shop-1", Some(properties.into()), START_MS)
        .unwrap();
    let request = TaskRequest {
        service: "shop".to_owned(),
        endpoint: "POST:/buy".to_owned(),
        start_ms: 0,
        duration_minutes: 5,
        min_duration_threshold_ms: 0,
        dump_period_ms: 10,
        max_sampling_count: 5,
    };
    let task = store.create_task(request, START_MS).unwrap();
    store.commands("shop", "shop-1", -1, START_MS + 1).unwrap();
    store.add_segments([segment()]).unwrap();
    let snapshots = (0..10).map(|sequence| ThreadSnapshot {
        task_id: task.id.clone(),
        trace_segment_id: SEGMENT.to_owned(),
        time: START_MS + i64::from(sequence) * 10,
        sequence,
        stack: Some(ThreadStack {
            code_signatures: ["main", if sequence < 4 { "read" } else { "work" }]
                .map(str::to_owned)
                .into(),
        }),
    });
    store.add_snapshots(snapshots, START_MS).unwrap();
    task.id
}

/// What stands for names in the questions.
fn values(task_id: &str) -> BTreeMap<&'static str, Value> {
    [
        ("SERVICE", json!(service_id("shop"))),
        ("OTHER_SERVICE", json!(service_id("bank"))),
        ("INSTANCE", json!(instance_id("shop", "shop-1"))),
        ("ENDPOINT", json!(endpoint_id("shop", "POST:/buy"))),
        ("TASK", json!(task_id)),
        ("TRACE", json!(TRACE)),
        ("SEGMENT", json!(SEGMENT)),
        ("START", json!("2026-11-30 0800")),
        ("END", json!("2026-11-30 0830")),
        ("START_MS", json!(START_MS)),
        ("END_MS", json!(START_MS + 95)),
    ]
    .into()
}

/// Check each answer against its text; `PROFILERD_RECORD=1` writes them again.
#[tokio::test(flavor = "multi_thread")]
async fn the_questions_of_pages_and_commands_are_answered() {
    let any_port: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let oap = EmbeddedOap::start_with(EmbeddedConfig {
        http_listen: Some(any_port),
        ..EmbeddedConfig::new(any_port)
    });
    let oap = oap.await.unwrap();
    let values = values(&report(oap.store()));
    let mut answers = BTreeMap::new();
    for query in known_queries().unwrap() {
        let variables = query.variables(&values).unwrap();
        let answer = ask(oap.query_addr().unwrap(), &query.text, &variables, DEADLINE).unwrap();
        assert_eq!(answer.get("errors"), None, "{}: {answer}", query.name);
        if !CHANGING.contains(&query.name.as_str()) {
            answers.insert(query.name, answer["data"].clone());
        }
    }
    let text = serde_json::to_string_pretty(&answers).unwrap() + "\n";
    if env::var_os("PROFILERD_RECORD").is_some() {
        fs::write(ANSWERS, &text).unwrap();
    }
    assert_eq!(text, fs::read_to_string(ANSWERS).unwrap());
}
