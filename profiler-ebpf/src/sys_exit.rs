//! `sys_exit`: every system call of every process returns through here.
//!
//! Loaded where the socket hooks (`sock_recv`) do not exist: the tracepoint puts every task of the machine on
//! the kernel's slow path for system calls.
//!
//! Order of the tests, cheapest first: result, system call number, process in `TARGETS`; only then
//! is anything read. The tracepoint's arguments are `(struct pt_regs *regs, long ret)`,
//! <https://github.com/torvalds/linux/blob/v5.10/include/trace/events/syscalls.h#L42>.
//!
//! Minimum kernel: 5.5 (`tp_btf`), 4.17 (`raw_tp`).

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};

use crate::arch::{ARGS, MODE, NUMBER, call, is_compat, meaning};
use crate::syscall::{Call, Registers, on_ended, on_received, on_sent};
use crate::{maps, read};

#[btf_tracepoint(function = "sys_exit")]
pub(crate) fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    let registers = Registers(ctx.arg(0));
    let result: i64 = ctx.arg(1);
    let word = |index: usize| registers.word(index);
    handle(&ctx, result, registers.number(), word, || {
        registers.is_compat()
    })
}

#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn raw_sys_exit(ctx: RawTracePointContext) -> i32 {
    let regs: u64 = ctx.arg(0);
    let result: i64 = ctx.arg(1);
    let word = |index: usize| read::kernel::<u64>(regs + 8 * index as u64).unwrap_or(0);
    let number = read::kernel::<u32>(regs + 8 * NUMBER as u64).unwrap_or(u32::MAX);
    let is_compat =
        || read::kernel::<u16>(regs + 8 * MODE as u64).is_none_or(|mode| is_compat(mode.into()));
    handle(&ctx, result, number, word, is_compat)
}

/// Passes on the calls of target processes that concern connections.
#[inline(always)]
fn handle(
    ctx: &impl EbpfContext,
    result: i64,
    number: u32,
    word: impl Fn(usize) -> u64,
    is_compat: impl Fn() -> bool,
) -> i32 {
    if result < 0 {
        return 0;
    }
    let meaning = meaning(u64::from(number));
    if meaning == call::NONE {
        return 0;
    }
    let (tgid, tid) = read::current_ids();
    let Some(target) = maps::target(tgid) else {
        return 0;
    };
    let Some(scratch) = maps::request_scratch() else {
        return 0;
    };
    if is_compat() {
        return 0;
    }
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let scratch = unsafe { &mut *scratch };
    scratch.begin(tid, target);
    let call = Call {
        meaning,
        tgid,
        args: ARGS.map(&word),
    };
    let bit = call::bit(meaning);
    if bit & call::RECEIVES != 0 {
        on_received(ctx, scratch, &call, result as u64);
    } else if bit & call::SENDS != 0 {
        on_sent(ctx, scratch, &call, result as u64);
    } else {
        on_ended(&call);
    }
    0
}
