//! Event loops of Python, and uWSGI, that the tests profile.

use std::process::Command;

use anyhow::{Context, Result};
use profiler_test_support::{loops_folder, workspace_root};

use super::{apt, venv};
use crate::command::succeeds;

/// Says whether the interpreter's headers are there.
const HAS_HEADERS: &str = "import os, sysconfig as c; os.stat(c.get_path('include') + '/Python.h')";

/// Fetches what is not there in the wanted version. uWSGI is compiled: PyPI has its source only.
pub(super) fn ensure() -> Result<()> {
    if !succeeds(Command::new("python3").args(["-c", HAS_HEADERS])) {
        apt::install(&["python3-dev", "gcc"])?;
    }
    let requirements = workspace_root().join("tests/services/loops.txt");
    venv::ensure(&loops_folder(), &requirements).context("failed to fetch event loops")
}
