//! What is shown of real stacks, compared with gdb: `all` has every frame, `application` a part of them in the same order, and
//! both the same durations.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod live_stack;
mod native_process;
mod python_process;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use live_stack::{LiveStack, stacks};
use native_process::Program;
use profiler_daemon::analyze::analyze_snapshots;
use profiler_daemon::frames::FrameSet;
use profiler_daemon::model::{Frame, FrameKind, Snapshot};
use profiler_test_support::{loops_folder, pythons};
use python_process::Running;

/// The stacks of the threads of a script of `fixtures/`, by their names.
fn of_script(python: &Path, script: &str) -> BTreeMap<String, LiveStack> {
    let (running, line) = Running::start_script(Command::new(python), script);
    let tids: BTreeMap<String, u32> = serde_json::from_str(&line).unwrap();
    stacks(running.pid(), &tids, FrameSet::All)
}

fn signatures(frames: &[Frame]) -> Vec<&str> {
    frames.iter().map(|frame| &*frame.signature).collect()
}

/// Checks that `all` is every frame that gdb sees, in its order, where Python's functions stand in the place of the
/// interpreter's loops.
#[track_caller]
fn assert_all(stack: &LiveStack) {
    let all = stack.shown(FrameSet::All);
    let context = format!("{:#?}\ngdb: {:#?}", signatures(&all), stack.gdb.names);
    // The names of a request, all but what stands for the kernel's frames.
    assert_eq!(
        signatures(&all),
        signatures(&stack.frames[1..]),
        "{context}"
    );
    let native = stack.native();
    let looped = |address: &&u64| !stack.loops.contains(address);
    let lookup = stack
        .gdb
        .pcs
        .iter()
        .zip([0].into_iter().chain(std::iter::repeat(1)));
    let lookup: Vec<u64> = lookup.map(|(pc, back)| pc - back).collect();
    let gdb: Vec<u64> = lookup.iter().filter(looped).copied().collect();
    assert_eq!(native, gdb, "{context}");
    let mut rest = all.iter();
    for (name, address) in stack.gdb.names.iter().zip(&lookup) {
        let name = name.split('.').next().unwrap_or_default();
        // Functions of the C library have several names, and gdb takes another one than we do.
        if !name.is_empty() && !name.starts_with("__") && looped(&address) {
            let is_it = |frame: &Frame| {
                let signature = frame.signature.trim_start_matches('_');
                frame.kind != FrameKind::Python
                    && signature.starts_with(name.trim_start_matches('_'))
            };
            assert!(
                rest.any(is_it),
                "{name} is missing, or in another place: {context}"
            );
        }
    }
}

/// Checks that `application` is a part of `all` in its order, with the replacements that the documentation names.
#[track_caller]
fn assert_part(stack: &LiveStack) {
    let shown = stack.shown(FrameSet::Application);
    let mut rest = stack.frames.iter();
    for frame in &shown {
        let is_it = |of: &Frame| match frame.kind {
            FrameKind::Builtin => of.label.as_ref() == Some(&frame.signature),
            kind => of.kind == kind && of.signature == frame.signature,
        };
        assert!(
            rest.any(is_it),
            "{} is no part of {:#?}: {:#?}",
            frame.signature,
            signatures(&stack.frames),
            signatures(&shown)
        );
    }
    let is_own = |frame: &&Frame| frame.kind == FrameKind::RuntimeInternal;
    assert_eq!(shown.iter().find(is_own), None);
    // All functions of the language are there.
    let python = |frames: &[Frame]| -> Vec<Arc<str>> {
        let python = frames
            .iter()
            .filter(|frame| frame.kind == FrameKind::Python);
        let names = python.map(|frame| Arc::clone(&frame.signature));
        names.filter(|name| !name.contains("importlib")).collect()
    };
    assert_eq!(python(&shown), python(&stack.frames));
}

/// Checks that each function that both show takes as long in both, over a call that goes down to the leaf and back.
#[track_caller]
fn assert_durations(stack: &LiveStack) {
    let is_function = |frame: &Frame| matches!(frame.kind, FrameKind::Python | FrameKind::Native);
    let depths = (0..stack.frames.len()).filter(|&at| at == 0 || is_function(&stack.frames[at]));
    let depths: Vec<usize> = depths.collect();
    let way = depths.iter().rev().chain(&depths);
    let durations = |set: FrameSet| {
        let stacks = way.clone().map(|&depth| {
            let shown = set.apply(&stack.frames[depth..]).into_iter().rev();
            shown.map(|frame| frame.signature).collect::<Arc<[_]>>()
        });
        let snapshots: Vec<Snapshot> = stacks
            .zip(0..)
            .map(|(stack, sequence)| Snapshot {
                sequence,
                unix_ms: i64::from(sequence) * 10,
                stack,
            })
            .collect();
        let analysis = analyze_snapshots(&snapshots, 0, i64::MAX);
        let mut durations: BTreeMap<String, (i64, u32)> = BTreeMap::new();
        for element in analysis.trees.iter().flat_map(|tree| tree.elements()) {
            let (duration_ms, count) = durations
                .entry(element.code_signature.to_string())
                .or_default();
            *duration_ms += element.duration_ms;
            *count += element.count;
        }
        durations
    };
    let all = durations(FrameSet::All);
    let application = durations(FrameSet::Application);
    let mut compared = 0;
    for frame in stack.frames.iter().filter(|frame| is_function(frame)) {
        let name = &*frame.signature;
        if let Some(duration) = application.get(name) {
            assert_eq!(duration, &all[name], "{name}");
            compared += 1;
        }
    }
    assert!(compared >= 2, "{application:#?}");
}

/// Check both sets on threads of every CPython that wait in builtins, in C code that calls back, and in an import.
#[test]
fn python_stacks_are_whole_and_their_application_is_a_part() {
    for python in pythons() {
        for (name, stack) in of_script(&python, "application_frames.py") {
            assert!(!stack.merged.mismatch, "{name}");
            assert_all(&stack);
            assert_part(&stack);
            if name != "in_import" {
                assert_durations(&stack);
            }
        }
    }
}

/// Check both sets on a C++ program, whose user frames are all of the application.
#[test]
fn native_stacks_are_whole_and_all_of_the_application() {
    let program = Program::build("frames.cpp", &[]);
    let running = program.start(&[]);
    running.wait_blocked(1, &[libc::SYS_read]);
    let tids = BTreeMap::from([("main".to_owned(), running.pid().0)]);
    let stack = &stacks(running.pid(), &tids, FrameSet::All)["main"];
    assert_all(stack);
    assert_part(stack);
    assert_durations(stack);
    let shown = stack.shown(FrameSet::Application);
    assert_eq!(&*shown[0].signature, "[system call read]");
    assert_eq!(shown[1..], stack.shown(FrameSet::All));
    let names = signatures(&shown);
    for part in [
        "shop::Blocking<long>::load(int)",
        "shop::find(",
        "shop::serve(",
        "main",
    ] {
        assert!(
            names.iter().any(|name| name.starts_with(part)),
            "{part}: {names:#?}"
        );
    }
}

/// Check that a greenlet shows its own functions above what it waits in, and nothing of the interpreter.
#[test]
fn a_greenlet_shows_its_own_functions() {
    let python = loops_folder().join("bin/python");
    for stack in of_script(&python, "greenlets.py").into_values() {
        let shown = stack.shown(FrameSet::Application);
        assert_part(&stack);
        assert_durations(&stack);
        let names = signatures(&shown);
        assert_eq!(names[..2], ["[system call read]", "os.read"], "{names:#?}");
        let functions = [names[2], names[3]].map(|name| name.split(':').next().unwrap());
        assert_eq!(
            functions,
            ["greenlets.leaf", "greenlets.handle"],
            "{names:#?}"
        );
    }
}
