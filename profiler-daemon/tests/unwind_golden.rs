//! Recorded registers, memory and object -> the expected stack as text.
//!
//! The recording is a program without libraries (`fixtures/freestanding.c`) that waits inside a signal
//! handler. `PROFILERD_RECORD=1` records it again; read the difference before it is committed.
//!
//! ```text
//! mapping START END OFFSET       executable mapping of the object
//! regs WORD...                   in the order of struct pt_regs
//! memory ADDRESS HEX             a line each, lines of zeros left out
//! object HEX                     the ELF file, a line for each 32 bytes
//! ```

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]
#![cfg(target_arch = "x86_64")]

mod native_process;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use native_process::{Program, STACK_BYTES, capture, fixture, pcs};
use profiler_common::REGS_MAX;
use profiler_daemon::model::{
    AddrFrame, Captured, Coverage, Pid, ProcessKey, Stack, StackBytes, UnwindEnd,
};
use profiler_daemon::process::python::CodeSignature;
use profiler_daemon::process::{Mappings, Process, ReadMemory};
use profiler_daemon::symbolize::Symbolizer;
use profiler_daemon::unwind::NativeUnwinder;

const LINE_BYTES: usize = 32;
const FLAGS: &[&str] = &[
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none,-z,noseparate-code",
];

fn path() -> PathBuf {
    fixture("freestanding.recording")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex
        .chars()
        .map(|digit| digit.to_digit(16).unwrap())
        .collect();
    digits
        .chunks(2)
        .map(|pair| (pair[0] * 16 + pair[1]) as u8)
        .collect()
}

/// Runs the program and writes down what unwinding needs, and the stripped-down object.
fn record() {
    let program = Program::build("freestanding.c", FLAGS);
    let running = program.start(&[]);
    running.wait_blocked(1, &[libc::SYS_pause]);
    let truth = running.ask_gdb().into_values().next().unwrap();
    let process = running.process();
    let object = std::fs::read(program.path()).unwrap();
    let mut text = String::new();
    for mapping in process.mappings.as_slice() {
        if mapping.file_name() == "freestanding" {
            let (start, end) = (mapping.start, mapping.end);
            writeln!(text, "mapping {start:x} {end:x} {:x}", mapping.file_offset).unwrap();
            let mut code = vec![0; (end - start) as usize];
            process.memory.read_exact(start, &mut code).unwrap();
            write_memory(&mut text, start, &code);
        }
    }
    let regs: Vec<String> = truth.regs.iter().map(|word| format!("{word:x}")).collect();
    writeln!(text, "regs {}", regs.join(" ")).unwrap();
    // The frames end where the arguments and the environment of the process begin.
    let captured = capture(running.pid(), &truth.regs, STACK_BYTES);
    let root = truth.pcs.last().unwrap();
    let words = captured.stack.bytes.chunks_exact(8);
    let end = words.clone().position(|word| word == root.to_ne_bytes());
    let end = end.expect("the root is on the stack") * 8 + 8;
    write_memory(&mut text, captured.stack.sp, &captured.stack.bytes[..end]);
    for line in object.chunks(LINE_BYTES) {
        writeln!(text, "object {}", hex(line)).unwrap();
    }
    std::fs::write(path(), text).unwrap();
}

fn write_memory(text: &mut String, start: u64, bytes: &[u8]) {
    for (index, line) in bytes.chunks(LINE_BYTES).enumerate() {
        if line.iter().any(|&byte| byte != 0) {
            let address = start + (index * LINE_BYTES) as u64;
            writeln!(text, "memory {address:x} {}", hex(line)).unwrap();
        }
    }
}

/// Memory by lines; between the first and the last address, what is not written down is zero.
#[derive(Default)]
struct Recorded {
    lines: BTreeMap<u64, Vec<u8>>,
}

impl ReadMemory for Recorded {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Error> {
        let near = |line: u64| line.abs_diff(address) < 0x1000;
        if !self.lines.keys().any(|&line| near(line)) {
            return Err(Error::from(ErrorKind::InvalidInput));
        }
        for (at, byte) in (address..).zip(buffer.iter_mut()) {
            let line = self.lines.range(..=at).next_back();
            let found = line.and_then(|(start, line)| line.get((at - start) as usize));
            *byte = found.copied().unwrap_or(0);
        }
        Ok(buffer.len())
    }
}

/// The code alone.
struct Code<'r>(&'r Recorded);

impl ReadMemory for Code<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Error> {
        if address > u64::from(u32::MAX) {
            return Err(Error::from(ErrorKind::InvalidInput));
        }
        self.0.read(address, buffer)
    }
}

struct Recording {
    directory: tempfile::TempDir,
    process: Process,
    regs: [u64; REGS_MAX],
    memory: Recorded,
}

impl Recording {
    fn load() -> Self {
        let text = std::fs::read_to_string(path()).unwrap();
        let number = |word: &str| u64::from_str_radix(word, 16).unwrap();
        let mut regs = [0; REGS_MAX];
        let mut memory = Recorded::default();
        let mut mapping = Vec::new();
        let mut object = Vec::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[0] {
                "mapping" => mapping.extend(words[1..].iter().map(|word| number(word))),
                "regs" => {
                    for (register, word) in regs.iter_mut().zip(&words[1..]) {
                        *register = number(word);
                    }
                }
                "memory" => {
                    memory.lines.insert(number(words[1]), bytes(words[2]));
                }
                "object" => object.extend(bytes(words[1])),
                other => panic!("{other}"),
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("freestanding");
        std::fs::write(&file, object).unwrap();
        let inode = std::fs::metadata(&file).unwrap().ino();
        let line = format!(
            "{:x}-{:x} r-xp {:x} 00:00 {inode} {}\n",
            mapping[0],
            mapping[1],
            mapping[2],
            file.display()
        );
        let mappings = Mappings::parse(line.as_bytes()).unwrap();
        let gone = ProcessKey {
            pid: Pid(u32::MAX),
            start_ticks: 0,
        };
        Self {
            directory,
            process: Process::with_mappings(gone, mappings),
            regs,
            memory,
        }
    }

    /// The stack as text, root last. `stack_bytes` are copied; of the rest, only code is readable
    /// unless `stack_is_live`.
    fn stack(&mut self, stack_bytes: usize, stack_is_live: bool) -> (String, UnwindEnd) {
        let sp = self.regs[19];
        let mut copied = vec![0; stack_bytes];
        self.memory.read_exact(sp, &mut copied).unwrap();
        let captured = Captured {
            regs: self.regs,
            stack: StackBytes {
                sp,
                skipped: 0,
                bytes: copied,
                cut: true,
            },
            kernel_frames: Vec::new(),
            python: None,
        };
        let code = Code(&self.memory);
        let beyond: &dyn ReadMemory = if stack_is_live { &self.memory } else { &code };
        let unwound = NativeUnwinder::new().unwind(&mut self.process, &captured, Some(beyond));
        let addresses = unwound.addresses().into_iter();
        let stack = Stack {
            frames: addresses.map(AddrFrame::Native).collect(),
            end: unwound.end,
        };
        let mut symbolizer = Symbolizer::new(CodeSignature::Function);
        let named = symbolizer.symbolize(&self.process, &stack, &mut Coverage::default());
        let lines = named.frames.iter().zip(&unwound.frames);
        let lines = lines.map(|(name, frame)| {
            let mark = if frame.is_exact { " exact" } else { "" };
            format!("{:x} {}{mark}\n", frame.address, name.signature)
        });
        (lines.collect(), unwound.end)
    }
}

/// Check that the recorded stack is found: handler, the code it returns to, the instruction that
/// faulted, and its callers up to the root.
#[test]
fn a_recorded_stack_has_the_expected_frames() {
    if std::env::var_os("PROFILERD_RECORD").is_some() {
        record();
    }
    let mut recording = Recording::load();
    assert!(recording.directory.path().exists());
    let (text, end) = recording.stack(256, true);
    insta::assert_snapshot!(text, @"
    400125 wait_here (freestanding) exact
    400137 handler (freestanding)
    4000f0 __restore_rt (freestanding) exact
    40015e faulting (freestanding) exact
    400190 middle (freestanding)
    4001c3 outer (freestanding)
    400235 begin (freestanding)
    400101 _start (freestanding)
    ");
    assert_eq!(end, UnwindEnd::Root);
}

/// Check that with ever fewer bytes the stack loses frames at its root only, and says why.
#[test]
fn a_shorter_copy_loses_the_root_only() {
    let mut recording = Recording::load();
    let (whole, _) = recording.stack(256, true);
    let mut last = usize::MAX;
    for stack_bytes in (8..2048).rev().step_by(8) {
        let (text, end) = recording.stack(stack_bytes, false);
        assert!(whole.starts_with(&text), "{stack_bytes}: {text}");
        assert!(text.len() <= last);
        last = text.len();
        match end {
            UnwindEnd::Root => assert_eq!(text, whole),
            end => assert_eq!(end, UnwindEnd::Unreadable),
        }
    }
    // The leaf, and its caller by the one word that is left.
    assert_eq!(whole[..last].lines().count(), 2);
}

/// Check that the program, while it runs, has gdb's frames.
#[test]
fn the_recorded_program_equals_gdb() {
    let program = Program::build("freestanding.c", FLAGS);
    let running = program.start(&[]);
    running.wait_blocked(1, &[libc::SYS_pause]);
    let truth = running.ask_gdb().into_values().next().unwrap();
    let mut process = running.process();
    let captured = capture(running.pid(), &truth.regs, STACK_BYTES);
    let unwound = NativeUnwinder::new().unwind(&mut process, &captured, None);
    assert_eq!(pcs(&unwound), truth.pcs, "{:?}", truth.names);
    assert_eq!(unwound.end, UnwindEnd::Root);
}
