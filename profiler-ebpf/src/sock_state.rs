//! `inet_sock_set_state`: a TCP connection is closed or shut down, by a system call of its process.
//!
//! The peer changes states as well, in an interrupt of whatever task runs. The system call distinguishes
//! the two: it must be one that closes or shuts down, and its descriptor's record must be of this
//! socket. A close that follows the peer's reset changes no state and is not seen.
//!
//! The tracepoint's arguments are `(const struct sock *sk, int oldstate, int newstate)`,
//! <https://github.com/torvalds/linux/blob/v6.4/include/trace/events/sock.h>.
//!
//! Minimum kernel: 4.16; loaded where `sock_recv` is.

use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};

use crate::arch::call;
use crate::conn::unpack;
use crate::syscall::{at_socket, on_ended};
use crate::{maps, socket};

/// What `close` and `shutdown` lead to: `TCP_FIN_WAIT1`, `TCP_CLOSE` (unread bytes are thrown away) and,
/// if the peer closed first, `TCP_LAST_ACK`.
const ENDED: u32 = 1 << 4 | 1 << 7 | 1 << 9;

#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn sock_state(ctx: BtfTracePointContext) -> i32 {
    handle(ctx.arg(0), ctx.arg(2))
}

#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub(crate) fn raw_sock_state(ctx: RawTracePointContext) -> i32 {
    handle(ctx.arg(0), ctx.arg(2))
}

#[inline(always)]
fn handle(sk: u64, state: u32) -> i32 {
    if ENDED >> (state & 31) & 1 == 0 {
        return 0;
    }
    let Some((scratch, call)) = at_socket(sk, call::ENDS) else {
        return 0;
    };
    let key = match call.meaning {
        call::DUP => call.key_of(1),
        _ => call.key(),
    };
    let is_ours = || maps::conn(unpack(key)).is_some_and(|conn| conn.sk == socket::given());
    // All descriptors of a range are gone by now, whichever of them this socket was.
    if call.meaning == call::CLOSE_RANGE || is_ours() {
        on_ended(&call);
    }
    scratch.leave();
    0
}
