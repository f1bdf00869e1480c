//! Finds the `PyThreadState` of a native thread.
//!
//! In:  `_PyRuntime` and the thread's id
//! Out: the address of its thread state
//!
//! ```text
//! _PyRuntime.interpreters.head -> PyInterpreterState --next--> PyInterpreterState (subinterpreter)
//!                                   threads.head -> PyThreadState --next--> PyThreadState
//!                                                     native_thread_id: what we look for, or
//!                                                     thread_id, the pthread_t
//! ```
//!
//! # Why the list and not thread-local storage
//! The thread-local `_Py_tss_tstate` is null while a thread has given up the global interpreter
//! lock, that is, exactly when it is blocked. The list has every thread, at one read each.
//! `native_thread_id` is the id in the process's own pid namespace; see [`innermost_tid`].
//!
//! # A process forked by C
//! A server that embeds CPython and forks without `PyOS_AfterFork_Child` (uWSGI) leaves its parent's ids in
//! the child's list. The `pthread_t` survives a fork and tells the thread by its thread pointer.

use std::collections::HashMap;
use std::fs;
use std::io::{Error, ErrorKind};
use std::ops::ControlFlow;

use profiler_common::{PythonOffsets, is_thread_id, thread_id_span, tstate_offset};

use crate::model::{Pid, Tid};
use crate::process::ReadMemory;

/// Most interpreters visited in one process.
const INTERPRETERS_MAX: usize = 256;
/// Most threads visited in one process.
const THREADS_MAX: usize = 16 * 1024;
/// Room for the fields of a `PyThreadState` that we read; offsets are checked to be below.
const TSTATE_BYTES_MAX: usize = 1032;

/// The fields of a `PyThreadState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadState {
    /// Address of the structure in the process.
    pub(crate) address: u64,
    /// Thread id in the process's pid namespace.
    pub(crate) native_tid: u32,
    /// The thread's `pthread_t`.
    pub(crate) thread_id: u64,
    /// Its `PyInterpreterState`.
    pub(crate) interpreter: u64,
    /// `current_frame`, or `cframe` where that is an indirection.
    pub(crate) frame: u64,
    next: u64,
}

impl ThreadState {
    /// Reads the thread state at `address`.
    pub(crate) fn read(
        memory: &dyn ReadMemory,
        offsets: &PythonOffsets,
        address: u64,
    ) -> Result<Self, Error> {
        let end = offsets
            .tstate_next
            .max(tstate_offset::INTERP as u32)
            .max(offsets.tstate_native_thread_id)
            .max(offsets.tstate_frame) as usize
            + 8;
        let mut buffer = [0; TSTATE_BYTES_MAX];
        let bytes = buffer.get_mut(..end).ok_or(ErrorKind::InvalidData)?;
        memory.read_exact(address, bytes)?;
        let word = |offset: u32| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[offset as usize..offset as usize + 8]);
            u64::from_ne_bytes(word)
        };
        Ok(Self {
            address,
            native_tid: word(offsets.tstate_native_thread_id) as u32,
            thread_id: word(
                offsets
                    .tstate_native_thread_id
                    .checked_sub(tstate_offset::THREAD_ID_TO_NATIVE as u32)
                    .ok_or(ErrorKind::InvalidData)?,
            ),
            interpreter: word(tstate_offset::INTERP as u32),
            frame: word(offsets.tstate_frame),
            next: word(offsets.tstate_next),
        })
    }

    /// Whether it may be that of a thread that a fork by C has copied or ended: its id tells nothing then,
    /// but its `pthread_t` leads to a `struct pthread`. On x86_64 that begins with its own address, in glibc
    /// and in musl.
    /// <https://sourceware.org/git/?p=glibc.git;a=blob;f=sysdeps/x86_64/nptl/tls.h;hb=glibc-2.36#l42>
    pub(crate) fn may_be_inherited(&self, memory: &dyn ReadMemory) -> bool {
        let word = memory.read_u64(self.thread_id);
        let is_thread = |word| cfg!(target_arch = "aarch64") || word == self.thread_id;
        self.thread_id != 0 && self.interpreter != 0 && word.is_ok_and(is_thread)
    }

    /// The innermost `_PyInterpreterFrame`, 0 if the thread runs no Python code.
    pub(crate) fn first_frame(
        &self,
        memory: &dyn ReadMemory,
        offsets: &PythonOffsets,
    ) -> Result<u64, Error> {
        if offsets.cframe_indirect == 0 || self.frame == 0 {
            return Ok(self.frame);
        }
        let field = self.frame.wrapping_add(offsets.cframe_current_frame.into());
        memory.read_u64(field)
    }
}

/// Shows every thread state to `visit` until it breaks.
///
/// # Errors
///
/// The list could not be followed to its end; other threads may change it while we read.
pub(crate) fn visit_threads(
    memory: &dyn ReadMemory,
    runtime: u64,
    offsets: &PythonOffsets,
    mut visit: impl FnMut(&ThreadState) -> ControlFlow<()>,
) -> Result<(), Error> {
    let mut interpreter =
        memory.read_u64(runtime.wrapping_add(offsets.interpreters_head.into()))?;
    let mut threads = 0;
    for _ in 0..INTERPRETERS_MAX {
        if interpreter == 0 {
            break;
        }
        let head = interpreter.wrapping_add(offsets.interp_threads_head.into());
        let mut address = memory.read_u64(head)?;
        while address != 0 && threads < THREADS_MAX {
            threads += 1;
            let state = ThreadState::read(memory, offsets, address)?;
            if visit(&state).is_break() {
                return Ok(());
            }
            address = state.next;
        }
        interpreter = memory.read_u64(interpreter.wrapping_add(offsets.interp_next.into()))?;
    }
    Ok(())
}

/// What distinguishes a thread's state from the others in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadIds {
    /// Id in the process's pid namespace.
    pub(crate) native_tid: u32,
    /// Thread pointer, 0 if unknown.
    pub(crate) thread_pointer: u64,
}

/// How well a thread state suits a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Suits {
    /// By its thread pointer; it runs no Python code there.
    IdleByPointer,
    /// By its thread pointer.
    ByPointer,
    /// By its id; it runs no Python code there.
    Idle,
    /// By its id.
    Fully,
}

impl ThreadIds {
    /// How well a thread state suits the thread, `None` if it is another one's.
    pub(crate) fn suit(
        &self,
        memory: &dyn ReadMemory,
        offsets: &PythonOffsets,
        state: &ThreadState,
    ) -> Option<Suits> {
        let span = if cfg!(target_arch = "aarch64") {
            thread_id_span::AARCH64
        } else {
            thread_id_span::X86_64
        };
        let is_by_id = state.native_tid == self.native_tid;
        if !is_by_id && !is_thread_id(state.thread_id, self.thread_pointer, span) {
            return None;
        }
        let runs_python = matches!(state.first_frame(memory, offsets), Ok(frame) if frame != 0);
        Some(match (is_by_id, runs_python) {
            (true, true) => Suits::Fully,
            (true, false) => Suits::Idle,
            (false, true) => Suits::ByPointer,
            (false, false) => Suits::IdleByPointer,
        })
    }
}

/// The thread state of a native thread. A thread that entered several interpreters has several;
/// the one that is running Python code is meant.
pub(crate) fn find_thread(
    memory: &dyn ReadMemory,
    runtime: u64,
    offsets: &PythonOffsets,
    ids: ThreadIds,
) -> Result<Option<ThreadState>, Error> {
    let mut found: Option<(Suits, ThreadState)> = None;
    let visited = visit_threads(memory, runtime, offsets, |state| {
        let suits = ids.suit(memory, offsets, state);
        if let Some(suits) = suits
            && found.is_none_or(|(best, _)| suits > best)
        {
            found = Some((suits, *state));
        }
        if suits == Some(Suits::Fully) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    match found {
        Some((_, state)) => Ok(Some(state)),
        None => visited.map(|()| None),
    }
}

/// Most threads of a process that are told to the kernel side at once, the newest ones.
const KNOWN_MAX: usize = 4096;

/// Threads of a process by their ids on the host, with the addresses of their thread states. One that entered several
/// interpreters has that in which it runs Python code.
pub(crate) fn thread_states(
    memory: &dyn ReadMemory,
    pid: Pid,
    runtime: u64,
    offsets: &PythonOffsets,
) -> Vec<(Tid, u64)> {
    let mut by_id: HashMap<u32, (bool, u64)> = HashMap::new();
    let visited = visit_threads(memory, runtime, offsets, |state| {
        let runs_python = matches!(state.first_frame(memory, offsets), Ok(frame) if frame != 0);
        let known = by_id.get(&state.native_tid);
        if known.is_none_or(|&(runs, _)| runs_python && !runs) {
            by_id.insert(state.native_tid, (runs_python, state.address));
        }
        if by_id.len() < KNOWN_MAX {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    if let Err(error) = visited {
        tracing::trace!(%pid, %error, "some threads were not looked at");
    }
    // A process in the host's own namespace, as most are, has the same ids there.
    let is_same = innermost_tid(pid, Tid(pid.0)).is_ok_and(|tid| tid == pid.0);
    let native = |tid: Tid| {
        if is_same {
            Ok(tid.0)
        } else {
            innermost_tid(pid, tid)
        }
    };
    let state = |tid: Tid| Some((tid, by_id.get(&native(tid).ok()?)?.1));
    let tids = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let tids = tids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    tids.take(THREADS_MAX).map(Tid).filter_map(state).collect()
}

/// The id of a thread inside its own (innermost) pid namespace: the last number of `NSpid` in
/// `/proc/PID/task/TID/status`.
///
/// # Errors
///
/// The thread is gone, or the kernel has no `NSpid` (before 4.1).
pub fn innermost_tid(pid: Pid, tid: Tid) -> Result<u32, Error> {
    let path = format!("/proc/{pid}/task/{tid}/status");
    let status = fs::read_to_string(&path)
        .map_err(|error| Error::new(error.kind(), format!("failed to read {path}: {error}")))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .and_then(|ids| ids.split_ascii_whitespace().next_back())
        .and_then(|id| id.parse().ok())
        .ok_or_else(|| Error::new(ErrorKind::InvalidData, format!("no NSpid in {path}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a thread of ours has its own id in the innermost namespace, and that a thread that
    /// does not exist is an error naming its file.
    #[test]
    fn the_innermost_tid_of_a_thread_is_its_gettid() {
        let pid = Pid(std::process::id());
        let tid = nix::unistd::gettid().as_raw().cast_unsigned();
        assert_eq!(innermost_tid(pid, Tid(tid)).unwrap(), tid);
        let error = innermost_tid(pid, Tid(1)).unwrap_err().to_string();
        assert!(error.contains("/task/1/status"), "{error}");
    }
}
