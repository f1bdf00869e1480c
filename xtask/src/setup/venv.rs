//! Virtual environments of Python in `target/`.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{apt, once};
use crate::command::{run_quietly, step, succeeds};

/// Installs what a file of requirements lists into `folder`, unless it was before.
pub(super) fn ensure(folder: &Path, requirements: &Path) -> Result<()> {
    once(folder, requirements, |folder, requirements| {
        // Debian packs this part of Python by itself.
        if !succeeds(Command::new("python3").args(["-c", "import ensurepip"])) {
            apt::install(&["python3-venv"])?;
        }
        step(&format!("pip install of {}", requirements.display()));
        run_quietly(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        run_quietly(
            Command::new(folder.join("bin/pip"))
                .args(["install", "--quiet", "--requirement"])
                .arg(requirements),
        )
    })
}
