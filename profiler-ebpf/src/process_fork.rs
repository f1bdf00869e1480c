//! `sched_process_fork`: the child of a target is a target (pre-forking servers).
//!
//! Arguments: `(parent, child)`; new threads come by here too and are told by their tgid.
//!
//! Minimum kernel: 5.5 (`tp_btf`), 4.17 (`raw_tp`).

use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use profiler_common::{KernelCounter, PROGRAM_UNIT_BITS, RequestEventKind, Target};

use crate::count::count_all;
use crate::globals::offset;
use crate::{emit, maps, read};

#[btf_tracepoint(function = "sched_process_fork")]
pub(crate) fn process_fork(ctx: BtfTracePointContext) -> i32 {
    handle(ctx.arg(1))
}

#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub(crate) fn raw_fork(ctx: RawTracePointContext) -> i32 {
    handle(ctx.arg(1))
}

#[inline(always)]
fn handle(child: u64) -> i32 {
    let (tgid, _) = read::current_ids();
    let Some(target) = maps::target(tgid) else {
        return 0;
    };
    let Some(child_tgid) = read::kernel::<u32>(child + offset!(task_tgid)) else {
        return 0;
    };
    if child_tgid == tgid {
        return 0;
    }
    let target = Target {
        program: (read::ktime_ns() >> PROGRAM_UNIT_BITS) as u32,
        ..*target
    };
    if !maps::insert_target(child_tgid, &target) {
        count_all(target.task_mask, KernelCounter::MapUpdateFailed);
        return 0;
    }
    // The child has the parent's memory, so `_PyRuntime` lies at the same address.
    if let Some(python) = maps::python_process(tgid)
        && !maps::insert_python_process(child_tgid, python)
    {
        count_all(target.task_mask, KernelCounter::MapUpdateFailed);
    }
    emit::process_event(
        RequestEventKind::Fork,
        target.task_mask,
        tgid,
        -1,
        child_tgid,
    );
    0
}
