//! Many threads that serve matching requests at the same time.
//!
//! With a minimum duration that no request reaches, every request is tracked and sampled from its head to
//! its end; this is the highest cost that requests can have. A task without a minimum duration soon has
//! its requests, and only counts from then on.

use std::time::Duration;

use anyhow::Result;
use profiler_test_support::{LocalServer, wait_until};

use crate::bench::load::{Load, Pace, hot_load, paced_server};
use crate::bench::procfs::{self, CpuMeter};
use crate::bench::side::{REQUESTS_PER_TASK, Tools};
use crate::bench::table::{Goal, Table};
use crate::command::step;
use crate::daemon::{Daemon, TaskRequest};
use crate::report::Report;

const SERVICE: &str = "bench-threads";
/// One of the server each, all of them busy all the time.
const THREADS: u32 = 200;
const RATE: f64 = 5000.0;
/// A little less than 200 / 5,000 s. Each dump period finds a thread in another block, which is the dearest:
/// a block that goes on is not read again.
const PACE: Pace = Pace {
    naps: 4,
    nap: Duration::from_micros(9000),
    spin: Duration::from_micros(50),
};
const DUMP_PERIOD_MS: u32 = 10;
/// What a recording takes, see [`Tools::recording`].
const RECORDED: f64 = 1000.0;
/// Longer than any request.
const NEVER_MS: u32 = 600_000;
/// From the last request until the daemon has counted it.
const COUNTED_DEADLINE: Duration = Duration::from_secs(30);

/// What becomes of a request whose endpoint matched: exactly one of these.
const FATES: &[&str] = &[
    "requests_profiled",
    "requests_without_stack",
    "requests_too_short",
    "requests_by_other_program",
    "requests_process_gone",
    "requests_samples_lost",
    "requests_below_threshold",
    "requests_over_limit",
    "requests_over_open_limit",
    "requests_unanswered",
    "requests_handed_off",
    "requests_interleaved",
    "requests_on_loop",
];
/// What becomes of a thread with an open request at a tick.
const OUTCOMES: &[&str] = &[
    "samples_on_cpu",
    "samples_off_cpu",
    "samples_unchanged",
    "samples_ring_full",
    "samples_raced",
];
/// Losses of requests and samples that would make the counts above too small.
const LOSSES: &[&str] = &[
    "request_events_lost",
    "bad_records",
    "samples_ring_full",
    "samples_raced",
    "samples_no_stack",
    "samples_queue_full",
    "ticks_late",
    "tags_full",
    "map_updates_failed",
];

/// Adds all figures.
pub(super) fn measure(tools: &Tools, duration: Duration, table: &mut Table) -> Result<()> {
    let server = paced_server(SERVICE, PACE)?;
    step("growth: many threads, no daemon");
    let bare = put_on(&server, duration)?;
    let name = format!("{THREADS} threads, no daemon: requests per second");
    table.add(name, bare.rate, "/s", Goal::None);
    for (what, min_duration_ms) in [("all followed", NEVER_MS), ("the first nine wanted", 0)] {
        step(&format!("growth: many threads, {what}"));
        let task = TaskRequest {
            service: SERVICE,
            endpoint: "GET:/hot",
            duration_minutes: 15,
            dump_period_ms: DUMP_PERIOD_MS,
            max_sampling_count: REQUESTS_PER_TASK,
            min_duration_ms,
        };
        let (mut daemon, task_id) = tools.armed_for(task)?;
        let cpu = CpuMeter::start(daemon.id())?;
        let load = put_on(&server, duration)?;
        let cpu_percent = cpu.percent()?;
        let rss_mb = procfs::rss_mb(daemon.id())?;
        let report = wait_until_counted(&mut daemon, &task_id)?;
        let of = |it: &str| format!("{THREADS} threads, {what}: {it}");
        let rate = load.rate;
        table.add(of("requests per second"), rate, "/s", Goal::AtLeast(RATE));
        table.add(of("daemon CPU"), cpu_percent, "%", Goal::AtMost(50.0));
        table.add(of("resident memory"), rss_mb, "MB", Goal::AtMost(80.0));
        add_counts(&report, &load, of, table);
    }
    burst(tools, &server, duration, table)
}

/// As many requests as a recording may have, all wanted, in the fifth of a second in which they come: nothing
/// of them is thrown away before it is unwound.
fn burst(tools: &Tools, server: &LocalServer, duration: Duration, table: &mut Table) -> Result<()> {
    step("growth: many threads, a thousand requests wanted");
    let recording = tools.recording(SERVICE, "GET:/hot", &[])?;
    put_on(server, duration)?;
    let report = recording.full_report()?;
    let of = |it: &str| format!("{THREADS} threads, a thousand wanted: {it}");
    let profiled = report.counter("requests_profiled");
    let name = of("requests profiled");
    table.add(name, profiled as f64, "", Goal::AtLeast(RECORDED));
    let expected = report.counter("periods_expected");
    let name = format!("dump periods with a snapshot, of {expected}");
    let share = report.share_of_periods();
    table.add(of(&name), share, "", Goal::AtLeast(0.98));
    add_losses(&report, of, table);
    Ok(())
}

fn put_on(server: &LocalServer, duration: Duration) -> Result<Load> {
    hot_load(server.address(), "/hot", THREADS, duration)
}

/// The counts once they do not move any more.
fn wait_until_counted(daemon: &mut Daemon, task_id: &str) -> Result<Report> {
    let mut before = None;
    wait_until("the last request to be counted", COUNTED_DEADLINE, || {
        daemon.still_running()?;
        // Longer than from one publication of the counts to the next.
        std::thread::sleep(Duration::from_millis(1500));
        let report = Report::from_json(&daemon.result(task_id)?)?;
        let matched = report.counter("requests_matched");
        let is_still =
            matched > 0 && before.replace(report.coverage.clone()) == Some(report.coverage.clone());
        Ok(is_still.then_some(report))
    })
}

fn add_counts(report: &Report, load: &Load, of: impl Fn(&str) -> String, table: &mut Table) {
    let sum = |names: &[&str]| names.iter().map(|name| report.counter(name)).sum::<u64>();
    let matched = report.counter("requests_matched");
    // wrk counts answers; what it still waited for at its end was seen as well.
    let unseen = load.requests.saturating_sub(matched);
    let name = of("answers whose request was not seen");
    table.add(name, unseen as f64, "", Goal::AtMost(0.0));
    let name = format!("of {matched} requests, those without a counter");
    let uncounted = matched.abs_diff(sum(FATES));
    table.add(of(&name), uncounted as f64, "", Goal::AtMost(0.0));
    for name in FATES {
        let count = report.counter(name);
        if count > 0 {
            table.add(of(name), count as f64, "", Goal::None);
        }
    }
    add_losses(report, &of, table);
    let followed = report.counter("requests_below_threshold");
    if followed > 0 {
        let least = (PACE.nap + PACE.spin) * PACE.naps;
        let periods = followed as f64 * least.as_secs_f64() * 1000.0 / f64::from(DUMP_PERIOD_MS);
        let name = of("samples and their losses / the dump periods that requests last at least");
        let share = sum(OUTCOMES) as f64 / periods;
        table.add(name, share, "", Goal::AtLeast(1.0));
    }
}

/// Every loss that moved.
fn add_losses(report: &Report, of: impl Fn(&str) -> String, table: &mut Table) {
    for name in LOSSES {
        let count = report.counter(name);
        if count > 0 {
            table.add(of(name), count as f64, "", Goal::None);
        }
    }
}
