//! `cargo xtask demo`: the first thing that a new user runs, and the end-to-end test.
//!
//! Starts the sample service and `profilerd standalone`, profiles its two slow endpoints while all three
//! are asked, prints where the time went, and compares it with what the service is known to do.

mod report;
mod traffic;
mod verify;

use std::fs;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use profiler_test_support::{SampleService, target_dir};
use serde_json::Value;

use self::traffic::BUSY;
pub(crate) use self::traffic::{POST, Traffic};
use crate::command::step;
use crate::daemon::{Daemon, TaskRequest, build, require_root};
use crate::report::Report;
use crate::setup::{self, Group};

const SERVICE: &str = "demo-sample";
/// The shortest task that an OAP accepts.
const TASK_MINUTES: u32 = 1;
const DUMP_PERIOD_MS: u32 = 10;
const REQUESTS_PER_TASK: u32 = 5;

/// How often the result is asked for.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// The wanted requests take 5 s; the task lasts 60 s, and is then finished and reported.
const RESULT_DEADLINE: Duration = Duration::from_secs(75);
/// How long after its last segment a task's coverage may follow.
const COVERAGE_DEADLINE: Duration = Duration::from_secs(10);
/// How long after the end of a task the OAP may still refuse the next one: it compares minutes.
const NEXT_TASK_DEADLINE: Duration = Duration::from_secs(75);

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Print the result as one JSON object, and nothing else on stdout.
    #[arg(long)]
    json: bool,
    /// Use the optimized build, which takes longer to compile.
    #[arg(long)]
    release: bool,
    /// The CPython that runs the sample service: 3.11 or newer, whose sleep is the one that is checked for.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
}

/// Runs `demo`.
pub(crate) fn run(args: &DemoArgs) -> Result<ExitCode> {
    require_root("demo")?;
    setup::ensure(&[Group::Build, Group::Test])?;
    let binary = build(args.release)?;
    let folder = target_dir().join("demo");
    fs::create_dir_all(&folder)?;

    let truth = folder.join("truth.jsonl");
    // The service appends.
    fs::write(&truth, "")?;
    let mut service = SampleService::start(&args.python, SERVICE, Some(&truth))?;
    let mut daemon = Daemon::start(&binary, &folder.join("profilerd.log"))?;
    step(&format!(
        "the sample service is pid {}, profilerd is pid {}",
        service.id(),
        daemon.id()
    ));
    let traffic = Traffic::start(service.address());
    let tasks = profile(&mut daemon, &traffic)?;
    traffic
        .stop()
        .context("a request to the sample service failed")?;
    service.child().still_running()?;

    let mut reports = Vec::new();
    for task_id in &tasks {
        reports.push(daemon.result(task_id)?);
    }
    let merged = report::merge(&reports);
    if args.json {
        serde_json::to_writer(stdout(), &merged)?;
        println!();
    } else {
        for task_id in &tasks {
            println!("{}", without_next(&daemon.result_tree(task_id)?));
        }
    }
    write_flame_graphs(&daemon, &tasks, &folder, args.json)?;
    let report = Report::from_json(&merged)?;
    if !args.json {
        println!("{}", closing(&report, &binary));
    }
    conclude(&report)
}

/// Runs one task after the other: an OAP accepts one per service at a time.
fn profile(daemon: &mut Daemon, traffic: &Traffic) -> Result<Vec<String>> {
    let mut tasks = Vec::new();
    for endpoint in [POST, BUSY] {
        let task_id = create_when_free(daemon, endpoint, !tasks.is_empty())?;
        step(&format!("task {task_id} profiles {endpoint}"));
        wait_for_result(daemon, traffic, endpoint, &task_id)?;
        tasks.push(task_id);
    }
    Ok(tasks)
}

fn create_when_free(daemon: &mut Daemon, endpoint: &str, may_overlap: bool) -> Result<String> {
    let start = Instant::now();
    loop {
        let created = daemon.create_task(TaskRequest {
            service: SERVICE,
            endpoint,
            duration_minutes: TASK_MINUTES,
            dump_period_ms: DUMP_PERIOD_MS,
            max_sampling_count: REQUESTS_PER_TASK,
            min_duration_ms: 0,
        });
        match created {
            Ok(task_id) => {
                progress_end();
                return Ok(task_id);
            }
            Err(_) if may_overlap && start.elapsed() < NEXT_TASK_DEADLINE => {
                daemon.still_running()?;
                progress(&format!(
                    "{endpoint}: waiting for the end of the previous task, {} s",
                    start.elapsed().as_secs()
                ));
                sleep(POLL_INTERVAL);
            }
            Err(error) => return Err(error.context(format!("cannot create a task for {endpoint}"))),
        }
    }
}

fn wait_for_result(
    daemon: &mut Daemon,
    traffic: &Traffic,
    endpoint: &str,
    task_id: &str,
) -> Result<()> {
    let start = Instant::now();
    let mut complete_since: Option<Instant> = None;
    loop {
        daemon.still_running()?;
        let report = daemon
            .result(task_id)
            .and_then(|value: Value| Report::from_json(&value))?;
        progress(&format!(
            "{endpoint}: {} of {REQUESTS_PER_TASK} requests profiled, {} snapshots, {} requests answered, {} s",
            report.segments.len(),
            report
                .segments
                .iter()
                .map(|segment| segment.snapshots.len())
                .sum::<usize>(),
            traffic.answered(),
            start.elapsed().as_secs()
        ));
        if report.segments.len() >= REQUESTS_PER_TASK as usize {
            let since = *complete_since.get_or_insert_with(Instant::now);
            let covered = report.counter("requests_profiled") >= u64::from(REQUESTS_PER_TASK);
            if covered || since.elapsed() > COVERAGE_DEADLINE {
                progress_end();
                return Ok(());
            }
        }
        if start.elapsed() > RESULT_DEADLINE {
            progress_end();
            let coverage = serde_json::to_string_pretty(&report.coverage)?;
            bail!(
                "only {} of {REQUESTS_PER_TASK} requests to {endpoint} were profiled; coverage: {coverage}",
                report.segments.len()
            );
        }
        sleep(POLL_INTERVAL);
    }
}

fn write_flame_graphs(daemon: &Daemon, tasks: &[String], folder: &Path, json: bool) -> Result<()> {
    for (task_id, name) in tasks.iter().zip(["post.svg", "busy.svg"]) {
        let file = folder.join(name);
        daemon.write_flame_graph(task_id, &file)?;
        let line = format!("flame graph: {}", file.display());
        if json {
            step(&line);
        } else {
            println!("{line}");
        }
    }
    Ok(())
}

/// A result without its last line: the command there asks a daemon that ends with the demo.
fn without_next(tree: &str) -> String {
    let lines = tree.lines().filter(|line| !line.starts_with("next: "));
    lines.map(|line| format!("{line}\n")).collect()
}

/// How much was seen, and what to try next.
fn closing(report: &Report, binary: &Path) -> String {
    format!(
        "profiled {} of {} matching requests; {:.1} % of their time was seen\n\
         next: {} ps  (what there is to profile on this machine)",
        report.segments.len(),
        report.counter("requests_matched"),
        (report.share_of_periods() * 1000.0).floor() / 10.0,
        binary.display()
    )
}

fn conclude(report: &Report) -> Result<ExitCode> {
    let problems = verify::problems(report);
    if problems.is_empty() {
        step("the call trees match what the sample service does");
        return Ok(ExitCode::SUCCESS);
    }
    for problem in &problems {
        step(&format!("WRONG: {problem}"));
    }
    Ok(ExitCode::FAILURE)
}

/// A line that the next one replaces; only where someone looks.
fn progress(text: &str) {
    if stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
        let _ = stderr().flush();
    }
}

fn progress_end() {
    if stderr().is_terminal() {
        eprintln!();
    }
}
