//! `cargo xtask bench`: what profiling costs and what it misses, as ratios and counts of one run.
//!
//! Bare and profiled repetitions alternate, each profiled one with a new daemon, so that a machine that
//! becomes slower or hotter meanwhile changes both sides alike. "Bare" is without any daemon.

mod agent;
mod cost;
mod exactness;
mod growth;
mod hostile;
mod kernel;
mod load;
mod procfs;
mod side;
mod side_by_side;
mod skywalking;
mod statistics;
mod table;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum as _;
use profiler_test_support::target_dir;

use self::side::Tools;
use self::table::Table;
use crate::daemon::{build, require_root};
use crate::setup::{self, Group};

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Section {
    /// A daemon without a task, and a window of discovery.
    Rest,
    /// The Python service beside the Python agent and py-spy.
    Python,
    /// A server that does nothing but respond.
    Native,
    /// Durations and snapshots, compared with the service's own times.
    Exactness,
    /// Completeness of what is sampled, and kernel time per program run.
    Cost,
    /// Time added to system calls, context switches and ticks.
    Kernel,
    /// Tasks of a SkyWalking OAP.
    Oap,
    /// How cost grows with processes, tasks, threads, requests and stacks, and over time.
    Growth,
    /// A profiled service while others attack the daemon.
    Hostile,
}

impl Section {
    /// What it needs besides what every part does.
    fn groups(self) -> &'static [Group] {
        match self {
            Self::Python | Self::Exactness => &[Group::Oap, Group::Bench],
            Self::Oap => &[Group::Oap],
            Self::Rest | Self::Native | Self::Cost | Self::Kernel => &[],
            Self::Growth | Self::Hostile => &[],
        }
    }
}

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Only these parts.
    #[arg(value_enum)]
    sections: Vec<Section>,
    /// Repetitions of each side.
    #[arg(long, default_value_t = 5)]
    repetitions: u32,
    /// Seconds of each load.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Also write the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Between two readings of [`read_until`].
const READ_INTERVAL: Duration = Duration::from_millis(200);

/// Reads until it is enough, for so long; yields the last reading, enough or not.
fn read_until<T>(
    deadline: Duration,
    mut read: impl FnMut() -> Result<T>,
    is_enough: impl Fn(&T) -> bool,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        let reading = read()?;
        if is_enough(&reading) || Instant::now() >= end {
            return Ok(reading);
        }
        sleep(READ_INTERVAL);
    }
}

/// Runs `bench`.
pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    require_root("bench")?;
    let wanted = |section| args.sections.is_empty() || args.sections.contains(&section);
    let mut groups = vec![Group::Build, Group::Test];
    let sections = Section::value_variants().iter().copied();
    groups.extend(sections.filter(|it| wanted(*it)).flat_map(Section::groups));
    setup::ensure(&groups)?;
    let folder = target_dir().join("bench");
    fs::create_dir_all(&folder)?;
    allow_many_connections()?;
    let tools = Tools {
        binary: build(true)?,
        folder,
    };
    let mut table = Table {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
            .trim()
            .to_owned(),
        cpus: std::thread::available_parallelism()?.get(),
        figures: Vec::new(),
        comparisons: Vec::new(),
        exactness: Vec::new(),
        programs: Vec::new(),
    };
    let repetitions = args.repetitions.max(1);
    let duration = Duration::from_secs(args.seconds.max(1));
    if wanted(Section::Rest) {
        cost::at_rest(&tools, &mut table)?;
        cost::window(&tools, &mut table)?;
    }
    if wanted(Section::Python) {
        side_by_side::python(&tools, repetitions, duration, &mut table)?;
    }
    if wanted(Section::Native) {
        side_by_side::native(&tools, repetitions, duration, &mut table)?;
    }
    if wanted(Section::Exactness) {
        exactness::measure(&tools, &mut table)?;
    }
    if wanted(Section::Cost) {
        cost::profiled(&tools, duration, &mut table)?;
    }
    if wanted(Section::Kernel) {
        kernel::measure(&tools, repetitions, &mut table)?;
    }
    if wanted(Section::Oap) {
        skywalking::measure(&tools.binary, &tools.folder, &mut table)?;
    }
    if wanted(Section::Growth) {
        growth::measure(&tools, duration, &mut table)?;
    }
    if wanted(Section::Hostile) {
        hostile::measure(&tools, duration, &mut table)?;
    }
    print!("{}", table.to_text());
    if let Some(file) = &args.json {
        fs::write(file, serde_json::to_vec_pretty(&table)?)
            .with_context(|| format!("failed to write {}", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// As many open files as we may have: two for each connection.
fn allow_many_connections() -> Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` has room for what is written.
    let read = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is read only.
    let written = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    anyhow::ensure!(
        read == 0 && written == 0,
        "the limit of open files stays as it is"
    );
    Ok(())
}
