//! `cargo xtask golden`: records the stacks of `tests/golden` and what is found in them.
//!
//! Those of aarch64 are recorded in an emulated machine. Recordings of either are checked on both, by
//! `tests/tests/golden.rs`.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use profiler_test_support::{PYTHON_MINORS, workspace_root};

use crate::command::{cargo, run as run_command, step};
use crate::vm::{Arch, record};

/// Arguments of `golden`.
#[derive(Debug, clap::Args)]
pub(crate) struct GoldenArgs {
    /// Processor architecture.
    #[arg(long, value_enum, default_value_t)]
    arch: Arch,
    /// Version of CPython such as 3.13; all that are supported by default.
    #[arg(long)]
    python: Option<String>,
}

/// Runs `golden`.
pub(crate) fn run(args: &GoldenArgs) -> Result<ExitCode> {
    let wanted = |minor: &u8| {
        let version = format!("3.{minor}");
        args.python.as_ref().is_none_or(|python| *python == version)
    };
    let minors: Vec<u8> = PYTHON_MINORS.into_iter().filter(wanted).collect();
    if minors.is_empty() {
        bail!("--python takes 3.11 to 3.14");
    }
    for minor in minors {
        let name = format!("python-3.{minor}-{}.recording", args.arch.name());
        match record(args.arch, minor).with_context(|| name.clone())? {
            Some(text) => {
                fs::write(workspace_root().join("tests/golden").join(&name), text)?;
                step(&format!("wrote tests/golden/{name}"));
            }
            None => step(&format!(
                "{name} is not recorded again: there is no CPython 3.{minor} here"
            )),
        }
    }
    let mut find = cargo();
    find.args(["test", "--workspace", "--locked", "--test", "golden"]);
    run_command(find.env("PROFILERD_RECORD", "1"))?;
    Ok(ExitCode::SUCCESS)
}
