//! Several services of one daemon, each with its task.

use profiler_tests::{SkywalkingOap, needs_root, wait_until};

use super::assert_no_error_is_logged;
use super::gunicorn::Gunicorn;
use super::query::{Profiled, analyze, create_task, wait_for_profiled};
use super::relay::Relay;
use crate::DEADLINE;
use crate::daemon::Daemon;
use crate::server::sample_service;

const SAMPLE: &str = "oap-sample-of-two";
const WSGI: &str = "oap-wsgi-of-two";
const REQUESTS: usize = 4;

/// Check that two services are profiled side by side, one of them by several processes, and that each
/// task shows the requests of its own service and endpoint only.
#[test]
fn each_service_has_its_task() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let oap = SkywalkingOap::start(folder.path()).unwrap();
    let tasks = [
        create_task(&oap, SAMPLE, "GET:/busy"),
        create_task(&oap, WSGI, "GET:/work"),
    ];
    let sample = sample_service(SAMPLE);
    let gunicorn = Gunicorn::start(WSGI);
    let mut daemon = Daemon::reporting_to(oap.grpc());
    // The sample service, gunicorn's first process and its two workers.
    daemon.wait_for_log("process watched", 4);

    let mut client = sample.connect().unwrap();
    for _ in 0..REQUESTS {
        assert_eq!(client.request("GET", "/busy", "").unwrap().status, 200);
        assert_eq!(client.request("GET", "/fast", "").unwrap().status, 200);
        assert_eq!(gunicorn.get("/work").unwrap(), 200);
        assert_eq!(gunicorn.get("/other").unwrap(), 404);
    }
    let [busy, work] = tasks.map(|task_id| wait_for_profiled(&oap, &task_id, REQUESTS));
    for request in &busy {
        assert_of(request, SAMPLE, "GET:/busy");
        assert_has(&oap, request, &["do_GET", "outer", "inner"]);
    }
    for request in &work {
        assert_of(request, WSGI, "GET:/work");
        assert_has(&oap, request, &["application", "query"]);
        assert_has(&oap, request, &["application", "render"]);
    }
    assert_eq!((busy.len(), work.len()), (REQUESTS, REQUESTS));
    assert_no_error_is_logged(&oap);
}

/// Check that two daemons which reach one OAP by different addresses are told when its task comes to both.
#[test]
fn daemons_with_two_addresses_of_one_oap_are_told() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let oap = SkywalkingOap::start(folder.path()).unwrap();
    let relay = Relay::start(oap.grpc());
    let _sample = sample_service(SAMPLE);
    let states = ["one", "two"].map(|name| folder.path().join(name).display().to_string());
    let mut daemons = [oap.grpc(), relay.address()].into_iter().zip(&states);
    let mut daemons = [(); 2].map(|()| {
        let (address, state) = daemons.next().unwrap();
        let mut daemon = Daemon::reporting_with(address, &[("PROFILERD_STATE_DIR", state)]);
        daemon.wait_for_log("Connected", 1);
        daemon
    });
    let reports_elsewhere = "another profilerd of this host reports elsewhere";
    daemons[1].wait_for_log(reports_elsewhere, 1);
    create_task(&oap, SAMPLE, "GET:/busy");
    for daemon in &mut daemons {
        daemon.wait_for_log("task received", 1);
    }
    wait_until("the warning", DEADLINE, || {
        let told = |daemon: &Daemon| daemon.log().contains("runs the same task");
        Ok(daemons.iter().any(told).then_some(()))
    })
    .unwrap();
    for daemon in &daemons {
        assert!(
            !daemon.log().contains(" as well: every request"),
            "{}",
            daemon.log()
        );
    }
}

#[track_caller]
fn assert_of(request: &Profiled, service: &str, endpoint: &str) {
    assert_eq!(request.spans[0].service_code, service);
    assert_eq!(request.endpoint_names, [endpoint]);
}

/// The functions call each other, others between them allowed.
#[track_caller]
fn assert_has(oap: &SkywalkingOap, request: &Profiled, functions: &[&str]) {
    let trees = analyze(oap, &request.spans[0]);
    let [tree] = &trees[..] else {
        panic!("{} trees", trees.len())
    };
    let (leaf, callers) = functions.split_last().unwrap();
    let found = tree.iter().any(|node| {
        let mut expected = callers.iter().rev();
        let mut next = expected.next();
        let mut at = node;
        while let Some(parent) = tree.iter().find(|parent| parent.id == at.parent_id) {
            at = parent;
            if next.is_some_and(|name| at.is_of(name)) {
                next = expected.next();
            }
        }
        node.is_of(leaf) && next.is_none()
    });
    assert!(found, "no call chain {functions:?} in {tree:#?}");
}
