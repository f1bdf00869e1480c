//! `sched_process_exit`: a thread ends; its tag must not outlive it, nor its process the target set.
//!
//! Runs in the thread that exits, after `signal->live` was decremented: 0 means the whole process is
//! gone, <https://github.com/torvalds/linux/blob/v5.10/kernel/exit.c#L773>.
//!
//! Minimum kernel: 5.5 (`tp_btf`), 4.17 (`raw_tp`).

use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use profiler_common::{EndReason, RequestEventKind};

use crate::conn::{end_request, pack};
use crate::globals::offset;
use crate::{emit, maps, read, tag};

#[btf_tracepoint(function = "sched_process_exit")]
pub(crate) fn process_exit(_ctx: BtfTracePointContext) -> i32 {
    handle()
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn raw_exit(_ctx: RawTracePointContext) -> i32 {
    handle()
}

#[inline(always)]
fn handle() -> i32 {
    let (tgid, tid) = read::current_ids();
    drop_thread(tid, EndReason::ThreadExit);
    let Some(target) = maps::target(tgid) else {
        return 0;
    };
    let task_mask = target.task_mask;
    if !is_last_thread() {
        return 0;
    }
    maps::remove_target(tgid);
    maps::remove_python_process(tgid);
    emit::process_event(RequestEventKind::Exit, task_mask, tgid, -1, 0);
    0
}

/// Ends the request a thread serves and forgets the thread.
#[inline(always)]
pub(crate) fn drop_thread(tid: u32, reason: EndReason) {
    let Some(served) = maps::thread_tag(tid) else {
        return;
    };
    let key = pack(served.tgid, served.fd);
    end_request(key, reason as u64, served.request_id);
    tag::remove(tid);
    maps::remove_python_thread(tid);
}

#[inline(always)]
fn is_last_thread() -> bool {
    let live = || {
        let signal: u64 = read::kernel(read::current_task() + offset!(task_signal))?;
        read::kernel::<u32>(signal + offset!(signal_live))
    };
    live() == Some(0)
}
