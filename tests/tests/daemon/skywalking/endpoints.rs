//! A service that nobody has profiled yet: what the UI of a real OAP offers, and what it must not show.

use profiler_tests::{SkywalkingOap, needs_root, wait_until};

use super::assert_no_error_is_logged;
use super::query::{create_task, endpoints, requests_per_minute, wait_for_profiled};
use crate::DEADLINE;
use crate::daemon::Daemon;
use crate::endpoints::WINDOWS;
use crate::server::sample_service;

const SERVICE: &str = "oap-endpoints-sample";
const ANOTHER: &str = "oap-endpoints-another";

/// Check that an OAP offers the endpoint of a service that was never profiled, that a task can be created for it and its
/// request is listed, and that no request is counted for the service: neither the endpoint's record nor the profiled
/// request is all the traffic there is.
#[test]
fn the_oap_offers_endpoints_before_the_first_task() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let oap = SkywalkingOap::start(folder.path()).unwrap();
    let service = sample_service(SERVICE);
    let mut daemon = Daemon::reporting_with(oap.grpc(), &WINDOWS);
    let mut client = service.connect().unwrap();
    let offered = wait_until("an endpoint in the OAP", DEADLINE, || {
        client.request("POST", "/", "{}")?;
        client.request("GET", "/orders/17", "")?;
        let offered = endpoints(&oap, SERVICE);
        Ok((!offered.is_empty()).then_some(offered))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log()));
    assert!(offered.contains(&"POST:/".to_owned()), "{offered:?}");
    // Told in one go with those of the first: none is mixed up.
    let another = sample_service(ANOTHER);
    let offered = wait_until("an endpoint of the other service", DEADLINE, || {
        // It closes the connection behind a method that it does not know.
        another.connect()?.request("PUT", "/other", "")?;
        service.connect()?.request("DELETE", "/orders/17", "")?;
        let offered = endpoints(&oap, ANOTHER);
        Ok((!offered.is_empty()).then_some(offered))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log()));
    assert_eq!(offered, ["PUT:/other"]);
    assert!(!endpoints(&oap, SERVICE).contains(&"PUT:/other".to_owned()));

    let task_id = create_task(&oap, SERVICE, "*");
    daemon.wait_for_log("process watched", 1);
    client.request("POST", "/", "{}").unwrap();
    let profiled = wait_for_profiled(&oap, &task_id, 1);
    assert_eq!(profiled[0].endpoint_names, ["POST:/"]);
    let counted = requests_per_minute(&oap, SERVICE);
    assert_eq!(counted, [0; 0]);
    assert_no_error_is_logged(&oap);
}

/// Check that an OAP without a receiver of logs gets tasks done all the same, and the daemon says once what is missing.
#[test]
fn an_oap_without_logs_is_told_nothing() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let oap = SkywalkingOap::start_with(folder.path(), &[("SW_RECEIVER_LOG", "-")]).unwrap();
    let service = sample_service(SERVICE);
    let mut daemon = Daemon::reporting_with(oap.grpc(), &WINDOWS);
    let mut client = service.connect().unwrap();
    wait_until("a word about logs", DEADLINE, || {
        client.request("POST", "/", "{}")?;
        Ok(daemon.log().contains("the OAP takes no logs").then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log()));
    let task_id = create_task(&oap, SERVICE, "POST:/");
    daemon.wait_for_log("process watched", 1);
    client.request("POST", "/", "{}").unwrap();
    wait_for_profiled(&oap, &task_id, 1);
    assert_eq!(daemon.log().matches("the OAP takes no logs").count(), 1);
}
