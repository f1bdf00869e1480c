//! `cargo xtask test`: every ring of tests in one run, and one closing line with the totals.
//!
//! Format and lints, then the unprivileged crates, then the crate `tests` one test at a time (its tests
//! attach programs to the whole machine), then the demo as the end-to-end test. `ci` adds other kernels, the fuzzer, and the checks
//! of what profilerd is installed with.

mod leftover;
mod skips;
mod totals;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result};
use profiler_test_support::{ChildGuard, read_json, workspace_root};

use crate::command::{cargo, is_root, output, step};
use crate::setup::{self, Group};
use crate::{deploy, fuzz, vm};

pub(crate) use totals::Totals;

/// Arguments of `test`.
#[derive(Debug, clap::Args)]
pub(crate) struct TestArgs {
    /// Only tests whose names contain this; without format, lints and end-to-end run.
    filter: Option<String>,
    /// Only the checks of what profilerd is installed with: chart, manifests, image, systemd unit.
    #[arg(long, conflicts_with = "filter")]
    deploy: bool,
    /// Only the packages: install, run and remove the deb in a machine with systemd.
    #[arg(long, conflicts_with_all = ["filter", "deploy"])]
    packages: bool,
    /// Only on Kubernetes: chart and manifests in a cluster on this machine, which is built at the first time.
    #[arg(long, conflicts_with_all = ["filter", "deploy", "packages"])]
    kube: bool,
}

/// Runs `test`.
pub(crate) fn run(args: &TestArgs) -> Result<ExitCode> {
    if args.deploy {
        leftover::adopt()?;
        let mut totals = Totals::default();
        count(&mut totals, "deploy", deploy::check());
        return Ok(close(&totals));
    }
    if args.kube {
        leftover::adopt()?;
        let mut totals = Totals::default();
        count(&mut totals, "kube", deploy::check_kube());
        return Ok(close(&totals));
    }
    if args.packages {
        return Ok(close(&deploy::check_packages()?));
    }
    run_all(args.filter.as_deref(), None)
}

/// Kernels of every `ci`, beside the machine's own: minutes each, emulated. The others are left to `cargo xtask vm`.
const CI_KERNELS: [&str; 1] = ["6.1"];

/// Time of each fuzz target in every `ci`.
const FUZZ_SECONDS: u32 = 10;

/// Runs `ci`.
pub(crate) fn run_ci() -> Result<ExitCode> {
    run_all(None, Some(&vm::VmArgs::of(&CI_KERNELS)))
}

fn run_all(filter: Option<&str>, machines: Option<&vm::VmArgs>) -> Result<ExitCode> {
    setup::ensure(&[Group::Build, Group::Test, Group::Oap])?;
    leftover::adopt()?;
    let mut totals = Totals::default();
    if filter.is_none() {
        check(
            &mut totals,
            "cargo fmt",
            cargo().args(["fmt", "--all", "--check"]),
        );
        // A workspace of its own, which nothing else here builds before the end of `ci`.
        let mut fuzz = cargo();
        fuzz.args(["fetch", "--locked", "--quiet", "--manifest-path"]);
        fuzz.arg(workspace_root().join("fuzz/Cargo.toml"));
        check(&mut totals, "lock file of fuzz/", &mut fuzz);
        let mut clippy = cargo();
        clippy.args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--quiet",
        ]);
        check(
            &mut totals,
            "cargo clippy",
            clippy.args(["--", "-D", "warnings"]),
        );
    }
    if !is_root() {
        step("not root: the privileged tests will be skipped, which fails the run; use sudo -E");
    }

    let mut unprivileged = cargo();
    unprivileged.args(["test", "--workspace", "--exclude", "profiler-tests"]);
    unprivileged.args(["--locked", "--no-fail-fast", "--", "--show-output"]);
    run_tests(
        &mut totals,
        "unit and protocol tests",
        unprivileged.args(filter),
    )?;

    // The privileged tests start the daemon's binary.
    check(
        &mut totals,
        "cargo build",
        cargo().args(["build", "--workspace", "--locked", "--bin", "profilerd"]),
    );
    let mut privileged = cargo();
    privileged.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
    for name in privileged_targets()? {
        privileged.args(["--test", &name]);
    }
    privileged.args(["--", "--test-threads=1", "--nocapture"]);
    run_tests(&mut totals, "privileged tests", privileged.args(filter))?;

    if filter.is_none_or(|filter| "demo".contains(filter)) {
        end_to_end(&mut totals);
    }
    if let Some(machines) = machines {
        match vm::run_tests(machines) {
            Ok(outcome) => totals.merge("", outcome),
            Err(error) => {
                totals.add_failure(&format!("kernel tests in a virtual machine: {error:#}"));
            }
        }
        count(&mut totals, "fuzz", fuzz::check(FUZZ_SECONDS));
        count(&mut totals, "deploy", deploy::check());
    }
    skips::compare(&mut totals, filter.is_none(), machines.is_some())?;
    Ok(close(&totals))
}

/// Prints failures and totals.
fn close(totals: &Totals) -> ExitCode {
    for failure in totals.failures() {
        eprintln!("FAILED {failure}");
    }
    println!("{}", totals.closing_line());
    totals.exit_code()
}

/// Each of several named results counts as one test.
fn count(totals: &mut Totals, what: &str, results: Result<Vec<(String, Result<()>)>>) {
    match results {
        Ok(results) => {
            for (name, result) in results {
                match result {
                    Ok(()) => totals.add_pass(),
                    Err(error) => totals.add_failure(&format!("{what} {name}: {error:#}")),
                }
            }
        }
        Err(error) => totals.add_failure(&format!("{what}: {error:#}")),
    }
}

/// The test targets of the crate `tests`. They are named one by one, since cargo builds the dependencies of a chosen
/// package again with that package's features, and those of the whole workspace are there already.
fn privileged_targets() -> Result<Vec<String>> {
    let folder = workspace_root().join("tests/tests");
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.join("main.rs").is_file() || path.extension().is_some_and(|rs| rs == "rs") {
            let name = path.file_stem().context("a file has a name")?;
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// A command that is one check of its own.
fn check(totals: &mut Totals, name: &str, command: &mut Command) {
    step(name);
    match crate::command::run(command) {
        Ok(()) => totals.add_pass(),
        Err(error) => totals.add_failure(&format!("{error:#}")),
    }
}

/// A cargo command that runs tests: passes its output on and counts.
fn run_tests(totals: &mut Totals, name: &str, command: &mut Command) -> Result<()> {
    step(name);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = ChildGuard::spawn(name, command)?;
    let stdout = child.process().stdout.take().context("stdout is a pipe")?;
    let stderr = child.process().stderr.take().context("stderr is a pipe")?;
    let runner = Mutex::new(Totals::default());
    let (status, left_behind) = thread::scope(|scope| -> Result<_> {
        scope.spawn(|| count_lines(stdout, &runner));
        scope.spawn(|| count_lines(stderr, &runner));
        let status = child.process().wait()?;
        // Before the pipes are read to their end: a process that is left behind keeps them open.
        Ok((status, leftover::end()?))
    })?;
    let mut runner = runner.into_inner().expect("no reader has panicked");
    for process in left_behind {
        runner.add_failure(&format!("{name}: {process}"));
    }
    if !status.success() && runner.failed() == 0 {
        // It did not compile, or a test took its process with it.
        runner.add_failure(&format!("{name}: cargo ended with {status}"));
    }
    totals.merge("", runner);
    Ok(())
}

fn count_lines(pipe: impl Read, totals: &Mutex<Totals>) {
    let mut lines = BufReader::new(pipe);
    let mut line = Vec::new();
    while lines
        .read_until(b'\n', &mut line)
        .is_ok_and(|read| read > 0)
    {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches(['\r', '\n']);
        eprintln!("{text}");
        totals
            .lock()
            .expect("no reader has panicked")
            .add_line(text);
        line.clear();
    }
}

/// The demo in its JSON form checks its own trees; here also that stdout is one JSON object.
fn end_to_end(totals: &mut Totals) {
    step("end to end: cargo xtask demo --json");
    let demo = || -> Result<()> {
        let json = output(Command::new(env::current_exe()?).args(["demo", "--json"]))?;
        let _: serde_json::Map<String, serde_json::Value> =
            read_json(&json).context("its stdout is not one JSON object")?;
        Ok(())
    };
    match demo() {
        Ok(()) => totals.add_pass(),
        Err(error) => totals.add_failure(&format!("end to end: {error:#}")),
    }
}
