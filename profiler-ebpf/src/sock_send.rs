//! `sock_send_length`: bytes were handed to a socket.
//!
//! Runs inside the system call. The tracepoint's arguments are `(struct sock *sk, int ret, int flags)`,
//! <https://github.com/torvalds/linux/blob/v6.4/include/trace/events/sock.h>.
//!
//! Minimum kernel: 6.4. Where it is missing, `sys_exit` is loaded.

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};

use crate::arch::call;
use crate::syscall::{at_socket, on_sent};

#[btf_tracepoint(function = "sock_send_length")]
pub(crate) fn sock_send(ctx: BtfTracePointContext) -> i32 {
    handle(&ctx, ctx.arg(0), ctx.arg(1))
}

#[raw_tracepoint(tracepoint = "sock_send_length")]
pub(crate) fn raw_sock_send(ctx: RawTracePointContext) -> i32 {
    handle(&ctx, ctx.arg(0), ctx.arg(1))
}

#[inline(always)]
fn handle(ctx: &impl EbpfContext, sk: u64, result: i32) -> i32 {
    if result <= 0 {
        return 0;
    }
    if let Some((scratch, call)) = at_socket(sk, call::SENDS) {
        on_sent(ctx, scratch, &call, u64::from(result.cast_unsigned()));
        scratch.leave();
    }
    0
}
