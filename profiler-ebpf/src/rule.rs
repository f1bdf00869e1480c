//! Which task a request line may belong to: the prefilter of `profiler_common::Rule`.

use profiler_common::{KernelCounter, LITERAL_MAX_BYTES, MAX_TASKS, rule_flag};

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
///
/// A percent sign where the literal has something else passes too: the daemon decodes.
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
    let flags = rule.flags;
    if flags & rule_flag::LIVE == 0 || rule.method_mask >> head::method(line) & 1 == 0 {
        return 0;
    }
    let passed = u64::from(flags);
    let offset = head::target_offset(line);
    if head::byte(scratch, offset) != b'/' {
        return passed;
    }
    let mut index = 0;
    while index < LITERAL_MAX_BYTES as u64 {
        if index >= u64::from(rule.literal_len) {
            break;
        }
        let byte = head::byte(scratch, offset + index);
        // SAFETY: the index is below the literal's length.
        let wanted = unsafe { *rule.literal.as_ptr().add(index as usize) };
        if byte != wanted {
            return if byte == b'%' { passed } else { 0 };
        }
        index += 1;
    }
    if flags & rule_flag::EXACT == 0 {
        return passed;
    }
    match head::byte(scratch, offset + index) {
        b' ' | b'?' | b';' | b'#' | b'%' | b'\r' | b'\n' => passed,
        _ => 0,
    }
}
