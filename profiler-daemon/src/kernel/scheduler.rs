//! Cuts the tracing machinery off kernel stacks taken at a context switch.
//!
//! A stack taken by `sched_switch` begins with the BPF program itself, the kernel's code that runs
//! it and the tracepoint; how many frames that is differs by kernel version. What the thread did
//! begins with `__schedule`, which `/proc/kallsyms` locates.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;

use profiler_common::ThreadState;

/// The function that contains the tracepoint.
const SCHEDULE: &[u8] = b"__schedule";

/// Addresses of `__schedule`; `None` if the kernel hides them, then stacks stay as they are.
pub(super) fn schedule_range() -> Option<Range<u64>> {
    find_schedule(BufReader::with_capacity(
        1 << 16,
        File::open("/proc/kallsyms").ok()?,
    ))
}

/// Looks for the symbol and the one after it; kernel symbols are sorted by address.
fn find_schedule(mut symbols: impl BufRead) -> Option<Range<u64>> {
    let mut start = None;
    let mut line = Vec::new();
    loop {
        line.clear();
        if symbols.read_until(b'\n', &mut line).ok()? == 0 {
            return None;
        }
        // "ffffffff821fa6c0 t __schedule"
        let mut words = line.trim_ascii_end().splitn(3, |byte| *byte == b' ');
        let (Some(address), Some(_), Some(name)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        if start.is_none() && name != SCHEDULE {
            continue;
        }
        let address = std::str::from_utf8(address).ok()?;
        let address = u64::from_str_radix(address, 16).ok()?;
        match start {
            None if address == 0 => return None,
            None => start = Some(address),
            Some(start) if address > start => return Some(start..address),
            Some(_) => {}
        }
    }
}

/// Drops what is not the kernel's own of a state's frames.
pub(super) fn trim(state: &mut ThreadState, schedule: &Range<u64>) {
    let count = (state.kernel_frame_count as usize).min(state.kernel_frames.len());
    let frames = &mut state.kernel_frames[..count];
    let first = machinery(frames, schedule);
    frames.copy_within(first.., 0);
    frames[count - first..].fill(0);
    state.kernel_frame_count = (count - first) as u32;
}

/// The same for a list of frames.
pub(super) fn trim_frames(frames: &mut Vec<u64>, schedule: &Range<u64>) {
    frames.drain(..machinery(frames, schedule));
}

/// How many frames are of the tracing machinery: those inside of `__schedule`; 0 if it is not on the stack.
fn machinery(frames: &[u64], schedule: &Range<u64>) -> usize {
    let first = frames.iter().position(|frame| schedule.contains(frame));
    first.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use profiler_common::{KERNEL_FRAMES_MAX, REGS_MAX};

    use super::*;

    /// Check that the function's end is the next symbol with a higher address.
    #[test]
    fn the_function_ends_at_the_next_higher_symbol() {
        let symbols = b"10 T a\n20 t __schedule\n20 t alias\n30 T schedule\n";
        assert_eq!(find_schedule(&symbols[..]), Some(0x20..0x30));
        assert_eq!(find_schedule(&b"10 T a\n"[..]), None);
        assert_eq!(find_schedule(&b"0 t __schedule\n0 t b\n"[..]), None);
        assert_eq!(find_schedule(&b"\n \nxx t __schedule\n"[..]), None);
    }

    /// Check that frames inside of the scheduler are dropped, and nothing if there are none.
    #[test]
    fn frames_inside_the_scheduler_are_dropped() {
        let mut state = ThreadState {
            seq: 2,
            in_ktime_ns: 0,
            window_ktime_ns: 0,
            stacks_in_window: 0,
            recorded_count: 0,
            recorded_seq: 0,
            recorded_ktime_ns: 0,
            recorded_end_ktime_ns: 0,
            ktime_ns: 0,
            prev_state: 0,
            flags: 0,
            tgid: 0,
            kernel_frame_count: 4,
            thread_pointer: 0,
            regs: [0; REGS_MAX],
            kernel_frames: [0; KERNEL_FRAMES_MAX],
        };
        state.kernel_frames[..4].copy_from_slice(&[1, 2, 25, 40]);
        let mut other = state;
        trim(&mut state, &(20..30));
        assert_eq!(state.kernel_frame_count, 2);
        assert_eq!(state.kernel_frames[..4], [25, 40, 0, 0]);
        trim(&mut other, &(100..200));
        assert_eq!(other.kernel_frame_count, 4);
        let mut frames = vec![1, 2, 25, 40];
        trim_frames(&mut frames, &(20..30));
        assert_eq!(frames, [25, 40]);
        trim_frames(&mut frames, &(100..200));
        assert_eq!(frames, [25, 40]);
    }
}
