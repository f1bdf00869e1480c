//! What is known about a CPython interpreter in another process.
//!
//! In:  a process id
//! Out: [`PythonRuntime`]: where the interpreter keeps its threads and frames, where its machine code
//!      is; [`PythonNamer`]: frames to names
//! Lost: an interpreter that cannot be used is a [`PythonError`] whose text says why
//!
//! Works on release builds of 3.11 to 3.14, static or shared, stripped or not.
//!
//! Reading order: `layout.rs` (offsets), `locate.rs` (symbols), `eval_loop.rs`, `thread.rs`, `code.rs`
//! with `string.rs` and `line_table.rs`, `modules.rs` with `module.rs` and `sys_path.rs`, then `name.rs`;
//! `own_code.rs` and `method.rs` (the functions in C). The walk along the frames is in
//! [`crate::unwind::python`].

mod code;
mod debug_offsets;
mod error;
mod eval_loop;
mod identity;
mod jump;
mod layout;
mod line_table;
mod locate;
mod method;
mod module;
mod modules;
mod name;
mod object;
mod own_code;
mod string;
mod sys_path;
mod thread;

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::ops::{ControlFlow, Range};

use profiler_common::{PythonOffsets, PythonProcess};

pub use code::{CodeError, CodeNames, PythonCode};
pub use debug_offsets::DEBUG_OFFSETS_BYTES;
pub use error::PythonError;
pub(crate) use identity::read_all;
pub use layout::{CodeLayout, Layout, LayoutError};
use locate::Located;
pub(crate) use locate::find_version;
pub(crate) use method::MethodTables;
#[cfg(feature = "fuzzing")]
pub(crate) use method::read as read_methods;
pub use name::{CodeSignature, PythonNamer};
pub(crate) use own_code::OwnCode;
pub use own_code::is_interpreter;
pub use thread::innermost_tid;
pub(crate) use thread::{Suits, ThreadIds, ThreadState, find_thread, visit_threads};

use crate::model::{Pid, ProcessKey, Tid};
use crate::process::page_cache::PageCache;
use crate::process::patience;
use crate::process::procfs::Procfs;
use crate::process::{ProcessMemory, ReadMemory};

/// Threads of a process whose ids are compared when the offsets are checked.
const CHECKED_THREADS_MAX: usize = 4096;

/// The version of an interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PythonVersion {
    /// 3.
    pub major: u8,
    /// 11 in 3.11.2.
    pub minor: u8,
    /// 2 in 3.11.2.
    pub micro: u8,
}

impl PythonVersion {
    /// A version of 3.7 to 3.10 that the file's name does not tell.
    const UNKNOWN: Self = Self {
        major: 3,
        minor: 0,
        micro: 0,
    };

    /// Whether the frames of such an interpreter can be read.
    #[must_use]
    pub fn is_supported(&self) -> bool {
        self.major == 3 && (11..=14).contains(&self.minor)
    }

    /// From `PY_VERSION_HEX`: one byte each for major, minor, micro, release level and serial.
    #[must_use]
    pub fn from_hex(hex: u64) -> Self {
        let [_, micro, minor, major] = (hex as u32).to_le_bytes();
        Self {
            major,
            minor,
            micro,
        }
    }
}

impl fmt::Display for PythonVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Interpreters before 3.11 have no `Py_Version`; what is not known is not printed.
        match *self {
            Self::UNKNOWN => write!(f, "3 (before 3.11)"),
            Self {
                major,
                minor: minor @ ..11,
                ..
            } => write!(f, "{major}.{minor}"),
            Self {
                major,
                minor,
                micro,
            } => write!(f, "{major}.{minor}.{micro}"),
        }
    }
}

/// A CPython interpreter in a process, ready to be walked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PythonRuntime {
    /// The process.
    pub process: ProcessKey,
    /// Version of the interpreter.
    pub version: PythonVersion,
    /// Address of `_PyRuntime` in the process.
    pub runtime: u64,
    /// Offsets for the frame walk.
    pub offsets: PythonOffsets,
    /// Offsets for names and lines.
    pub code: CodeLayout,
    /// Address ranges of the interpreter loop; empty if it was not found.
    pub loop_ranges: Vec<Range<u64>>,
}

impl PythonRuntime {
    /// The process's threads by their ids on the host, with the addresses of their thread states; up to 4,096. For
    /// the kernel side, which finds no more than the newest 512 by itself.
    #[must_use]
    pub fn thread_states(&self) -> Vec<(Tid, u64)> {
        let pid = self.process.pid;
        let memory = ProcessMemory::new(pid);
        thread::thread_states(&PageCache::new(&memory), pid, self.runtime, &self.offsets)
    }

    /// Looks for a CPython interpreter in a process, `None` if there is none. Costs some tens of
    /// small reads of the process's memory and no read of its files.
    ///
    /// # Errors
    ///
    /// There is one, but it is not supported, or not ready, or does not look as it should.
    pub fn detect(pid: Pid) -> Result<Option<Self>, PythonError> {
        patience::look(pid, move || Self::detect_now(pid)).map_err(|source| {
            PythonError::Memory {
                pid,
                what: "the interpreter",
                source,
            }
        })?
    }

    fn detect_now(pid: Pid) -> Result<Option<Self>, PythonError> {
        let memory = ProcessMemory::new(pid);
        let memory = PageCache::new(&memory);
        let images = locate::images(pid)?;
        let Some(found) = Located::find(pid, &images, &memory)? else {
            return Ok(None);
        };
        let Located {
            image,
            version,
            runtime,
        } = found;
        let failed = |what| move |source| PythonError::Memory { pid, what, source };
        let layout = if (version.major, version.minor) < (3, 13) {
            Layout::from_table(version)
        } else {
            let mut bytes = [0; DEBUG_OFFSETS_BYTES];
            memory
                .read_exact(runtime, &mut bytes)
                .map_err(failed("_Py_DebugOffsets"))?;
            Layout::from_debug_offsets(version, &bytes)
        }
        .map_err(|source| PythonError::Layout { pid, source })?;
        let found = Self {
            process: Procfs::default().key(pid).map_err(failed("its start"))?,
            version,
            runtime,
            offsets: layout.offsets,
            code: layout.code,
            loop_ranges: eval_loop::find_loop(&memory, &image),
        };
        found.check_threads()?;
        tracing::debug!(
            %pid, %version, runtime = format_args!("{runtime:#x}"), loop_ranges = ?found.loop_ranges,
            "found a CPython interpreter"
        );
        Ok(Some(found))
    }

    /// The interpreter of a child that the process forked: the same memory at the same addresses.
    #[must_use]
    pub fn for_child(&self, process: ProcessKey) -> Self {
        Self {
            process,
            ..self.clone()
        }
    }

    /// The form that the BPF programs use.
    #[must_use]
    pub fn to_kernel(&self) -> PythonProcess {
        PythonProcess {
            runtime: self.runtime,
            offsets: self.offsets,
        }
    }

    /// Whether `address` lies in the interpreter loop.
    #[must_use]
    pub fn is_loop(&self, address: u64) -> bool {
        self.loop_ranges
            .iter()
            .any(|range| range.contains(&address))
    }

    /// Follows the list of threads and expects at least one thread of the process in it, or one of the
    /// process that it was forked from. Proves the offsets of the runtime, the interpreter and the
    /// thread state.
    fn check_threads(&self) -> Result<(), PythonError> {
        let Self {
            process, version, ..
        } = *self;
        let pid = process.pid;
        let memory = ProcessMemory::new(pid);
        let alive = thread_ids(pid)?;
        let mut seen = 0;
        let mut matched = false;
        let mut inherited = false;
        let visited = thread::visit_threads(&memory, self.runtime, &self.offsets, |state| {
            seen += 1;
            matched = alive.contains(&state.native_tid);
            inherited |= state.may_be_inherited(&memory);
            if matched {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        if matched || visited.is_ok() && inherited {
            Ok(())
        } else if visited.is_ok() && seen == 0 {
            Err(PythonError::Starting { pid, version })
        } else {
            Err(PythonError::Threads { pid, version })
        }
    }
}

/// Ids of the threads of a process in its innermost pid namespace.
fn thread_ids(pid: Pid) -> Result<HashSet<u32>, PythonError> {
    let path = format!("/proc/{pid}/task");
    let failed = |source| PythonError::Proc {
        path: path.clone(),
        source,
    };
    let leader = innermost_tid(pid, Tid(pid.0)).map_err(failed)?;
    let tids = fs::read_dir(&path)
        .map_err(failed)?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .take(CHECKED_THREADS_MAX);
    Ok(if leader == pid.0 {
        tids.collect()
    } else {
        tids.filter_map(|tid| innermost_tid(pid, Tid(tid)).ok())
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a process without Python is no error.
    #[test]
    fn our_own_process_is_not_python() {
        assert_eq!(
            PythonRuntime::detect(Pid(std::process::id())).unwrap(),
            None
        );
    }

    /// Check that a process that does not exist is an error that names its file.
    #[test]
    fn a_missing_process_is_an_error() {
        let error = PythonRuntime::detect(Pid(u32::MAX >> 2)).unwrap_err();
        assert!(error.to_string().contains("/proc/1073741823/"), "{error}");
    }

    /// Check the decoding of `PY_VERSION_HEX`, here of 3.13.0 final.
    #[test]
    fn version_hex_is_decoded() {
        let version = PythonVersion::from_hex(0x030d_00f0);
        assert_eq!(version.to_string(), "3.13.0");
    }
}
