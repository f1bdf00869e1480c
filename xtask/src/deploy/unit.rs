//! The systemd unit, as `systemd-analyze` judges it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use profiler_test_support::{target_dir, workspace_root};

use crate::command::{run_quietly, step};

/// Highest exposure that is accepted, of 10; docs/deploy.md has the present one.
const EXPOSURE_MAX: f32 = 3.5;

/// That it has no unknown setting, and that it is hardened.
pub(super) fn check(binary: &Path) -> Result<()> {
    let unit = workspace_root().join("deploy/systemd/profilerd.service");
    let text = fs::read_to_string(&unit).with_context(|| unit.display().to_string())?;
    // The program must be there, and is not installed.
    let binary = binary.to_str().context("a path is UTF-8")?;
    let text = text.replace("/usr/bin/profilerd", binary);
    let folder = target_dir().join("tmp");
    fs::create_dir_all(&folder)?;
    let copy = folder.join("profilerd.service");
    fs::write(&copy, text)?;
    let verified = analyze().args(["verify", "--man=no"]).arg(&copy).output()?;
    let complaints = String::from_utf8_lossy(&verified.stderr);
    let ours: Vec<_> = complaints
        .lines()
        .filter(|line| line.contains("profilerd.service"))
        .collect();
    // An unknown setting is no failure for it.
    ensure!(
        verified.status.success() && ours.is_empty(),
        "systemd-analyze verify: {complaints}"
    );
    let threshold = format!("--threshold={}", EXPOSURE_MAX * 10.0);
    let security = ["security", "--offline=true", "--no-pager", &threshold];
    run_quietly(analyze().args(security).arg(&copy))?;
    let output = analyze().args(security).arg(&copy).output()?;
    let table = String::from_utf8_lossy(&output.stdout);
    step(
        table
            .lines()
            .rfind(|line| line.contains("Overall"))
            .unwrap_or_default(),
    );
    Ok(())
}

fn analyze() -> Command {
    Command::new("systemd-analyze")
}
