//! Event loops of Python that the tests use.

use anyhow::{Context, Result};
use profiler_test_support::{loops_folder, workspace_root};

use super::venv;

/// Fetches what is not there in the wanted version.
pub(super) fn ensure() -> Result<()> {
    let requirements = workspace_root().join("tests/services/loops.txt");
    venv::ensure(&loops_folder(), &requirements).context("failed to fetch event loops")
}
