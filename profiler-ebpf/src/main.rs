//! The BPF object of profilerd: sees requests begin and end, tags the threads that serve them and
//! captures what those threads do.
//!
//! ```text
//! sock_* or sys_exit -> REQUESTS ring, CONNS, THREAD_TAGS, THREAD_STATES
//! sched_switch ------> THREAD_STATES   registers and kernel stack of a tagged thread at switch-out
//!                      SAMPLES ring    the same as at a tick, if one is near
//! sample_on_cpu -----> SAMPLES ring    registers, kernel stack, Python chain, user stack bytes
//! sched_process_* ---> REQUESTS ring, TARGETS, THREAD_TAGS
//! ```
//!
//! Read `sock_recv.rs` and `syscall.rs` first, then `conn.rs` (the request state machine) and `head.rs`.
//!
//! # Form of the programs
//!
//! * A hook's file holds its entries: one `tp_btf` program and, for kernels that refuse it, the same
//!   body as a `raw_tp` program. The daemon loads one of the two.
//! * Functions marked `#[inline(never)]` take and return integers only. The verifier checks such a
//!   function once and on its own, whatever its callers know, so that loops and branches in it do
//!   not multiply. What they share lies in per-CPU maps ([`scratch`]).
//! * Offsets into kernel structures come from [`globals`].
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod arch;
#[cfg(target_arch = "bpf")]
mod atomic;
#[cfg(target_arch = "bpf")]
mod conn;
#[cfg(target_arch = "bpf")]
mod count;
#[cfg(target_arch = "bpf")]
mod emit;
#[cfg(target_arch = "bpf")]
mod globals;
#[cfg(target_arch = "bpf")]
mod head;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod outbound;
#[cfg(target_arch = "bpf")]
mod partial;
#[cfg(target_arch = "bpf")]
mod process_exec;
#[cfg(target_arch = "bpf")]
mod process_exit;
#[cfg(target_arch = "bpf")]
mod process_fork;
#[cfg(target_arch = "bpf")]
mod python;
#[cfg(target_arch = "bpf")]
mod python_thread;
#[cfg(target_arch = "bpf")]
mod read;
#[cfg(target_arch = "bpf")]
mod response;
#[cfg(target_arch = "bpf")]
mod rule;
#[cfg(target_arch = "bpf")]
mod sample;
#[cfg(target_arch = "bpf")]
mod sample_on_cpu;
#[cfg(target_arch = "bpf")]
mod sched_switch;
#[cfg(target_arch = "bpf")]
mod scratch;
#[cfg(target_arch = "bpf")]
mod sock_recv;
#[cfg(target_arch = "bpf")]
mod sock_send;
#[cfg(target_arch = "bpf")]
mod sock_state;
#[cfg(target_arch = "bpf")]
mod socket;
#[cfg(target_arch = "bpf")]
mod stack;
#[cfg(target_arch = "bpf")]
mod start;
#[cfg(target_arch = "bpf")]
mod sys_exit;
#[cfg(target_arch = "bpf")]
mod syscall;
#[cfg(target_arch = "bpf")]
mod tag;
#[cfg(target_arch = "bpf")]
mod tail;

/// Many helpers are reserved to programs under a GPL-compatible licence.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
