//! One service, three opinions: what it did by its own clock, what the OAP shows of our snapshots, and what
//! the OAP shows of those that SkyWalking's Python agent takes inside the service.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use profiler_daemon::model::TreeNode;
use profiler_tests::{
    SampleService, SkywalkingOap, needs_root, python_agent_command, read_json, wait_until,
};
use serde::Deserialize;
use serde_json::json;

use super::assert_no_error_is_logged;
use super::query::{
    Node, Profiled, analyze, create_task, logs, wait_for_profiled, wait_until_notified,
};
use super::relay::{Relay, Said};
use crate::TASK_DEADLINE;
use crate::daemon::Daemon;
use crate::recording::command;

const SERVICE: &str = "oap-sample";
const AGENT_SERVICE: &str = "oap-agent-sample";
/// What the service records of `POST /`, outermost first.
const FUNCTIONS: [&str; 4] = ["do_POST", "method3", "method2", "method1"];
/// One request is an opinion only on an idle machine.
const REQUESTS: usize = 3;
/// One dump period, and the milliseconds to which times are rounded.
const TOLERANCE_MS: i64 = 11;

/// Check that the OAP shows the requests of a service without an agent, with durations that the service
/// itself confirms, in trees equal to ours; and that nothing it was sent breaks a rule of its storage.
#[test]
fn the_oap_shows_what_the_service_did() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let oap = SkywalkingOap::start(folder.path()).unwrap();
    let agent_task = create_task(&oap, AGENT_SERVICE, "/");
    let task_id = create_task(&oap, SERVICE, "POST:/");
    // By itself: the task is not ours to run where the agent runs it.
    let by_agent = seen_by_the_agent(&oap, &agent_task);

    let truth_file = folder.path().join("truth");
    let service = SampleService::start(Path::new("python3"), SERVICE, Some(&truth_file)).unwrap();
    let relay = Relay::start(oap.grpc());
    let mut daemon = Daemon::reporting_to(relay.address());
    daemon.wait_for_log("process watched", 1);
    post(&service);
    let profiled = wait_for_profiled(&oap, &task_id, REQUESTS);
    assert_eq!(profiled.len(), REQUESTS);
    profiled.iter().for_each(assert_described);

    let said = relay.said();
    assert_storable(&said, &task_id);
    let mut seen = Vec::new();
    for request in &profiled {
        let trees = analyze(&oap, &request.spans[0]);
        let ours = analysed_by_us(&said, request, folder.path());
        assert_eq!(nested(&trees), ours);
        seen.push(Durations::of_trees(&trees));
    }
    let truth = true_durations(&truth_file);
    print_side_by_side(&truth, &seen, &by_agent);
    for request in &seen {
        for function in FUNCTIONS {
            assert_eq!(request.0[function].len(), 1, "nodes of {function}");
        }
    }
    for function in FUNCTIONS {
        let (true_ms, seen_ms) = (median(&truth, function), median(&seen, function));
        assert!(
            (true_ms - seen_ms).abs() <= TOLERANCE_MS,
            "{function} took {true_ms} ms, the OAP shows {seen_ms} ms"
        );
    }

    wait_until("the task's end", TASK_DEADLINE, || {
        let is_over = logs(&oap, &task_id)
            .iter()
            .any(|log| log.ends_with(" EXECUTION_FINISHED"));
        Ok(is_over.then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log()));
    // The OAP has no place for it.
    let log = daemon.log();
    assert!(
        log.contains(&format!("requests_profiled={REQUESTS}")),
        "{log}"
    );
    assert_no_error_is_logged(&oap);
}

/// Milliseconds of the nodes of each function, of one request.
#[derive(Clone, Debug, Default)]
struct Durations(BTreeMap<&'static str, Vec<i64>>);

impl Durations {
    fn of_trees(trees: &[Vec<Node>]) -> Self {
        let of = |function: &'static str| {
            let nodes = trees.iter().flatten();
            let fitting = nodes.filter(|node| node.is_of(function));
            (function, fitting.map(|node| node.duration).collect())
        };
        Self(FUNCTIONS.map(of).into())
    }
}

/// The middle one of the requests.
fn median(requests: &[Durations], function: &str) -> i64 {
    let sums = requests
        .iter()
        .map(|request| request.0[function].iter().sum());
    let mut sums: Vec<i64> = sums.collect();
    sums.sort_unstable();
    sums[sums.len() / 2]
}

fn post(service: &SampleService) {
    let mut client = service.connect().unwrap();
    for _ in 0..REQUESTS {
        assert_eq!(client.request("POST", "/", "{}").unwrap().status, 200);
    }
}

/// What the OAP shows of the first request that the agent profiles: later ones lose their end, because
/// the agent does not stop sampling those before and its queue is full.
fn seen_by_the_agent(oap: &SkywalkingOap, task_id: &str) -> Durations {
    let mut command = python_agent_command(oap.grpc(), "agent-1");
    command.env("SW_AGENT_COLLECTOR_GET_PROFILE_TASK_INTERVAL", "1");
    let service = SampleService::start_by(command, AGENT_SERVICE, None).unwrap();
    wait_until_notified(oap, task_id);
    post(&service);
    let profiled = wait_for_profiled(oap, task_id, 1);
    Durations::of_trees(&analyze(oap, &profiled[0].spans[0]))
}

/// By the service's own clock.
fn true_durations(file: &Path) -> Vec<Durations> {
    #[derive(Deserialize)]
    struct Call {
        function: String,
        enter_ns: i64,
        exit_ns: i64,
    }
    let mut requests = vec![Durations::default()];
    for line in fs::read_to_string(file).unwrap().lines() {
        let call: Call = serde_json::from_str(line).unwrap();
        let function = FUNCTIONS.iter().find(|name| **name == call.function);
        let request = requests.last_mut().unwrap();
        let ms = (call.exit_ns - call.enter_ns) / 1_000_000;
        request.0.insert(function.unwrap(), vec![ms]);
        if call.function == FUNCTIONS[0] {
            requests.push(Durations::default());
        }
    }
    requests.pop();
    requests
}

fn print_side_by_side(truth: &[Durations], seen: &[Durations], by_agent: &Durations) {
    eprintln!("\nmilliseconds of the nodes of   true   profilerd   Python agent 1.2.0");
    for function in FUNCTIONS {
        let nodes = |durations: &Durations| {
            let nodes: Vec<String> = durations.0[function].iter().map(i64::to_string).collect();
            nodes.join(" + ")
        };
        eprintln!(
            "{function:<26} {:>8} {:>11} {:>20}",
            nodes(&truth[0]),
            nodes(&seen[0]),
            nodes(by_agent)
        );
    }
}

/// What a user sees of the request before its trees.
#[track_caller]
fn assert_described(request: &Profiled) {
    let [span] = &request.spans[..] else {
        panic!("{request:?}")
    };
    assert!(span.profiled && span.span_id == 0, "{request:?}");
    assert_eq!(request.endpoint_names, ["POST:/"]);
    assert_eq!(request.trace_id, span.segment_id);
    assert_eq!(request.instance_name, span.service_instance_name);
    assert_eq!(request.duration, span.end_time - span.start_time);
    assert_eq!(
        (span.service_code.as_str(), span.endpoint_name.as_str()),
        (SERVICE, "POST:/")
    );
    assert_eq!(
        (span.r#type.as_str(), span.layer.as_str()),
        ("Entry", "Http")
    );
    let tag = |key: &str| {
        let mut tags = span.tags.iter();
        tags.find(|tag| tag.key == key)
            .map(|tag| tag.value.as_str())
    };
    assert_eq!(tag("http.method"), Some("POST"));
    assert_eq!(tag("http.status_code"), Some("200"));
}

/// The rules of an OAP's storage, which it does not check itself.
#[track_caller]
fn assert_storable(said: &Said, task_id: &str) {
    let mut segments = HashSet::new();
    for segment in &said.segments {
        assert!(segments.insert(&segment.trace_segment_id), "sent twice");
    }
    let mut keys = HashSet::new();
    for snapshot in &said.snapshots {
        assert_eq!(snapshot.task_id, task_id);
        assert!(segments.contains(&snapshot.trace_segment_id));
        assert!(keys.insert((&snapshot.trace_segment_id, snapshot.sequence)));
        let stack = snapshot.stack.as_ref().unwrap();
        assert!(!stack.code_signatures.is_empty(), "an empty stack");
    }
    for segment in &said.segments {
        let id = &segment.trace_segment_id;
        let snapshots = said
            .snapshots
            .iter()
            .filter(|snapshot| snapshot.trace_segment_id == *id);
        let (sequences, times): (Vec<i32>, Vec<i64>) = snapshots
            .map(|snapshot| (snapshot.sequence, snapshot.time))
            .unzip();
        let count = i32::try_from(sequences.len()).unwrap();
        assert_eq!(sequences, (0..count).collect::<Vec<_>>());
        let span = &segment.spans[0];
        assert!(times.is_sorted());
        assert_eq!(times.first(), Some(&span.start_time));
        assert_eq!(times.last(), Some(&span.end_time));
    }
}

/// Flat lists by breadth become trees, as `profilerd` prints them.
fn nested(trees: &[Vec<Node>]) -> Vec<TreeNode> {
    fn below(nodes: &[Node], parent: &str) -> Vec<TreeNode> {
        let children = nodes.iter().filter(|node| node.parent_id == parent);
        children
            .map(|node| TreeNode {
                code_signature: node.code_signature.clone(),
                duration_ms: node.duration,
                self_ms: node.duration_child_excluded,
                count: node.count,
                children: below(nodes, &node.id),
            })
            .collect()
    }
    trees.iter().flat_map(|nodes| below(nodes, "0")).collect()
}

/// `profilerd analyze` of the snapshots that the OAP got.
fn analysed_by_us(said: &Said, request: &Profiled, folder: &Path) -> Vec<TreeNode> {
    #[derive(Deserialize)]
    struct Analysis {
        trees: Vec<TreeNode>,
    }
    let span = &request.spans[0];
    let lines: String = said
        .snapshots
        .iter()
        .filter(|snapshot| snapshot.trace_segment_id == span.segment_id)
        .map(|snapshot| {
            let stack = &snapshot.stack.as_ref().unwrap().code_signatures;
            let line = json!({
                "segment_id": snapshot.trace_segment_id, "sequence": snapshot.sequence,
                "time_ms": snapshot.time, "stack": stack,
            });
            format!("{line}\n")
        })
        .collect();
    let file = folder.join("snapshots");
    fs::write(&file, lines).unwrap();
    let range = format!("{}-{}", span.start_time, span.end_time);
    let args = ["analyze", file.to_str().unwrap(), "--range", &range];
    let output = command(&args).args(["--format", "json"]).output().unwrap();
    let analysis: Analysis = read_json(&String::from_utf8(output.stdout).unwrap()).unwrap();
    analysis.trees
}
