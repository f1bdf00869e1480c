//! Compares native stacks with gdb's, frame by frame, on programs built without frame pointers.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod native_process;

use native_process::{Program, Running, STACK_BYTES, Truth, capture, pcs};
use profiler_daemon::model::UnwindEnd;
use profiler_daemon::process::{Process, ReadMemory};
use profiler_daemon::unwind::NativeUnwinder;

const BLOCKING: &[i64] = &[
    libc::SYS_read,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_futex,
];

/// Unwinds all threads and expects gdb's frames, from the leaf to the root.
fn expect_gdb_frames(running: &Running) -> Vec<Truth> {
    let mut unwinder = NativeUnwinder::new();
    let mut process = running.process();
    let memory = process.memory;
    let truths = running.ask_gdb();
    running.wait_blocked(truths.len(), BLOCKING);
    for (tid, truth) in &truths {
        let captured = capture(running.pid(), &truth.regs, STACK_BYTES);
        let unwound = unwinder.unwind(&mut process, &captured, Some(&memory));
        assert_eq!(pcs(&unwound), truth.pcs, "thread {tid}: {:?}", truth.names);
        assert_eq!(unwound.end, UnwindEnd::Root, "thread {tid}");
        assert!(unwound.frames[0].is_exact);
    }
    truths.into_values().collect()
}

/// Check that C chains ten deep are found whole, for a main thread and another one, blocked in a
/// sleep, in a read, below a library's callback, below a function that realigns its stack, and in a
/// function that its caller does not expect to return.
#[test]
fn chains_without_frame_pointers_equal_gdb() {
    let program = Program::build("chain.c", &[]);
    for mode in ["sleep", "read", "qsort", "aligned", "noreturn"] {
        let running = program.start(&[mode]);
        running.wait_blocked(2, BLOCKING);
        for truth in expect_gdb_frames(&running) {
            let links = truth.names.iter().filter(|name| name.starts_with("link"));
            assert_eq!(links.count(), 10, "{mode}: {:?}", truth.names);
        }
    }
}

/// Check that a static program, which has no PLT and no libraries, is unwound as well.
#[test]
fn a_static_program_equals_gdb() {
    let program = Program::build("chain.c", &["-static"]);
    let running = program.start(&["qsort"]);
    running.wait_blocked(2, BLOCKING);
    expect_gdb_frames(&running);
}

/// Check that the frames below a signal handler are found: where a system call, an instruction, or
/// code on another stack was interrupted.
#[test]
fn frames_below_a_signal_handler_equal_gdb() {
    let program = Program::build("signal.c", &[]);
    for mode in ["raise", "fault", "altstack"] {
        let running = program.start(&[mode]);
        running.wait_blocked(1, BLOCKING);
        for truth in expect_gdb_frames(&running) {
            let position = |name: &str| truth.names.iter().position(|found| found == name);
            assert!(position("handler") < position("interrupted"), "{mode}");
            assert!(position("outer2") < position("outer1"), "{mode}");
        }
    }
}

/// Check that Rust functions are found whole.
#[test]
fn a_rust_chain_equals_gdb() {
    let program = Program::build("chain.rs", &[]);
    let running = program.start(&[]);
    running.wait_blocked(1, BLOCKING);
    for truth in expect_gdb_frames(&running) {
        let recursions = truth.names.iter().filter(|name| name.contains("recurse"));
        assert_eq!(recursions.count(), 11, "{:?}", truth.names);
    }
}

/// Check that a stack longer than the copied bytes ends with a reason, has the right frames up to
/// there, and goes on to its root when live memory may be read.
#[test]
fn a_cut_stack_says_so() {
    let program = Program::build("chain.c", &[]);
    let running = program.start(&["read"]);
    running.wait_blocked(2, BLOCKING);
    let mut process = running.process();
    let memory = process.memory;
    let mut unwinder = NativeUnwinder::new();
    for truth in running.ask_gdb().values() {
        let captured = capture(running.pid(), &truth.regs, 4096);
        let cut = unwinder.unwind(&mut process, &captured, None);
        assert_eq!(cut.end, UnwindEnd::StackCut);
        let pcs = pcs(&cut);
        assert!(pcs.len() > 2 && pcs.len() < truth.pcs.len());
        assert_eq!(pcs, truth.pcs[..pcs.len()]);
        let whole = unwinder.unwind(&mut process, &captured, Some(&memory));
        assert_eq!(whole.frames.len(), truth.pcs.len());
        assert_eq!(whole.end, UnwindEnd::Root);
    }
}

/// Check that random registers and random stack bytes of a real process end somewhere, without a
/// panic and without running away, for every address as the leaf.
#[test]
fn garbage_ends() {
    let program = Program::build("chain.c", &[]);
    let running = program.start(&["read"]);
    running.wait_blocked(2, BLOCKING);
    let truth = running.ask_gdb().into_values().next().unwrap();
    let mut process: Process = running.process();
    let memory = process.memory;
    let mut unwinder = NativeUnwinder::new();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let good = capture(running.pid(), &truth.regs, STACK_BYTES);
    let mappings = process.mappings.clone();
    let mappings = mappings.as_slice();
    for round in 0..4000_usize {
        let mut captured = good.clone();
        for register in &mut captured.regs[..16] {
            // Half of them point somewhere into the stack.
            *register = match random() % 2 {
                0 => random(),
                _ => good.stack.sp + random() % STACK_BYTES as u64,
            };
        }
        let code = |random: u64| {
            let mapping = &mappings[random as usize % mappings.len()];
            mapping.start + (random >> 20) % (mapping.end - mapping.start)
        };
        captured.regs[16] = code(random());
        for word in captured.stack.bytes.chunks_exact_mut(8) {
            let value = match random() % 4 {
                0 => random(),
                1 => code(random()),
                2 => good.stack.sp + random() % STACK_BYTES as u64,
                _ => 0,
            };
            word.copy_from_slice(&value.to_ne_bytes());
        }
        let beyond: Option<&dyn ReadMemory> = if round % 2 == 0 { Some(&memory) } else { None };
        let unwound = unwinder.unwind(&mut process, &captured, beyond);
        assert!(!unwound.frames.is_empty());
        let sps = unwound.frames.len();
        assert!(sps <= STACK_BYTES, "{sps} frames in {STACK_BYTES} bytes");
    }
}
