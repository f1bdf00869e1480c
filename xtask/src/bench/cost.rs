//! What the daemon costs at rest and while it profiles, and how completely it samples.

use std::net::SocketAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use profiler_test_support::SampleService;

use super::load::{Until, hot_load, hot_server, latencies_ms};
use super::procfs::{self, BpfStats, CpuMeter, Program};
use super::side::{REQUESTS_PER_TASK, Tools, UNMATCHED};
use super::table::{Goal, Table};
use crate::command::step;
use crate::daemon::Daemon;
use crate::report::Report;

const HOT_SERVICE: &str = "bench-hot";
const PYTHON_SERVICE: &str = "bench-python";
/// From the last request until the daemon has reported it.
const REPORT_DEADLINE: Duration = Duration::from_secs(10);
/// How long the resting daemon is watched: a whole round of its looks at old processes.
const REST: Duration = Duration::from_secs(30);
/// Start-up work is over by then, and no process counts as young any more.
const SETTLE: Duration = Duration::from_secs(20);

/// How long a window lasts, and how often there is one, by default.
const WINDOW: Duration = Duration::from_secs(10);
const WINDOWS_APART: Duration = Duration::from_mins(5);

/// A daemon without a task.
pub(super) fn at_rest(tools: &Tools, table: &mut Table) -> Result<()> {
    step("a daemon at rest");
    let daemon = tools.daemon()?;
    let rest = Rest::watch(&daemon)?;
    // 0.0 % to one decimal place.
    let name = "daemon at rest: CPU";
    table.add(name, rest.cpu_percent, "%", Goal::AtMost(0.05));
    let name = "daemon at rest: resident memory";
    table.add(name, rest.rss_mb, "MB", Goal::AtMost(25.0));
    let name = "daemon at rest: attached hooks";
    table.add(name, rest.attached as f64, "", Goal::AtMost(0.0));
    Ok(())
}

/// What a daemon without a task takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    /// Of one core.
    pub(super) cpu_percent: f64,
    pub(super) rss_mb: f64,
    pub(super) open_fds: usize,
    /// Links of programs, and perf events.
    pub(super) attached: usize,
    /// Loaded programs.
    pub(super) programs: usize,
}

impl Rest {
    /// Watches one that has just been started.
    pub(super) fn watch(daemon: &Daemon) -> Result<Self> {
        sleep(SETTLE);
        let cpu = CpuMeter::start(daemon.id())?;
        sleep(REST);
        Ok(Self {
            cpu_percent: cpu.percent()?,
            rss_mb: procfs::rss_mb(daemon.id())?,
            open_fds: procfs::open_fds(daemon.id())?,
            attached: procfs::attached(daemon.id())?,
            programs: procfs::programs(daemon.id())?.len(),
        })
    }
}

/// A window of discovery while a service is asked all the time.
pub(super) fn window(tools: &Tools, table: &mut Table) -> Result<()> {
    step("a window of discovery");
    let service = SampleService::start(Path::new("python3"), PYTHON_SERVICE, None)?;
    let look = tools.look(PYTHON_SERVICE)?;
    let begun = procfs::cpu_time(look.id())?;
    let requests = latencies_ms(service.address(), "GET", "/nap", Until::Elapsed(WINDOW))?;
    let seen = procfs::cpu_time(look.id())? - begun;
    look.finish()?;
    let name = "window of 10 s: CPU time until its programs are attached";
    table.add(name, begun.as_secs_f64(), "s", Goal::None);
    let name = format!("the same: CPU time for {} requests", requests.len());
    table.add(&name, seen.as_secs_f64(), "s", Goal::None);
    // The default: one in five minutes.
    let percent = (begun + seen).as_secs_f64() / WINDOWS_APART.as_secs_f64() * 100.0;
    let name = "windows every 5 minutes: daemon's CPU";
    table.add(name, percent, "%", Goal::AtMost(0.1));
    Ok(())
}

/// Completeness and cost of profiled requests, then kernel time per program run: under load that matches
/// nothing, and while requests are profiled.
pub(super) fn profiled(tools: &Tools, duration: Duration, table: &mut Table) -> Result<()> {
    let python = SampleService::start(Path::new("python3"), PYTHON_SERVICE, None)?;
    complete(tools, python.address(), "POST", "/", table)?;
    complete(tools, python.address(), "GET", "/busy", table)?;

    step("kernel time per program run");
    let hot = hot_server(HOT_SERVICE)?;
    let _stats = BpfStats::enable()?;
    let (daemon, _) = tools.armed(HOT_SERVICE, UNMATCHED)?;
    hot_load(hot.address(), "/hot", 8, duration)?;
    add_programs(&daemon, "", table)?;
    drop(daemon);
    let (daemon, _) = tools.armed(PYTHON_SERVICE, "GET:/busy")?;
    let until = Until::Requests(REQUESTS_PER_TASK);
    latencies_ms(python.address(), "GET", "/busy", until)?;
    add_programs(&daemon, " *", table)
}

fn complete(
    tools: &Tools,
    server: SocketAddr,
    method: &str,
    target: &str,
    table: &mut Table,
) -> Result<()> {
    let endpoint = format!("{method}:{target}");
    step(&format!("completeness of {endpoint} at 10 ms"));
    let (mut daemon, task_id) = tools.armed(PYTHON_SERVICE, &endpoint)?;
    let cpu = CpuMeter::start(daemon.id())?;
    latencies_ms(server, method, target, Until::Requests(REQUESTS_PER_TASK))?;
    let cpu_percent = cpu.percent()?;
    let report = wait_for_report(&mut daemon, &task_id)?;
    let rss_mb = procfs::rss_mb(daemon.id())?;
    let expected = report.counter("periods_expected");
    let name = format!("{endpoint}: dump periods with a snapshot, of {expected}");
    table.add(name, report.share_of_periods(), "", Goal::AtLeast(0.995));
    let name = format!("{endpoint}: daemon CPU while profiling");
    table.add(name, cpu_percent, "%", Goal::None);
    let name = format!("{endpoint}: daemon resident memory while profiling");
    table.add(name, rss_mb, "MB", Goal::AtMost(80.0));
    Ok(())
}

/// Programs while profiling get a mark, to tell them from those under unmatched load.
fn add_programs(daemon: &Daemon, mark: &str, table: &mut Table) -> Result<()> {
    let ran = procfs::programs(daemon.id())?
        .into_values()
        .filter(|program| program.runs > 0);
    table.programs.extend(ran.map(|program| Program {
        name: format!("{}{mark}", program.name),
        ..program
    }));
    Ok(())
}

/// The result once all requests are in it; what there is of it after the deadline.
pub(super) fn wait_for_report(daemon: &mut Daemon, task_id: &str) -> Result<Report> {
    let start = Instant::now();
    loop {
        daemon.still_running()?;
        let report = Report::from_json(&daemon.result(task_id)?)?;
        let profiled = report.counter("requests_profiled");
        if profiled >= u64::from(REQUESTS_PER_TASK) || start.elapsed() > REPORT_DEADLINE {
            return Ok(report);
        }
        sleep(Duration::from_millis(200));
    }
}
