//! Reading and writing a number of a map in one instruction.
//!
//! Interrupts, and from Linux 7.0 on preemption, may run another program of this CPU between two. Rust's atomic
//! types do not exist for BPF.

use core::arch::asm;

/// Adds to a number. What it was is not told, which no kernel before 5.12 can do.
///
/// # Safety
///
/// The pointer is to a number in a map that the verifier knows, on a multiple of 8 bytes.
#[inline(always)]
pub(crate) unsafe fn add(number: *mut u64, more: u64) {
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        asm!("lock *(u64 *)({number} + 0) += {more}", number = in(reg) number, more = in(reg) more);
    }
}

/// Writes a number and returns what it was.
///
/// Minimum kernel: 5.12 (`BPF_XCHG`).
///
/// # Safety
///
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn swap(number: *mut u64, mut value: u64) -> u64 {
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        asm!("{value} = xchg_64({number} + 0, {value})", number = in(reg) number, value = inout(reg) value);
    }
    value
}
