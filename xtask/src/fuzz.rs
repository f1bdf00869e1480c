//! `cargo xtask fuzz`: libFuzzer searches for bytes that a parser does not withstand.
//!
//! In:  the entry points of `profiler_daemon::fuzz`, one for each folder of `fuzz/seeds`
//! Out: a table; bytes that end a parser, hold it up or let it grow, in `fuzz/artifacts/<target>`
//!
//! What libFuzzer is told by the compiler needs no nightly toolchain:
//! <https://clang.llvm.org/docs/SanitizerCoverage.html>. The address sanitizer would, and is left out: the parsers
//! are safe Rust, whose faults are panics.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use profiler_test_support::workspace_root;

use crate::command::{cargo, output, run as run_command, step};
use crate::setup::{self, Group};

/// Names the entry point to the program of `fuzz/`.
const TARGET_VARIABLE: &str = "PROFILERD_FUZZ_TARGET";
/// Longest input; longer ones find nothing more, more slowly.
const INPUT_BYTES_MAX: u32 = 8192;
/// One input takes well below 100 ms, without the debugger's code that is built in here.
const INPUT_SECONDS_MAX: u32 = 20;
/// An entry point that takes more from 8 KiB has a fault.
const MEMORY_MB_MAX: u32 = 1024;
/// What each function tells of where it has been, which libFuzzer steers by.
const COVERAGE: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Arguments of `fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct FuzzArgs {
    /// Targets, folders of `fuzz/seeds`; all of them by default.
    targets: Vec<String>,
    /// Time for each target.
    #[arg(long, default_value_t = 1, conflicts_with = "seconds")]
    minutes: u32,
    /// Time for each target.
    #[arg(long)]
    seconds: Option<u32>,
    /// Targets at a time; by default as many as there are CPUs.
    #[arg(long)]
    jobs: Option<usize>,
}

/// Runs `fuzz`.
pub(crate) fn run(args: &FuzzArgs) -> Result<ExitCode> {
    let known = targets()?;
    for target in &args.targets {
        if !known.contains(target) {
            bail!("no target `{target}`: there are {}", known.join(", "));
        }
    }
    let chosen = if args.targets.is_empty() {
        known
    } else {
        args.targets.clone()
    };
    let seconds = args.seconds.unwrap_or(60 * args.minutes);
    let searches = search(&chosen, seconds, args.jobs, Corpus::Kept)?;
    let mut failed = false;
    println!("{:<18} {:>12} {:>8}", "target", "inputs", "corpus");
    for search in &searches {
        match &search.result {
            Ok(found) => println!(
                "{:<18} {:>12} {:>8}",
                search.target, found.inputs, found.kept
            ),
            Err(error) => {
                failed = true;
                println!("{:<18} FAILED: {error:#}", search.target);
            }
        }
    }
    Ok(ExitCode::from(u8::from(failed)))
}

/// Searches in all targets, for so long each, from the seeds alone: for each the error, if there is one.
pub(crate) fn check(seconds: u32) -> Result<Vec<(String, Result<()>)>> {
    let searches = search(&targets()?, seconds, None, Corpus::Thrown)?;
    let result = |search: Search| (search.target, search.result.map(drop));
    Ok(searches.into_iter().map(result).collect())
}

/// What is done with inputs that got further than those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Corpus {
    /// They are in `fuzz/corpus`, without those that others stand for, and the next search begins with them.
    Kept,
    /// Every search is the first.
    Thrown,
}

/// The outcome for one target.
struct Search {
    target: String,
    result: Result<Found>,
}

/// What a search came to that found no fault.
struct Found {
    /// Inputs that were tried.
    inputs: String,
    /// Inputs in the corpus now.
    kept: usize,
}

/// The names of all targets.
fn targets() -> Result<Vec<String>> {
    let folder = fuzz_folder().join("seeds");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn search(
    targets: &[String],
    seconds: u32,
    jobs: Option<usize>,
    corpus: Corpus,
) -> Result<Vec<Search>> {
    setup::ensure(&[Group::Build])?;
    let jobs = match jobs {
        Some(jobs) => jobs,
        None => thread::available_parallelism()?.get(),
    };
    let program = build(jobs)?;
    let next = Mutex::new(targets.iter());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, targets.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let Some(target) = next.lock().expect("no worker has panicked").next() else {
                        return;
                    };
                    step(&format!("fuzz {target}, {seconds} s"));
                    let result = search_one(&program, target, seconds, corpus);
                    let target = target.clone();
                    done.lock()
                        .expect("no worker has panicked")
                        .push(Search { target, result });
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no worker has panicked");
    done.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(done)
}

/// Builds the program that has all entry points; its path.
fn build(jobs: usize) -> Result<PathBuf> {
    step("cargo build in fuzz/");
    let version = output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("`rustc -vV` names no host")?;
    // With a named target build scripts are built without the flags.
    run_command(
        cargo()
            .current_dir(fuzz_folder())
            .args([
                "build",
                "--locked",
                "--target",
                host,
                "--jobs",
                &jobs.to_string(),
            ])
            .env("RUSTFLAGS", COVERAGE.join(" "))
            .env_remove("CARGO_TARGET_DIR"),
    )?;
    Ok(fuzz_folder().join(format!("target/{host}/debug/parsers")))
}

fn search_one(program: &Path, target: &str, seconds: u32, corpus: Corpus) -> Result<Found> {
    let seeds = fuzz_folder().join("seeds").join(target);
    let kept = match corpus {
        Corpus::Kept => fuzz_folder().join("corpus").join(target),
        Corpus::Thrown => fuzz_folder().join("target/corpus").join(target),
    };
    if corpus == Corpus::Thrown && kept.exists() {
        fs::remove_dir_all(&kept)?;
    }
    let artifacts = fuzz_folder().join("artifacts").join(target);
    for folder in [&kept, &artifacts] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let mut command = Command::new(program);
    command
        .env(TARGET_VARIABLE, target)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={INPUT_BYTES_MAX}"))
        .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
        .arg(format!("-rss_limit_mb={MEMORY_MB_MAX}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        .args([&kept, &seeds]);
    if corpus == Corpus::Thrown {
        // The same search each time, as far as the machine's pace lets it be.
        command.arg("-seed=1");
    }
    let said = said(&mut command)?;
    let inputs = said
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units: "));
    let inputs = inputs.unwrap_or("?").trim().to_owned();
    if corpus == Corpus::Kept {
        thin(program, target, &kept)?;
    }
    let kept = fs::read_dir(&kept)?.count();
    Ok(Found { inputs, kept })
}

/// Leaves in a corpus only inputs that get somewhere the others do not.
fn thin(program: &Path, target: &str, kept: &Path) -> Result<()> {
    let thinned = kept.with_extension("thin");
    if thinned.exists() {
        fs::remove_dir_all(&thinned)?;
    }
    fs::create_dir_all(&thinned)?;
    let mut command = Command::new(program);
    command
        .env(TARGET_VARIABLE, target)
        .arg("-merge=1")
        .arg(format!("-max_len={INPUT_BYTES_MAX}"))
        .args([&thinned, kept]);
    said(&mut command)?;
    fs::remove_dir_all(kept)?;
    fs::rename(&thinned, kept)?;
    Ok(())
}

/// Runs the program to its end and returns what it said. Fails with the end of that if it found a fault.
fn said(command: &mut Command) -> Result<String> {
    let output = command
        .current_dir(fuzz_folder())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .with_context(|| format!("failed to start {:?}", command.get_program()))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<_> = said.lines().collect();
    let end = lines[lines.len().saturating_sub(25)..].join("\n");
    ensure!(output.status.success(), "{}\n{end}", output.status);
    Ok(said)
}

fn fuzz_folder() -> PathBuf {
    workspace_root().join("fuzz")
}
