//! Named stacks of live threads that wait, beside what gdb says about the same threads.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::BTreeMap;
use std::fs;

use profiler_daemon::frames::{FrameSet, activity};
use profiler_daemon::model::{AddrFrame, Counter, Coverage, Frame, FrameKind, Pid, Stack};
use profiler_daemon::process::Process;
use profiler_daemon::process::python::{CodeSignature, PythonRuntime};
use profiler_daemon::symbolize::Symbolizer;
use profiler_daemon::unwind::NativeUnwinder;
use profiler_daemon::unwind::merge::{Merged, merge};
use profiler_daemon::unwind::python::walk_chain;

use crate::native_process::{STACK_BYTES, Truth, ask_gdb, capture, pcs};

/// The stack of a thread.
pub(crate) struct LiveStack {
    /// What gdb says.
    pub(crate) gdb: Truth,
    /// Native and Python frames by address, innermost first.
    pub(crate) merged: Merged,
    /// The addresses of gdb's frames that are of the interpreter's loop.
    pub(crate) loops: Vec<u64>,
    /// The same with names, as a request keeps them: before them what the thread is in.
    pub(crate) frames: Vec<Frame>,
}

impl LiveStack {
    /// What is shown of it, innermost first.
    pub(crate) fn shown(&self, set: FrameSet) -> Vec<Frame> {
        set.apply(&self.frames)
    }

    /// Native frames by their lookup addresses, innermost first.
    pub(crate) fn native(&self) -> Vec<u64> {
        let frames = self.merged.frames.iter();
        let native = frames.filter_map(|frame| match frame {
            AddrFrame::Native(address) => Some(*address),
            _ => None,
        });
        native.collect()
    }
}

/// The stacks of these threads of a process that waits.
pub(crate) fn stacks(
    pid: Pid,
    tids: &BTreeMap<String, u32>,
    shown: FrameSet,
) -> BTreeMap<String, LiveStack> {
    let mut process = Process::open(pid).unwrap();
    process.python = PythonRuntime::detect(pid).unwrap();
    let mut symbolizer = Symbolizer::new(CodeSignature::Function).showing(shown);
    let calls: BTreeMap<u32, u32> = tids
        .values()
        .map(|&tid| (tid, system_call(pid, tid)))
        .collect();
    let mut gdb = ask_gdb(pid);
    let mut of_thread = |tid: u32| {
        let memory = process.memory;
        let gdb = gdb.remove(&tid).unwrap();
        let captured = capture(pid, &gdb.regs, STACK_BYTES);
        let native = NativeUnwinder::new().unwind(&mut process, &captured, Some(&memory));
        assert_eq!(pcs(&native), gdb.pcs, "{:?}", gdb.names);
        let python = process.python.as_ref();
        let chain = python.map(|runtime| (walk_chain(&memory, runtime, tid), runtime));
        let merged = merge(
            &native.addresses(),
            native.end,
            &[],
            chain.as_ref().map(|(chain, runtime)| (chain, *runtime)),
        );
        let addresses = native.addresses().into_iter();
        let loops = addresses.filter(|&at| python.is_some_and(|runtime| runtime.is_loop(at)));
        let loops = loops.collect();
        let stack = Stack {
            frames: merged.frames.clone(),
            end: native.end,
        };
        let mut losses = Coverage::default();
        let stack = symbolizer.symbolize(&process, &stack, &mut losses);
        if shown == FrameSet::Application && python.is_some() {
            // Debian's interpreter and C library are stripped, and show none of their unnamed functions.
            assert_eq!(losses.get(Counter::FramesUnknown), 0);
        }
        let activity = activity::of_thread(&[], calls.get(&tid).copied(), true).unwrap();
        let activity = Frame::new(activity.to_string(), FrameKind::Activity);
        LiveStack {
            gdb,
            merged,
            loops,
            frames: [&[activity], &stack.frames[..]].concat(),
        }
    };
    tids.iter()
        .map(|(name, &tid)| (name.clone(), of_thread(tid)))
        .collect()
}

/// The number of the system call that a thread waits in.
fn system_call(pid: Pid, tid: u32) -> u32 {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}
