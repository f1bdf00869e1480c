//! What tests and developer commands share: child processes that never outlive their owner, waiting
//! for a condition, a small HTTP client, the sample service, a SkyWalking OAP, leaving a test that
//! cannot run.
//!
//! Kept free of the daemon's crates, so that `cargo xtask setup` builds before the BPF toolchain is there.

mod c_server;
mod child;
mod http;
mod json;
mod python;
mod queries;
mod server;
mod service;
mod skip;
mod skywalking;

pub use c_server::{C_SERVER, build_c, build_c_server, build_c_server_by, kernel_test_folder};
pub use child::{ChildGuard, children, free_port, start_as, wait_until};
pub use http::{HttpClient, Response};
pub use json::read_json;
pub use python::{
    PYTHON_MINORS, find_pythons, python_folder, python_suite, pythons, unpacked_python,
};
pub use queries::{KnownQuery, ask, known_queries};
pub use server::LocalServer;
pub use service::SampleService;
pub use skip::{is_root, report_skip};
pub use skywalking::{
    SkywalkingOap, oap_folder, plain_python_agent_command, python_agent_command,
    python_agent_folder,
};

use std::path::{Path, PathBuf};

/// The root folder of the workspace.
#[must_use]
pub fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("tests/support is two levels below the workspace root")
        .to_owned()
}

/// A virtual environment of Python with event loops (`tests/services/loops.txt`).
#[must_use]
pub fn loops_folder() -> PathBuf {
    target_dir().join("loops")
}

/// `target/` of the workspace.
#[must_use]
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || workspace_root().join("target"),
        |folder| workspace_root().join(folder),
    )
}
