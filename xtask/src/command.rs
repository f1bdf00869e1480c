//! Runs other programs: their output goes to stderr, their failure is an error that names them.

use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
pub(crate) use profiler_test_support::is_root;
use profiler_test_support::workspace_root;

/// Says what happens next, one line.
pub(crate) fn step(text: &str) {
    eprintln!("xtask: {text}");
}

/// Runs to the end, stdout sent to stderr.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::from(io::stderr()))
        .status()
        .with_context(|| format!("failed to start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{} failed: {status}", line_of(command));
    }
    Ok(())
}

/// Runs to the end; what it printed is shown only if it fails.
pub(crate) fn run_quietly(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to start {:?}", command.get_program()))?;
    if !output.status.success() {
        io::stderr().write_all(&output.stdout)?;
        io::stderr().write_all(&output.stderr)?;
        bail!("{} failed: {}", line_of(command), output.status);
    }
    Ok(())
}

/// Runs to the end and yields stdout; stderr passes through.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("failed to start {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{} failed: {}", line_of(command), output.status);
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{} printed no text", line_of(command)))
}

/// Whether it runs and succeeds; says nothing.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The program on `PATH` with this name.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// The cargo that runs us, in the workspace root.
///
/// What `cargo run` tells us of our own package is not passed on: build scripts that watch such variables
/// (ring's) would run again each time we and the developer build in turn, and everything above them.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        if is_of_our_package(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    command.current_dir(workspace_root());
    command
}

/// <https://doc.rust-lang.org/cargo/reference/environment-variables.html>
fn is_of_our_package(variable: &str) -> bool {
    [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_CRATE_",
        "CARGO_BIN_",
        "CARGO_PRIMARY_",
    ]
    .iter()
    .any(|prefix| variable.starts_with(prefix))
}

fn line_of(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    format!("`{}`", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that what is of our package is told from what sets up cargo.
    #[test]
    fn variables_of_our_package_are_told_apart() {
        assert!(is_of_our_package("CARGO_PKG_VERSION"));
        assert!(is_of_our_package("CARGO_MANIFEST_DIR"));
        for kept in [
            "CARGO",
            "CARGO_HOME",
            "CARGO_TARGET_DIR",
            "CARGO_INCREMENTAL",
        ] {
            assert!(!is_of_our_package(kept), "{kept}");
        }
    }
}
