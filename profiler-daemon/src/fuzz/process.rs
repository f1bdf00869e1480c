//! A process that is what its owner wants it to be: its objects, its stack, its interpreter.

use std::fs::{self, File};
use std::io::{Error, ErrorKind};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use profiler_common::REGS_MAX;

use crate::kernel::{IP, SP};
use crate::model::{Captured, Coverage, Pid, ProcessKey, PythonRef, StackBytes, UnwindEnd};
use crate::process::elf::ElfLayout;
use crate::process::image::{Headers, PF_W, PF_X, PT_LOAD, Segment};
use crate::process::object::ObjectFile;
use crate::process::poll_call::polled;
use crate::process::python::{
    CodeNames, CodeSignature, DEBUG_OFFSETS_BYTES, Layout, PythonNamer, PythonRuntime,
    PythonVersion, read_methods,
};
use crate::process::{Process, ReadMemory};
use crate::symbolize::{DebugInfo, Symbolizer, shown_symbol};
use crate::unwind::Unwinder;
use crate::unwind::merge::merge;
use crate::unwind::python::walk_chain;

/// Where the made-up stack lies; nothing else does.
const STACK: u64 = 0x7000_0000_0000;
/// Bytes of registers and stack in front of an object.
const THREAD_BYTES: usize = 512;

/// `512 bytes of registers and stack | an ELF file`, which is mapped into this process as a library of
/// CPython. Its unwind information, symbols and interpreter are looked for.
pub fn object(data: &[u8]) {
    let Some((thread, elf)) = data.split_at_checked(THREAD_BYTES) else {
        return;
    };
    let pid = Pid(std::process::id());
    let Ok(mapped) = MappedFile::new(elf) else {
        return;
    };
    let Ok(mut process) = Process::open(pid) else {
        return;
    };
    let mut captured = captured(thread, &mapped.range());
    name_frames(&mut process, &mut captured);
    let _ = PythonRuntime::detect(pid);
}

/// `registers | memory`, which begins at address 0: of a thread that may be blocked in `poll` or `select`. What it waits for is
/// looked for.
pub fn wait_sets(data: &[u8]) {
    let mut regs = [0; REGS_MAX];
    let mut words = data.chunks_exact(8);
    for (reg, word) in regs.iter_mut().zip(&mut words) {
        *reg = u64::from_le_bytes(word.try_into().unwrap_or_default());
    }
    let memory = ObjectFile::from_image(data.get(8 * REGS_MAX..).unwrap_or_default().to_vec());
    let _ = polled(&regs, &memory);
}

/// An ELF file. The functions inlined at its addresses are looked for.
pub fn debug_info(data: &[u8]) {
    let object = ObjectFile::from_image(data.to_vec());
    let Ok(layout) = ElfLayout::read(&object) else {
        return;
    };
    let Ok(Some(mut info)) = DebugInfo::open(object, &layout) else {
        return;
    };
    for address in (0x40_0000..0x40_0200).step_by(8).chain([0, u64::MAX]) {
        let _ = info.inlined_at(address);
    }
}

/// A symbol of an object.
pub fn symbol_name(data: &[u8]) {
    let _ = shown_symbol(&String::from_utf8_lossy(data));
}

/// Registers and stack of a thread that runs the code of this program.
pub fn stack(data: &[u8]) {
    let Ok(mut process) = Process::open(Pid(std::process::id())) else {
        return;
    };
    let here = stack as *const () as u64;
    let Some(code) = process.mappings.find(here).map(|m| m.start..m.end) else {
        return;
    };
    let mut captured = captured(data, &code);
    Unwinder::default().unwind(&mut process, &mut captured, &mut Coverage::default());
}

fn name_frames(process: &mut Process, captured: &mut Captured) {
    let mut losses = Coverage::default();
    let stack = Unwinder::default().unwind(process, captured, &mut losses);
    let mut symbolizer = Symbolizer::new(CodeSignature::Line);
    symbolizer.symbolize(process, &stack, &mut losses);
}

/// Words for the registers, the rest is stack. A word that begins with 0xc0 becomes an address in `code`,
/// one that begins with 0xb0 an address in the stack: numbers alone would never meet either.
fn captured(data: &[u8], code: &Range<u64>) -> Captured {
    let place = |word: u64| match word >> 56 {
        0xc0 => code.start + (word & 0xff_ffff_ffff) % (code.end - code.start).max(1),
        0xb0 => STACK + (word & 0xffff),
        _ => word,
    };
    let mut words = data.chunks_exact(8).map(|chunk| {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        place(u64::from_le_bytes(word))
    });
    let mut regs = [0; REGS_MAX];
    for (register, word) in regs.iter_mut().zip(&mut words) {
        *register = word;
    }
    regs[SP] = STACK;
    if !code.contains(&regs[IP]) {
        regs[IP] = code.start;
    }
    Captured {
        regs,
        stack: StackBytes {
            sp: STACK,
            skipped: 0,
            bytes: words.flat_map(u64::to_ne_bytes).collect(),
            cut: true,
        },
        kernel_frames: Vec::new(),
        python: None,
    }
}

/// Bytes that are mapped for execution, from a file that is removed in the end.
struct MappedFile {
    folder: PathBuf,
    map: memmap2::Mmap,
}

impl MappedFile {
    fn new(bytes: &[u8]) -> Result<Self, Error> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "profilerd-fuzz-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder)?;
        let path = folder.join("libpython3.12.so.1.0");
        let mapped = fs::write(&path, bytes).and_then(|()| {
            // SAFETY: nobody else knows the file, so that it does not change; nothing is executed.
            unsafe { memmap2::MmapOptions::new().map_exec(&File::open(&path)?) }
        });
        match mapped {
            Ok(map) => Ok(Self { folder, map }),
            Err(error) => {
                let _ = fs::remove_dir_all(&folder);
                Err(error)
            }
        }
    }

    fn range(&self) -> Range<u64> {
        let start = self.map.as_ptr() as u64;
        start..start + self.map.len() as u64
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// `minor version u8 | 81 words of offsets | memory`: an interpreter whose every address can be read.
pub fn python_memory(data: &[u8]) {
    let Some((&minor, rest)) = data.split_first() else {
        return;
    };
    let version = PythonVersion {
        major: 3,
        minor: 11 + minor % 4,
        micro: 0,
    };
    let Some((offsets, memory)) = rest.split_first_chunk::<DEBUG_OFFSETS_BYTES>() else {
        return;
    };
    let layout =
        Layout::from_table(version).or_else(|_| Layout::from_debug_offsets(version, offsets));
    let Ok(layout) = layout else {
        return;
    };
    let memory = Wrapped(memory);
    let runtime = PythonRuntime {
        process: ProcessKey {
            pid: Pid(1),
            start_ticks: 0,
        },
        version,
        runtime: 0,
        offsets: layout.offsets,
        code: layout.code,
        loop_ranges: std::iter::once(0..1 << 62).collect(),
    };
    let chain = walk_chain(&memory, &runtime, u32::from(minor));
    let merged = merge(
        &[0x1000, 0x2000],
        UnwindEnd::Root,
        &[1],
        Some((&chain, &runtime)),
    );
    assert!(merged.frames.len() <= chain.frames.len() + 3);
    let mut losses = Coverage::default();
    let mut namer = PythonNamer::new(CodeSignature::Line);
    let mut codes = CodeNames::default();
    for frame in chain.frames.iter().take(64) {
        let python = PythonRef {
            code: frame.code,
            instr: frame.instr,
            identity: frame.identity,
        };
        namer.frame(&memory, &runtime, python, &mut losses);
        let _ = codes.line(&memory, &runtime, python);
    }
}

/// The writable segment of an interpreter's image, at [`IMAGE`]: arrays of methods and what points at them.
pub fn python_methods(data: &[u8]) {
    let segment = |flags, address, bytes| Segment {
        kind: PT_LOAD,
        flags,
        address,
        bytes,
    };
    let end = IMAGE + data.len() as u64;
    let segments = vec![
        segment(PF_X, CODE, IMAGE - CODE),
        segment(PF_W, IMAGE, end - IMAGE),
    ];
    let names = read_methods(&Placed(data), &Headers::of(CODE..end, segments));
    assert!(names.len() <= data.len() / 32);
}

/// Where the code of the made-up image lies.
const CODE: u64 = 0x1_0000;
/// Where its data lie.
const IMAGE: u64 = 0x2_0000;

/// Bytes from [`IMAGE`] on.
struct Placed<'a>(&'a [u8]);

impl ReadMemory for Placed<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Error> {
        let at = address.checked_sub(IMAGE).map(|at| at as usize);
        let bytes = at.and_then(|at| self.0.get(at..)).unwrap_or_default();
        if bytes.is_empty() {
            return Err(Error::from(ErrorKind::InvalidInput));
        }
        let n = bytes.len().min(buffer.len());
        buffer[..n].copy_from_slice(&bytes[..n]);
        Ok(n)
    }
}

/// Bytes that repeat over all positive addresses.
struct Wrapped<'a>(&'a [u8]);

impl ReadMemory for Wrapped<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Error> {
        if self.0.is_empty() || address.cast_signed() < 0 {
            return Err(Error::from(ErrorKind::InvalidInput));
        }
        let start = (address % self.0.len() as u64) as usize;
        let bytes = self.0.iter().cycle().skip(start);
        for (to, from) in buffer.iter_mut().zip(bytes) {
            *to = *from;
        }
        Ok(buffer.len())
    }
}
