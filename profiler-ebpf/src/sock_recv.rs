//! `sock_recv_length`: bytes were received from a socket, or its end was reached.
//!
//! Runs inside the system call, after the bytes were copied to the caller's memory. The tracepoint's
//! arguments are `(struct sock *sk, int ret, int flags)`,
//! <https://github.com/torvalds/linux/blob/v6.4/include/trace/events/sock.h>.
//!
//! Minimum kernel: 6.4. Where it is missing, `sys_exit` is loaded.

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};

use crate::arch::call;
use crate::syscall::{MSG_PEEK, at_socket, on_received};

#[btf_tracepoint(function = "sock_recv_length")]
pub(crate) fn sock_recv(ctx: BtfTracePointContext) -> i32 {
    handle(&ctx, ctx.arg(0), ctx.arg(1), ctx.arg(2))
}

#[raw_tracepoint(tracepoint = "sock_recv_length")]
pub(crate) fn raw_sock_recv(ctx: RawTracePointContext) -> i32 {
    handle(&ctx, ctx.arg(0), ctx.arg(1), ctx.arg(2))
}

#[inline(always)]
fn handle(ctx: &impl EbpfContext, sk: u64, result: i32, flags: u32) -> i32 {
    if result < 0 || u64::from(flags) & MSG_PEEK != 0 {
        return 0;
    }
    if let Some((scratch, call)) = at_socket(sk, call::RECEIVES) {
        on_received(ctx, scratch, &call, u64::from(result.cast_unsigned()));
        scratch.leave();
    }
    0
}
