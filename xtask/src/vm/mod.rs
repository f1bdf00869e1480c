//! `cargo xtask vm`: the kernel tests, unchanged, under another kernel or on another architecture.
//!
//! Debian's cloud kernel boots in qemu from an initramfs that holds the test binaries with their
//! libraries, the daemon, a CPython and the sample service; one boot runs them all. Emulated (tcg), so
//! that it runs in containers and on machines without virtualization; a boot takes 5 to 9 s. Timings from
//! there mean nothing.
//!
//! With `--arch aarch64` all of it is cross-compiled, and everything else in the machine comes from Debian's
//! packages of that architecture.

mod arch;
mod image;
mod record;
mod sysroot;
mod test_binary;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use profiler_test_support::ChildGuard;

use crate::command::step;
use crate::daemon;
use crate::setup::{self, Group};
use crate::test::Totals;

pub(crate) use arch::Arch;
pub(crate) use record::record;
use sysroot::Sysroot;

/// Kernels that can be had from Debian, for both architectures: version and suite.
const KERNELS: &[(&str, &str)] = &[
    ("5.10", "bullseye"),
    ("6.1", "bookworm"),
    ("6.12", "trixie"),
    ("7.2", "sid"),
];

/// Some three times what the slowest machine needs, with two processors and nothing else to do.
const DEADLINE_S: u64 = 900;

/// Printed by `init.c` when a test binary has ended.
const EXIT_MARK: &str = "profilerd-vm: exit status ";

const TERMINAL_ESCAPE: char = '\x1b';

/// Arguments of `vm`.
#[derive(Debug, clap::Args)]
pub(crate) struct VmArgs {
    /// Processor architecture.
    #[arg(long, value_enum, default_value_t)]
    arch: Arch,
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
            arch: Arch::default(),
            kernel: kernels.iter().map(|&kernel| kernel.to_owned()).collect(),
            tests: Vec::new(),
            deadline_s: DEADLINE_S,
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
        "virtual machines are only supported on x86_64 so far"
    );
    let arch = args.arch;
    let kernels = if args.kernel.is_empty() {
        KERNELS.iter().map(|(kernel, _)| *kernel).collect()
    } else {
        args.kernel.iter().map(String::as_str).collect::<Vec<_>>()
    };
    for kernel in &kernels {
        suite_of(kernel)?;
    }
    setup::ensure(&[Group::Build, arch.group()])?;
    let target = match arch {
        Arch::X86_64 => None,
        Arch::Aarch64 => Some(setup::aarch64()?),
    };
    let profilerd = match &target {
        None => daemon::build(false)?,
        Some(target) => daemon::build_for(target)?,
    };
    let filter = args.filter.as_deref();
    let runs = test_binary::build(target.as_ref(), &args.tests, filter)?;
    let sysroot = Sysroot::prepare(arch)?;
    let initramfs = image::initramfs(arch, sysroot, &runs, Some(&profilerd))?;
    let mut outcomes = Vec::new();
    for kernel in kernels {
        let deadline = Duration::from_secs(args.deadline_s);
        let booted = image::kernel(arch, kernel, suite_of(kernel)?).and_then(|vmlinuz| {
            step(&format!("boot Linux {kernel} for {}", arch.name()));
            boot(arch, &vmlinuz, &initramfs, deadline, runs.len(), |line| {
                eprintln!("  {line}");
            })
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
                let machine = arch.name();
                totals.add_failure(&format!(
                    "{} on Linux {kernel} {machine}: {reason}",
                    run.test
                ));
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
    eprintln!("\nkernel  machine  test              passed  failed  skipped  seconds");
    let mut sum = Totals::default();
    for outcome in outcomes {
        eprintln!(
            "{:<7} {:<8} {:<16} {:>7} {:>7} {:>8} {:>8.0}",
            outcome.kernel,
            arch.name(),
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

/// Boots a folder, whose `init` is started, until the machine switches itself off; yields the results that it prints as
/// cargo's test runner does.
pub(crate) fn boot_root(root: &Path, kernel: &str, deadline: Duration) -> Result<Totals> {
    let arch = Arch::X86_64;
    let vmlinuz = image::kernel(arch, kernel, suite_of(kernel)?)?;
    let initramfs = root.with_extension("gz");
    image::pack(root, &initramfs)?;
    step(&format!("boot {} with Linux {kernel}", root.display()));
    let ended = boot(arch, &vmlinuz, &initramfs, deadline, 1, |line| {
        eprintln!("  {line}");
    })?;
    let (totals, _) = ended
        .into_iter()
        .next()
        .context("the machine did not come to its end")?;
    Ok(totals)
}

fn suite_of(kernel: &str) -> Result<&'static str> {
    let known = KERNELS.iter().find(|(version, _)| *version == kernel);
    known.map(|&(_, suite)| suite).with_context(|| {
        let versions: Vec<_> = KERNELS.iter().map(|&(version, _)| version).collect();
        format!("unknown kernel {kernel}; known are {}", versions.join(", "))
    })
}

/// Boots, passes lines of output on, and counts the results in it; yields those of each test binary, fewer
/// than `expected` if the machine stopped before.
fn boot(
    arch: Arch,
    vmlinuz: &Path,
    initramfs: &Path,
    deadline: Duration,
    expected: usize,
    mut on_line: impl FnMut(&str),
) -> Result<Vec<(Totals, Duration)>> {
    let mut command = arch.qemu();
    command
        .args(["-kernel".as_ref(), vmlinuz.as_os_str()])
        .args(["-initrd".as_ref(), initramfs.as_os_str()])
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
                on_line(line);
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
