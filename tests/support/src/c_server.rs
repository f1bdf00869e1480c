//! The C server of the kernel tests: compiled where it runs, or beforehand for a machine without a
//! compiler.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::workspace_root;

/// Names the compiled server, where there is no compiler.
pub const C_SERVER: &str = "PROFILERD_TEST_C_SERVER";

/// The server's source and the script servers beside it.
#[must_use]
pub fn kernel_test_folder() -> PathBuf {
    workspace_root().join("tests/tests/kernel_load")
}

/// Compiles the server to `program`: without frame pointers, functions in the order of the source.
///
/// # Errors
///
/// There is no compiler, or it fails.
pub fn build_c_server(program: &Path) -> Result<()> {
    let status = Command::new("cc")
        .args(["-O1", "-fomit-frame-pointer", "-fno-toplevel-reorder", "-o"])
        .args([program, &kernel_test_folder().join("server.c")])
        .status()
        .context("failed to start cc")?;
    ensure!(status.success(), "cc: {status}");
    Ok(())
}
