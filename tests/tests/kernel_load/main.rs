//! The BPF programs on the running kernel: events of real servers, tag hygiene, captured stacks.
//!
//! Needs root and a kernel with BTF; Python tests need `python3`, stack tests a C compiler.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod calls;
mod chain;
mod harness;
mod hygiene;
mod lines;
mod preempt;
mod python;
mod python_thread;
mod requests;
mod reuse;
mod stacks;
mod switch_outs;

use std::process::Command;
use std::time::Duration;

use profiler_daemon::kernel::{BTF_PATH, Kernel, KernelTypes, LoadOptions, RequestHooks};
use profiler_tests::skip;

use harness::{SYS_EXIT, load_options};

/// Most verified instructions a program may have; the kernel's own limit is a million.
const VERIFIED_MAX: u32 = 100_000;

/// Check that all programs load in both forms, within the instruction budget, and attach, whichever hooks see
/// requests.
#[test]
fn programs_load_and_attach_in_both_forms() {
    let types = std::fs::read(BTF_PATH).unwrap();
    let types = KernelTypes::parse(&types).unwrap();
    let has_socket_hooks = types.has_typedef("btf_trace_sock_recv_length");
    for (prefer_raw, prefer_sys_exit) in
        [(false, false), (true, false), (false, true), (true, true)]
    {
        let options = LoadOptions {
            prefer_raw,
            prefer_sys_exit,
            ..LoadOptions::default()
        };
        let mut kernel = Kernel::load(&options).unwrap();
        let stats = kernel.program_stats();
        let (hooks, count) = if has_socket_hooks && !prefer_sys_exit {
            (RequestHooks::Sockets, 8)
        } else {
            (RequestHooks::SystemCalls, 6)
        };
        assert_eq!(kernel.request_hooks(), hooks);
        assert_eq!(stats.len(), count, "{stats:?}");
        // Every kernel we support takes the first form: a refusal is a mistake in a program.
        let raw = stats.iter().filter(|stats| stats.name.starts_with("raw_"));
        let raw_count = if prefer_raw { count - 1 } else { 0 };
        assert_eq!(raw.count(), raw_count, "{stats:?}");
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

/// Check that everything about requests holds with `sys_exit` too, where the other tests hook sockets.
#[test]
fn requests_are_seen_at_system_calls_as_well() {
    let kernel = Kernel::load(&load_options()).unwrap();
    if kernel.request_hooks() == RequestHooks::SystemCalls {
        skip!("without hooks at sockets all other tests have shown that");
    }
    drop(kernel);
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "calls::",
            "hygiene::",
            "lines::",
            "preempt::",
            "requests::",
            "reuse::",
            "--test-threads=1",
        ])
        .env(SYS_EXIT, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
}

/// Check that two daemons can be attached at once.
#[test]
fn two_daemons_attach_at_once() {
    let mut first = Kernel::load(&LoadOptions::default()).unwrap();
    let mut second = Kernel::load(&LoadOptions::default()).unwrap();
    first.attach(Duration::from_millis(10)).unwrap();
    second.attach(Duration::from_millis(10)).unwrap();
}
