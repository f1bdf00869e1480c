//! Executes a program instruction by instruction and unwinds at each of them.
//!
//! Whatever the program does between the entry of a function and its return, its callers are the same.
//! This covers every prologue and epilogue on the way, the procedure linkage table, the dynamic
//! linker's resolver, the vDSO and string functions written in assembly.
//!
//! And stops one where it cannot be stepped to: in the system call that ends a signal handler.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]
#![cfg(target_arch = "x86_64")]

mod native_process;

use std::collections::{BTreeSet, HashMap};
use std::process::Command;

use native_process::{Program, Running, STACK_BYTES, capture, pcs, wait_for};
use nix::sys::ptrace;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid as TracedPid;
use profiler_common::REGS_MAX;
use profiler_daemon::model::UnwindEnd;
use profiler_daemon::unwind::NativeUnwinder;

/// More than the program takes; an endless one must fail.
const STEPS_MAX: usize = 200_000;

/// Functions of a program by name, with their addresses.
fn functions(program: &Program) -> HashMap<String, u64> {
    let output = Command::new("nm").arg(program.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |line: &str| {
        let mut words = line.split(' ');
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let is_code = matches!(words.next()?, "t" | "T");
        is_code.then(|| (words.next().unwrap_or_default().to_owned(), address))
    };
    text.lines().filter_map(line).collect()
}

/// The registers in the order of `struct pt_regs`.
fn registers(traced: TracedPid) -> [u64; REGS_MAX] {
    let regs = ptrace::getregs(traced).unwrap();
    let mut words = [0; REGS_MAX];
    words[..21].copy_from_slice(&[
        regs.r15,
        regs.r14,
        regs.r13,
        regs.r12,
        regs.rbp,
        regs.rbx,
        regs.r11,
        regs.r10,
        regs.r9,
        regs.r8,
        regs.rax,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.orig_rax,
        regs.rip,
        regs.cs,
        regs.eflags,
        regs.rsp,
        regs.ss,
    ]);
    words
}

/// Takes hold of a process.
fn attach(running: &Running) -> TracedPid {
    let traced = TracedPid::from_raw(running.pid().0.cast_signed());
    ptrace::attach(traced).unwrap();
    waitpid(traced, None).unwrap();
    traced
}

fn step(traced: TracedPid) {
    ptrace::step(traced, None).unwrap();
    let status = waitpid(traced, None).unwrap();
    assert!(matches!(status, WaitStatus::Stopped(..)), "{status:?}");
}

/// Check that at every instruction the stack has the same callers and reaches its root.
#[test]
fn callers_are_found_at_every_instruction() {
    let program = Program::build("step.c", &["-no-pie", "-Wl,-z,lazy"]);
    let functions = functions(&program);
    let first_function = functions.iter().filter(|(name, _)| *name != "_init");
    let first_function = *first_function.map(|(_, address)| address).min().unwrap();
    let running = program.start(&[]);
    let stat = format!("/proc/{}/stat", running.pid());
    wait_for("the program has stopped itself", || {
        std::fs::read_to_string(&stat).unwrap().contains(") T ")
    });
    let traced = attach(&running);
    let mut steps = 0..STEPS_MAX;
    while registers(traced)[16] != functions["stepped"] {
        steps.next().expect("the function is reached");
        step(traced);
    }

    let mut process = running.process();
    let mut unwinder = NativeUnwinder::new();
    let mut callers: Vec<u64> = Vec::new();
    let mut objects = BTreeSet::new();
    let mut in_plt = 0;
    for _ in &mut steps {
        let regs = registers(traced);
        let pc = regs[16];
        if callers.first().is_some_and(|caller| caller + 1 == pc) {
            break;
        }
        let captured = capture(running.pid(), &regs, STACK_BYTES);
        let unwound = unwinder.unwind(&mut process, &captured, None);
        let addresses = unwound.addresses();
        let mapping = process.mappings.find(pc).unwrap();
        assert_eq!(unwound.end, UnwindEnd::Root, "{pc:#x} {mapping:?}");
        if callers.is_empty() {
            callers = addresses[1..].to_vec();
            assert!(callers.len() >= 3, "main, its callers in libc, _start");
        }
        assert!(
            addresses.len() > callers.len() && addresses.ends_with(&callers),
            "{pc:#x} {mapping:?}: {addresses:#x?} lacks {callers:#x?}"
        );
        let caller = addresses[addresses.len() - callers.len() - 1];
        assert!(
            (functions["stepped"]..functions["stepped"] + 100).contains(&caller),
            "{pc:#x} {mapping:?}: {addresses:#x?}"
        );
        objects.insert(mapping.file_name().to_owned());
        let is_program = mapping.file_name() == "step";
        in_plt += u32::from(is_program && pc < first_function);
        step(traced);
    }
    assert!(!steps.is_empty(), "the function returns");
    assert!(in_plt > 0);
    let seen = |part: &str| objects.iter().any(|name| name.contains(part));
    for part in ["step", "libc", "ld-linux", "[vdso]"] {
        assert!(seen(part), "{part} in {objects:?}");
    }
}

/// Check that a thread in the system call that ends a signal handler has the callers that the handler
/// interrupted.
#[test]
fn callers_are_found_in_the_end_of_a_signal_handler() {
    let program = Program::build("signal.c", &[]);
    let mut running = program.start(&["raise"]);
    running.wait_blocked(1, &[libc::SYS_read]);
    let truth = running.ask_gdb().into_values().next().unwrap();
    let handler = truth.names.iter().position(|name| name == "handler");
    let callers = &truth.pcs[handler.unwrap() + 1..];

    let mut process = running.process();
    let traced = attach(&running);
    running.write_byte();
    let regs = loop {
        ptrace::syscall(traced, None).unwrap();
        waitpid(traced, None).unwrap();
        let regs = registers(traced);
        if regs[15] == libc::SYS_rt_sigreturn as u64 {
            break regs;
        }
    };
    let captured = capture(running.pid(), &regs, STACK_BYTES);
    let unwound = NativeUnwinder::new().unwind(&mut process, &captured, None);
    assert_eq!(pcs(&unwound), callers, "{:?}", truth.names);
    assert_eq!(unwound.end, UnwindEnd::Root);
}
