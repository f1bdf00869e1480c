//! What happens to either side while a task is live, and names at their limits.

use std::collections::HashSet;
use std::time::Duration;

use profiler_tests::{HttpClient, SampleService, SkywalkingOap, needs_root, wait_until};

use super::assert_no_error_is_logged;
use super::gunicorn::Gunicorn;
use super::query::{
    analyze, create_task, wait_for_profiled, wait_for_service, wait_until_notified,
};
use super::relay::Relay;
use crate::daemon::Daemon;
use crate::server::sample_service;

/// An OAP that was away for long is tried every 30 s.
const REDIALED: Duration = Duration::from_mins(1);

/// As `create_task` asks for.
const MAX_SAMPLING_COUNT: usize = 5;

/// Check that names longer than an OAP keeps are cut as it cuts them: the service is listed, its task
/// arrives, and its request is shown.
#[test]
fn names_are_cut_as_an_oap_cuts_them() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let oap = SkywalkingOap::start(folder.path()).unwrap();
    let gunicorn = Gunicorn::start(&"s".repeat(90));
    let mut daemon = Daemon::reporting_to(oap.grpc());
    daemon.wait_for_log("Connected", 1);
    let listed = "s".repeat(70);
    let path = format!("/work/{}", "p".repeat(200));
    let endpoint: String = format!("GET:{path}").chars().take(150).collect();
    let task_id = create_task(&oap, &listed, &endpoint);
    daemon.wait_for_log("process watched", 3);
    wait_for_service(&oap, &listed);
    assert_eq!(gunicorn.get(&path).unwrap(), 200);
    let profiled = wait_for_profiled(&oap, &task_id, 1);
    assert_eq!(profiled[0].spans[0].service_code, listed);
    assert_eq!(profiled[0].endpoint_names, [endpoint]);
    assert_no_error_is_logged(&oap);
}

/// Check that a daemon that was killed in the middle of a task goes on with it: no snapshot twice, and not
/// more requests than the task asks for.
#[test]
fn a_killed_daemon_goes_on_with_its_task() {
    needs_root!();
    const NAME: &str = "oap-killed-sample";
    let folder = tempfile::tempdir().unwrap();
    let oap = SkywalkingOap::start(folder.path()).unwrap();
    let relay = Relay::start(oap.grpc());
    let service = sample_service(NAME);
    let mut client = service.connect().unwrap();
    let task_id = create_task(&oap, NAME, "POST:/");
    let state = folder.path().join("state").display().to_string();
    let state = [("PROFILERD_STATE_DIR", state.as_str())];

    let mut daemon = Daemon::reporting_with(relay.address(), &state);
    daemon.wait_for_log("process watched", 1);
    for _ in 0..3 {
        client.request("POST", "/", "{}").unwrap();
    }
    wait_for_profiled(&oap, &task_id, 3);
    client.send_raw(b"POST / HTTP/1.1\r\n\r\n").unwrap();
    daemon.signal(libc::SIGKILL);
    daemon.wait();
    assert_eq!(client.read_response().unwrap().0, 200);

    let mut daemon = Daemon::reporting_with(relay.address(), &state);
    daemon.wait_for_log("process watched", 1);
    for _ in 0..MAX_SAMPLING_COUNT {
        client.request("POST", "/", "{}").unwrap();
    }
    wait_for_profiled(&oap, &task_id, MAX_SAMPLING_COUNT - 1);
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());

    let said = relay.said();
    let mut keys = HashSet::new();
    for snapshot in &said.snapshots {
        let key = (&snapshot.trace_segment_id, snapshot.sequence);
        assert!(keys.insert(key), "{key:?} was sent twice");
    }
    let segments: HashSet<_> = keys.iter().map(|(segment, _)| segment).collect();
    assert!(segments.len() <= MAX_SAMPLING_COUNT, "{}", segments.len());
    assert_eq!(said.segments.len(), segments.len());
    assert_no_error_is_logged(&oap);
}

/// An OAP that keeps its data, a task of it, the task's service with a client, and a daemon that has the task.
struct Kept {
    _folder: tempfile::TempDir,
    oap: SkywalkingOap,
    _service: SampleService,
    client: HttpClient,
    daemon: Daemon,
    task_id: String,
}

impl Kept {
    fn start(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("h2").display().to_string();
        let url = format!("jdbc:h2:file:{file};DATABASE_TO_UPPER=FALSE");
        let storage = [("SW_STORAGE_H2_URL", url.as_str())];
        let oap = SkywalkingOap::start_with(folder.path(), &storage).unwrap();
        let service = sample_service(name);
        let client = service.connect().unwrap();
        let task_id = create_task(&oap, name, "POST:/");
        let mut daemon = Daemon::reporting_to(oap.grpc());
        daemon.wait_for_log("process watched", 1);
        wait_until_notified(&oap, &task_id);
        Self {
            _folder: folder,
            oap,
            _service: service,
            client,
            daemon,
            task_id,
        }
    }

    /// Starts the OAP again, and waits until the daemon has found it.
    fn start_again(&mut self) {
        self.oap.start_again().unwrap();
        wait_until("the daemon to be connected again", REDIALED, || {
            Ok((self.daemon.log().matches("Connected").count() > 1).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", self.daemon.log()));
    }

    fn post(&mut self, times: usize) {
        for _ in 0..times {
            self.client.request("POST", "/", "{}").unwrap();
        }
    }

    /// Checks that the OAP shows so many requests, with what they did, and has logged no error.
    fn assert_shown(&self, count: usize) {
        for request in &wait_for_profiled(&self.oap, &self.task_id, count) {
            let [tree] = &analyze(&self.oap, &request.spans[0])[..] else {
                panic!("{request:?}")
            };
            assert!(tree.iter().any(|node| node.is_of("do_POST")));
        }
        assert_no_error_is_logged(&self.oap);
    }
}

/// Check that a request whose segment was on its way to an OAP when that was killed is shown when it is back,
/// whole, as are those behind it.
#[test]
fn a_request_on_its_way_to_a_killed_oap_is_shown() {
    needs_root!();
    let mut kept = Kept::start("oap-killed-on-the-way");
    kept.oap.freeze();
    kept.post(3);
    kept.daemon.wait_for_log("request profiled", 3);
    kept.oap.kill().unwrap();
    kept.start_again();
    kept.assert_shown(3);
    kept.daemon.signal(libc::SIGTERM);
    let code = kept.daemon.wait().code();
    let log = kept.daemon.log();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("does not have all requests"), "{log}");
    assert_no_error_is_logged(&kept.oap);
}

/// Check that requests that end while the OAP is away are shown when it is back.
#[test]
fn an_oap_that_was_away_gets_what_it_missed() {
    needs_root!();
    let mut kept = Kept::start("oap-away-sample");
    kept.oap.stop().unwrap();
    kept.post(2);
    kept.daemon.wait_for_log("request profiled", 2);
    kept.start_again();
    kept.post(1);
    kept.assert_shown(3);
}
