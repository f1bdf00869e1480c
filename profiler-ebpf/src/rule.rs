//! Which task a request line may belong to: the prefilter of `profiler_common::Rule`.

use profiler_common::{KernelCounter, Line, MAX_TASKS, rule_flag};

use crate::count::count;
use crate::{head, maps};

/// No task wants the request.
pub(crate) const NO_SLOT: u64 = 0xff;

/// Counts the head for every task of the process and returns the first slot whose rule passes it,
/// or [`NO_SLOT`]. `line` is a result of [`head::line`], whose bytes are still in the scratch.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn match_rules(task_mask: u64, line: u64) -> u64 {
    let mut matched = NO_SLOT;
    let mut slot = 0;
    while slot < u64::from(MAX_TASKS) {
        if task_mask >> slot == 0 {
            break;
        }
        matched = match_slot(task_mask, slot, line, matched);
        slot += 1;
    }
    matched
}

/// Counts the head for a slot and gives it the request if its bit is set, its rule passes and no lower slot has it.
/// Returns the slot that has it now. On its own for the reason given at `count_bit`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn match_slot(task_mask: u64, slot: u64, line: u64, matched: u64) -> u64 {
    if task_mask >> (slot & 63) & 1 == 0 {
        return matched;
    }
    count(slot as u32, KernelCounter::RequestsSeen);
    let flags = rule_passes(slot, line);
    if flags == 0 {
        return matched;
    }
    let index = slot as u32;
    count(index, KernelCounter::PrefilterPassed);
    if flags & u64::from(rule_flag::COUNT_ONLY) != 0 {
        count(index, KernelCounter::CountedOnly);
        matched
    } else if matched != NO_SLOT {
        count(index, KernelCounter::OtherTask);
        matched
    } else {
        slot
    }
}

/// The rule's flags if it passes the request line, else 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn rule_passes(slot: u64, line: u64) -> u64 {
    let Some(scratch) = maps::request_scratch() else {
        return 0;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses meanwhile.
    let scratch = unsafe { &*scratch };
    let Some(rule) = maps::rule(slot as u32) else {
        return 0;
    };
    if rule.passes(Line(line), |index| head::byte(scratch, index)) {
        u64::from(rule.flags)
    } else {
        0
    }
}
