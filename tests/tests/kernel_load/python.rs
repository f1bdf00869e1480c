//! The CPython frame chain of running threads.

use profiler_daemon::model::SampleKind;
use profiler_daemon::process::python::PythonRuntime;
use profiler_tests::{PYTHON_MINORS, find_pythons};

use crate::harness::{Server, Watch};

/// Check that samples of a busy handler carry its code objects, innermost first, with every CPython on the
/// machine. A virtual one has Debian's under a name without version.
#[test]
fn samples_of_a_busy_handler_carry_its_code_objects() {
    let mut pythons: Vec<_> = PYTHON_MINORS.into_iter().flat_map(find_pythons).collect();
    if pythons.is_empty() {
        pythons.push("python3".into());
    }
    for python in pythons {
        let context = python.display();
        let mut server = Server::python_by(&python, "HTTP/1.1");
        let codes = numbers(&server.line());
        let mut watch = Watch::new(server.pid(), "/busy");
        let runtime = PythonRuntime::detect(server.pid()).unwrap().unwrap();
        watch
            .kernel
            .set_python(server.pid(), Some(&runtime.to_kernel()))
            .unwrap();
        watch.ask_until_sampled(&server, "/busy", 20);
        let count = watch.samples.len();
        let (mut in_handler, mut unknown) = (0, 0);
        for sample in &watch.samples {
            let SampleKind::OnCpu(captured) = &sample.kind else {
                panic!("the ring has on-CPU samples only");
            };
            let chain = captured.python.as_ref().expect("it is a Python process");
            // The list of threads is changed while it is read: that of the connection before ends.
            if chain.no_thread || chain.partial {
                unknown += 1;
                continue;
            }
            let frames: Vec<_> = chain.frames.iter().map(|frame| frame.code).collect();
            // The thread is seen before and behind the handler as well, longer where a machine is emulated.
            if frames.starts_with(&codes) {
                assert!(frames.len() > 5, "the server's own frames are below");
                in_handler += 1;
            }
        }
        assert!(
            in_handler * 2 > count && unknown * 10 <= count,
            "{context}: {in_handler} in the handler, {unknown} unknown, of {count}"
        );
    }
}

/// The numbers of a line.
pub(crate) fn numbers(line: &str) -> Vec<u64> {
    line.split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect()
}
