//! `cargo xtask vm`: the kernel tests, unchanged, under another kernel.
//!
//! Debian's cloud kernel boots in qemu from an initramfs that holds the test binaries with their
//! libraries, the daemon, a CPython and the sample service; one boot runs them all. Emulated (tcg), so
//! that it runs in containers and on machines without virtualization; a boot takes 5 to 9 s. Timings from
//! there mean nothing.

mod image;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use profiler_test_support::ChildGuard;

use crate::command::{cargo, output, step};
use crate::daemon;
use crate::setup::{self, Group};
use crate::test::Totals;

/// Kernels that can be had from Debian: version and suite.
const KERNELS: &[(&str, &str)] = &[
    ("5.10", "bullseye"),
    ("6.1", "bookworm"),
    ("6.12", "trixie"),
    ("7.2", "sid"),
];

/// Some six times what a machine needs, with two processors and nothing else to do.
const DEADLINE_S: u64 = 600;

/// The test targets that make sense on a foreign kernel, and which of their tests. Of those of the
/// daemon the one that goes the whole way: the others are about the daemon, not about the kernel.
const TEST_TARGETS: &[(&str, Option<&str>)] = &[
    ("machine", None),
    ("kernel_load", None),
    ("daemon", Some("spine::")),
];

/// Printed by `init.c` when a test binary has ended.
const EXIT_MARK: &str = "profilerd-vm: exit status ";

const TERMINAL_ESCAPE: char = '\x1b';

/// Arguments of `vm`.
#[derive(Debug, clap::Args)]
pub(crate) struct VmArgs {
    /// Kernel version: 5.10, 6.1, 6.12 or 7.2; all of them by default. May be given several times.
    #[arg(long)]
    kernel: Vec<String>,
    /// Test target of the crate `tests`. May be given several times.
    #[arg(long = "test")]
    tests: Vec<String>,
    /// Seconds after which a machine is switched off.
    #[arg(long, default_value_t = DEADLINE_S)]
    deadline_s: u64,
    /// Only tests whose names contain this.
    filter: Option<String>,
}

impl VmArgs {
    /// All tests on these kernels.
    pub(crate) fn of(kernels: &[&str]) -> Self {
        Self {
            kernel: kernels.iter().map(|&kernel| kernel.to_owned()).collect(),
            tests: Vec::new(),
            deadline_s: DEADLINE_S,
            filter: None,
        }
    }
}

/// A test binary and its arguments.
#[derive(Debug)]
struct TestRun {
    test: String,
    binary: PathBuf,
    args: Vec<String>,
}

/// How one test binary went on one kernel.
struct Outcome {
    kernel: String,
    test: String,
    totals: Totals,
    elapsed: Duration,
}

/// Runs `vm`.
pub(crate) fn run(args: &VmArgs) -> Result<ExitCode> {
    let totals = run_tests(args)?;
    for failure in totals.failures() {
        eprintln!("FAILED {failure}");
    }
    println!("{}", totals.closing_line());
    Ok(totals.exit_code())
}

/// Runs the tests, prints a table and yields the totals; names of skipped tests begin with `vm:`.
pub(crate) fn run_tests(args: &VmArgs) -> Result<Totals> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "other kernels are only supported on x86_64 so far"
    );
    let kernels = if args.kernel.is_empty() {
        KERNELS.iter().map(|(kernel, _)| *kernel).collect()
    } else {
        args.kernel.iter().map(String::as_str).collect::<Vec<_>>()
    };
    for kernel in &kernels {
        suite_of(kernel)?;
    }
    setup::ensure(&[Group::Build, Group::Vm])?;
    let profilerd = daemon::build(false)?;
    let runs = build_tests(args)?;
    let initramfs = image::initramfs(&runs, &profilerd)?;
    let mut outcomes = Vec::new();
    for kernel in kernels {
        let deadline = Duration::from_secs(args.deadline_s);
        let booted = image::kernel(kernel, suite_of(kernel)?).and_then(|vmlinuz| {
            step(&format!("boot Linux {kernel}"));
            boot(&vmlinuz, &initramfs, deadline, runs.len())
        });
        // One kernel that cannot be had or booted does not keep the others from running.
        let (booted, reason) = match booted {
            Ok(booted) => (booted, "did not end".to_owned()),
            Err(error) => (Vec::new(), format!("{error:#}")),
        };
        let mut booted = booted.into_iter();
        for run in &runs {
            let (totals, elapsed) = booted.next().unwrap_or_else(|| {
                let mut totals = Totals::default();
                totals.add_failure(&format!("{} on Linux {kernel}: {reason}", run.test));
                (totals, Duration::ZERO)
            });
            outcomes.push(Outcome {
                kernel: kernel.to_owned(),
                test: run.test.clone(),
                totals,
                elapsed,
            });
        }
    }
    eprintln!("\nkernel  test              passed  failed  skipped  seconds");
    let mut sum = Totals::default();
    for outcome in outcomes {
        eprintln!(
            "{:<7} {:<16} {:>7} {:>7} {:>8} {:>8.0}",
            outcome.kernel,
            outcome.test,
            outcome.totals.passed(),
            outcome.totals.failed(),
            outcome.totals.skipped(),
            outcome.elapsed.as_secs_f32(),
        );
        sum.merge("vm:", outcome.totals);
    }
    Ok(sum)
}

fn suite_of(kernel: &str) -> Result<&'static str> {
    let known = KERNELS.iter().find(|(version, _)| *version == kernel);
    known.map(|&(_, suite)| suite).with_context(|| {
        let versions: Vec<_> = KERNELS.iter().map(|&(version, _)| version).collect();
        format!("unknown kernel {kernel}; known are {}", versions.join(", "))
    })
}

/// Builds the test targets.
fn build_tests(args: &VmArgs) -> Result<Vec<TestRun>> {
    let wanted: Vec<(&str, Option<&str>)> = if args.tests.is_empty() {
        TEST_TARGETS.to_vec()
    } else {
        let tests = args.tests.iter().map(String::as_str);
        tests
            .map(|name| {
                let known = TEST_TARGETS.iter().find(|(known, _)| *known == name);
                known.copied().unwrap_or((name, None))
            })
            .collect()
    };
    let names: Vec<&str> = wanted.iter().map(|(name, _)| *name).collect();
    step(&format!("build the tests {}", names.join(", ")));
    let mut build = cargo();
    build.args(["test", "-p", "profiler-tests", "--locked", "--no-run"]);
    build.arg("--message-format=json-render-diagnostics");
    for name in &names {
        build.args(["--test", name]);
    }
    let messages = output(&mut build)?;
    let mut binaries = BTreeMap::new();
    for line in messages.lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("cargo's messages")?;
        let target = message["target"]["name"].as_str();
        if let (Some(target), Some(binary)) = (target, message["executable"].as_str()) {
            binaries.insert(target.to_owned(), PathBuf::from(binary));
        }
    }
    let run = |(name, filter): (&str, Option<&str>)| {
        let binary = binaries.remove(name);
        let mut test_args = vec!["--test-threads=1".to_owned()];
        test_args.extend(args.filter.clone().or_else(|| filter.map(str::to_owned)));
        Ok(TestRun {
            test: name.to_owned(),
            binary: binary.with_context(|| format!("cargo built no test {name}"))?,
            args: test_args,
        })
    };
    wanted.into_iter().map(run).collect()
}

/// Boots, passes the output on, and counts the results in it; yields those of each test binary, fewer
/// than `expected` if the machine stopped before.
fn boot(
    vmlinuz: &Path,
    initramfs: &Path,
    deadline: Duration,
    expected: usize,
) -> Result<Vec<(Totals, Duration)>> {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-accel", "tcg", "-cpu", "max", "-m", "2048", "-smp", "2"])
        .args(["-kernel".as_ref(), vmlinuz.as_os_str()])
        .args(["-initrd".as_ref(), initramfs.as_os_str()])
        .args(["-append", "console=ttyS0 quiet panic=-1"])
        .args([
            "-nographic",
            "-no-reboot",
            "-monitor",
            "none",
            "-nic",
            "none",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut qemu = ChildGuard::spawn("qemu", &mut command)?;
    let stdout = qemu.process().stdout.take().expect("stdout is a pipe");
    let (sender, lines) = channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n') {
            let Ok(line) = line else { break };
            if sender
                .send(String::from_utf8_lossy(&line).into_owned())
                .is_err()
            {
                break;
            }
        }
    });
    let mut begin = Instant::now();
    let end = begin + deadline;
    let mut totals = Totals::default();
    let mut ended = Vec::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => {
                let line = line.trim_end_matches('\r');
                if line.contains(TERMINAL_ESCAPE) {
                    // The firmware clearing its screen.
                    continue;
                }
                eprintln!("  {line}");
                totals.add_line(line);
                if let Some(text) = line.strip_prefix(EXIT_MARK) {
                    let status = text.trim().parse::<i32>().context("exit status")?;
                    if status != 0 && totals.failed() == 0 {
                        totals.add_failure(&format!("the test binary ended with {status}"));
                    }
                    ended.push((std::mem::take(&mut totals), begin.elapsed()));
                    begin = Instant::now();
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                step(&format!(
                    "the machine was switched off after {} s, with {} of {expected} test binaries ended",
                    deadline.as_secs(),
                    ended.len()
                ));
                break;
            }
        }
    }
    drop(qemu);
    let _ = reader.join();
    Ok(ended)
}
