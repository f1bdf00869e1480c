//! `sched_process_exec`: a process becomes another program.
//!
//! Arguments: `(task, old_pid, bprm)`. All other threads are gone by now; a thread that was not the
//! leader has taken the leader's id, and `old_pid` is the one it had.
//!
//! Minimum kernel: 5.5 (`tp_btf`), 4.17 (`raw_tp`).

use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use profiler_common::{EndReason, RequestEventKind};

use crate::process_exit::drop_thread;
use crate::{emit, maps, read};

#[btf_tracepoint(function = "sched_process_exec")]
pub(crate) fn process_exec(ctx: BtfTracePointContext) -> i32 {
    handle(ctx.arg(1))
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn raw_exec(ctx: RawTracePointContext) -> i32 {
    handle(ctx.arg(1))
}

#[inline(always)]
fn handle(old_tid: u64) -> i32 {
    let (tgid, tid) = read::current_ids();
    drop_thread(old_tid as u32, EndReason::Exec);
    drop_thread(tid, EndReason::Exec);
    let Some(target) = maps::target(tgid) else {
        return 0;
    };
    let task_mask = target.task_mask;
    maps::begin_program(tgid);
    maps::remove_python_process(tgid);
    emit::process_event(RequestEventKind::Exec, task_mask, tgid, -1, 0);
    0
}
