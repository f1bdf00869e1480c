//! Stacks of any depth: the losses, and the cost of one stack for the daemon.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use profiler_test_support::LocalServer;

use crate::bench::load::{Until, compile, latencies_ms};
use crate::bench::procfs::CpuMeter;
use crate::bench::side::Tools;
use crate::bench::table::{Goal, Table};
use crate::command::step;
use crate::report::Report;

const SERVICE: &str = "bench-depth";
/// Frames of about 120 bytes each. 16 KiB are copied of a running thread, the whole stack is read of a blocked
/// one, and 500 frames are shown.
const DEPTHS: &[u32] = &[10, 40, 100, 200, 400, 700];
/// The depth that has a goal for its cost, and one whose cost per frame is set beside it.
const TYPICAL: u32 = 100;
const DEEP: u32 = 400;
/// Requests of half a second of each kind.
const REQUESTS: u32 = 2;
/// For the cost: samples outweigh everything else then.
const SHORT_PERIOD: &str = "1ms";

/// Adds all figures.
pub(super) fn measure(tools: &Tools, table: &mut Table) -> Result<()> {
    let program = compile("kernel_cost")?;
    let server = server(&program)?;
    let mut typical_us = 0.0;
    for &depth in DEPTHS {
        step(&format!("growth: stacks of {depth} frames"));
        complete(tools, &server, depth, table)?;
        let cost = Cost::measure(tools, &server, depth)?;
        let goal = match depth {
            TYPICAL => Goal::AtMost(20.0),
            _ => Goal::None,
        };
        let name = format!("stack of {depth} frames, computing: daemon CPU");
        table.add(name, cost.on_cpu_us, "us", goal);
        let name = format!("stack of {depth} frames, blocked: daemon CPU");
        table.add(name, cost.off_cpu_us, "us", Goal::None);
        if depth == TYPICAL {
            typical_us = cost.off_cpu_us;
        }
        if depth == DEEP {
            let per_frame = cost.off_cpu_us / f64::from(DEEP) / (typical_us / f64::from(TYPICAL));
            let name = format!("blocked: CPU per frame, {DEEP} frames / {TYPICAL}");
            table.add(name, per_frame, "", Goal::AtMost(1.2));
        }
    }
    Ok(())
}

fn server(program: &Path) -> Result<LocalServer> {
    let mut command = Command::new(program);
    command.arg("serve").env("SW_AGENT_NAME", SERVICE);
    LocalServer::start("kernel_cost", &mut command)
}

fn ask(server: &LocalServer, kind: &str, depth: u32, requests: u32) -> Result<()> {
    let target = format!("/{kind}/{depth}");
    latencies_ms(server.address(), "GET", &target, Until::Requests(requests))?;
    Ok(())
}

/// At the dump period of tasks: is every period there, and to its root?
fn complete(tools: &Tools, server: &LocalServer, depth: u32, table: &mut Table) -> Result<()> {
    let recording = tools.recording(SERVICE, "*", &[])?;
    ask(server, "spin", depth, REQUESTS)?;
    ask(server, "nap", depth, REQUESTS)?;
    let report = recording.finish_report()?;
    let expected = report.counter("periods_expected");
    let name = format!("stack of {depth} frames: dump periods with a snapshot, of {expected}");
    let share = report.share_of_periods();
    table.add(name, share, "", Goal::AtLeast(0.995));
    let stacks = report.counter("samples_on_cpu") + report.counter("samples_off_cpu");
    for (counter, what) in [
        ("stacks_cut", "bytes ran out"),
        ("stacks_too_deep", "its middle is left out"),
    ] {
        let count = report.counter(counter);
        // A typical stack is whole.
        let goal = match depth {
            0..=TYPICAL => Goal::AtMost(0.0),
            _ => Goal::None,
        };
        let name = format!("stack of {depth} frames: {what}, of {stacks}");
        table.add(name, count as f64, "", goal);
    }
    Ok(())
}

/// What one stack takes of the daemon's CPU time more than a tick without one.
struct Cost {
    on_cpu_us: f64,
    off_cpu_us: f64,
}

impl Cost {
    fn measure(tools: &Tools, server: &LocalServer, depth: u32) -> Result<Self> {
        let recording = tools.recording(SERVICE, "*", &["--period", SHORT_PERIOD])?;
        // The first stack of a depth is unwound and named for the first time.
        ask(server, "spin", depth, 1)?;
        ask(server, "nap", depth, 1)?;
        let mut used = Vec::new();
        for kind in ["sleep", "spin", "nap"] {
            let cpu = CpuMeter::start(recording.id())?;
            ask(server, kind, depth, REQUESTS)?;
            // The last samples are still being unwound.
            std::thread::sleep(Duration::from_millis(50));
            used.push(cpu.used()?);
        }
        let report = recording.finish_report()?;
        let stacks = snapshots(&report).context("a recording lacks requests")?;
        let us = |kind: usize| used[kind].as_secs_f64() * 1e6 / stacks[kind] as f64;
        Ok(Self {
            on_cpu_us: us(1) - us(0),
            off_cpu_us: us(2) - us(0),
        })
    }
}

/// Of each kind, in the order asked.
fn snapshots(report: &Report) -> Option<[usize; 3]> {
    let warm_up = 2;
    let each = REQUESTS as usize;
    let kind = |index: usize| {
        let first = warm_up + index * each;
        let segments = report.segments.get(first..first + each)?;
        let counts = segments.iter().map(|segment| segment.snapshots.len());
        Some(counts.sum::<usize>().max(1))
    };
    Some([kind(0)?, kind(1)?, kind(2)?])
}
