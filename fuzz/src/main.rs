//! All entry points of `profiler_daemon::fuzz` in one program, so that the daemon's code is linked once. `cargo xtask
//! fuzz` runs it, once for each.
#![no_main]

use std::sync::OnceLock;

use profiler_daemon::fuzz::{TARGETS, Target};

/// Names the entry point.
const TARGET_VARIABLE: &str = "PROFILERD_FUZZ_TARGET";

static CHOSEN: OnceLock<&'static Target> = OnceLock::new();

/// The entry point that the environment names.
fn chosen() -> &'static Target {
    let name = std::env::var(TARGET_VARIABLE).unwrap_or_default();
    let target = TARGETS.iter().find(|target| target.name == name);
    target.unwrap_or_else(|| panic!("{TARGET_VARIABLE}={name} names no entry point"))
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (CHOSEN.get_or_init(chosen).run)(bytes));
