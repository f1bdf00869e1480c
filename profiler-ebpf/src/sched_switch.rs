//! `sched_switch`: where tagged threads leave and take a CPU.
//!
//! The program runs at every context switch of the machine; it looks at two counts in an array and
//! leaves unless one of the threads is tagged. At switch-out it stores the registers with which the
//! thread entered the kernel and its kernel stack (of a thread that switches all the time only some), or removes
//! the tag of a request that the daemon
//! has cancelled. The user stack is not touched as a rule: while the thread stays switched out the daemon can read it
//! whenever it likes, and sees by `ThreadState::seq` whether the thread ran meanwhile.
//!
//! Shortly before a tick there is no time for that: a thread pushed off its CPU by another, which computes for 50 us,
//! runs again before the daemon has woken up. So a thread that leaves its CPU then is recorded here, and
//! `ThreadState::recorded_end_ktime_ns` says whether it was still switched out at the tick.
//!
//! Arguments: `(bool preempt, prev, next)`, and from 5.18 on `prev_state`, which is not used, so
//! that one program fits all. `current` is still `prev`,
//! <https://github.com/torvalds/linux/blob/v5.10/kernel/sched/core.c#L4544>.
//!
//! Minimum kernel: 5.5 (`tp_btf`), 4.17 (`raw_tp`).

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_get_stack;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use profiler_common::{
    KERNEL_FRAMES_MAX, KERNEL_STACKS_MAX, KERNEL_STACKS_WINDOW_NS, KernelCounter,
    SWITCH_OUTS_AHEAD_NS, SWITCH_OUTS_MAX, ThreadState, sample_flag, thread_state_flag,
};

use crate::arch::{CALL, REGS_WORDS, is_epoll_wait};
use crate::globals::offset;
use crate::sample::{self, FRAMES_BYTES, Moment};
use crate::{maps, read, tag};

#[btf_tracepoint(function = "sched_switch")]
pub(crate) fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let offset = offset!(task_pid) as usize;
    let pid = |task: *const u8| {
        // SAFETY: the verifier knows the argument as a `struct task_struct *` and checks the offset.
        unsafe { core::ptr::read_volatile(task.add(offset).cast::<u32>()) }
    };
    handle(&ctx, ctx.arg(0), pid(ctx.arg(1)), pid(ctx.arg(2)))
}

#[raw_tracepoint(tracepoint = "sched_switch")]
pub(crate) fn raw_switch(ctx: RawTracePointContext) -> i32 {
    let next: u64 = ctx.arg(2);
    let next_tid = read::kernel::<u32>(next + offset!(task_pid)).unwrap_or(0);
    handle(&ctx, ctx.arg(0), read::current_ids().1, next_tid)
}

#[inline(always)]
fn handle(ctx: &impl EbpfContext, preempted: u64, prev_tid: u32, next_tid: u32) -> i32 {
    if maps::may_be_tagged(prev_tid)
        && let Some(state) = maps::thread_state(prev_tid)
    {
        if !tag::drop_if_cancelled(prev_tid) {
            switch_out(ctx, state, preempted & 0xff != 0);
        }
    }
    if maps::may_be_tagged(next_tid)
        && let Some(state) = maps::thread_state(next_tid)
    {
        switch_in(state);
    }
    0
}

/// The thread is about to run: a reader that saw it switched out learns that it ran.
#[inline(always)]
fn switch_in(state: &mut ThreadState) {
    let seq = begin_write(state);
    state.ktime_ns = read::ktime_ns();
    state.in_ktime_ns = state.ktime_ns;
    if state.recorded_end_ktime_ns == 0 {
        state.recorded_end_ktime_ns = state.ktime_ns;
    }
    state.flags = thread_state_flag::ON_CPU;
    write_seq(state, seq + 1);
}

#[inline(always)]
fn switch_out(ctx: &impl EbpfContext, state: &mut ThreadState, preempted: bool) {
    let seq = begin_write(state);
    state.ktime_ns = read::ktime_ns();
    let prev_state: u32 = read::kernel(read::current_task() + offset!(task_state)).unwrap_or(0);
    state.prev_state = prev_state;
    // TASK_RUNNING is 0: it did not ask to sleep, so it waits for a CPU.
    state.flags = if preempted || prev_state == 0 {
        thread_state_flag::RUNNABLE
    } else {
        0
    };
    if let Some(regs) = read::current_user_regs() {
        // SAFETY: `regs` has REGS_MAX >= REGS_WORDS words.
        unsafe {
            read::copy_kernel(state.regs.as_mut_ptr().cast(), 8 * REGS_WORDS as u64, regs);
        }
    }
    if state.flags & thread_state_flag::RUNNABLE == 0 && is_epoll_wait(state.regs[CALL[0]]) {
        tag::note_wait(state.regs[CALL[1]]);
    }
    if may_store_stack(state) {
        store_stack(ctx, state);
        if is_to_record(state) {
            // Without a record the daemon reads what it can, and counts what it cannot.
            let _ = record(state, seq + 1);
        }
    } else {
        state.kernel_frame_count = 0;
        state.flags |= thread_state_flag::KERNEL_STACK_SKIPPED;
    }
    write_seq(state, seq + 1);
}

/// Whether a tick is so near that the thread may run again before the daemon can read it.
#[inline(always)]
fn is_to_record(state: &mut ThreadState) -> bool {
    let Some(ticks) = maps::ticks() else {
        return false;
    };
    if ticks.period_ns == 0 || state.ktime_ns < ticks.origin_ktime_ns {
        return false;
    }
    let mut ahead_ns = ticks.period_ns / 2;
    if ahead_ns > SWITCH_OUTS_AHEAD_NS {
        ahead_ns = SWITCH_OUTS_AHEAD_NS;
    }
    let since_tick_ns = (state.ktime_ns - ticks.origin_ktime_ns) % ticks.period_ns;
    if since_tick_ns + ahead_ns < ticks.period_ns {
        return false;
    }
    if state.ktime_ns - state.recorded_ktime_ns > ahead_ns {
        state.recorded_count = 0; // of a tick before
    }
    state.recorded_count < SWITCH_OUTS_MAX && maps::has_room_for_switch_outs()
}

/// Records what the thread was doing as it left its CPU.
#[inline(always)]
fn record(state: &mut ThreadState, seq: u64) -> Result<(), KernelCounter> {
    let ids = read::current_ids();
    let Some(tag) = maps::thread_tag(ids.1) else {
        return Ok(());
    };
    let tag = *tag;
    let own = sample::scratch()?;
    let sp = sample::write_registers(own, state.regs.as_ptr() as u64)?;
    // SAFETY: there is room for so many bytes.
    unsafe {
        read::copy_kernel(
            sample::kernel_frames(own),
            FRAMES_BYTES,
            state.kernel_frames.as_ptr() as u64,
        );
    }
    let kernel_bytes = (8 * u64::from(state.kernel_frame_count)) & 0x1f8;
    let moment = Moment {
        ktime_ns: state.ktime_ns,
        switch_seq: seq,
        flags: sample_flag::SWITCH_OUT,
    };
    sample::write(&tag, ids, sp, kernel_bytes, moment)?;
    state.recorded_count += 1;
    state.recorded_seq = seq;
    state.recorded_ktime_ns = state.ktime_ns;
    state.recorded_end_ktime_ns = 0;
    Ok(())
}

/// Whether the thread may have another kernel stack unwound in this window of time.
#[inline(always)]
fn may_store_stack(state: &mut ThreadState) -> bool {
    if state.ktime_ns - state.window_ktime_ns > KERNEL_STACKS_WINDOW_NS {
        state.window_ktime_ns = state.ktime_ns;
        state.stacks_in_window = 0;
    }
    if state.stacks_in_window >= KERNEL_STACKS_MAX {
        return false;
    }
    state.stacks_in_window += 1;
    true
}

#[inline(always)]
fn store_stack(ctx: &impl EbpfContext, state: &mut ThreadState) {
    // SAFETY: the buffer has the size that is given.
    let bytes = unsafe {
        bpf_get_stack(
            ctx.as_ptr(),
            state.kernel_frames.as_mut_ptr().cast(),
            8 * KERNEL_FRAMES_MAX as u32,
            0,
        )
    };
    state.kernel_frame_count = if bytes > 0 { bytes as u32 / 8 } else { 0 };
}

/// Makes the number odd and returns it.
///
/// Read and write may be two steps here: this hook runs with interrupts off, and a thread that leaves or takes a
/// CPU runs on no other. Everywhere else the number is moved on in one step, see `tag::set_tag`.
#[inline(always)]
fn begin_write(state: &mut ThreadState) -> u64 {
    // SAFETY: a reference is valid for reads.
    let seq = unsafe { core::ptr::read_volatile(&raw const state.seq) } | 1;
    write_seq(state, seq);
    seq
}

/// Volatile, so that the number is really odd while the rest is written.
#[inline(always)]
fn write_seq(state: &mut ThreadState, seq: u64) {
    // SAFETY: a reference is valid for writes.
    unsafe { core::ptr::write_volatile(&raw mut state.seq, seq) }
}
