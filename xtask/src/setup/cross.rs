//! A Rust compiler for aarch64 on an x86_64 machine. The C compiler is Debian's cross compiler, a package
//! of [`super::Group::Aarch64`].
//!
//! Two routes to the standard library, the same two as in [`super::bpf`]:
//! - Debian's compiler (package `rustc-web`) takes the library that Debian packs for arm64, in exactly its
//!   own version. It is unpacked into `target/` and given to the compiler by `--sysroot`.
//! - rustup adds the target to its own toolchain.
//!
//! A target that rustup has already is taken first; Debian's route works without it.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use profiler_test_support::target_dir;

use super::archive::Archive;
use super::bpf::{DEBIAN_RUSTC, debian_compiler};
use crate::command::{find_program, output, run_quietly, step};

/// The target's name in Rust.
const TARGET: &str = "aarch64-unknown-linux-gnu";
/// Its C compiler, which also links; crates with C parts look for this very name.
pub(crate) const AARCH64_CC: &str = "aarch64-linux-gnu-gcc";
/// Debian's package with the standard library.
const STD_PACKAGE: &str = "libstd-rust-web-dev";

/// How cargo builds for another architecture than this machine's.
#[derive(Clone, Debug)]
pub(crate) struct CrossTarget {
    environment: Vec<(&'static str, OsString)>,
    flags: Vec<String>,
}

impl CrossTarget {
    /// Makes a cargo command build for the target.
    pub(crate) fn configure(&self, cargo: &mut Command) {
        cargo.args(["--target", TARGET]);
        cargo.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if !self.flags.is_empty() {
            // Only for the target: build scripts and macros run here, with the compiler's own library.
            let flags = self.flags.join(" ");
            cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS", flags);
        }
    }

    /// What the compiler must be told for the target. A command with flags of its own needs these as well:
    /// `CARGO_ENCODED_RUSTFLAGS` replaces what [`Self::configure`] sets.
    pub(crate) fn flags(&self) -> &[String] {
        &self.flags
    }

    /// The folder that cargo puts what it builds into.
    pub(crate) fn target_dir(&self) -> PathBuf {
        target_dir().join(TARGET)
    }
}

/// The target aarch64; installs its standard library if it is not there.
pub(crate) fn aarch64() -> Result<CrossTarget> {
    let mut environment = vec![(
        "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER",
        AARCH64_CC.into(),
    )];
    let mut flags = Vec::new();
    if rustup_has_target() {
        return Ok(CrossTarget { environment, flags });
    }
    if debian_compiler() {
        environment.push(("RUSTC", DEBIAN_RUSTC.into()));
        flags.push(format!("--sysroot={}", debian_sysroot()?.display()));
    } else if find_program("rustup").is_some() {
        step(&format!("rustup target add {TARGET}"));
        run_quietly(Command::new("rustup").args(["target", "add", TARGET]))
            .with_context(|| format!("rustup cannot add {TARGET} (is this machine offline?)"))?;
    } else {
        bail!("no Rust standard library for aarch64: install rustup (https://rustup.rs)");
    }
    Ok(CrossTarget { environment, flags })
}

fn rustup_has_target() -> bool {
    let installed = Command::new("rustup")
        .args(["target", "list", "--installed"])
        .output();
    installed.is_ok_and(|list| {
        let list = String::from_utf8_lossy(&list.stdout);
        list.lines().any(|line| line.trim() == TARGET)
    })
}

/// A sysroot with Debian's standard library for arm64 in the version of the installed compiler, fetched
/// once.
fn debian_sysroot() -> Result<PathBuf> {
    let version = output(Command::new("dpkg-query").args(["-W", "-f", "${Version}", "rustc-web"]))?;
    let suite = debian_suite()?;
    let folder = target_dir().join("vm/aarch64/rust").join(&version);
    let sysroot = folder.join("std/usr");
    if sysroot.exists() {
        return Ok(sysroot);
    }
    let archive = Archive::with_updates(&suite, "arm64", &folder)?;
    let unpacked = folder.join("package");
    archive
        .unpack(&format!("{STD_PACKAGE}={version}"), &unpacked)
        .with_context(|| {
            format!(
                "Debian has no {STD_PACKAGE} {version} for arm64 any more; \
                 apt-get install rustc-web {STD_PACKAGE}-bpf brings the compiler to the present version"
            )
        })?;
    // Only a whole library gets the name that is looked for.
    fs::rename(unpacked, folder.join("std"))?;
    Ok(sysroot)
}

/// The suite that this machine's packages come from, such as `bookworm`.
pub(crate) fn debian_suite() -> Result<String> {
    const OS_RELEASE: &str = "/etc/os-release";
    let text =
        fs::read_to_string(OS_RELEASE).with_context(|| format!("failed to read {OS_RELEASE}"))?;
    suite_of(&text).with_context(|| {
        format!(
            "{OS_RELEASE} names no Debian suite: aarch64 is built and booted from Debian's packages"
        )
    })
}

fn suite_of(os_release: &str) -> Option<String> {
    let value = |name: &str| {
        let mut lines = os_release.lines();
        let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(line.trim_matches('"').to_owned())
    };
    value("VERSION_CODENAME").filter(|_| value("ID").as_deref() == Some("debian"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a Debian tells its suite, and that another system's name is not taken for one.
    #[test]
    fn only_a_debian_has_a_suite() {
        let debian = "PRETTY_NAME=\"Debian\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(suite_of(debian).as_deref(), Some("bookworm"));
        assert_eq!(suite_of("ID=ubuntu\nVERSION_CODENAME=noble\n"), None);
        assert_eq!(suite_of("ID=debian\n"), None);
    }
}
