//! Finds the machine code of the interpreter loop.
//!
//! In:  the loaded image that contains `_PyEval_EvalFrameDefault`
//! Out: address ranges; a native frame with its pc in one of them runs Python code
//! Lost: no symbol or no unwind entry -> no ranges, and native and Python frames cannot be
//!       interleaved (`Counter::PythonMergeMismatch`)
//!
//! # Why more than the symbol
//! Compilers split a function into a hot part and a `.cold` part elsewhere, which has no symbol in a
//! stripped file. Which part is the large one depends on the build: in Debian's 3.14 the exported
//! symbol covers 1,184 bytes and the other part 84,423. Each part has its own frame description
//! entry, so we follow the jumps that leave the known parts. A jump out of a function is either a
//! tail call, which goes to the *start* of another function that never jumps back into the middle of
//! this one, or it goes to another part. That is the whole test.
//!
//! Builds with the tail-calling interpreter (3.14 with clang) have no loop but one function per
//! opcode; those are not found.

use std::ops::Range;

use super::jump;
use crate::process::ReadMemory;
use crate::process::image::Image;

const SYMBOL: &str = "_PyEval_EvalFrameDefault";
/// A function is split in two; more parts than this are a misreading.
const PARTS_MAX: usize = 8;
/// Largest part decoded.
const PART_BYTES_MAX: u64 = 1 << 20;
/// Most jumps out of one part that are followed. Real parts have a few dozen.
const TARGETS_MAX: usize = 1024;

/// The parts of the interpreter loop as ranges of addresses.
pub(crate) fn find_loop(memory: &dyn ReadMemory, image: &Image<'_>) -> Vec<Range<u64>> {
    let Some(symbol) = image.symbol(SYMBOL) else {
        return Vec::new();
    };
    let Some(end) = symbol.address.checked_add(symbol.size) else {
        return Vec::new();
    };
    let main = image
        .function_range(symbol.address)
        .unwrap_or(symbol.address..end);
    if main.is_empty() {
        return Vec::new();
    }
    let mut parts = vec![main];
    let machine = image.machine;
    let mut followed = 0;
    while let Some(part) = parts.get(followed).cloned() {
        followed += 1;
        let mut seen: Vec<Range<u64>> = Vec::new();
        for target in jumps_out(memory, machine, &part) {
            if parts
                .iter()
                .chain(&seen)
                .any(|range| range.contains(&target))
            {
                continue;
            }
            let Some(range) = image.function_range(target) else {
                continue;
            };
            let is_part = target != range.start || jumps_into(memory, machine, &range, &part);
            if is_part && parts.len() < PARTS_MAX {
                parts.push(range);
            } else {
                seen.push(range);
            }
        }
    }
    parts
}

/// Whether the code in `range` jumps into the middle of `part`.
fn jumps_into(
    memory: &dyn ReadMemory,
    machine: u16,
    range: &Range<u64>,
    part: &Range<u64>,
) -> bool {
    jumps_out(memory, machine, range)
        .iter()
        .any(|target| part.contains(target) && *target != part.start)
}

/// Targets of direct jumps from inside `range` to the outside.
fn jumps_out(memory: &dyn ReadMemory, machine: u16, range: &Range<u64>) -> Vec<u64> {
    let bytes = range.end - range.start;
    if bytes > PART_BYTES_MAX {
        return Vec::new();
    }
    let mut code = vec![0; bytes as usize];
    if memory.read_exact(range.start, &mut code).is_err() {
        return Vec::new();
    }
    let mut targets = Vec::new();
    for target in jump::targets(machine, &code, range.start) {
        if !range.contains(&target) && !targets.contains(&target) {
            targets.push(target);
            if targets.len() == TARGETS_MAX {
                break;
            }
        }
    }
    targets
}
