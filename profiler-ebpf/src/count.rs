//! Counters per task slot and CPU.

use profiler_common::{KERNEL_COUNTERS, KernelCounter, MAX_TASKS};

use crate::{atomic, maps};

/// Adds one to a counter of a task slot.
#[inline(always)]
pub(crate) fn count(slot: u32, counter: KernelCounter) {
    if let Some(value) = maps::counter(slot * KERNEL_COUNTERS + counter as u32) {
        // SAFETY: an element of an array of numbers.
        unsafe { atomic::add(value, 1) };
    }
}

/// Adds one to a counter of every task in `task_mask`: events before a rule has matched concern
/// all tasks of the process.
#[inline(always)]
pub(crate) fn count_all(task_mask: u32, counter: KernelCounter) {
    count_mask(u64::from(task_mask), counter as u64);
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn count_mask(task_mask: u64, counter: u64) -> u64 {
    let mut slot = 0;
    while slot < u64::from(MAX_TASKS) {
        if task_mask >> slot == 0 {
            break;
        }
        count_bit(task_mask, slot, counter);
        slot += 1;
    }
    0
}

/// Counts for one slot if its bit is set. The test is made here and not in the loop, where every
/// combination of known bits would be another state for the verifier: 2^16 of them.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn count_bit(task_mask: u64, slot: u64, counter: u64) -> u64 {
    if task_mask >> (slot & 63) & 1 != 0
        && let Some(value) = maps::counter(slot as u32 * KERNEL_COUNTERS + counter as u32)
    {
        // SAFETY: an element of an array of numbers.
        unsafe { atomic::add(value, 1) };
    }
    0
}
