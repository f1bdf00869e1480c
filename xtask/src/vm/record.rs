//! Records a stack of CPython, on this machine or in one of another architecture.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use profiler_test_support::{find_pythons, python_suite};

use super::arch::Arch;
use super::sysroot::Sysroot;
use super::test_binary::{TestRun, build_recorder};
use super::{DEADLINE_S, boot, image, suite_of};
use crate::command::{output, step};
use crate::setup::{self, Group};

/// Stands before each line of a recording among those of the machine.
const PREFIX: &str = "recording: ";
/// The machine's kernel: any that can be had.
const KERNEL: &str = "6.12";

/// The recording of a stack of CPython 3.`minor`; `None` if that version is not to be had.
pub(crate) fn record(arch: Arch, minor: u8) -> Result<Option<String>> {
    if arch == Arch::X86_64 {
        setup::ensure(&[Group::Build, Group::Test])?;
        let Some(python) = find_pythons(minor).into_iter().next() else {
            return Ok(None);
        };
        let recorder = build_recorder(None)?;
        return output(Command::new(recorder).arg(python)).map(Some);
    }
    let Some(suite) = python_suite(minor) else {
        return Ok(None);
    };
    setup::ensure(&[Group::Build, arch.group()])?;
    let python = format!("python3.{minor}");
    let sysroot = Sysroot::of_suite(arch, suite, &python)?;
    let run = TestRun {
        test: "record_stack".to_owned(),
        binary: build_recorder(Some(&setup::aarch64()?))?,
        args: vec![format!("/usr/bin/{python}"), PREFIX.to_owned()],
    };
    let initramfs = image::initramfs(arch, sysroot, &[run], None)?;
    let vmlinuz = image::kernel(arch, KERNEL, suite_of(KERNEL)?)?;
    step(&format!(
        "boot Linux {KERNEL} for {} with {python}",
        arch.name()
    ));
    let mut recording = String::new();
    let deadline = Duration::from_secs(DEADLINE_S);
    boot(arch, &vmlinuz, &initramfs, deadline, 1, |line| {
        if let Some(line) = line.strip_prefix(PREFIX) {
            recording += line;
            recording.push('\n');
        } else {
            eprintln!("  {line}");
        }
    })?;
    ensure!(!recording.is_empty(), "nothing was recorded");
    Ok(Some(recording))
}
