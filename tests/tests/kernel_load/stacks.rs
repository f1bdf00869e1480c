//! Registers, stack bytes and kernel frames of running and blocked threads.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use profiler_common::{
    KERNEL_STACKS_MAX, KERNEL_STACKS_WINDOW_NS, KernelCounter, ThreadState, thread_state_flag,
};
use profiler_daemon::kernel::{instruction_pointer, stack_pointer};
use profiler_daemon::model::{SampleKind, Tid};
use profiler_daemon::process::{ProcessMemory, ReadMemory};
use profiler_tests::{C_SERVER, build_c_server};

use crate::harness::{SLOT, Server, Watch};

/// Lowest kernel address on x86_64 and aarch64.
const KERNEL_HALF: u64 = 1 << 63;
/// Bits of a user address where pages have 4 KiB. Above them aarch64 signs return addresses.
const ADDRESS_BITS: u64 = (1 << 48) - 1;

/// The C server, which also prints the ranges of its functions.
pub(crate) fn c_server(directory: &tempfile::TempDir) -> Server {
    let program = std::env::var_os(C_SERVER).map_or_else(
        || {
            let program = directory.path().join("server");
            build_c_server(&program).unwrap();
            program
        },
        PathBuf::from,
    );
    Server::start(&mut Command::new(program))
}

/// Beginning and end of a function.
pub(crate) type Range = std::ops::Range<u64>;

/// `spin`, `middle` and `outer`, as the server prints them.
pub(crate) fn ranges(server: &mut Server) -> [Range; 3] {
    let addresses: Vec<u64> = server
        .line()
        .split_whitespace()
        .map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap())
        .collect();
    [0, 1, 2].map(|index| addresses[index]..addresses[index + 1])
}

/// Words of stack bytes that are addresses in a range.
pub(crate) fn words_in(stack: &[u8], range: &Range) -> usize {
    let (words, _) = stack.as_chunks();
    words
        .iter()
        .map(|word| u64::from_ne_bytes(*word) & ADDRESS_BITS)
        .filter(|word| range.contains(word))
        .count()
}

/// Waits until the thread of the first request is blocked; yields its state.
pub(crate) fn wait_for_block(watch: &mut Watch) -> (Tid, ThreadState) {
    let blocked = |watch: &Watch| {
        let (_, tid, _) = *watch.starts().first()?;
        let state = watch.kernel.thread_state(tid).unwrap()?;
        (state.flags == 0 && state.kernel_frame_count > 0).then_some((tid, state))
    };
    watch.wait("blocked thread", |watch| blocked(watch).is_some());
    blocked(watch).expect("it sleeps for longer than this takes")
}

/// Check that samples of a spinning C function have its registers, and its callers on the stack.
#[test]
fn samples_of_a_c_chain_have_its_registers_and_stack() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = c_server(&directory);
    let [spin, middle, outer] = ranges(&mut server);
    let mut watch = Watch::new(server.pid(), "/spin");
    watch.ask_until_sampled(&server, "/spin", 20);
    let starts = watch.starts();
    let mut whole = 0;
    for sample in &watch.samples {
        assert!(
            starts
                .iter()
                .any(|(request, ..)| *request == sample.request)
        );
        assert_eq!(sample.pid, server.pid());
        let SampleKind::OnCpu(captured) = &sample.kind else {
            panic!("the ring has on-CPU samples only");
        };
        assert_eq!(captured.python, None);
        assert_eq!(captured.stack.sp, stack_pointer(&captured.regs));
        if spin.contains(&instruction_pointer(&captured.regs)) {
            let stack = &captured.stack.bytes;
            assert_ne!(words_in(stack, &middle), 0, "return address of spin");
            assert_ne!(words_in(stack, &outer), 0, "return address of middle");
            whole += 1;
        }
    }
    let count = watch.samples.len();
    assert!(whole * 10 >= count * 8, "{whole} of {count} in spin");
    assert_eq!(watch.count(KernelCounter::SamplesTaken), count as u64);
    assert_eq!(watch.count(KernelCounter::StackUnreadable), 0);
}

/// Check that a thread blocked in a system call has its registers and kernel stack stored, and that
/// its user stack can be read meanwhile.
#[test]
fn a_blocked_thread_has_registers_and_kernel_frames() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = c_server(&directory);
    let [_, _, outer] = ranges(&mut server);
    let mut watch = Watch::new(server.pid(), "/nap");
    let mut client = server.connect();
    client.send(b"GET /nap HTTP/1.1\r\n\r\n");
    let (tid, before) = wait_for_block(&mut watch);
    let mut stack = vec![0; 512];
    let memory = ProcessMemory::new(server.pid());
    let read = memory
        .read(stack_pointer(&before.regs), &mut stack)
        .unwrap();
    let after = watch.kernel.thread_state(tid).unwrap().unwrap();
    assert_eq!(before, after, "the thread slept all the while");
    assert_eq!(before.seq % 2, 0);
    assert_eq!(before.prev_state & 1, 1, "TASK_INTERRUPTIBLE");
    assert_eq!(before.tgid, server.pid().0);
    let callers = words_in(&stack[..read], &outer);
    assert_ne!(callers, 0, "the caller of the sleep is on the stack");
    let frames = &before.kernel_frames[..before.kernel_frame_count as usize];
    assert!(frames.iter().all(|frame| *frame >= KERNEL_HALF));
    let names: Vec<_> = frames.iter().map(|frame| kernel_symbol(*frame)).collect();
    assert_eq!(names[0], "__schedule", "{names:?}");
    assert!(
        names.iter().any(|name| name.contains("nanosleep")),
        "{names:?}"
    );
    client.response();
    watch.wait("tag of an answered request", |watch| {
        watch.kernel.tags().len() == 1
    });
    assert_eq!(watch.kernel.tags()[0].1.slot, SLOT.0);
}

/// Check that a thread that leaves and takes the CPU shows by its state which it is.
#[test]
fn a_state_tells_running_from_blocked() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = c_server(&directory);
    ranges(&mut server);
    let mut watch = Watch::new(server.pid(), "/spin");
    let mut client = server.connect();
    client.send(b"GET /spin HTTP/1.1\r\n\r\n");
    watch.wait("start", |watch| watch.starts().len() == 1);
    let tid = watch.starts()[0].1;
    let state = watch.kernel.thread_state(tid).unwrap().unwrap();
    // It computes, so it either runs or waits for a CPU.
    assert_ne!(
        state.flags & (thread_state_flag::ON_CPU | thread_state_flag::RUNNABLE),
        0
    );
    client.response();
}

/// How often the server's `/flip` blocks.
const FLIPS: u128 = 4_000;

/// Check that of a thread that switches all the time only so many kernel stacks are stored, and that the
/// state says so.
#[test]
fn a_thread_that_blocks_all_the_time_has_few_kernel_stacks() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = c_server(&directory);
    ranges(&mut server);
    let mut watch = Watch::new(server.pid(), "/flip");
    let mut client = server.connect();
    let begin = Instant::now();
    client.send(b"GET /flip HTTP/1.1\r\n\r\n");
    watch.wait("start", |watch| watch.starts().len() == 1);
    let tid = watch.starts()[0].1;
    let mut is_skipped = false;
    watch.wait("response", |watch| {
        let state = watch.kernel.thread_state(tid).unwrap();
        if let Some(state) = state.filter(|state| state.seq % 2 == 0) {
            assert!(state.stacks_in_window <= KERNEL_STACKS_MAX);
            if state.flags & thread_state_flag::KERNEL_STACK_SKIPPED != 0 {
                assert_eq!(state.kernel_frame_count, 0);
                assert_eq!(
                    state.stacks_in_window, KERNEL_STACKS_MAX,
                    "before that they are stored"
                );
                is_skipped = true;
            }
        }
        !watch.responses().is_empty()
    });
    client.response();
    // On an emulated machine a window may end before, or just after, its stacks are used up: then there are
    // few states without one, and all may be gone before they are read.
    let flips_in_window = FLIPS * u128::from(KERNEL_STACKS_WINDOW_NS) / begin.elapsed().as_nanos();
    assert!(
        is_skipped || flips_in_window < 4 * u128::from(KERNEL_STACKS_MAX),
        "{flips_in_window} times blocked in a window"
    );
}

/// Name of the kernel function an address lies in.
pub(crate) fn kernel_symbol(address: u64) -> String {
    let symbols = std::fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    let mut best = (0, String::new());
    for line in symbols.lines() {
        let mut words = line.split_whitespace();
        let (Some(start), _, Some(name)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let start = u64::from_str_radix(start, 16).unwrap_or(0);
        if start <= address && start > best.0 {
            best = (start, name.to_owned());
        }
    }
    best.1
}
