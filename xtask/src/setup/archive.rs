//! Packages of Debian's archive for other suites and other architectures, fetched and unpacked without
//! touching the machine's own package state. Needs no root.
//!
//! apt gets a folder of its own, with its own sources, lists and cache, and an empty machine: what it
//! would install there is a package with everything it depends on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::apt::apt_get;
use crate::command::{output, run, run_quietly, step};

/// The keys that Debian signs its suites with, by the package `debian-archive-keyring`.
pub(crate) const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const DEBIAN_MIRROR: &str = "http://deb.debian.org/debian";
const SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security";

/// A suite of Debian for one architecture.
#[derive(Debug)]
pub(crate) struct Archive {
    suite: String,
    folder: PathBuf,
    options: Vec<String>,
}

impl Archive {
    /// Fetches the lists of packages of a suite, such as `bookworm`, for an architecture as Debian names
    /// it. `folder` keeps apt's files and, for a moment, packages.
    pub(crate) fn open(suite: &str, architecture: &str, folder: &Path) -> Result<Self> {
        let sources = source(DEBIAN_MIRROR, suite);
        Self::with_sources(suite, architecture, folder, &sources)
    }

    /// As [`Self::open`], with the suite's security updates: compilers come by them.
    pub(crate) fn with_updates(suite: &str, architecture: &str, folder: &Path) -> Result<Self> {
        let updates = source(SECURITY_MIRROR, &format!("{suite}-security"));
        let sources = source(DEBIAN_MIRROR, suite) + &updates;
        Self::with_sources(suite, architecture, folder, &sources)
    }

    fn with_sources(suite: &str, architecture: &str, folder: &Path, sources: &str) -> Result<Self> {
        let this = Self {
            suite: suite.to_owned(),
            folder: folder.to_owned(),
            options: private_options(architecture, folder, sources)?,
        };
        step(&format!("apt-get update for Debian {suite} {architecture}"));
        run_quietly(apt_get().args(&this.options).args(["update", "-qq"]))
            .with_context(|| format!("cannot reach {DEBIAN_MIRROR} (is this machine offline?)"))?;
        Ok(this)
    }

    /// Unpacks the package with the kernel that the meta package `meta` stands for, whose name begins
    /// with `prefix`.
    pub(crate) fn unpack_kernel(&self, meta: &str, prefix: &str, to: &Path) -> Result<()> {
        let suite = &self.suite;
        let image = self.dependency(meta, prefix)?.with_context(|| {
            format!(
                "{meta} of Debian {suite} depends on no {prefix}*: does the suite have a newer kernel?"
            )
        })?;
        // From Linux 7 on linux-image-* only gathers its parts; the kernel is in one of them.
        let package = self.dependency(&image, "linux-binary-")?.unwrap_or(image);
        self.unpack(&package, to)
    }

    /// Unpacks one package: `NAME` or `NAME=VERSION`.
    pub(crate) fn unpack(&self, package: &str, to: &Path) -> Result<()> {
        let folder = empty_folder(&self.folder.join("download"))?;
        step(&format!("apt-get download {package}"));
        let mut download = apt_get();
        download.args(&self.options).args(["download", package]);
        run_quietly(download.current_dir(&folder))?;
        unpack_all(&folder, to)
    }

    /// Unpacks a package and everything it depends on, libc included.
    pub(crate) fn unpack_with_dependencies(&self, package: &str, to: &Path) -> Result<()> {
        let archives = self.folder.join("cache/archives");
        step(&format!(
            "apt-get download {package} and its dependencies for Debian {}",
            self.suite
        ));
        let mut install = apt_get();
        install.args(&self.options);
        install.args(["install", "--download-only", "-y", "-qq"]);
        // There is nothing to lock: no other apt has this folder.
        install.args(["--no-install-recommends", "-o", "Debug::NoLocking=1"]);
        run_quietly(install.arg(package))?;
        unpack_all(&archives, to)
    }

    /// The first dependency of a package whose name begins with `prefix`.
    fn dependency(&self, package: &str, prefix: &str) -> Result<Option<String>> {
        let depends = output(
            Command::new("apt-cache")
                .args(&self.options)
                .args(["depends", package]),
        )?;
        let mut names = depends
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned))
    }
}

/// A line of `sources.list`.
fn source(mirror: &str, suite: &str) -> String {
    format!("deb [signed-by={DEBIAN_KEYRING}] {mirror} {suite} main\n")
}

/// Unpacks the packages in a folder and removes them.
fn unpack_all(folder: &Path, to: &Path) -> Result<()> {
    let mut count = 0;
    for entry in fs::read_dir(folder)? {
        let package = entry?.path();
        if package.extension().is_some_and(|name| name == "deb") {
            run(Command::new("dpkg-deb").arg("-x").args([&package, to]))?;
            fs::remove_file(&package)?;
            count += 1;
        }
    }
    anyhow::ensure!(count > 0, "apt left no package in {}", folder.display());
    Ok(())
}

fn empty_folder(folder: &Path) -> Result<PathBuf> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    Ok(folder.to_owned())
}

/// Options that give apt a folder of its own with these sources.
fn private_options(architecture: &str, folder: &Path, sources: &str) -> Result<Vec<String>> {
    let lists = folder.join("lists");
    let cache = folder.join("cache");
    for path in [lists.join("partial"), cache.join("archives/partial")] {
        fs::create_dir_all(&path)
            .with_context(|| format!("failed to create {}", path.display()))?;
    }
    let sources_list = folder.join("sources.list");
    fs::write(&sources_list, sources)?;
    let status = folder.join("status");
    fs::write(&status, "")?;
    let mut options = Vec::new();
    for (name, value) in [
        ("APT::Architecture", architecture.to_owned()),
        ("APT::Architectures", architecture.to_owned()),
        ("Dir::Etc::sourcelist", sources_list.display().to_string()),
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
