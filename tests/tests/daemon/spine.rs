//! The whole way, from a task to the calls inside a request. Also runs under other kernels, by
//! `cargo xtask vm`.

use profiler_daemon::model::TreeNode;
use profiler_tests::needs_root;

use crate::daemon::Daemon;
use crate::recording::{has_function, is_of};
use crate::server::sample_service;

/// Calls of the sample service's handler, outermost first.
const CALLS: [&str; 4] = ["do_POST", "method3", "method2", "method1"];
const REQUESTS: usize = 2;

/// Check that a task on a service nobody has changed shows each request's calls, in the order and the
/// nesting in which they happen, and no other request.
#[test]
fn a_task_shows_the_calls_of_each_request_in_order() {
    needs_root!();
    const NAME: &str = "spine-sample";
    let service = sample_service(NAME);
    let mut daemon = Daemon::standalone();
    let task_id = daemon.create_task(NAME, "POST:/");
    let mut client = service.connect().unwrap();
    for _ in 0..REQUESTS {
        assert_eq!(client.request("GET", "/fast", "").unwrap().status, 200);
        assert_eq!(client.request("POST", "/", "{}").unwrap().status, 200);
    }
    let report = daemon.wait_for_segments(&task_id, REQUESTS);
    assert_eq!(report.segments.len(), REQUESTS);
    for segment in &report.segments {
        let what = (segment.endpoint.as_str(), segment.status);
        assert_eq!(what, ("POST:/", Some(200)));
        assert!(!has_function(segment, "answer_fast"));
        for (index, snapshot) in segment.snapshots.iter().enumerate() {
            assert_eq!(snapshot.sequence as usize, index);
        }
        assert!(
            nested(&segment.trees, &CALLS),
            "{}\n{:#?}",
            daemon.log(),
            segment.trees
        );
        // The handler sleeps in method3, method2, method1 and then itself.
        let deepest = segment.snapshots.iter().map(|snapshot| {
            let of = |call: &&str| snapshot.stack.iter().any(|frame| is_of(frame, call));
            CALLS.iter().filter(|call| of(call)).count()
        });
        let mut depths: Vec<usize> = deepest.filter(|depth| *depth > 0).collect();
        depths.dedup();
        let order = depths.iter().position(|depth| *depth == CALLS.len());
        let order = order.unwrap_or_else(|| panic!("no sample in method1: {depths:?}"));
        assert!(depths[..=order].is_sorted(), "{depths:?}");
        assert!(depths[order..].is_sorted_by(|a, b| a >= b), "{depths:?}");
    }
}

/// Whether the functions stand below each other in this order, other frames between them or not.
fn nested(nodes: &[TreeNode], calls: &[&str]) -> bool {
    let Some((first, rest)) = calls.split_first() else {
        return true;
    };
    nodes.iter().any(|node| {
        let rest = if is_of(&node.code_signature, first) {
            rest
        } else {
            calls
        };
        nested(&node.children, rest)
    })
}
