//! Debian and Ubuntu packages: installs them, and unpacks those of other suites without touching the
//! machine's own package state.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::{find_program, is_root, output, run_quietly, step, succeeds};

/// The keys that Debian signs its suites with, by the package `debian-archive-keyring`.
pub(crate) const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const DEBIAN_MIRROR: &str = "http://deb.debian.org/debian";

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

fn apt_get() -> Command {
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

/// Downloads the package with the kernel that the meta package `meta` of a Debian suite stands for, whose
/// name begins with `prefix`; yields the `.deb`. `folder` keeps apt's lists and the file. Needs no root.
pub(crate) fn download_kernel(
    suite: &str,
    meta: &str,
    prefix: &str,
    folder: &Path,
) -> Result<PathBuf> {
    let options = private_apt(suite, folder)?;
    step(&format!("apt-get update for Debian {suite}"));
    run_quietly(apt_get().args(&options).args(["update", "-qq"]))
        .with_context(|| format!("cannot reach {DEBIAN_MIRROR} (is this machine offline?)"))?;
    let image = dependency(&options, meta, prefix)?.with_context(|| {
        format!("{meta} of Debian {suite} depends on no {prefix}*: has the suite a newer kernel?")
    })?;
    // From Linux 7 on linux-image-* only gathers its parts; the kernel is in one of them.
    let package = dependency(&options, &image, "linux-binary-")?.unwrap_or(image);
    step(&format!("apt-get download {package}"));
    run_quietly(
        apt_get()
            .args(&options)
            .args(["download", &package])
            .current_dir(folder),
    )?;
    fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("{package}_")) && name.ends_with(".deb")
        })
        .with_context(|| format!("apt left no {package}_*.deb in {}", folder.display()))
}

/// The first dependency of a package whose name begins with `prefix`.
fn dependency(options: &[String], package: &str, prefix: &str) -> Result<Option<String>> {
    let depends = output(
        Command::new("apt-cache")
            .args(options)
            .args(["depends", package]),
    )?;
    let mut names = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(names
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned))
}

/// Options that give apt a folder of its own with one suite of Debian.
fn private_apt(suite: &str, folder: &Path) -> Result<Vec<String>> {
    let lists = folder.join("lists");
    let cache = folder.join("cache");
    for path in [lists.join("partial"), cache.join("archives/partial")] {
        fs::create_dir_all(&path)
            .with_context(|| format!("failed to create {}", path.display()))?;
    }
    let sources = folder.join("sources.list");
    fs::write(
        &sources,
        format!("deb [signed-by={DEBIAN_KEYRING}] {DEBIAN_MIRROR} {suite} main\n"),
    )?;
    let status = folder.join("status");
    fs::write(&status, "")?;
    let mut options = Vec::new();
    for (name, value) in [
        ("Dir::Etc::sourcelist", sources.display().to_string()),
        ("Dir::Etc::sourceparts", "/dev/null".to_owned()),
        ("Dir::State::lists", lists.display().to_string()),
        ("Dir::State::status", status.display().to_string()),
        ("Dir::Cache", cache.display().to_string()),
        // The sandbox user of apt cannot write into a developer's folders.
        ("APT::Sandbox::User", "root".to_owned()),
        // Suites that are no longer updated stay usable.
        ("Acquire::Check-Valid-Until", "false".to_owned()),
    ] {
        options.push("-o".to_owned());
        options.push(format!("{name}={value}"));
    }
    Ok(options)
}
