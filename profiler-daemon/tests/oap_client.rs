//! Protocol tests: the OAP client against the built-in OAP, over loopback gRPC.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::Duration;

use profiler_daemon::embedded::task::{Operation, TaskRequest, TaskState};
use profiler_daemon::embedded::{EmbeddedConfig, EmbeddedOap, TaskClient};
use profiler_daemon::model::clock::unix_ms_now;
use profiler_daemon::model::{
    ActiveRequest, Binding, BoundBy, Counter, Coverage, FinishedRequest, Pid, ProcessKey,
    ProfileTask, ProfiledSegment, RequestId, Service, Snapshot, TaskId, TaskSlot, Tid, WallClock,
};
use profiler_daemon::oap::{
    Contact, OapClient, OapConfig, OapEvent, OapHandle, ReportError, TokenSource,
};
use profiler_proto::profilerd as pb;
use tokio::sync::mpsc::Receiver;
use tokio::time::{sleep, timeout};

/// Longest wait for anything; reached only by a failing test.
const DEADLINE: Duration = Duration::from_secs(30);

fn service(instance: &str) -> Service {
    Service {
        name: "shop".to_owned(),
        instance: instance.to_owned(),
    }
}

fn request(service: &str, endpoint: &str) -> TaskRequest {
    TaskRequest {
        service: service.to_owned(),
        endpoint: endpoint.to_owned(),
        start_ms: 0,
        duration_minutes: 1,
        min_duration_threshold_ms: 0,
        dump_period_ms: 10,
        max_sampling_count: 5,
    }
}

/// A segment of a request that took 10 ms per stack.
fn segment(task: &TaskId, service: &Service, id: &str, stacks: &[&str]) -> ProfiledSegment {
    let start_unix_ms = unix_ms_now();
    let snapshots = stacks.iter().zip(0..).map(|(stack, sequence)| Snapshot {
        sequence,
        unix_ms: start_unix_ms + i64::from(sequence) * 10,
        stack: stack.split('>').map(Arc::from).collect(),
    });
    ProfiledSegment {
        task_id: task.clone(),
        service: service.clone(),
        request: FinishedRequest {
            request: ActiveRequest {
                id: RequestId(1),
                slot: TaskSlot(0),
                task_id: task.clone(),
                process: ProcessKey {
                    pid: Pid(1),
                    start_ticks: 0,
                },
                service: service.clone(),
                tid: Tid(1),
                fd: 5,
                start_ktime_ns: 0,
                clock: WallClock::from_readings(0, 0),
                endpoint: "POST:/".to_owned(),
                method: "POST".to_owned(),
                path: "/".to_owned(),
                host: None,
                segment_id: id.to_owned(),
                sw8: None,
            },
            end_ktime_ns: 0,
            status: Some(200),
            cut: None,
            reason: None,
            outbound: None,
            losses: Coverage::default(),
        },
        start_unix_ms,
        end_unix_ms: start_unix_ms + 10 * (stacks.len() as i64 - 1),
        tags: Vec::new(),
        binding: Binding::Own,
        snapshots: snapshots.collect(),
    }
}

async fn start() -> EmbeddedOap {
    EmbeddedOap::start("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap()
}

/// A configuration with short pauses.
fn config(oaps: &[&EmbeddedOap]) -> OapConfig {
    let backends = oaps.iter().map(|oap| oap.local_addr().to_string());
    OapConfig {
        poll_interval: Duration::from_millis(20),
        retry: (Duration::from_millis(10), Duration::from_millis(100)),
        connect_timeout: Duration::from_secs(5),
        ..OapConfig::new(backends.collect())
    }
}

fn client(config: OapConfig, instances: &[&str]) -> (OapHandle, Receiver<OapEvent>) {
    let (handle, events) = OapClient::spawn(config);
    serve(&handle, instances);
    (handle, events)
}

fn serve(handle: &OapHandle, instances: &[&str]) {
    let instances = instances.iter().map(|instance| {
        let properties = [("language".to_owned(), "python".to_owned())].into();
        (service(instance), properties, String::new())
    });
    handle.set_services(instances);
}

async fn next_event(events: &mut Receiver<OapEvent>) -> OapEvent {
    let event = timeout(DEADLINE, events.recv()).await;
    event.expect("no event came").expect("the client has ended")
}

/// The next task, past connection events.
async fn next_task(events: &mut Receiver<OapEvent>) -> ProfileTask {
    loop {
        match next_event(events).await {
            OapEvent::Task(task) => return task,
            OapEvent::TaskRefused { reason, .. } => panic!("{reason}"),
            OapEvent::TaskCancelled(_) | OapEvent::Connected | OapEvent::Disconnected { .. } => {}
        }
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, wait)
        .await
        .unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

/// Check that each instance of the service gets the task once, and no other instance does.
#[tokio::test]
async fn a_task_reaches_each_instance_once() {
    let oap = start().await;
    let (handle, mut events) = client(config(&[&oap]), &["one", "two"]);
    assert_eq!(next_event(&mut events).await, OapEvent::Connected);
    let now = unix_ms_now();
    let other = oap.store().create_task(request("other", "/"), now).unwrap();
    let task = oap
        .store()
        .create_task(request("shop", "POST:/"), now)
        .unwrap();
    let mut instances = vec![
        next_task(&mut events).await.service.instance,
        next_task(&mut events).await.service.instance,
    ];
    instances.sort();
    assert_eq!(instances, ["one", "two"]);

    // A third instance gets it as well; the two that have it do not get it again.
    serve(&handle, &["one", "two", "three"]);
    let received = next_task(&mut events).await;
    assert_eq!(received.service, service("three"));
    assert_eq!(received.task_id, TaskId(task.id.clone()));
    assert_eq!(received.endpoint, "POST:/");
    assert_eq!(received.duration, Duration::from_secs(60));
    assert_eq!(received.dump_period_ms, 10);
    assert_eq!(received.max_sampling_count, 5);
    assert_eq!(received.create_unix_ms, task.create_ms);
    let view = oap.store().find_task(&task.id, now).unwrap();
    assert_eq!(view.logs.len(), 3, "{:?}", view.logs);
    assert!(
        oap.store()
            .find_task(&other.id, now)
            .unwrap()
            .logs
            .is_empty()
    );
}

/// Check that the OAP knows the instances and their properties.
#[tokio::test]
async fn instances_report_their_properties() {
    let oap = start().await;
    let (_handle, _events) = client(config(&[&oap]), &["one"]);
    let known = || {
        let instances = oap.store().instances().unwrap();
        instances.iter().any(|(_, record)| {
            record
                .properties
                .get("language")
                .is_some_and(|l| l == "python")
        })
    };
    until("the properties", known).await;
    let mut tasks = TaskClient::connect(&oap.local_addr().to_string(), None)
        .await
        .unwrap();
    let instances = tasks.instances().await.unwrap();
    assert_eq!(instances[0].service, "shop");
    assert_eq!(instances[0].service_instance, "one");
}

/// Check the way of two requests to the result: segments, order, trees, coverage, end of the task.
#[tokio::test]
async fn a_profiled_request_becomes_a_result() {
    let oap = start().await;
    let (handle, mut events) = client(config(&[&oap]), &["one"]);
    let now = unix_ms_now();
    oap.store()
        .create_task(request("shop", "POST:/"), now)
        .unwrap();
    let task = next_task(&mut events).await;

    let mut coverage = Coverage::default();
    coverage.add(Counter::RequestsMatched, 1);
    handle.coverage(task.task_id.clone(), task.service.clone(), coverage.clone());
    let first = segment(
        &task.task_id,
        &task.service,
        "first",
        &["m>a", "m>a", "m>b"],
    );
    let second = segment(&task.task_id, &task.service, "second", &["m"; 2500]);
    handle.report(first).unwrap();
    handle.report(second).unwrap();
    coverage.add(Counter::RequestsMatched, 1);
    coverage.note("a note");
    handle.finish(task.task_id.clone(), task.service.clone(), coverage);

    let state = || oap.store().find_task("", unix_ms_now()).unwrap().state;
    until("the end of the task", || state() == TaskState::Finished).await;
    let stats = handle.delivery(&task.task_id);
    assert_eq!((stats.snapshots_sent, stats.snapshots_lost), (2503, 0));
    assert_eq!((stats.segments_sent, stats.snapshots_queued), (2, 0));

    let address = oap.local_addr().to_string();
    let mut tasks = TaskClient::connect(&address, None).await.unwrap();
    let report = tasks.result("").await.unwrap();
    assert_eq!(report.task.task_id, task.task_id.0);
    assert_eq!(report.task.duration_ms, 60_000);
    assert_eq!(report.coverage.counters["requests_matched"], 2);
    assert_eq!(report.coverage.counters["snapshots_sent"], 2503);
    assert_eq!(report.coverage.counters["snapshots_lost"], 0);
    assert_eq!(report.coverage.notes, ["a note"]);
    let ids: Vec<_> = report
        .segments
        .iter()
        .map(|s| s.segment_id.as_str())
        .collect();
    assert_eq!(ids, ["first", "second"]);
    let first = &report.segments[0];
    assert_eq!(first.status, Some(200));
    assert_eq!(first.endpoint, "POST:/");
    assert_eq!(first.duration_ms, 20);
    assert_eq!(first.trees.len(), 1);
    let root = &first.trees[0];
    assert_eq!((root.duration_ms, root.self_ms, root.count), (20, 10, 3));
    let sequences: Vec<i32> = report.segments[1]
        .snapshots
        .iter()
        .map(|s| s.sequence)
        .collect();
    assert_eq!(sequences, (0..2500).collect::<Vec<_>>());

    let detail = tasks.show("").await.unwrap();
    let operations: Vec<_> = detail
        .logs
        .iter()
        .map(|log| log.operation.as_str())
        .collect();
    assert_eq!(operations, ["EXECUTION_FINISHED", "NOTIFIED"]);
    assert_eq!((detail.segments, detail.snapshots), (2, 2503));
    assert_eq!(oap.store().losses(), Default::default());
}

/// Check that a stack deeper than decoders nest comes back whole.
#[tokio::test]
async fn a_deep_stack_comes_back_whole() {
    let oap = start().await;
    let (handle, mut events) = client(config(&[&oap]), &["one"]);
    oap.store()
        .create_task(request("shop", "/"), unix_ms_now())
        .unwrap();
    let task = next_task(&mut events).await;
    let deep: Vec<String> = (0..800).map(|depth| format!("frame {depth}")).collect();
    let deep = deep.join(">");
    let request = segment(&task.task_id, &task.service, "deep", &[&deep, &deep]);
    handle.report(request).unwrap();
    assert_eq!(handle.shutdown(DEADLINE).await, 0);
    let address = oap.local_addr().to_string();
    let mut tasks = TaskClient::connect(&address, None).await.unwrap();
    let report = tasks.result(&task.task_id.0).await.unwrap();
    assert_eq!(report.segments[0].snapshots[0].stack.len(), 800);
    let mut node = &report.segments[0].trees[0];
    let mut depth = 1;
    while let Some(child) = node.children.first() {
        node = child;
        depth += 1;
    }
    assert_eq!(depth, 800);
}

/// Check that the client comes back after a restart of the OAP, delivers what waited, and takes the
/// tasks of the new one.
#[tokio::test]
async fn the_client_comes_back_after_a_restart() {
    let oap = start().await;
    let address = oap.local_addr();
    let (handle, mut events) = client(config(&[&oap]), &["one"]);
    assert_eq!(next_event(&mut events).await, OapEvent::Connected);
    oap.shutdown().await;
    let event = next_event(&mut events).await;
    assert!(matches!(event, OapEvent::Disconnected { .. }), "{event:?}");

    let task_id = TaskId("not known yet".to_owned());
    let early = segment(&task_id, &service("one"), "early", &["m"; 10]);
    handle.report(early).unwrap();
    assert_eq!(handle.delivery(&task_id).snapshots_queued, 10);

    let oap = EmbeddedOap::start(address).await.unwrap();
    let record = oap
        .store()
        .create_task(request("shop", "/"), unix_ms_now())
        .unwrap();
    let task = next_task(&mut events).await;
    assert_eq!(task.task_id.0, record.id);
    until("delivery", || {
        handle.delivery(&task_id).snapshots_queued == 0
    })
    .await;
    assert_eq!(oap.store().losses().unknown_task, 10); // they came, for a task of the former OAP
    let instances = oap.store().instances().unwrap();
    assert!(!instances.is_empty());
}

/// Check that the second OAP is used when the first cannot be reached, and the first again after.
#[tokio::test]
async fn another_oap_takes_over() {
    let first = start().await;
    let second = start().await;
    let config = config(&[&first, &second]);
    let first_address = first.local_addr();
    let (_handle, mut events) = client(config, &["one"]);
    assert_eq!(next_event(&mut events).await, OapEvent::Connected);
    first.shutdown().await;
    let event = next_event(&mut events).await;
    assert!(matches!(event, OapEvent::Disconnected { .. }), "{event:?}");
    let task = request("shop", "/second");
    second.store().create_task(task, unix_ms_now()).unwrap();
    assert_eq!(next_task(&mut events).await.endpoint, "/second");
    let first = EmbeddedOap::start(first_address).await.unwrap();
    second.shutdown().await;
    let task = request("shop", "/first");
    first.store().create_task(task, unix_ms_now()).unwrap();
    assert_eq!(next_task(&mut events).await.endpoint, "/first");
}

/// An OAP that asks for this token, with a task.
async fn guarded_oap(token: &str) -> EmbeddedOap {
    let listen = "127.0.0.1:0".parse().unwrap();
    let oap = EmbeddedOap::start_with(EmbeddedConfig {
        token: Some(token.to_owned()),
        ..EmbeddedConfig::new(listen)
    })
    .await
    .unwrap();
    oap.store()
        .create_task(request("shop", "/"), unix_ms_now())
        .unwrap();
    oap
}

/// Check that the token is sent, and that a wrong one is told as the cause of the disconnection.
#[tokio::test]
async fn the_token_is_sent() {
    let oap = guarded_oap("tok123").await;
    let with = |token: &str| OapConfig {
        token: TokenSource::Given(token.to_owned()),
        ..config(&[&oap])
    };
    let (_wrong, mut events) = client(with("other"), &["one"]);
    loop {
        match next_event(&mut events).await {
            OapEvent::Disconnected { reason } => {
                assert!(reason.contains("refuses the token"), "{reason}");
                break;
            }
            OapEvent::Connected => {}
            event => panic!("{event:?}"),
        }
    }
    let (_right, mut events) = client(with("tok123"), &["one"]);
    next_task(&mut events).await;

    let address = oap.local_addr().to_string();
    let mut tasks = TaskClient::connect(&address, None).await.unwrap();
    let error = tasks.show("").await.unwrap_err().to_string();
    assert!(
        error.contains("refuses the call: give its token"),
        "{error}"
    );
    let mut tasks = TaskClient::connect(&address, Some("tok123")).await.unwrap();
    assert_eq!(tasks.show("").await.unwrap().logs.len(), 1);
}

/// Check that a refused client that gets the right token goes on at once, without a restart, and that one whose token's file
/// is not there speaks to no OAP and says why.
#[tokio::test]
async fn a_new_token_is_used_at_once() {
    let oap = guarded_oap("right").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let with_file = OapConfig {
        token: TokenSource::File(file.clone()),
        ..config(&[&oap])
    };
    let (handle, mut events) = client(with_file, &["one"]);
    let refused = async |events: &mut _, cause: &str| loop {
        if let OapEvent::Disconnected { reason } = next_event(events).await {
            assert!(reason.contains(cause), "{reason}");
            return;
        }
    };
    refused(&mut events, "oap.token_file: failed to read").await;
    assert_eq!(handle.observe().connections, 0);
    assert!(matches!(handle.contact(), Contact::Lost(_)));
    handle.set_token(TokenSource::Given("wrong".to_owned()));
    refused(&mut events, "refuses the token").await;
    std::fs::write(&file, "right\n").unwrap();
    handle.set_token(TokenSource::File(file));
    next_task(&mut events).await;
    assert_eq!(handle.contact(), Contact::Answered);
}

/// Check that a shutdown delivers what waits, and that without an OAP it gives up at the deadline.
#[tokio::test]
async fn a_shutdown_delivers_what_waits() {
    let oap = start().await;
    let (handle, mut events) = client(config(&[&oap]), &["one"]);
    oap.store()
        .create_task(request("shop", "/"), unix_ms_now())
        .unwrap();
    let task = next_task(&mut events).await;
    for i in 0..20 {
        let id = format!("s{i}");
        let request = segment(&task.task_id, &task.service, &id, &["m"; 50]);
        handle.report(request).unwrap();
    }
    handle.finish(
        task.task_id.clone(),
        task.service.clone(),
        Coverage::default(),
    );
    assert_eq!(handle.shutdown(DEADLINE).await, 0);
    let view = oap.store().find_task("", unix_ms_now()).unwrap();
    assert_eq!((view.segments, view.snapshots), (20, 1000));
    assert_eq!(view.logs.last().unwrap().operation, Operation::Finished);

    let gone = config(&[&oap]);
    oap.shutdown().await;
    let (handle, _events) = client(gone, &["one"]);
    let request = segment(&task.task_id, &task.service, "late", &["m"; 50]);
    handle.report(request).unwrap();
    assert_eq!(handle.shutdown(Duration::from_millis(50)).await, 50);
    assert_eq!(handle.delivery(&task.task_id).snapshots_lost, 50);
}

/// Check that the server refuses a task as OAP does, through the command line's client.
#[tokio::test]
async fn a_refused_task_says_why() {
    let oap = start().await;
    let address = oap.local_addr().to_string();
    let mut tasks = TaskClient::connect(&address, None).await.unwrap();
    let error = tasks.show("").await.unwrap_err().to_string();
    assert_eq!(error, "there is no task");
    let create = |dump_period_ms| pb::CreateTaskRequest {
        service: "shop".to_owned(),
        endpoint: "/".to_owned(),
        start_ms: 0,
        duration_minutes: 1,
        min_duration_threshold_ms: 0,
        dump_period_ms,
        max_sampling_count: 1,
    };
    let error = tasks.create(create(9)).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "dump period must be greater than or equals 10 milliseconds"
    );
    let task = tasks.create(create(10)).await.unwrap();
    let error = tasks.create(create(10)).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "current service already has monitor task execute at this time"
    );
    assert_eq!(tasks.list("", "").await.unwrap(), vec![task.clone()]);
    assert!(tasks.list("other", "").await.unwrap().is_empty());
    assert_eq!(
        tasks.show(&task.task_id[..10]).await.unwrap().task,
        Some(task)
    );
}

/// Check that a port in use is named, with what to do, and that health is served.
#[tokio::test]
async fn a_port_in_use_is_named() {
    let oap = start().await;
    let error = EmbeddedOap::start(oap.local_addr()).await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains(&oap.local_addr().to_string()), "{text}");
    assert!(text.contains("--listen"), "{text}");

    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", oap.local_addr()))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let answer = health
        .check(tonic_health::pb::HealthCheckRequest::default())
        .await
        .unwrap();
    assert_eq!(answer.into_inner().status, 1); // SERVING
}

/// Check that a snapshot that is larger than a message may be costs only itself.
#[tokio::test]
async fn an_oversized_snapshot_costs_itself() {
    let oap = start().await;
    let (handle, mut events) = client(config(&[&oap]), &["one"]);
    oap.store()
        .create_task(request("shop", "/"), unix_ms_now())
        .unwrap();
    let task = next_task(&mut events).await;
    let huge = "x".repeat(9 << 20);
    let of = |id, stacks: &[&str]| segment(&task.task_id, &task.service, id, stacks);
    handle.report(of("mixed", &["m", &huge, "m"])).unwrap();
    let error = handle.report(of("huge", &[&huge])).unwrap_err();
    assert_eq!(error, ReportError::Empty);
    assert_eq!(handle.shutdown(DEADLINE).await, 0);
    let stats = handle.delivery(&task.task_id);
    assert_eq!((stats.snapshots_sent, stats.snapshots_lost), (2, 2));
}

/// Check that of a request that belongs to an agent's segment only the snapshots are sent, beside others in
/// one delivery.
#[tokio::test]
async fn an_agents_segment_is_not_sent() {
    let oap = start().await;
    let (handle, mut events) = client(config(&[&oap]), &["one"]);
    let task = oap.store().create_task(request("shop", "/"), unix_ms_now());
    let task = TaskId(task.unwrap().id);
    next_task(&mut events).await;
    let theirs = |id: &str| {
        let mut segment = segment(&task, &service("one"), id, &["main>a", "main>b"]);
        segment.bind(id, None, BoundBy::Query);
        segment
    };
    handle.report(theirs("theirs-1")).unwrap();
    let own = segment(&task, &service("one"), "own", &["main>a"]);
    handle.report(own).unwrap();
    handle.report(theirs("theirs-2")).unwrap();
    until("five snapshots", || {
        handle.delivery(&task).snapshots_sent == 5
    })
    .await;
    let stats = handle.delivery(&task);
    assert_eq!((stats.segments_sent, stats.segments_lost), (1, 0));
    assert_eq!(stats.snapshots_lost, 0);
    // An id is bound once.
    assert!(handle.report(theirs("theirs-1")).is_err());
}
