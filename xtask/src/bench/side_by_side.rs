//! The cost of each profiler for a request and its server, compared with bare repetitions of the same run.
//!
//! Each repetition measures every side once, and the order turns by one from repetition to repetition, so
//! that no side always follows the same other one. A ratio is to the bare measurement of its repetition.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use profiler_test_support::SampleService;

use super::agent::AgentStage;
use super::load::{Load, Until, hot_load, hot_server, load};
use super::procfs::{CpuMeter, rss_mb};
use super::side::{Tools, UNMATCHED};
use super::statistics::Spread;
use super::table::{Comparison, Goal, Row, Table};
use crate::command::step;

/// What is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Bare,
    /// A daemon with a task that no request matches.
    Armed,
    /// Every request is seen, as in a window of discovery.
    Seen,
    /// Every request is profiled.
    Matched,
    /// SkyWalking's Python agent in the process, without a task.
    Agent,
    /// The same with a task of its own for this endpoint, which takes nine requests.
    AgentTask,
    PySpy,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Armed => "profilerd, nothing matches",
            Self::Seen => "profilerd endpoints, all seen",
            Self::Matched => "profilerd, all match, 10 ms",
            Self::Agent => "Python agent",
            Self::AgentTask => "Python agent, own task, 10 ms",
            Self::PySpy => "py-spy, 100 Hz",
        }
    }
}

/// What one side showed in one repetition.
#[derive(Debug)]
struct Measured {
    load: Load,
    /// CPU time of the server, and with it what programs add to its threads.
    server_ms_per_request: f64,
    /// The profiler's own process, if it is one.
    profiler: Option<Profiler>,
}

#[derive(Debug)]
struct Profiler {
    cpu_percent: f64,
    rss_mb: f64,
}

/// A load that is put on a server.
#[derive(Clone, Copy, Debug)]
struct Workload<'a> {
    title: &'a str,
    target: &'a str,
    clients: u32,
    /// wrk's connections; else clients that tell each latency.
    is_hot: bool,
    duration: Duration,
}

impl Workload<'_> {
    fn put_on(&self, server: SocketAddr) -> Result<Load> {
        if self.is_hot {
            hot_load(server, self.target, self.clients, self.duration)
        } else {
            let until = Until::Elapsed(self.duration);
            load(server, "GET", self.target, self.clients, until)
        }
    }
}

/// The Python service: every side, a computing and a sleeping endpoint, one and eight clients.
pub(super) fn python(
    tools: &Tools,
    repetitions: u32,
    duration: Duration,
    table: &mut Table,
) -> Result<()> {
    let stage = PythonStage::start(tools)?;
    let sides = [
        Side::Bare,
        Side::Armed,
        Side::Seen,
        Side::Matched,
        Side::Agent,
        Side::AgentTask,
        Side::PySpy,
    ];
    for (title, target, clients) in [
        ("Python, computes 30 ms, 1 client", "/work", 1),
        ("Python, sleeps 30 ms, 1 client", "/nap", 1),
        ("Python, computes 30 ms, 8 clients", "/work", 8),
        ("Python, sleeps 30 ms, 8 clients", "/nap", 8),
    ] {
        let workload = Workload {
            title,
            target,
            clients,
            is_hot: false,
            duration,
        };
        let comparison = compare(&workload, &sides, repetitions, |side| {
            stage.measure(side, &workload)
        })?;
        let ratio = |side: Side, column: fn(&Row) -> Option<Spread>| {
            let row = comparison.rows.iter().find(|row| row.side == side.name());
            row.and_then(column).map_or(0.0, |spread| spread.median)
        };
        if clients == 1 {
            let rate = ratio(Side::Armed, |row| row.rate_ratio);
            let name = format!("{title}: throughput armed / bare");
            table.add(name, rate, "", Goal::AtLeast(0.99));
        }
        let p50 = ratio(Side::Matched, |row| row.p50_ratio);
        let name = format!("{title}: p50 with all requests matched / bare");
        table.add(name, p50, "", Goal::AtMost(1.02));
        let agent = ratio(Side::AgentTask, |row| row.p50_ratio);
        let name = format!("{title}: the same / the Python agent's");
        table.add(name, p50 / agent, "", Goal::AtMost(1.0));
        table.comparisons.push(comparison);
    }
    Ok(())
}

/// The hot native server: a profiler's cost per system call shows here.
pub(super) fn native(
    tools: &Tools,
    repetitions: u32,
    duration: Duration,
    table: &mut Table,
) -> Result<()> {
    const SERVICE: &str = "bench-hot";
    let server = hot_server(SERVICE)?;
    let target = Target {
        address: server.address(),
        tgid: server.id(),
        service: SERVICE,
        // A thousand requests are over in no time: none is kept, all are followed to their end.
        record_options: &["--min-duration", "10s"],
    };
    for (title, clients) in [
        ("hot native server, 8 connections", 8),
        ("hot native server, 2000 connections", 2000),
    ] {
        let workload = Workload {
            title,
            target: "/hot",
            clients,
            is_hot: true,
            duration,
        };
        let sides = [Side::Bare, Side::Armed, Side::Seen, Side::Matched];
        let comparison = compare(&workload, &sides, repetitions, |side| {
            measure(tools, target, side, &workload)
        })?;
        let armed = &comparison.rows[1];
        let ratio = armed.rate_ratio.map_or(0.0, |spread| spread.median);
        let name = format!("{title}: throughput armed / bare");
        table.add(name, ratio, "", Goal::AtLeast(0.97));
        table.comparisons.push(comparison);
    }
    Ok(())
}

fn compare(
    workload: &Workload<'_>,
    sides: &[Side],
    repetitions: u32,
    mut measure: impl FnMut(Side) -> Result<Measured>,
) -> Result<Comparison> {
    step(workload.title);
    let mut measured: Vec<Vec<Measured>> = sides.iter().map(|_| Vec::new()).collect();
    for repetition in 0..repetitions as usize {
        for position in 0..sides.len() {
            let index = (position + repetition) % sides.len();
            let side = sides[index];
            let one = measure(side).with_context(|| side.name())?;
            measured[index].push(one);
        }
    }
    let bare = sides.iter().position(|side| *side == Side::Bare);
    let bare = &measured[bare.context("nothing to compare with")?];
    let rows = sides.iter().zip(&measured);
    Ok(Comparison {
        title: workload.title.to_owned(),
        repetitions,
        rows: rows
            .map(|(side, side_measured)| row(*side, side_measured, bare))
            .collect(),
    })
}

fn row(side: Side, measured: &[Measured], bare: &[Measured]) -> Row {
    let column = |of: fn(&Measured) -> f64| measured.iter().map(of).collect::<Vec<_>>();
    let ratio = |of: fn(&Measured) -> f64| {
        let base: Vec<f64> = bare.iter().map(of).collect();
        (side != Side::Bare).then(|| Spread::of_ratios(&column(of), &base))
    };
    let profiler = |of: fn(&Profiler) -> f64| {
        let values: Vec<f64> = measured
            .iter()
            .filter_map(|m| m.profiler.as_ref())
            .map(of)
            .collect();
        (!values.is_empty()).then(|| Spread::of(&values))
    };
    Row {
        side: side.name(),
        requests: measured.iter().map(|m| m.load.requests).sum(),
        rate: Spread::of(&column(|m| m.load.rate)),
        p50_ms: Spread::of(&column(|m| m.load.p50_ms)),
        p99_ms: Spread::of(&column(|m| m.load.p99_ms)),
        rate_ratio: ratio(|m| m.load.rate),
        p50_ratio: ratio(|m| m.load.p50_ms),
        p99_ratio: ratio(|m| m.load.p99_ms),
        server_cpu_ratio: ratio(|m| m.server_ms_per_request),
        profiler_cpu_percent: profiler(|p| p.cpu_percent),
        profiler_rss_mb: profiler(|p| p.rss_mb),
    }
}

/// A server that is loaded.
#[derive(Clone, Copy)]
struct Target<'a> {
    address: SocketAddr,
    tgid: u32,
    service: &'a str,
    /// Of the recording of all its requests.
    record_options: &'a [&'a str],
}

/// Puts the load on, and looks at what server and profiler used meanwhile.
fn observe(target: Target<'_>, profiler: Option<u32>, workload: &Workload<'_>) -> Result<Measured> {
    let server_cpu = CpuMeter::start(target.tgid)?;
    let profiler_cpu = profiler.map(CpuMeter::start).transpose()?;
    let load = workload.put_on(target.address)?;
    let server_ms = server_cpu.used()?.as_secs_f64() * 1000.0;
    let profiler = match (profiler, profiler_cpu) {
        (Some(tgid), Some(cpu)) => Some(Profiler {
            cpu_percent: cpu.percent()?,
            rss_mb: rss_mb(tgid)?,
        }),
        _ => None,
    };
    Ok(Measured {
        server_ms_per_request: server_ms / load.requests.max(1) as f64,
        load,
        profiler,
    })
}

/// One side that needs nothing inside the server; agents are in it or not.
fn measure(
    tools: &Tools,
    target: Target<'_>,
    side: Side,
    workload: &Workload<'_>,
) -> Result<Measured> {
    match side {
        Side::Bare | Side::Agent | Side::AgentTask => observe(target, None, workload),
        Side::Armed => {
            let (daemon, _) = tools.armed(target.service, UNMATCHED)?;
            observe(target, Some(daemon.id()), workload)
        }
        Side::Seen => {
            let look = tools.look(target.service)?;
            let measured = observe(target, Some(look.id()), workload)?;
            look.finish()?;
            Ok(measured)
        }
        Side::Matched => {
            let recording = tools.recording(target.service, "*", target.record_options)?;
            let measured = observe(target, Some(recording.id()), workload)?;
            recording.finish()?;
            Ok(measured)
        }
        Side::PySpy => {
            let recording = tools.py_spy(target.tgid, &["--format", "raw"])?;
            observe(target, Some(recording.id()), workload)
        }
    }
}

/// The Python services that live through all repetitions.
struct PythonStage<'a> {
    tools: &'a Tools,
    plain: SampleService,
    // Before the OAP it reports to, so that it ends first.
    with_agent: SampleService,
    agents: AgentStage,
}

impl<'a> PythonStage<'a> {
    const SERVICE: &'static str = "bench-python";

    fn start(tools: &'a Tools) -> Result<Self> {
        let agents = AgentStage::start(tools)?;
        Ok(Self {
            tools,
            plain: SampleService::start(Path::new("python3"), Self::SERVICE, None)?,
            with_agent: agents.without_task("bench-agent")?,
            agents,
        })
    }

    fn measure(&self, side: Side, workload: &Workload<'_>) -> Result<Measured> {
        let with_task;
        let service = match side {
            Side::Agent => &self.with_agent,
            Side::AgentTask => {
                let target = workload.target;
                with_task = self.agents.with_task("sample_service.py", target, None)?;
                &with_task.service
            }
            _ => &self.plain,
        };
        let target = Target {
            address: service.address(),
            tgid: service.id(),
            service: Self::SERVICE,
            record_options: &[],
        };
        measure(self.tools, target, side, workload)
    }
}
