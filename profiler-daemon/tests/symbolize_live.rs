//! Names the stacks of running programs and compares them with gdb's names.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod native_process;

use native_process::{Program, Running, STACK_BYTES, Truth, capture};
use profiler_daemon::model::{AddrFrame, Counter, Coverage, Frame, Stack, UnwindEnd};
use profiler_daemon::process::Process;
use profiler_daemon::process::python::CodeSignature;
use profiler_daemon::symbolize::{STACK_FRAMES_MAX, Symbolizer};
use profiler_daemon::unwind::NativeUnwinder;

const BLOCKING: &[i64] = &[libc::SYS_read, libc::SYS_futex];

fn symbolizer() -> Symbolizer {
    Symbolizer::new(CodeSignature::Function)
}

/// Unwinds and symbolizes a thread.
fn stack_of(
    running: &Running,
    process: &mut Process,
    truth: &Truth,
    symbolizer: &mut Symbolizer,
    losses: &mut Coverage,
) -> Stack<Frame> {
    let captured = capture(running.pid(), &truth.regs, STACK_BYTES);
    let memory = process.memory;
    let unwound = NativeUnwinder::new().unwind(process, &captured, Some(&memory));
    let addresses = unwound.addresses();
    let stack = Stack {
        frames: addresses.into_iter().map(AddrFrame::Native).collect(),
        end: unwound.end,
    };
    symbolizer.symbolize(process, &stack, losses)
}

fn signatures(stack: &Stack<Frame>) -> Vec<&str> {
    let frames = stack.frames.iter();
    frames.map(|frame| &*frame.signature).collect()
}

/// Check that all functions of a C and of a Rust program have gdb's names, demangled and without the
/// marks of the compiler, and that no signature of a function with a name contains an address.
#[test]
fn names_equal_gdb() {
    for (source, object, mode) in [
        ("chain.c", "chain", "noreturn"),
        ("chain.c", "chain", "qsort"),
        ("chain.rs", "chain", ""),
        ("signal.c", "signal", "fault"),
    ] {
        let program = Program::build(source, &[]);
        let running = program.start(&[mode]);
        let threads = if source == "chain.c" { 2 } else { 1 };
        running.wait_blocked(threads, BLOCKING);
        let mut process = running.process();
        let mut symbolizer = symbolizer();
        let mut losses = Coverage::default();
        for truth in running.ask_gdb().values() {
            let stack = stack_of(&running, &mut process, truth, &mut symbolizer, &mut losses);
            let mut signatures = signatures(&stack);
            // The standard library of Rust has debug information, which gdb is not asked about here.
            signatures.retain(|signature| !signature.contains(" (inlined) "));
            assert_eq!(signatures.len(), truth.names.len());
            let suffix = format!(" ({object})");
            let mut compared = 0;
            for (signature, name) in signatures.iter().zip(&truth.names) {
                let Some(function) = signature.strip_suffix(&suffix) else {
                    continue;
                };
                assert!(!signature.contains("0x"), "{signature}");
                // gdb writes Rust's generic arguments and closures in its own way, and keeps hashes.
                let plain = |name: &str| {
                    let name = name.split(['<', '{', '.']).next().unwrap_or_default();
                    let (plain, hash) = name.rsplit_once("::h").unwrap_or((name, ""));
                    let is_hash = hash.len() == 16;
                    (if is_hash { plain } else { name }).to_owned()
                };
                if plain(name).is_empty() || plain(function).is_empty() {
                    continue;
                }
                assert_eq!(plain(function), plain(name), "{signatures:#?}");
                compared += 1;
            }
            assert!(compared > 4, "{signatures:#?} {:#?}", truth.names);
        }
    }
}

/// Check that generated code, which appeared after the mappings were read, is unwound by its frame
/// pointer and named by its perf map, between callers without unwind information.
#[test]
fn generated_code_is_unwound_and_named() {
    let flags = ["-fno-asynchronous-unwind-tables", "-fno-omit-frame-pointer"];
    let program = Program::build("jit.c", &flags);
    let mut running = program.start(&[]);
    running.wait_blocked(1, BLOCKING);
    let mut process = running.process();
    running.write_byte();
    let map = format!("/tmp/perf-{}.map", running.pid());
    native_process::wait_for("the map is written", || {
        std::fs::metadata(&map).is_ok_and(|metadata| metadata.len() > 0)
    });
    running.wait_blocked(1, BLOCKING);
    let truth = running.ask_gdb().into_values().next().unwrap();
    running.wait_blocked(1, BLOCKING);
    let mut losses = Coverage::default();
    let stack = stack_of(
        &running,
        &mut process,
        &truth,
        &mut symbolizer(),
        &mut losses,
    );
    std::fs::remove_file(&map).unwrap();
    let mut signatures = signatures(&stack);
    signatures.retain(|signature| !signature.contains(" (inlined) "));
    assert!(signatures[0].ends_with("(libc.so.6)"), "{signatures:#?}");
    assert_eq!(
        signatures[1..5],
        [
            "block (jit)",
            "script::handler main.js:7 [jit]",
            "caller (jit)",
            "main (jit)"
        ]
    );
    assert_eq!(stack.end, UnwindEnd::Root);
}

/// Check that the perf map of a process in a root of its own is the one that the process sees, although `/tmp` is
/// an absolute link there, which from outside leads to another map.
#[test]
fn a_perf_map_is_the_one_in_the_root_of_the_process() {
    let flags = ["-static", "-fno-omit-frame-pointer"];
    let program = Program::build("jit.c", &flags);
    // Not below /tmp, which is the link.
    let outside = tempfile::tempdir_in("/var/tmp").unwrap();
    let root = program.path().parent().unwrap().to_owned();
    let inside = root.join(outside.path().strip_prefix("/").unwrap());
    std::fs::create_dir_all(&inside).unwrap();
    std::os::unix::fs::symlink(outside.path(), root.join("tmp")).unwrap();
    let mut running = program.start_in(&root);
    running.wait_blocked(1, BLOCKING);
    running.write_byte();
    let map = format!("perf-{}.map", running.pid());
    native_process::wait_for("the map is written", || {
        std::fs::metadata(inside.join(&map)).is_ok_and(|metadata| metadata.len() > 0)
    });
    running.wait_blocked(1, BLOCKING);
    let text = std::fs::read_to_string(inside.join(&map)).unwrap();
    let foreign = text.replace("script::handler", "foreign");
    std::fs::write(outside.path().join(&map), foreign).unwrap();
    let start = text.split(' ').next().unwrap();
    let stack = Stack {
        frames: vec![AddrFrame::Native(u64::from_str_radix(start, 16).unwrap())],
        end: UnwindEnd::Root,
    };
    let process = running.process();
    let named = symbolizer().symbolize(&process, &stack, &mut Coverage::default());
    assert_eq!(signatures(&named), ["script::handler main.js:7 [jit]"]);
}

/// Check that a program that was deleted while it runs keeps its frames and names.
#[test]
fn a_deleted_program_has_names() {
    let program = Program::build("chain.c", &[]);
    let running = program.start(&["read"]);
    running.wait_blocked(2, BLOCKING);
    std::fs::remove_file(program.path()).unwrap();
    let mut process = running.process();
    let mut losses = Coverage::default();
    for truth in running.ask_gdb().values() {
        let stack = stack_of(
            &running,
            &mut process,
            truth,
            &mut symbolizer(),
            &mut losses,
        );
        let mut signatures = signatures(&stack);
        // Those of the C library, if it has debug information here.
        signatures.retain(|signature| !signature.contains(" (inlined) "));
        let link = |n: usize| format!("link{n} (chain)");
        assert_eq!(signatures[2], link(10), "{signatures:#?}");
        assert_eq!(signatures[11], link(1), "{signatures:#?}");
        assert_eq!(stack.end, UnwindEnd::Root);
    }
}

/// Check that an object that is cut short while its symbols are in use costs names at most.
#[test]
fn a_truncated_object_does_no_harm() {
    let program = Program::build("chain.c", &[]);
    let running = program.start(&["read"]);
    running.wait_blocked(2, BLOCKING);
    // The running file is busy; a copy stands for a library that its owner overwrites.
    let copy = program.path().with_extension("so");
    std::fs::copy(program.path(), &copy).unwrap();
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&copy).unwrap());
    let line = format!("1000-9000 r-xp 00001000 00:00 {inode} {}\n", copy.display());
    let mappings = profiler_daemon::process::Mappings::parse(line.as_bytes()).unwrap();
    let gone = profiler_daemon::model::ProcessKey {
        pid: profiler_daemon::model::Pid(u32::MAX),
        start_ticks: 0,
    };
    let process = Process::with_mappings(gone, mappings);
    let mut symbolizer = symbolizer();
    let mut losses = Coverage::default();
    let stack = |addresses: std::ops::Range<u64>| Stack {
        frames: addresses.step_by(64).map(AddrFrame::Native).collect(),
        end: UnwindEnd::Root,
    };
    let before = symbolizer.symbolize(&process, &stack(0x1000..0x1800), &mut losses);
    let link = |stack: &Stack<Frame>| signatures(stack).iter().any(|name| name.contains("link"));
    assert!(link(&before), "{:#?}", signatures(&before));
    std::fs::File::options()
        .write(true)
        .open(&copy)
        .unwrap()
        .set_len(64)
        .unwrap();
    symbolizer.symbolize(&process, &stack(0x1010..0x1810), &mut losses);
    symbolizer.release();
    let after = symbolizer.symbolize(&process, &stack(0x1000..0x1800), &mut losses);
    assert!(!link(&after));
}

/// Check that every frame without a name is counted, each time, and that a stack that is too deep is.
#[test]
fn losses_are_counted() {
    let pid = profiler_daemon::model::Pid(std::process::id());
    let process = Process::open(pid).unwrap();
    let mut symbolizer = symbolizer();
    let stack = |count: usize, end| Stack {
        frames: vec![AddrFrame::Native(8); count],
        end,
    };
    let mut losses = Coverage::default();
    for end in [UnwindEnd::Root, UnwindEnd::StackCut] {
        let named = symbolizer.symbolize(&process, &stack(3, end), &mut losses);
        assert_eq!(signatures(&named), ["[unknown]"; 3]);
        assert_eq!(named.end, end);
    }
    assert_eq!(losses.get(Counter::FramesUnknown), 6);
    let deep = symbolizer.symbolize(&process, &stack(900, UnwindEnd::Root), &mut losses);
    assert_eq!(deep.frames.len(), STACK_FRAMES_MAX);
    assert_eq!(losses.get(Counter::StacksTooDeep), 1);
}

/// Check that kernel addresses have names, in brackets.
#[test]
fn kernel_frames_have_names() {
    let text = std::fs::read_to_string("/proc/kallsyms").unwrap();
    let line = text.lines().find(|line| line.ends_with(" t do_nanosleep"));
    let address = line.unwrap().split(' ').next().unwrap();
    let address = u64::from_str_radix(address, 16).unwrap();
    let process = Process::open(profiler_daemon::model::Pid(std::process::id())).unwrap();
    let stack = Stack {
        frames: vec![AddrFrame::Kernel(address + 1)],
        end: UnwindEnd::Root,
    };
    let mut losses = Coverage::default();
    let named = symbolizer().symbolize(&process, &stack, &mut losses);
    if address == 0 {
        assert_eq!(signatures(&named), ["[kernel]"]);
        assert_eq!(losses.notes().count(), 1);
    } else {
        assert_eq!(signatures(&named), ["do_nanosleep [kernel]"]);
        assert_eq!(losses, Coverage::default());
    }
}
