//! What the binary is made of, and the terms of each part.
//!
//! In:  `Cargo.lock`, `deploy/packages/about.toml`
//! Out: an SBOM in CycloneDX's JSON; the licences of all dependencies as text

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use profiler_test_support::workspace_root;

use super::{Commit, Platform};
use crate::command::{cargo, run_quietly, step};

/// cargo-cyclonedx writes beside the manifest, under this name.
const BOM_NAME: &str = "profilerd.cdx";

/// Writes the SBOM.
pub(super) fn write_bom(platform: Platform, commit: &Commit, to: &Path) -> Result<()> {
    step("cargo cyclonedx");
    let manifest = workspace_root().join("profiler-daemon/Cargo.toml");
    let mut cyclonedx = cargo();
    cyclonedx
        .args([
            "cyclonedx",
            "--quiet",
            "--format",
            "json",
            "--spec-version",
            "1.5",
        ])
        .args(["--target", platform.target(), "--no-build-deps"])
        .args(["--override-filename", BOM_NAME, "--manifest-path"])
        .arg(&manifest)
        // Neither the time of the run nor a random serial number.
        .env("SOURCE_DATE_EPOCH", &commit.seconds);
    run_quietly(&mut cyclonedx)?;
    // One for each package of the workspace that the daemon is made of; the daemon's has the others in it.
    for package in [
        "profiler-common",
        "profiler-ebpf",
        "proto",
        "xtask",
        "tests",
        "tests/support",
    ] {
        let other = workspace_root()
            .join(package)
            .join(format!("{BOM_NAME}.json"));
        if other.exists() {
            fs::remove_file(&other)?;
        }
    }
    let written = manifest.with_file_name(format!("{BOM_NAME}.json"));
    fs::rename(&written, to).with_context(|| format!("failed to move {}", written.display()))
}

/// Writes the text of every licence with the crates that are under it.
pub(super) fn write_licences(platform: Platform, to: &Path) -> Result<()> {
    step("cargo about");
    let folder = workspace_root().join("deploy/packages");
    let mut about = cargo();
    about
        .args(["about", "generate", "--locked", "--offline", "--fail"])
        .args(["--target", platform.target(), "--config"])
        .arg(folder.join("about.toml"))
        .arg("--manifest-path")
        .arg(workspace_root().join("profiler-daemon/Cargo.toml"))
        .arg("--output-file")
        .arg(to)
        .arg(folder.join("about.hbs"));
    run_quietly(&mut about)
}
