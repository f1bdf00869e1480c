//! Every CPython on the machine: native frames equal gdb's, fit the Python frames, and have names.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod native_process;
mod python_process;

use native_process::{STACK_BYTES, ask_gdb, capture, pcs};
use profiler_daemon::frames::{FrameSet, kind_of};
use profiler_daemon::model::{Coverage, Frame, FrameKind, Stack, UnwindEnd};
use profiler_daemon::process::Process;
use profiler_daemon::process::python::{CodeSignature, PythonRuntime};
use profiler_daemon::symbolize::Symbolizer;
use profiler_daemon::unwind::NativeUnwinder;
use profiler_daemon::unwind::merge::merge;
use profiler_daemon::unwind::python::walk_chain;
use profiler_test_support::pythons;
use python_process::Running;

/// Check that, for every kind of call chain, all frames from the system call to the root of the thread
/// come out as one stack with Python functions in their places.
#[test]
fn stacks_of_cpython_are_whole() {
    for python in pythons() {
        let (running, truth) = Running::start(&python);
        let pid = running.pid();
        let mut process = Process::open(pid).unwrap();
        process.python = PythonRuntime::detect(pid).unwrap();
        let memory = process.memory;
        let mut unwinder = NativeUnwinder::new();
        let mut symbolizer = Symbolizer::new(CodeSignature::Function);
        unwinder.prepare(&process);
        let gdb = ask_gdb(pid);
        for thread in &truth.threads {
            let context = format!("{} {}", python.display(), thread.name);
            let truth = &gdb[&thread.tid];
            let captured = capture(pid, &truth.regs, STACK_BYTES);
            let unwound = unwinder.unwind(&mut process, &captured, Some(&memory));
            // gdb shows the return address of zero at a root that is not marked otherwise.
            let expected = truth.pcs.strip_suffix(&[0]).unwrap_or(&truth.pcs);
            assert_eq!(pcs(&unwound), expected, "{context}: {:?}", truth.names);
            assert_eq!(unwound.end, UnwindEnd::Root, "{context}");

            let runtime = process.python.as_ref().unwrap();
            let chain = walk_chain(&memory, runtime, thread.tid);
            let addresses = unwound.addresses();
            let merged = merge(&addresses, unwound.end, &[], Some((&chain, runtime)));
            assert!(!merged.mismatch, "{context}");
            let stack = Stack {
                frames: merged.frames,
                end: unwound.end,
            };
            let mut losses = Coverage::default();
            let stack = symbolizer.symbolize(&process, &stack, &mut losses);
            let kinds: Vec<FrameKind> = stack.frames.iter().map(|frame| frame.kind).collect();
            assert_eq!(kinds[0], FrameKind::CLibrary, "{context}");
            // Of a shared libpython the C library's `clone`, of a static one's main thread `_start`.
            let root = kinds.last();
            let is_start =
                [FrameKind::CLibrary, FrameKind::RuntimeInternal].contains(root.unwrap());
            assert!(is_start, "{context}: {root:?}");
            assert!(
                !kinds.contains(&FrameKind::Native),
                "{context}: {:#?}",
                stack.frames
            );
            let functions = stack.frames.iter();
            let functions: Vec<&str> = functions
                .filter(|frame| frame.kind == FrameKind::Python)
                .filter_map(|frame| frame.signature.rsplit_once(':'))
                .map(|(function, _)| function)
                .collect();
            let expected = thread.frames.iter().take(2);
            for (function, expected) in functions.iter().zip(expected) {
                let qualname = &expected.qualname;
                assert!(function.ends_with(qualname), "{context}: {functions:?}");
            }
            assert!(functions.len() >= thread.frames.len().min(100), "{context}");
            let read = &stack.frames[0].signature;
            // A stripped libc keeps no name for what makes cancellable system calls.
            assert!(
                read.ends_with("(libc.so.6)") || read.starts_with("libc.so.6+0x"),
                "{context}: {read}"
            );

            let call = Frame::new("[system call read]", FrameKind::Activity);
            let with_call = [&[call], &stack.frames[..]].concat();
            let shown = FrameSet::Application.apply(&with_call);
            let shown: Vec<&str> = shown.iter().map(|frame| &*frame.signature).collect();
            assert_eq!(
                shown[..2],
                ["[system call read]", "os.read"],
                "{context}: {shown:#?}"
            );
            let is_inner = |name: &&&str| name.contains("python3") || name.contains("(libc.so");
            assert_eq!(shown.iter().find(is_inner), None, "{context}: {shown:#?}");
            let python = |names: &[&str]| -> Vec<String> {
                let names = names
                    .iter()
                    .filter(|name| kind_of(name) == FrameKind::Python);
                names
                    .filter(|name| !name.starts_with("os."))
                    .map(ToString::to_string)
                    .collect()
            };
            let all: Vec<&str> = stack.frames.iter().map(|frame| &*frame.signature).collect();
            assert_eq!(python(&shown), python(&all), "{context}");
        }
    }
}
