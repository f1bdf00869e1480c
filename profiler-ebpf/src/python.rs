//! Walks the CPython frames of the current thread into the sample.
//!
//! The interpreter cannot change them meanwhile: this thread is the one that would. Layouts differ
//! by version; the daemon gives them as `PythonOffsets`, whose documentation draws the walk.
//!
//! # Which thread state is ours
//!
//! The one whose `native_thread_id` is the thread's id in the process's own pid namespace. It is found
//! by walking all interpreters and threads, then kept in `PYTHON_THREADS`; one read per sample
//! checks that the entry still holds. The thread-local `_Py_tss_tstate` is no help: it is unset
//! whenever the thread has released the interpreter lock.

use profiler_common::{PYTHON_FRAMES_MAX, PythonFrameRecord, PythonThread, sample_flag};

use crate::globals::offset;
use crate::scratch::{PYTHON_FRAME_BYTES, SAMPLE_BYTES, SampleScratch};
use crate::{maps, read};

/// Most interpreters and threads looked at in a search.
const SEARCH_MAX: u32 = 512;
/// Pid namespaces can be nested this deep, `MAX_PID_NS_LEVEL`.
const PID_LEVEL_MAX: u32 = 32;
/// Size of a record.
const RECORD: u64 = size_of::<PythonFrameRecord>() as u64;
/// Returned by [`push_frame`] when the frame could not be read; no address is odd.
const UNREADABLE: u64 = 1;

/// Writes the chain of thread `tid` to `bytes[at..]`, and what is to say about it to the scratch, where
/// the process's `PythonProcess` must be. Returns the bytes written.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn walk_python(tid: u64, at: u64) -> u64 {
    let Some(scratch) = maps::sample_scratch() else {
        return 0;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let scratch = unsafe { &mut *scratch };
    scratch.python_frames = 0;
    scratch.python_next = 0;
    scratch.python_flags = sample_flag::PYTHON;
    let tstate = thread_state(tid);
    if tstate == 0 {
        scratch.python_flags |= sample_flag::PYTHON_NO_THREAD;
        return 0;
    }
    let offsets = &scratch.python.offsets;
    let mut frame = tstate + u64::from(offsets.tstate_frame);
    let Some(first) = read::user::<u64>(frame) else {
        scratch.python_flags |= sample_flag::PYTHON_PARTIAL;
        return 0;
    };
    frame = first;
    if offsets.cframe_indirect != 0 && frame != 0 {
        let Some(first) = read::user::<u64>(frame + u64::from(offsets.cframe_current_frame)) else {
            scratch.python_flags |= sample_flag::PYTHON_PARTIAL;
            return 0;
        };
        frame = first;
    }
    scratch.python_span = frame_span(scratch);
    let mut count = 0;
    while count < PYTHON_FRAMES_MAX as u64 {
        if frame == 0 {
            break;
        }
        let previous = push_frame(frame, at + count * RECORD);
        if previous == UNREADABLE {
            scratch.python_flags |= sample_flag::PYTHON_PARTIAL;
            break;
        }
        frame = previous;
        count += 1;
    }
    if count == PYTHON_FRAMES_MAX as u64 && frame != 0 {
        scratch.python_flags |= sample_flag::PYTHON_CUT;
    }
    scratch.python_next = frame;
    scratch.python_frames = count as u32;
    count * RECORD
}

/// Bytes of a frame that hold all the fields we want.
#[inline(always)]
fn frame_span(scratch: &SampleScratch) -> u64 {
    let offsets = &scratch.python.offsets;
    let mut last = offsets.frame_previous;
    if offsets.frame_executable > last {
        last = offsets.frame_executable;
    }
    if offsets.frame_instr > last {
        last = offsets.frame_instr;
    }
    if offsets.frame_owner > last {
        last = offsets.frame_owner;
    }
    u64::from(last & !7) + 8
}

/// Writes one frame as a record to `bytes[to..]` and returns the address of the previous frame, or
/// [`UNREADABLE`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn push_frame(frame: u64, to: u64) -> u64 {
    let Some(scratch) = maps::sample_scratch() else {
        return UNREADABLE;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let scratch = unsafe { &mut *scratch };
    let span = read::opaque(scratch.python_span);
    if span == 0 || span > PYTHON_FRAME_BYTES as u64 {
        return UNREADABLE;
    }
    // SAFETY: the buffer has PYTHON_FRAME_BYTES.
    if !unsafe { read::copy_user(scratch.python_frame.as_mut_ptr(), span, frame) } {
        return UNREADABLE;
    }
    let offsets = &scratch.python.offsets;
    let record = PythonFrameRecord {
        // 3.14 keeps tags in the low bits of references.
        code: word_at(scratch, offsets.frame_executable) & !3,
        instr: word_at(scratch, offsets.frame_instr),
        owner: u32::from(byte_at(scratch, offsets.frame_owner)),
        flags: 0,
    };
    let previous = word_at(scratch, offsets.frame_previous);
    let to = read::opaque(to);
    if to > SAMPLE_BYTES as u64 - RECORD {
        return UNREADABLE;
    }
    // SAFETY: to + size_of::<PythonFrameRecord>() <= SAMPLE_BYTES; records are 8-byte aligned since
    // everything before them in the sample is a multiple of 8 bytes long.
    unsafe {
        scratch
            .bytes
            .as_mut_ptr()
            .add(to as usize)
            .cast::<PythonFrameRecord>()
            .write_unaligned(record);
    }
    if previous == UNREADABLE { 0 } else { previous }
}

#[inline(always)]
fn word_at(scratch: &SampleScratch, offset: u32) -> u64 {
    let offset = offset as usize & (PYTHON_FRAME_BYTES - 8);
    // SAFETY: offset + 8 <= PYTHON_FRAME_BYTES.
    unsafe {
        scratch
            .python_frame
            .as_ptr()
            .add(offset)
            .cast::<u64>()
            .read_unaligned()
    }
}

#[inline(always)]
fn byte_at(scratch: &SampleScratch, offset: u32) -> u8 {
    let offset = offset as usize & (PYTHON_FRAME_BYTES - 1);
    // SAFETY: offset < PYTHON_FRAME_BYTES.
    unsafe { *scratch.python_frame.as_ptr().add(offset) }
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
    let offsets = &scratch.python.offsets;
    let Some(wanted) = namespace_tid() else {
        return 0;
    };
    if let Some(known) = maps::python_thread(tid as u32) {
        let tstate = known.tstate;
        let id = tstate + u64::from(offsets.tstate_native_thread_id);
        if read::user::<u64>(id).is_some_and(|id| id as u32 == wanted) {
            return tstate;
        }
    }
    let head = scratch.python.runtime + u64::from(offsets.interpreters_head);
    let interp: u64 = read::user(head).unwrap_or(0);
    let mut tstate = 0;
    if interp != 0 {
        tstate = read::user(interp + u64::from(offsets.interp_threads_head)).unwrap_or(0);
    }
    scratch.interp = interp;
    scratch.tstate = tstate;
    let mut step = 0;
    while step < SEARCH_MAX {
        let result = search_step(u64::from(wanted));
        if result == step_result::END {
            break;
        }
        if result == step_result::FOUND {
            let tstate = found_tstate();
            maps::insert_python_thread(tid as u32, &PythonThread { tstate });
            return tstate;
        }
        step += 1;
    }
    0
}

/// Results of [`search_step`].
mod step_result {
    pub(crate) const NEXT: u64 = 0;
    pub(crate) const FOUND: u64 = 1;
    pub(crate) const END: u64 = 2;
}

/// Where the search stands. Read anew: [`search_step`] writes it behind the compiler's back.
#[inline(always)]
fn found_tstate() -> u64 {
    maps::sample_scratch().map_or(0, |scratch| {
        // SAFETY: the pointer is to this CPU's element.
        unsafe { core::ptr::read_volatile(&raw const (*scratch).tstate) }
    })
}

/// Looks at one thread state, or moves on to the next interpreter.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn search_step(wanted: u64) -> u64 {
    let Some(scratch) = maps::sample_scratch() else {
        return step_result::END;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let scratch = unsafe { &mut *scratch };
    let offsets = &scratch.python.offsets;
    let tstate = scratch.tstate;
    if tstate == 0 {
        let interp = scratch.interp;
        if interp == 0 {
            return step_result::END;
        }
        let next: u64 = read::user(interp + u64::from(offsets.interp_next)).unwrap_or(0);
        if next == 0 {
            return step_result::END;
        }
        let threads = next + u64::from(offsets.interp_threads_head);
        scratch.interp = next;
        scratch.tstate = read::user(threads).unwrap_or(0);
        return step_result::NEXT;
    }
    let Some(id) = read::user::<u64>(tstate + u64::from(offsets.tstate_native_thread_id)) else {
        return step_result::END;
    };
    if u64::from(id as u32) == wanted {
        return step_result::FOUND;
    }
    scratch.tstate = read::user(tstate + u64::from(offsets.tstate_next)).unwrap_or(0);
    step_result::NEXT
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
