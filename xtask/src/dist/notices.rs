//! What the binary is made of, and the terms of each part.
//!
//! In:  `Cargo.lock`, `deploy/packages/about.toml`
//! Out: SBOMs in CycloneDX's JSON; the licences of all dependencies as text

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use profiler_test_support::workspace_root;

use super::{Commit, Platform};
use crate::command::{cargo, output, run_quietly, step};

/// The package of the binary, and that of the BPF programs which are in it as data.
const PACKAGES: [&str; 2] = ["profiler-daemon", "profiler-ebpf"];

/// cargo-cyclonedx writes beside the manifest, under this name.
const BOM_NAME: &str = "profilerd.cdx";

/// Writes the SBOM of each package; `to` names their files.
pub(super) fn write_boms(platform: Platform, commit: &Commit, to: [&Path; 2]) -> Result<()> {
    step("cargo cyclonedx");
    let manifest = workspace_root().join("profiler-daemon/Cargo.toml");
    let mut cyclonedx = cargo();
    cyclonedx
        .args(["cyclonedx", "--quiet", "--format", "json"])
        .args(["--spec-version", "1.5", "--no-build-deps"])
        .args(["--target", platform.target()])
        .args(["--override-filename", BOM_NAME, "--manifest-path"])
        .arg(&manifest)
        // Neither the time of the run nor a random serial number.
        .env("SOURCE_DATE_EPOCH", &commit.seconds);
    run_quietly(&mut cyclonedx)?;
    let written = |package: &str| {
        workspace_root()
            .join(package)
            .join(format!("{BOM_NAME}.json"))
    };
    for (package, to) in PACKAGES.into_iter().zip(to) {
        let written = written(package);
        fs::rename(&written, to)
            .with_context(|| format!("failed to move {}", written.display()))?;
    }
    // The tool writes one for every package of the workspace.
    for other in [
        "profiler-common",
        "proto",
        "xtask",
        "tests",
        "tests/support",
    ] {
        let other = written(other);
        if other.exists() {
            fs::remove_file(&other)?;
        }
    }
    Ok(())
}

/// Writes the text of every licence with the crates that are under it.
pub(super) fn write_licences(platform: Platform, to: &Path) -> Result<()> {
    let folder = workspace_root().join("deploy/packages");
    // Texts come from the crates alone, not from a service on the network; those of other systems are looked at as well.
    run_quietly(cargo().args(["fetch", "--locked", "--quiet"]))?;
    let mut all = String::new();
    for package in PACKAGES {
        step(&format!("cargo about: {package}"));
        let mut about = cargo();
        about
            .args(["about", "generate", "--locked", "--offline", "--fail"])
            .args(["--target", platform.target(), "--config"])
            .arg(folder.join("about.toml"))
            .arg("--manifest-path")
            .arg(workspace_root().join(package).join("Cargo.toml"))
            .arg(folder.join("about.hbs"));
        all += &output(&mut about)?;
    }
    fs::write(to, all).with_context(|| to.display().to_string())
}
