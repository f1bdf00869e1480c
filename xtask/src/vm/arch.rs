//! The machines that are emulated: all that differs between processor architectures.

use std::path::PathBuf;
use std::process::Command;

use profiler_test_support::target_dir;

use crate::setup::{AARCH64_CC, Group};

/// A processor architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arch {
    /// This machine's own.
    #[default]
    #[value(name = "x86_64")]
    X86_64,
    /// Cross-compiled.
    #[value(name = "aarch64")]
    Aarch64,
}

impl Arch {
    /// As Rust and the kernel name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// As Debian names it.
    pub(super) fn debian_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// What must be installed besides what building needs.
    pub(super) fn group(self) -> Group {
        match self {
            Self::X86_64 => Group::Vm,
            Self::Aarch64 => Group::Aarch64,
        }
    }

    /// Where kernels and what is packed around them are kept.
    pub(super) fn folder(self) -> PathBuf {
        let folder = target_dir().join("vm");
        match self {
            Self::X86_64 => folder,
            Self::Aarch64 => folder.join("aarch64"),
        }
    }

    /// The emulator, all but kernel and initramfs; no virtualization, so that it runs everywhere.
    pub(super) fn qemu(self) -> Command {
        let (program, machine, console): (_, &[&str], _) = match self {
            // One thread for both processors: with a thread each, a processor can still run instructions that the
            // other one has just rewritten. The kernel, which does that when a tracepoint is armed, panics then.
            Self::X86_64 => (
                "qemu-system-x86_64",
                &["-cpu", "max", "-accel", "tcg,thread=single"],
                "ttyS0",
            ),
            // Pointer authentication by a hash that emulates quickly: the one of the architecture takes most
            // of the time otherwise.
            Self::Aarch64 => (
                "qemu-system-aarch64",
                &[
                    "-machine",
                    "virt",
                    "-cpu",
                    "max,pauth-impdef=on",
                    "-accel",
                    "tcg",
                ],
                "ttyAMA0",
            ),
        };
        let mut command = Command::new(program);
        command
            .args(machine)
            .args(["-m", "2048", "-smp", "2"])
            .args(["-append", &format!("console={console} quiet panic=-1")])
            .args(["-nographic", "-no-reboot", "-monitor", "none"])
            .args(["-nic", "none"]);
        command
    }

    /// The C compiler for programs that run there.
    pub(super) fn c_compiler(self) -> Command {
        match self {
            Self::X86_64 => Command::new("cc"),
            Self::Aarch64 => {
                let mut command = Command::new(AARCH64_CC);
                // Return addresses on the stack are signed, as distributions have begun to build.
                command.arg("-mbranch-protection=standard");
                command
            }
        }
    }

    /// Copies programs without parts of them.
    pub(super) fn objcopy(self) -> Command {
        Command::new(match self {
            Self::X86_64 => "objcopy",
            Self::Aarch64 => "aarch64-linux-gnu-objcopy",
        })
    }
}
