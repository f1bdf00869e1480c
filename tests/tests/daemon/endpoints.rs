//! Endpoints: counted and measured by `profilerd endpoints`, found by a daemon itself, and named in results.

use std::fs::{self, File};
use std::path::Path;

use profiler_tests::{
    ChildGuard, HttpClient, SampleService, free_port, needs_root, read_json, wait_until,
};
use serde_json::{Value, json};

use crate::DEADLINE;
use crate::attached::Attached;
use crate::daemon::Daemon;
use crate::recording::{Recording, command};
use crate::server::{Server, sample_service};

/// Windows that tests need not wait for.
pub(crate) const WINDOWS: [(&str, &str); 3] = [
    ("PROFILERD_DISCOVERY_MODE", "windows"),
    ("PROFILERD_DISCOVERY_WINDOW", "2s"),
    ("PROFILERD_DISCOVERY_INTERVAL", "10s"),
];

/// Runs `profilerd endpoints` for a process while requests are made; yields its JSON.
#[track_caller]
fn endpoints(pid: u32, requests: impl FnOnce(&ChildGuard)) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let text = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let pid = pid.to_string();
    let mut command = command(&["endpoints", "--pid", &pid, "--duration", "1m", "--json"]);
    command
        .stdout(File::create(folder.path().join("out")).unwrap())
        .stderr(File::create(folder.path().join("err")).unwrap());
    let mut child = ChildGuard::spawn("profilerd endpoints", &mut command).unwrap();
    wait_until("profilerd to count requests", DEADLINE, || {
        child.still_running()?;
        Ok(text("err").contains("requests are counted").then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", text("err")));
    requests(&child);
    child.signal(libc::SIGINT);
    let status = child.wait(DEADLINE).unwrap();
    assert_eq!(status.code(), Some(0), "{}", text("err"));
    read_json(&text("out")).unwrap()
}

/// Requests by endpoint, with server errors and those without a response.
fn counts(output: &Value) -> Vec<(String, u64, u64, u64)> {
    let rows = output["endpoints"].as_array().unwrap().iter();
    let number = |row: &Value, key: &str| row[key].as_u64().unwrap();
    let mut counts: Vec<_> = rows
        .map(|row| {
            (
                row["endpoint"].as_str().unwrap().to_owned(),
                number(row, "requests"),
                number(row, "client_errors"),
                number(row, "server_errors"),
            )
        })
        .collect();
    counts.sort();
    counts
}

/// Check that all requests are counted by endpoint, ids as one, with their errors; that durations are those of the
/// server; and that nothing that samples is attached meanwhile.
#[test]
fn requests_are_counted_and_measured() {
    needs_root!();
    let service = sample_service("endpoints-counted");
    let output = endpoints(service.id(), |child| {
        let attached = Attached::of(child.id());
        assert_eq!(attached.perf_events(), 0);
        let mut client = service.connect().unwrap();
        for _ in 0..5 {
            client.request("POST", "/", "{}").unwrap();
        }
        for id in 0..7 {
            let path = format!("/nowhere/{id}?secret=1");
            client.request("GET", &path, "").unwrap();
        }
    });
    let found = counts(&output);
    let row = |name: &str| found.iter().find(|row| row.0 == name).unwrap().clone();
    assert_eq!(row("POST:/"), ("POST:/".to_owned(), 5, 0, 0), "{output}");
    let nowhere = row("GET:/nowhere/{id}");
    assert_eq!(nowhere.1, 7, "{output}");
    assert_eq!(found.len(), 2, "{output}");
    let rows = output["endpoints"].as_array().unwrap();
    let post = rows.iter().find(|row| row["endpoint"] == "POST:/").unwrap();
    let ms = |key: &str| post[key].as_f64().unwrap();
    // The handler sleeps for half a second.
    assert!(ms("p50_ms") >= 500.0, "{post}");
    assert!(
        ms("p50_ms") <= ms("p95_ms") && ms("p95_ms") <= ms("p99_ms"),
        "{post}"
    );
    assert!(ms("p99_ms") <= ms("longest_ms"), "{post}");
    assert_eq!(post["profilable"], "yes");
    assert!(!output.to_string().contains("secret"));
    assert_eq!(output["unseen"]["events_lost"], 0);
}

/// Check that requests count that are answered by another thread than the one that read them: no stack is asked for.
#[test]
fn handed_off_requests_are_counted() {
    needs_root!();
    let server = Server::with_hand_off();
    let output = endpoints(server.id(), |_| {
        let mut client = server.connect();
        for _ in 0..3 {
            client.request("GET", "/first", "").unwrap();
        }
    });
    assert_eq!(
        counts(&output),
        [("GET:/first".to_owned(), 3, 0, 0)],
        "{output}"
    );
}

/// Check that requests of a task for every endpoint are called by their own, and stand beside it as they are.
#[test]
fn a_recorded_request_has_its_own_endpoint() {
    needs_root!();
    let server = Server::with_threads();
    let recording = Recording::start("*", server.id(), &["--max-requests", "2"]);
    let mut client = server.connect();
    client.request("GET", "/first", "").unwrap();
    client.request("GET", "/second", "").unwrap();
    let report = recording.finish().report(0);
    assert_eq!(report.task.endpoint, "*");
    let own: Vec<_> = report
        .segments
        .iter()
        .map(|it| (it.endpoint.as_str(), it.method.as_str(), it.path.as_str()))
        .collect();
    let expected = [
        ("GET:/first", "GET", "/first"),
        ("GET:/second", "GET", "/second"),
    ];
    assert_eq!(own, expected);
}

/// Check that the built-in OAP offers an endpoint that nobody has created a task for, and that a window leaves nothing
/// attached.
#[test]
fn a_daemon_finds_endpoints_by_itself() {
    needs_root!();
    const NAME: &str = "endpoints-found";
    let service = sample_service(NAME);
    let address = format!("127.0.0.1:{}", free_port().unwrap());
    let mut variables = WINDOWS.to_vec();
    variables.push(("PROFILERD_HTTP_LISTEN", address.as_str()));
    let mut daemon = Daemon::standalone_with(":memory:", &variables);
    daemon.wait_for_log("answers GraphQL", 1);
    let token = daemon.token();
    let mut client = service.connect().unwrap();
    let found = wait_until("the endpoint in the built-in OAP", DEADLINE, || {
        client.request("POST", "/", "{}")?;
        let names = find_endpoints(&address, &token, NAME)?;
        Ok((!names.is_empty()).then_some(names))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log()));
    assert_eq!(found, ["POST:/"]);
    daemon.wait_for_log("endpoints were looked for", 1);
    wait_until("nothing to be attached", DEADLINE, || {
        Ok((Attached::of(daemon.id()) == Attached::default()).then_some(()))
    })
    .unwrap();
}

fn find_endpoints(address: &str, token: &str, service: &str) -> anyhow::Result<Vec<String>> {
    let query =
        "query ($s: ID!) { it: findEndpoint(keyword: \"\", serviceId: $s, limit: 20) { name } }";
    let id = profiler_daemon::embedded::task::service_id(service);
    let body = json!({ "query": query, "variables": { "s": id } }).to_string();
    let authorization = format!("Bearer {token}");
    let headers = [
        ("Content-Type", "application/json"),
        ("Authorization", authorization.as_str()),
    ];
    let mut client = HttpClient::connect(address.parse()?, DEADLINE)?;
    let response = client.request_with("POST", "/graphql", &headers, &body)?;
    let answer: Value = serde_json::from_slice(&response.body)?;
    let rows = answer["data"]["it"].as_array().cloned().unwrap_or_default();
    let names = rows
        .iter()
        .map(|row| row["name"].as_str().unwrap().to_owned());
    Ok(names.collect())
}

/// Check that a live task and a window leave each other alone: the task profiles its requests while the window counts
/// them.
#[test]
fn a_window_does_not_disturb_a_task() {
    needs_root!();
    const NAME: &str = "endpoints-beside";
    let service = SampleService::start(Path::new("python3"), NAME, None).unwrap();
    let variables = [
        ("PROFILERD_DISCOVERY_MODE", "always"),
        WINDOWS[1],
        WINDOWS[2],
    ];
    let mut daemon = Daemon::standalone_with(":memory:", &variables);
    let task_id = daemon.create_task(NAME, "*");
    let mut client = service.connect().unwrap();
    for _ in 0..3 {
        client.request("POST", "/", "{}").unwrap();
    }
    let report = daemon.wait_for_segments(&task_id, 3);
    for segment in &report.segments {
        assert_eq!(
            (segment.endpoint.as_str(), segment.path.as_str()),
            ("POST:/", "/")
        );
    }
    daemon.wait_for_log("endpoints were looked for", 1);
    let counters = &report.coverage.counters;
    assert_eq!(
        counters["requests_interleaved"] + counters["requests_of_other_task"],
        0
    );
}
