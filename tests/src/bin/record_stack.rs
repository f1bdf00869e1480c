//! Runs `tests/services/golden_stack.py` and prints the stack it blocks in as a recording.
//!
//! ```text
//! record_stack PYTHON [PREFIX]       PREFIX stands before each line
//! ```
//! `cargo xtask golden` keeps what it prints in `tests/golden`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Error};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use profiler_common::REGS_MAX;
use profiler_daemon::kernel::SP;
use profiler_daemon::model::{AddrFrame, Captured, Coverage, Pid, Stack, StackBytes, UnwindEnd};
use profiler_daemon::process::python::{
    CodeSignature, DEBUG_OFFSETS_BYTES, PythonNamer, PythonRuntime,
};
use profiler_daemon::process::{Process, ProcessMemory, ReadMemory};
use profiler_daemon::symbolize::Symbolizer;
use profiler_daemon::unwind::NativeUnwinder;
use profiler_daemon::unwind::merge::merge;
use profiler_daemon::unwind::python::walk_chain;
use profiler_tests::recording::{MappedAt, Recording, SparseFile};
use profiler_tests::{ChildGuard, wait_until, workspace_root};

const DEADLINE: Duration = Duration::from_secs(60);
/// Recordings do not show where they were made.
const FOLDER: &str = "/tmp/golden";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (python, prefix) = match words.as_slice() {
        [python] => (python, ""),
        [python, prefix] => (python, prefix.as_str()),
        _ => bail!("usage: record_stack PYTHON [PREFIX]"),
    };
    let recording = record(Path::new(python))?;
    for line in recording.to_text().lines() {
        println!("{prefix}{line}");
    }
    Ok(())
}

fn record(python: &Path) -> Result<Recording> {
    fs::create_dir_all(FOLDER)?;
    let script = Path::new(FOLDER).join("golden_stack.py");
    fs::copy(
        workspace_root().join("tests/services/golden_stack.py"),
        &script,
    )?;
    let mut command = Command::new(python);
    command.arg(&script).current_dir(FOLDER);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = ChildGuard::spawn("python", &mut command)?;
    let stdout = child.process().stdout.take().context("stdout is a pipe")?;
    BufReader::new(stdout).read_line(&mut String::new())?;
    let pid = Pid(child.id());
    // Number and arguments of the system call: `read` of descriptor 0.
    let blocked = format!("{} 0x0 ", libc::SYS_read);
    wait_until("the read", DEADLINE, || {
        let call = fs::read_to_string(format!("/proc/{pid}/syscall"))?;
        Ok(call.starts_with(&blocked).then_some(()))
    })?;

    let regs = registers(pid)?;
    let mut process = Process::open(pid)?;
    let runtime = PythonRuntime::detect(pid)?.context("it is no CPython")?;
    let memory = Reads::new(pid);
    let captured = Captured {
        regs,
        stack: StackBytes {
            sp: regs[SP],
            skipped: 0,
            bytes: Vec::new(),
            cut: true,
        },
        kernel_frames: Vec::new(),
        python: None,
    };
    let native = NativeUnwinder::new().unwind(&mut process, &captured, Some(&memory));
    ensure!(
        native.end == UnwindEnd::Root,
        "the stack ends early: {:?}",
        native.end
    );
    let _ = memory.read_exact(runtime.runtime, &mut [0; DEBUG_OFFSETS_BYTES]);
    let chain = walk_chain(&memory, &runtime, pid.0);
    let addresses = native.addresses();
    let merged = merge(&addresses, native.end, &[], Some((&chain, &runtime)));
    ensure!(!merged.mismatch, "the walks do not fit: {chain:?}");
    let mut namer = PythonNamer::new(CodeSignature::Function);
    let mut symbolizer = Symbolizer::new(CodeSignature::Function);
    let mut losses = Coverage::default();
    let mut names = BTreeMap::new();
    for frame in merged.frames {
        match frame {
            AddrFrame::Python(frame) => {
                namer.frame(&memory, &runtime, frame, &mut losses);
            }
            native => {
                let stack = Stack {
                    frames: vec![native],
                    end: UnwindEnd::Root,
                };
                let named = symbolizer.symbolize(&process, &stack, &mut losses);
                let text: Vec<&str> = named.frames.iter().map(|f| &*f.signature).collect();
                if let AddrFrame::Native(address) = native {
                    names.insert(address, text.join(", in "));
                }
            }
        }
    }
    let mut recording = Recording {
        arch: std::env::consts::ARCH.to_owned(),
        version: version_hex(&runtime),
        runtime: runtime.runtime,
        loops: runtime.loop_ranges,
        thread: pid.0,
        regs: regs.to_vec(),
        sp: regs[SP],
        names,
        memory: memory.into_parts(),
        ..Recording::default()
    };
    for mapping in process.mappings.as_slice() {
        let within = |address: &&u64| (mapping.start..mapping.end).contains(*address);
        let found: Vec<u64> = addresses.iter().filter(within).copied().collect();
        if found.is_empty() {
            continue;
        }
        let offset = |address: &u64| address - mapping.start + mapping.file_offset;
        let offsets: Vec<u64> = found.iter().map(offset).collect();
        let object = mapping.file_name().to_owned();
        let file = File::open(&mapping.path)
            .with_context(|| format!("failed to open {}", mapping.path))?;
        let parts = unwind_parts(&file, &offsets)
            .with_context(|| format!("unwind information of {object}"))?;
        recording.objects.insert(object.clone(), parts);
        recording.mappings.push(MappedAt {
            range: mapping.start..mapping.end,
            offset: mapping.file_offset,
            object,
        });
    }
    Ok(recording)
}

fn version_hex(runtime: &PythonRuntime) -> u64 {
    let version = runtime.version;
    u64::from(u32::from_be_bytes([
        version.major,
        version.minor,
        version.micro,
        0xf0,
    ]))
}

/// The registers of a blocked thread in the order of `struct pt_regs`, which that of `ptrace` begins with.
fn registers(pid: Pid) -> Result<[u64; REGS_MAX]> {
    const NT_PRSTATUS: usize = 1;
    let tracee = pid.0.cast_signed();
    let mut words = [0_u64; REGS_MAX];
    let mut vector = libc::iovec {
        iov_base: words.as_mut_ptr().cast(),
        iov_len: size_of_val(&words),
    };
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: the child is ours; the kernel writes at most `iov_len` bytes to `words`, which has them.
    unsafe {
        ensure!(
            libc::ptrace(libc::PTRACE_SEIZE, tracee, none, none) == 0,
            "ptrace: {}",
            Error::last_os_error()
        );
        libc::ptrace(libc::PTRACE_INTERRUPT, tracee, none, none);
        libc::waitpid(tracee, std::ptr::null_mut(), libc::__WALL);
        let read = libc::ptrace(libc::PTRACE_GETREGSET, tracee, NT_PRSTATUS, &raw mut vector);
        ensure!(read == 0, "registers: {}", Error::last_os_error());
        libc::ptrace(libc::PTRACE_DETACH, tracee, none, none);
    }
    if cfg!(target_arch = "x86_64") {
        // Behind `ss` come segments that are no part of `struct pt_regs`.
        words[21..].fill(0);
    }
    Ok(words)
}

/// Memory of a process that remembers what was read of it.
struct Reads {
    memory: ProcessMemory,
    bytes: RefCell<BTreeMap<u64, u8>>,
}

impl Reads {
    fn new(pid: Pid) -> Self {
        Self {
            memory: ProcessMemory::new(pid),
            bytes: RefCell::default(),
        }
    }

    fn into_parts(self) -> BTreeMap<u64, Vec<u8>> {
        let mut parts: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut end = None;
        let mut start = 0;
        for (address, byte) in self.bytes.into_inner() {
            if end != Some(address) {
                start = address;
            }
            parts.entry(start).or_default().push(byte);
            end = address.checked_add(1);
        }
        parts
    }
}

impl ReadMemory for Reads {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Error> {
        // Whole pages, as caches read them, hold more than is needed; caches then ask for the rest.
        const PAGE_BYTES: usize = 4096;
        if buffer.len() == PAGE_BYTES && address.is_multiple_of(PAGE_BYTES as u64) {
            return Err(Error::from(std::io::ErrorKind::Unsupported));
        }
        let count = self.memory.read(address, buffer)?;
        let read = (address..).zip(buffer[..count].iter().copied());
        self.bytes.borrow_mut().extend(read);
        Ok(count)
    }
}

/// The headers of an ELF file and its unwind information for code at these offsets, everything where it is in
/// the file, which then has no section headers and an index of these entries alone.
fn unwind_parts(file: &File, offsets: &[u64]) -> Result<SparseFile> {
    const PROGRAM_HEADER_BYTES: usize = 56;
    const PT_LOAD: u64 = 1;
    const PT_GNU_EH_FRAME: u64 = 0x6474_e550;
    let read = |offset: u64, count: usize| {
        let mut bytes = vec![0; count];
        file.read_exact_at(&mut bytes, offset)?;
        Ok::<_, Error>(bytes)
    };
    let number = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    let signed = |bytes: &[u8]| i64::from(number(bytes) as i32);
    let mut header = read(0, 64)?;
    // e_shoff, e_shnum, e_shstrndx
    header[40..48].fill(0);
    header[60..64].fill(0);
    let table_at = number(&header[32..40]);
    let count = number(&header[56..58]) as usize;
    let table = read(table_at, count * PROGRAM_HEADER_BYTES)?;
    let segments: Vec<[u64; 4]> = table
        .chunks_exact(PROGRAM_HEADER_BYTES)
        .map(|entry| {
            // Kind, offset, address, bytes in the file.
            [&entry[..4], &entry[8..16], &entry[16..24], &entry[32..40]].map(number)
        })
        .collect();
    let loads = || segments.iter().filter(|segment| segment[0] == PT_LOAD);
    let offset_of = |address: u64| {
        let mut loads = loads();
        let load = loads.find(|[_, _, start, bytes]| (*start..start + bytes).contains(&address));
        load.map(|[_, offset, start, _]| address - start + offset)
            .context("an address that is not loaded")
    };
    let index = segments
        .iter()
        .find(|segment| segment[0] == PT_GNU_EH_FRAME);
    let &[_, index_at, index_address, index_bytes] = index.context("no .eh_frame_hdr")?;
    let index = read(index_at, index_bytes as usize)?;
    ensure!(
        index[..4] == [1, 0x1b, 0x03, 0x3b],
        "an index of another form"
    );
    let mut sparse = SparseFile {
        bytes: loads()
            .map(|[_, offset, _, bytes]| offset + bytes)
            .max()
            .unwrap_or(0),
        parts: BTreeMap::from([(0, header), (table_at, table)]),
    };
    let mut entries = BTreeMap::new();
    for &offset in offsets {
        let mut loads = loads();
        let load = loads.find(|[_, start, _, bytes]| (*start..start + bytes).contains(&offset));
        let [_, start, address, _] = load.context("code that is not loaded")?;
        let address = offset - start + address;
        let at = |entry: &[u8]| index_address.wrapping_add_signed(signed(&entry[..4]));
        let (table, _) = index[12..].as_chunks::<8>();
        let after = table.partition_point(|entry| at(entry) <= address);
        let entry = table[after.checked_sub(1).context("before the first function")?];
        entries.insert(at(&entry), entry);
        let function = index_address.wrapping_add_signed(signed(&entry[4..]));
        let function_at = offset_of(function)?;
        let common_at = function_at + 4 - number(&read(function_at + 4, 4)?);
        for description in [function_at, common_at] {
            let bytes = number(&read(description, 4)?) as usize;
            let description_bytes = read(description, 4 + bytes)?;
            sparse.parts.insert(description, description_bytes);
        }
    }
    let mut short = index[..8].to_vec();
    short.extend(u32::try_from(entries.len())?.to_le_bytes());
    short.extend(entries.values().flatten());
    sparse.parts.insert(index_at, short);
    Ok(sparse)
}
