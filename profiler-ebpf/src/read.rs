//! Reads of kernel and user memory: each can fail, none can fault.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_get_current_task_btf, bpf_ktime_get_ns, bpf_probe_read_kernel,
    bpf_probe_read_user, bpf_task_pt_regs,
};
use profiler_common::setting_flag;

use crate::globals::{offset, setting};

/// Integers that can be read from memory as they are.
pub(crate) trait Word: Copy {}
impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}
impl Word for [u64; 2] {}

/// A value in kernel memory, `None` if the address is bad.
#[inline(always)]
pub(crate) fn kernel<T: Word>(address: u64) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: `value` has room for its own size; the helper checks the source.
    let result = unsafe {
        bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            address as *const _,
        )
    };
    // SAFETY: the helper has written all of it.
    (result == 0).then(|| unsafe { value.assume_init() })
}

/// A value in the current process's memory, `None` if the page is not resident or the address bad.
#[inline(always)]
pub(crate) fn user<T: Word>(address: u64) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: `value` has room for its own size; the helper checks the source.
    let result = unsafe {
        bpf_probe_read_user(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            address as *const _,
        )
    };
    // SAFETY: the helper has written all of it.
    (result == 0).then(|| unsafe { value.assume_init() })
}

/// Copies user memory.
///
/// # Safety
///
/// `destination` has room for `len` bytes, and the verifier can see it.
#[inline(always)]
pub(crate) unsafe fn copy_user(destination: *mut u8, len: u64, address: u64) -> bool {
    // SAFETY: the caller vouches for the destination; the helper checks the source.
    unsafe { bpf_probe_read_user(destination.cast(), len as u32, address as *const _) == 0 }
}

/// Copies kernel memory, for example between map values.
///
/// # Safety
///
/// `destination` has room for `len` bytes, and the verifier can see it.
#[inline(always)]
pub(crate) unsafe fn copy_kernel(destination: *mut u8, len: u64, address: u64) -> bool {
    // SAFETY: the caller vouches for the destination; the helper checks the source.
    unsafe { bpf_probe_read_kernel(destination.cast(), len as u32, address as *const _) == 0 }
}

/// Address of the current `task_struct`.
#[inline(always)]
pub(crate) fn current_task() -> u64 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_get_current_task() }
}

/// The current thread's thread pointer, 0 if unknown. It is that of the thread's latest switch-out or
/// system call that set it, which is soon after the thread has begun.
#[inline(always)]
pub(crate) fn thread_pointer() -> u64 {
    let offset = offset!(task_thread_pointer);
    if offset == 0 {
        return 0;
    }
    kernel(current_task() + offset).unwrap_or(0)
}

/// Address of the current task's user registers on its kernel stack.
#[inline(always)]
pub(crate) fn current_user_regs() -> Option<u64> {
    if setting(setting_flag::TASK_PT_REGS) {
        // Linux 5.15. Knows the padding above the registers that FRED brought.
        // SAFETY: the helpers have no precondition but a task, and that is the current one.
        Some(unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as u64 })
    } else {
        let stack: u64 = kernel(current_task() + offset!(task_stack))?;
        Some(stack + offset!(stack_pt_regs))
    }
}

/// The same number, about which the compiler knows nothing any more.
///
/// A bound checked on it is then really checked there, in the register that is used: the compiler
/// would leave out what it can prove from far above, and verifiers before 5.12 forget the bounds of
/// a number that was spilled to the stack meanwhile.
#[inline(always)]
pub(crate) fn opaque(mut number: u64) -> u64 {
    // An empty block would leave two lines of source at one instruction, which kernels refuse.
    // SAFETY: moves a register to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack)) };
    number
}

/// `CLOCK_MONOTONIC` in nanoseconds.
#[inline(always)]
pub(crate) fn ktime_ns() -> u64 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_ktime_get_ns() }
}

/// Identity of the current thread: `(tgid, tid)`, host pid namespace.
#[inline(always)]
pub(crate) fn current_ids() -> (u32, u32) {
    let ids = aya_ebpf::helpers::bpf_get_current_pid_tgid();
    ((ids >> 32) as u32, ids as u32)
}
