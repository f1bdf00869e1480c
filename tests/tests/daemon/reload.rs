//! A configuration that changes while tasks run.

use std::fs;

use profiler_tests::needs_root;

use crate::daemon::Daemon;
use crate::server::sample_service;

/// Check that a rule names a service from a reload on, which can be profiled under that name, and that a process that is not
/// wanted any more is left out of the task that runs, counted, and refused to `record`.
#[test]
fn rules_and_choice_change_while_the_daemon_runs() {
    needs_root!();
    let service = sample_service("before-reload");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.yaml");
    // Nobody is there: no pod is known, and processes outside of pods may be profiled.
    let kubernetes = |more: &str| {
        format!(
            "kubernetes: {{enabled: true, api_server: 'http://127.0.0.1:1', node_name: n{more}}}\n"
        )
    };
    let port = service.address().port();
    let rule = format!("services: [{{match: {{listen_port: {port}}}, service: after-reload}}]\n");
    fs::write(&path, kubernetes("")).unwrap();
    let config = path.to_str().unwrap();
    let mut daemon = Daemon::standalone_with(":memory:", &[("PROFILERD_CONFIG", config)]);

    fs::write(&path, kubernetes("") + &rule).unwrap();
    daemon.signal(libc::SIGHUP);
    daemon.wait_for_log("services changed; takes effect now", 1);
    let task = daemon.create_task("after-reload", "POST:/");
    let mut client = service.connect().unwrap();
    assert_eq!(client.request("POST", "/", "{}").unwrap().status, 200);
    daemon.wait_for_segments(&task, 1);

    fs::write(&path, kubernetes(", host_processes: false") + &rule).unwrap();
    daemon.signal(libc::SIGHUP);
    let denied = format!(
        "process {} is not to be profiled any more: it is in no pod",
        service.id()
    );
    daemon.wait_for_log(&denied, 1);
    assert_eq!(client.request("POST", "/", "{}").unwrap().status, 200);
    assert_eq!(daemon.task(&["cancel", &task]).code, Some(0));
    daemon.wait_for_log("task done", 1);
    let shown = daemon.show(&task);
    let counted = |name: &str| shown["coverage"][name].as_u64().unwrap();
    assert_eq!(counted("processes_denied"), 1, "{shown}");
    assert_eq!(counted("requests_profiled"), 1, "{shown}");
    let pid = service.id().to_string();
    let record = daemon.run(&[
        "record",
        "--endpoint",
        "/",
        "--pid",
        &pid,
        "--config",
        config,
    ]);
    assert_eq!(record.code, Some(1), "{}", record.err);
    assert!(
        record
            .err
            .contains("is not to be profiled: it is in no pod"),
        "{}",
        record.err
    );
}
