//! Merges the native frames that gdb finds with the Python frames that we find.
//!
//! Proves the ranges of the interpreter loop: on every CPython, for every kind of call chain, each
//! native frame in them has exactly one group of Python frames.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod python_process;

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use profiler_daemon::model::{AddrFrame, Coverage, Pid, UnwindEnd};
use profiler_daemon::process::ProcessMemory;
use profiler_daemon::process::python::{CodeSignature, PythonNamer, PythonRuntime};
use profiler_daemon::unwind::merge::merge;
use profiler_daemon::unwind::python::walk_chain;

use profiler_test_support::pythons;
use python_process::Running;

/// Lookup addresses of all native frames by thread, innermost first.
fn native_frames(pid: Pid) -> HashMap<u32, Vec<u64>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/native_frames.py");
    let output = Command::new("gdb")
        .args([
            "-batch",
            "-nx",
            "-iex",
            "set auto-load off",
            "-p",
            &pid.to_string(),
            "-x",
        ])
        .arg(script)
        .output()
        .expect("gdb is installed");
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let frames: HashMap<u32, Vec<u64>> = output
        .lines()
        .filter_map(|line| line.strip_prefix("frames "))
        .map(|line| {
            let numbers: Vec<u64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
            // The root has a return address of zero.
            let callers = numbers[2..]
                .iter()
                .filter_map(|address| address.checked_sub(1));
            let addresses = [numbers[1]].into_iter().chain(callers).collect();
            (numbers[0] as u32, addresses)
        })
        .collect();
    assert!(!frames.is_empty(), "{output}");
    frames
}

/// Check that all walks fit, and that C functions stand between the Python functions that call them
/// and those they call.
#[test]
fn native_frames_from_gdb_fit_our_python_frames() {
    for python in pythons() {
        let (running, truth) = Running::start(&python);
        let runtime = PythonRuntime::detect(running.pid()).unwrap().unwrap();
        let memory = ProcessMemory::new(running.pid());
        let native = native_frames(running.pid());
        let mut namer = PythonNamer::new(CodeSignature::Function);
        let mut losses = Coverage::default();
        for thread in &truth.threads {
            let context = format!("{} {}", python.display(), thread.name);
            let chain = walk_chain(&memory, &runtime, thread.tid);
            let native = &native[&thread.tid];
            let merged = merge(native, UnwindEnd::Root, &[], Some((&chain, &runtime)));
            assert!(!merged.mismatch, "{context}: {native:#x?} {chain:?}");

            let mut names = Vec::new();
            for frame in &merged.frames {
                match *frame {
                    AddrFrame::Python(python) => {
                        let frame = namer.frame(&memory, &runtime, python, &mut losses);
                        names.extend(frame.map(|frame| frame.signature.to_string()));
                    }
                    // Neighbouring C functions as one.
                    _ if names.last().is_some_and(|name| name == "C") => {}
                    AddrFrame::Native(address) => {
                        assert!(!runtime.is_loop(address), "{context}");
                        names.push("C".to_owned());
                    }
                    AddrFrame::Kernel(_) => panic!("no kernel frames were given"),
                }
            }
            assert_eq!(names[0], "C", "{context}: os.read is a C function");
            assert_eq!(names.last().unwrap(), "C", "{context}: so is the root");
            if thread.name == "callbacks" {
                let functions: Vec<_> = names
                    .iter()
                    .map(|name| {
                        name.rsplit_once(':')
                            .map_or(&**name, |(function, _)| function)
                    })
                    .take(10)
                    .collect();
                let module = |name: &str| format!("python_stacks.{name}");
                assert_eq!(
                    functions,
                    [
                        "C",
                        &module("block"),
                        &module("in_sub"),
                        "C",
                        "re.sub",
                        &module("in_map"),
                        "C",
                        &module("key"),
                        "C",
                        &module("callbacks"),
                    ],
                    "{context}"
                );
            }
        }
        assert_eq!(losses, Coverage::default());
    }
}
