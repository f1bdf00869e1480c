//! Turns an [`Observation`] into words, in the form of the coverage report.

use indicatif::HumanBytes;

use super::task_text::relative;
use crate::model::{
    CaptureObservation, Counter, DeliveryObservation, DiscoveryObservation, Observation,
    ProcessObservation, RingObservation, TaskObservation,
};
use crate::output::{clean, counts_text, periods_text, row};

/// What `profilerd status` prints: figures by subject, losses marked by `!` and left out if they are 0.
pub(super) fn text(observation: &Observation, now_ms: i64) -> String {
    let Observation {
        process,
        obstacles,
        tasks,
        capture,
        discovery,
        delivery,
        counters,
    } = observation;
    let mut text = process_text(process, now_ms);
    for obstacle in obstacles {
        text.push_str(&format!("! not ready: {}\n", clean(obstacle)));
    }
    text.push_str(&tasks_text(tasks));
    text.push_str(&capture_text(capture));
    text.push_str(&discovery_text(discovery));
    text.push_str(&delivery_text(delivery, now_ms));
    text.push_str(&counts_text(counters));
    if let Some(periods) = periods_text(counters) {
        text.push_str(&format!("  {periods}\n"));
    }
    let losses = Counter::all().filter(|counter| counter.is_loss());
    let absent = losses
        .filter(|counter| counters.get(counter.name()).is_none_or(|&n| n == 0))
        .count();
    text.push_str(&format!(
        "  counts of 0 are left out; {absent} kinds of loss are among them\n"
    ));
    text
}

fn process_text(process: &ProcessObservation, now_ms: i64) -> String {
    let started = relative(process.start_unix_ms, now_ms);
    let age_seconds = now_ms.saturating_sub(process.start_unix_ms).max(1) as f64 / 1e3;
    let share = process.cpu_seconds / age_seconds * 100.0;
    [
        format!("profilerd {}, started {started}\n", clean(&process.version)),
        "  daemon\n".to_owned(),
        row(
            format!("{:.2} s", process.cpu_seconds),
            false,
            &format!("CPU time since then, {share:.2} % of one CPU"),
        ),
        row(HumanBytes(process.resident_bytes), false, "resident memory"),
        row(process.open_fds, false, "open descriptors"),
    ]
    .concat()
}

fn tasks_text(tasks: &TaskObservation) -> String {
    let mut text = [
        "  tasks\n".to_owned(),
        row(tasks.live, false, "live"),
        row(tasks.waiting, false, "waiting for their start"),
        row(tasks.started, false, "started"),
    ]
    .concat();
    for (count, what) in [
        (tasks.refused, "refused, see the log"),
        (
            tasks.failed,
            "failed: the BPF programs could not be set up, see the log",
        ),
    ] {
        if count > 0 {
            text.push_str(&row(count, true, what));
        }
    }
    if tasks.period_factor > 1 {
        let what = "times the dump period that tasks ask for: the overhead guard acts, see the log";
        text.push_str(&row(tasks.period_factor, true, what));
    }
    text.push_str(&row(
        tasks.instances,
        false,
        &format!(
            "service instances of {} services, of {} processes",
            tasks.services, tasks.processes
        ),
    ));
    if tasks.processes_left_out > 0 {
        let what = "processes left out because they do not let themselves be read: see the log";
        text.push_str(&row(tasks.processes_left_out, true, what));
    }
    if tasks.processes_refused > 0 {
        let what = "processes that are not to be profiled, by their pod or the configuration";
        text.push_str(&row(tasks.processes_refused, false, what));
    }
    if tasks.requests_unbound > 0 {
        text.push_str(&row(
            tasks.requests_unbound,
            false,
            "profiled requests that wait for the segment of their agent",
        ));
    }
    text
}

/// Nothing while nobody has looked.
fn discovery_text(discovery: &DiscoveryObservation) -> String {
    if discovery.windows == 0 && discovery.failed == 0 && !discovery.is_looking {
        return String::new();
    }
    let state = if discovery.is_looking {
        ", one is open"
    } else {
        ""
    };
    let mut text = [
        "  endpoints\n".to_owned(),
        row(
            discovery.endpoints,
            false,
            &format!("known, from {} windows{state}", discovery.windows),
        ),
        row(discovery.requests, false, "requests seen in windows"),
    ]
    .concat();
    for (count, what) in [
        (
            discovery.failed,
            "windows failed: the BPF programs could not be set up, see the log",
        ),
        (
            discovery.unseen,
            "requests of windows not seen, or not to their end",
        ),
        (
            discovery.requests_over_limit,
            "requests under other endpoints: there are too many names",
        ),
        (
            discovery.endpoints_over_limit,
            "sights of endpoints not kept: there are too many",
        ),
    ] {
        if count > 0 {
            text.push_str(&row(count, true, what));
        }
    }
    text
}

fn capture_text(capture: &CaptureObservation) -> String {
    let (request, sample) = (capture.request_ring, capture.sample_ring);
    let mut text = "  kernel\n".to_owned();
    if capture.is_attached {
        let period_ms = capture.tick_period_ns as f64 / 1e6;
        text.push_str(&row("attached", false, "BPF programs"));
        text.push_str(&row(format!("{period_ms} ms"), false, "between two ticks"));
        text.push_str(&row(capture.open_requests, false, "matched requests open"));
        text.push_str(&row(
            capture.queued_samples,
            false,
            &format!(
                "samples that wait for unwinding, of at most {}",
                capture.queue_size
            ),
        ));
    } else {
        let what = "BPF programs; they are attached while a task is live";
        text.push_str(&row("detached", false, what));
    }
    for (ring, what) in [(request, "requests"), (sample, "samples")] {
        if capture.is_attached || ring.peak_bytes > 0 {
            text.push_str(&ring_row(ring, what));
        }
    }
    text
}

fn ring_row(ring: RingObservation, what: &str) -> String {
    let text = format!(
        "largest backlog in the ring of {what} during the last second; {} since the start, of {}",
        HumanBytes(ring.peak_bytes),
        HumanBytes(ring.size_bytes)
    );
    row(HumanBytes(ring.used_bytes), false, &text)
}

fn delivery_text(delivery: &DeliveryObservation, now_ms: i64) -> String {
    let answer = delivery.last_answer_unix_ms.map_or_else(
        || "it has not answered yet".to_owned(),
        |at| format!("it answered {}", relative(at, now_ms)),
    );
    let mut text = "  OAP\n".to_owned();
    let state = if delivery.is_connected {
        "connected"
    } else {
        "away"
    };
    text.push_str(&row(
        state,
        !delivery.is_connected,
        &format!("the OAP; {answer}"),
    ));
    let reconnects = delivery.connections.saturating_sub(1);
    text.push_str(&row(reconnects, false, "reconnects"));
    if delivery.clock_skew_ms != 0 {
        let skew = format!("{:+.1} s", delivery.clock_skew_ms as f64 / 1e3);
        text.push_str(&row(
            skew,
            true,
            "clock of the OAP minus clock of this host, at least",
        ));
    }
    text.push_str(&row(
        delivery.queued_snapshots,
        false,
        &format!(
            "snapshots that wait or are being sent, {} in memory",
            HumanBytes(delivery.queued_bytes)
        ),
    ));
    if delivery.spool_files > 0 {
        text.push_str(&row(
            HumanBytes(delivery.spool_bytes),
            false,
            &format!("in {} files of the spool", delivery.spool_files),
        ));
    }
    text.push_str(&row(
        delivery.segments_sent,
        false,
        "trace segments accepted by the OAP",
    ));
    if delivery.segments_lost > 0 {
        text.push_str(&row(
            delivery.segments_lost,
            true,
            "trace segments not delivered to the OAP, or without its confirmation",
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that what is in the way is told before everything else, on a line each.
    #[test]
    fn obstacles_are_told() {
        let observation = Observation {
            obstacles: vec!["no OAP has been reached\n yet".to_owned()],
            ..at_work()
        };
        let text = text(&observation, NOW_MS);
        let line = text.lines().find(|line| line.starts_with("! not ready: "));
        assert!(line.unwrap().ends_with(" yet"), "{text}");
    }

    const NOW_MS: i64 = 1_795_405_209_971;

    fn at_work() -> Observation {
        let mut counters = std::collections::BTreeMap::new();
        counters.insert("requests_seen".to_owned(), 12);
        counters.insert("requests_profiled".to_owned(), 5);
        counters.insert("periods_expected".to_owned(), 100);
        counters.insert("samples_ring_full".to_owned(), 3);
        counters.insert("stacks_cut".to_owned(), 0);
        counters.insert("snapshots_sent".to_owned(), 99);
        Observation {
            process: ProcessObservation {
                version: "0.1.0\u{1b}[2J".to_owned(),
                start_unix_ms: NOW_MS - 600_000,
                cpu_seconds: 1.2,
                resident_bytes: 37 << 20,
                open_fds: 31,
            },
            obstacles: Vec::new(),
            tasks: TaskObservation {
                live: 1,
                started: 2,
                refused: 1,
                period_factor: 4,
                processes: 40,
                processes_left_out: 1,
                instances: 3,
                services: 2,
                ..TaskObservation::default()
            },
            capture: CaptureObservation {
                is_attached: true,
                tick_period_ns: 10_000_000,
                open_requests: 4,
                queued_samples: 7,
                queue_size: 1024,
                request_ring: RingObservation {
                    used_bytes: 2048,
                    peak_bytes: 4096,
                    size_bytes: 1 << 20,
                },
                sample_ring: RingObservation::default(),
            },
            discovery: DiscoveryObservation::default(),
            delivery: DeliveryObservation {
                is_connected: true,
                connections: 2,
                last_answer_unix_ms: Some(NOW_MS - 2_000),
                clock_skew_ms: -3_500,
                segments_sent: 5,
                segments_lost: 1,
                spool_bytes: 3 << 20,
                spool_files: 2,
                ..DeliveryObservation::default()
            },
            counters,
        }
    }

    /// As it is told, with a word for the number of losses but those that have moved: it grows with the table.
    fn told(observation: &Observation, now_ms: i64, moved: usize) -> String {
        let losses = Counter::all().filter(|counter| counter.is_loss()).count();
        let kinds = format!("{} kinds", losses - moved);
        text(observation, now_ms).replace(&kinds, "all other kinds")
    }

    /// Check that a daemon at work shows its figures by subject, that losses are marked, that those of 0 are
    /// counted in the last line, and that no escape sequence gets through.
    #[test]
    fn a_daemon_at_work_in_words() {
        insta::assert_snapshot!(told(&at_work(), NOW_MS, 1), @r"
        profilerd 0.1.0�[2J, started 10 min ago
          daemon
              1.20 s  CPU time since then, 0.20 % of one CPU
           37.00 MiB  resident memory
                  31  open descriptors
          tasks
                   1  live
                   0  waiting for their start
                   2  started
        !          1  refused, see the log
        !          4  times the dump period that tasks ask for: the overhead guard acts, see the log
                   3  service instances of 2 services, of 40 processes
        !          1  processes left out because they do not let themselves be read: see the log
          kernel
            attached  BPF programs
               10 ms  between two ticks
                   4  matched requests open
                   7  samples that wait for unwinding, of at most 1024
            2.00 KiB  largest backlog in the ring of requests during the last second; 4.00 KiB since the start, of 1.00 MiB
                 0 B  largest backlog in the ring of samples during the last second; 0 B since the start, of 0 B
          OAP
           connected  the OAP; it answered 2 s ago
                   1  reconnects
        !     -3.5 s  clock of the OAP minus clock of this host, at least
                   0  snapshots that wait or are being sent, 0 B in memory
            3.00 MiB  in 2 files of the spool
                   5  trace segments accepted by the OAP
        !          1  trace segments not delivered to the OAP, or without its confirmation
          requests
                  12  request heads read by processes of the task's service
                   5  matched requests that were profiled and reported
          samples
        !          3  on-CPU samples lost to a full ring buffer
          delivery
                  99  snapshots accepted by the OAP
          0 of 100 dump periods of profiled requests have a snapshot (0.0 %)
          counts of 0 are left out; all other kinds of loss are among them
        ");
    }

    /// Check that a daemon at rest says so, and that an OAP that never answered is marked.
    #[test]
    fn a_daemon_at_rest_in_words() {
        insta::assert_snapshot!(told(&Observation::default(), 60_000, 0), @r"
        profilerd , started 60 s ago
          daemon
              0.00 s  CPU time since then, 0.00 % of one CPU
                 0 B  resident memory
                   0  open descriptors
          tasks
                   0  live
                   0  waiting for their start
                   0  started
                   0  service instances of 0 services, of 0 processes
          kernel
            detached  BPF programs; they are attached while a task is live
          OAP
        !       away  the OAP; it has not answered yet
                   0  reconnects
                   0  snapshots that wait or are being sent, 0 B in memory
                   0  trace segments accepted by the OAP
          counts of 0 are left out; all other kinds of loss are among them
        ");
    }
}
