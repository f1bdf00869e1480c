//! Attaches and detaches many times in one process, and prints what the process takes after each time.
//!
//! ```text
//! endurance attach ROUNDS       the kernel side alone: programs stay loaded
//! endurance record ROUNDS PID   whole recordings of one request each to GET:/hot of the process: programs are
//!                               loaded, attached, detached and unloaded, threads started and ended
//! ```
//!
//! One line of JSON a round: `cpu_us` since the round before, `rss_bytes`, `open_fds`, `threads`, `mappings`.
//! `cargo xtask bench growth` compares the first of them with the last. A task of SkyWalking lasts a minute
//! at least: so many tasks of a daemon would take a day.

use std::fs;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use profiler_daemon::app;
use profiler_daemon::config::Config;
use profiler_daemon::kernel::{Kernel, LoadOptions};
use profiler_daemon::model::{Pid, Progress, ProgressState, RecordRequest, RecordTarget};
use profiler_daemon::usage::Usage;
use serde_json::json;

const PERIOD: Duration = Duration::from_millis(10);
/// A recording ends with its first request.
const RECORD_DEADLINE: Duration = Duration::from_secs(30);

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["attach", rounds] => attach(number(rounds)?),
        ["record", rounds, tgid] => record(number(rounds)?, Pid(number(tgid)?)),
        _ => bail!("usage: endurance attach ROUNDS | endurance record ROUNDS PID"),
    }
}

fn number(word: &str) -> Result<u32> {
    word.parse().with_context(|| format!("{word} is no number"))
}

fn attach(rounds: u32) -> Result<()> {
    let mut kernel = Kernel::load(&LoadOptions::default())?;
    repeat(rounds, || {
        kernel.attach(PERIOD)?;
        kernel.detach()?;
        Ok(())
    })
}

fn record(rounds: u32, pid: Pid) -> Result<()> {
    let config = Config::default();
    let request = RecordRequest {
        endpoint: "GET:/hot".to_owned(),
        target: RecordTarget::Pid(pid),
        duration: RECORD_DEADLINE,
        dump_period: PERIOD,
        min_duration: Duration::ZERO,
        max_requests: 1,
    };
    repeat(rounds, || {
        let report = app::record(&config, &request, &Unwatched)?;
        let [segment] = &report.segments[..] else {
            bail!("{} requests instead of one", report.segments.len());
        };
        ensure!(!segment.snapshots.is_empty(), "a request without snapshots");
        Ok(())
    })
}

struct Unwatched;

impl Progress for Unwatched {
    fn update(&self, _state: ProgressState) {}
}

/// Prints a line for each round.
fn repeat(rounds: u32, mut round: impl FnMut() -> Result<()>) -> Result<()> {
    let mut cpu = Usage::now()?.cpu;
    for number in 0..rounds {
        round().with_context(|| format!("round {number}"))?;
        let usage = Usage::now()?;
        let line = json!({
            "cpu_us": usage.cpu.saturating_sub(cpu).as_micros() as u64,
            "rss_bytes": usage.rss_bytes,
            "open_fds": usage.open_fds,
            "threads": fs::read_dir("/proc/self/task")?.count(),
            "mappings": fs::read_to_string("/proc/self/maps")?.lines().count(),
        });
        writeln!(std::io::stdout(), "{line}")?;
        cpu = Usage::now()?.cpu;
    }
    Ok(())
}
