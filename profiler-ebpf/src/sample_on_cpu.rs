//! `sample_on_cpu`: a tick of a CPU's clock, and what the tagged thread it hit was doing.
//!
//! One perf event (software `cpu-clock`, by period) per CPU. A tick that hits no tagged thread costs
//! one lookup. Otherwise one record is built in the CPU's scratch and written to `SAMPLES`:
//!
//! ```text
//! | SampleHeader | kernel u64 x n | PythonFrameRecord x m | stack bytes |
//! ```
//!
//! The registers are those with which the thread last entered the kernel; for a tick in user code
//! that is the tick itself. Minimum kernel: 5.8 (ring buffer).

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_get_stack;
use aya_ebpf::macros::perf_event;
use aya_ebpf::programs::PerfEventContext;
use profiler_common::{
    KERNEL_FRAMES_MAX, KernelCounter, PYTHON_FRAMES_MAX, PythonFrameRecord, REGS_MAX, SampleHeader,
    ThreadTag, cancel, sample_flag,
};

use crate::arch::{REGS_WORDS, SP};
use crate::count::count;
use crate::python::walk_python;
use crate::scratch::{SAMPLE_BYTES, SampleScratch};
use crate::stack::copy_user_stack;
use crate::{maps, read};

const HEADER: u64 = size_of::<SampleHeader>() as u64;
const FRAMES_BYTES: u64 = 8 * KERNEL_FRAMES_MAX as u64;
const PYTHON_BYTES: u64 = (size_of::<PythonFrameRecord>() * PYTHON_FRAMES_MAX) as u64;

#[perf_event]
pub(crate) fn sample_on_cpu(ctx: PerfEventContext) -> u32 {
    let (tgid, tid) = read::current_ids();
    let Some(tag) = maps::thread_tag(tid) else {
        return 0;
    };
    let tag = *tag;
    if maps::cancelled(tag.request_id) != cancel::NO {
        return 0;
    }
    if let Err(counter) = try_sample(&ctx, &tag, tgid, tid) {
        count(tag.slot, counter);
    }
    0
}

#[inline(always)]
fn try_sample(
    ctx: &PerfEventContext,
    tag: &ThreadTag,
    tgid: u32,
    tid: u32,
) -> Result<(), KernelCounter> {
    let scratch = maps::sample_scratch().ok_or(KernelCounter::MapUpdateFailed)?;
    // SAFETY: the pointer is to this CPU's element; this program does not interrupt itself.
    let scratch = unsafe { &mut *scratch };
    let ktime_ns = read::ktime_ns();
    let sp = write_registers(scratch)?;

    // SAFETY: header and frames fit, see SAMPLE_BYTES.
    let kernel = unsafe {
        bpf_get_stack(
            ctx.as_ptr(),
            scratch.bytes.as_mut_ptr().add(HEADER as usize).cast(),
            FRAMES_BYTES as u32,
            0,
        )
    };
    // No frames, or an error, if the tick hit user code.
    let kernel_bytes = if kernel > 0 { kernel as u64 & 0x1f8 } else { 0 };
    let mut flags = if kernel_bytes == 0 {
        sample_flag::IN_USER
    } else {
        0
    };
    let mut at = HEADER + kernel_bytes;

    scratch.python_frames = 0;
    scratch.python_flags = 0;
    scratch.python_next = 0;
    if let Some(process) = maps::python_process(tgid) {
        scratch.python = *process;
        at += walk_python(u64::from(tid), at);
    }
    if at > HEADER + FRAMES_BYTES + PYTHON_BYTES {
        return Err(KernelCounter::MapUpdateFailed);
    }
    let stack = copy_user_stack(at, sp);
    let stack_bytes = stack & 0xffff_ffff;
    flags |= (stack >> 32) as u32;
    if stack_bytes == 0 {
        count(tag.slot, KernelCounter::StackUnreadable);
    }

    // The functions just called have written to the scratch: read it again.
    let scratch = maps::sample_scratch().ok_or(KernelCounter::MapUpdateFailed)?;
    // SAFETY: the pointer is to this CPU's element; this program does not interrupt itself.
    let scratch = unsafe { &mut *scratch };
    // The daemon counts a chain that stopped early: it may still complete it.
    flags |= scratch.python_flags;
    let (python_frames, python_next) = (scratch.python_frames, scratch.python_next);
    let stack_skipped_bytes = scratch.stack_skipped_bytes;
    // SAFETY: the header is the first part of the aligned byte array.
    let header = unsafe { &mut *scratch.bytes.as_mut_ptr().cast::<SampleHeader>() };
    header.request_id = tag.request_id;
    header.ktime_ns = ktime_ns;
    header.tgid = tgid;
    header.tid = tid;
    header.slot = tag.slot;
    header.flags = flags;
    header.kernel_frame_count = (kernel_bytes / 8) as u32;
    header.python_frame_count = python_frames;
    header.stack_bytes = stack_bytes as u32;
    header.stack_skipped_bytes = stack_skipped_bytes as u32;
    header.python_next = python_next;
    send(scratch, at + stack_bytes)?;
    count(tag.slot, KernelCounter::SamplesTaken);
    Ok(())
}

/// Copies the thread's user registers into the header; returns the stack pointer.
#[inline(always)]
fn write_registers(scratch: &mut SampleScratch) -> Result<u64, KernelCounter> {
    let regs = read::current_user_regs().ok_or(KernelCounter::StackUnreadable)?;
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

/// Writes the record.
#[inline(always)]
fn send(scratch: &SampleScratch, len: u64) -> Result<(), KernelCounter> {
    if len > SAMPLE_BYTES as u64 {
        return Err(KernelCounter::MapUpdateFailed);
    }
    // SAFETY: len <= SAMPLE_BYTES.
    let record = unsafe { core::slice::from_raw_parts(scratch.bytes.as_ptr(), len as usize) };
    if maps::output_sample(record) {
        Ok(())
    } else {
        Err(KernelCounter::SampleRingFull)
    }
}
