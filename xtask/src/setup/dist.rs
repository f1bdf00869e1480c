//! The cargo tools that releases are made with, in fixed versions.

use anyhow::{Context, Result};

use crate::command::{cargo, output, run_quietly, step};

/// Subcommands of cargo: name, version, features beside the usual ones.
const TOOLS: [(&str, &str, &str); 4] = [
    // Without the feature there is a library and no program.
    ("cargo-about", "0.9.3", "cli"),
    ("cargo-cyclonedx", "0.5.9", ""),
    ("cargo-deb", "3.8.0", ""),
    ("cargo-generate-rpm", "0.21.1", ""),
];

/// Installs what is not there in the wanted version.
pub(super) fn ensure() -> Result<()> {
    let installed = output(cargo().args(["install", "--list"]))?;
    for (name, version, features) in TOOLS {
        let entry = format!("{name} v{version}:");
        if installed.lines().any(|line| line == entry) {
            continue;
        }
        step(&format!("cargo install {name} {version} (some minutes)"));
        let mut install = cargo();
        install.args(["install", name, "--version", version]);
        install.args(["--features", features, "--locked", "--quiet"]);
        run_quietly(&mut install)
            .with_context(|| format!("cannot build {name} (is this machine offline?)"))?;
    }
    Ok(())
}
