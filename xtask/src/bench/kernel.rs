//! Time that hooks add to system calls, switches and ticks, measured in the thread that spends it
//! (`tests/bench/kernel_cost.c`).

use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use profiler_test_support::{ChildGuard, HttpClient, LocalServer};

use super::load::{compile, start_ready};
use super::procfs::{self, BpfStats};
use super::side::{Tools, UNMATCHED};
use super::statistics::median;
use super::table::{Goal, Table};
use crate::command::{output, step};

const SERVICE: &str = "bench-kernel";
/// What `kernel_cost calls` times, in its order, and how many system calls that is.
const CALLS: [(&str, u32); 3] = [
    ("getppid", 1),
    ("read of 64 bytes", 1),
    ("write and read of 64 bytes on a socket", 2),
];
/// Most that may be added to a system call that is nobody's business.
const UNRELATED_CALL_NS: f64 = 60.0;
/// Tracepoints at which profilerd may see requests.
const EMPTY: [(&str, &[&str]); 2] = [
    ("sys_exit", &["sys_exit"]),
    (
        "the socket tracepoints",
        &["sock_recv_length", "sock_send_length"],
    ),
];
/// Frames of about 130 bytes each: some, a whole page, and more than the 16 KiB that are copied.
const DEPTHS: &[u32] = &[10, 40, 200];
/// Requests of half a second for each depth.
const SPINS: usize = 4;

/// Adds all figures.
pub(super) fn measure(tools: &Tools, repetitions: u32, table: &mut Table) -> Result<()> {
    let program = compile("kernel_cost")?;
    calls(tools, &program, repetitions, table)?;
    switches(tools, &program, repetitions, table)?;
    ticks(tools, &program, table)
}

fn server(program: &Path) -> Result<LocalServer> {
    let mut command = Command::new(program);
    command.arg("serve").env("SW_AGENT_NAME", SERVICE);
    LocalServer::start("kernel_cost", &mut command)
}

/// System calls of a process that is nobody's business: bare, with empty programs, with profilerd armed.
fn calls(tools: &Tools, program: &Path, repetitions: u32, table: &mut Table) -> Result<()> {
    step("the cheapest system calls: bare, with empty programs, armed");
    let _target = server(program)?;
    let mut bare: Times = Times::default();
    let mut empty = [Times::default(), Times::default()];
    let mut armed = Times::default();
    for _ in 0..repetitions {
        push_calls(program, &mut bare)?;
        for ((_, tracepoints), times) in EMPTY.iter().zip(&mut empty) {
            let _attached = hold_empty(program, tracepoints)?;
            push_calls(program, times)?;
        }
        let _armed = tools.armed(SERVICE, UNMATCHED)?;
        push_calls(program, &mut armed)?;
    }
    for (index, (name, count)) in CALLS.iter().enumerate() {
        let bare_ns = median(&bare[index]);
        table.add(format!("unrelated {name}: bare"), bare_ns, "ns", Goal::None);
        for ((tracepoints, _), times) in EMPTY.iter().zip(&empty) {
            let what = format!("unrelated {name}: added by an empty program on {tracepoints}");
            table.add(what, added(&times[index], &bare[index]), "ns", Goal::None);
        }
        let what = format!("unrelated {name}: added by profilerd, armed");
        let goal = Goal::AtMost(UNRELATED_CALL_NS * f64::from(*count));
        table.add(what, added(&armed[index], &bare[index]), "ns", goal);
    }
    Ok(())
}

/// Nanoseconds of each of [`CALLS`], by repetition.
type Times = [Vec<f64>; CALLS.len()];

/// What one side takes more than the other, by neighbours in time.
fn added(with: &[f64], without: &[f64]) -> f64 {
    let added: Vec<f64> = with.iter().zip(without).map(|(w, o)| w - o).collect();
    median(&added)
}

fn push_calls(program: &Path, times: &mut Times) -> Result<()> {
    let text = output(Command::new(program).arg("calls"))?;
    let mut numbers = text.split_whitespace().map(str::parse::<f64>);
    for ((name, _), times) in CALLS.iter().zip(times) {
        times.push(
            numbers
                .next()
                .with_context(|| format!("no time of {name}"))??,
        );
    }
    Ok(())
}

fn hold_empty(program: &Path, tracepoints: &[&str]) -> Result<ChildGuard> {
    let mut command = Command::new(program);
    start_ready("an empty program", command.arg("empty").args(tracepoints))
}

/// Switches between two threads: bare, armed, and while one of them is tagged.
fn switches(tools: &Tools, program: &Path, repetitions: u32, table: &mut Table) -> Result<()> {
    step("switches between two threads: bare, armed, one of them tagged");
    let server = server(program)?;
    let ask = || -> Result<f64> {
        let body = get(&server, "/switch")?;
        body.trim().parse().context("nanoseconds per switch")
    };
    let (mut bare, mut armed, mut tagged) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..repetitions {
        bare.push(ask()?);
        let other = tools.armed(SERVICE, UNMATCHED)?;
        armed.push(ask()?);
        drop(other);
        let own = tools.armed(SERVICE, "GET:/switch")?;
        tagged.push(ask()?);
        drop(own);
    }
    let bare_ns = median(&bare);
    table.add("switch, with a futex call: bare", bare_ns, "ns", Goal::None);
    let name = "switch, with a futex call: added by profilerd, armed";
    table.add(name, added(&armed, &bare), "ns", Goal::None);
    // The tagged thread is in each of them, once as the one that leaves and once as the one that comes.
    let name = "switch of a tagged thread: added to that";
    table.add(name, added(&tagged, &armed), "ns", Goal::AtMost(500.0));
    Ok(())
}

/// Kernel time of a tick that hits a tagged thread, by depth of its stack.
fn ticks(tools: &Tools, program: &Path, table: &mut Table) -> Result<()> {
    step("kernel time of samples by depth");
    let server = server(program)?;
    let _stats = BpfStats::enable()?;
    for depth in DEPTHS {
        let recording = tools.recording(SERVICE, "*", &[])?;
        // A tick that hits no tagged thread.
        sleep(Duration::from_millis(500));
        let idle = sample_runs(recording.id())?;
        for _ in 0..SPINS {
            get(&server, &format!("/spin/{depth}"))?;
        }
        let all = sample_runs(recording.id())?;
        let taken = recording.finish_report()?.counter("samples_on_cpu") as f64;
        let cheap_ns = idle.1 / idle.0.max(1.0);
        let others = (all.0 - idle.0 - taken).max(0.0);
        let ns = (all.1 - idle.1 - others * cheap_ns) / taken.max(1.0);
        let name = format!("on-CPU sample below {depth} frames, of {taken}: kernel time");
        table.add(name, ns / 1000.0, "us", Goal::AtMost(8.0));
    }
    Ok(())
}

/// Runs of `sample_on_cpu` so far, and their nanoseconds.
fn sample_runs(tgid: u32) -> Result<(f64, f64)> {
    let programs = procfs::programs(tgid)?;
    let program = programs.values().find(|p| p.name == "sample_on_cpu");
    let program = program.context("sample_on_cpu is not loaded")?;
    Ok((program.runs as f64, program.run_time_ns as f64))
}

fn get(server: &LocalServer, target: &str) -> Result<String> {
    let mut client = HttpClient::connect(server.address(), Duration::from_secs(60))?;
    let answer = client.request("GET", target, "")?;
    Ok(String::from_utf8(answer.body)?)
}
