//! Protocol tests: the OAP client against a fake OAP that misbehaves on demand.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fake_oap;

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fake_oap::{DEADLINE, Fake, Fault, State, original};
use profiler_daemon::model::clock::unix_ms_now;
use profiler_daemon::model::{
    ActiveRequest, Binding, Counter, Coverage, FinishedRequest, Pid, ProcessKey, ProfiledSegment,
    RequestId, Service, Snapshot, TaskId, TaskSlot, Tid, WallClock,
};
use profiler_daemon::oap::{DeliveryStats, OapClient, OapConfig, OapEvent, OapHandle, QueueRoom};
use profiler_proto::skywalking as pb;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

/// The next event other than the word that the OAP has answered, which may come at any time.
async fn next(events: &mut Receiver<OapEvent>) -> OapEvent {
    loop {
        let event = timeout(DEADLINE, events.recv()).await;
        let event = event.expect("no event came").expect("the client has ended");
        if event != OapEvent::Connected {
            return event;
        }
    }
}

fn service() -> Service {
    Service {
        name: "shop".to_owned(),
        instance: "one".to_owned(),
    }
}

fn client(address: SocketAddr) -> (OapHandle, Receiver<OapEvent>) {
    let (handle, events) = OapClient::spawn(OapConfig {
        poll_interval: Duration::from_millis(10),
        heartbeat_interval: Duration::from_millis(10),
        retry: (Duration::from_millis(5), Duration::from_millis(20)),
        batch_snapshots: 100,
        ..OapConfig::new(vec![address.to_string()])
    });
    handle.set_services([(service(), Arc::default(), String::new())]);
    (handle, events)
}

/// Room for so many snapshots.
fn queue(snapshots: usize) -> QueueRoom {
    QueueRoom {
        snapshots,
        ..QueueRoom::default()
    }
}

fn segment(id: &str, snapshots: i32) -> ProfiledSegment {
    let start_unix_ms = unix_ms_now();
    let stack: Arc<[Arc<str>]> = ["main", "leaf"].into_iter().map(Arc::from).collect();
    let task_id = TaskId("task".to_owned());
    ProfiledSegment {
        task_id: task_id.clone(),
        service: service(),
        request: FinishedRequest {
            request: ActiveRequest {
                id: RequestId(1),
                slot: TaskSlot(0),
                task_id,
                process: ProcessKey {
                    pid: Pid(1),
                    start_ticks: 0,
                },
                service: service(),
                tid: Tid(1),
                fd: 5,
                start_ktime_ns: 0,
                clock: WallClock::from_readings(0, 0),
                endpoint: "/".to_owned(),
                method: "GET".to_owned(),
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
        end_unix_ms: start_unix_ms + i64::from(snapshots) * 10,
        tags: Vec::new(),
        binding: Binding::Own,
        snapshots: (0..snapshots)
            .map(|sequence| Snapshot {
                sequence,
                unix_ms: start_unix_ms + i64::from(sequence) * 10,
                stack: Arc::clone(&stack),
            })
            .collect(),
    }
}

fn command(task_id: &str, create_ms: i64, changes: &[(&str, &str)]) -> pb::Command {
    let now = unix_ms_now().to_string();
    let create = create_ms.to_string();
    let mut args = vec![
        ("SerialNumber", task_id),
        ("TaskId", task_id),
        ("EndpointName", "/"),
        ("Duration", "5"),
        ("MinDurationThreshold", "0"),
        ("DumpPeriod", "10"),
        ("MaxSamplingCount", "5"),
        ("StartTime", now.as_str()),
        ("CreateTime", create.as_str()),
    ];
    for &(key, value) in changes {
        args.retain(|&(known, _)| known != key);
        args.push((key, value));
    }
    pb::Command {
        command: "ProfileTaskQuery".to_owned(),
        args: args
            .into_iter()
            .map(|(key, value)| pb::KeyStringValuePair {
                key: key.to_owned(),
                value: value.to_owned(),
            })
            .collect(),
    }
}

/// Reports segments of these names with so many snapshots each, and the end of their task; what has become of them when
/// the OAP has the end.
async fn deliver(fake: &Fake, segments: &[(&str, i32)]) -> (OapHandle, DeliveryStats) {
    let (address, _server) = fake.serve();
    let (handle, _events) = client(address);
    for &(name, snapshots) in segments {
        handle.report(segment(name, snapshots)).unwrap();
    }
    handle.finish(TaskId("task".to_owned()), service(), Coverage::default());
    // The OAP has it before the client has the OAP's answer.
    let stats = || handle.delivery(&TaskId("task".to_owned()));
    fake.until("the end", |_| stats().finished == 1).await;
    let stats = stats();
    (handle, stats)
}

/// Checks that no segment and no snapshot was sent under a key that may be in the OAP; returns how many snapshots it has of
/// each segment that it has, by segment.
fn arrived(state: &State) -> BTreeMap<&str, usize> {
    let ids = state.segments.iter().map(|s| s.trace_segment_id.as_str());
    let mut snapshots: BTreeMap<&str, usize> = ids.map(|id| (id, 0)).collect();
    assert_eq!(snapshots.len(), state.segments.len());
    let key = |s: &pb::ThreadSnapshot| (s.trace_segment_id.clone(), s.sequence);
    let keys: HashSet<_> = state.snapshots.iter().map(key).collect();
    assert_eq!(keys.len(), state.snapshots.len());
    for snapshot in &state.snapshots {
        *snapshots.get_mut(&*snapshot.trace_segment_id).unwrap() += 1;
    }
    snapshots
}

/// Check that snapshots that may have arrived are not sent again where the first of their request has, that the others
/// are, and that the losses are counted.
#[tokio::test]
async fn no_snapshot_is_sent_twice() {
    let fake = Fake::default();
    let whole = Fault::After(usize::MAX);
    fake.with(|state| state.faults = vec![Fault::After(3), Fault::Busy, Fault::After(7), whole]);
    let (_handle, stats) = deliver(&fake, &[("s", 500)]).await;
    assert_eq!(stats.snapshots_sent + stats.snapshots_lost, 500);
    assert_eq!(stats.snapshots_queued, 0);
    assert!((10..=200).contains(&stats.snapshots_lost), "{stats:?}");
    assert_eq!(stats.requests_incomplete, 1);
    fake.with(|state| {
        let arrived = arrived(state);
        assert_eq!(arrived.keys().collect::<Vec<_>>(), [&"s"]);
        assert!(arrived["s"] as u64 >= stats.snapshots_sent);
    });
}

/// Check that a request whose first snapshot may be lost is sent again, all of it and under an id of its own, which says
/// what may be there as well; that nothing counts as lost then; and that there is an end to it.
#[tokio::test]
async fn a_request_without_its_first_snapshot_is_sent_again() {
    let fake = Fake::default();
    fake.with(|state| state.faults = vec![Fault::Dies, Fault::Busy, Fault::After(2)]);
    let (_handle, stats) = deliver(&fake, &[("s", 40)]).await;
    let expected = DeliveryStats {
        snapshots_sent: 40,
        segments_sent: 3,
        finished: 1,
        ..DeliveryStats::default()
    };
    assert_eq!(stats, expected);
    fake.with(|state| {
        let expected = BTreeMap::from([("s", 2), ("s.2", 0), ("s.3", 40)]);
        assert_eq!(arrived(state), expected);
        let tags = &state.segments[2].spans[0].tags;
        let tag = tags
            .iter()
            .find(|tag| tag.key == "profilerd.sent_again_after");
        assert_eq!(tag.unwrap().value, "s.2");
    });

    let fake = Fake::default();
    fake.with(|state| state.faults = vec![Fault::Dies; 9]);
    let (_handle, stats) = deliver(&fake, &[("s", 40)]).await;
    assert_eq!((stats.snapshots_lost, stats.requests_incomplete), (40, 1));
    fake.with(|state| assert_eq!(state.faults.len(), 5));
}

/// Check that segments an OAP took and died with are sent again, under other ids, before any of their snapshots, and that
/// nothing counts as lost.
#[tokio::test]
async fn a_segment_that_went_down_with_its_oap_is_sent_again() {
    let fake = Fake::default();
    fake.with(|state| state.segment_faults = vec![Fault::Dies, Fault::Busy, Fault::Dies]);
    let (_handle, stats) = deliver(&fake, &[("a", 4), ("b", 4), ("c", 4)]).await;
    fake.with(|state| {
        let arrived = arrived(state);
        let names: Vec<_> = arrived.keys().copied().map(original).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert!(arrived.values().all(|&snapshots| snapshots == 4));
        assert!(arrived.contains_key("a.3"), "{arrived:?}");
    });
    let expected = DeliveryStats {
        snapshots_sent: 12,
        segments_sent: 3,
        finished: 1,
        ..DeliveryStats::default()
    };
    assert_eq!(stats, expected);
}

/// Check that a segment that no OAP takes costs itself and its snapshots, which are not sent, and no other
/// request; and that the loss is counted.
#[tokio::test]
async fn a_segment_that_is_refused_costs_itself() {
    let fake = Fake::default();
    fake.with(|state| state.poison = Some("b".to_owned()));
    let (handle, stats) = deliver(&fake, &[("a", 4), ("b", 4), ("c", 4)]).await;
    fake.with(|state| {
        let arrived = arrived(state);
        let shown = arrived.iter().filter(|&(_, &snapshots)| snapshots == 4);
        let shown: Vec<_> = shown.map(|(id, _)| original(id)).collect();
        assert_eq!(shown, ["a", "c"]);
        assert!(arrived.keys().all(|id| original(id) != "b"));
    });
    let expected = DeliveryStats {
        snapshots_sent: 8,
        snapshots_lost: 4,
        segments_sent: 2,
        segments_lost: 1,
        requests_incomplete: 1,
        finished: 1,
        ..DeliveryStats::default()
    };
    assert_eq!(stats, expected);
    let mut coverage = Coverage::default();
    handle.add_delivery(&TaskId("task".to_owned()), &service(), &mut coverage);
    assert_eq!(coverage.get(Counter::RequestsIncomplete), 1);
}

/// Check that what an absent OAP leaves no room for in memory goes to disk, that a stop leaves the rest
/// there, and that the next start delivers everything once and in order.
#[tokio::test]
async fn an_absent_oap_gets_everything_after_a_restart() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let folder = tempfile::tempdir().unwrap();
    let config = || OapConfig {
        retry: (Duration::from_millis(5), Duration::from_millis(20)),
        queue: queue(10),
        spool: Some((folder.path().to_owned(), 1 << 20)),
        ..OapConfig::new(vec![address.to_string()])
    };
    let (handle, _events) = OapClient::spawn(config());
    let names: Vec<String> = (0..9).map(|n| format!("s{n}")).collect();
    for name in &names {
        handle.report(segment(name, 4)).unwrap();
    }
    handle.finish(TaskId("task".to_owned()), service(), Coverage::default());
    assert_eq!(handle.shutdown(Duration::from_millis(50)).await, 0);

    let fake = Fake::default();
    let _server = fake.serve_at(address, None);
    let (handle, _events) = OapClient::spawn(config());
    handle.report(segment("after", 4)).unwrap();
    let expected = || names.iter().map(String::as_str).chain(["after"]);
    fake.until("all snapshots", |state| state.snapshots.len() >= 40)
        .await;
    fake.until("the end of the task", |state| !state.finishes.is_empty())
        .await;
    assert_eq!(handle.shutdown(DEADLINE).await, 0);
    fake.with(|state| {
        let segments = state.segments.iter().map(|s| s.trace_segment_id.as_str());
        assert!(segments.eq(expected()));
        let keys = state
            .snapshots
            .iter()
            .map(|s| (s.trace_segment_id.as_str(), s.sequence));
        let all = expected().flat_map(|name| (0..4).map(move |sequence| (name, sequence)));
        assert!(keys.eq(all));
    });
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Check that the oldest stays and the newest is refused when memory and disk are full.
#[tokio::test]
async fn a_full_disk_refuses_the_newest() {
    let folder = tempfile::tempdir().unwrap();
    let (handle, _events) = OapClient::spawn(OapConfig {
        queue: queue(4),
        spool: Some((folder.path().to_owned(), 1000)),
        ..OapConfig::new(vec!["127.0.0.1:1".to_owned()])
    });
    let results: Vec<_> = (0..9)
        .map(|n| handle.report(segment(&n.to_string(), 4)))
        .collect();
    let refused = results.iter().position(Result::is_err).unwrap();
    assert!(
        refused > 1 && results[refused..].iter().all(Result::is_err),
        "{results:?}"
    );
    let stats = handle.delivery(&TaskId("task".to_owned()));
    assert_eq!(stats.snapshots_queued, 4 * refused as u64);
    assert_eq!(stats.snapshots_lost, 4 * (9 - refused) as u64);
}

/// Check that segments come before their snapshots, snapshots in order, and the end after all.
#[tokio::test]
async fn messages_come_in_order() {
    let fake = Fake::default();
    let (address, _server) = fake.serve();
    let (handle, _events) = client(address);
    handle.report(segment("a", 250)).unwrap();
    handle.report(segment("b", 1)).unwrap();
    handle.finish(TaskId("task".to_owned()), service(), Coverage::default());
    fake.until("the end", |state| !state.finishes.is_empty())
        .await;
    fake.with(|state| {
        let rows = state.snapshots.iter();
        let rows: Vec<_> = rows
            .map(|s| (s.trace_segment_id.as_str(), s.sequence))
            .collect();
        let expected: Vec<_> = (0..250).map(|i| ("a", i)).chain([("b", 0)]).collect();
        assert_eq!(rows, expected);
        assert_eq!(state.finishes[0].task_id, "task");
        assert_eq!(state.finishes[0].service_instance, "one");
        let stack = state.snapshots[0].stack.clone().unwrap();
        assert_eq!(stack.code_signatures, ["main", "leaf"]);
    });
    assert_eq!(
        handle.delivery(&TaskId("task".to_owned())).snapshots_sent,
        251
    );
}

/// Check that an OAP that is busy for long costs nothing: what it turns away is sent again, once, and in order.
#[tokio::test]
async fn a_busy_oap_costs_nothing() {
    let fake = Fake::default();
    fake.with(|state| state.faults = vec![Fault::Busy; 30]);
    let (address, _server) = fake.serve();
    let (handle, _events) = client(address);
    handle.report(segment("a", 5)).unwrap();
    handle.report(segment("b", 100)).unwrap();
    fake.until("all snapshots", |state| state.snapshots.len() >= 105)
        .await;
    assert_eq!(handle.shutdown(DEADLINE).await, 0);
    let stats = handle.delivery(&TaskId("task".to_owned()));
    assert_eq!((stats.snapshots_sent, stats.snapshots_lost), (105, 0));
    fake.with(|state| {
        let keys = state.snapshots.iter();
        let keys = keys.map(|s| (s.trace_segment_id.as_str(), s.sequence));
        assert!(keys.eq((0..5).map(|n| ("a", n)).chain((0..100).map(|n| ("b", n)))));
    });
}

/// Check lastCommandTime: -1 first, then the newest creation time, also of a refused task.
#[tokio::test]
async fn last_command_time_follows_the_tasks() {
    let fake = Fake::default();
    let now = unix_ms_now();
    fake.with(|state| {
        state.answers = vec![
            vec![command("one", now - 10, &[])],
            vec![command("two", now, &[("Duration", "99")])],
            Vec::new(),
        ];
    });
    let (address, _server) = fake.serve();
    let (_handle, mut events) = client(address);
    fake.until("three queries", |state| state.queries.len() >= 3)
        .await;
    fake.with(|state| {
        let times: Vec<i64> = state.queries.iter().map(|q| q.last_command_time).collect();
        assert_eq!(times[..3], [-1, now - 10, now]);
        assert_eq!(state.queries[0].service, "shop");
        assert_eq!(state.queries[0].service_instance, "one");
    });
    let OapEvent::Task(task) = next(&mut events).await else {
        panic!("no task");
    };
    assert_eq!(task.task_id.0, "one");
    let OapEvent::TaskRefused {
        task_id,
        service: to,
        reason,
    } = next(&mut events).await
    else {
        panic!("not refused");
    };
    assert_eq!(task_id, Some(TaskId("two".to_owned())));
    assert_eq!(to, service());
    assert!(
        reason.contains("two") && reason.contains("1 to 15"),
        "{reason}"
    );
}

/// Check that an answer of more than the 4 MiB of a message costs itself only: the next one is taken.
#[tokio::test]
async fn an_oversized_answer_costs_itself() {
    let fake = Fake::default();
    let now = unix_ms_now();
    let long = "x".repeat(5 << 20);
    fake.with(|state| {
        state.answers = vec![
            vec![command("one", now - 10, &[("EndpointName", &long)])],
            vec![command("two", now, &[])],
        ];
    });
    let (address, _server) = fake.serve();
    let (_handle, mut events) = client(address);
    let OapEvent::Task(task) = next(&mut events).await else {
        panic!("no task");
    };
    assert_eq!(task.task_id.0, "two");
}

/// Check that an OAP that does not look at lastCommandTime does not start a task twice.
#[tokio::test]
async fn a_task_that_is_sent_again_is_not_started_again() {
    let fake = Fake::default();
    let now = unix_ms_now();
    fake.with(|state| state.answers = vec![vec![command("one", now, &[])]]);
    let (address, _server) = fake.serve();
    let (_handle, mut events) = client(address);
    fake.until("ten queries", |state| state.queries.len() >= 10)
        .await;
    assert!(matches!(next(&mut events).await, OapEvent::Task(_)));
    let more = std::iter::from_fn(|| events.try_recv().ok());
    assert!(more.into_iter().all(|event| event == OapEvent::Connected));
}

/// Check that one instance speaks for its service until there is a task, that all of them get the task,
/// and that one the OAP has nothing but errors for holds up no other.
#[tokio::test]
async fn one_instance_asks_for_its_service() {
    const INSTANCES: usize = 20;
    const ROUNDS: usize = 5;
    let fake = Fake::default();
    let (address, _server) = fake.serve();
    let (handle, mut events) = client(address);
    let instance = |n: usize| Service {
        name: "shop".to_owned(),
        instance: n.to_string(),
    };
    let instances = || (0..INSTANCES).map(instance);
    handle.set_services(instances().map(|service| (service, Arc::default(), String::new())));
    let of = |state: &State, n: &str| {
        let queries = state.queries.iter();
        queries.filter(|q| q.service_instance == n).count()
    };
    fake.until("some rounds", |state| of(state, "0") >= ROUNDS)
        .await;
    fake.with(|state| {
        assert!((1..INSTANCES).all(|n| of(state, &n.to_string()) == 1));
        state.refused = Some("0".to_owned());
        state.answers = vec![vec![command("one", unix_ms_now(), &[])]];
    });
    let mut waiting: HashSet<Service> = instances().skip(1).collect();
    while !waiting.is_empty() {
        let OapEvent::Task(task) = next(&mut events).await else {
            panic!("no task");
        };
        assert!(waiting.remove(&task.service), "{:?} twice", task.service);
    }
}

/// Check that an OAP without profiling is asked once per connection, and hears the heartbeat.
#[tokio::test]
async fn an_oap_without_profiling_is_asked_once() {
    let fake = Fake::default();
    fake.with(|state| state.is_profiling_unknown = true);
    let (address, server) = fake.serve();
    let (_handle, mut events) = client(address);
    fake.until("ten heartbeats", |state| state.beats >= 10)
        .await;
    assert_eq!(fake.with(|state| state.queries.len()), 1);
    assert_eq!(events.recv().await, Some(OapEvent::Connected));
    server.abort();
}

/// Check that a question that is never answered holds up neither the questions of others, nor heartbeats, nor
/// the delivery, and does not cost the connection.
#[tokio::test]
async fn one_that_is_never_answered_holds_up_no_other() {
    let fake = Fake::default();
    fake.with(|state| state.unanswered = Some("one".to_owned()));
    let (address, _server) = fake.serve();
    let (handle, mut events) = OapClient::spawn(OapConfig {
        poll_interval: Duration::from_millis(10),
        heartbeat_interval: Duration::from_millis(10),
        call_timeout: Duration::from_millis(200),
        ..OapConfig::new(vec![address.to_string()])
    });
    let other = Service {
        name: "other".to_owned(),
        instance: "two".to_owned(),
    };
    let instances = [service(), other];
    handle.set_services(instances.map(|service| (service, Arc::default(), String::new())));
    handle.report(segment("a", 3)).unwrap();
    let of = |state: &State, instance: &str| {
        let queries = state.queries.iter();
        queries.filter(|q| q.service_instance == instance).count()
    };
    fake.until("a question given up and asked again", |state| {
        of(state, "one") >= 3
    })
    .await;
    fake.with(|state| {
        assert!(of(state, "two") > of(state, "one"));
        assert!(state.beats > of(state, "one"));
        assert_eq!(state.snapshots.len(), 3);
    });
    assert_eq!(events.recv().await, Some(OapEvent::Connected));
    assert!(events.try_recv().is_err());
}

/// Check that an OAP that takes longer for a stream than a call may last, but goes on taking, gets all of it.
#[tokio::test]
async fn a_slow_oap_gets_everything() {
    let fake = Fake::default();
    fake.with(|state| state.faults = vec![Fault::Slow(Duration::from_millis(10))]);
    let (address, _server) = fake.serve();
    let (handle, _events) = OapClient::spawn(OapConfig {
        call_timeout: Duration::from_secs(1),
        ..OapConfig::new(vec![address.to_string()])
    });
    // More than the windows of HTTP/2 hold, so that sending depends on taking.
    let mut slow = segment("slow", 200);
    let long: Arc<str> = Arc::from("x".repeat(40_000));
    for snapshot in &mut slow.snapshots {
        snapshot.stack = vec![Arc::clone(&long)].into();
    }
    handle.report(slow).unwrap();
    assert_eq!(handle.shutdown(DEADLINE).await, 0);
    let stats = handle.delivery(&TaskId("task".to_owned()));
    assert_eq!((stats.snapshots_sent, stats.snapshots_lost), (200, 0));
}

/// Check that an OAP whose clock differs is noticed by the tasks it creates.
#[tokio::test]
async fn a_clock_that_differs_is_noticed() {
    let fake = Fake::default();
    let ahead = unix_ms_now() + 90_000;
    fake.with(|state| state.answers = vec![vec![command("one", ahead, &[])]]);
    let (address, _server) = fake.serve();
    let (handle, mut events) = client(address);
    assert!(matches!(next(&mut events).await, OapEvent::Task(_)));
    let text = handle.clock_skew().unwrap();
    assert!(text.contains("s ahead of the clock of this host"), "{text}");
}

/// Check that tasks that were received before a restart are not received again, though their instance is
/// found only later, and that they are still known when it was gone for a while.
#[tokio::test]
async fn known_tasks_stay_known() {
    let fake = Fake::default();
    let now = unix_ms_now();
    fake.with(|state| state.answers = vec![vec![command("one", now, &[])]]);
    let (address, _server) = fake.serve();
    let config = OapConfig {
        poll_interval: Duration::from_millis(10),
        ..OapConfig::new(vec![address.to_string()])
    };
    let (first, mut events) = OapClient::spawn(config.clone());
    first.set_services([(service(), Arc::default(), String::new())]);
    let OapEvent::Task(task) = next(&mut events).await else {
        panic!("no task");
    };
    drop(first);

    fake.with(|state| state.queries.clear());
    let (handle, mut events) = OapClient::spawn(OapConfig {
        known_tasks: vec![task],
        ..config
    });
    let other = Service {
        name: "other".to_owned(),
        instance: "two".to_owned(),
    };
    let of = |state: &State, name: &str| state.queries.iter().filter(|q| q.service == name).count();
    for round in 1..=2 {
        handle.set_services([(other.clone(), Arc::default(), String::new())]);
        fake.until("the other's questions", |state| {
            of(state, "other") >= 3 * round
        })
        .await;
        handle.set_services([(service(), Arc::default(), String::new())]);
        fake.until("ours", |state| of(state, "shop") >= 3 * round)
            .await;
    }
    let ours = |state: &mut State| {
        state
            .queries
            .iter()
            .all(|q| q.service != "shop" || q.last_command_time == now)
    };
    assert!(fake.with(ours));
    let tasks = std::iter::from_fn(|| events.try_recv().ok());
    let tasks = tasks.filter_map(|event| match event {
        OapEvent::Task(task) => Some(task.service.name),
        _ => None,
    });
    assert_eq!(tasks.collect::<Vec<_>>(), ["other"]);
}
