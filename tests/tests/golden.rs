//! Recorded stacks have the frames that are written beside them, on any machine.
//!
//! `tests/golden/NAME.recording` is what finding the frames reads (`profiler_tests::recording`),
//! `NAME.stack` what is found. `cargo xtask golden` records again and writes both; read the difference
//! before it is committed.

use std::collections::BTreeSet;
use std::path::PathBuf;

use profiler_tests::recording::Recording;
use profiler_tests::{PYTHON_MINORS, python_suite, workspace_root};

/// Tells that what is found is to be written, not compared.
const WRITE: &str = "PROFILERD_RECORD";

fn folder() -> PathBuf {
    workspace_root().join("tests/golden")
}

/// Check that each recorded stack has its frames, and that there is one for each version of CPython.
#[test]
fn recorded_stacks_have_their_frames() {
    let mut names = BTreeSet::new();
    for entry in folder().read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "recording") {
            let text = std::fs::read_to_string(&path).unwrap();
            let recording = Recording::parse(&text).unwrap();
            assert!(
                recording.to_text() == text,
                "{} loses something",
                path.display()
            );
            let frames = recording.frames().unwrap();
            let expected = path.with_extension("stack");
            if std::env::var_os(WRITE).is_some() {
                std::fs::write(&expected, &frames).unwrap();
            }
            let expected = std::fs::read_to_string(expected).unwrap();
            assert_eq!(frames, expected, "{}", path.display());
            names.insert(path.file_stem().unwrap().to_string_lossy().into_owned());
        }
    }
    for minor in PYTHON_MINORS {
        let name = |arch| format!("python-3.{minor}-{arch}");
        // Debian has the other architecture's CPython of the versions that it has at all.
        let foreign = python_suite(minor).map(|_| name("aarch64"));
        for name in [name("x86_64")].into_iter().chain(foreign) {
            assert!(names.contains(&name), "{name} is not recorded");
        }
    }
}

/// Check that what is no recording is refused.
#[test]
fn a_recording_has_known_lines() {
    assert!(Recording::parse("nonsense 1").is_err());
}
