//! `sys_exit`: every system call of every process returns through here.
//!
//! Order of the tests, cheapest first: result, system call number, process in `TARGETS`; only then
//! is anything read. The tracepoint's arguments are `(struct pt_regs *regs, long ret)`,
//! <https://github.com/torvalds/linux/blob/v5.10/include/trace/events/syscalls.h#L42>.
//!
//! Minimum kernel: 5.5 (`tp_btf`), 4.17 (`raw_tp`).

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use aya_log_ebpf::debug;
use profiler_common::EndReason;

use crate::arch::{ARGS, MODE, NUMBER, call, is_compat, meaning};
use crate::conn::{on_close, on_close_range, on_end_of_file, on_read, on_shutdown, pack};
use crate::response::on_write;
use crate::scratch::RequestScratch;
use crate::{maps, read};

/// `MSG_PEEK`: the same bytes will be read again.
const MSG_PEEK: u64 = 2;
/// `CLOSE_RANGE_CLOEXEC`: nothing is closed now.
const CLOSE_RANGE_CLOEXEC: u64 = 4;
/// Offset of `msg_iov` in `struct user_msghdr`; `msg_iovlen` follows it.
const MSGHDR_IOV: u64 = 16;

#[btf_tracepoint(function = "sys_exit")]
pub(crate) fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    let regs: *const u64 = ctx.arg(0);
    let result: i64 = ctx.arg(1);
    // SAFETY: the verifier knows the argument as a `struct pt_regs *` and checks the offset; a bad
    // address reads as 0.
    let word = |index: usize| unsafe { core::ptr::read_volatile(regs.add(index)) };
    // Four bytes: on aarch64 `syscallno` has no more, and a read beyond a member is refused.
    // SAFETY: as above.
    let number = || unsafe { core::ptr::read_volatile(regs.add(NUMBER).cast::<u32>()) };
    let is_compat = || {
        // Two bytes: with FRED the rest of the word holds other fields.
        // SAFETY: as above.
        is_compat(u64::from(unsafe {
            core::ptr::read_volatile(regs.add(MODE).cast::<u16>())
        }))
    };
    handle(&ctx, result, number, word, is_compat)
}

#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn raw_sys_exit(ctx: RawTracePointContext) -> i32 {
    let regs: u64 = ctx.arg(0);
    let result: i64 = ctx.arg(1);
    let word = |index: usize| read::kernel::<u64>(regs + 8 * index as u64).unwrap_or(0);
    let number = || read::kernel::<u32>(regs + 8 * NUMBER as u64).unwrap_or(u32::MAX);
    let is_compat =
        || read::kernel::<u16>(regs + 8 * MODE as u64).is_none_or(|mode| is_compat(mode.into()));
    handle(&ctx, result, number, word, is_compat)
}

/// Passes on the calls of target processes that concern connections.
#[inline(always)]
fn handle(
    ctx: &impl EbpfContext,
    result: i64,
    number: impl Fn() -> u32,
    word: impl Fn(usize) -> u64,
    is_compat: impl Fn() -> bool,
) -> i32 {
    if result < 0 {
        return 0;
    }
    let meaning = meaning(u64::from(number()));
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
    scratch.task_mask = target.task_mask;
    scratch.target_flags = target.flags;
    let args = ARGS.map(&word);
    let result = result as u64;
    if !dispatch(scratch, meaning, tgid, args, result) {
        debug!(
            ctx,
            "sys_exit: tgid {} tid {}: arguments of call {} are not readable", tgid, tid, meaning
        );
    }
    0
}

/// Finds descriptor, bytes and length of a call and hands them to the state machine; false if a
/// structure in user memory could not be read.
#[inline(always)]
fn dispatch(
    scratch: &mut RequestScratch,
    meaning: u8,
    tgid: u32,
    args: [u64; 4],
    result: u64,
) -> bool {
    let key = pack(tgid, (args[0] as u32).cast_signed());
    match meaning {
        call::READ | call::RECEIVE => {
            if meaning == call::RECEIVE && args[3] & MSG_PEEK != 0 || args[2] == 0 {
                return true;
            }
            source(scratch, args[1], 0, result);
            read_call(key, result);
        }
        call::READ_IOVEC => {
            source(scratch, args[1], args[2], result);
            read_call(key, result);
        }
        call::READ_MESSAGE => {
            if args[2] & MSG_PEEK != 0 {
                return true;
            }
            let Some([base, count]) = read::user::<[u64; 2]>(args[1] + MSGHDR_IOV) else {
                return false;
            };
            if count != 0 {
                source(scratch, base, count, result);
                read_call(key, result);
            }
        }
        call::WRITE => {
            source(scratch, args[1], 0, result);
            write_call(key, result, 1);
        }
        call::WRITE_IOVEC => {
            source(scratch, args[1], args[2], result);
            write_call(key, result, 1);
        }
        call::WRITE_MESSAGE => {
            let Some([base, count]) = read::user::<[u64; 2]>(args[1] + MSGHDR_IOV) else {
                return false;
            };
            source(scratch, base, count, result);
            write_call(key, result, 1);
        }
        call::WRITE_UNSEEN => write_call(key, result, 0),
        call::SPLICE => write_call(pack(tgid, (args[2] as u32).cast_signed()), result, 0),
        // The result counts messages; their bytes are not worth a walk.
        call::WRITE_MESSAGES if result != 0 => {
            on_write(key, 0, 0);
        }
        call::CLOSE => {
            on_close(key, EndReason::Closed as u64);
        }
        call::CLOSE_RANGE if args[2] & CLOSE_RANGE_CLOEXEC == 0 => {
            on_close_range(key, args[1] & 0xffff_ffff);
        }
        // 0 is SHUT_RD.
        call::SHUTDOWN if args[1] != 0 => {
            on_shutdown(key);
        }
        call::DUP if args[0] != args[1] => {
            on_close(
                pack(tgid, (result as u32).cast_signed()),
                EndReason::DupOver as u64,
            );
        }
        _ => {}
    }
    true
}

#[inline(always)]
fn source(scratch: &mut RequestScratch, base: u64, iovec_count: u64, len: u64) {
    scratch.base = base;
    scratch.iovec_count = iovec_count;
    scratch.len = len;
}

#[inline(always)]
fn read_call(key: u64, result: u64) {
    if result == 0 {
        on_end_of_file(key);
    } else {
        on_read(key);
    }
}

#[inline(always)]
fn write_call(key: u64, result: u64, seen: u64) {
    if result != 0 {
        on_write(key, result, seen);
    }
}
