//! The deb in a machine where systemd has booted, and the contents of the rpm.
//!
//! In:  the packages, a root folder with Debian's smallest system, a kernel of Debian
//! Out: the results that `guest.sh` prints in the machine
//!
//! It is a whole machine, emulated, because the daemon needs the first pid namespace: in a container with its own systemd
//! it sees no request.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use profiler_test_support::{target_dir, workspace_root};

use crate::command::{output, run_quietly, step};
use crate::dist;
use crate::setup::{self, DEBIAN_KEYRING, Group};
use crate::test::Totals;
use crate::vm;

/// Kernel and system of the machine.
const KERNEL: &str = "6.1";
const SUITE: &str = "bookworm";
/// What the system has besides the essential packages.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,python3";
/// A boot takes a minute, a task one more.
const DEADLINE: Duration = Duration::from_secs(900);

/// Files that both packages have.
const FILES: [&str; 6] = [
    "/usr/bin/profilerd",
    "/etc/profilerd/profilerd.yaml",
    "/usr/lib/systemd/system/profilerd.service",
    "/usr/share/man/man1/profilerd.1",
    "/usr/share/bash-completion/completions/profilerd",
    "THIRD-PARTY",
];

/// Builds the packages and tries them.
pub(crate) fn check() -> Result<Totals> {
    setup::ensure(&[
        Group::Build,
        Group::Image,
        Group::Dist,
        Group::Vm,
        Group::Packages,
    ])?;
    let [deb, rpm] = dist::quick_packages()?;
    let mut totals = Totals::default();
    for (name, result) in [
        (
            "deb: its files",
            has_files(&deb, Command::new("dpkg-deb").arg("--contents")),
        ),
        (
            "rpm: its files",
            has_files(&rpm, Command::new("rpm").args(["-qlp", "--nosignature"])),
        ),
    ] {
        match result {
            Ok(()) => totals.add_pass(),
            Err(error) => totals.add_failure(&format!("{name}: {error:#}")),
        }
    }
    let root = machine(&deb)?;
    let booted = vm::boot_root(&root, KERNEL, DEADLINE);
    fs::remove_dir_all(&root)?;
    totals.merge("", booted?);
    Ok(totals)
}

fn has_files(package: &Path, list: &mut Command) -> Result<()> {
    let files = output(list.arg(package))?;
    for file in FILES {
        // Manual pages are compressed in a deb.
        ensure!(files.contains(file), "{} lacks {file}", package.display());
    }
    Ok(())
}

/// A root folder with the package and the test in it.
fn machine(deb: &Path) -> Result<PathBuf> {
    let folder = target_dir().join("packages");
    let system = system(&folder)?;
    let root = folder.join("machine");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    run_quietly(
        Command::new("cp")
            .args(["--archive", "--reflink=auto"])
            .args([&system, &root]),
    )?;
    for (from, to) in [
        (deb.to_owned(), "profilerd.deb"),
        (
            workspace_root().join("xtask/src/deploy/guest.sh"),
            "guest.sh",
        ),
        (
            workspace_root().join("tests/services/sample_service.py"),
            "sample_service.py",
        ),
    ] {
        fs::copy(&from, root.join(to)).with_context(|| from.display().to_string())?;
    }
    let units = root.join("etc/systemd/system");
    fs::write(
        units.join("guest.service"),
        "[Unit]\nSuccessAction=poweroff-force\nFailureAction=poweroff-force\n\
         [Service]\nType=oneshot\nExecStart=/bin/sh /guest.sh\n",
    )?;
    symlink(
        "../guest.service",
        units.join("multi-user.target.wants/guest.service"),
    )?;
    // A login prompt would be printed between the results.
    for getty in ["serial-getty@.service", "getty@.service"] {
        symlink("/dev/null", units.join(getty))?;
    }
    // The kernel starts this one of an initramfs.
    symlink("/lib/systemd/systemd", root.join("init"))?;
    Ok(root)
}

/// Debian's smallest system with systemd and CPython, fetched once.
fn system(folder: &Path) -> Result<PathBuf> {
    let system = folder.join(SUITE);
    if system.exists() {
        return Ok(system);
    }
    let unfinished = folder.join("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    fs::create_dir_all(folder)?;
    step(&format!("debootstrap {SUITE} (some minutes)"));
    run_quietly(
        Command::new("debootstrap")
            .args(["--variant=minbase", &format!("--include={PACKAGES}")])
            .arg(format!("--keyring={DEBIAN_KEYRING}"))
            .arg(SUITE)
            .arg(&unfinished),
    )?;
    let archives = unfinished.join("var/cache/apt/archives");
    if archives.exists() {
        fs::remove_dir_all(archives)?;
    }
    // Only a whole system gets the name that is looked for.
    fs::rename(unfinished, &system)?;
    Ok(system)
}
