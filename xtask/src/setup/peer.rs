//! The profilers that are measured beside profilerd; SkyWalking's Python agent is in [`super::oap`].

use std::path::PathBuf;

use anyhow::{Context, Result};
use profiler_test_support::{target_dir, workspace_root};

use super::venv;

/// Fetches what is not there in the wanted version.
pub(super) fn ensure() -> Result<()> {
    let requirements = workspace_root().join("tests/bench/peers.txt");
    venv::ensure(&folder(), &requirements).context("failed to fetch py-spy")
}

fn folder() -> PathBuf {
    target_dir().join("peers")
}

/// The program.
pub(crate) fn py_spy() -> PathBuf {
    folder().join("bin/py-spy")
}
