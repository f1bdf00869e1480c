//! Finds the `PyThreadState` of a native thread.
//!
//! In:  `_PyRuntime` and the thread's id
//! Out: the address of its thread state
//!
//! ```text
//! _PyRuntime.interpreters.head -> PyInterpreterState --next--> PyInterpreterState (subinterpreter)
//!                                   threads.head -> PyThreadState --next--> PyThreadState
//!                                                     native_thread_id: what we look for
//! ```
//!
//! # Why the list and not thread-local storage
//! The thread-local `_Py_tss_tstate` is null while a thread has given up the global interpreter
//! lock, that is, exactly when it is blocked. The list has every thread, at one read each.
//! `native_thread_id` is the id in the process's own pid namespace; see [`innermost_tid`].

use std::fs;
use std::io::{Error, ErrorKind};
use std::ops::ControlFlow;

use profiler_common::PythonOffsets;

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
    /// Its address.
    pub(crate) address: u64,
    /// Thread id in the process's pid namespace.
    pub(crate) native_tid: u32,
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
            frame: word(offsets.tstate_frame),
            next: word(offsets.tstate_next),
        })
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

/// The thread state of a native thread. A thread that entered several interpreters has several;
/// the one that is running Python code is meant.
pub(crate) fn find_thread(
    memory: &dyn ReadMemory,
    runtime: u64,
    offsets: &PythonOffsets,
    native_tid: u32,
) -> Result<Option<ThreadState>, Error> {
    let mut found = None;
    let visited = visit_threads(memory, runtime, offsets, |state| {
        if state.native_tid != native_tid {
            return ControlFlow::Continue(());
        }
        let in_python = matches!(state.first_frame(memory, offsets), Ok(frame) if frame != 0);
        if in_python || found.is_none() {
            found = Some(*state);
        }
        if in_python {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    match found {
        Some(state) => Ok(Some(state)),
        None => visited.map(|()| None),
    }
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
