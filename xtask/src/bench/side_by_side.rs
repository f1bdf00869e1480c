//! What a request and its server lose to each profiler, beside bare repetitions of the same run.
//!
//! Each repetition measures every side once, and the order turns by one from repetition to repetition, so
//! that no side always follows the same other one. A ratio is to the bare measurement of its repetition.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use profiler_test_support::{LocalServer, SampleService, python_agent_command, wait_until};

use super::load::{Load, Until, hot_load, hot_server, load};
use super::procfs;
use super::side::{REQUESTS_PER_TASK, Tools, UNMATCHED};
use super::statistics::Spread;
use super::table::{Comparison, Goal, Row, Table};
use crate::command::step;
use crate::daemon::{Daemon, TaskRequest};

/// From the creation of a task until an agent that starts afterwards has got it.
const AGENT_DEADLINE: Duration = Duration::from_secs(30);
/// An agent begins to profile some time after it has got its task.
const AGENT_ARMS: Duration = Duration::from_millis(1000);

/// Names of services: an OAP takes one task of a service at a time.
static AGENTS: AtomicU32 = AtomicU32::new(2);

/// What is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Bare,
    /// A daemon with a task that no request matches.
    Armed,
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
        let sides = [Side::Bare, Side::Armed, Side::Matched];
        let comparison = compare(&workload, &sides, repetitions, |side| {
            measure_hot(tools, &server, SERVICE, side, &workload)
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

/// Puts the load on, and looks at what server and profiler used meanwhile.
fn observe(
    server: SocketAddr,
    server_tgid: u32,
    profiler: Option<u32>,
    workload: &Workload<'_>,
) -> Result<Measured> {
    let cpu = |tgid: Option<u32>| tgid.map(procfs::cpu_time).transpose();
    let before = (procfs::cpu_time(server_tgid)?, cpu(profiler)?);
    let start = Instant::now();
    let load = workload.put_on(server)?;
    let elapsed = start.elapsed().as_secs_f64();
    let used = procfs::cpu_time(server_tgid)?.saturating_sub(before.0);
    let profiler = match (profiler, before.1, cpu(profiler)?) {
        (Some(tgid), Some(before), Some(after)) => Some(Profiler {
            cpu_percent: after.saturating_sub(before).as_secs_f64() / elapsed * 100.0,
            rss_mb: procfs::rss_bytes(tgid)? as f64 / 1e6,
        }),
        _ => None,
    };
    Ok(Measured {
        server_ms_per_request: used.as_secs_f64() * 1000.0 / load.requests.max(1) as f64,
        load,
        profiler,
    })
}

fn measure_hot(
    tools: &Tools,
    server: &LocalServer,
    service: &str,
    side: Side,
    workload: &Workload<'_>,
) -> Result<Measured> {
    let (address, tgid) = (server.address(), server.id());
    match side {
        Side::Armed => {
            let (daemon, _) = tools.armed(service, UNMATCHED)?;
            observe(address, tgid, Some(daemon.id()), workload)
        }
        Side::Matched => {
            // A thousand requests are over in no time: none is kept, all are followed to their end.
            let recording = tools.recording(service, "*", &["--min-duration", "10s"])?;
            observe(address, tgid, Some(recording.id()), workload)
        }
        _ => observe(address, tgid, None, workload),
    }
}

/// The Python services that live through all repetitions.
struct PythonStage<'a> {
    tools: &'a Tools,
    plain: SampleService,
    with_agent: SampleService,
    /// Takes what agents report; profiles nothing.
    oap: Daemon,
}

impl<'a> PythonStage<'a> {
    const SERVICE: &'static str = "bench-python";

    fn start(tools: &'a Tools) -> Result<Self> {
        // Processes of agents are another service here than the one they report, so that their tasks are
        // theirs alone.
        let config = tools.folder.join("agents-alone.yaml");
        fs::write(
            &config,
            "services: [{match: {command: sample_service}, service: not-an-agent}]\n",
        )?;
        let config = config.to_str().context("a path that is no text")?;
        let log = tools.folder.join("profilerd-oap.log");
        let oap = Daemon::start_with(&tools.binary, &log, &["--config", config])?;
        let agent = python_agent_command(oap.address(), "bench-agent-1");
        Ok(Self {
            tools,
            plain: SampleService::start(Path::new("python3"), Self::SERVICE, None)?,
            with_agent: SampleService::start_by(agent, "bench-agent", None)?,
            oap,
        })
    }

    fn measure(&self, side: Side, workload: &Workload<'_>) -> Result<Measured> {
        let (address, tgid) = (self.plain.address(), self.plain.id());
        match side {
            Side::Bare => observe(address, tgid, None, workload),
            Side::Armed => {
                let (daemon, _) = self.tools.armed(Self::SERVICE, UNMATCHED)?;
                observe(address, tgid, Some(daemon.id()), workload)
            }
            Side::Matched => {
                let recording = self.tools.recording(Self::SERVICE, "*", &[])?;
                let measured = observe(address, tgid, Some(recording.id()), workload)?;
                recording.finish_json()?;
                Ok(measured)
            }
            Side::PySpy => {
                let recording = self.tools.py_spy(tgid, &["--format", "raw"])?;
                observe(address, tgid, Some(recording.id()), workload)
            }
            Side::Agent => {
                let service = &self.with_agent;
                observe(service.address(), service.id(), None, workload)
            }
            Side::AgentTask => {
                let service = self.agent_with_task(workload.target)?;
                observe(service.address(), service.id(), None, workload)
            }
        }
    }

    /// A new process under the agent, which takes a task at its start. A service runs one task at a time.
    fn agent_with_task(&self, target: &str) -> Result<SampleService> {
        let name = format!("bench-agent-{}", AGENTS.fetch_add(1, Ordering::Relaxed));
        let task_id = self.oap.create_task(TaskRequest {
            service: &name,
            endpoint: target,
            duration_minutes: 15,
            dump_period_ms: 10,
            max_sampling_count: REQUESTS_PER_TASK,
        })?;
        let agent = python_agent_command(self.oap.address(), &format!("{name}-1"));
        let service = SampleService::start_by(agent, &name, None)?;
        wait_until("the agent to take its task", AGENT_DEADLINE, || {
            Ok(self.oap.is_notified(&task_id)?.then_some(()))
        })?;
        sleep(AGENT_ARMS);
        Ok(service)
    }
}
