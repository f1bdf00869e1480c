//! Compares our view of live CPython processes with what they say about themselves.
//!
//! Two independent witnesses inside the process: `faulthandler`, written in C, and
//! `sys._current_frames()`. Every CPython from 3.11 on that is found on the machine is asked.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod python_process;

use std::process::Command;

use profiler_daemon::model::{AddrFrame, Coverage, PythonChain, PythonRef, Tid, UnwindEnd};
use profiler_daemon::process::ProcessMemory;
use profiler_daemon::process::python::{
    CodeNames, CodeSignature, PythonNamer, PythonRuntime, innermost_tid,
};
use profiler_daemon::unwind::merge::merge;
use profiler_daemon::unwind::python::{PythonWalker, walk_chain};

use profiler_test_support::{PYTHON_MINORS, python_suite, pythons, skip};

use python_process::{FrameTruth, Running};

/// faulthandler stops after this many frames; how it says so depends on the version.
const FAULTHANDLER_DEPTH: usize = 100;

/// Check that no supported version is left out of the tests that go through them all.
#[test]
fn every_supported_version_is_tested() {
    let tested = pythons();
    for minor in PYTHON_MINORS {
        let name = format!("python3.{minor}");
        if !tested.iter().any(|python| python.ends_with(&name)) {
            assert_eq!(python_suite(minor), None, "{name} is not tested");
            skip!("no {name} on this machine, and no Debian suite has it");
        }
    }
}

/// The frames of a chain without the interpreter's own.
fn python_refs(chain: &PythonChain, runtime: &PythonRuntime) -> Vec<PythonRef> {
    assert!(!chain.partial && !chain.no_thread && chain.next == 0);
    merge(&[], UnwindEnd::StackCut, &[], Some((chain, runtime)))
        .frames
        .into_iter()
        .map(|frame| match frame {
            AddrFrame::Python(python) => python,
            other => panic!("{other:?} in a Python chain"),
        })
        .collect()
}

/// A chain in the form in which the process describes it.
fn describe(
    memory: &ProcessMemory,
    runtime: &PythonRuntime,
    names: &mut CodeNames,
    chain: &PythonChain,
) -> Vec<FrameTruth> {
    python_refs(chain, runtime)
        .into_iter()
        .filter_map(|python| {
            let code = names.describe(memory, runtime, python.code).unwrap();
            let line = names.line(memory, runtime, python).unwrap();
            (!code.is_internal()).then(|| FrameTruth {
                file: code.file.to_string(),
                name: code.name.to_string(),
                qualname: code.qualname.to_string(),
                line,
                first_line: code.first_line,
            })
        })
        .collect()
}

/// A frame as faulthandler prints it.
fn as_faulthandler(frame: &FrameTruth) -> String {
    let mut text = format!("File \"{}\", line ", frame.file);
    text += &frame.line.map_or("???".to_owned(), |line| line.to_string());
    text += " in ";
    for c in frame.name.chars() {
        match u32::from(c) {
            0x20..0x7f => text.push(c),
            code @ ..0x100 => text += &format!("\\x{code:02x}"),
            code @ ..0x1_0000 => text += &format!("\\u{code:04x}"),
            code => text += &format!("\\U{code:08x}"),
        }
    }
    text
}

fn assert_as_faulthandler(ours: &[FrameTruth], theirs: &[String], context: &str) {
    // It shows the interpreter's own clean-up frame, which tracebacks hide; 3.14's then gives up.
    let is_clean_up = |line: &String| line.starts_with("File \"__init__\"");
    let given_up = theirs.iter().position(|line| line == "<invalid frame>");
    if let Some(at) = given_up {
        assert!(
            theirs[..at].last().is_some_and(is_clean_up),
            "{context}: {theirs:?}"
        );
    }
    // And where it cuts.
    let is_frame = |line: &&String| line.starts_with("File") && !is_clean_up(line);
    let theirs: Vec<&String> = theirs.iter().filter(is_frame).collect();
    let depth = match given_up {
        Some(_) => theirs.len(),
        None => FAULTHANDLER_DEPTH,
    };
    let ours: Vec<String> = ours.iter().take(depth).map(as_faulthandler).collect();
    assert_eq!(ours.iter().collect::<Vec<_>>(), theirs, "{context}");
}

/// Check that for every kind of call chain our frames are those of both witnesses: function,
/// qualified name, file, line and first line, frame by frame.
#[test]
fn blocked_threads_have_the_frames_they_say_they_have() {
    for python in pythons() {
        let (running, truth) = Running::start(&python);
        let runtime = PythonRuntime::detect(running.pid()).unwrap().unwrap();
        let memory = ProcessMemory::new(running.pid());
        let mut names = CodeNames::default();
        let dumps = running.faulthandler();
        assert!(truth.threads.len() >= 10);
        for thread in &truth.threads {
            let context = format!("{} {}", python.display(), thread.name);
            let chain = walk_chain(&memory, &runtime, thread.tid);
            let ours = describe(&memory, &runtime, &mut names, &chain);
            assert_eq!(ours, thread.frames, "{context}");
            assert_as_faulthandler(&ours, &dumps[&thread.ident], &context);
        }
        let chain = walk_chain(&memory, &runtime, truth.main);
        let ours = describe(&memory, &runtime, &mut names, &chain);
        assert_as_faulthandler(&ours, &dumps[&0], "main thread");
    }
}

/// Check that the version is the one the interpreter prints, and that the loop was found.
#[test]
fn the_version_is_the_one_that_python_prints() {
    for python in pythons() {
        let (running, _) = Running::start(&python);
        let runtime = PythonRuntime::detect(running.pid()).unwrap().unwrap();
        let printed = Command::new(&python).arg("-V").output().unwrap();
        let printed = String::from_utf8(printed.stdout).unwrap();
        assert_eq!(format!("Python {}", runtime.version), printed.trim());
        assert!(!runtime.loop_ranges.is_empty(), "{}", python.display());
    }
}

/// Check that a walker that remembers threads finds the same chains again, and that an unknown
/// thread is reported.
#[test]
fn remembered_threads_have_the_same_chains() {
    for python in pythons() {
        let (running, truth) = Running::start(&python);
        let runtime = PythonRuntime::detect(running.pid()).unwrap().unwrap();
        let memory = ProcessMemory::new(running.pid());
        let mut walker = PythonWalker::default();
        for thread in &truth.threads {
            let first = walker.walk(&memory, &runtime, thread.tid);
            assert_eq!(walker.walk(&memory, &runtime, thread.tid), first);
        }
        assert!(walker.walk(&memory, &runtime, u32::MAX >> 1).no_thread);
    }
}

/// Check both forms of signatures on a chain with known text.
#[test]
fn signatures_name_module_function_and_line() {
    for python in pythons() {
        let (running, truth) = Running::start(&python);
        let runtime = PythonRuntime::detect(running.pid()).unwrap().unwrap();
        let memory = ProcessMemory::new(running.pid());
        let thread = |name| truth.threads.iter().find(|t| t.name == name).unwrap();
        let mut losses = Coverage::default();
        let mut signatures = |name, form| {
            let mut namer = PythonNamer::new(form);
            let chain = walk_chain(&memory, &runtime, thread(name).tid);
            python_refs(&chain, &runtime)
                .into_iter()
                .filter_map(|python| namer.frame(&memory, &runtime, python, &mut losses))
                .map(|frame| frame.signature.to_string())
                .collect::<Vec<_>>()
        };
        let nested = signatures("nested", CodeSignature::Function);
        let has = |text: &str| nested.iter().any(|signature| signature.starts_with(text));
        assert!(has("python_stacks.block:"), "{nested:?}");
        assert!(has("python_stacks.Outer.Inner.method:"), "{nested:?}");
        assert!(
            has("python_stacks.Outer.make.<locals>.closure:"),
            "{nested:?}"
        );
        assert!(has("threading.Thread.run:"), "{nested:?}");

        let generated = signatures("generated", CodeSignature::Line);
        assert!(generated.contains(&"<generated>.generated_function: 3".to_owned()));
        let line = thread("nested").frames[0].line.unwrap();
        let leaf = format!("python_stacks.py.block: {line}");
        assert!(generated[0].ends_with(&leaf), "{generated:?}");
        assert_eq!(losses, Coverage::default());
    }
}

/// Check that the worker of a forking server is found, with its main thread's own frames, although
/// its memory was copied from its parent's.
#[test]
fn a_forked_worker_is_walked_by_its_own_thread_id() {
    for python in pythons() {
        let (running, line) = Running::start_script(Command::new(&python), "python_fork.py");
        let pid = profiler_daemon::model::Pid(line.trim().parse().unwrap());
        let runtime = PythonRuntime::detect(pid).unwrap().unwrap();
        let memory = ProcessMemory::new(pid);
        let chain = walk_chain(&memory, &runtime, pid.0);
        let frames = describe(&memory, &runtime, &mut CodeNames::default(), &chain);
        let names: Vec<_> = frames.iter().map(|frame| &*frame.name).collect();
        assert_eq!(
            names,
            ["worker", "main", "<module>"],
            "{}",
            python.display()
        );
        drop(running);
    }
}

/// Check that a process in a pid namespace of its own is found, by the ids it has there.
#[test]
fn a_thread_in_a_pid_namespace_is_found_by_its_inner_id() {
    for python in pythons() {
        let mut unshare = Command::new("unshare");
        unshare
            .args(["--pid", "--fork", "--kill-child"])
            .arg(&python);
        let (running, line) = Running::start_script(unshare, "python_stacks.py");
        let truth: python_process::Truth = serde_json::from_str(&line).unwrap();
        assert_eq!(truth.main, 1);
        let children = format!("/proc/{0}/task/{0}/children", running.pid());
        let children = std::fs::read_to_string(children).unwrap();
        let pid = profiler_daemon::model::Pid(children.trim().parse().unwrap());
        let runtime = PythonRuntime::detect(pid).unwrap().unwrap();
        let inner = innermost_tid(pid, Tid(pid.0)).unwrap();
        assert_eq!(inner, 1);
        let memory = ProcessMemory::new(pid);
        let chain = walk_chain(&memory, &runtime, inner);
        let frames = describe(&memory, &runtime, &mut CodeNames::default(), &chain);
        assert_eq!(frames.last().unwrap().name, "<module>");
        let thread = &truth.threads[0];
        let chain = walk_chain(&memory, &runtime, thread.tid);
        let frames = describe(&memory, &runtime, &mut CodeNames::default(), &chain);
        assert_eq!(frames, thread.frames);

        let host_tid = std::fs::read_dir(format!("/proc/{pid}/task"))
            .unwrap()
            .map(|entry| {
                Tid(entry
                    .unwrap()
                    .file_name()
                    .to_str()
                    .unwrap()
                    .parse()
                    .unwrap())
            })
            .find(|&tid| innermost_tid(pid, tid).unwrap() == thread.tid)
            .unwrap();
        assert_ne!(host_tid.0, thread.tid);
        let mut walker = PythonWalker::default();
        for _ in 0..2 {
            assert_eq!(walker.walk_thread(&memory, &runtime, host_tid, 0), chain);
        }
    }
}
