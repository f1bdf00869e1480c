//! `cargo bench -p profiler-daemon --bench oap`: what an OAP costs the daemon. The OAP is an embedded one in
//! a process of its own; only this process is measured.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on fails")]

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use profiler_daemon::embedded::EmbeddedOap;
use profiler_daemon::embedded::task::TaskRequest;
use profiler_daemon::model::clock::unix_ms_now;
use profiler_daemon::model::{
    ActiveRequest, Binding, Coverage, FinishedRequest, Pid, ProcessKey, ProfiledSegment, RequestId,
    Service, Snapshot, TaskId, TaskSlot, Tid, WallClock,
};
use profiler_daemon::oap::{OapClient, OapConfig, OapEvent};

const SERVICES: usize = 1_000;
/// Registration is over by then.
const SETTLE: Duration = Duration::from_secs(30);
/// A round of heartbeats, and one and a half of queries.
const WATCH: Duration = Duration::from_secs(30);
const SNAPSHOTS: i32 = 12_000;
const FRAMES: usize = 100;
/// Stacks that differ, in turn.
const STACKS: usize = 500;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    if std::env::args().any(|argument| argument == "--oap") {
        return runtime.block_on(serve());
    }
    let mut oap = Command::new(std::env::current_exe().unwrap())
        .arg("--oap")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(oap.stdout.take().unwrap()).lines();
    let address = lines.next().unwrap().unwrap();
    runtime.block_on(measure(&address));
    end(oap);
}

/// Until the standard input closes.
async fn serve() {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let oap = EmbeddedOap::start(any).await.unwrap();
    let request = TaskRequest {
        service: name(0),
        endpoint: "/".to_owned(),
        start_ms: 0,
        duration_minutes: 15,
        min_duration_threshold_ms: 0,
        dump_period_ms: 10,
        max_sampling_count: 5,
    };
    oap.store().create_task(request, unix_ms_now()).unwrap();
    println!("{}", oap.local_addr());
    std::io::stdout().flush().unwrap();
    tokio::task::spawn_blocking(|| std::io::stdin().lines().count())
        .await
        .unwrap();
}

fn end(mut oap: Child) {
    drop(oap.stdin.take());
    oap.wait().unwrap();
}

fn name(n: usize) -> String {
    format!("service-{n}")
}

async fn measure(oap: &str) {
    let (handle, mut events) = OapClient::spawn(OapConfig {
        poll_interval: Duration::from_secs(2),
        ..OapConfig::new(vec![oap.to_owned()])
    });
    let services = (0..SERVICES).map(|n| Service {
        name: name(n),
        instance: "host:1".to_owned(),
    });
    handle.set_services(services.map(|service| (service, Arc::default(), String::new())));
    let task = loop {
        if let Some(OapEvent::Task(task)) = events.recv().await {
            break task;
        }
    };
    tokio::time::sleep(SETTLE).await;
    let before = cpu_time();
    tokio::time::sleep(WATCH).await;
    let percent = (cpu_time() - before).as_secs_f64() / WATCH.as_secs_f64() * 100.0;
    println!("{SERVICES} services registered and polled   {percent:.2} % of a core   goal <= 1");

    let start = Instant::now();
    handle
        .report(segment(&task.task_id, &task.service))
        .unwrap();
    while handle.delivery(&task.task_id).snapshots_sent < u64::from(SNAPSHOTS.unsigned_abs()) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{SNAPSHOTS} snapshots of {FRAMES} frames delivered   {seconds:.2} s   goal <= 2");
}

/// User and system time of this process.
fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let time = |time: nix::sys::time::TimeVal| {
        let micros = time.tv_sec() * 1_000_000 + time.tv_usec();
        Duration::from_micros(micros.unsigned_abs())
    };
    time(usage.user_time()) + time(usage.system_time())
}

fn segment(task_id: &TaskId, service: &Service) -> ProfiledSegment {
    let start_unix_ms = unix_ms_now();
    let stacks: Vec<Arc<[Arc<str>]>> = (0..STACKS)
        .map(|stack| {
            let frame = |depth| {
                Arc::from(format!(
                    "module.function_{depth}_{}:{depth}",
                    stack % (depth + 1)
                ))
            };
            (0..FRAMES).map(frame).collect()
        })
        .collect();
    ProfiledSegment {
        task_id: task_id.clone(),
        service: service.clone(),
        tags: Vec::new(),
        binding: Binding::Own,
        request: FinishedRequest {
            request: ActiveRequest {
                id: RequestId(1),
                slot: TaskSlot(0),
                task_id: task_id.clone(),
                process: ProcessKey {
                    pid: Pid(1),
                    start_ticks: 0,
                },
                service: service.clone(),
                tid: Tid(1),
                fd: 5,
                start_ktime_ns: 0,
                clock: WallClock::from_readings(0, 0),
                endpoint: "/".to_owned(),
                method: "GET".to_owned(),
                path: "/".to_owned(),
                host: None,
                segment_id: "segment".to_owned(),
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
        end_unix_ms: start_unix_ms + i64::from(SNAPSHOTS) * 10,
        snapshots: (0..SNAPSHOTS)
            .map(|sequence| Snapshot {
                sequence,
                unix_ms: start_unix_ms + i64::from(sequence) * 10,
                stack: Arc::clone(&stacks[sequence as usize % STACKS]),
            })
            .collect(),
    }
}
