//! Stacks of real processes as files: everything that finding their frames reads, and nothing else.
//!
//! In:  the text of a recording, by the program `record_stack`
//! Out: the frames as text, as the daemon finds them, on any architecture
//!
//! ```text
//! arch NAME
//! version HEX                      PY_VERSION_HEX
//! runtime ADDRESS                  _PyRuntime
//! loop START END                   the interpreter loop, a line for each part
//! thread TID
//! regs WORD...                     in the order of struct pt_regs
//! sp ADDRESS
//! object NAME BYTES                a mapped file and its size
//! mapping START END OFFSET NAME    an executable mapping of it
//! name ADDRESS TEXT                a native frame, by the file's symbols
//! memory ADDRESS HEX               of the process
//! bytes NAME OFFSET HEX            of a file: its headers and the unwind information of the frames
//! ```
//! All numbers but the size are hexadecimal. What is not there is zero in a file and unreadable in memory.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Error, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

use anyhow::{Context, Result, bail};
use profiler_common::REGS_MAX;
use profiler_daemon::model::{AddrFrame, Captured, Counter, Coverage, Pid, ProcessKey, StackBytes};
use profiler_daemon::process::python::{
    CodeSignature, DEBUG_OFFSETS_BYTES, Layout, PythonNamer, PythonRuntime, PythonVersion,
};
use profiler_daemon::process::{Mappings, Process, ReadMemory};
use profiler_daemon::unwind::merge::merge;
use profiler_daemon::unwind::python::walk_chain;
use profiler_daemon::unwind::{AARCH64, Arch, NativeUnwinder, X86_64};

/// A process that is not there.
const NOBODY: ProcessKey = ProcessKey {
    pid: Pid(u32::MAX >> 2),
    start_ticks: 0,
};

/// Where an object is mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedAt {
    /// Addresses.
    pub range: Range<u64>,
    /// Offset of the first byte in the file.
    pub offset: u64,
    /// Name of the object.
    pub object: String,
}

/// A part of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SparseFile {
    /// Size in bytes.
    pub bytes: u64,
    /// Contents by offset.
    pub parts: BTreeMap<u64, Vec<u8>>,
}

/// A stack with all that it was found by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    /// `x86_64` or `aarch64`.
    pub arch: String,
    /// `PY_VERSION_HEX`.
    pub version: u64,
    /// Address of `_PyRuntime`.
    pub runtime: u64,
    /// The interpreter loop.
    pub loops: Vec<Range<u64>>,
    /// The thread's id.
    pub thread: u32,
    /// Registers in the order of `struct pt_regs`.
    pub regs: Vec<u64>,
    /// The stack pointer among them.
    pub sp: u64,
    /// Files by name.
    pub objects: BTreeMap<String, SparseFile>,
    /// Executable mappings.
    pub mappings: Vec<MappedAt>,
    /// Names of native frames.
    pub names: BTreeMap<u64, String>,
    /// Memory by address.
    pub memory: BTreeMap<u64, Vec<u8>>,
}

impl Recording {
    /// Reads the text of a recording.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self> {
        let mut this = Self::default();
        for line in text.lines() {
            this.add_line(line).with_context(|| line.to_owned())?;
        }
        Ok(this)
    }

    fn add_line(&mut self, line: &str) -> Result<()> {
        let mut words = line.split(' ');
        let mut word = || words.next().context("a word is missing");
        let kind = word()?;
        match kind {
            "arch" => self.arch = word()?.to_owned(),
            "version" => self.version = number(word()?)?,
            "runtime" => self.runtime = number(word()?)?,
            "loop" => self.loops.push(number(word()?)?..number(word()?)?),
            "thread" => self.thread = u32::try_from(number(word()?)?)?,
            "regs" => {
                self.regs = words.map(number).collect::<Result<_>>()?;
            }
            "sp" => self.sp = number(word()?)?,
            "object" => {
                let name = word()?.to_owned();
                self.objects.entry(name).or_default().bytes = word()?.parse()?;
            }
            "mapping" => self.mappings.push(MappedAt {
                range: number(word()?)?..number(word()?)?,
                offset: number(word()?)?,
                object: word()?.to_owned(),
            }),
            "name" => {
                let address = number(word()?)?;
                let text: Vec<&str> = words.collect();
                self.names.insert(address, text.join(" "));
            }
            "memory" => {
                self.memory.insert(number(word()?)?, bytes(word()?)?);
            }
            "bytes" => {
                let object = self.objects.entry(word()?.to_owned()).or_default();
                object.parts.insert(number(word()?)?, bytes(word()?)?);
            }
            other => bail!("{other:?} begins no line of a recording"),
        }
        Ok(())
    }

    /// The text of the recording.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |line: std::fmt::Arguments<'_>| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{line}");
        };
        line(format_args!("arch {}", self.arch));
        line(format_args!("version {:x}", self.version));
        line(format_args!("runtime {:x}", self.runtime));
        for Range { start, end } in &self.loops {
            line(format_args!("loop {start:x} {end:x}"));
        }
        line(format_args!("thread {:x}", self.thread));
        let regs: Vec<String> = self.regs.iter().map(|word| format!("{word:x}")).collect();
        line(format_args!("regs {}", regs.join(" ")));
        line(format_args!("sp {:x}", self.sp));
        for (name, object) in &self.objects {
            line(format_args!("object {name} {}", object.bytes));
        }
        for MappedAt {
            range,
            offset,
            object,
        } in &self.mappings
        {
            let Range { start, end } = range;
            line(format_args!(
                "mapping {start:x} {end:x} {offset:x} {object}"
            ));
        }
        for (address, name) in &self.names {
            line(format_args!("name {address:x} {name}"));
        }
        for (address, bytes) in &self.memory {
            line(format_args!("memory {address:x} {}", hex(bytes)));
        }
        for (name, object) in &self.objects {
            for (offset, bytes) in &object.parts {
                line(format_args!("bytes {name} {offset:x} {}", hex(bytes)));
            }
        }
        text
    }

    /// Finds the frames again, one a line, innermost first.
    ///
    /// # Errors
    /// The recording contradicts itself.
    pub fn frames(&self) -> Result<String> {
        let arch: &'static Arch = match self.arch.as_str() {
            "x86_64" => &X86_64,
            "aarch64" => &AARCH64,
            other => bail!("unknown architecture {other}"),
        };
        let folder = tempfile::tempdir()?;
        let mut process = Process::with_mappings(NOBODY, self.map_into(&folder)?);
        let captured = Captured {
            regs: <[u64; REGS_MAX]>::try_from(&*self.regs).context("registers are missing")?,
            stack: StackBytes {
                sp: self.sp,
                skipped: 0,
                bytes: Vec::new(),
                cut: true,
            },
            kernel_frames: Vec::new(),
            python: None,
        };
        let memory = Parts(&self.memory);
        let mut unwinder = NativeUnwinder::for_arch(arch);
        let native = unwinder.unwind(&mut process, &captured, Some(&memory));
        let runtime = self.python(&memory)?;
        let chain = walk_chain(&memory, &runtime, self.thread);
        let merged = merge(
            &native.addresses(),
            native.end,
            &[],
            Some((&chain, &runtime)),
        );
        let mut namer = PythonNamer::new(CodeSignature::Function);
        let mut losses = Coverage::default();
        let mut text = String::new();
        for frame in merged.frames {
            match frame {
                AddrFrame::Native(address) => {
                    let name = self.names.get(&address).map_or("?", String::as_str);
                    writeln!(text, "native {name}")?;
                }
                AddrFrame::Python(python) => {
                    if let Some(frame) = namer.frame(&memory, &runtime, python, &mut losses) {
                        writeln!(text, "python {}", frame.signature)?;
                    }
                }
                AddrFrame::Kernel(_) => bail!("a kernel frame that was not recorded"),
            }
        }
        let fits = if merged.mismatch { "no" } else { "yes" };
        writeln!(text, "end {:?}, walks fit: {fits}", native.end)?;
        for counter in Counter::all().filter(|&counter| losses.get(counter) > 0) {
            writeln!(text, "lost {} {}", counter.name(), losses.get(counter))?;
        }
        Ok(text)
    }

    /// Lays the files into a folder and yields where they are mapped.
    fn map_into(&self, folder: &tempfile::TempDir) -> Result<Mappings> {
        let mut inodes = BTreeMap::new();
        for (name, object) in &self.objects {
            let file = File::create(folder.path().join(name))?;
            file.set_len(object.bytes)?;
            for (&offset, bytes) in &object.parts {
                file.write_all_at(bytes, offset)?;
            }
            inodes.insert(name, file.metadata()?.ino());
        }
        let mut maps = String::new();
        for at in &self.mappings {
            let Range { start, end } = at.range;
            let inode = inodes.get(&at.object).context("a mapping of no object")?;
            let path = folder.path().join(&at.object);
            let (offset, path) = (at.offset, path.display());
            writeln!(
                maps,
                "{start:x}-{end:x} r-xp {offset:x} 00:00 {inode} {path}"
            )?;
        }
        Ok(Mappings::parse(maps.as_bytes())?)
    }

    fn python(&self, memory: &dyn ReadMemory) -> Result<PythonRuntime> {
        let version = PythonVersion::from_hex(self.version);
        let layout = Layout::from_table(version).or_else(|_| {
            let mut bytes = [0; DEBUG_OFFSETS_BYTES];
            // Without them the bytes are not what they should be, which is an error.
            let _ = memory.read_exact(self.runtime, &mut bytes);
            Layout::from_debug_offsets(version, &bytes)
        })?;
        Ok(PythonRuntime {
            process: NOBODY,
            version,
            runtime: self.runtime,
            offsets: layout.offsets,
            code: layout.code,
            loop_ranges: self.loops.clone(),
        })
    }
}

/// Memory of which parts are known.
struct Parts<'p>(&'p BTreeMap<u64, Vec<u8>>);

impl ReadMemory for Parts<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Error> {
        let mut done = 0;
        while done < buffer.len() {
            let at = address.wrapping_add(done as u64);
            let part = self.0.range(..=at).next_back();
            let rest = part.and_then(|(start, bytes)| bytes.get((at - start) as usize..));
            let Some(rest) = rest.filter(|rest| !rest.is_empty()) else {
                break;
            };
            let count = rest.len().min(buffer.len() - done);
            buffer[done..done + count].copy_from_slice(&rest[..count]);
            done += count;
        }
        if done == 0 {
            return Err(Error::from(ErrorKind::InvalidInput));
        }
        Ok(done)
    }
}

fn number(word: &str) -> Result<u64> {
    Ok(u64::from_str_radix(word, 16)?)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Result<Vec<u8>> {
    let pairs = (0..hex.len()).step_by(2);
    pairs
        .map(|at| {
            let pair = hex.get(at..at + 2).context("half a byte")?;
            Ok(u8::from_str_radix(pair, 16)?)
        })
        .collect()
}
