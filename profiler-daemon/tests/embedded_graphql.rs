//! The built-in OAP's query side over HTTP: the texts that UIs and `swctl` send to SkyWalking's OAP, our own
//! client, and what is refused.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use profiler_daemon::embedded::{EmbeddedConfig, EmbeddedOap, TaskClient, sdl};
use profiler_daemon::model::clock::unix_ms_now;
use profiler_daemon::oap::graphql::GraphqlClient;
use profiler_proto::profilerd as pb;
use profiler_proto::skywalking::{
    KeyStringValuePair, SegmentObject, SpanObject, ThreadSnapshot, ThreadStack,
};
use profiler_test_support::HttpClient;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest wait for anything; reached only by a failing test.
const DEADLINE: Duration = Duration::from_secs(30);

const CREATE: &str = "mutation($r: ProfileTaskCreationRequest){ \
    task: createProfileTask(creationRequest: $r){ id errorReason } }";
const LIST: &str = "query($s: ID, $e: String){ tasks: getProfileTaskList(serviceId: $s, endpointName: $e){ \
    id serviceId serviceName endpointName startTime duration minDurationThreshold dumpPeriod \
    maxSamplingCount logs{ id instanceId instanceName operationType operationTime } } }";
const LOGS: &str = "query($t: String){ logs: getProfileTaskLogs(taskID: $t){ \
    instanceName operationType operationTime } }";
const SEGMENTS: &str = "query($t: ID!){ segs: getProfileTaskSegments(taskID: $t){ traceId instanceId \
    instanceName endpointNames duration start spans{ spanId parentSpanId segmentId \
    refs{ traceId parentSegmentId parentSpanId type } serviceCode serviceInstanceName startTime endTime \
    endpointName type peer component isError layer tags{ key value } logs{ time data{ key value } } \
    profiled } } }";
const ANALYZE: &str = "query($q: [SegmentProfileAnalyzeQuery!]!){ \
    a: getSegmentsProfileAnalyze(queries: $q){ tip trees{ elements{ \
    id parentId codeSignature duration durationChildExcluded count } } } }";
const SERVICES: &str = "query{ s: listServices(layer: \"GENERAL\"){ id name } }";
const FIND_SERVICE: &str = "query($n: String!){ s: findService(serviceName: $n){ id name group shortName layers normal } }";
const INSTANCES: &str = "query($s: ID!, $d: Duration!){ i: listInstances(duration: $d, serviceId: $s){ \
    id name language instanceUUID attributes{ name value } } }";
const ALL_SERVICES: &str = "query($d: Duration!, $g: String){ s: getAllServices(duration: $d, group: $g){ \
    id name group shortName layers normal } }";
const ENDPOINT_INFO: &str =
    "query($e: ID!){ e: getEndpointInfo(endpointId: $e){ id name serviceId serviceName } }";
const ENDPOINTS: &str = "query($k: String!, $s: ID!, $l: Int!, $d: Duration){ \
    e: findEndpoint(keyword: $k, serviceId: $s, limit: $l, duration: $d){ id name } }";

const SERVICE_ID: &str = "c2hvcA==.1";
const INSTANCE_ID: &str = "c2hvcA==.1_c2hvcC0x";

async fn start(token: Option<&str>) -> EmbeddedOap {
    let any_port: SocketAddr = "127.0.0.1:0".parse().unwrap();
    EmbeddedOap::start_with(EmbeddedConfig {
        http_listen: Some(any_port),
        token: token.map(str::to_owned),
        ..EmbeddedConfig::new(any_port)
    })
    .await
    .unwrap()
}

/// What an agent would report: one request, ten snapshots, 10 ms apart.
fn report(oap: &EmbeddedOap, task_id: &str, start_ms: i64) {
    let store = oap.store();
    let properties = [("language".to_owned(), "python".to_owned())].into();
    let now_ms = unix_ms_now();
    store
        .seen("shop", "shop-1", Some(properties), now_ms)
        .unwrap();
    store.commands("shop", "shop-1", -1, now_ms).unwrap();
    let segment = SegmentObject {
        trace_id: "trace".to_owned(),
        trace_segment_id: "segment".to_owned(),
        spans: vec![SpanObject {
            start_time: start_ms,
            end_time: start_ms + 95,
            operation_name: "/buy".to_owned(),
            tags: vec![KeyStringValuePair {
                key: "profilerd.cut".to_owned(),
                value: "the task ended first".to_owned(),
            }],
            ..SpanObject::default()
        }],
        service: "shop".to_owned(),
        service_instance: "shop-1".to_owned(),
        is_size_limited: false,
    };
    store.add_segments([segment]).unwrap();
    let snapshots = (0..10).map(|sequence| {
        let leaf = if sequence < 4 { "C" } else { "D" };
        ThreadSnapshot {
            task_id: task_id.to_owned(),
            trace_segment_id: "segment".to_owned(),
            time: start_ms + i64::from(sequence) * 10,
            sequence,
            stack: Some(ThreadStack {
                code_signatures: ["main", "A", "B", leaf].map(str::to_owned).into(),
            }),
        }
    });
    store.add_snapshots(snapshots, now_ms).unwrap();
}

/// One request on a connection of its own.
async fn send(
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: String,
) -> (StatusCode, Vec<u8>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.unwrap();
    let driver = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "localhost");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(bytes::Bytes::from(body))).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    driver.abort();
    (status, body.to_vec())
}

const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

/// The whole answer to a query.
async fn answer(oap: &EmbeddedOap, query: &str, variables: Value) -> Value {
    let body = json!({ "query": query, "variables": variables }).to_string();
    let port = oap.query_addr().unwrap().port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let (status, body) = send(address, Method::POST, "/graphql", &[JSON], body).await;
    assert_eq!(status, StatusCode::OK);
    serde_json::from_slice(&body).unwrap()
}

async fn data(oap: &EmbeddedOap, query: &str, variables: Value) -> Value {
    let mut answer = answer(oap, query, variables).await;
    assert_eq!(answer.get("errors"), None, "{query}");
    answer["data"].take()
}

fn creation() -> Value {
    json!({ "r": {
        "serviceId": SERVICE_ID, "endpointName": "/buy", "startTime": null, "duration": 5,
        "minDurationThreshold": 0, "dumpPeriod": 10, "maxSamplingCount": 5,
    }})
}

/// Check that the texts which a SkyWalking OAP understands get answers of the same shape.
#[tokio::test]
async fn the_texts_of_the_protocol_are_answered() {
    let oap = start(None).await;
    let created = data(&oap, CREATE, creation()).await;
    let task_id = created["task"]["id"].as_str().unwrap().to_owned();
    assert_eq!(created["task"]["errorReason"], Value::Null);
    let again = data(&oap, CREATE, creation()).await;
    assert_eq!(again["task"]["id"], Value::Null);
    let reason = again["task"]["errorReason"].as_str().unwrap();
    assert!(reason.contains("already has monitor task"), "{reason}");
    let start_ms = unix_ms_now();
    report(&oap, &task_id, start_ms);

    let list = data(&oap, LIST, json!({ "s": SERVICE_ID, "e": "/buy" })).await;
    let task = &list["tasks"][0];
    assert_eq!(task["id"], task_id.as_str());
    assert_eq!(
        (&task["serviceName"], &task["duration"]),
        (&json!("shop"), &json!(5))
    );
    assert!(task["startTime"].is_i64());
    let log = &task["logs"][0];
    assert_eq!(
        (&log["instanceId"], &log["operationType"]),
        (&json!(INSTANCE_ID), &json!("NOTIFIED"))
    );
    let others = data(&oap, LIST, json!({ "s": SERVICE_ID, "e": "/other" })).await;
    assert_eq!(others["tasks"], json!([]));
    let logs = data(&oap, LOGS, json!({ "t": task_id })).await;
    assert_eq!(logs["logs"][0]["instanceName"], "shop-1");

    let segments = data(&oap, SEGMENTS, json!({ "t": task_id })).await;
    assert_eq!(
        segments["segs"],
        json!([{
            "traceId": "trace", "instanceId": INSTANCE_ID, "instanceName": "shop-1",
            "endpointNames": ["/buy"], "duration": 95, "start": start_ms.to_string(),
            "spans": [{
                "spanId": 0, "parentSpanId": 0, "segmentId": "segment", "refs": [],
                "serviceCode": "shop", "serviceInstanceName": "shop-1", "startTime": start_ms,
                "endTime": start_ms + 95, "endpointName": "/buy", "type": "Entry", "peer": "",
                "component": "Unknown", "isError": false, "layer": "Unknown", "logs": [],
                "tags": [{ "key": "profilerd.cut", "value": "the task ended first" }],
                "profiled": true,
            }],
        }])
    );
    let unknown = data(&oap, SEGMENTS, json!({ "t": "unknown" })).await;
    assert_eq!(unknown["segs"], json!([]));

    let range = |from: i64, to: i64| {
        let range = json!({ "start": start_ms + from, "end": start_ms + to });
        json!({ "q": [{ "segmentId": "segment", "timeRange": range }] })
    };
    let element = |id: &str, parent: &str, name: &str, duration: i64, own: i64, count: i64| {
        json!({ "id": id, "parentId": parent, "codeSignature": name, "duration": duration,
            "durationChildExcluded": own, "count": count })
    };
    // As OAP 10.1.0 answers for the same snapshots.
    let analysis = data(&oap, ANALYZE, range(0, 95)).await;
    assert_eq!(
        analysis["a"],
        json!({ "tip": null, "trees": [{ "elements": [
            element("1", "0", "main", 90, 0, 10),
            element("2", "1", "A", 90, 0, 10),
            element("3", "2", "B", 90, 10, 10),
            element("4", "3", "C", 30, 30, 4),
            element("5", "3", "D", 50, 50, 6),
        ]}]})
    );
    let part = data(&oap, ANALYZE, range(30, 60)).await;
    assert_eq!(
        part["a"]["trees"][0]["elements"][0],
        element("1", "0", "main", 30, 0, 4)
    );
}

/// Check that services, instances and endpoints are found as pages and `swctl` look for them.
#[tokio::test]
async fn services_are_found_by_name_and_id() {
    let oap = start(None).await;
    let created = data(&oap, CREATE, creation()).await;
    report(&oap, created["task"]["id"].as_str().unwrap(), unix_ms_now());

    let services = data(&oap, SERVICES, Value::Null).await;
    assert_eq!(services["s"], json!([{ "id": SERVICE_ID, "name": "shop" }]));
    let found = data(&oap, FIND_SERVICE, json!({ "n": "shop" })).await;
    assert_eq!(
        found["s"],
        json!({ "id": SERVICE_ID, "name": "shop", "group": "", "shortName": "shop",
            "layers": ["GENERAL"], "normal": true })
    );
    let missing = data(&oap, FIND_SERVICE, json!({ "n": "sho" })).await;
    assert_eq!(missing["s"], Value::Null);
    let by_id = "query{ s: getService(serviceId: \"c2hvcA==.1\"){ name } l: listLayers \
        none: listServices(layer: \"MESH\"){ name } version checkHealth{ score details } \
        getTimeInfo{ timezone currentTimestamp } }";
    let by_id = data(&oap, by_id, Value::Null).await;
    assert_eq!(
        (&by_id["s"]["name"], &by_id["l"]),
        (&json!("shop"), &json!(["GENERAL"]))
    );
    assert_eq!(
        (&by_id["none"], &by_id["checkHealth"]["score"]),
        (&json!([]), &json!(0))
    );
    assert!(
        by_id["version"]
            .as_str()
            .unwrap()
            .starts_with("10.1.0-profilerd-")
    );

    let duration = json!({ "start": "2026-01-01", "end": "2026-01-02", "step": "DAY" });
    let instances = data(&oap, INSTANCES, json!({ "s": SERVICE_ID, "d": duration })).await;
    let instance = &instances["i"][0];
    assert_eq!(
        (&instance["id"], &instance["language"]),
        (&json!(INSTANCE_ID), &json!("PYTHON"))
    );
    // `swctl service list` and `swctl endpoint get`.
    let all = data(&oap, ALL_SERVICES, json!({ "d": duration, "g": null })).await;
    assert_eq!(
        all["s"],
        json!([{ "id": SERVICE_ID, "name": "shop", "group": "",
        "shortName": "shop", "layers": ["GENERAL"], "normal": true }])
    );
    let others = data(&oap, ALL_SERVICES, json!({ "d": duration, "g": "mall" })).await;
    assert_eq!(others["s"], json!([]));
    let id = "c2hvcA==.1_L2J1eQ==";
    let endpoint = data(&oap, ENDPOINT_INFO, json!({ "e": id })).await;
    assert_eq!(
        endpoint["e"],
        json!({ "id": id, "name": "/buy", "serviceId": SERVICE_ID,
        "serviceName": "shop" })
    );
    for id in ["", "_", "c2hvcA==.1", "c2hvcA==.1_/", "?.1_L2J1eQ=="] {
        let endpoint = data(&oap, ENDPOINT_INFO, json!({ "e": id })).await;
        assert_eq!(endpoint["e"], Value::Null, "{id}");
    }
    let endpoints = json!({ "k": "bu", "s": SERVICE_ID, "l": 10, "d": null });
    let endpoints = data(&oap, ENDPOINTS, endpoints).await;
    assert_eq!(
        endpoints["e"],
        json!([{ "id": "c2hvcA==.1_L2J1eQ==", "name": "/buy" }])
    );
}

/// Check that the client of `profilerd task --graphql` works as with a SkyWalking OAP, token included.
#[tokio::test]
async fn our_client_cannot_tell_it_from_another_oap() {
    let oap = start(Some("secret")).await;
    let url = format!("http://{}/graphql", oap.query_addr().unwrap());
    let without = GraphqlClient::new(&url).unwrap();
    let error = format!("{:#}", without.list("", "").await.unwrap_err());
    assert!(error.contains("SW_AGENT_AUTHENTICATION"), "{error}");

    let client = without.with_token(Some("secret")).unwrap();
    let request = pb::CreateTaskRequest {
        service: "shop".to_owned(),
        endpoint: "/buy".to_owned(),
        duration_minutes: 1,
        dump_period_ms: 10,
        max_sampling_count: 5,
        ..pb::CreateTaskRequest::default()
    };
    let task = client.create(request.clone()).await.unwrap();
    let busy = client.create(request).await.unwrap_err().to_string();
    assert!(busy.contains("already has monitor task"), "{busy}");
    report(&oap, &task.task_id, unix_ms_now());
    assert_eq!(
        client.list("shop", "/buy").await.unwrap()[0].task_id,
        task.task_id
    );
    assert_eq!(client.list("other", "").await.unwrap(), []);
    let shown = client.show("").await.unwrap();
    assert_eq!(
        (shown.segments, shown.logs[0].operation.as_str()),
        (1, "NOTIFIED")
    );
    let result = client.result(&task.task_id).await.unwrap();
    let [segment] = &result.segments[..] else {
        panic!("{result:?}")
    };
    assert_eq!(
        (segment.endpoint.as_str(), segment.duration_ms),
        ("/buy", 95)
    );
    assert_eq!(segment.cut.as_deref(), Some("the task ended first"));
    assert_eq!(
        (
            segment.trees[0].code_signature.as_str(),
            segment.trees[0].count
        ),
        ("main", 10)
    );
}

/// Check what HTTP refuses: other methods, types and paths, a wrong token, more than a query; and that whoever tries tokens
/// or sends nonsense can do so ten times a second.
#[tokio::test]
async fn requests_that_are_no_queries_are_refused() {
    let oap = start(Some("secret")).await;
    let address = oap.query_addr().unwrap();
    let token = ("authentication", "secret");
    let version = json!({ "query": "{ version }" }).to_string();
    let cases = [
        (Method::GET, "/healthcheck", vec![], String::new(), 200),
        (Method::HEAD, "/healthcheck", vec![], String::new(), 200),
        (Method::POST, "/healthcheck", vec![], String::new(), 405),
        (Method::GET, "/graphql", vec![token], String::new(), 405),
        (Method::GET, "/", vec![token], String::new(), 404),
        (Method::POST, "/graphql", vec![JSON], version.clone(), 401),
        (
            Method::POST,
            "/graphql",
            vec![JSON, ("authentication", "no")],
            version.clone(),
            401,
        ),
        (Method::POST, "/graphql", vec![token], version.clone(), 415),
        (
            Method::POST,
            "/graphql",
            vec![token, ("content-type", "text/plain")],
            version.clone(),
            415,
        ),
        (
            Method::POST,
            "/graphql",
            vec![token, JSON],
            "{".to_owned(),
            400,
        ),
        (
            Method::POST,
            "/graphql",
            vec![token, JSON],
            " ".repeat(2 << 20),
            413,
        ),
        (
            Method::POST,
            "/graphql",
            vec![("authorization", "Bearer secret"), JSON],
            version.clone(),
            200,
        ),
        (Method::POST, "/graphql", vec![token, JSON], version, 200),
    ];
    for (method, path, headers, body, expected) in cases {
        let what = format!("{method} {path} {headers:?}");
        let is_query = method == Method::POST && path == "/graphql";
        let begin = Instant::now();
        let (status, _) = send(address, method, path, &headers, body).await;
        assert_eq!(status.as_u16(), expected, "{what}");
        let is_paced = begin.elapsed() >= Duration::from_millis(100);
        assert!(is_paced || !is_query || expected == 200, "{what}");
    }
}

/// Check that a page whose name was made to stand for this host (DNS rebinding) reaches nothing, nor one of another origin,
/// and that a configured name, addresses and the names of this host do.
#[tokio::test]
async fn a_page_of_the_web_reaches_nothing() {
    let any_port: SocketAddr = "0.0.0.0:0".parse().unwrap();
    let oap = EmbeddedOap::start_with(EmbeddedConfig {
        http_listen: Some(any_port),
        host_names: vec!["oap.example".to_owned()],
        ..EmbeddedConfig::new("127.0.0.1:0".parse().unwrap())
    })
    .await
    .unwrap();
    let port = oap.query_addr().unwrap().port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let create = json!({ "query": CREATE, "variables": creation() }).to_string();
    let (evil, own) = (format!("evil.example:{port}"), format!("127.0.0.1:{port}"));
    let (evil_origin, own_origin) = (format!("http://{evil}"), format!("http://{own}"));
    for (host, origin, expected) in [
        (evil.as_str(), Some(evil_origin.as_str()), 421),
        (&evil, None, 421),
        (&own, Some(&evil_origin), 403),
        (&own, Some("null"), 403),
    ] {
        let mut headers = vec![JSON, ("host", host)];
        headers.extend(origin.map(|origin| ("origin", origin)));
        for (method, path) in [(Method::POST, "/graphql"), (Method::GET, "/healthcheck")] {
            let (status, body) = send(address, method, path, &headers, create.clone()).await;
            let text = String::from_utf8(body).unwrap();
            assert_eq!(status.as_u16(), expected, "{host} {origin:?}: {text}");
            assert!(text.contains("host_names"), "{text}");
        }
    }
    let tasks = data(&oap, LIST, Value::Null).await;
    assert_eq!(tasks["tasks"], json!([]));
    for (host, origin) in [
        (own.as_str(), Some(own_origin.as_str())),
        // A probe of Kubernetes names the pod.
        ("10.1.2.3:12800", None),
        ("[2001:db8::1]:12800", None),
        ("localhost", None),
        ("oap.example", Some("https://oap.example")),
    ] {
        let mut headers = vec![("host", host)];
        headers.extend(origin.map(|origin| ("origin", origin)));
        let sent = send(
            address,
            Method::GET,
            "/healthcheck",
            &headers,
            String::new(),
        );
        assert_eq!(sent.await.0, StatusCode::OK, "{host}");
    }
}

/// Check that wrong, deep, wide and expensive queries are errors of GraphQL, with status 200.
#[tokio::test]
async fn queries_have_limits() {
    let oap = start(None).await;
    let deep = format!(
        "{{ __schema {} }}",
        "{ types { fields ".repeat(12) + "{ name" + &" }".repeat(25)
    );
    let wide: String = (0..3001).map(|i| format!("a{i}: version ")).collect();
    let expensive: String = (0..31)
        .map(|i| format!("a{i}: getSegmentsProfileAnalyze(queries: []) {{ tip }} "))
        .collect();
    let many = json!({ "q": vec![json!({ "segmentId": "s", "timeRange": { "start": 0, "end": 1 } }); 101] });
    let bad_id = json!({ "r": { "serviceId": "shop", "endpointName": "/", "duration": 1,
        "minDurationThreshold": 0, "dumpPeriod": 10, "maxSamplingCount": 1 } });
    for (query, variables, expected) in [
        ("{ nothing }", Value::Null, "nothing"),
        (deep.as_str(), Value::Null, ""),
        (&format!("{{ {wide} }}"), Value::Null, "complex"),
        (&format!("{{ {expensive} }}"), Value::Null, "complex"),
        (ANALYZE, many, "at most 100"),
        (
            "mutation{ createProfileTask{ id } }",
            Value::Null,
            "creationRequest",
        ),
    ] {
        let answer = answer(&oap, query, variables).await;
        let message = answer["errors"][0]["message"].as_str();
        let message = message.unwrap_or_else(|| panic!("{answer}"));
        assert!(message.contains(expected), "{message}");
    }
    let refused = data(&oap, CREATE, bad_id).await;
    let reason = refused["task"]["errorReason"].as_str().unwrap();
    assert!(reason.contains("base64"), "{reason}");
}

/// A query with fragments of which each spreads the one before so many times.
fn multiplied(levels: usize, fan: usize) -> String {
    let mut text = "fragment f0 on Query { version } ".to_owned();
    for level in 1..=levels {
        let spreads = format!("...f{} ", level - 1).repeat(fan);
        text += &format!("fragment f{level} on Query {{ {spreads} }} ");
    }
    text + &format!("{{ ...f{levels} }}")
}

/// Check that queries whose fragments multiply are refused with the bound, and that health, gRPC and other queries are
/// answered while and after they are sent.
#[tokio::test]
async fn fragments_that_multiply_stop_nobody() {
    let oap = start(None).await;
    let address = oap.query_addr().unwrap();
    let attacks = [(30, 10), (30, 2), (60, 50), (20, 10)].map(|(levels, fan)| {
        let body = json!({ "query": multiplied(levels, fan) }).to_string();
        assert!(body.len() < 32_000);
        tokio::spawn(async move { send(address, Method::POST, "/graphql", &[JSON], body).await })
    });
    let others = async {
        let (status, _) = send(address, Method::GET, "/healthcheck", &[], String::new()).await;
        assert_eq!(status, StatusCode::OK);
        let mut client = TaskClient::connect(&oap.local_addr().to_string(), None)
            .await
            .unwrap();
        assert_eq!(client.list("", "").await.unwrap(), []);
        let version = data(&oap, "{ version }", Value::Null).await;
        assert!(version["version"].is_string());
    };
    timeout(DEADLINE, others).await.unwrap();
    for attack in attacks {
        let (status, body) = timeout(DEADLINE, attack).await.unwrap().unwrap();
        let answer: Value = serde_json::from_slice(&body).unwrap();
        let text = answer["errors"][0]["message"].as_str().unwrap();
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("more than 10000 parts"), "{text}");
    }
}

/// Check that what nests or repeats in a body, in the text of its query or in its variables, is refused or answered
/// soon, and that the next query is answered.
#[tokio::test]
async fn bodies_that_multiply_are_refused() {
    let oap = start(None).await;
    let address = oap.query_addr().unwrap();
    let nested = |open: &str, close: &str, count| open.repeat(count) + &close.repeat(count);
    let uses: String = (0..900)
        .map(|i| format!("a{i}: getSegmentsProfileAnalyze(queries: $q) {{ tip }} "))
        .collect();
    let used = json!({
        "query": format!("query($q: [SegmentProfileAnalyzeQuery!]!) {{ {uses} }}"),
        "variables": { "q": vec![json!({ "segmentId": "s", "timeRange": { "start": 0, "end": 1 } }); 90] },
    });
    let lists: String = (0..1_400)
        .map(|i| format!("a{i}: getProfileTaskList {{ id }} "))
        .collect();
    let query = |text: String| json!({ "query": text }).to_string();
    for (body, status, expected) in [
        (nested("[", "]", 400_000), 400, "invalid type"),
        (
            format!(
                "{{\"query\":\"{{ version }}\",\"variables\":{}}}",
                nested("{\"a\":", "}", 1_000)
            ),
            400,
            "recursion limit",
        ),
        (query(nested("{ a ", "}", 10_000)), 200, "nested too deep"),
        (
            query(format!("{{ a(b: {}) }}", nested("[", "]", 30_000))),
            200,
            "nested too deep",
        ),
        (query("version ".repeat(100_000)), 200, "65536 are read"),
        (
            query(format!(
                "{{ version {} }}",
                "@skip(if: [1 1 1 1 1]) ".repeat(2_000)
            )),
            200,
            "parts",
        ),
        (used.to_string(), 200, "parts"),
        (query(format!("{{ {lists} }}")), 200, "complex"),
    ] {
        let sent = send(address, Method::POST, "/graphql", &[JSON], body);
        let (got, body) = timeout(DEADLINE, sent).await.unwrap();
        let answer: Value = serde_json::from_slice(&body).unwrap();
        let text = answer["errors"][0]["message"].as_str().unwrap();
        assert_eq!(got.as_u16(), status, "{text}");
        assert!(text.contains(expected), "{text}");
    }
    let version = data(&oap, "{ version }", Value::Null).await;
    assert!(version["version"].is_string());
}

/// Check that requests of HTTP/1 in forms that servers and proxies read differently are refused, and create nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ambiguous_requests_are_refused() {
    let oap = start(None).await;
    let address = oap.query_addr().unwrap();
    let create = json!({ "query": CREATE, "variables": creation() }).to_string();
    let (length, half) = (create.len(), create.len() / 2);
    let many: String = (0..200).map(|i| format!("X-{i}: 1\r\n")).collect();
    let json = "Content-Type: application/json\r\n";
    for (head, body, expected) in [
        (
            format!("Content-Length: {length}\r\nContent-Length: {half}\r\n"),
            create.as_str(),
            400,
        ),
        (format!("Content-Length: +{length}\r\n"), &create, 400),
        (format!("Content-Length: {length}\r\n{many}"), &create, 431),
        ("Transfer-Encoding: gzip\r\n".to_owned(), &create, 400),
        (
            "Transfer-Encoding: chunked\r\n".to_owned(),
            "ffffffffffffffffff\r\n{",
            413,
        ),
    ] {
        let request =
            format!("POST /graphql HTTP/1.1\r\nHost: localhost\r\n{json}{head}\r\n{body}");
        let status = tokio::task::spawn_blocking(move || {
            let mut client = HttpClient::connect(address, DEADLINE).unwrap();
            client.send_raw(request.as_bytes()).unwrap();
            client.read_response().unwrap().0
        });
        assert_eq!(status.await.unwrap(), expected, "{head}");
    }
    let options = send(address, Method::OPTIONS, "/graphql", &[JSON], String::new()).await;
    assert_eq!(options.0, StatusCode::METHOD_NOT_ALLOWED);
    let upgrade = [("connection", "upgrade"), ("upgrade", "h2c")];
    let upgrade = send(
        address,
        Method::GET,
        "/healthcheck",
        &upgrade,
        String::new(),
    )
    .await;
    assert_eq!(upgrade.0, StatusCode::OK);
    let tasks = data(&oap, LIST, Value::Null).await;
    assert_eq!(tasks["tasks"], json!([]));
}

/// Check that a taken port ends the start, and that the text names the option.
#[tokio::test]
async fn a_taken_port_is_named() {
    let first = start(None).await;
    let config = EmbeddedConfig {
        http_listen: first.query_addr(),
        ..EmbeddedConfig::new("127.0.0.1:0".parse().unwrap())
    };
    let error = EmbeddedOap::start_with(config)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("--http-listen"), "{error}");
}

/// Check the schema against its text; `PROFILERD_RECORD=1` writes it again.
#[test]
fn the_schema_is_the_recorded_one() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/query.graphqls");
    if std::env::var_os("PROFILERD_RECORD").is_some() {
        fs::write(file, sdl()).unwrap();
    }
    assert_eq!(sdl(), fs::read_to_string(file).unwrap());
}
