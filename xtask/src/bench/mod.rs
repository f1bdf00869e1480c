//! `cargo xtask bench`: what profiling costs and what it misses, as ratios and counts of one run.
//!
//! Bare and profiled repetitions alternate, each profiled one with a new daemon, so that a machine that
//! becomes slower or hotter meanwhile changes both sides alike. A throughput's ratio is the median of those
//! of neighbours, a latency's that of the medians. "Bare" is without any daemon.
//!
//! ```text
//! bare | daemon + task | bare | daemon + task | ...
//! ```

mod load;
mod procfs;
mod skywalking;
mod table;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use profiler_test_support::{SampleService, target_dir, wait_until};

use self::load::{hot_server, latencies_ms, median, throughput};
use self::procfs::{BpfStats, Program};
use self::table::{Goal, Table};
use crate::command::step;
use crate::daemon::{Daemon, TaskRequest, build, require_root};
use crate::setup::{self, Group};

const HOT_SERVICE: &str = "bench-hot";
const PYTHON_SERVICE: &str = "bench-python";
/// An endpoint that nobody asks for.
const UNMATCHED: &str = "GET:/nothing-asks-for-this";
/// The most that a task may profile.
const REQUESTS_PER_TASK: u32 = 9;
/// From the creation of a task until its programs are attached; the goal is 0.5 s.
const ARMED_DEADLINE: Duration = Duration::from_secs(30);
/// From the last request until the daemon has reported it.
const REPORT_DEADLINE: Duration = Duration::from_secs(10);
/// How long the resting daemon is watched: a whole round of its looks at old processes.
const REST: Duration = Duration::from_secs(30);
/// Start-up work is over by then, and no process counts as young any more.
const SETTLE: Duration = Duration::from_secs(20);

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Repetitions of each side.
    #[arg(long, default_value_t = 5)]
    repetitions: u32,
    /// Seconds of each throughput measurement.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Also write the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The pieces every measurement needs.
struct Bench {
    binary: PathBuf,
    folder: PathBuf,
    repetitions: u32,
    wrk_duration: Duration,
    start_to_armed_ms: Vec<f64>,
    table: Table,
}

/// Runs `bench`.
pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    require_root("bench")?;
    setup::ensure(&[Group::Build, Group::Test, Group::Oap])?;
    let folder = target_dir().join("bench");
    fs::create_dir_all(&folder)?;
    let mut bench = Bench {
        binary: build(true)?,
        folder,
        repetitions: args.repetitions.max(1),
        wrk_duration: Duration::from_secs(args.seconds.max(1)),
        start_to_armed_ms: Vec::new(),
        table: Table {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            figures: Vec::new(),
            programs: Vec::new(),
        },
    };
    let hot = hot_server(HOT_SERVICE)?;
    let python = SampleService::start(Path::new("python3"), PYTHON_SERVICE, None)?;
    bench.at_rest()?;
    bench.unmatched(
        "hot native server",
        HOT_SERVICE,
        hot.address(),
        "/hot",
        8,
        0.97,
    )?;
    // One connection: with more, the rate depends on which thread gets the interpreter's lock.
    bench.unmatched(
        "Python service",
        PYTHON_SERVICE,
        python.address(),
        "/fast",
        1,
        0.99,
    )?;
    bench.profiled(python.address(), "POST", "/")?;
    bench.profiled(python.address(), "GET", "/busy")?;
    bench.program_cost(hot.address(), python.address())?;
    let armed_ms = median(&bench.start_to_armed_ms);
    bench.table.add(
        "task created to programs attached",
        armed_ms,
        "ms",
        Goal::AtMost(500.0),
    );

    drop((hot, python));
    skywalking::measure(&bench.binary, &bench.folder, &mut bench.table)?;

    print!("{}", bench.table.to_text());
    if let Some(file) = &args.json {
        fs::write(file, serde_json::to_vec_pretty(&bench.table)?)
            .with_context(|| format!("failed to write {}", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Bench {
    fn start_daemon(&self) -> Result<Daemon> {
        Daemon::start(&self.binary, &self.folder.join("profilerd.log"))
    }

    /// A new daemon with one live task; yields the task's id.
    fn start_armed(&mut self, service: &str, endpoint: &str) -> Result<(Daemon, String)> {
        let mut daemon = self.start_daemon()?;
        let start = Instant::now();
        let task_id = daemon.create_task(TaskRequest {
            service,
            endpoint,
            duration_minutes: 15,
            dump_period_ms: 10,
            max_sampling_count: REQUESTS_PER_TASK,
        })?;
        let tgid = daemon.id();
        wait_until("the programs to be attached", ARMED_DEADLINE, || {
            daemon.still_running()?;
            Ok((procfs::attached(tgid)? > 0).then_some(()))
        })?;
        self.start_to_armed_ms
            .push(start.elapsed().as_secs_f64() * 1000.0);
        // The last of several hooks follows the first at once; a request in between would be missed.
        sleep(Duration::from_millis(100));
        Ok((daemon, task_id))
    }

    /// A daemon without a task.
    fn at_rest(&mut self) -> Result<()> {
        step("a daemon at rest");
        let daemon = self.start_daemon()?;
        sleep(SETTLE);
        let before = procfs::cpu_time(daemon.id())?;
        sleep(REST);
        let used = procfs::cpu_time(daemon.id())?.saturating_sub(before);
        let percent = used.as_secs_f64() / REST.as_secs_f64() * 100.0;
        let rss_mb = procfs::rss_bytes(daemon.id())? as f64 / 1e6;
        let attached = procfs::attached(daemon.id())? as f64;
        // 0.0 % to one decimal place.
        self.table
            .add("daemon at rest: CPU", percent, "%", Goal::AtMost(0.05));
        self.table.add(
            "daemon at rest: resident memory",
            rss_mb,
            "MB",
            Goal::AtMost(25.0),
        );
        self.table.add(
            "daemon at rest: attached hooks",
            attached,
            "",
            Goal::AtMost(0.0),
        );
        Ok(())
    }

    /// Throughput with a task for another endpoint of the same service, over bare.
    fn unmatched(
        &mut self,
        what: &str,
        service: &str,
        server: SocketAddr,
        target: &str,
        connections: u32,
        goal: f64,
    ) -> Result<()> {
        step(&format!(
            "throughput of the {what}, bare and with a task that nothing matches"
        ));
        let (mut bare, mut live) = (Vec::new(), Vec::new());
        // The first load of a process is slower than all later ones.
        throughput(server, target, connections, Duration::from_secs(1))?;
        for _ in 0..self.repetitions {
            bare.push(throughput(server, target, connections, self.wrk_duration)?);
            let (mut daemon, _) = self.start_armed(service, UNMATCHED)?;
            live.push(throughput(server, target, connections, self.wrk_duration)?);
            daemon.still_running()?;
        }
        let ratios: Vec<f64> = live
            .iter()
            .zip(&bare)
            .map(|(live, bare)| live / bare)
            .collect();
        self.table.add(
            format!("{what}: throughput bare"),
            median(&bare),
            "req/s",
            Goal::None,
        );
        let name = format!("{what}: throughput with a live task / bare");
        self.table
            .add(name, median(&ratios), "", Goal::AtLeast(goal));
        Ok(())
    }

    /// Latency of profiled requests over bare ones, and how completely they were sampled.
    fn profiled(&mut self, server: SocketAddr, method: &str, target: &str) -> Result<()> {
        let endpoint = format!("{method}:{target}");
        step(&format!(
            "latency of {endpoint}, bare and profiled at 10 ms"
        ));
        let count = REQUESTS_PER_TASK as usize;
        let (mut bare, mut profiled, mut cpu_percent) = (Vec::new(), Vec::new(), Vec::new());
        let (mut expected, mut sampled, mut rss_mb) = (0, 0, 0.0_f64);
        for _ in 0..self.repetitions.min(2) {
            bare.extend(latencies_ms(server, method, target, count)?);
            let (mut daemon, task_id) = self.start_armed(PYTHON_SERVICE, &endpoint)?;
            let (start, cpu_before) = (Instant::now(), procfs::cpu_time(daemon.id())?);
            profiled.extend(latencies_ms(server, method, target, count)?);
            let used = procfs::cpu_time(daemon.id())?.saturating_sub(cpu_before);
            cpu_percent.push(used.as_secs_f64() / start.elapsed().as_secs_f64() * 100.0);
            let coverage = wait_for_coverage(&mut daemon, &task_id)?;
            rss_mb = rss_mb.max(procfs::rss_bytes(daemon.id())? as f64 / 1e6);
            expected += coverage["periods_expected"].as_u64().unwrap_or(0);
            sampled += coverage["periods_sampled"].as_u64().unwrap_or(0);
        }
        let (bare, profiled) = (median(&bare), median(&profiled));
        self.table
            .add(format!("{endpoint}: p50 bare"), bare, "ms", Goal::None);
        let name = format!("{endpoint}: p50 profiled at 10 ms / bare");
        self.table
            .add(name, profiled / bare, "", Goal::AtMost(1.02));
        let share = sampled as f64 / expected.max(1) as f64;
        let name = format!("{endpoint}: dump periods with a snapshot, of {expected}");
        self.table.add(name, share, "", Goal::AtLeast(0.99));
        let name = format!("{endpoint}: daemon CPU while profiling");
        self.table.add(name, median(&cpu_percent), "%", Goal::None);
        let name = format!("{endpoint}: daemon resident memory while profiling");
        self.table.add(name, rss_mb, "MB", Goal::None);
        Ok(())
    }

    /// Time per program run: under load that matches nothing, then while requests are profiled.
    fn program_cost(&mut self, hot: SocketAddr, python: SocketAddr) -> Result<()> {
        step("kernel time per program run");
        let _stats = BpfStats::enable()?;
        let (daemon, _) = self.start_armed(HOT_SERVICE, UNMATCHED)?;
        throughput(hot, "/hot", 8, self.wrk_duration)?;
        self.add_programs(&daemon, "")?;
        drop(daemon);
        let (daemon, _) = self.start_armed(PYTHON_SERVICE, "GET:/busy")?;
        latencies_ms(python, "GET", "/busy", REQUESTS_PER_TASK as usize)?;
        self.add_programs(&daemon, " *")
    }

    /// Programs while profiling get a mark, to tell them from those under unmatched load.
    fn add_programs(&mut self, daemon: &Daemon, mark: &str) -> Result<()> {
        let ran = procfs::programs(daemon.id())?
            .into_values()
            .filter(|program| program.runs > 0);
        self.table.programs.extend(ran.map(|program| Program {
            name: format!("{}{mark}", program.name),
            ..program
        }));
        Ok(())
    }
}

/// The coverage once all requests are in it; what there is of it after the deadline.
fn wait_for_coverage(daemon: &mut Daemon, task_id: &str) -> Result<serde_json::Value> {
    let start = Instant::now();
    loop {
        daemon.still_running()?;
        let mut result = daemon.result(task_id)?;
        let profiled = result["coverage"]["requests_profiled"].as_u64();
        if profiled >= Some(u64::from(REQUESTS_PER_TASK)) || start.elapsed() > REPORT_DEADLINE {
            return Ok(result["coverage"].take());
        }
        sleep(Duration::from_millis(200));
    }
}
