//! Names inlined functions and functions without a name, and compares them with gdb, addr2line and nm.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod native_process;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use native_process::{Call, Program, STACK_BYTES, capture};
use object::{Object, ObjectSection, ObjectSegment};
use profiler_daemon::model::{AddrFrame, Counter, Coverage, Frame, Pid, Stack, UnwindEnd};
use profiler_daemon::process::procfs::Procfs;
use profiler_daemon::process::python::CodeSignature;
use profiler_daemon::process::{Mappings, Process};
use profiler_daemon::symbolize::Symbolizer;
use profiler_daemon::unwind::NativeUnwinder;

/// Where programs that do not run are mapped.
const BASE: u64 = 0x7000_0000_0000;

/// A program that does not run, with its code mapped as the loader would.
struct Mapped {
    process: Process,
    symbolizer: Symbolizer,
    losses: Coverage,
}

impl Mapped {
    fn new(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let file = object::File::parse(&*bytes).unwrap();
        let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        let code = file.section_by_name(".text").unwrap().address();
        let mut segments = file.segments();
        let covers = |start: u64, size: u64| (start..start + size).contains(&code);
        let segment = segments.find(|segment| covers(segment.address(), segment.size()));
        let segment = segment.unwrap();
        let (offset, size) = segment.file_range();
        let start = BASE + segment.address();
        let end = start + size;
        let path = path.display();
        let line = format!("{start:x}-{end:x} r-xp {offset:x} 00:00 {inode} {path}\n");
        let mappings = Mappings::parse(line.as_bytes()).unwrap();
        let own = Procfs::default().key(Pid(std::process::id())).unwrap();
        Self {
            process: Process::with_mappings(own, mappings),
            symbolizer: Symbolizer::new(CodeSignature::Function),
            losses: Coverage::default(),
        }
    }

    /// Signatures at an address of the object, innermost first.
    fn at(&mut self, address: u64) -> Vec<String> {
        let stack = Stack {
            frames: vec![AddrFrame::Native(BASE + address)],
            end: UnwindEnd::Root,
        };
        let named = self
            .symbolizer
            .symbolize(&self.process, &stack, &mut self.losses);
        signatures(&named)
    }
}

fn signatures(stack: &Stack<Frame>) -> Vec<String> {
    let frames = stack.frames.iter();
    frames.map(|frame| frame.signature.to_string()).collect()
}

/// A symbol's address, by nm.
fn address_of(path: &Path, symbol: &str) -> u64 {
    let output = Command::new("nm").arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines().map(|line| line.split(' '));
    let found = lines.find_map(|mut words| {
        let address = words.next()?;
        (words.nth(1) == Some(symbol)).then(|| u64::from_str_radix(address, 16).unwrap())
    });
    found.unwrap_or_else(|| panic!("{symbol} is not in {}", path.display()))
}

fn run(program: &str, arguments: &[&str], path: &Path) {
    let mut command = Command::new(program);
    command.args(arguments).arg(path);
    assert!(command.status().unwrap().success(), "{command:?}");
}

/// Check that a stack through inlined functions has gdb's frames, real and inlined, in gdb's order, with DWARF 4
/// and 5, and with compressed sections.
#[test]
fn inlined_functions_equal_gdb() {
    for flags in [
        &["-gdwarf-5"][..],
        &["-gdwarf-4"],
        &["-gdwarf-5", "-gz=zlib"],
        &["-gdwarf-4", "-gz=zlib"],
    ] {
        let program = Program::build("inline.c", flags);
        let running = program.start(&[]);
        running.wait_blocked(1, &[libc::SYS_read]);
        let mut process = running.process();
        let truth = running.ask_gdb().into_values().next().unwrap();
        running.wait_blocked(1, &[libc::SYS_read]);
        let captured = capture(running.pid(), &truth.regs, STACK_BYTES);
        let memory = process.memory;
        let unwound = NativeUnwinder::new().unwind(&mut process, &captured, Some(&memory));
        let addresses = unwound.addresses().into_iter();
        let stack = Stack {
            frames: addresses.map(AddrFrame::Native).collect(),
            end: unwound.end,
        };
        let mut symbolizer = Symbolizer::new(CodeSignature::Function);
        let named = symbolizer.symbolize(&process, &stack, &mut Coverage::default());
        let ours = signatures(&named);
        let own = |name: &String| name.ends_with(" (inline)");
        let ours: Vec<_> = ours.iter().filter(|name| own(name)).take(4).collect();
        let is_own = |(name, _): &&(String, Call)| {
            ["inner", "middle", "outer", "main"].contains(&name.as_str())
        };
        let theirs: Vec<_> = truth
            .calls
            .iter()
            .filter(is_own)
            .map(|(name, call)| match call {
                Call::Real => format!("{name} (inline)"),
                Call::Inlined => format!("{name} (inlined) (inline)"),
            })
            .collect();
        assert_eq!(theirs.len(), 4, "{:?}", truth.calls);
        assert_eq!(ours, theirs.iter().collect::<Vec<_>>(), "{flags:?}");
    }
}

/// A function name without what demanglers write differently.
fn plain(name: &str) -> String {
    let name = name.replace(" (inlined) (inline)", "");
    let (path, hash) = name.rsplit_once("::h").unwrap_or((&name, ""));
    let is_hash = hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    let name = if is_hash { path } else { &name };
    name.to_owned()
}

/// Names without arguments: `cpp_demangle` and binutils differ in them.
fn bare(name: &str) -> String {
    let end = name.find(['<', '(']).unwrap_or(name.len());
    name[..end].to_owned()
}

/// Check that whole programs in Rust and C++, with the parts of their standard libraries, have the inlined functions that
/// addr2line names, at every address that is looked at, or as many as gdb finds: addr2line of binutils 2.40 misses the
/// innermost function in some lists of ranges of DWARF 5, and gdb 13 reads some units of Rust's standard library without
/// their functions.
#[test]
fn inlined_functions_equal_gdb_and_addr2line() {
    for (source, flags) in [
        ("inline.rs", &["-g"][..]),
        (
            "inline.rs",
            &["-g", "-C", "dwarf-version=5", "-C", "codegen-units=1"],
        ),
        ("inline.cpp", &["-g"]),
        ("inline.cpp", &["-g", "-gdwarf-4", "-flto"]),
    ] {
        let program = Program::build(source, flags);
        let addresses = addresses_of(&program.path(), 4000);
        let depths = gdb_depths(&program.path(), &addresses);
        let theirs = addr2line(&program.path(), &addresses);
        let mut mapped = Mapped::new(&program.path());
        let (mut inlined, mut different) = (0, Vec::new());
        for ((&address, depth), theirs) in addresses.iter().zip(depths).zip(&theirs) {
            let ours = mapped.at(address);
            let names = |frames: &[String]| -> Vec<String> {
                let inner = &frames[..frames.len() - 1];
                inner.iter().map(|name| bare(&plain(name))).collect()
            };
            inlined += depth;
            // addr2line may give the innermost one the symbol that its code belongs to.
            let real = ours.last().map(|name| bare(&plain(name)));
            let mut expected = names(theirs);
            if let (Some(first), Some(inner)) = (expected.first_mut(), names(&ours).first())
                && theirs.first().map(|name| bare(name)) == real
            {
                first.clone_from(inner);
            }
            if names(&ours) != expected && ours.len() - 1 != depth {
                different.push((address, depth, ours, theirs));
            }
        }
        let total = addresses.len();
        assert!(inlined > total / 4, "{source}: {inlined} in {total}");
        let first = &different[..different.len().min(5)];
        assert!(
            first.is_empty(),
            "{source} {flags:?}: {} of {total}: {first:#x?}",
            different.len()
        );
    }
}

/// Addresses of the code of a program, about as many as wanted, at the same distance.
fn addresses_of(path: &Path, count: u64) -> Vec<u64> {
    let bytes = fs::read(path).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let text = file.section_by_name(".text").unwrap();
    let step = (text.size() / count).max(7) as usize | 1;
    let end = text.address() + text.size();
    (text.address()..end).step_by(step).collect()
}

/// How many functions are inlined at addresses.
fn gdb_depths(path: &Path, addresses: &[u64]) -> Vec<usize> {
    let list = tempfile::NamedTempFile::new().unwrap();
    fs::write(list.path(), format!("addresses = {addresses:?}")).unwrap();
    let exec = format!("python exec(open({:?}).read())", list.path());
    let output = Command::new("gdb")
        .args(["-batch", "-nx", "-iex", "set auto-load off"])
        .arg(path)
        .args(["-ex", &exec, "-x"])
        .arg(native_process::fixture("inlined_depth.py"))
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let depths = output
        .lines()
        .filter_map(|line| line.strip_prefix("depth "));
    let depths: Vec<usize> = depths.map(|depth| depth.parse().unwrap()).collect();
    assert_eq!(depths.len(), addresses.len(), "{output}");
    depths
}

/// Function names at addresses, innermost first.
fn addr2line(path: &Path, addresses: &[u64]) -> Vec<Vec<String>> {
    let mut child = Command::new("addr2line")
        .args(["-a", "-i", "-f", "-C", "-e"])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let text: String = addresses
        .iter()
        .map(|address| format!("{address:#x}\n"))
        .collect();
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let mut named: Vec<Vec<String>> = Vec::new();
    let output = String::from_utf8(output.stdout).unwrap();
    let mut lines = output.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("0x") {
            named.push(Vec::new());
        } else {
            named.last_mut().unwrap().push(line.to_owned());
            lines.next(); // the place in the source
        }
    }
    assert_eq!(named.len(), addresses.len());
    named
}

/// Check that a stripped program has the inlined functions of its debug file, which the debug link names: beside the
/// program and in `.debug` beside it, and only if the checksum is that of the file.
#[test]
fn debug_links_are_followed() {
    let flags = ["-g", "-Wl,--build-id=none"];
    let program = Program::build("inline.c", &flags);
    let path = program.path();
    let folder = path.parent().unwrap();
    let outer = address_of(&path, "outer");
    let debug = folder.join("inline.debug");
    run(
        "objcopy",
        &["--only-keep-debug", path.to_str().unwrap()],
        &debug,
    );
    run("strip", &[], &path);
    let link = format!("--add-gnu-debuglink={}", debug.display());
    run("objcopy", &[&link], &path);

    let names = || -> BTreeSet<String> {
        let mut mapped = Mapped::new(&path);
        (outer..outer + 32)
            .flat_map(|address| mapped.at(address))
            .collect()
    };
    let whole = [
        "inner (inlined) (inline)",
        "middle (inlined) (inline)",
        "outer (inline)",
    ];
    let unnamed = [format!("inline+{outer:#x}")];
    let is_whole = |names: &BTreeSet<String>| whole.iter().all(|name| names.contains(*name));
    let is_bare = |names: &BTreeSet<String>| names.contains(&unnamed[0]);
    let named = names();
    assert!(is_whole(&named) && !is_bare(&named), "{named:?}");

    fs::create_dir(folder.join(".debug")).unwrap();
    fs::rename(&debug, folder.join(".debug/inline.debug")).unwrap();
    assert!(is_whole(&names()));

    let mut content = fs::read(folder.join(".debug/inline.debug")).unwrap();
    *content.last_mut().unwrap() ^= 1;
    fs::write(folder.join(".debug/inline.debug"), content).unwrap();
    let named = names();
    assert!(!is_whole(&named) && is_bare(&named), "{named:?}");
}

/// Check that functions without a name are told apart by their first address, as nm has it, that all addresses of a
/// function have one signature, and that each is counted as unknown.
#[test]
fn functions_without_a_name_have_their_address() {
    let program = Program::build("chain.c", &[]);
    let path = program.path();
    let functions = ["link1", "link2", "link3"].map(|name| address_of(&path, name));
    run("strip", &[], &path);
    let mut mapped = Mapped::new(&path);
    for (count, function) in (1..).zip(functions) {
        let expected = [format!("chain+{function:#x}")];
        assert_eq!(mapped.at(function), expected);
        assert_eq!(mapped.at(function + 1), expected);
        assert_eq!(mapped.losses.get(Counter::FramesUnknown), 2 * count);
    }
}
