//! The whole way from what the kernel side captured to names, for a chain of calls that is known.

use profiler_common::KernelCounter;
use profiler_daemon::kernel::stack_pointer;
use profiler_daemon::model::{Captured, Coverage, SampleKind, StackBytes, UnwindEnd};
use profiler_daemon::process::python::CodeSignature;
use profiler_daemon::process::{Process, ProcessMemory, ReadMemory};
use profiler_daemon::symbolize::Symbolizer;
use profiler_daemon::unwind::Unwinder;

use crate::harness::{Server, Watch};
use crate::stacks::{c_server, ranges, wait_for_block};

/// More than the stack of the server has.
const STACK_BYTES: usize = 16 << 10;
/// What the server computes with, and its callers.
const SPINNING: [&str; 2] = ["spin (server)", "middle (server)"];
/// Where each of its requests comes from.
const ROOT: [&str; 2] = ["outer (server)", "main (server)"];

/// Names stacks as the daemon does.
struct Namer {
    process: Process,
    unwinder: Unwinder,
    symbolizer: Symbolizer,
    losses: Coverage,
}

impl Namer {
    fn new(server: &Server) -> Self {
        Self {
            process: Process::open(server.pid()).unwrap(),
            unwinder: Unwinder::default(),
            symbolizer: Symbolizer::new(CodeSignature::Function),
            losses: Coverage::default(),
        }
    }

    /// The functions, innermost first, of a stack that must be whole.
    fn names(&mut self, captured: &mut Captured) -> Vec<String> {
        let stack = self
            .unwinder
            .unwind(&mut self.process, captured, &mut self.losses);
        assert_eq!(stack.end, UnwindEnd::Root, "{stack:x?}");
        let named = self
            .symbolizer
            .symbolize(&self.process, &stack, &mut self.losses);
        let signatures = named.frames.iter().map(|frame| frame.signature.to_string());
        signatures.collect()
    }
}

/// A sample of a request that computes.
#[derive(Debug)]
struct Sampled {
    names: Vec<String>,
    /// Stack bytes that could not be copied.
    skipped: u32,
}

/// All samples of requests that compute.
fn sampled(target: &str) -> Vec<Sampled> {
    let directory = tempfile::tempdir().unwrap();
    let mut server = c_server(&directory);
    ranges(&mut server);
    let mut watch = Watch::new(server.pid(), target);
    watch.ask_until_sampled(&server, target, 40);
    let mut namer = Namer::new(&server);
    let samples = watch.samples.iter_mut().map(|sample| {
        let SampleKind::OnCpu(captured) = &mut sample.kind else {
            panic!("the ring has on-CPU samples only");
        };
        Sampled {
            names: namer.names(captured),
            skipped: captured.stack.skipped,
        }
    });
    let samples = samples.collect();
    assert_eq!(watch.count(KernelCounter::StackUnreadable), 0);
    samples
}

/// The samples of requests that hit them while they computed. In an emulated machine many ticks may come at once, wherever
/// the thread is then.
fn computing(target: &str) -> Vec<Sampled> {
    let mut samples = sampled(target);
    samples.retain(|sample| sample.names.iter().any(|name| name == SPINNING[0]));
    let count = samples.len();
    assert!(count >= 20, "{count} samples");
    samples
}

/// Where in the stack these functions call each other, innermost first.
fn place(stack: &[String], chain: &[&str]) -> Option<usize> {
    stack.windows(chain.len()).position(|names| names == chain)
}

/// Check that samples of a computing thread have each function by name, below what it calls.
#[test]
fn a_computing_thread_shows_its_chain() {
    let samples = computing("/spin");
    let count = samples.len();
    let chain = [SPINNING, ROOT].concat();
    let is_whole = |sample: &&Sampled| place(&sample.names, &chain).is_some();
    let whole = samples.iter().filter(is_whole).count();
    assert!(whole * 10 >= count * 8, "{whole} of {count}: {samples:#?}");
}

/// Check that a signal handler stands above the functions it interrupted.
#[test]
fn a_signal_handler_stands_above_what_it_interrupted() {
    let samples = computing("/signal");
    let count = samples.len();
    let handler = [SPINNING[0], SPINNING[1], "on_signal (server)"];
    // Two names of one function.
    let raise = ["raise (libc.so.6)", "gsignal (libc.so.6)"];
    let whole = samples.iter().filter(|sample| {
        let stack = &sample.names;
        let (Some(above), Some(below)) = (place(stack, &handler), place(stack, &ROOT)) else {
            return false;
        };
        // The code that ends a handler, and what sends the signal.
        let between = stack.get(above + handler.len()..below).unwrap_or_default();
        between.len() >= 2 && between.last().is_some_and(|name| raise.contains(&&**name))
    });
    let whole = whole.count();
    assert!(whole * 10 >= count * 8, "{whole} of {count}: {samples:#?}");
}

/// Check that a thread whose stack pointer is in pages it has not written yet shows its chain.
#[test]
fn a_stack_that_begins_in_unwritten_pages_is_whole() {
    let samples = sampled("/hollow");
    let chain = [&["hollow (server)", "shallow (server)"], &ROOT[..]].concat();
    let hollow = |sample: &&Sampled| sample.skipped > 0;
    let hollow: Vec<_> = samples.iter().filter(hollow).collect();
    assert!(hollow.len() >= 5, "{samples:#?}");
    let is_whole = |sample: &&Sampled| place(&sample.names, &chain).is_some();
    assert!(hollow.iter().all(is_whole), "{hollow:#?}");
}

/// Check that a thread blocked in a system call shows its chain, kernel functions above it.
#[test]
fn a_blocked_thread_shows_its_chain() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = c_server(&directory);
    ranges(&mut server);
    let mut watch = Watch::new(server.pid(), "/nap");
    let mut client = server.connect();
    client.send(b"GET /nap HTTP/1.1\r\n\r\n");
    let (_, state) = wait_for_block(&mut watch);
    let sp = stack_pointer(&state.regs);
    let mut bytes = vec![0; STACK_BYTES];
    let read = ProcessMemory::new(server.pid())
        .read(sp, &mut bytes)
        .unwrap();
    bytes.truncate(read);
    let mut captured = Captured {
        regs: state.regs,
        stack: StackBytes {
            sp,
            skipped: 0,
            bytes,
            cut: read == STACK_BYTES,
        },
        kernel_frames: state.kernel_frames[..state.kernel_frame_count as usize].to_vec(),
        python: None,
    };
    let names = Namer::new(&server).names(&mut captured);
    let outer = names.iter().position(|name| name == ROOT[0]);
    let outer = outer.unwrap_or_else(|| panic!("no {}: {names:#?}", ROOT[0]));
    assert_eq!(names[outer..outer + 2], ROOT);
    assert!(
        names[outer - 1].ends_with("nanosleep (libc.so.6)"),
        "{names:#?}"
    );
    assert_eq!(names[0], "__schedule [kernel]");
    let in_kernel = |name: &String| name.contains("nanosleep") && name.ends_with("[kernel]");
    assert!(names[..outer].iter().any(in_kernel), "{names:#?}");
    client.response();
}
