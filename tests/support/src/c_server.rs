//! Servers in C: compiled where they run; that of the kernel tests also beforehand, for a machine without a compiler.

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
    build_c_server_by(&mut Command::new("cc"), program)
}

/// As [`build_c_server`], by another compiler, or with more options.
///
/// # Errors
///
/// As for [`build_c_server`].
pub fn build_c_server_by(compiler: &mut Command, program: &Path) -> Result<()> {
    build_c(compiler, &kernel_test_folder().join("server.c"), program)
}

/// Compiles a server of one source file in the same way.
///
/// # Errors
///
/// As for [`build_c_server`].
pub fn build_c(compiler: &mut Command, source: &Path, program: &Path) -> Result<()> {
    let status = compiler
        .args(["-O1", "-fomit-frame-pointer", "-fno-toplevel-reorder", "-o"])
        .args([program, source])
        .status()
        .with_context(|| format!("failed to start {:?}", compiler.get_program()))?;
    ensure!(status.success(), "{:?}: {status}", compiler.get_program());
    Ok(())
}
