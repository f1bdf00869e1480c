//! Programs built from `fixtures/` and stopped in a known place; what gdb says about them.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use profiler_common::REGS_MAX;
use profiler_daemon::model::{Captured, Pid, StackBytes};
use profiler_daemon::process::{Process, ProcessMemory, ReadMemory};
use profiler_daemon::unwind::Unwound;

/// Most stack bytes copied, as for a sample of a running thread.
pub(crate) const STACK_BYTES: usize = 16 * 1024;
const SP: usize = 19;

/// A program in a directory that is removed with it.
pub(crate) struct Program {
    directory: tempfile::TempDir,
    name: String,
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

impl Program {
    /// Builds a C, C++ or Rust fixture, optimized and without frame pointers.
    pub(crate) fn build(source: &str, flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (name, language) = source.split_once('.').unwrap();
        let mut command = if language == "rs" {
            let mut rustc = Command::new("rustc");
            rustc.args(["--edition", "2024", "-O", "-C", "force-frame-pointers=no"]);
            rustc
        } else {
            let compiler = if language == "cpp" { "c++" } else { "cc" };
            let mut cc = Command::new(compiler);
            cc.args(["-O2", "-fomit-frame-pointer", "-pthread"]);
            cc
        };
        command.args(flags).arg(fixture(source));
        command.arg("-o").arg(directory.path().join(name));
        assert!(command.status().unwrap().success(), "{command:?}");
        Self {
            directory,
            name: name.to_owned(),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join(&self.name)
    }

    /// Starts it; its standard input stays open and empty.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        let mut command = Command::new(self.path());
        command.args(arguments);
        Running::start(command)
    }

    /// Starts it in a root of its own, which the program must lie in.
    pub(crate) fn start_in(&self, root: &Path) -> Running {
        let inside = Path::new("/").join(self.path().strip_prefix(root).unwrap());
        let mut command = Command::new("unshare");
        if !nix::unistd::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command.arg("--root").arg(root).arg(inside);
        Running::start(command)
    }
}

/// A child process that ends with the test.
pub(crate) struct Running {
    child: Child,
    stdin: ChildStdin,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a condition, at most ten seconds.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        Self { child, stdin }
    }

    /// Lets a read return.
    pub(crate) fn write_byte(&mut self) {
        self.stdin.write_all(b"x").unwrap();
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid(self.child.id())
    }

    pub(crate) fn process(&self) -> Process {
        Process::open(self.pid()).unwrap()
    }

    pub(crate) fn tids(&self) -> Vec<u32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let tids = tasks.map(|task| task.unwrap().file_name().into_string().unwrap());
        tids.map(|tid| tid.parse().unwrap()).collect()
    }

    /// Waits until `threads` threads exist and all are blocked in one of these system calls.
    pub(crate) fn wait_blocked(&self, threads: usize, calls: &[i64]) {
        wait_for("all threads are blocked", || {
            let tids = self.tids();
            tids.len() == threads
                && tids.iter().all(|tid| {
                    let path = format!("/proc/{}/task/{tid}/syscall", self.pid());
                    let call = fs::read_to_string(path).unwrap_or_default();
                    let number = call.split(' ').next().and_then(|n| n.parse().ok());
                    number.is_some_and(|number| calls.contains(&number))
                })
        });
    }

    /// Asks gdb for registers and frames of every thread.
    pub(crate) fn ask_gdb(&self) -> BTreeMap<u32, Truth> {
        ask_gdb(self.pid())
    }
}

/// Asks gdb for registers and frames of every thread.
pub(crate) fn ask_gdb(pid: Pid) -> BTreeMap<u32, Truth> {
    let output = Command::new("gdb")
        .args(["-batch", "-nx", "-iex", "set auto-load off", "-p"])
        .arg(pid.to_string())
        .arg("-x")
        .arg(fixture("native_stack.py"))
        .output()
        .expect("gdb is installed");
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut threads: BTreeMap<u32, Truth> = BTreeMap::new();
    for line in output.lines() {
        let mut words = line.split(' ');
        match (words.next(), words.next()) {
            (Some("regs"), Some(tid)) => {
                let truth = threads.entry(tid.parse().unwrap()).or_default();
                for (register, word) in truth.regs.iter_mut().zip(words) {
                    *register = word.parse().unwrap();
                }
            }
            (Some("frame"), Some(tid)) => {
                let truth = threads.entry(tid.parse().unwrap()).or_default();
                truth.pcs.push(words.next().unwrap().parse().unwrap());
                let name = words.collect::<Vec<_>>().join(" ");
                truth.names.push(name.clone());
                truth.calls.push((name, Call::Real));
            }
            (Some("inline"), Some(tid)) => {
                let truth = threads.entry(tid.parse().unwrap()).or_default();
                let name = words.skip(1).collect::<Vec<_>>().join(" ");
                truth.calls.push((name, Call::Inlined));
            }
            _ => {}
        }
    }
    assert!(!threads.is_empty(), "{output}");
    threads
}

/// The pcs of a stack, as gdb gives them.
pub(crate) fn pcs(unwound: &Unwound) -> Vec<u64> {
    let frames = unwound.frames.iter();
    frames
        .map(|frame| frame.address + u64::from(!frame.is_exact))
        .collect()
}

/// What gdb says about a thread.
#[derive(Debug)]
pub(crate) struct Truth {
    /// As in a `struct pt_regs`.
    pub(crate) regs: [u64; REGS_MAX],
    /// Program counters, innermost first.
    pub(crate) pcs: Vec<u64>,
    /// Function names, empty where unknown.
    pub(crate) names: Vec<String>,
    /// The same with inlined calls between them.
    pub(crate) calls: Vec<(String, Call)>,
}

/// Whether a function has a stack frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Real,
    Inlined,
}

impl Default for Truth {
    fn default() -> Self {
        Self {
            regs: [0; REGS_MAX],
            pcs: Vec::new(),
            names: Vec::new(),
            calls: Vec::new(),
        }
    }
}

/// A sample as the daemon would take it.
pub(crate) fn capture(pid: Pid, regs: &[u64; REGS_MAX], most: usize) -> Captured {
    let sp = regs[SP];
    let mut bytes = vec![0; most];
    let read = ProcessMemory::new(pid).read(sp, &mut bytes).unwrap();
    bytes.truncate(read);
    Captured {
        regs: *regs,
        stack: StackBytes {
            sp,
            skipped: 0,
            cut: read == most,
            bytes,
        },
        kernel_frames: Vec::new(),
        python: None,
    }
}
