//! The folder that is packed, as the release archive has it; deb and rpm take their files from it.
//!
//! ```text
//! profilerd                    the binary
//! man/profilerd*.1             one page for each command
//! completions/profilerd.bash, _profilerd, profilerd.fish
//! licences/                    ours, and those of all dependencies
//! profilerd.service            systemd unit
//! profilerd.yaml               example configuration
//! README.md
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use profiler_test_support::workspace_root;

use super::{Commit, Platform, copy, empty, folder, notices, tar};
use crate::command::{output, run_quietly};

/// Files of the repository that every release has, and their names in it.
const FILES: [(&str, &str); 6] = [
    ("README.md", "README.md"),
    ("LICENSE", "licences/LICENSE"),
    ("LICENSE-GPL-2.0", "licences/LICENSE-GPL-2.0"),
    ("deploy/packages/NOTICE", "licences/NOTICE"),
    ("deploy/systemd/profilerd.service", "profilerd.service"),
    ("deploy/packages/profilerd.yaml", "profilerd.yaml"),
];

/// Shells, and the names of the files that they look for.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "profilerd.bash"),
    ("zsh", "_profilerd"),
    ("fish", "profilerd.fish"),
];

/// Fills it anew; yields its path.
pub(super) fn fill(platform: Platform, binary: &Path) -> Result<PathBuf> {
    let stage = folder().join("stage");
    empty(&stage)?;
    copy(binary, &stage.join("profilerd"))?;
    for (from, to) in FILES {
        copy(&workspace_root().join(from), &stage.join(to))?;
    }
    notices::write_licences(platform, &stage.join("licences/THIRD-PARTY"))?;
    let man = stage.join("man");
    fs::create_dir(&man)?;
    run_quietly(platform.run(binary).arg("man").arg(&man))?;
    for (shell, name) in COMPLETIONS {
        let script = output(platform.run(binary).args(["completions", shell]))?;
        let path = stage.join("completions").join(name);
        fs::create_dir_all(path.parent().context("it is in a folder")?)?;
        fs::write(&path, script)?;
    }
    Ok(stage)
}

/// Packs it under the name of the release.
pub(super) fn pack(stage: &Path, name: &str, commit: &Commit, to: &Path) -> Result<()> {
    let renamed = format!("--transform=s,^\\.,{name},");
    // gzip would write a time and a name into its header.
    let options = [&renamed, "--use-compress-program=gzip -9 --no-name"];
    tar(stage, &["."], &options, commit, to)
}
