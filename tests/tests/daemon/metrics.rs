//! `profilerd standalone --metrics` over the life of a task, and `profilerd status`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use profiler_daemon::model::Observation;
use profiler_tests::{HttpClient, free_port, needs_root, read_json, wait_until};

use crate::attached::Attached;
use crate::daemon::{Answer, Daemon};
use crate::recording::command;
use crate::server::sample_service;
use crate::{DEADLINE, TASK_DEADLINE};

/// What a scrape told: values by name and labels.
type Scrape = BTreeMap<String, f64>;

#[track_caller]
fn scrape(metrics: SocketAddr) -> Scrape {
    let mut client = HttpClient::connect(metrics, DEADLINE).unwrap();
    let answer = client.request("GET", "/metrics", "").unwrap();
    assert_eq!(answer.status, 200);
    let text = String::from_utf8(answer.body).unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// Waits for a scrape of which this holds.
#[track_caller]
fn wait_for(
    daemon: &Daemon,
    metrics: SocketAddr,
    what: &str,
    holds: fn(&Scrape) -> bool,
) -> Scrape {
    let mut last = Scrape::new();
    wait_until(what, TASK_DEADLINE, || {
        last = scrape(metrics);
        Ok(holds(&last).then(|| last.clone()))
    })
    .unwrap_or_else(|error| panic!("{error}: {last:#?}\n{}", daemon.log()))
}

/// Runs `profilerd status`.
fn status(args: &[&str]) -> Answer {
    Answer::of(&mut command(&[&["status"], args].concat()))
}

/// Check that a task shows while it lives, that its requests are counted once and stay counted after its
/// end, that nothing is attached then, and that `profilerd status` says the same in words.
#[test]
fn a_task_shows_while_it_lives_and_stays_counted() {
    needs_root!();
    const NAME: &str = "measured-sample";
    let service = sample_service(NAME);
    let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
    let address = metrics.to_string();
    let mut daemon = Daemon::standalone_measured(metrics);
    let rest = wait_for(&daemon, metrics, "the built-in OAP to answer", |now| {
        now["profilerd_oap_connected"] == 1.0 && now["profilerd_services"] >= 1.0
    });
    for name in [
        "profilerd_tasks_live",
        "profilerd_bpf_attached",
        "profilerd_tick_period_seconds",
        "profilerd_requests_seen_total",
        "profilerd_ring_used_bytes{ring=\"requests\"}",
    ] {
        assert_eq!(rest[name], 0.0, "{name}");
    }
    assert_eq!(
        rest["profilerd_ring_size_bytes{ring=\"requests\"}"],
        1048576.0
    );
    let text = status(&["--metrics", &address]);
    assert_eq!(text.code, Some(0), "{}", text.err);
    assert!(text.out.contains("detached  BPF programs"), "{}", text.out);

    daemon.create_task(NAME, "POST:/");
    let live = wait_for(&daemon, metrics, "the task", |now| {
        now["profilerd_bpf_attached"] == 1.0
    });
    assert_eq!(live["profilerd_tasks_live"], 1.0);
    assert_eq!(live["profilerd_tick_period_seconds"], 0.01);
    let mut client = service.connect().unwrap();
    client.send_raw(b"POST / HTTP/1.1\r\n\r\n").unwrap();
    wait_for(&daemon, metrics, "the open request", |now| {
        now["profilerd_requests_open"] == 1.0
    });
    assert_eq!(client.read_response().unwrap().0, 200);
    for _ in 0..2 {
        client.request("GET", "/fast", "").unwrap();
        client.request("POST", "/", "{}").unwrap();
    }
    let served = wait_for(&daemon, metrics, "three profiled requests", |now| {
        now["profilerd_requests_profiled_total"] == 3.0
            && now["profilerd_requests_seen_total"] == 5.0
            && now["profilerd_segments_sent_total"] == 3.0
    });
    assert!(
        served["profilerd_samples_off_cpu_total"] > 0.0,
        "{served:#?}"
    );
    assert!(served["profilerd_ring_peak_bytes{ring=\"requests\"}"] > 0.0);
    let text = status(&["--metrics", &address]);
    assert_eq!(text.code, Some(0), "{}", text.err);
    for part in [
        "attached  BPF programs",
        "5  request heads read by processes",
        "3  matched requests that were profiled and reported",
        "connected  the OAP; it answered",
    ] {
        assert!(text.out.contains(part), "{part}: {}", text.out);
    }

    let ended = wait_for(&daemon, metrics, "the task's end", |now| {
        now["profilerd_tasks_live"] == 0.0 && now["profilerd_task_ends_reported_total"] == 1.0
    });
    assert_eq!(ended["profilerd_bpf_attached"], 0.0);
    assert_eq!(ended["profilerd_ring_used_bytes{ring=\"requests\"}"], 0.0);
    assert_eq!(ended["profilerd_tasks_started_total"], 1.0);
    assert_eq!(Attached::of(daemon.id()), Attached::default());
    for (name, before) in &served {
        if name.ends_with("_total") {
            assert!(ended[name] >= *before, "{name} went back from {before}");
        }
    }
    assert_eq!(ended["profilerd_requests_profiled_total"], 3.0);
    let taken = ended["profilerd_snapshots_taken_total"];
    assert!(taken > 0.0);
    assert_eq!(ended["profilerd_snapshots_sent_total"], taken);

    let json = status(&["--metrics", &address, "--json"]);
    assert_eq!(json.code, Some(0), "{}", json.err);
    let observation: Observation = read_json(&json.out).unwrap();
    assert_eq!(observation.counters["requests_profiled"], 3);
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
    let text = status(&["--metrics", &address]);
    assert_eq!((text.code, text.out.as_str()), (Some(1), ""));
    let reason = format!("no profilerd answers at {address}");
    assert!(text.err.contains(&reason), "{}", text.err);
}

/// Check that an address for metrics that is taken ends the start, and that address and option are named.
#[test]
fn a_taken_address_ends_the_start() {
    needs_root!();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for mode in ["daemon", "standalone"] {
        let output = command(&[mode, "--metrics", &address])
            .env("PROFILERD_STATE_DIR", "none")
            .env("PROFILERD_STANDALONE_TOKEN_FILE", "none")
            .env("PROFILERD_OAP_BACKENDS", "127.0.0.1:1")
            .output()
            .unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{mode}: {err}");
        let reason = format!("failed to listen on {address} for metrics");
        assert!(
            err.contains(&reason) && err.contains("--metrics"),
            "{mode}: {err}"
        );
    }
}
