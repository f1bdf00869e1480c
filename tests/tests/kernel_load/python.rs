//! The CPython frame chain of running threads.

use profiler_common::{PythonOffsets, PythonProcess};
use profiler_daemon::model::SampleKind;

use crate::harness::{Server, Watch};

/// Offsets of 3.11 (facts read from its debug information).
const PYTHON_3_11: PythonOffsets = PythonOffsets {
    interpreters_head: 40,
    interp_next: 0,
    interp_threads_head: 16,
    tstate_next: 8,
    tstate_native_thread_id: 160,
    tstate_frame: 56,
    cframe_indirect: 1,
    cframe_current_frame: 8,
    frame_previous: 48,
    frame_executable: 32,
    frame_instr: 56,
    frame_owner: 68,
};

/// Offsets of 3.12.
const PYTHON_3_12: PythonOffsets = PythonOffsets {
    interp_threads_head: 72,
    tstate_native_thread_id: 144,
    cframe_current_frame: 0,
    frame_previous: 8,
    frame_executable: 0,
    frame_owner: 70,
    ..PYTHON_3_11
};

/// Check that samples of a busy handler carry its code objects, innermost first.
#[test]
fn samples_of_a_busy_handler_carry_its_code_objects() {
    let mut server = Server::python("HTTP/1.1");
    let facts = numbers(&server.line());
    let codes = numbers(&server.line());
    let offsets = match facts[2] {
        11 => PYTHON_3_11,
        12 => PYTHON_3_12,
        minor => {
            println!("skip: no offsets for 3.{minor} in this test");
            return;
        }
    };
    let mut watch = Watch::new(server.pid(), "/busy");
    let process = PythonProcess {
        runtime: facts[0],
        offsets,
    };
    watch
        .kernel
        .set_python(server.pid(), Some(&process))
        .unwrap();
    let mut client = server.connect();
    client.get("/busy");
    client.close();
    watch.wait_for_ends(1);
    assert!(watch.samples.len() >= 20, "{} samples", watch.samples.len());
    let mut in_handler = 0;
    for sample in &watch.samples {
        let SampleKind::OnCpu(captured) = &sample.kind else {
            panic!("the ring has on-CPU samples only");
        };
        let chain = captured.python.as_ref().expect("it is a Python process");
        assert!(!chain.no_thread && !chain.partial, "{chain:?}");
        let frames: Vec<_> = chain.frames.iter().map(|frame| frame.code).collect();
        assert!(frames.len() > 5, "the server's own frames are below");
        if frames[..3] == codes[..] {
            in_handler += 1;
        }
    }
    assert!(
        in_handler * 10 >= watch.samples.len() * 8,
        "{in_handler} in the handler"
    );
}

fn numbers(line: &str) -> Vec<u64> {
    line.split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect()
}
