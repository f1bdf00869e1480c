//! The CPython versions that tests run and this machine lacks: Debian's packages of other suites, unpacked
//! into `target/`. They bring their own libc, and get its path.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use profiler_test_support::{
    PYTHON_MINORS, find_pythons, python_folder, python_suite, unpacked_python,
};

use super::archive::Archive;
use crate::command::{run_quietly, step, succeeds};

/// Fetches what is missing and can be had. One version that cannot be fetched does not keep other tests from
/// running; its own will fail and say why.
pub(super) fn ensure() {
    for minor in PYTHON_MINORS {
        if !find_pythons(minor).is_empty() && runs(&unpacked_python(minor)) {
            continue;
        }
        let Some(suite) = python_suite(minor) else {
            step(&format!(
                "no CPython 3.{minor} here, and no Debian suite has it"
            ));
            continue;
        };
        if let Err(error) = fetch(minor, suite) {
            step(&format!("CPython 3.{minor} cannot be fetched: {error:#}"));
        }
    }
}

/// Whether an interpreter that is there also runs: the folder may have been moved since it was made.
fn runs(python: &Path) -> bool {
    !python.exists() || succeeds(Command::new(python).arg("-V"))
}

fn fetch(minor: u8, suite: &str) -> Result<()> {
    let folder = python_folder(minor);
    let (unpacked, root) = (folder.join("unpacked"), folder.join("root"));
    for old in [&unpacked, &root] {
        if old.exists() {
            fs::remove_dir_all(old)?;
        }
    }
    let archive = Archive::open(suite, "amd64", &folder)?;
    archive.unpack_with_dependencies(&format!("python3.{minor}"), &unpacked)?;
    // Only a whole tree gets the name that is looked for.
    fs::rename(&unpacked, &root)?;
    let libraries = libraries(&root)?;
    let python = unpacked_python(minor);
    run_quietly(
        Command::new("patchelf")
            .arg("--set-interpreter")
            .arg(libraries.join("ld-linux-x86-64.so.2"))
            // For the modules that are loaded later as well.
            .args(["--force-rpath", "--set-rpath"])
            .arg(&libraries)
            .arg(&python),
    )?;
    run_quietly(Command::new(&python).args(["-c", "import ctypes, http.server, json, ssl"]))
}

/// The folder with libc: `/lib` is a link to `/usr/lib` in an installed system, and not among the packages.
fn libraries(root: &Path) -> Result<PathBuf> {
    ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"]
        .iter()
        .map(|folder| root.join(folder))
        .find(|folder| folder.join("ld-linux-x86-64.so.2").exists())
        .with_context(|| format!("no libc in {}", root.display()))
}
