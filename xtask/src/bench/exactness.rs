//! How exact profiles are, compared with the entry and exit times that the service itself writes.
//!
//! A recording takes a few requests of one endpoint, one after the other, while none, half or all of the
//! CPUs compute something else. py-spy, which knows neither requests nor their ends, is asked for the mean
//! over all of them; the share of periods and the jitter cannot be had from it. SkyWalking's Python agent profiles
//! the requests of a task of its own, and its OAP, which is ours, analyses what it reports.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result};
use profiler_test_support::{ChildGuard, SampleService};
use serde::Deserialize;

use super::agent::AgentStage;
use super::load::{Until, latencies_ms};
use super::side::{REQUESTS_PER_TASK, Tools};
use super::statistics::{median, percentile};
use super::table::{Exactness, Goal, Table};
use crate::command::step;
use crate::report::{Report, Segment, names, total_ms};

const SERVICE: &str = "bench-exact";
const PERIOD_MS: f64 = 10.0;
const REQUESTS: u32 = 15;
/// Functions from two periods on have a goal.
const LONG_MS: f64 = 2.0 * PERIOD_MS;

/// Method and path of the cases.
const CASES: &[(&str, &str)] = &[
    ("POST", "/"),
    ("GET", "/busy"),
    ("GET", "/work"),
    ("GET", "/nap"),
    ("GET", "/sleeps"),
    ("GET", "/lock"),
    ("GET", "/gil"),
    ("GET", "/alternate"),
];

/// Those that never block: snapshots of what blocks carry the times of its switches.
const COMPUTING: &[&str] = &["/busy", "/work"];
/// The case of two endpoints at once, of which one is profiled.
const MIXED: &str = "/nap + /work";

/// A call as the service saw it.
#[derive(Debug, Deserialize)]
struct Call {
    tid: u32,
    function: String,
    enter_ns: u64,
    exit_ns: u64,
}

/// The calls of one function in one request.
#[derive(Clone, Copy, Debug)]
struct Calls {
    sum_ms: f64,
    shortest_ms: f64,
}

/// The truth of one request, by function.
type Truth = BTreeMap<String, Calls>;

/// What one tool says of one case.
struct Seen {
    /// Those that were answered.
    requests: usize,
    missed: usize,
    errors: Vec<DurationError>,
    /// Share of dump periods with a snapshot.
    periods: Option<f64>,
    /// Distance of snapshots from the grid of the request.
    jitter_ms: Vec<f64>,
    /// Requests with frames of another endpoint.
    wrong: Option<usize>,
}

/// How far one function's duration is off.
struct DurationError {
    ms: f64,
    /// Each of its calls lasted longer than [`LONG_MS`].
    is_long: bool,
}

/// Adds a row for each load, case and tool.
pub(super) fn measure(tools: &Tools, table: &mut Table) -> Result<()> {
    let cpus = thread::available_parallelism()?.get();
    let agents = AgentStage::start(tools)?;
    for (load, busy) in [("idle", 0), ("half busy", cpus / 2), ("all busy", cpus)] {
        step(&format!("exactness, CPUs {load}"));
        let _others: Vec<ChildGuard> = (0..busy).map(|_| spinner()).collect::<Result<_>>()?;
        for &(method, path) in CASES {
            let seen = recorded(tools, method, path)?;
            add(row("profilerd", load, path, &seen), table);
            let seen = spied(tools, method, path)?;
            add(row("py-spy", load, path, &seen), table);
            let seen = by_agent(tools, &agents, method, path)?;
            add(row("Python agent", load, path, &seen), table);
        }
        let seen = mixed(tools)?;
        add(row("profilerd", load, MIXED, &seen), table);
    }
    Ok(())
}

/// Adds a row, which is shown at once: the whole takes minutes.
fn add(row: Exactness, table: &mut Table) {
    step(&row.to_line());
    if row.tool == "profilerd" {
        add_goals(&row, table);
    }
    table.exactness.push(row);
}

fn add_goals(row: &Exactness, table: &mut Table) {
    let name = format!("{}, CPUs {}", row.case, row.load);
    let least = if row.load == "all busy" { 0.98 } else { 0.995 };
    if let Some(periods) = row.periods {
        let what = format!("{name}: dump periods with a snapshot");
        table.add(what, periods, "", Goal::AtLeast(least));
    }
    if row.load == "idle"
        && let Some(jitter) = row.jitter_p99_ms
    {
        let what = format!("{name}: jitter of snapshots, p99");
        table.add(what, jitter, "ms", Goal::AtMost(1.0));
    }
    let what = format!("{name}: worst duration error of a long function");
    table.add(what, row.error_long_ms, "ms", Goal::AtMost(PERIOD_MS));
    let lost = row.missed + row.wrong.unwrap_or(0);
    let what = format!("{name}: requests missed or with others' frames");
    table.add(what, lost as f64, "", Goal::AtMost(0.0));
}

/// A process that computes all the time.
fn spinner() -> Result<ChildGuard> {
    let mut command = Command::new("sh");
    command.args(["-c", "while :; do :; done"]);
    ChildGuard::spawn("a busy process", command.stdin(Stdio::null()))
}

/// Runs the service with a fresh file of truths.
fn start(tools: &Tools) -> Result<(SampleService, PathBuf)> {
    let truth = fresh_truth(tools)?;
    let python = Command::new("python3");
    let service = SampleService::start_script(python, "exact_service.py", SERVICE, Some(&truth))?;
    Ok((service, truth))
}

/// Where the service writes its own times; nothing is there yet.
fn fresh_truth(tools: &Tools) -> Result<PathBuf> {
    let truth = tools.folder.join("truth.jsonl");
    if truth.exists() {
        fs::remove_file(&truth)?;
    }
    Ok(truth)
}

fn ask(server: SocketAddr, method: &str, path: &str) -> Result<()> {
    latencies_ms(server, method, path, Until::Requests(REQUESTS)).map(drop)
}

/// One endpoint, by the Python agent: as many requests as its task may have.
fn by_agent(tools: &Tools, agents: &AgentStage, method: &str, path: &str) -> Result<Seen> {
    let truth = fresh_truth(tools)?;
    let process = agents.with_task("exact_service.py", path, Some(&truth))?;
    let requests = Until::Requests(REQUESTS_PER_TASK);
    latencies_ms(process.service.address(), method, path, requests)?;
    let report = agents.report(&process, REQUESTS_PER_TASK as usize)?;
    Ok(Seen {
        // It does not say how many there should be.
        periods: None,
        ..seen_in(&report, &requests_of(&truth)?)
    })
}

/// One endpoint, by profilerd.
fn recorded(tools: &Tools, method: &str, path: &str) -> Result<Seen> {
    let (service, truth) = start(tools)?;
    let recording = tools.recording(SERVICE, "*", &[])?;
    ask(service.address(), method, path)?;
    let report = recording.finish_report()?;
    let mut seen = seen_in(&report, &requests_of(&truth)?);
    if COMPUTING.contains(&path) {
        seen.jitter_ms = report.segments.iter().flat_map(jitter).collect();
    }
    Ok(seen)
}

/// Two endpoints at once, on threads that wait for one lock of the interpreter: who gets whose frames.
fn mixed(tools: &Tools) -> Result<Seen> {
    let (service, truth) = start(tools)?;
    let recording = tools.recording(SERVICE, "GET:/nap", &[])?;
    thread::scope(|scope| {
        let other = scope.spawn(|| ask(service.address(), "GET", "/work"));
        ask(service.address(), "GET", "/nap")?;
        other.join().expect("a client does not panic")
    })?;
    let report = recording.finish_report()?;
    let mut truth = requests_of(&truth)?;
    truth.retain(|calls| calls.contains_key("nap_outer"));
    let is_wrong = |segment: &&Segment| {
        let mut stacks = segment.snapshots.iter().map(|snapshot| &snapshot.stack);
        stacks.any(|stack| stack.iter().any(|frame| names(frame, "work_outer")))
    };
    Ok(Seen {
        wrong: Some(report.segments.iter().filter(is_wrong).count()),
        ..seen_in(&report, &truth)
    })
}

/// What a recording of these requests shows.
fn seen_in(report: &Report, truth: &[Truth]) -> Seen {
    let requests = truth.iter().zip(&report.segments);
    let errors = requests.flat_map(|(truth, segment)| {
        errors(truth, |function| total_ms(&segment.trees, function) as f64)
    });
    Seen {
        requests: truth.len(),
        missed: truth.len().saturating_sub(report.segments.len()),
        errors: errors.collect(),
        periods: Some(report.share_of_periods()),
        jitter_ms: Vec::new(),
        wrong: None,
    }
}

/// One endpoint, by py-spy: the mean of all requests.
fn spied(tools: &Tools, method: &str, path: &str) -> Result<Seen> {
    let (service, truth) = start(tools)?;
    // Sleeping threads too, as a request waits there.
    let options = ["--format", "raw", "--idle", "--function", "--threads"];
    let recording = tools.py_spy(service.id(), &options)?;
    ask(service.address(), method, path)?;
    let text = fs::read_to_string(recording.finish()?)?;
    let truth = requests_of(&truth)?;
    let mean = mean_of(&truth);
    let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
    for line in text.lines() {
        let Some((stack, count)) = line.rsplit_once(' ') else {
            continue;
        };
        let samples: f64 = count.parse().context("py-spy's count")?;
        for function in mean.keys() {
            if stack.split(';').any(|frame| spied_name(frame) == function) {
                *sums.entry(function).or_default() += samples * PERIOD_MS;
            }
        }
    }
    let requests = truth.len();
    let seen_ms = |function: &str| {
        let sum_ms = sums.get(function).copied().unwrap_or(0.0);
        sum_ms / requests.max(1) as f64
    };
    Ok(Seen {
        requests,
        missed: 0,
        errors: errors(&mean, seen_ms),
        periods: None,
        jitter_ms: Vec::new(),
        wrong: None,
    })
}

/// `Class.function (file)`.
fn spied_name(frame: &str) -> &str {
    let name = frame.split(' ').next().unwrap_or_default();
    name.rsplit('.').next().unwrap_or_default()
}

fn errors(truth: &Truth, seen_ms: impl Fn(&str) -> f64) -> Vec<DurationError> {
    let functions = truth.iter();
    functions
        .map(|(function, calls)| DurationError {
            ms: (seen_ms(function) - calls.sum_ms).abs(),
            is_long: calls.shortest_ms > LONG_MS,
        })
        .collect()
}

/// Adds calls of a function.
fn add_calls(truth: &mut Truth, function: String, added: Calls) {
    let calls = truth.entry(function).or_insert(Calls {
        sum_ms: 0.0,
        shortest_ms: f64::INFINITY,
    });
    calls.sum_ms += added.sum_ms;
    calls.shortest_ms = calls.shortest_ms.min(added.shortest_ms);
}

/// The truth by request, in the order of their ends: the handler's call comes last in its thread.
fn requests_of(file: &Path) -> Result<Vec<Truth>> {
    let text = fs::read_to_string(file).context("the service's own times")?;
    let mut requests = Vec::new();
    let mut open: BTreeMap<u32, Truth> = BTreeMap::new();
    for line in text.lines() {
        let call: Call = serde_json::from_str(line).context("a line of the service's own times")?;
        let ms = call.exit_ns.saturating_sub(call.enter_ns) as f64 / 1e6;
        let is_handler = call.function.starts_with("do_");
        let current = open.entry(call.tid).or_default();
        let calls = Calls {
            sum_ms: ms,
            shortest_ms: ms,
        };
        add_calls(current, call.function, calls);
        if is_handler {
            requests.push(std::mem::take(current));
        }
    }
    Ok(requests)
}

/// How far the snapshots of a request that computes lie from its grid. One that stands at a change is half a
/// period off on purpose; the first and the last are those of the request.
fn jitter(segment: &Segment) -> Vec<f64> {
    const STEP_MS: f64 = PERIOD_MS / 2.0;
    let times: Vec<i64> = segment.snapshots.iter().map(|s| s.time_ms).collect();
    let inner = times.get(2..times.len().saturating_sub(2));
    let pairs = inner.unwrap_or_default().windows(2);
    pairs
        .map(|pair| (pair[1] - pair[0]) as f64)
        .map(|distance| (distance - (distance / STEP_MS).round() * STEP_MS).abs())
        .collect()
}

fn row(tool: &'static str, load: &'static str, case: &'static str, seen: &Seen) -> Exactness {
    let errors: Vec<f64> = seen.errors.iter().map(|error| error.ms).collect();
    let long = seen.errors.iter().filter(|error| error.is_long);
    let long: Vec<f64> = long.map(|error| error.ms).collect();
    let jitter =
        |percent| (!seen.jitter_ms.is_empty()).then(|| percentile(&seen.jitter_ms, percent));
    Exactness {
        tool,
        load,
        case,
        requests: seen.requests,
        periods: seen.periods,
        jitter_p50_ms: jitter(50.0),
        jitter_p99_ms: jitter(99.0),
        error_median_ms: median(&errors),
        error_worst_ms: percentile(&errors, 100.0),
        error_long_ms: percentile(&long, 100.0),
        missed: seen.missed,
        wrong: seen.wrong,
    }
}

fn mean_of(truth: &[Truth]) -> Truth {
    let mut mean = Truth::new();
    for (function, calls) in truth.iter().flatten() {
        let share = Calls {
            sum_ms: calls.sum_ms / truth.len() as f64,
            ..*calls
        };
        add_calls(&mut mean, function.clone(), share);
    }
    mean
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that py-spy's frames are known by their functions.
    #[test]
    fn a_spied_frame_is_known_by_its_function() {
        assert_eq!(spied_name("Handler.do_POST (sample_service.py)"), "do_POST");
        assert_eq!(spied_name("method3 (sample_service.py)"), "method3");
    }

    /// Check that a mean counts each request once, and keeps the shortest call.
    #[test]
    fn a_mean_is_of_requests() {
        let request = |sum_ms, shortest_ms| {
            let calls = Calls {
                sum_ms,
                shortest_ms,
            };
            Truth::from([("f".to_owned(), calls)])
        };
        let mean = mean_of(&[request(30.0, 30.0), request(50.0, 20.0)])["f"];
        let shown = format!("{} {}", mean.sum_ms, mean.shortest_ms);
        assert_eq!(shown, "40 20");
    }
}
