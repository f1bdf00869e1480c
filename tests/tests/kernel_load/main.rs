//! The BPF programs on the running kernel: events of real servers, tag hygiene, captured stacks.
//!
//! Needs root and a kernel with BTF; Python tests need `python3`, stack tests a C compiler.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod calls;
mod chain;
mod harness;
mod hygiene;
mod python;
mod requests;
mod stacks;

use std::time::Duration;

use profiler_daemon::kernel::{Kernel, LoadOptions};

/// Most verified instructions a program may have; the kernel's own limit is a million.
const VERIFIED_MAX: u32 = 100_000;

/// Check that all programs load in both forms, within the instruction budget, and attach.
#[test]
fn programs_load_and_attach_in_both_forms() {
    for prefer_raw in [false, true] {
        let options = LoadOptions {
            prefer_raw,
            ..LoadOptions::default()
        };
        let mut kernel = Kernel::load(&options).unwrap();
        let stats = kernel.program_stats();
        assert_eq!(stats.len(), 6, "{stats:?}");
        // Every kernel we support takes the first form: a refusal is a mistake in a program.
        let raw = stats.iter().filter(|stats| stats.name.starts_with("raw_"));
        assert_eq!(raw.count(), if prefer_raw { 5 } else { 0 }, "{stats:?}");
        for program in &stats {
            let verified = program.verified_instructions.unwrap_or(0);
            assert!(verified < VERIFIED_MAX, "{program:?}");
            println!("{}: {verified} verified instructions", program.name);
        }
        kernel.attach(Duration::from_millis(10)).unwrap();
        assert!(kernel.is_attached());
        kernel.detach().unwrap();
        assert!(!kernel.is_attached());
    }
}

/// Check that two daemons can be attached at once.
#[test]
fn two_daemons_attach_at_once() {
    let mut first = Kernel::load(&LoadOptions::default()).unwrap();
    let mut second = Kernel::load(&LoadOptions::default()).unwrap();
    first.attach(Duration::from_millis(10)).unwrap();
    second.attach(Duration::from_millis(10)).unwrap();
}
