//! Every CPython on the machine: of threads that wait in the interpreter, in its machinery and in C code
//! that calls back, the application's frames are shown.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod live_stack;
mod native_process;
mod python_process;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use live_stack::stacks;
use profiler_daemon::frames::{FrameSet, kind_of};
use profiler_daemon::model::FrameKind;
use profiler_test_support::pythons;
use python_process::Running;

/// What is shown of each thread, by its name, innermost first.
fn shown(python: &Path) -> BTreeMap<String, Vec<String>> {
    let (running, line) = Running::start_script(Command::new(python), "application_frames.py");
    let tids: BTreeMap<String, u32> = serde_json::from_str(&line).unwrap();
    let stacks = stacks(running.pid(), &tids, FrameSet::Application).into_iter();
    let shown = stacks.map(|(name, stack)| {
        assert!(!stack.merged.mismatch);
        let shown = stack.shown(FrameSet::Application).into_iter();
        let shown = shown.map(|frame| frame.signature.to_string());
        (name, shown.collect())
    });
    shown.collect()
}

/// Check that builtins have their names in Python, with the system call they wait in, and nothing between.
#[test]
fn waits_are_a_builtin_in_a_system_call() {
    for python in pythons() {
        let shown = shown(&python);
        for (thread, call, builtin) in [
            ("in_lock", "futex", "_thread.lock.acquire"),
            ("in_queue", "futex", "_queue.SimpleQueue.get"),
            ("in_epoll", "epoll_", "select.epoll.poll"),
            ("in_sleep", "clock_nanosleep", "time.sleep"),
        ] {
            let context = format!("{} {thread}: {:#?}", python.display(), shown[thread]);
            let [waits, called, function, ..] = shown[thread].as_slice() else {
                panic!("{context}");
            };
            assert!(
                waits.starts_with(&format!("[system call {call}")),
                "{context}"
            );
            assert_eq!(called, builtin, "{context}");
            assert!(function.contains(&format!(".{thread}:")), "{context}");
        }
    }
}

/// Check that C code that calls back into Python stays, without the way through libffi, and that an import is
/// one frame.
#[test]
fn c_code_and_imports_stand_where_they_were_called() {
    for python in pythons() {
        let shown = shown(&python);
        let stack = &shown["in_callback_of_c"];
        let context = format!("{}: {stack:#?}", python.display());
        let at = |part: &str| {
            stack
                .iter()
                .position(|frame| frame.contains(part))
                .expect(&context)
        };
        let (compare, caller) = (at(".compare:"), at(".in_callback_of_c:"));
        let between = &stack[compare + 1..caller];
        assert!(!between.is_empty(), "{context}");
        assert!(
            between.iter().all(|frame| frame.contains("libc.so.6")),
            "{context}"
        );

        let stack = &shown["in_import"];
        let context = format!("{}: {stack:#?}", python.display());
        let machinery = stack
            .iter()
            .filter(|frame| frame.starts_with("importlib._bootstrap"));
        assert_eq!(machinery.count(), 1, "{context}");
        let at = |part: &str| {
            stack
                .iter()
                .position(|frame| frame.contains(part))
                .expect(&context)
        };
        assert_eq!(
            at("blocking_module.<module>:") + 1,
            at("importlib._bootstrap"),
            "{context}"
        );
        let root = kind_of(stack.last().unwrap());
        assert_eq!(root, FrameKind::Python, "{context}");
    }
}
