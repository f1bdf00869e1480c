//! A service with SkyWalking's Python agent: its requests are shown in the agent's own segments.

use std::collections::HashSet;
use std::path::Path;

use profiler_tests::{SampleService, SkywalkingOap, needs_root, python_agent_command, wait_until};

use super::assert_no_error_is_logged;
use super::query::{
    Profiled, analyze, create_task, instances, segments_of_trace, wait_for_profiled,
    wait_until_notified,
};
use super::relay::Relay;
use crate::DEADLINE;
use crate::daemon::Daemon;

const SERVICE: &str = "agent-sample";
const INSTANCE: &str = "agent-sample-1";
const REQUESTS: usize = 3;
const PROFILER_OFF: (&str, &str) = ("SW_AGENT_PROFILE_ACTIVE", "false");

/// The service under the agent, with variables.
fn start(oap: &SkywalkingOap, variables: &[(&str, &str)]) -> SampleService {
    let mut command = python_agent_command(oap.grpc(), INSTANCE);
    command
        .env("SW_AGENT_COLLECTOR_GET_PROFILE_TASK_INTERVAL", "1")
        .envs(variables.iter().copied());
    SampleService::start_by(command, SERVICE, None).unwrap()
}

fn post(service: &SampleService, count: usize) {
    let mut client = service.connect().unwrap();
    for _ in 0..count {
        assert_eq!(client.request("POST", "/", "{}").unwrap().status, 200);
    }
}

/// The request is one segment, the agent's, with a tree of what the service did.
#[track_caller]
fn assert_is_the_agents(oap: &SkywalkingOap, request: &Profiled, endpoint: &str) {
    // Besides, the agent has one for each call the request makes.
    let entry = request.spans.iter().find(|span| span.span_id == 0);
    let span = entry.unwrap_or_else(|| panic!("{request:?}"));
    assert!(request.spans.iter().all(|span| span.profiled));
    assert_eq!(request.instance_name, INSTANCE);
    assert_eq!(span.endpoint_name, endpoint);
    assert_eq!(
        segments_of_trace(oap, &request.trace_id, INSTANCE),
        HashSet::from([span.segment_id.clone()])
    );
    let trees = analyze(oap, span);
    let [tree] = &trees[..] else {
        panic!("{} trees of {request:?}", trees.len())
    };
    // From end to end, but for a dump period and rounding at each.
    let seen = tree.iter().map(|node| node.duration).max().unwrap();
    assert!(
        seen >= request.duration - 25,
        "{seen} of {} ms",
        request.duration
    );
    for function in ["method3", "method1"] {
        let is_there = tree.iter().any(|node| node.is_of(function));
        assert!(is_there, "no {function} in {tree:#?}");
    }
}

/// Check that the OAP is asked for the agent's segments, and that the snapshots hang below them.
#[test]
fn the_agents_segments_are_asked_for() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let oap = SkywalkingOap::start(folder.path()).unwrap();
    let task_id = create_task(&oap, SERVICE, "/");
    let service = start(&oap, &[PROFILER_OFF]);
    let relay = Relay::start(oap.grpc());
    let query = oap.graphql_url();
    let mut daemon =
        Daemon::reporting_with(relay.address(), &[("PROFILERD_OAP_QUERY", query.as_str())]);
    daemon.wait_for_log("process watched", 1);
    post(&service, REQUESTS);
    let profiled = wait_for_profiled(&oap, &task_id, REQUESTS);
    assert_eq!(profiled.len(), REQUESTS);
    for request in &profiled {
        assert_is_the_agents(&oap, request, "/");
    }
    let said = relay.said();
    assert_eq!(said.segments, [], "a segment beside the agent's");
    assert!(!said.snapshots.is_empty());
    daemon.signal(libc::SIGTERM);
    assert!(daemon.wait().success(), "{}", daemon.log());
    let log = daemon.log();
    let counted = format!("segments_bound_by_query={REQUESTS}");
    assert!(log.contains(&counted), "{log}");
    assert_no_error_is_logged(&oap);
}

/// Check that a request's own call names the agent's segment, with nobody to ask.
#[test]
fn a_call_names_the_agents_segment() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let oap = SkywalkingOap::start(folder.path()).unwrap();
    let task_id = create_task(&oap, SERVICE, "/call");
    let called = SampleService::start(Path::new("python3"), "agent-sample-called", None).unwrap();
    let calls = format!("http://{}", called.address());
    let service = start(&oap, &[PROFILER_OFF, ("SAMPLE_SERVICE_CALLS", &calls)]);
    let relay = Relay::start(oap.grpc());
    let mut daemon = Daemon::reporting_to(relay.address());
    daemon.wait_for_log("process watched", 1);
    let mut client = service.connect().unwrap();
    for _ in 0..REQUESTS {
        assert_eq!(client.request("GET", "/call", "").unwrap().status, 200);
    }
    let profiled = wait_for_profiled(&oap, &task_id, REQUESTS);
    assert_eq!(profiled.len(), REQUESTS);
    for request in &profiled {
        assert_is_the_agents(&oap, request, "/call");
    }
    assert_eq!(relay.said().segments, [], "a segment beside the agent's");
    daemon.signal(libc::SIGTERM);
    assert!(daemon.wait().success(), "{}", daemon.log());
    let log = daemon.log();
    let counted = format!("segments_bound_by_call={REQUESTS}");
    assert!(log.contains(&counted), "{log}");
    assert_no_error_is_logged(&oap);
}

/// Check that without anything to ask a request is shown beside the agent's segment, is not counted
/// twice, and that this is told.
#[test]
fn a_request_that_is_not_found_is_shown_beside() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let oap = SkywalkingOap::start(folder.path()).unwrap();
    let task_id = create_task(&oap, SERVICE, "/");
    let service = start(&oap, &[PROFILER_OFF]);
    let relay = Relay::start(oap.grpc());
    let mut daemon = Daemon::reporting_to(relay.address());
    daemon.wait_for_log("process watched", 1);
    post(&service, 1);
    let profiled = wait_for_profiled(&oap, &task_id, 1);
    let [segment] = &relay.said().segments[..] else {
        panic!("{:?}", relay.said().segments)
    };
    assert!(segment.spans[0].skip_analysis);
    let tags = &profiled[0].spans[0].tags;
    let why = tags.iter().find(|tag| tag.key == "profilerd.synthetic");
    assert!(why.unwrap().value.contains("oap.query is not set"));
    daemon.signal(libc::SIGTERM);
    assert!(daemon.wait().success(), "{}", daemon.log());
    assert!(
        daemon.log().contains("segments_synthetic=1"),
        "{}",
        daemon.log()
    );
}

/// Check that a process whose agent has made up its instance's name is that instance in the OAP, and no other, that the
/// agent's properties of it stay, and that its requests are of it.
#[test]
fn a_process_with_an_agent_is_one_instance() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let oap = SkywalkingOap::start(folder.path()).unwrap();
    let task_id = create_task(&oap, SERVICE, "/");
    let mut command = python_agent_command(oap.grpc(), INSTANCE);
    command
        .env_remove("SW_AGENT_INSTANCE_NAME")
        .env(PROFILER_OFF.0, PROFILER_OFF.1);
    let service = SampleService::start_by(command, SERVICE, None).unwrap();
    let query = oap.graphql_url();
    let mut daemon = Daemon::reporting_with(oap.grpc(), &[("PROFILERD_OAP_QUERY", query.as_str())]);
    daemon.wait_for_log("process watched", 1);
    post(&service, 1);
    let profiled = wait_for_profiled(&oap, &task_id, 1);
    let [instance] = &instances(&oap, SERVICE)[..] else {
        panic!("{:?}\n{}", instances(&oap, SERVICE), daemon.log())
    };
    assert_eq!(instance["name"], profiled[0].instance_name.as_str());
    let attributes = instance["attributes"].as_array().unwrap();
    let value = |name: &str| {
        let mut named = attributes.iter().filter(|it| it["name"] == name);
        named.next().map(|it| it["value"].as_str().unwrap())
    };
    assert_eq!(
        value("Process No."),
        Some(service.id().to_string().as_str())
    );
    assert_eq!(value("profilerd version"), None);
    daemon.signal(libc::SIGTERM);
    assert!(daemon.wait().success(), "{}", daemon.log());
    let log = daemon.log();
    assert!(log.contains("segments_bound_by_query=1"), "{log}");
    assert_eq!(instances(&oap, SERVICE).len(), 1);
}

/// Check that a service whose agent profiles it itself is left to the agent, and that the log says so.
#[test]
fn an_agent_that_profiles_is_left_alone() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let oap = SkywalkingOap::start(folder.path()).unwrap();
    let task_id = create_task(&oap, SERVICE, "/");
    let relay = Relay::start(oap.grpc());
    let query = oap.graphql_url();
    let service = start(&oap, &[]);
    let mut daemon =
        Daemon::reporting_with(relay.address(), &[("PROFILERD_OAP_QUERY", query.as_str())]);
    daemon.wait_for_log("SW_AGENT_PROFILE_ACTIVE=false", 1);
    wait_until_notified(&oap, &task_id);
    // Until the agent has the task as well.
    let profiled = wait_until("a request that the agent profiles", DEADLINE, || {
        post(&service, 1);
        let profiled = super::query::profiled(&oap, &task_id);
        Ok((!profiled.is_empty()).then_some(profiled))
    });
    assert!(profiled.unwrap()[0].spans[0].profiled);
    daemon.signal(libc::SIGTERM);
    assert!(daemon.wait().success(), "{}", daemon.log());
    let said = relay.said();
    assert_eq!((said.segments, said.snapshots), (vec![], vec![]));
    assert!(
        daemon.log().contains("processes_left_to_agent=1"),
        "{}",
        daemon.log()
    );
}
