//! Builds the records of `SAMPLES` in the CPU's scratch:
//!
//! ```text
//! | SampleHeader | kernel u64 x n | PythonFrameRecord x m | stack bytes |
//! ```
//!
//! The caller has written the header's registers and the kernel frames; the rest is copied from the current thread, with
//! interrupts off. Minimum kernel: 5.8 (ring buffer).

use profiler_common::{
    KERNEL_FRAMES_MAX, KernelCounter, PYTHON_FRAMES_MAX, PythonFrameRecord, REGS_MAX, SampleHeader,
    ThreadTag,
};

use crate::arch::{REGS_WORDS, SP};
use crate::python::walk_python;
use crate::scratch::{SAMPLE_BYTES, SampleScratch};
use crate::stack::copy_user_stack;
use crate::{maps, read};

const HEADER: u64 = size_of::<SampleHeader>() as u64;
/// Room for kernel frames.
pub(crate) const FRAMES_BYTES: u64 = 8 * KERNEL_FRAMES_MAX as u64;
const PYTHON_BYTES: u64 = (size_of::<PythonFrameRecord>() * PYTHON_FRAMES_MAX) as u64;

/// What a record says besides what is copied from the thread.
pub(crate) struct Moment {
    /// `SampleHeader::ktime_ns`.
    pub(crate) ktime_ns: u64,
    /// `SampleHeader::switch_seq`.
    pub(crate) switch_seq: u64,
    /// `SampleHeader::flags` as far as the caller knows them.
    pub(crate) flags: u32,
}

/// This CPU's scratch. Do not keep the reference over a call that looks it up as well.
#[inline(always)]
pub(crate) fn scratch() -> Result<&'static mut SampleScratch, KernelCounter> {
    let scratch = maps::sample_scratch().ok_or(KernelCounter::MapUpdateFailed)?;
    // SAFETY: the pointer is to this CPU's element. All that use it run with interrupts off: none interrupts another.
    Ok(unsafe { &mut *scratch })
}

/// Where the kernel frames belong, [`FRAMES_BYTES`].
#[inline(always)]
pub(crate) fn kernel_frames(scratch: &mut SampleScratch) -> *mut u8 {
    // SAFETY: header and frames fit, see SAMPLE_BYTES.
    unsafe { scratch.bytes.as_mut_ptr().add(HEADER as usize) }
}

/// Copies the user registers at `regs`, an address in the kernel, into the header; returns the stack pointer.
#[inline(always)]
pub(crate) fn write_registers(
    scratch: &mut SampleScratch,
    regs: u64,
) -> Result<u64, KernelCounter> {
    let offset = core::mem::offset_of!(SampleHeader, regs);
    // SAFETY: the header's `regs` has REGS_MAX >= REGS_WORDS words.
    let words = unsafe { scratch.bytes.as_mut_ptr().add(offset) };
    // SAFETY: as above.
    if !unsafe { read::copy_kernel(words, 8 * REGS_WORDS as u64, regs) } {
        return Err(KernelCounter::StackUnreadable);
    }
    const { assert!(SP < REGS_WORDS && REGS_WORDS <= REGS_MAX) };
    // SAFETY: the word was just written, and the array is aligned to 8 bytes.
    Ok(unsafe { core::ptr::read_volatile(words.cast::<u64>().add(SP)) })
}

/// Adds the Python chain and the user stack of the current thread, writes the rest of the header and hands the record
/// to the daemon. Returns the bytes of stack that were copied.
#[inline(always)]
pub(crate) fn write(
    tag: &ThreadTag,
    (tgid, tid): (u32, u32),
    sp: u64,
    kernel_bytes: u64,
    moment: Moment,
) -> Result<u64, KernelCounter> {
    let Moment {
        ktime_ns,
        switch_seq,
        mut flags,
    } = moment;
    let mut at = HEADER + kernel_bytes;
    let own = scratch()?;
    own.python_frames = 0;
    own.python_flags = 0;
    own.python_next = 0;
    if let Some(process) = maps::python_process(tgid) {
        own.python = *process;
        at += walk_python(u64::from(tid), at);
    }
    if at > HEADER + FRAMES_BYTES + PYTHON_BYTES {
        return Err(KernelCounter::MapUpdateFailed);
    }
    let stack = copy_user_stack(at, sp);
    let stack_bytes = stack & 0xffff_ffff;
    flags |= (stack >> 32) as u32;

    // The functions just called have written to the scratch: read it again.
    let own = scratch()?;
    // The daemon counts a chain that stopped early: it may still complete it.
    flags |= own.python_flags;
    let (python_frames, python_next) = (own.python_frames, own.python_next);
    let stack_skipped_bytes = own.stack_skipped_bytes;
    // SAFETY: the header is the first part of the aligned byte array.
    let header = unsafe { &mut *own.bytes.as_mut_ptr().cast::<SampleHeader>() };
    header.request_id = tag.request_id;
    header.ktime_ns = ktime_ns;
    header.switch_seq = switch_seq;
    header.tgid = tgid;
    header.tid = tid;
    header.slot = tag.slot;
    header.flags = flags;
    header.kernel_frame_count = (kernel_bytes / 8) as u32;
    header.python_frame_count = python_frames;
    header.stack_bytes = stack_bytes as u32;
    header.stack_skipped_bytes = stack_skipped_bytes as u32;
    header.python_next = python_next;
    let len = at + stack_bytes;
    if len > SAMPLE_BYTES as u64 {
        return Err(KernelCounter::MapUpdateFailed);
    }
    // SAFETY: len <= SAMPLE_BYTES.
    let record = unsafe { core::slice::from_raw_parts(own.bytes.as_ptr(), len as usize) };
    if maps::output_sample(record) {
        Ok(stack_bytes)
    } else {
        Err(KernelCounter::SampleRingFull)
    }
}
