//! SkyWalking's Python agent, with its defaults, and the OAP of `profilerd standalone`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use profiler_daemon::embedded::TaskClient;
use profiler_daemon::model::{ProfileReport, SegmentReport, TreeNode};
use profiler_tests::{
    SampleService, free_port, needs_root, plain_python_agent_command, python_agent_command,
    wait_until,
};

use super::TASK_ARRIVES;
use crate::DEADLINE;
use crate::daemon::{Daemon, creation};

const SERVICE: &str = "built-in-agent-sample";
const BOUND_SERVICE: &str = "built-in-bound-sample";
const INSTANCE: &str = "built-in-agent-sample-1";
const REQUESTS: usize = 3;

/// Check that the agent registers, takes a task and reports its own snapshots; that they are shown beside
/// ours of the same request; and that it has no error to tell, also of what is not kept.
#[test]
fn the_python_agent_reports_to_standalone() {
    needs_root!();
    let beside = ("PROFILERD_OAP_AGENT_PROFILER", "beside");
    let mut daemon = Daemon::standalone_with(":memory:", &[beside]);
    // Before the agent starts: it asks at its start, and then every 20 s.
    let created = daemon.task(&creation(SERVICE, "/"));
    assert_eq!(created.code, Some(0), "{}", created.err);
    let task_id = created.out.trim();

    let folder = tempfile::tempdir().unwrap();
    let agent_log = folder.path().join("agent.log");
    let mut command = plain_python_agent_command(daemon.oap(), INSTANCE);
    command
        .env("SW_AGENT_AUTHENTICATION", daemon.token())
        .stderr(File::create(&agent_log).unwrap());
    let service = SampleService::start_by(command, SERVICE, None).unwrap();
    daemon.wait_for_log("process watched", 1);
    assert!(is_registered(&daemon));

    let report = wait_until("a request seen by both", DEADLINE, || {
        let mut client = service.connect()?;
        assert_eq!(client.request("POST", "/", "{}")?.status, 200);
        let report = result(&daemon, task_id);
        Ok((of_agent(&report).count() > 0 && of_profilerd(&report).count() > 0).then_some(report))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}\n{}", daemon.log(), text(&agent_log)));
    let by_agent = of_agent(&report).next().unwrap();
    assert_eq!(
        (
            by_agent.endpoint.as_str(),
            by_agent.service_instance.as_str()
        ),
        ("/", INSTANCE)
    );
    let by_profilerd = of_profilerd(&report).next().unwrap();
    assert_eq!(by_profilerd.service_instance, INSTANCE);
    let ids: BTreeSet<&str> = report
        .segments
        .iter()
        .map(|s| s.segment_id.as_str())
        .collect();
    assert_eq!(ids.len(), report.segments.len());

    wait_until("the agent's meters", TASK_ARRIVES, || {
        Ok(daemon.log().contains("kind=\"meters\"").then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}\n{}", daemon.log(), text(&agent_log)));
    let log = text(&agent_log);
    let complaints = log.lines().filter(|line| line.contains("[ERROR]"));
    assert_eq!(complaints.collect::<Vec<_>>(), [""; 0], "{log}");
}

/// Check that `standalone` asks its own OAP for the agent's segments, with its token, and that its snapshots hang below them.
#[test]
fn the_agents_segments_are_found_in_standalone() {
    needs_root!();
    let http = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap())).to_string();
    let query = format!("http://{http}/graphql");
    let mut daemon = Daemon::standalone_with(
        ":memory:",
        &[
            ("PROFILERD_HTTP_LISTEN", http.as_str()),
            ("PROFILERD_OAP_QUERY", query.as_str()),
        ],
    );
    let created = daemon.task(&creation(BOUND_SERVICE, "/"));
    assert_eq!(created.code, Some(0), "{}", created.err);
    let task_id = created.out.trim();
    let mut command = python_agent_command(daemon.oap(), INSTANCE);
    command
        .env("SW_AGENT_AUTHENTICATION", daemon.token())
        .env("SW_AGENT_PROFILE_ACTIVE", "false");
    let service = SampleService::start_by(command, BOUND_SERVICE, None).unwrap();
    daemon.wait_for_log("process watched", 1);
    let mut client = service.connect().unwrap();
    for _ in 0..REQUESTS {
        assert_eq!(client.request("POST", "/", "{}").unwrap().status, 200);
    }
    let report = wait_until("the agent's segments", DEADLINE, || {
        let report = result(&daemon, task_id);
        Ok((of_profilerd(&report).count() >= REQUESTS).then_some(report))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log()));
    assert_eq!(report.segments.len(), REQUESTS);
    daemon.signal(libc::SIGTERM);
    assert!(daemon.wait().success(), "{}", daemon.log());
    let log = daemon.log();
    let counted = format!("segments_bound_by_query={REQUESTS}");
    assert!(log.contains(&counted), "{log}");
}

/// Whether the agent has told the OAP what it is.
fn is_registered(daemon: &Daemon) -> bool {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let instances = runtime.block_on(async {
        let token = daemon.token();
        let mut client = TaskClient::connect(&daemon.oap().to_string(), Some(&token)).await?;
        client.instances().await
    });
    instances.unwrap().iter().any(|instance| {
        instance.service == SERVICE
            && instance.service_instance == INSTANCE
            && instance.properties.get("language").map(String::as_str) == Some("python")
    })
}

fn result(daemon: &Daemon, task_id: &str) -> ProfileReport {
    let answer = daemon.task(&["result", task_id, "--format", "json"]);
    profiler_tests::read_json(&answer.out).unwrap()
}

/// Requests whose tree names `do_POST` as the agent does, with the path of the file.
fn of_agent(report: &ProfileReport) -> impl Iterator<Item = &SegmentReport> {
    with_frame(report, "sample_service.py.do_POST: ")
}

/// Those whose tree names it as we do.
fn of_profilerd(report: &ProfileReport) -> impl Iterator<Item = &SegmentReport> {
    with_frame(report, "sample_service.Handler.do_POST:")
}

fn with_frame<'a>(
    report: &'a ProfileReport,
    part: &'a str,
) -> impl Iterator<Item = &'a SegmentReport> {
    fn has(node: &TreeNode, part: &str) -> bool {
        node.code_signature.contains(part) || node.children.iter().any(|child| has(child, part))
    }
    let segments = report.segments.iter();
    segments.filter(move |segment| segment.trees.iter().any(|tree| has(tree, part)))
}

fn text(file: &Path) -> String {
    fs::read_to_string(file).unwrap()
}
