//! Helpers for the tests that need root or real servers.

pub mod recording;

use std::path::{Path, PathBuf};

pub use profiler_test_support::{
    C_SERVER, ChildGuard, HttpClient, KnownQuery, LocalServer, PYTHON_MINORS, Response,
    SampleService, SkywalkingOap, ask, build_c, build_c_server, children, find_pythons, free_port,
    known_queries, loops_folder, needs_root, plain_python_agent_command, python_agent_command,
    python_agent_folder, python_suite, read_json, skip, start_as, wait_until, workspace_root,
};

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
