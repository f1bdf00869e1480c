//! The functions of a unit, and what is inlined into them.
//!
//! In:  a [`Unit`]
//! Out: [`Functions`] by address; [`Inlined`] functions of one of them
//! Lost: what is inlined deeper than [`DEPTH_MAX`], or into a function whose description is longer than
//!       [`FUNCTION_BYTES_MAX`] behind these bytes
//!
//! ```text
//! subprogram       run        0x1000..0x1100
//!   inlined          parse      0x1010..0x1080     an address 0x1020 is in: digit, inlined into
//!     inlined          digit      0x1018..0x1030                           parse, inlined into run
//! ```

use std::ops::Range;

use super::section::Sections;
use super::unit::{Entry, Unit};

/// Functions kept of a unit.
const FUNCTIONS_MAX: usize = 1 << 18;
/// Inlined functions kept of a function.
const INLINED_MAX: usize = 1 << 14;
/// Most bytes of a function's description that are read. Large ones of optimized Rust have 200 kB.
const FUNCTION_BYTES_MAX: usize = 1 << 20;
/// Functions inlined into each other. Optimized Rust has some twenty.
const DEPTH_MAX: usize = 64;
/// Functions that begin below an address and are looked at: one that is nested in another may lie in its range.
const OVERLAPS_MAX: usize = 16;

/// The functions of a unit that have code, by address.
pub(super) struct Functions(Vec<Function>);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Function {
    start: u64,
    end: u64,
    /// Offset of its description in the unit.
    entry: u32,
}

/// A call that became a part of its caller.
pub(super) struct Inlined {
    /// How many others it is in.
    depth: usize,
    ranges: Vec<Range<u64>>,
    /// Offset in `.debug_info` of the function's description.
    pub(super) origin: u64,
}

impl Functions {
    /// Looks through a unit.
    pub(super) fn new(sections: &Sections, unit: &Unit) -> Self {
        let mut functions = Vec::new();
        // Entries before an invalid one remain.
        let _ = collect(sections, unit, &mut functions);
        functions.sort_unstable();
        functions.shrink_to_fit();
        Self(functions)
    }

    /// Memory that they take.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.0.as_slice())
    }

    /// Offset in the unit of the description of the function at an address: of the innermost, if one is
    /// nested in another.
    pub(super) fn find(&self, address: u64) -> Option<usize> {
        let after = self.0.partition_point(|function| function.start <= address);
        let below = self.0[..after].iter().rev().take(OVERLAPS_MAX);
        let mut covering = below.filter(|function| address < function.end);
        covering.next().map(|function| function.entry as usize)
    }
}

fn collect(sections: &Sections, unit: &Unit, functions: &mut Vec<Function>) -> Option<()> {
    let mut entries = unit.entries(None)?;
    while !entries.is_empty() && functions.len() < FUNCTIONS_MAX {
        let entry = u32::try_from(entries.next_offset().0).ok()?;
        let Some(abbreviation) = entries.read_abbreviation().ok()? else {
            continue;
        };
        if abbreviation.tag() != gimli::DW_TAG_subprogram {
            entries.skip_attributes(abbreviation.attributes()).ok()?;
            continue;
        }
        let read = Entry::read(&mut entries, abbreviation).ok()?;
        let ranges = unit.ranges(sections, &read);
        functions.extend(ranges.into_iter().map(|range| Function {
            start: range.start,
            end: range.end,
            entry,
        }));
    }
    Some(())
}

/// The functions inlined into the one that is described at an offset of a unit.
pub(super) fn inlined_into(sections: &Sections, unit: &Unit, function: usize) -> Vec<Inlined> {
    let mut inlined = Vec::new();
    // As above.
    let _ = collect_inlined(sections, unit, function, &mut inlined);
    inlined
}

fn collect_inlined(
    sections: &Sections,
    unit: &Unit,
    function: usize,
    inlined: &mut Vec<Inlined>,
) -> Option<()> {
    let mut entries = unit.entries(Some(function))?;
    let abbreviation = entries.read_abbreviation().ok()??;
    entries.skip_attributes(abbreviation.attributes()).ok()?;
    // Depths in the tree of the inlined functions that the entry is in.
    let mut open: Vec<isize> = Vec::new();
    // Depth of a nested function, which is not a part of this one's code.
    let mut nested: Option<isize> = None;
    let end = function.saturating_add(FUNCTION_BYTES_MAX);
    while !entries.is_empty() && entries.next_depth() > 0 && entries.next_offset().0 < end {
        let depth = entries.next_depth();
        let Some(abbreviation) = entries.read_abbreviation().ok()? else {
            continue;
        };
        open.truncate(open.partition_point(|&opened| opened < depth));
        nested = nested.filter(|&nested| depth > nested);
        let is_wanted = nested.is_none() && inlined.len() < INLINED_MAX;
        match abbreviation.tag() {
            gimli::DW_TAG_inlined_subroutine if is_wanted && open.len() < DEPTH_MAX => {
                let entry = Entry::read(&mut entries, abbreviation).ok()?;
                let origin = entry.origin.as_ref();
                if let Some(origin) = origin.and_then(|value| unit.reference(value)) {
                    inlined.push(Inlined {
                        depth: open.len(),
                        ranges: unit.ranges(sections, &entry),
                        origin,
                    });
                }
                open.push(depth);
            }
            tag => {
                entries.skip_attributes(abbreviation.attributes()).ok()?;
                if tag == gimli::DW_TAG_subprogram && nested.is_none() {
                    nested = Some(depth);
                }
            }
        }
    }
    Some(())
}

/// Offsets in `.debug_info` of the functions that are inlined at an address, innermost first.
pub(super) fn at(inlined: &[Inlined], address: u64) -> Vec<u64> {
    let mut found: Vec<u64> = Vec::new();
    for call in inlined {
        // The next level of what was found; calls of one level do not overlap.
        if call.depth == found.len() && call.ranges.iter().any(|range| range.contains(&address)) {
            found.push(call.origin);
        }
    }
    found.reverse();
    found
}
