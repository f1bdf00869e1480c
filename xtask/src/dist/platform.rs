//! What a release is built for: all that differs between the architectures.

use std::path::Path;
use std::process::Command;

use crate::setup::Group;

/// What a release is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Platform {
    /// `x86_64` of Rust and the kernel.
    Amd64,
    /// `aarch64` of Rust and the kernel.
    Arm64,
}

impl Platform {
    /// This machine's own.
    pub(super) fn native() -> Self {
        if cfg!(target_arch = "aarch64") {
            Self::Arm64
        } else {
            Self::Amd64
        }
    }

    /// As images and Debian name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As Rust and rpm name it.
    pub(super) fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// As Rust names it.
    pub(super) fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// What building for it needs.
    pub(super) fn groups(self) -> Vec<Group> {
        let mut groups = vec![Group::Build, Group::Image];
        if self != Self::native() {
            groups.extend([Group::Aarch64, Group::Emulator]);
        }
        groups
    }

    /// Runs a program that was built for it.
    pub(super) fn run(self, program: &Path) -> Command {
        if self == Self::native() {
            return Command::new(program);
        }
        let mut command = Command::new(format!("qemu-{}", self.machine()));
        command.arg(program);
        command
    }
}
