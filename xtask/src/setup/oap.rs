//! A SkyWalking OAP from Maven Central and SkyWalking's Python agent from PyPI, for the tests that run
//! against the real ones. Both stay in `target/`; what is asked for stands in `tests/oap`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use profiler_test_support::{oap_folder, python_agent_folder, workspace_root};

use super::{once, venv};
use crate::command::{run_quietly, step};

/// Fetches what is not there in the wanted versions.
pub(super) fn ensure() -> Result<()> {
    let wanted = workspace_root().join("tests/oap");
    once(&oap_folder(), &wanted.join("pom.xml"), fetch_oap)
        .context("failed to fetch the SkyWalking OAP")?;
    venv::ensure(&python_agent_folder(), &wanted.join("python-agent.txt"))
        .context("failed to fetch SkyWalking's Python agent")
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
