//! A day of short tasks in minutes: attach and detach, over and over, in one process.

use std::process::Command;
use std::slice;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use profiler_test_support::target_dir;
use serde::Deserialize;
use serde_json::Value;

use super::{SHORT, while_requests_come};
use crate::bench::load::paced_server;
use crate::bench::read_until;
use crate::bench::statistics::median;
use crate::bench::table::{Goal, Table};
use crate::command::{cargo, output, run, step};

const SERVICE: &str = "bench-endurance";
/// A task a minute makes 1,440 a day.
const ATTACHMENTS: u32 = 2000;
const RECORDINGS: u32 = 200;
/// Of memory and CPU time, for what an allocator and a busy machine add.
const FLAT: f64 = 1.05;
/// The kernel frees what has no user left some time later.
const FREED_DEADLINE: Duration = Duration::from_secs(10);

/// One round of `tests/src/bin/endurance.rs`.
#[derive(Clone, Debug, Deserialize)]
struct Round {
    cpu_us: f64,
    rss_bytes: f64,
    open_fds: f64,
    threads: f64,
    mappings: f64,
}

/// One figure of a round.
type Column = fn(&Round) -> f64;

/// Adds all figures.
pub(super) fn measure(table: &mut Table) -> Result<()> {
    step("build tests/src/bin/endurance.rs");
    let mut build = cargo();
    build.args(["build", "--locked", "--quiet", "--release"]);
    run(build.args(["-p", "profiler-tests", "--bin", "endurance"]))?;

    step(&format!("growth: attach and detach {ATTACHMENTS} times"));
    let rounds = run_rounds(&["attach", &ATTACHMENTS.to_string()])?;
    add("attach and detach", &rounds, table)?;

    step(&format!("growth: {RECORDINGS} recordings in one process"));
    let server = paced_server(SERVICE, SHORT)?;
    let objects = BpfObjects::count()?;
    let rounds = while_requests_come(slice::from_ref(&server), || {
        let tgid = server.id().to_string();
        run_rounds(&["record", &RECORDINGS.to_string(), &tgid])
    })?;
    add("recording of a request", &rounds, table)?;
    objects.add_difference(table)
}

fn run_rounds(args: &[&str]) -> Result<Vec<Round>> {
    let text = output(Command::new(target_dir().join("release/endurance")).args(args))?;
    let line = |line| serde_json::from_str(line).context("a round of the endurance program");
    text.lines().map(line).collect()
}

/// The last quarter beside the first.
fn add(what: &str, rounds: &[Round], table: &mut Table) -> Result<()> {
    let quarter = rounds.len() / 4;
    ensure!(quarter > 0, "too few rounds of {what}");
    let (first, last) = (&rounds[..quarter], &rounds[rounds.len() - quarter..]);
    let middle = |part: &[Round], of: Column| {
        let values: Vec<f64> = part.iter().map(of).collect();
        median(&values)
    };
    let count = rounds.len();
    let name = format!("{what}, {count} times: CPU");
    let cpu_ms = middle(rounds, |round| round.cpu_us) / 1000.0;
    table.add(name, cpu_ms, "ms", Goal::None);
    let ratios: [(&str, Column); 2] = [
        ("CPU", |round| round.cpu_us),
        ("resident memory", |round| round.rss_bytes),
    ];
    for (figure, of) in ratios {
        let ratio = middle(last, of) / middle(first, of);
        let name = format!("{what}: {figure}, last quarter / first");
        table.add(name, ratio, "", Goal::AtMost(FLAT));
    }
    let counts: [(&str, Column); 3] = [
        ("descriptors", |round| round.open_fds),
        ("threads", |round| round.threads),
        ("mappings", |round| round.mappings),
    ];
    for (figure, of) in counts {
        let more = middle(last, of) - middle(first, of);
        let name = format!("{what}: {figure} more in the last quarter");
        table.add(name, more, "", Goal::AtMost(0.0));
    }
    Ok(())
}

/// Of the whole machine: what nobody's descriptor shows.
struct BpfObjects {
    programs: usize,
    maps: usize,
}

impl BpfObjects {
    fn count() -> Result<Self> {
        let of = |kind| -> Result<usize> {
            let text = output(Command::new("bpftool").args(["--json", kind, "show"]))?;
            let list: Vec<Value> = serde_json::from_str(&text).context("bpftool's list")?;
            Ok(list.len())
        };
        Ok(Self {
            programs: of("prog")?,
            maps: of("map")?,
        })
    }

    fn add_difference(&self, table: &mut Table) -> Result<()> {
        let now = read_until(FREED_DEADLINE, Self::count, |now| {
            now.programs <= self.programs && now.maps <= self.maps
        })?;
        for (what, before, now) in [
            ("programs", self.programs, now.programs),
            ("maps", self.maps, now.maps),
        ] {
            let name = format!("after all recordings: BPF {what} more than before");
            table.add(name, now as f64 - before as f64, "", Goal::AtMost(0.0));
        }
        Ok(())
    }
}
