//! Which thread state's frames a running thread gets.

use std::process::Command;

use profiler_daemon::model::{Coverage, Pid, PythonChain, PythonRef, RawSample, SampleKind};
use profiler_daemon::process::ProcessMemory;
use profiler_daemon::process::python::{CodeSignature, PythonNamer, PythonRuntime};
use profiler_daemon::unwind::python::PythonWalker;

use crate::harness::{Server, Watch};
use crate::python::numbers;
use crate::stacks::wait_for_block;

/// A server of this folder in Python.
fn start(script: &str, arguments: &[&str]) -> Server {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernel_load/");
    Server::start(
        Command::new("python3")
            .arg("-u")
            .arg(format!("{folder}{script}"))
            .args(arguments),
    )
}

/// So many samples, or more, of requests of a Python process.
fn sampled(server: &Server, pid: Pid, least: usize) -> Vec<RawSample> {
    let runtime = PythonRuntime::detect(pid).unwrap().expect("it is CPython");
    let mut watch = Watch::new(pid, "/busy");
    let record = runtime.to_kernel();
    watch.kernel.set_python(pid, Some(&record)).unwrap();
    let threads = runtime.thread_states();
    watch.kernel.set_python_threads(&threads).unwrap();
    watch.ask_until_sampled(server, "/busy", least);
    watch.samples
}

fn chain(sample: &RawSample) -> &PythonChain {
    let SampleKind::OnCpu(captured) = &sample.kind else {
        panic!("the ring has on-CPU samples only");
    };
    captured.python.as_ref().expect("it is a Python process")
}

/// Checks that the identities of code objects that were noted with the chains are theirs: all can be named, and
/// one frame of each chain has this name.
fn assert_named<'a>(
    runtime: &PythonRuntime,
    chains: impl Iterator<Item = &'a PythonChain>,
    name: &str,
) {
    let memory = ProcessMemory::new(runtime.process.pid);
    let mut namer = PythonNamer::new(CodeSignature::Function);
    let mut losses = Coverage::default();
    for chain in chains {
        // A shim has no code object of its own on 3.13.
        let frames = chain.frames.iter().filter(|frame| frame.owner < 3);
        let names = frames.filter_map(|frame| {
            assert_ne!(frame.identity, 0, "{frame:x?}");
            namer.frame(&memory, runtime, PythonRef::from(frame), &mut losses)
        });
        let names: Vec<_> = names.map(|frame| frame.signature).collect();
        assert!(names.iter().any(|it| it.contains(name)), "{names:?}");
    }
    assert_eq!(losses, Coverage::default());
}

/// Check that a thread that gets a thread state for each call from C shows the frames of the call it is
/// in: never those of a call before, and never none while it computes.
#[test]
fn a_thread_that_attaches_for_each_call_shows_that_call() {
    let mut server = start("attach.py", &[]);
    let _facts = server.line();
    let codes = numbers(&server.line());
    let [spin, parts @ .., read] = &codes[..] else {
        panic!("{codes:?}");
    };
    let samples = sampled(&server, server.pid(), 40);
    let mut counts = [0; 3];
    let mut latest = (samples[0].request, 0);
    for sample in &samples {
        let chain = chain(sample);
        assert!(!chain.partial, "{chain:?}");
        let frames: Vec<u64> = chain.frames.iter().map(|frame| frame.code).collect();
        // The first part reads the request; the thread may be between two calls.
        let Some(part) = parts.iter().position(|part| frames.contains(part)) else {
            continue;
        };
        if latest.0 == sample.request {
            assert!(part >= latest.1, "{part} after {}", latest.1);
        }
        latest = (sample.request, part);
        assert!(frames.contains(read), "{frames:x?}");
        counts[part] += usize::from(frames[0] == *spin);
    }
    // 150 ms of CPU time each; an emulated CPU misses some of its ticks.
    assert!(counts.iter().all(|&count| count >= 3), "{counts:?}");
}

/// Check that a worker that was forked by C, and has its parent's ids in the interpreter's list, is known
/// for what it is, and shows its frames while it computes and while it is blocked.
#[test]
fn a_worker_forked_by_c_shows_its_frames() {
    let mut server = start("fork.py", &[]);
    let worker = Pid(server.line().parse().unwrap());
    let codes = numbers(&server.line());
    let [spin, serve] = codes[..] else {
        panic!("{codes:?}");
    };
    let samples = sampled(&server, worker, 20);
    let is_whole = |sample: &&RawSample| {
        let chain = chain(sample);
        assert!(!chain.partial && !chain.no_thread, "{chain:?}");
        chain.frames.len() >= 3 && [chain.frames[0].code, chain.frames[1].code] == [spin, serve]
    };
    let whole = samples.iter().filter(is_whole).count();
    assert!(
        whole * 10 >= samples.len() * 8,
        "{whole} of {}",
        samples.len()
    );
    let runtime = PythonRuntime::detect(worker).unwrap().unwrap();
    let memory = ProcessMemory::new(worker);
    assert_named(&runtime, samples.iter().map(chain), "fork.serve:");

    let mut watch = Watch::new(worker, "/sleep");
    let mut client = server.connect();
    client.send(b"GET /sleep HTTP/1.1\r\n\r\n");
    let (tid, state) = wait_for_block(&mut watch);
    assert_ne!(state.thread_pointer, 0);
    let chain = PythonWalker::default().walk_thread(&memory, &runtime, tid, state.thread_pointer);
    assert_eq!(chain.frames[0].code, serve, "{chain:x?}");
    assert_named(&runtime, std::iter::once(&chain), "fork.serve:");
    client.response();
}

/// Check that the oldest of more threads than a search goes through has its frames from the first sample on, since it
/// was told; and that it is told among all others.
#[test]
fn the_oldest_of_many_threads_has_its_frames() {
    const THREADS: usize = 700;
    let mut server = start("many.py", &[&THREADS.to_string()]);
    let codes = numbers(&server.line());
    let [spin, serve] = codes[..] else {
        panic!("{codes:?}");
    };
    let pid = server.pid();
    let runtime = PythonRuntime::detect(pid).unwrap().expect("it is CPython");
    let threads = runtime.thread_states();
    assert_eq!(threads.len(), THREADS + 1);
    assert!(threads.iter().any(|&(tid, _)| tid.0 == pid.0));
    let samples = sampled(&server, pid, 20);
    for sample in &samples {
        let chain = chain(sample);
        assert!(!chain.partial && !chain.no_thread, "{chain:?}");
        let frames: Vec<u64> = chain.frames.iter().map(|frame| frame.code).collect();
        assert!(frames.contains(&serve), "{frames:x?}");
    }
    let innermost = samples.iter().map(|sample| chain(sample).frames[0].code);
    assert!(innermost.filter(|&code| code == spin).count() >= 10);
}
