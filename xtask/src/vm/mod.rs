//! `cargo xtask vm`: the kernel tests, unchanged, under another kernel.
//!
//! Debian's cloud kernel boots in qemu from an initramfs that holds one test binary with its
//! libraries, a CPython and the sample service. Emulated (tcg), so that it runs in containers and on
//! machines without virtualization; a boot takes 5 to 9 s. Timings from there mean nothing.

mod image;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use profiler_test_support::ChildGuard;

use crate::command::{cargo, output, step};
use crate::setup::{self, Group};
use crate::test::Totals;

/// Kernels that can be had from Debian: version and suite.
const KERNELS: &[(&str, &str)] = &[
    ("5.10", "bullseye"),
    ("6.1", "bookworm"),
    ("6.12", "trixie"),
];

/// The test targets that make sense on a foreign kernel.
const TEST_TARGETS: &[&str] = &["machine", "kernel_load"];

/// Printed by `init.c` when the test has ended.
const EXIT_MARK: &str = "profilerd-vm: exit status ";

const TERMINAL_ESCAPE: char = '\x1b';

/// Arguments of `vm`.
#[derive(Debug, clap::Args)]
pub(crate) struct VmArgs {
    /// Kernel version: 5.10, 6.1 or 6.12. May be given several times.
    #[arg(long, default_value = "6.1")]
    kernel: Vec<String>,
    /// Test target of the crate `tests`. May be given several times.
    #[arg(long = "test")]
    tests: Vec<String>,
    /// Seconds after which a machine is switched off.
    #[arg(long, default_value_t = 300)]
    deadline_s: u64,
    /// Only tests whose names contain this.
    filter: Option<String>,
}

impl Default for VmArgs {
    fn default() -> Self {
        Self {
            kernel: vec!["6.1".to_owned()],
            tests: Vec::new(),
            deadline_s: 300,
            filter: None,
        }
    }
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
    println!("{}", totals.closing_line());
    Ok(totals.exit_code())
}

/// Runs the tests, prints a table and yields the totals; names of skipped tests begin with `vm:`.
pub(crate) fn run_tests(args: &VmArgs) -> Result<Totals> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "other kernels are only supported on x86_64 so far"
    );
    for kernel in &args.kernel {
        suite_of(kernel)?;
    }
    setup::ensure(&[Group::Build, Group::Vm])?;
    let binaries = build_tests(&args.tests)?;
    let mut outcomes = Vec::new();
    for kernel in &args.kernel {
        let vmlinuz = image::kernel(kernel, suite_of(kernel)?)?;
        for (test, binary) in &binaries {
            let mut test_args = vec!["--test-threads=1".to_owned()];
            test_args.extend(args.filter.clone());
            let initramfs = image::initramfs(binary, &test_args)?;
            step(&format!("boot Linux {kernel} with {test}"));
            let start = Instant::now();
            let deadline = Duration::from_secs(args.deadline_s);
            let totals = boot(&vmlinuz, &initramfs, deadline)
                .with_context(|| format!("{test} on Linux {kernel}"))?;
            outcomes.push(Outcome {
                kernel: kernel.clone(),
                test: test.clone(),
                totals,
                elapsed: start.elapsed(),
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

/// Builds the test targets; yields their names and binaries.
fn build_tests(wanted: &[String]) -> Result<Vec<(String, String)>> {
    let names: Vec<String> = if wanted.is_empty() {
        TEST_TARGETS.iter().copied().map(str::to_owned).collect()
    } else {
        wanted.to_vec()
    };
    step(&format!("build the tests {}", names.join(", ")));
    let mut build = cargo();
    build.args(["test", "-p", "profiler-tests", "--no-run"]);
    build.arg("--message-format=json-render-diagnostics");
    for name in &names {
        build.args(["--test", name]);
    }
    let messages = output(&mut build)?;
    let mut binaries = Vec::new();
    for line in messages.lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("cargo's messages")?;
        let target = message["target"]["name"].as_str();
        if let (Some(target), Some(binary)) = (target, message["executable"].as_str())
            && names.iter().any(|name| name == target)
        {
            binaries.push((target.to_owned(), binary.to_owned()));
        }
    }
    ensure!(binaries.len() == names.len(), "cargo built {binaries:?}");
    Ok(binaries)
}

/// Boots, passes the output on, and counts the results in it.
fn boot(vmlinuz: &Path, initramfs: &Path, deadline: Duration) -> Result<Totals> {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-accel", "tcg", "-cpu", "max", "-m", "1024", "-smp", "2"])
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
    let end = Instant::now() + deadline;
    let mut totals = Totals::default();
    let mut status = None;
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
                    status = Some(text.trim().parse::<i32>().context("exit status")?);
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                bail!(
                    "the machine was switched off after {} s",
                    deadline.as_secs()
                )
            }
        }
    }
    drop(qemu);
    let _ = reader.join();
    match status {
        Some(0) => {}
        Some(code) if totals.failed() == 0 => {
            totals.add_failure(&format!("the test binary ended with {code}"));
        }
        Some(_) => {}
        None => bail!("the machine stopped before the test had ended"),
    }
    Ok(totals)
}
