//! A process id that is used again.

use std::path::Path;
use std::process::Command;

use profiler_daemon::model::Pid;
use profiler_daemon::process::ProcessTable;
use profiler_tests::{ChildGuard, SampleService, needs_root, start_as};

use crate::daemon::Daemon;
use crate::server::sample_service;

/// Name of the service.
const SERVICE: &str = "reused-sample";

/// A sample service with the id of a process that is gone.
fn sample_service_as(id: u32, name: &str) -> SampleService {
    let start = || SampleService::start(Path::new("python3"), name, None);
    start_as(id, SampleService::id, start).unwrap()
}

/// Check that a task profiles a server with the id of one that it has profiled before, and nothing of a process of
/// another service with that id.
#[test]
fn a_server_with_a_used_id_is_profiled() {
    needs_root!();
    let first = sample_service(SERVICE);
    let id = first.id();
    let mut daemon = Daemon::standalone();
    let task = daemon.create_task(SERVICE, "POST:/");
    let post = |server: &SampleService| {
        let mut client = server.connect().unwrap();
        assert_eq!(client.request("POST", "/", "{}").unwrap().status, 200);
    };
    post(&first);
    daemon.wait_for_segments(&task, 1);
    drop(first);

    let other = sample_service_as(id, "another-sample");
    post(&other);
    drop(other);

    let again = sample_service_as(id, SERVICE);
    daemon.wait_for_log("process watched", 2);
    post(&again);
    let report = daemon.wait_for_segments(&task, 2);
    assert_eq!(report.segments.len(), 2);
}

/// Check that the table of processes tells a used id from the process it knew at the next scan, long after it has
/// become an old process that is looked at now and then.
#[test]
fn a_used_id_is_noticed_by_the_next_scan() {
    needs_root!();
    let sleep = || ChildGuard::spawn("sleep", Command::new("sleep").arg("1000"));
    let mut table = ProcessTable::new(Vec::new());
    for _ in 0..6 {
        let first = sleep().unwrap();
        let id = first.id();
        (0..5).for_each(|_| drop(table.scan().unwrap()));
        let key = table.get(Pid(id)).unwrap().key;
        drop(first);
        // A process's start is known to a hundredth of a second.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let _again = start_as(id, ChildGuard::id, sleep).unwrap();
        let changes = table.scan().unwrap();
        assert!(changes.added.contains(&Pid(id)));
        assert!(changes.removed.iter().any(|process| process.key == key));
        assert!(table.find(key).is_none());
        assert_ne!(table.get(Pid(id)).unwrap().key, key);
    }
}
