//! What the binary is made of, and the terms of each part.
//!
//! In:  `Cargo.lock`, `deploy/packages/about.toml`
//! Out: SBOMs in CycloneDX's JSON; the licences of all dependencies as text

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use profiler_test_support::workspace_root;

use super::{Commit, Platform, SOURCES};
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
        let bom = fs::read_to_string(&written)
            .with_context(|| format!("failed to read {}", written.display()))?;
        fs::write(to, with_named_sources(&bom, &workspace_root()))
            .with_context(|| to.display().to_string())?;
        fs::remove_file(&written)?;
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

/// The folder of the sources is part of how the tool refers to our packages; it is named as in the binary.
fn with_named_sources(bom: &str, folder: &Path) -> String {
    bom.replace(
        &format!("file://{}/", folder.display()),
        &format!("file://{SOURCES}/"),
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that no SBOM names a folder of the machine that wrote it.
    #[test]
    fn an_sbom_names_no_folder_of_this_machine() {
        let bom = r#"{"ref": "path+file:///home/me/p/profiler-common#0.1.0"}"#;
        assert_eq!(
            with_named_sources(bom, Path::new("/home/me/p")),
            r#"{"ref": "path+file:///usr/src/profilerd/profiler-common#0.1.0"}"#
        );
    }
}
