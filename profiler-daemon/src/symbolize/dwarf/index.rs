//! Finds the unit of debug information that describes an address.
//!
//! In:  [`Sections`]
//! Out: offsets of units in `.debug_info`
//! Lost: units beyond [`UNITS_MAX`], ranges beyond [`RANGES_MAX`]
//!
//! `.debug_aranges` has the addresses of all units that gcc and rustc have compiled. clang leaves it out: the first entry
//! of each unit that is not in it says the same.

use std::collections::HashSet;

use gimli::{DebugAranges, NativeEndian};

use super::section::Sections;
use super::unit::{Extent, Unit};

/// Units of an object. Chromium has 30,000.
const UNITS_MAX: usize = 1 << 17;
/// Ranges of all units. A function that has a section of its own is a range.
const RANGES_MAX: usize = 1 << 20;
/// Largest `.debug_aranges` read.
const UNIT_RANGES_BYTES_MAX: usize = 32 << 20;
/// Ranges that begin below an address and are looked at. Ranges of units do not overlap, but those of code that
/// the linker has thrown away all begin at zero.
const OVERLAPS_MAX: usize = 16;

/// The units of an object.
pub(super) struct UnitIndex {
    /// Their offsets, ascending.
    units: Vec<u64>,
    ranges: Vec<UnitRange>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct UnitRange {
    start: u64,
    end: u64,
    unit: u64,
}

impl UnitIndex {
    /// Reads where all units are.
    pub(super) fn new(sections: &Sections) -> Self {
        let mut units = Vec::new();
        let mut next = 0;
        while let Some(end) = Unit::end(sections, next) {
            units.push(next);
            next = end;
            if units.len() >= UNITS_MAX {
                break;
            }
        }
        let mut ranges = listed(sections);
        let known: HashSet<u64> = ranges.iter().map(|range| range.unit).collect();
        for &offset in units.iter().filter(|&offset| !known.contains(offset)) {
            if ranges.len() >= RANGES_MAX {
                break;
            }
            let unit = Unit::load(sections, offset, Extent::Root);
            let Some(unit) = unit.filter(Unit::has_code) else {
                continue;
            };
            ranges.extend(
                unit.own_ranges(sections)
                    .into_iter()
                    .map(|range| UnitRange {
                        start: range.start,
                        end: range.end,
                        unit: offset,
                    }),
            );
        }
        ranges.sort_unstable();
        ranges.shrink_to_fit();
        Self { units, ranges }
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> u64 {
        (size_of_val(self.units.as_slice()) + size_of_val(self.ranges.as_slice())) as u64
    }

    /// The unit that describes an address of the object.
    pub(super) fn of_address(&self, address: u64) -> Option<u64> {
        let after = self.ranges.partition_point(|range| range.start <= address);
        let below = self.ranges[..after].iter().rev().take(OVERLAPS_MAX);
        let mut covering = below.filter(|range| address < range.end);
        covering.next().map(|range| range.unit)
    }

    /// The unit that an offset in `.debug_info` lies in.
    pub(super) fn of_offset(&self, offset: u64) -> Option<u64> {
        let after = self.units.partition_point(|&unit| unit <= offset);
        Some(self.units[after.checked_sub(1)?])
    }
}

/// `.debug_aranges`.
fn listed(sections: &Sections) -> Vec<UnitRange> {
    let mut ranges = Vec::new();
    let content = sections.some(&sections.unit_ranges, 0, UNIT_RANGES_BYTES_MAX);
    let table = DebugAranges::new(&content, NativeEndian);
    let mut headers = table.headers();
    while let Ok(Some(header)) = headers.next() {
        let unit = header.debug_info_offset().0 as u64;
        let mut entries = header.entries();
        while let Ok(Some(entry)) = entries.next() {
            let (start, end) = (entry.range().begin, entry.range().end);
            if start < end {
                ranges.push(UnitRange { start, end, unit });
            }
            if ranges.len() >= RANGES_MAX {
                return ranges;
            }
        }
    }
    ranges
}
