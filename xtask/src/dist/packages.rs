//! Packages of Debian and of systems with rpm, from the folder of [`super::stage`]. What goes where stands in
//! `profiler-daemon/Cargo.toml`.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Commit, Platform, version};
use crate::command::{cargo, run_quietly, step};

/// Revision of the packaging, the part of a package's version behind the hyphen.
const RELEASE: &str = "1";

/// Builds both; yields their paths.
pub(super) fn build(platform: Platform, commit: &Commit, folder: &Path) -> Result<[PathBuf; 2]> {
    Ok([
        deb(platform, commit, folder)?,
        rpm(platform, commit, folder)?,
    ])
}

fn deb(platform: Platform, commit: &Commit, folder: &Path) -> Result<PathBuf> {
    step("cargo deb");
    let name = format!("profilerd_{}-{RELEASE}_{}.deb", version(), platform.name());
    let path = folder.join(name);
    let mut deb = cargo();
    deb.args(["deb", "--quiet", "--locked", "--no-build", "--no-strip"])
        .args([
            "--package",
            "profiler-daemon",
            "--target",
            platform.target(),
        ])
        .args(["--deb-revision", RELEASE, "--output"])
        .arg(&path)
        .env("SOURCE_DATE_EPOCH", &commit.seconds);
    run_quietly(&mut deb)?;
    Ok(path)
}

fn rpm(platform: Platform, commit: &Commit, folder: &Path) -> Result<PathBuf> {
    step("cargo generate-rpm");
    let name = format!(
        "profilerd-{}-{RELEASE}.{}.rpm",
        version(),
        platform.machine()
    );
    let path = folder.join(name);
    let mut rpm = cargo();
    rpm.args(["generate-rpm", "--package", "profiler-daemon"])
        .args(["--arch", platform.machine(), "--source-date"])
        .arg(&commit.seconds)
        .arg("--output")
        .arg(&path);
    run_quietly(&mut rpm)?;
    Ok(path)
}
