//! Which thread state's frames a running thread gets.

use std::process::Command;

use profiler_daemon::model::{Pid, PythonChain, RawSample, SampleKind};
use profiler_daemon::process::python::PythonRuntime;

use crate::harness::{Server, Watch};
use crate::python::numbers;

/// A server of this folder in Python.
fn start(script: &str) -> Server {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernel_load/");
    Server::start(Command::new("python3").arg("-u").arg(format!("{folder}{script}")))
}

/// Samples of one request of a Python process.
fn sampled(server: &Server, pid: Pid) -> Vec<RawSample> {
    let runtime = PythonRuntime::detect(pid).unwrap();
    let record = runtime.expect("it is CPython").to_kernel();
    let mut watch = Watch::new(pid, "/busy");
    watch.kernel.set_python(pid, Some(&record)).unwrap();
    let mut client = server.connect();
    client.get("/busy");
    client.close();
    watch.wait_for_ends(1);
    watch.samples
}

fn chain(sample: &RawSample) -> &PythonChain {
    let SampleKind::OnCpu(captured) = &sample.kind else {
        panic!("the ring has on-CPU samples only");
    };
    captured.python.as_ref().expect("it is a Python process")
}

/// Check that a thread that gets a thread state for each call from C shows the frames of the call it is
/// in: never those of a call before, and never none while it computes.
#[test]
fn a_thread_that_attaches_for_each_call_shows_that_call() {
    let mut server = start("attach.py");
    let _facts = server.line();
    let codes = numbers(&server.line());
    let [spin, parts @ .., read] = &codes[..] else {
        panic!("{codes:?}");
    };
    let samples = sampled(&server, server.pid());
    let mut counts = [0; 3];
    let mut latest = 0;
    for sample in &samples {
        let chain = chain(sample);
        assert!(!chain.partial, "{chain:?}");
        let frames: Vec<u64> = chain.frames.iter().map(|frame| frame.code).collect();
        // The first part reads the request; the thread may be between two calls.
        let Some(part) = parts.iter().position(|part| frames.contains(part)) else {
            continue;
        };
        assert!(part >= latest, "{part} after {latest}: {samples:#?}");
        latest = part;
        assert!(frames.contains(read), "{frames:x?}");
        counts[part] += usize::from(frames[0] == *spin);
    }
    // 150 ms of CPU time each, at 10 ms.
    assert!(counts.iter().all(|&count| count >= 8), "{counts:?} {samples:#?}");
}
