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

/// Number of the system call with which a thread has entered the kernel; `None` if it came otherwise (page
/// fault, interrupt), or if the architecture does not keep it.
#[must_use]
pub const fn system_call(regs: &[u64; REGS_MAX]) -> Option<u32> {
    // The low half of `orig_rax`: -1 after everything but a system call. All words are zero if the
    // registers could not be read, and 0 is a number.
    if cfg!(target_arch = "x86_64") && instruction_pointer(regs) != 0 {
        let number = (regs[15] as u32).cast_signed();
        if number >= 0 {
            return Some(number.cast_unsigned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that interrupts, page faults and registers that were not read are no system call.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn only_a_system_call_has_a_number() {
        let mut regs = [0; REGS_MAX];
        assert_eq!(system_call(&regs), None);
        regs[IP] = 0x1000;
        assert_eq!(system_call(&regs), Some(0));
        regs[15] = 230;
        assert_eq!(system_call(&regs), Some(230));
        regs[15] = u64::MAX;
        assert_eq!(system_call(&regs), None);
    }
}
