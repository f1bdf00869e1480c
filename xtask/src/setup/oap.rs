//! A SkyWalking OAP from Maven Central and SkyWalking's Python agent from PyPI, for the tests that run
//! against the real ones. Both stay in `target/`; what is asked for stands in `tests/oap`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use profiler_test_support::{oap_folder, python_agent_folder, workspace_root};

use super::apt;
use crate::command::{run_quietly, step, succeeds};

/// Fetches what is not there in the wanted versions.
pub(super) fn ensure() -> Result<()> {
    let wanted = workspace_root().join("tests/oap");
    once(&oap_folder(), &wanted.join("pom.xml"), fetch_oap)
        .context("failed to fetch the SkyWalking OAP")?;
    once(
        &python_agent_folder(),
        &wanted.join("python-agent.txt"),
        fetch_python_agent,
    )
    .context("failed to fetch SkyWalking's Python agent")
}

/// Fills `folder` by `fetch` unless it was filled for the same text of `wanted` before. What is left of
/// another or an interrupted attempt is removed.
fn once(
    folder: &Path,
    wanted: &Path,
    fetch: impl FnOnce(&Path, &Path) -> Result<()>,
) -> Result<()> {
    let text = fs::read(wanted).with_context(|| format!("failed to read {}", wanted.display()))?;
    let stamp = folder.join("complete");
    if fs::read(&stamp).is_ok_and(|done| done == text) {
        return Ok(());
    }
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    fetch(folder, wanted)?;
    fs::write(stamp, text)?;
    Ok(())
}

fn fetch_oap(folder: &Path, pom: &Path) -> Result<()> {
    step("mvn dependency:copy-dependencies for a SkyWalking OAP");
    run_quietly(
        Command::new("mvn")
            .args(["--batch-mode", "--quiet", "--file"])
            .arg(pom)
            .arg("dependency:copy-dependencies")
            .arg("-DincludeScope=runtime")
            .arg(format!(
                "-DoutputDirectory={}",
                folder.join("lib").display()
            )),
    )
}

fn fetch_python_agent(folder: &Path, requirements: &Path) -> Result<()> {
    // Debian packs this part of Python by itself.
    if !succeeds(Command::new("python3").args(["-c", "import ensurepip"])) {
        apt::install(&["python3-venv"])?;
    }
    step("pip install of SkyWalking's Python agent");
    run_quietly(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
    run_quietly(
        Command::new(folder.join("bin/pip"))
            .args(["install", "--quiet", "--requirement"])
            .arg(requirements),
    )
}
