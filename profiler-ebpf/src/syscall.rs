//! What the system call of a task means for a connection, passed to the state machine.
//!
//! Shared by the hooks that see requests. `sys_exit` is given the registers; the socket hooks
//! (`sock_recv`, `sock_send`, `sock_state`) run inside the call, and its registers lie on the task's
//! kernel stack.

use aya_ebpf::EbpfContext;
use aya_log_ebpf::debug;
use profiler_common::{EndReason, KernelCounter, setting_flag};

use crate::arch::{ARGS, MODE, NUMBER, call, is_compat, meaning};
use crate::conn::{
    on_close, on_close_range, on_closed, on_end_of_file, on_read, on_shutdown, pack,
};
use crate::count::count_all;
use crate::globals::setting;
use crate::response::on_write;
use crate::scratch::RequestScratch;
use crate::socket::given;
use crate::{maps, read};

/// `MSG_PEEK`: the same bytes will be read again.
pub(crate) const MSG_PEEK: u64 = 2;
/// `CLOSE_RANGE_CLOEXEC`: nothing is closed now.
const CLOSE_RANGE_CLOEXEC: u64 = 4;
/// Offset of `msg_iov` in `struct user_msghdr`; `msg_iovlen` follows it.
const MSGHDR_IOV: u64 = 16;

/// A system call of a target process that concerns a connection.
pub(crate) struct Call {
    /// What it means, one of [`call`].
    pub(crate) meaning: u8,
    pub(crate) tgid: u32,
    pub(crate) args: [u64; 4],
}

impl Call {
    /// The connection that a call whose first argument is a descriptor concerns, as in `conn::pack`.
    #[inline(always)]
    pub(crate) fn key(&self) -> u64 {
        self.key_of(0)
    }

    /// The same with the descriptor in another argument.
    #[inline(always)]
    pub(crate) fn key_of(&self, argument: usize) -> u64 {
        pack(self.tgid, (self.args[argument] as u32).cast_signed())
    }
}

/// User registers at an address the verifier knows as a `struct pt_regs *`.
#[derive(Clone, Copy)]
pub(crate) struct Registers(pub(crate) *const u64);

impl Registers {
    #[inline(always)]
    pub(crate) fn word(self, index: usize) -> u64 {
        // SAFETY: the verifier checks the offset; a bad address reads as 0.
        unsafe { core::ptr::read_volatile(self.0.add(index)) }
    }

    /// Number of the system call. Four bytes: on aarch64 `syscallno` has no more, and a read beyond a member is
    /// refused.
    #[inline(always)]
    pub(crate) fn number(self) -> u32 {
        // SAFETY: as above.
        unsafe { core::ptr::read_volatile(self.0.add(NUMBER).cast::<u32>()) }
    }

    #[inline(always)]
    pub(crate) fn is_compat(self) -> bool {
        // Two bytes: with FRED the rest of the word holds other fields.
        // SAFETY: as above.
        is_compat(u64::from(unsafe {
            core::ptr::read_volatile(self.0.add(MODE).cast::<u16>())
        }))
    }
}

/// What a socket hook needs: this CPU's work space and the current task's system call, if its process is
/// a target and the call's meaning is one of `meanings` ([`call::bit`]s). The socket is in the scratch then,
/// which must be given back by
/// [`RequestScratch::leave`].
///
/// Nothing is written before the meaning is known: `sock_state` also runs in interrupts, in the middle
/// of another hook's program.
#[inline(always)]
pub(crate) fn at_socket(sk: u64, meanings: u32) -> Option<(&'static mut RequestScratch, Call)> {
    let (tgid, tid) = read::current_ids();
    let target = maps::target(tgid)?;
    let registers = Registers(read::current_user_regs()? as *const u64);
    let meaning = meaning(u64::from(registers.number()));
    if call::bit(meaning) & meanings == 0 || registers.is_compat() {
        return None;
    }
    let Some(scratch) = RequestScratch::take(maps::request_scratch()?) else {
        // Of a thread that was preempted in the middle of a hook, on this CPU.
        count_all(target.task_mask, KernelCounter::HookBusy);
        return None;
    };
    scratch.begin(tid, target);
    scratch.sk = sk;
    let args = ARGS.map(|index| registers.word(index));
    Some((
        scratch,
        Call {
            meaning,
            tgid,
            args,
        },
    ))
}

/// Bytes were read.
#[inline(always)]
pub(crate) fn on_received(
    ctx: &impl EbpfContext,
    scratch: &mut RequestScratch,
    call: &Call,
    result: u64,
) {
    let args = call.args;
    match call.meaning {
        call::READ | call::RECEIVE => {
            if call.meaning == call::RECEIVE && args[3] & MSG_PEEK != 0 || args[2] == 0 {
                return;
            }
            source(scratch, args[1], 0, result);
        }
        call::READ_IOVEC => source(scratch, args[1], args[2], result),
        call::READ_MESSAGE => {
            if args[2] & MSG_PEEK != 0 {
                return;
            }
            match message(ctx, call) {
                Some([base, count]) if count != 0 => source(scratch, base, count, result),
                _ => return,
            }
        }
        _ => return,
    }
    if result == 0 {
        on_end_of_file(call.key());
    } else {
        on_read(call.key());
    }
}

/// Bytes were written; for `sendmmsg` at `sys_exit`, messages.
#[inline(always)]
pub(crate) fn on_sent(
    ctx: &impl EbpfContext,
    scratch: &mut RequestScratch,
    call: &Call,
    result: u64,
) {
    let args = call.args;
    if result == 0 {
        return;
    }
    match call.meaning {
        call::WRITE => source(scratch, args[1], 0, result),
        call::WRITE_IOVEC => source(scratch, args[1], args[2], result),
        call::WRITE_MESSAGE => match message(ctx, call) {
            Some([base, count]) => source(scratch, base, count, result),
            None => return,
        },
        call::WRITE_UNSEEN => {
            on_write(call.key(), result, 0);
            return;
        }
        call::SPLICE => {
            on_write(call.key_of(2), result, 0);
            return;
        }
        // Their bytes are not worth a walk.
        call::WRITE_MESSAGES => {
            let bytes = if setting(setting_flag::SOCKET_HOOKS) {
                result
            } else {
                0
            };
            on_write(call.key(), bytes, 0);
            return;
        }
        _ => return,
    }
    on_write(call.key(), result, 1);
}

/// A connection was closed or shut down.
#[inline(always)]
pub(crate) fn on_ended(call: &Call) {
    let args = call.args;
    match call.meaning {
        call::CLOSE => {
            closed(call.key(), EndReason::Closed);
        }
        call::CLOSE_RANGE if args[2] & CLOSE_RANGE_CLOEXEC == 0 => {
            on_close_range(call.key(), args[1] & 0xffff_ffff);
        }
        // 0 is SHUT_RD.
        call::SHUTDOWN if args[1] != 0 => {
            if setting(setting_flag::SOCKET_HOOKS) {
                // The close that follows may change no state any more. A later head is known by its socket.
                on_close(call.key(), EndReason::Shutdown as u64, given());
            } else {
                on_shutdown(call.key());
            }
        }
        call::DUP if args[0] != args[1] => {
            closed(call.key_of(1), EndReason::DupOver);
        }
        _ => {}
    }
}

/// A descriptor was closed. The socket hooks know which socket it was.
#[inline(always)]
fn closed(key: u64, reason: EndReason) {
    if setting(setting_flag::SOCKET_HOOKS) {
        on_close(key, reason as u64, given());
    } else {
        on_closed(key, reason as u64);
    }
}

#[inline(always)]
fn source(scratch: &mut RequestScratch, base: u64, iovec_count: u64, len: u64) {
    scratch.base = base;
    scratch.iovec_count = iovec_count;
    scratch.skip = 0;
    scratch.len = len;
}

/// `[msg_iov, msg_iovlen]` of a call's second argument.
#[inline(always)]
fn message(ctx: &impl EbpfContext, call: &Call) -> Option<[u64; 2]> {
    let header = read::user::<[u64; 2]>(call.args[1] + MSGHDR_IOV);
    if header.is_none() {
        let (tgid, tid) = read::current_ids();
        debug!(
            ctx,
            "tgid {} tid {}: the message header of call {} is not readable",
            tgid,
            tid,
            call.meaning
        );
    }
    header
}
