//! Counters per task slot and CPU.

use profiler_common::{KERNEL_COUNTERS, KernelCounter, MAX_TASKS};

use crate::maps;

/// Adds one to a counter of a task slot.
#[inline(always)]
pub fn count(slot: u32, counter: KernelCounter) {
    if let Some(value) = maps::counter(slot * KERNEL_COUNTERS + counter as u32) {
        // Per CPU and with preemption off: nothing else writes this element meanwhile.
        *value += 1;
    }
}

/// Adds one to a counter of every task in `task_mask`: events before a rule has matched concern
/// all tasks of the process.
#[inline(always)]
pub fn count_all(task_mask: u32, counter: KernelCounter) {
    count_mask(u64::from(task_mask), counter as u64);
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn count_mask(task_mask: u64, counter: u64) -> u64 {
    let mut slot = 0;
    while slot < MAX_TASKS {
        if task_mask & (1 << slot) != 0
            && let Some(value) = maps::counter(slot * KERNEL_COUNTERS + counter as u32)
        {
            *value += 1;
        }
        slot += 1;
    }
    0
}
