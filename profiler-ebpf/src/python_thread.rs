//! Finds the `PyThreadState` of the current thread.
//!
//! It is the one whose `native_thread_id` is the thread's id in the process's own pid namespace. A process
//! that was forked by C without telling the interpreter (uWSGI) has its parent's ids there; then it is
//! the one whose `thread_id`, the `pthread_t`, fits the thread pointer, which a fork keeps.
//! It is found by walking all interpreters and threads, then kept in `PYTHON_THREADS`. The thread-local
//! `_Py_tss_tstate` is no help: it is unset whenever the thread has released the interpreter lock.
//! A search ends after the newest [`SEARCH_MAX`] threads. Older ones are put there by the daemon when it begins to
//! watch a process.
//!
//! # When a kept address holds
//!
//! A thread of C that enters Python for each call gets a new thread state each time. The memory of the
//! one before keeps the thread's id, and leads to frames that are over or are another thread's by now.
//! So a kept address is used only while the list of threads still leads to it, and while it has
//! frames: one without may mean that the thread is busy in another interpreter. The daemon's walk of
//! blocked threads has the same rules (`profiler-daemon/src/unwind/python/walker.rs`).

use profiler_common::{PythonOffsets, PythonThread, is_thread_id, sample_flag, tstate_offset};

use crate::arch::THREAD_ID_SPAN;
use crate::globals::offset;
use crate::scratch::SampleScratch;
use crate::{maps, read};

/// Most interpreters and threads looked at in a search.
const SEARCH_MAX: u32 = 512;
/// Pid namespaces can be nested this deep, `MAX_PID_NS_LEVEL`.
const PID_LEVEL_MAX: u32 = 32;

/// How well a thread state suits the thread.
mod rank {
    /// Another thread's.
    pub(crate) const OTHER: u64 = 0;
    /// The thread's by its thread pointer, which runs no Python code there.
    pub(crate) const IDLE_BY_POINTER: u64 = 1;
    /// The same, with frames.
    pub(crate) const RUNNING_BY_POINTER: u64 = 2;
    /// The thread's by its id, which runs no Python code there.
    pub(crate) const IDLE: u64 = 3;
    /// The same, with frames. None is better.
    pub(crate) const RUNNING: u64 = 4;
}

/// Address of the thread's `PyThreadState`, 0 if there is none.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn thread_state(tid: u64) -> u64 {
    let Some(scratch) = maps::sample_scratch() else {
        return 0;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let scratch = unsafe { &mut *scratch };
    let Some(wanted) = namespace_tid() else {
        scratch.python_flags |= sample_flag::PYTHON_PARTIAL;
        return 0;
    };
    scratch.wanted_tid = wanted;
    scratch.thread_pointer = read::thread_pointer();
    scratch.best_tstate = 0;
    scratch.best_rank = rank::OTHER;
    if let Some(known) = maps::python_thread(tid as u32) {
        let offsets = &scratch.python.offsets;
        let rank = rank_of(scratch, known.tstate);
        if rank != rank::OTHER && is_listed(offsets, known.tstate) {
            if rank == rank::RUNNING || rank == rank::RUNNING_BY_POINTER {
                return known.tstate;
            }
            scratch.best_tstate = known.tstate;
            scratch.best_rank = rank;
        }
    }
    scratch.tstate = 0;
    let offsets = &scratch.python.offsets;
    let head = scratch.python.runtime + u64::from(offsets.interpreters_head);
    scratch.interp = follow(scratch, head);
    if scratch.interp != 0 {
        scratch.tstate = follow(scratch, threads_of(scratch, scratch.interp));
    }
    let mut step = 0;
    while step < SEARCH_MAX {
        if search_step() == END {
            break;
        }
        step += 1;
    }
    let tstate = found_tstate();
    if tstate == 0 && step == SEARCH_MAX {
        scratch.python_flags |= sample_flag::PYTHON_PARTIAL;
    }
    if tstate != 0 {
        maps::insert_python_thread(tid as u32, &PythonThread { tstate });
    }
    tstate
}

/// Address of the innermost frame, 0 if the thread runs no Python code; `None` if it cannot be read.
#[inline(always)]
pub(crate) fn first_frame(offsets: &PythonOffsets, tstate: u64) -> Option<u64> {
    let frame: u64 = read::user(tstate + u64::from(offsets.tstate_frame))?;
    if offsets.cframe_indirect != 0 && frame != 0 {
        return read::user(frame + u64::from(offsets.cframe_current_frame));
    }
    Some(frame)
}

/// How well a thread state suits the wanted thread, one of [`rank`].
#[inline(always)]
fn rank_of(scratch: &SampleScratch, tstate: u64) -> u64 {
    let offsets = &scratch.python.offsets;
    let ids = tstate + u64::from(offsets.tstate_native_thread_id);
    let Some([thread_id, native]) =
        read::user::<[u64; 2]>(ids - tstate_offset::THREAD_ID_TO_NATIVE)
    else {
        return rank::OTHER;
    };
    let idle = if native as u32 == scratch.wanted_tid {
        rank::IDLE
    } else if is_thread_id(thread_id, scratch.thread_pointer, THREAD_ID_SPAN) {
        rank::IDLE_BY_POINTER
    } else {
        return rank::OTHER;
    };
    // Not a pattern of both: the verifier refuses to look into what a read has not filled.
    if first_frame(offsets, tstate).unwrap_or(0) == 0 {
        idle
    } else {
        idle + 1
    }
}

/// Whether the list of threads leads to a thread state: its neighbour before, or its interpreter's
/// head of the list, points to it.
#[inline(always)]
fn is_listed(offsets: &PythonOffsets, tstate: u64) -> bool {
    let Some(previous) = read::user::<u64>(tstate + tstate_offset::PREV) else {
        return false;
    };
    let link = if previous == 0 {
        let Some(interp) = read::user::<u64>(tstate + tstate_offset::INTERP) else {
            return false;
        };
        interp + u64::from(offsets.interp_threads_head)
    } else {
        previous + u64::from(offsets.tstate_next)
    };
    read::user::<u64>(link).unwrap_or(0) == tstate
}

/// Result of [`search_step`]: there is more to look at.
const NEXT: u64 = 0;
/// Result of [`search_step`]: the search is over.
const END: u64 = 1;

/// What the search has found. Read anew: [`search_step`] writes it behind the compiler's back.
#[inline(always)]
fn found_tstate() -> u64 {
    maps::sample_scratch().map_or(0, |scratch| {
        // SAFETY: the pointer is to this CPU's element.
        unsafe { core::ptr::read_volatile(&raw const (*scratch).best_tstate) }
    })
}

/// Looks at one thread state, or moves on to the next interpreter.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn search_step() -> u64 {
    let Some(scratch) = maps::sample_scratch() else {
        return END;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let scratch = unsafe { &mut *scratch };
    let tstate = scratch.tstate;
    if tstate == 0 {
        if scratch.interp == 0 {
            return END;
        }
        let next = scratch.interp + u64::from(scratch.python.offsets.interp_next);
        scratch.interp = follow(scratch, next);
        if scratch.interp == 0 {
            return END;
        }
        scratch.tstate = follow(scratch, threads_of(scratch, scratch.interp));
        return NEXT;
    }
    let rank = rank_of(scratch, tstate);
    if rank > scratch.best_rank {
        scratch.best_rank = rank;
        scratch.best_tstate = tstate;
    }
    if rank == rank::RUNNING {
        return END;
    }
    let next = tstate + u64::from(scratch.python.offsets.tstate_next);
    scratch.tstate = follow(scratch, next);
    NEXT
}

/// Where the first thread state of an interpreter is named.
#[inline(always)]
fn threads_of(scratch: &SampleScratch, interp: u64) -> u64 {
    interp + u64::from(scratch.python.offsets.interp_threads_head)
}

/// The address at `link`. An unreadable one ends the list like 0, and leaves it unknown whether the
/// thread was in the rest.
#[inline(always)]
fn follow(scratch: &mut SampleScratch, link: u64) -> u64 {
    read::user(link).unwrap_or_else(|| {
        scratch.python_flags |= sample_flag::PYTHON_PARTIAL;
        0
    })
}

/// The current thread's id as the process itself sees it.
#[inline(always)]
fn namespace_tid() -> Option<u32> {
    let pid: u64 = read::kernel(read::current_task() + offset!(task_thread_pid))?;
    let level: u32 = read::kernel(pid + offset!(pid_level))?;
    if level > PID_LEVEL_MAX {
        return None;
    }
    read::kernel(pid + offset!(pid_numbers) + u64::from(level) * offset!(upid_size))
}
