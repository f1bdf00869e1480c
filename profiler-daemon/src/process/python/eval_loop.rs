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

use iced_x86::{Decoder, DecoderOptions, FlowControl, OpKind};

use crate::process::ReadMemory;
use crate::process::image::Image;

const SYMBOL: &str = "_PyEval_EvalFrameDefault";
/// `e_machine` of x86-64, the only instructions we decode.
const EM_X86_64: u16 = 62;
/// A function is split in two; more parts than this are a misreading.
const PARTS_MAX: usize = 8;
/// Largest part decoded.
const PART_BYTES_MAX: u64 = 1 << 20;
/// Most jumps out of one part that are looked at. Real parts have a few dozen.
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
    if image.machine != EM_X86_64 {
        return parts;
    }
    let mut followed = 0;
    while let Some(part) = parts.get(followed).cloned() {
        followed += 1;
        let mut seen: Vec<Range<u64>> = Vec::new();
        for target in jumps_out(memory, &part) {
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
            let is_part = target != range.start || jumps_into(memory, &range, &part);
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
fn jumps_into(memory: &dyn ReadMemory, range: &Range<u64>, part: &Range<u64>) -> bool {
    jumps_out(memory, range)
        .iter()
        .any(|target| part.contains(target) && *target != part.start)
}

/// Targets of direct jumps from inside `range` to the outside.
fn jumps_out(memory: &dyn ReadMemory, range: &Range<u64>) -> Vec<u64> {
    let bytes = range.end - range.start;
    if bytes > PART_BYTES_MAX {
        return Vec::new();
    }
    let mut code = vec![0; bytes as usize];
    if memory.read_exact(range.start, &mut code).is_err() {
        return Vec::new();
    }
    let mut targets = Vec::new();
    for instruction in Decoder::with_ip(64, &code, range.start, DecoderOptions::NONE) {
        let jumps = matches!(
            instruction.flow_control(),
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
        );
        if !jumps || instruction.op0_kind() != OpKind::NearBranch64 {
            continue;
        }
        let target = instruction.near_branch64();
        if !range.contains(&target) && !targets.contains(&target) {
            targets.push(target);
            if targets.len() == TARGETS_MAX {
                break;
            }
        }
    }
    targets
}
