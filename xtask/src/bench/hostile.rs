//! A service is profiled while others attack the daemon: each attack alone, then all together.
//!
//! What is attacked is in docs/security.md. Here only: does the daemon answer, does the service lose samples, what
//! does the daemon take meanwhile.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use profiler_test_support::{
    ChildGuard, HttpClient, LocalServer, build_c, free_port, wait_until, workspace_root,
};

use super::cost::wait_for_report;
use super::load::{Pace, Until, latencies_ms, paced_server, start_ready};
use super::procfs::{self, CpuMeter};
use super::side::{REQUESTS_PER_TASK, Tools, task};
use super::table::{Goal, Table};
use crate::command::step;
use crate::daemon::Daemon;

/// The service that is profiled.
const SERVICE: &str = "bench-attacked";
/// The service of processes that attack.
const ATTACKER: &str = "attacker";
/// Least time of one attack.
const ATTACK_MIN: Duration = Duration::from_secs(20);
/// From the creation of a task until requests are looked at.
const ARMED_DEADLINE: Duration = Duration::from_secs(30);
/// The process is watched soon after that.
const SETTLE: Duration = Duration::from_secs(1);
/// What the requests of the service consist of; no multiples of the dump period.
const NAP: Duration = Duration::from_millis(27);
const SPIN: Duration = Duration::from_millis(19);
/// Between two questions whether the daemon is well.
const HEALTH_INTERVAL: Duration = Duration::from_millis(200);
/// An answer that takes longer is counted as one that took so long.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(10);
/// `limits.max_memory_mb`, the default.
const MEMORY_LIMIT_MB: f64 = 512.0;
/// Attacks of `tests/bench/hostile.py`.
const SCRIPTED: [&str; 7] = [
    "fragments",
    "silent",
    "unfinished",
    "deaf",
    "renames",
    "calls",
    "symbols",
];
/// No attack: processes that compute, as others do.
const BUSY: &str = "busy";
/// A process with a page that never arrives.
const STUCK: &str = "stuck";

/// Attacks with each, with none, and with all.
pub(super) fn measure(tools: &Tools, duration: Duration, table: &mut Table) -> Result<()> {
    let attack = duration.max(ATTACK_MIN);
    let stuck_server = stuck_server(&tools.folder)?;
    let alone = SCRIPTED.iter().chain([&STUCK]);
    let all: Vec<&str> = alone.clone().copied().collect();
    let mut rounds = vec![("no attack", Vec::new()), ("busy CPUs", vec![BUSY])];
    rounds.extend(alone.map(|&name| (name, vec![name])));
    rounds.push(("all attacks", all));
    for (name, attacks) in rounds {
        step(&format!("profiled under attack: {name}"));
        let figures = Round::start(tools, &stuck_server, &attacks)?.run(attack)?;
        let goal = Goal::AtMost(1000.0);
        table.add(
            format!("{name}: longest answer of /healthz"),
            figures.health_ms,
            "ms",
            goal,
        );
        let periods = format!(
            "{name}: dump periods with a snapshot, of {}",
            figures.expected
        );
        table.add(&periods, figures.share, "", Goal::AtLeast(0.99));
        let goal = Goal::AtMost(MEMORY_LIMIT_MB);
        table.add(
            format!("{name}: most resident memory"),
            figures.rss_mb,
            "MB",
            goal,
        );
        table.add(
            format!("{name}: daemon CPU"),
            figures.cpu_percent,
            "%",
            Goal::None,
        );
    }
    Ok(())
}

/// What one round came to.
struct Figures {
    health_ms: f64,
    expected: u64,
    share: f64,
    rss_mb: f64,
    cpu_percent: f64,
}

/// A daemon that profiles a service while it is attacked.
struct Round {
    daemon: Daemon,
    metrics: SocketAddr,
    _attackers: Vec<ChildGuard>,
    _stuck: Option<LocalServer>,
    _folders: [Scratch; 2],
}

impl Round {
    fn start(tools: &Tools, stuck_server: &Path, attacks: &[&str]) -> Result<Self> {
        let free =
            || -> Result<SocketAddr> { Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?))) };
        let (http, metrics) = (free()?, free()?);
        let [http_text, metrics_text] = [http, metrics].map(|address| address.to_string());
        let options = ["--http-listen", &http_text, "--metrics", &metrics_text];
        let daemon =
            Daemon::start_with(&tools.binary, &tools.folder.join("hostile.log"), &options)?;
        let token = daemon.token()?;
        let folder = Scratch::create(&std::env::temp_dir())?;
        // On tmpfs, whose pages userfaultfd can withhold.
        let stuck_folder = Scratch::create(Path::new("/dev/shm"))?;
        let mut stuck = None;
        let mut attackers = Vec::new();
        for &attack in attacks {
            if attack == STUCK {
                stuck = Some(start_stuck(stuck_server, &stuck_folder.0)?);
                continue;
            }
            let ports = [daemon.address(), http, metrics].map(|address| address.port().to_string());
            let mut command = Command::new("python3");
            command
                .arg(workspace_root().join("tests/bench/hostile.py"))
                .arg(attack)
                .args(ports)
                .arg(&token)
                .env("SW_AGENT_NAME", ATTACKER)
                .env("TMPDIR", &folder.0);
            attackers.push(start_ready(attack, &mut command)?);
        }
        if attacks.contains(&"symbols") {
            daemon.create_task(task(ATTACKER, "*"))?;
        }
        Ok(Self {
            daemon,
            metrics,
            _attackers: attackers,
            _stuck: stuck,
            _folders: [folder, stuck_folder],
        })
    }

    /// Profiles the service for so long.
    fn run(mut self, duration: Duration) -> Result<Figures> {
        // All requests of a task take that long together.
        let naps = duration.as_millis() / (NAP + SPIN).as_millis() / u128::from(REQUESTS_PER_TASK);
        let pace = Pace {
            naps: u32::try_from(naps)?,
            nap: NAP,
            spin: SPIN,
        };
        let server = paced_server(SERVICE, pace)?;
        let task_id = self.daemon.create_task(task(SERVICE, "GET:/hot"))?;
        let tgid = self.daemon.id();
        // Others may have had the programs attached before.
        wait_until("the task to be armed", ARMED_DEADLINE, || {
            self.daemon.still_running()?;
            Ok(self.daemon.is_armed(&task_id).then_some(()))
        })?;
        sleep(SETTLE);
        let is_over = AtomicBool::new(false);
        let cpu = CpuMeter::start(tgid)?;
        let (health_ms, rss_mb) = thread::scope(|scope| -> Result<_> {
            let health = scope.spawn(|| watch_health(self.metrics, tgid, &is_over));
            let until = Until::Requests(REQUESTS_PER_TASK);
            let asked = latencies_ms(server.address(), "GET", "/hot", until);
            is_over.store(true, Ordering::Relaxed);
            let seen = health.join().expect("the watch does not panic");
            asked?;
            seen
        })?;
        let cpu_percent = cpu.percent()?;
        let report = wait_for_report(&mut self.daemon, &task_id)?;
        let counts = report.coverage.iter();
        let counts = counts.filter(|(_, count)| count.as_u64().is_some_and(|count| count > 0));
        let counts: Vec<_> = counts.map(|(name, n)| format!("{name} {n}")).collect();
        step(&counts.join(", "));
        Ok(Figures {
            health_ms,
            expected: report.counter("periods_expected"),
            share: report.share_of_periods(),
            rss_mb,
            cpu_percent,
        })
    }
}

/// A folder that everybody may write to, and that goes with what is in it.
struct Scratch(PathBuf);

impl Scratch {
    fn create(parent: &Path) -> Result<Self> {
        let folder = parent.join(format!("profilerd-bench-{}", std::process::id()));
        let create = || -> std::io::Result<()> {
            fs::create_dir(&folder)?;
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777))
        };
        create().with_context(|| folder.display().to_string())?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // best effort
    }
}

/// Asks whether the daemon is well until `is_over`; the longest time to an answer, in milliseconds, and the most resident
/// memory, in megabytes.
fn watch_health(metrics: SocketAddr, tgid: u32, is_over: &AtomicBool) -> Result<(f64, f64)> {
    let (mut longest_ms, mut most_mb) = (0_f64, 0_f64);
    while !is_over.load(Ordering::Relaxed) {
        let start = Instant::now();
        let answer = HttpClient::connect(metrics, HEALTH_TIMEOUT)
            .and_then(|mut client| client.request("GET", "/healthz", ""));
        let took = match answer {
            Ok(answer) if answer.status == 200 => start.elapsed(),
            _ => HEALTH_TIMEOUT,
        };
        longest_ms = longest_ms.max(took.as_secs_f64() * 1000.0);
        most_mb = most_mb.max(procfs::rss_mb(tgid)?);
        sleep(HEALTH_INTERVAL);
    }
    Ok((longest_ms, most_mb))
}

/// The program of a process that withholds a page of a library.
fn stuck_server(folder: &Path) -> Result<PathBuf> {
    let program = folder.join("stuck_server");
    let source = workspace_root().join("tests/tests/daemon/stuck_server.c");
    build_c(&mut Command::new("cc"), &source, &program)?;
    Ok(program)
}

fn start_stuck(program: &Path, folder: &Path) -> Result<LocalServer> {
    let mut command = Command::new(program);
    command
        .args(["uffd", "library"])
        .arg(folder)
        .env("SW_AGENT_NAME", STUCK);
    LocalServer::start("the stuck server", &mut command)
}
