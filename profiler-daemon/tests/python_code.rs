//! Names of code objects that are freed and make room for the next one.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use profiler_daemon::model::{Counter, Coverage, Pid, PythonRef};
use profiler_daemon::process::ProcessMemory;
use profiler_daemon::process::python::{CodeSignature, PythonNamer, PythonRuntime};
use profiler_daemon::unwind::python::walk_chain;
use profiler_test_support::pythons;

/// Functions run by each interpreter.
const FUNCTIONS: usize = 60;

/// A process that runs one function after the other, and ends with the test.
struct Functions {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Drop for Functions {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Functions {
    /// Starts it; returns when the first function runs.
    fn start(python: &Path) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/python_code.py");
        let mut child = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut functions = Self { child, output };
        functions.wait_for(0);
        functions
    }

    /// Has the function return, and the next one run.
    fn next(&mut self, number: usize) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        self.wait_for(number);
    }

    fn wait_for(&mut self, number: usize) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), number.to_string());
    }

    fn pid(&self) -> Pid {
        Pid(self.child.id())
    }

    /// The frame of the function that runs.
    fn frame(&self, runtime: &PythonRuntime) -> PythonRef {
        let chain = walk_chain(&ProcessMemory::new(self.pid()), runtime, self.pid().0);
        PythonRef::from(&chain.frames[0])
    }
}

/// Check that the frame of a function that is freed before it is named is never named as the next function,
/// however often its memory has become that one's; that one named in time keeps its name; and that the next
/// function gets its own.
#[test]
fn a_freed_function_is_never_named_as_the_next_one() {
    for python in pythons() {
        let mut functions = Functions::start(&python);
        let runtime = PythonRuntime::detect(functions.pid()).unwrap().unwrap();
        let memory = ProcessMemory::new(functions.pid());
        for form in [CodeSignature::Function, CodeSignature::Line] {
            let mut named_in_time = PythonNamer::new(form);
            let mut named_late = PythonNamer::new(form);
            let mut losses = Coverage::default();
            let mut late = Coverage::default();
            let mut addresses = HashSet::new();
            let mut unknown = 0;
            let offset = if form == CodeSignature::Function {
                0
            } else {
                FUNCTIONS
            };
            for number in offset..offset + FUNCTIONS {
                let frame = functions.frame(&runtime);
                addresses.insert(frame.code);
                let name = |namer: &mut PythonNamer, losses: &mut Coverage| {
                    let named = namer.frame(&memory, &runtime, frame, losses).unwrap();
                    named.signature.to_string()
                };
                let own = format!("<string>.function_{number:03}:");
                let first = name(&mut named_in_time, &mut losses);
                assert!(
                    first.starts_with(&own),
                    "{}: {first}, {own}",
                    python.display()
                );
                functions.next(number + 1);
                assert_eq!(name(&mut named_in_time, &mut losses), first);
                // What is freed may still lie there, unchanged.
                let late_name = name(&mut named_late, &mut late);
                assert!(
                    late_name == first || late_name == "[unknown] (python)",
                    "{late_name}"
                );
                unknown += u64::from(late_name != first);
            }
            assert!(addresses.len() < FUNCTIONS, "no address came again");
            assert_eq!(losses, Coverage::default());
            assert!(unknown > 0, "every freed function is still there");
            assert_eq!(late.get(Counter::PythonCodeGone), unknown);
        }
    }
}
