//! `profilerd standalone` asked by GraphQL, as a SkyWalking OAP is.

use profiler_daemon::model::ProfileReport;
use profiler_tests::{free_port, needs_root, read_json};

use crate::daemon::{Daemon, creation};
use crate::server::sample_service;

/// Check that a task can be created, watched and read by GraphQL alone, and that its requests are the same
/// as those that gRPC tells.
#[test]
fn a_task_is_run_by_graphql() {
    needs_root!();
    const NAME: &str = "graphql-sample";
    let service = sample_service(NAME);
    let address = format!("127.0.0.1:{}", free_port().unwrap());
    let url = format!("http://{address}/graphql");
    let variables = [("PROFILERD_HTTP_LISTEN", address.as_str())];
    let mut daemon = Daemon::standalone_with(":memory:", &variables);
    daemon.wait_for_log("answers GraphQL", 1);
    let task = |daemon: &Daemon, args: &[&str]| {
        let answer = daemon.run(&[&["task", "--graphql", &url], args].concat());
        assert_eq!(answer.code, Some(0), "{}", answer.err);
        answer.out
    };

    let task_id = task(&daemon, &creation(NAME, "POST:/"));
    let task_id = task_id.trim();
    daemon.wait_for_log("process watched", 1);
    let mut client = service.connect().unwrap();
    for _ in 0..2 {
        client.request("POST", "/", "{}").unwrap();
    }
    let by_grpc = daemon.wait_for_segments(task_id, 2);
    let by_graphql = task(&daemon, &["result", task_id, "--format", "json"]);
    let by_graphql: ProfileReport = read_json(&by_graphql).unwrap();
    assert_eq!(by_graphql.segments.len(), by_grpc.segments.len());
    for (one, other) in by_graphql.segments.iter().zip(&by_grpc.segments) {
        assert_eq!(one.segment_id, other.segment_id);
        assert_eq!(one.endpoint, other.endpoint);
        assert_eq!(one.duration_ms, other.duration_ms);
        assert_eq!(one.trees, other.trees);
    }
    assert!(task(&daemon, &["list", "--service", NAME]).contains(task_id));
    assert!(task(&daemon, &["show", task_id, "--json"]).contains("NOTIFIED"));
}
