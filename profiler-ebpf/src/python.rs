//! Walks the CPython frames of the current thread into the sample.
//!
//! The interpreter cannot change them meanwhile: this thread is the one that would. Layouts differ
//! by version; the daemon gives them as `PythonOffsets`, whose documentation draws the walk.
//!
//! The chain begins at the thread's `PyThreadState`, which `python_thread.rs` finds.

use profiler_common::{PYTHON_FRAMES_MAX, PythonFrameRecord, PythonOffsets, sample_flag};

use crate::python_thread::{first_frame, thread_state};
use crate::scratch::{PYTHON_FRAME_BYTES, SAMPLE_BYTES, SampleScratch};
use crate::{maps, read};

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
    let Some(mut frame) = first_frame(&scratch.python.offsets, tstate) else {
        scratch.python_flags |= sample_flag::PYTHON_PARTIAL;
        return 0;
    };
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
    if !unsafe { read::copy_user(scratch.python_frame.as_mut_ptr().cast(), span, frame) } {
        return UNREADABLE;
    }
    let offsets = &scratch.python.offsets;
    // 3.14 keeps tags in the low bits of references.
    let code = word_at(scratch, offsets.frame_executable) & !3;
    let record = PythonFrameRecord {
        code,
        instr: word_at(scratch, offsets.frame_instr),
        owner: u16::from(byte_at(scratch, offsets.frame_owner)),
        flags: 0,
        identity: identity_of(offsets, code).unwrap_or(0),
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

/// What tells the code object from one that takes its place before the frame is named.
#[inline(always)]
fn identity_of(offsets: &PythonOffsets, code: u64) -> Option<u32> {
    if offsets.code_identity == 0 || code == 0 {
        return None;
    }
    let identity: u32 = read::user(code + u64::from(offsets.code_identity))?;
    if offsets.code_name == 0 {
        return Some(identity);
    }
    let name: u64 = read::user(code + u64::from(offsets.code_name))?;
    let hash: u32 = read::user(name + u64::from(offsets.str_hash))?;
    Some(identity ^ hash)
}

/// The pointer at an offset, which is a multiple of 8.
#[inline(always)]
fn word_at(scratch: &SampleScratch, offset: u32) -> u64 {
    let index = (read::opaque(u64::from(offset)) & (PYTHON_FRAME_BYTES as u64 - 8)) / 8;
    // SAFETY: index < PYTHON_FRAME_BYTES / 8.
    unsafe { *scratch.python_frame.as_ptr().add(index as usize) }
}

#[inline(always)]
fn byte_at(scratch: &SampleScratch, offset: u32) -> u8 {
    let offset = read::opaque(u64::from(offset)) & (PYTHON_FRAME_BYTES as u64 - 1);
    // SAFETY: offset < PYTHON_FRAME_BYTES.
    unsafe {
        *scratch
            .python_frame
            .as_ptr()
            .cast::<u8>()
            .add(offset as usize)
    }
}
