//! Helpers for the tests that need root or real servers.

use std::io::Write;
use std::path::{Path, PathBuf};

pub use profiler_test_support::{
    C_SERVER, ChildGuard, HttpClient, LocalServer, Response, SampleService, SkywalkingOap,
    build_c_server, free_port, plain_python_agent_command, python_agent_command,
    python_agent_folder, read_json, wait_until, workspace_root,
};

/// Leaves the test as skipped: prints `SKIPPED <test>: <reason>`, which `cargo xtask test` counts and
/// compares with `tests/expected-skips.txt`. For test functions that return nothing.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        fn here() {}
        $crate::report_skip(::std::any::type_name_of_val(&here), &::std::format!($($reason)*));
        return;
    }};
}

/// Leaves the test as skipped unless it runs as root.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !$crate::is_root() {
            $crate::skip!("needs root");
        }
    };
}

/// What [`skip!`] prints. Straight to the descriptor: the test harness captures `eprintln!` of tests
/// that pass.
#[doc(hidden)]
pub fn report_skip(path_of_here: &str, reason: &str) {
    let line = skip_line(path_of_here, reason);
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn skip_line(path_of_here: &str, reason: &str) -> String {
    let test = path_of_here
        .trim_end_matches("::here")
        .trim_end_matches("::{{closure}}");
    // On a line of its own, though the harness has just written "test <name> ... " without an end.
    format!("\nSKIPPED {test}: {}\n", reason.replace('\n', " "))
}

/// The daemon's binary, which `cargo xtask test` has built; `PROFILERD` names another one.
///
/// # Panics
/// It is not there.
#[must_use]
pub fn profilerd() -> PathBuf {
    if let Some(path) = std::env::var_os("PROFILERD") {
        return path.into();
    }
    let path = built("profilerd");
    assert!(
        path.exists(),
        "{} is not there: run `cargo build` first",
        path.display()
    );
    path
}

/// A binary of the workspace, in the profile of the running test.
///
/// # Panics
/// The test does not run from `target/<profile>/deps`.
#[must_use]
pub fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("/proc/self/exe is readable");
    test.parent()
        .and_then(Path::parent)
        .expect("cargo puts tests into target/<profile>/deps")
        .join(name)
}

/// What [`needs_root!`] asks.
#[doc(hidden)]
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a skip names the test that calls it, also from inside a closure.
    #[test]
    fn a_skip_line_names_the_test_and_stays_on_one_line() {
        assert_eq!(
            skip_line("kernel_load::a_test::here", "no\nroot"),
            "\nSKIPPED kernel_load::a_test: no root\n"
        );
        assert_eq!(
            skip_line("t::a_test::{{closure}}::here", "x"),
            "\nSKIPPED t::a_test: x\n"
        );
    }
}
