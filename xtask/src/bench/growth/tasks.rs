//! Tasks at once: the cost of each from its creation to its result, and what they leave behind.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use profiler_test_support::{LocalServer, wait_until};

use super::{SHORT, while_requests_come};
use crate::bench::load::paced_servers;
use crate::bench::procfs::{self, CpuMeter};
use crate::bench::side::{REQUESTS_PER_TASK, Tools};
use crate::bench::table::{Goal, Table};
use crate::command::step;
use crate::daemon::{Daemon, TaskRequest};
use crate::report::Report;

/// The most a daemon runs at once (`MAX_TASKS`).
const TASKS_MAX: usize = 16;
const COUNTS: &[usize] = &[1, 4, TASKS_MAX];
const DEADLINE: Duration = Duration::from_secs(30);
/// After their results the tasks have nothing to do for so long.
const IDLE: Duration = Duration::from_secs(5);
/// A task lasts a minute at least; it ends within seconds after that.
const END_DEADLINE: Duration = Duration::from_secs(75);

/// Results that the daemon's own OAP keeps in memory, and code that is used for the first time.
const LEFT_MB: f64 = 10.0;

/// Adds all figures.
pub(super) fn measure(tools: &Tools, table: &mut Table) -> Result<()> {
    let services: Vec<String> = (0..=TASKS_MAX).map(service).collect();
    // One program for all: what is read of its file is shared.
    let servers = paced_servers(&services, SHORT)?;
    let mut first = None;
    for &count in COUNTS {
        step(&format!("growth: {count} tasks at once"));
        let mut daemon = tools.daemon()?;
        wait_until("the daemon's own OAP to answer it", DEADLINE, || {
            daemon.still_running()?;
            Ok(daemon.log_text().contains("Connected").then_some(()))
        })?;
        let before = (procfs::open_fds(daemon.id())?, procfs::rss_mb(daemon.id())?);
        let round = Round::run(&mut daemon, &servers[..count])?;
        let first = *first.get_or_insert(round);
        add_round(count, round, first, table);
        if count == TASKS_MAX {
            ensure_one_more_is_refused(&mut daemon)?;
            after_the_end(&mut daemon, before, table)?;
        }
    }
    Ok(())
}

fn service(number: usize) -> String {
    format!("bench-task-{number}")
}

/// What some tasks took.
#[derive(Clone, Copy, Debug)]
struct Round {
    cpu_ms_per_task: f64,
    idle_percent: f64,
    rss_mb: f64,
    open_fds: usize,
}

impl Round {
    /// Tasks of all these servers, which get the requests that they may profile.
    fn run(daemon: &mut Daemon, servers: &[LocalServer]) -> Result<Self> {
        let cpu = CpuMeter::start(daemon.id())?;
        let create = |number: usize| daemon.create_task(task(&service(number)));
        let tasks: Vec<String> = (0..servers.len()).map(create).collect::<Result<_>>()?;
        wait_until("all tasks to be armed", DEADLINE, || {
            daemon.still_running()?;
            let are_armed = tasks.iter().all(|task_id| daemon.is_armed(task_id));
            Ok(are_armed.then_some(()))
        })?;
        while_requests_come(servers, || wait_for_results(daemon, &tasks))?;
        let used = cpu.used()?;
        let idle = CpuMeter::start(daemon.id())?;
        thread::sleep(IDLE);
        Ok(Self {
            cpu_ms_per_task: used.as_secs_f64() * 1000.0 / servers.len() as f64,
            idle_percent: idle.percent()?,
            rss_mb: procfs::rss_mb(daemon.id())?,
            open_fds: procfs::open_fds(daemon.id())?,
        })
    }
}

fn wait_for_results(daemon: &mut Daemon, tasks: &[String]) -> Result<()> {
    for task_id in tasks {
        wait_until("all requests in a result", DEADLINE, || {
            daemon.still_running()?;
            let report = Report::from_json(&daemon.result(task_id)?)?;
            let are_there = report.segments.len() == REQUESTS_PER_TASK as usize;
            Ok(are_there.then_some(()))
        })?;
    }
    Ok(())
}

fn add_round(count: usize, round: Round, first: Round, table: &mut Table) {
    let of = |what: &str| format!("{count} tasks at once: {what}");
    // Programs are loaded and attached for the first of them, so that each further one costs less.
    let goal = match count {
        1 => Goal::None,
        _ => Goal::AtMost(first.cpu_ms_per_task),
    };
    let name = of("CPU per task, until its result is there");
    table.add(name, round.cpu_ms_per_task, "ms", goal);
    let name = of("CPU once they have their requests");
    table.add(name, round.idle_percent, "%", Goal::None);
    let name = of("resident memory");
    table.add(name, round.rss_mb, "MB", Goal::AtMost(80.0));
    let name = of("descriptors more than with one");
    let more = round.open_fds as f64 - first.open_fds as f64;
    table.add(name, more, "", Goal::AtMost(0.0));
}

fn task(service: &str) -> TaskRequest<'_> {
    TaskRequest {
        service,
        endpoint: "GET:/hot",
        duration_minutes: 1,
        dump_period_ms: 10,
        max_sampling_count: REQUESTS_PER_TASK,
        min_duration_ms: 0,
    }
}

/// One task more than there is room for ends at once, with the reason in its coverage.
fn ensure_one_more_is_refused(daemon: &mut Daemon) -> Result<()> {
    let task_id = daemon.create_task(task(&service(TASKS_MAX)))?;
    let notes = wait_until("the end of one task too many", DEADLINE, || {
        daemon.still_running()?;
        let report = Report::from_json(&daemon.result(&task_id)?)?;
        let notes = report.coverage.get("notes").map(ToString::to_string);
        Ok(notes.filter(|notes| notes.contains("not run")))
    })?;
    let reason = format!("{TASKS_MAX} tasks are live already");
    ensure!(notes.contains(&reason), "refused with {notes}");
    Ok(())
}

/// When the last task has ended, everything is as it was before the first.
fn after_the_end(
    daemon: &mut Daemon,
    (fds_before, rss_mb_before): (usize, f64),
    table: &mut Table,
) -> Result<()> {
    step("growth: the end of these tasks");
    let start = Instant::now();
    wait_until("the programs to be gone", END_DEADLINE, || {
        daemon.still_running()?;
        Ok(procfs::programs(daemon.id())?.is_empty().then_some(()))
    })
    .with_context(|| format!("{} s after their results", start.elapsed().as_secs()))?;
    // The thread that named their frames learns a moment later that it may forget them.
    thread::sleep(Duration::from_secs(1));
    let fds = procfs::open_fds(daemon.id())?;
    let more = fds as f64 - fds_before as f64;
    let name = format!("{TASKS_MAX} tasks have ended: descriptors more than before");
    table.add(name, more, "", Goal::AtMost(0.0));
    let rss_mb = procfs::rss_mb(daemon.id())?;
    let more = rss_mb - rss_mb_before;
    let name = format!("{TASKS_MAX} tasks have ended: resident memory more than before");
    table.add(name, more, "MB", Goal::AtMost(LEFT_MB));
    Ok(())
}
