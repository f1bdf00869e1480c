//! Where registers lie among the words of the architecture's `struct pt_regs`.
//!
//! x86_64: <https://github.com/torvalds/linux/blob/v6.12/arch/x86/include/asm/ptrace.h#L103>,
//! aarch64: <https://github.com/torvalds/linux/blob/v6.12/arch/arm64/include/uapi/asm/ptrace.h#L88>.
//! Both layouts are what user space sees in signal frames and cannot change.

use profiler_common::REGS_MAX;

/// Index of the stack pointer.
#[cfg(target_arch = "x86_64")]
pub const SP: usize = 19;
/// Index of the instruction pointer.
#[cfg(target_arch = "x86_64")]
pub const IP: usize = 16;
/// Index of the frame pointer.
#[cfg(target_arch = "x86_64")]
pub const FP: usize = 4;

/// Index of the stack pointer.
#[cfg(target_arch = "aarch64")]
pub const SP: usize = 31;
/// Index of the instruction pointer.
#[cfg(target_arch = "aarch64")]
pub const IP: usize = 32;
/// Index of the frame pointer.
#[cfg(target_arch = "aarch64")]
pub const FP: usize = 29;

/// The stack pointer among the words of a `struct pt_regs`.
#[must_use]
pub const fn stack_pointer(regs: &[u64; REGS_MAX]) -> u64 {
    regs[SP]
}

/// The instruction pointer among the words of a `struct pt_regs`.
#[must_use]
pub const fn instruction_pointer(regs: &[u64; REGS_MAX]) -> u64 {
    regs[IP]
}
