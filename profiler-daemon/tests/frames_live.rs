//! Every CPython on the machine: of threads that wait in the interpreter, in its machinery and in C code
//! that calls back, the application's frames are shown.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod native_process;
mod python_process;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use native_process::{STACK_BYTES, ask_gdb, capture};
use profiler_daemon::frames::{FrameSet, activity, kind_of};
use profiler_daemon::model::{Counter, Coverage, Frame, FrameKind, Pid, Stack};
use profiler_daemon::process::Process;
use profiler_daemon::process::python::{CodeSignature, PythonRuntime};
use profiler_daemon::symbolize::Symbolizer;
use profiler_daemon::unwind::NativeUnwinder;
use profiler_daemon::unwind::merge::merge;
use profiler_daemon::unwind::python::walk_chain;
use profiler_test_support::pythons;
use python_process::Running;

/// What is shown of each thread, by its name, innermost first.
fn shown(python: &Path) -> BTreeMap<String, Vec<String>> {
    let (running, line) = Running::start_script(Command::new(python), "application_frames.py");
    let tids: BTreeMap<String, u32> = serde_json::from_str(&line).unwrap();
    let pid = running.pid();
    let mut process = Process::open(pid).unwrap();
    process.python = PythonRuntime::detect(pid).unwrap();
    let symbolizer = Symbolizer::new(CodeSignature::Function);
    let mut symbolizer = symbolizer.showing(FrameSet::Application);
    let numbers: BTreeMap<u32, u32> = tids
        .values()
        .map(|&tid| (tid, system_call(pid, tid)))
        .collect();
    let gdb = ask_gdb(pid);
    let of_thread = |tid: u32| -> Vec<String> {
        let memory = process.memory;
        let captured = capture(pid, &gdb[&tid].regs, STACK_BYTES);
        let native = NativeUnwinder::new().unwind(&mut process, &captured, Some(&memory));
        let runtime = process.python.as_ref().unwrap();
        let chain = walk_chain(&memory, runtime, tid);
        let merged = merge(
            &native.addresses(),
            native.end,
            &[],
            Some((&chain, runtime)),
        );
        assert!(!merged.mismatch);
        let stack = Stack {
            frames: merged.frames,
            end: native.end,
        };
        let mut losses = Coverage::default();
        let stack = symbolizer.symbolize(&process, &stack, &mut losses);
        // Debian's interpreter and C library are stripped, and show none of their unnamed functions.
        assert_eq!(losses.get(Counter::FramesUnknown), 0);
        let activity = activity::of_thread(&[], numbers.get(&tid).copied(), true).unwrap();
        let activity = Frame::new(activity.to_string(), FrameKind::Activity);
        let frames = [&[activity], &stack.frames[..]].concat();
        let shown = FrameSet::Application.apply(&frames).into_iter();
        shown.map(|frame| frame.signature.to_string()).collect()
    };
    let mut of_thread = of_thread;
    tids.into_iter()
        .map(|(name, tid)| (name, of_thread(tid)))
        .collect()
}

/// The number of the system call that a thread waits in.
fn system_call(pid: Pid, tid: u32) -> u32 {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
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
