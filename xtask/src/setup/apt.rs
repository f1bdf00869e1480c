//! Debian and Ubuntu packages: installs them. Those of other suites and architectures are in
//! [`super::archive`].

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::{find_program, is_root, run_quietly, step, succeeds};

/// Seconds without an answer after which apt gives a connection up; its own default is 30 for each of
/// three tries.
const NETWORK_TIMEOUT: Duration = Duration::from_secs(20);

/// Whether this is a system with apt.
pub(super) fn is_available() -> bool {
    find_program("apt-get").is_some()
}

/// Whether apt can install `package`.
pub(super) fn offers(package: &str) -> bool {
    // Virtual and unknown packages have no version to show.
    succeeds(Command::new("apt-cache").args(["--no-all-versions", "show", package]))
}

/// Fetches the lists of packages; needs root.
pub(super) fn update() -> Result<()> {
    step("apt-get update");
    run_quietly(apt_get().arg("update").arg("-qq"))
}

/// Installs packages, after fetching the lists if one is unknown.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    require_root(packages)?;
    if !packages.iter().all(|package| offers(package)) {
        update()?;
    }
    step(&format!("apt-get install {}", packages.join(" ")));
    let install = || {
        run_quietly(
            apt_get()
                .args(["install", "-y", "-qq", "--no-install-recommends"])
                .args(packages)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    };
    // Lists that are weeks old name files that the mirror has replaced: once more with new ones.
    install()
        .or_else(|_| update().and_then(|()| install()))
        .with_context(|| {
            format!(
                "cannot install {} (is this machine offline?)",
                packages.join(" ")
            )
        })
}

fn require_root(packages: &[&str]) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    bail!(
        "installing packages needs root; please run: sudo apt-get install {}",
        packages.join(" ")
    )
}

/// `apt-get` with the time limits that all our calls have.
pub(super) fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    let seconds = NETWORK_TIMEOUT.as_secs();
    command
        .args(["-o", &format!("Acquire::http::Timeout={seconds}")])
        .args(["-o", &format!("Acquire::https::Timeout={seconds}")])
        .args(["-o", "Acquire::Retries=2"])
        // Wait for another apt on this machine rather than fail.
        .args(["-o", "DPkg::Lock::Timeout=300"]);
    command
}
