//! How exact profiles are: beside the entry and exit times that the service itself writes.
//!
//! A recording takes a few requests of one endpoint, one after the other, while none, half or all of the
//! CPUs compute something else. py-spy, which knows neither requests nor their ends, is asked for the mean
//! over all of them; the share of periods and the jitter cannot be had from it.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result};
use profiler_test_support::{ChildGuard, LocalServer, workspace_root};
use serde::Deserialize;
use serde_json::Value;

use super::load::{Until, latencies_ms};
use super::side::Tools;
use super::statistics::{median, percentile};
use super::table::{Exactness, Goal, Table};
use crate::command::step;

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
#[derive(Clone, Copy, Debug, Default)]
struct Calls {
    sum_ms: f64,
    shortest_ms: f64,
}

/// The truth of one request, by function.
type Truth = BTreeMap<String, Calls>;

/// What one tool says of one case.
struct Seen {
    /// Per request and function, milliseconds; one entry where only the mean is known.
    durations_ms: Vec<BTreeMap<String, f64>>,
    /// Share of dump periods with a snapshot.
    periods: Option<f64>,
    /// Distance of snapshots from the grid of the request.
    jitter_ms: Vec<f64>,
    /// With frames of another endpoint.
    wrong: Option<usize>,
}

/// Adds a row for each load, case and tool.
pub(super) fn measure(tools: &Tools, table: &mut Table) -> Result<()> {
    let cpus = std::thread::available_parallelism()?.get();
    for (load, busy) in [("idle", 0), ("half busy", cpus / 2), ("all busy", cpus)] {
        step(&format!("exactness, CPUs {load}"));
        let _others: Vec<ChildGuard> = (0..busy).map(|_| spinner()).collect::<Result<_>>()?;
        for &(method, path) in CASES {
            let (truth, seen) = recorded(tools, method, path)?;
            add(compare("profilerd", load, path, &truth, &seen), table);
            let (truth, seen) = spied(tools, method, path)?;
            add(compare("py-spy", load, path, &truth, &seen), table);
        }
        let (truth, seen) = mixed(tools)?;
        add(compare("profilerd", load, MIXED, &truth, &seen), table);
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
fn start(tools: &Tools) -> Result<(LocalServer, PathBuf)> {
    let truth = tools.folder.join("truth.jsonl");
    if truth.exists() {
        fs::remove_file(&truth)?;
    }
    let mut command = Command::new("python3");
    command
        .arg(workspace_root().join("tests/services/exact_service.py"))
        .arg("--truth")
        .arg(&truth)
        .env("SW_AGENT_NAME", SERVICE);
    Ok((
        LocalServer::start("the exact service", &mut command)?,
        truth,
    ))
}

fn ask(server: SocketAddr, method: &str, path: &str) -> Result<()> {
    latencies_ms(server, method, path, Until::Requests(REQUESTS)).map(drop)
}

fn recorded(tools: &Tools, method: &str, path: &str) -> Result<(Vec<Truth>, Seen)> {
    let (server, truth) = start(tools)?;
    let recording = tools.recording(SERVICE, "*", &[])?;
    ask(server.address(), method, path)?;
    let report = recording.finish_json()?;
    let truth = requests_of(&truth)?;
    let functions = truth.first().map(|t| t.keys().cloned().collect::<Vec<_>>());
    let functions = functions.unwrap_or_default();
    let segments = report["segments"].as_array().cloned().unwrap_or_default();
    let count = |name: &str| report["coverage"][name].as_u64().unwrap_or(0) as f64;
    let durations_ms = segments.iter().map(|s| durations(s, &functions)).collect();
    let seen = Seen {
        durations_ms,
        periods: Some(count("periods_sampled") / count("periods_expected").max(1.0)),
        jitter_ms: if COMPUTING.contains(&path) {
            segments.iter().flat_map(jitter).collect()
        } else {
            Vec::new()
        },
        wrong: None,
    };
    Ok((truth, seen))
}

fn spied(tools: &Tools, method: &str, path: &str) -> Result<(Vec<Truth>, Seen)> {
    let (server, truth) = start(tools)?;
    // Sleeping threads too, as a request waits there.
    let options = ["--format", "raw", "--idle", "--function", "--threads"];
    let recording = tools.py_spy(server.id(), &options)?;
    ask(server.address(), method, path)?;
    let text = fs::read_to_string(recording.finish()?)?;
    let truth = requests_of(&truth)?;
    let functions: Vec<String> = truth
        .first()
        .map_or(Vec::new(), |t| t.keys().cloned().collect());
    let mut sums: BTreeMap<String, f64> = BTreeMap::new();
    for line in text.lines() {
        let Some((stack, count)) = line.rsplit_once(' ') else {
            continue;
        };
        let frames: Vec<&str> = stack.split(';').collect();
        for function in &functions {
            if frames.iter().any(|frame| spied_name(frame) == function) {
                let samples: f64 = count.parse().context("py-spy's count")?;
                *sums.entry(function.clone()).or_default() += samples * PERIOD_MS;
            }
        }
    }
    let requests = truth.len().max(1) as f64;
    sums.values_mut().for_each(|sum| *sum /= requests);
    let seen = Seen {
        durations_ms: vec![sums],
        periods: None,
        jitter_ms: Vec::new(),
        wrong: None,
    };
    Ok((truth, seen))
}

/// `Class.function (file)`.
fn spied_name(frame: &str) -> &str {
    let name = frame.split(' ').next().unwrap_or_default();
    name.rsplit('.').next().unwrap_or_default()
}

/// Two endpoints at once, on threads that wait for one lock of the interpreter: who gets whose frames.
fn mixed(tools: &Tools) -> Result<(Vec<Truth>, Seen)> {
    let (server, truth) = start(tools)?;
    let recording = tools.recording(SERVICE, "GET:/nap", &[])?;
    thread::scope(|scope| {
        let other = scope.spawn(|| ask(server.address(), "GET", "/work"));
        ask(server.address(), "GET", "/nap")?;
        other.join().expect("a client does not panic")
    })?;
    let report = recording.finish_json()?;
    // Calls of two threads are mixed in the file; each request of interest has one of these.
    let naps = |calls: &Truth| calls.contains_key("nap_outer");
    let truth: Vec<Truth> = requests_of(&truth)?.into_iter().filter(naps).collect();
    let functions: Vec<String> = truth
        .first()
        .map_or(Vec::new(), |t| t.keys().cloned().collect());
    let foreign = ["work_outer".to_owned(), "work_inner".to_owned()];
    let segments = report["segments"].as_array().cloned().unwrap_or_default();
    let wrong = segments
        .iter()
        .filter(|s| !durations(s, &foreign).is_empty());
    let count = |name: &str| report["coverage"][name].as_u64().unwrap_or(0) as f64;
    let seen = Seen {
        wrong: Some(wrong.count()),
        durations_ms: segments.iter().map(|s| durations(s, &functions)).collect(),
        periods: Some(count("periods_sampled") / count("periods_expected").max(1.0)),
        jitter_ms: Vec::new(),
    };
    Ok((truth, seen))
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
        let calls = current.entry(call.function).or_insert(Calls {
            sum_ms: 0.0,
            shortest_ms: ms,
        });
        calls.sum_ms += ms;
        calls.shortest_ms = calls.shortest_ms.min(ms);
        if is_handler {
            requests.push(std::mem::take(current));
        }
    }
    Ok(requests)
}

/// Durations of these functions in the trees of a segment. What one calls under its own name, as a method of
/// a base class, is part of it.
fn durations(segment: &Value, functions: &[String]) -> BTreeMap<String, f64> {
    fn add(node: &Value, functions: &[String], above: &[&str], sums: &mut BTreeMap<String, f64>) {
        let signature = node["code_signature"].as_str().unwrap_or_default();
        let mut above = above.to_vec();
        if let Some(function) = functions.iter().find(|f| names(signature, f))
            && !above.contains(&function.as_str())
        {
            above.push(function);
            *sums.entry(function.clone()).or_default() +=
                node["duration_ms"].as_f64().unwrap_or(0.0);
        }
        for child in node["children"].as_array().into_iter().flatten() {
            add(child, functions, &above, sums);
        }
    }
    let mut sums = BTreeMap::new();
    for tree in segment["trees"].as_array().into_iter().flatten() {
        add(tree, functions, &[], &mut sums);
    }
    sums
}

/// `module.Class.function:line`.
fn names(signature: &str, function: &str) -> bool {
    let name = signature
        .rsplit_once(':')
        .map_or(signature, |(name, _)| name);
    name.rsplit('.').next() == Some(function)
}

/// How far the snapshots of a request that computes lie from its grid. One that stands at a change is half a
/// period off on purpose; the first and the last are those of the request.
fn jitter(segment: &Value) -> Vec<f64> {
    const STEP_MS: f64 = PERIOD_MS / 2.0;
    let snapshots = segment["snapshots"].as_array().into_iter().flatten();
    let times: Vec<f64> = snapshots.filter_map(|s| s["time_ms"].as_f64()).collect();
    let inner = times.get(2..times.len().saturating_sub(2));
    let pairs = inner.unwrap_or_default().windows(2);
    pairs
        .map(|pair| pair[1] - pair[0])
        .map(|distance| (distance - (distance / STEP_MS).round() * STEP_MS).abs())
        .collect()
}

fn compare(
    tool: &'static str,
    load: &'static str,
    case: &'static str,
    truth: &[Truth],
    seen: &Seen,
) -> Exactness {
    let only_mean = seen.durations_ms.len() == 1 && truth.len() > 1;
    let mean = [mean_of(truth)];
    let truth_used = if only_mean { &mean[..] } else { truth };
    let (mut errors, mut long) = (Vec::new(), Vec::new());
    for (truth, seen) in truth_used.iter().zip(&seen.durations_ms) {
        for (function, calls) in truth {
            let error = (seen.get(function).copied().unwrap_or(0.0) - calls.sum_ms).abs();
            errors.push(error);
            if calls.shortest_ms > LONG_MS {
                long.push(error);
            }
        }
    }
    let jitter =
        |percent| (!seen.jitter_ms.is_empty()).then(|| percentile(&seen.jitter_ms, percent));
    Exactness {
        tool,
        load,
        case,
        requests: truth.len(),
        periods: seen.periods,
        jitter_p50_ms: jitter(50.0),
        jitter_p99_ms: jitter(99.0),
        error_median_ms: median(&errors),
        error_worst_ms: percentile(&errors, 100.0),
        error_long_ms: percentile(&long, 100.0),
        missed: if only_mean {
            0
        } else {
            truth.len().saturating_sub(seen.durations_ms.len())
        },
        wrong: seen.wrong,
    }
}

fn mean_of(truth: &[Truth]) -> Truth {
    let mut mean = Truth::new();
    for (function, calls) in truth.iter().flatten() {
        let of_function = mean.entry(function.clone()).or_insert(Calls {
            sum_ms: 0.0,
            shortest_ms: calls.shortest_ms,
        });
        of_function.sum_ms += calls.sum_ms / truth.len() as f64;
    }
    mean
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Check that a function is found by its whole name.
    #[test]
    fn a_function_is_found_by_its_whole_name() {
        assert!(names("exact_service.alternate:84", "alternate"));
        assert!(!names("exact_service.alternate_run:92", "alternate"));
        assert!(names("sample_service.Handler.do_GET:120", "do_GET"));
    }

    /// Check that durations of one function under several callers are summed.
    #[test]
    fn durations_are_summed() {
        let leaf = |ms| json!({ "code_signature": "m.f:3", "duration_ms": ms, "children": [] });
        let segment = json!({ "trees": [
            { "code_signature": "m.g:1", "duration_ms": 60, "children": [leaf(10), leaf(20)] }
        ]});
        let sums = durations(&segment, &["f".to_owned(), "g".to_owned()]);
        assert_eq!(format!("{sums:?}"), r#"{"f": 30.0, "g": 60.0}"#);
    }
}
