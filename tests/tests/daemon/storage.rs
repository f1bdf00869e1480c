//! What `profilerd standalone` has answered with OK survives its death.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use profiler_daemon::embedded::TaskClient;
use profiler_daemon::model::clock::unix_ms_now;
use profiler_proto::skywalking as pb;
use profiler_proto::skywalking::management_service_client::ManagementServiceClient;
use profiler_proto::skywalking::profile_task_client::ProfileTaskClient;
use profiler_proto::skywalking::trace_segment_report_service_client::TraceSegmentReportServiceClient;
use profiler_tests::{needs_root, wait_until};
use rusqlite::Connection;
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::DEADLINE;
use crate::daemon::{Daemon, creation};
use crate::recording::command;

const ROUNDS: usize = 4;
/// Reporters at work when the daemon dies.
const REPORTERS: usize = 3;
/// Reports answered in a round before it does.
const ANSWERED: usize = 30;
/// Longest stream of snapshots; a transaction takes 1,024.
const SNAPSHOTS_MAX: i32 = 1500;

/// A report that was answered with OK from beginning to end.
struct Report {
    task_id: String,
    segment_id: String,
    snapshots: i32,
}

type Answered = Arc<Mutex<Vec<Report>>>;

/// Check that everything that was answered is there after the daemon was killed in the middle of streams,
/// several times, and that its file is whole each time.
#[test]
fn what_was_answered_survives_a_kill() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let runtime = Runtime::new().unwrap();
    let answered = Answered::default();
    let mut finished = Vec::new();
    for round in 0..ROUNDS {
        let mut daemon = Daemon::standalone_without_token(data_dir.to_str().unwrap());
        runtime.block_on(check(daemon.oap(), &answered.lock().unwrap(), &finished));
        let created = daemon.task(&creation(&format!("kept-{round}"), "/"));
        let task_id = created.out.trim().to_owned();
        assert_eq!(created.code, Some(0), "{}", created.err);
        let reporters: Vec<_> = (0..REPORTERS)
            .map(|reporter| {
                let name = format!("{round}-{reporter}");
                let (task_id, answered) = (task_id.clone(), Arc::clone(&answered));
                runtime.spawn(report_on(daemon.oap(), task_id, name, answered))
            })
            .collect();
        runtime.block_on(finish(daemon.oap(), &task_id)).unwrap();
        finished.push(task_id);
        let enough = (round + 1) * ANSWERED;
        wait_until("answers", DEADLINE, || {
            daemon.still_running()?;
            Ok((answered.lock().unwrap().len() >= enough).then_some(()))
        })
        .unwrap();
        daemon.signal(libc::SIGKILL);
        daemon.wait();
        for reporter in reporters {
            runtime.block_on(reporter).unwrap();
        }
        assert_eq!(integrity_of_copy(&data_dir), "ok");
    }
    let mut daemon = Daemon::standalone_without_token(data_dir.to_str().unwrap());
    runtime.block_on(check(daemon.oap(), &answered.lock().unwrap(), &finished));
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
}

/// Check that a second daemon on a directory ends, and says which directory and what to do.
#[test]
fn a_second_daemon_on_a_directory_is_refused() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let _first = Daemon::standalone_in(dir);
    let args = ["standalone", "--listen", "127.0.0.1:0", "--data-dir", dir];
    let args = [&args[..], &["--no-token"]].concat();
    let output = command(&args).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(
        err.contains(&format!("another profilerd uses {dir}")),
        "{err}"
    );
}

async fn connect(oap: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{oap}")).unwrap();
    endpoint.connect().await.unwrap()
}

/// Reports requests until the daemon is gone.
async fn report_on(oap: SocketAddr, task_id: String, name: String, answered: Answered) {
    let channel = connect(oap).await;
    for number in 0.. {
        let report = Report {
            task_id: task_id.clone(),
            segment_id: format!("{name}-{number}"),
            snapshots: number * 397 % SNAPSHOTS_MAX + 1,
        };
        if send(&channel, &report).await.is_err() {
            return;
        }
        answered.lock().unwrap().push(report);
    }
}

async fn send(channel: &Channel, report: &Report) -> Result<(), Status> {
    let instance = pb::InstancePingPkg {
        service: "kept".to_owned(),
        service_instance: report.segment_id.clone(),
        ..pb::InstancePingPkg::default()
    };
    let mut management = ManagementServiceClient::new(channel.clone());
    management.keep_alive(instance).await?;
    let start_ms = unix_ms_now();
    let segment = pb::SegmentObject {
        trace_id: report.segment_id.clone(),
        trace_segment_id: report.segment_id.clone(),
        spans: vec![pb::SpanObject {
            start_time: start_ms,
            end_time: start_ms + 10,
            ..pb::SpanObject::default()
        }],
        ..pb::SegmentObject::default()
    };
    let mut segments = TraceSegmentReportServiceClient::new(channel.clone());
    segments.collect(tokio_stream::once(segment)).await?;
    let snapshots: Vec<_> = (0..report.snapshots)
        .map(|sequence| pb::ThreadSnapshot {
            task_id: report.task_id.clone(),
            trace_segment_id: report.segment_id.clone(),
            time: start_ms + i64::from(sequence),
            sequence,
            stack: Some(pb::ThreadStack {
                code_signatures: vec!["main".to_owned(), format!("leaf {}", sequence % 7)],
            }),
        })
        .collect();
    let mut tasks = ProfileTaskClient::new(channel.clone());
    tasks
        .collect_snapshot(tokio_stream::iter(snapshots))
        .await?;
    Ok(())
}

async fn finish(oap: SocketAddr, task_id: &str) -> Result<(), Status> {
    let report = pb::ProfileTaskFinishReport {
        service: "kept".to_owned(),
        service_instance: "one".to_owned(),
        task_id: task_id.to_owned(),
    };
    let mut tasks = ProfileTaskClient::new(connect(oap).await);
    tasks.report_task_finish(report).await.map(drop)
}

/// Checks that tasks, logs, instances, segments and snapshots are as they were answered. Of the reports
/// that were not, there is a beginning.
async fn check(oap: SocketAddr, answered: &[Report], finished: &[String]) {
    let mut tasks = TaskClient::connect(&oap.to_string(), None).await.unwrap();
    assert_eq!(tasks.list("", "").await.unwrap().len(), finished.len());
    let mut found = BTreeMap::new();
    for task_id in finished {
        let logs = tasks.show(task_id).await.unwrap().logs;
        assert!(logs.iter().any(|log| log.operation == "EXECUTION_FINISHED"));
        for segment in tasks.result(task_id).await.unwrap().segments {
            let count = i32::try_from(segment.snapshots.len()).unwrap();
            let sequences = segment.snapshots.iter().map(|snapshot| snapshot.sequence);
            assert!(sequences.eq(0..count), "{}", segment.segment_id);
            found.insert((task_id.as_str(), segment.segment_id), count);
        }
    }
    let instances = tasks.instances().await.unwrap().into_iter();
    let instances: Vec<_> = instances
        .map(|instance| instance.service_instance)
        .collect();
    for report in answered {
        let key = (report.task_id.as_str(), report.segment_id.clone());
        assert_eq!(found.get(&key), Some(&report.snapshots), "{key:?}");
        assert!(instances.contains(&report.segment_id), "{key:?}");
    }
}

/// What SQLite says about the file and its log; of a copy, so that the daemon finds what it left.
fn integrity_of_copy(data_dir: &Path) -> String {
    let copy = tempfile::tempdir().unwrap();
    for name in ["profilerd.db", "profilerd.db-wal"] {
        fs::copy(data_dir.join(name), copy.path().join(name)).unwrap();
    }
    let database = Connection::open(copy.path().join("profilerd.db")).unwrap();
    let answer = database.query_row("PRAGMA integrity_check", [], |row| row.get(0));
    answer.unwrap()
}
