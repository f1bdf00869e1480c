//! The commit that is built, whose time stands for every time in what is released.

use std::process::Command;

use anyhow::{Context, Result};
use profiler_test_support::workspace_root;

use crate::command::{find_program, output};

/// The commit that is built.
#[derive(Debug)]
pub(super) struct Commit {
    /// `SOURCE_DATE_EPOCH`: seconds that stand for every time in what is built.
    pub(super) seconds: String,
    /// Its id; empty without git.
    pub(super) revision: String,
}

impl Commit {
    pub(super) fn read() -> Result<Self> {
        let git = |format: &str| {
            let mut command = Command::new("git");
            command.args(["log", "-1", &format!("--format={format}")]);
            output(command.current_dir(workspace_root()))
        };
        if find_program("git").is_some() && workspace_root().join(".git").exists() {
            return Ok(Self {
                seconds: git("%ct")?.trim().to_owned(),
                revision: git("%H")?.trim().to_owned(),
            });
        }
        let seconds = std::env::var("SOURCE_DATE_EPOCH")
            .context("outside of a git repository SOURCE_DATE_EPOCH must be set")?;
        Ok(Self {
            seconds,
            revision: String::new(),
        })
    }

    /// The same for what is only built for checks, which need no commit.
    pub(super) fn read_if_known() -> Self {
        Self::read().unwrap_or_else(|_| Self {
            seconds: "0".to_owned(),
            revision: String::new(),
        })
    }
}
