//! `sample_on_cpu`: a tick of a CPU's clock, and what the tagged thread it hit was doing.
//!
//! One perf event (software `cpu-clock`, by period) per CPU. A tick that hits no tagged thread costs
//! one lookup. Otherwise one record is written to `SAMPLES`, see [`crate::sample`].
//!
//! The registers are those with which the thread last entered the kernel; for a tick in user code
//! that is the tick itself. Minimum kernel: 5.8 (ring buffer).

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_get_stack;
use aya_ebpf::macros::perf_event;
use aya_ebpf::programs::PerfEventContext;
use profiler_common::{KernelCounter, ThreadTag, cancel, sample_flag};

use crate::count::count;
use crate::sample::{self, FRAMES_BYTES, Moment};
use crate::{maps, read};

#[perf_event]
pub(crate) fn sample_on_cpu(ctx: PerfEventContext) -> u32 {
    let ids = read::current_ids();
    let Some(tag) = maps::thread_tag(ids.1) else {
        return 0;
    };
    let tag = *tag;
    if maps::cancelled(tag.request_id) != cancel::NO {
        return 0;
    }
    match try_sample(&ctx, &tag, ids) {
        Ok(stack_bytes) => {
            if stack_bytes == 0 {
                count(tag.slot, KernelCounter::StackUnreadable);
            }
            count(tag.slot, KernelCounter::SamplesTaken);
        }
        Err(counter) => count(tag.slot, counter),
    }
    0
}

#[inline(always)]
fn try_sample(
    ctx: &PerfEventContext,
    tag: &ThreadTag,
    ids: (u32, u32),
) -> Result<u64, KernelCounter> {
    let ktime_ns = read::ktime_ns();
    let scratch = sample::scratch()?;
    let regs = read::current_user_regs().ok_or(KernelCounter::StackUnreadable)?;
    let sp = sample::write_registers(scratch, regs)?;
    // SAFETY: there is room for so many bytes.
    let kernel = unsafe {
        bpf_get_stack(
            ctx.as_ptr(),
            sample::kernel_frames(scratch).cast(),
            FRAMES_BYTES as u32,
            0,
        )
    };
    // No frames, or an error, if the tick hit user code.
    let kernel_bytes = if kernel > 0 { kernel as u64 & 0x1f8 } else { 0 };
    let flags = if kernel_bytes == 0 {
        sample_flag::IN_USER
    } else {
        0
    };
    let moment = Moment {
        ktime_ns,
        switch_seq: 0,
        flags,
    };
    sample::write(tag, ids, sp, kernel_bytes, moment)
}
