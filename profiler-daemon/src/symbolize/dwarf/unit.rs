//! A compilation unit of debug information, and the values of its entries.
//!
//! In:  [`Sections`], the offset of a unit
//! Out: [`Unit`], which reads entries and resolves their addresses and texts
//! Lost: units larger than [`UNIT_BYTES_MAX`]; forms that only other files explain (split and supplementary DWARF)
//!
//! DWARF Debugging Information Format, version 5, chapters 2 and 7: <https://dwarfstd.org/doc/DWARF5.pdf>.

use std::ops::Range;

use gimli::{
    Abbreviation, Abbreviations, AttributeValue, DebugAbbrev, DebugAbbrevOffset, DebugInfo,
    DebugRanges, DebugRngLists, EndianRcSlice, EndianSlice, EntriesRaw, Format, NativeEndian,
    RangeLists, RangeListsOffset, RawRngListEntry, UnitHeader, UnitOffset, UnitType,
};

use super::section::Sections;

pub(super) type Reader = EndianRcSlice<NativeEndian>;
pub(super) type Value = AttributeValue<Reader>;

/// Largest unit that is read: Rust's have up to 10 MB, Chromium's 4.
const UNIT_BYTES_MAX: usize = 32 << 20;
/// The header and the first entry of a unit, with room.
const ROOT_BYTES: usize = 1024;
/// Abbreviations of a unit: the first try, and what no real unit needs. They grow thirtyfold in memory.
const ABBREVIATION_BYTES: Range<usize> = 8 << 10..256 << 10;
/// A list of ranges: the first try, and what no real function needs.
const LIST_BYTES: Range<usize> = 512..64 << 10;
/// Most ranges of a function or unit.
const RANGES_MAX: usize = 4096;
/// Longest text: names beyond are not demangled either.
const TEXT_BYTES_MAX: usize = 4096;
/// Read at once of a text.
const TEXT_STEP_BYTES: usize = 128;

/// How much of a unit is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// All of it.
    Whole,
    /// Its first entry.
    Root,
}

/// A unit of `.debug_info`.
pub(super) struct Unit {
    /// Its offset in `.debug_info`.
    pub(super) offset: u64,
    /// Bytes that were read.
    pub(super) bytes: usize,
    header: UnitHeader<Reader>,
    abbreviations: Abbreviations,
    low_pc: u64,
    addresses_base: u64,
    string_offsets_base: u64,
    range_lists_base: u64,
}

/// What is of interest in an entry.
#[derive(Default)]
pub(super) struct Entry {
    pub(super) low_pc: Option<Value>,
    pub(super) high_pc: Option<Value>,
    pub(super) ranges: Option<Value>,
    /// Where the rest of an inlined function is described.
    pub(super) origin: Option<Value>,
    /// Where the rest of a method is described.
    pub(super) specification: Option<Value>,
    pub(super) linkage_name: Option<Value>,
    pub(super) name: Option<Value>,
    addresses_base: Option<Value>,
    string_offsets_base: Option<Value>,
    range_lists_base: Option<Value>,
}

impl Entry {
    /// Reads the attributes of an entry.
    pub(super) fn read(
        entries: &mut EntriesRaw<'_, Reader>,
        abbreviation: &Abbreviation,
    ) -> gimli::Result<Self> {
        let mut entry = Self::default();
        for &specification in abbreviation.attributes() {
            let attribute = entries.read_attribute(specification)?;
            let place = match attribute.name() {
                gimli::DW_AT_low_pc => &mut entry.low_pc,
                gimli::DW_AT_high_pc => &mut entry.high_pc,
                gimli::DW_AT_ranges => &mut entry.ranges,
                gimli::DW_AT_abstract_origin => &mut entry.origin,
                gimli::DW_AT_specification => &mut entry.specification,
                gimli::DW_AT_linkage_name | gimli::DW_AT_MIPS_linkage_name => {
                    &mut entry.linkage_name
                }
                gimli::DW_AT_name => &mut entry.name,
                gimli::DW_AT_addr_base => &mut entry.addresses_base,
                gimli::DW_AT_str_offsets_base => &mut entry.string_offsets_base,
                gimli::DW_AT_rnglists_base => &mut entry.range_lists_base,
                _ => continue,
            };
            *place = Some(attribute.value());
        }
        Ok(entry)
    }
}

impl Unit {
    /// Offset behind a unit.
    pub(super) fn end(sections: &Sections, offset: u64) -> Option<u64> {
        let start = sections.some(&sections.info, offset, 12);
        let length = u32::from_ne_bytes(*start.first_chunk()?);
        let (header, length) = match length {
            0xffff_ffff => (12, u64::from_ne_bytes(*start.get(4..)?.first_chunk()?)),
            length => (4, u64::from(length)),
        };
        let end = offset.checked_add(header)?.checked_add(length)?;
        (length > 0 && end <= sections.info.bytes()).then_some(end)
    }

    /// Reads a unit.
    pub(super) fn load(sections: &Sections, offset: u64, extent: Extent) -> Option<Self> {
        let whole = usize::try_from(Self::end(sections, offset)? - offset).ok()?;
        let most = match extent {
            Extent::Whole => (whole <= UNIT_BYTES_MAX).then_some(whole)?,
            Extent::Root => whole.min(ROOT_BYTES),
        };
        let mut content = sections.some(&sections.info, offset, most);
        if content.len() < whole {
            shorten(&mut content)?;
        }
        let bytes = content.len();
        let reader = Reader::new(content.into(), NativeEndian);
        let header = DebugInfo::from(reader).units().next().ok()??;
        if header.address_size() != 8 {
            return None;
        }
        let abbreviations = abbreviations(sections, header.debug_abbrev_offset().0 as u64)?;
        let mut unit = Self {
            offset,
            bytes,
            header,
            abbreviations,
            low_pc: 0,
            addresses_base: 0,
            string_offsets_base: 0,
            range_lists_base: 0,
        };
        let root = unit.entry(unit.header.root_offset())?;
        let base = |value: &Option<Value>| match value {
            Some(AttributeValue::DebugAddrBase(base)) => Some(base.0 as u64),
            Some(AttributeValue::DebugStrOffsetsBase(base)) => Some(base.0 as u64),
            Some(AttributeValue::DebugRngListsBase(base)) => Some(base.0 as u64),
            _ => None,
        };
        // Behind the header of a list, where a unit does not say it.
        let first = 2 * u64::from(unit.header.format().initial_length_size());
        unit.addresses_base = base(&root.addresses_base).unwrap_or(first);
        unit.string_offsets_base = base(&root.string_offsets_base).unwrap_or(first);
        unit.range_lists_base = base(&root.range_lists_base).unwrap_or(first + 4);
        let low_pc = root.low_pc.as_ref();
        unit.low_pc = low_pc
            .and_then(|value| unit.address(sections, value))
            .unwrap_or(0);
        Some(unit)
    }

    /// Whether the unit may have code.
    pub(super) fn has_code(&self) -> bool {
        self.header.type_() == UnitType::Compilation
    }

    /// The ranges of code of the unit.
    pub(super) fn own_ranges(&self, sections: &Sections) -> Vec<Range<u64>> {
        let root = self.entry(self.header.root_offset());
        root.map_or_else(Vec::new, |root| self.ranges(sections, &root))
    }

    /// The entries from one on, by its offset in the unit; from the first without.
    pub(super) fn entries(&self, from: Option<usize>) -> Option<EntriesRaw<'_, Reader>> {
        let from = from.map(UnitOffset);
        self.header.entries_raw(&self.abbreviations, from).ok()
    }

    /// The entry at an offset in the unit.
    pub(super) fn entry(&self, at: UnitOffset) -> Option<Entry> {
        let mut entries = self.entries(Some(at.0))?;
        let abbreviation = entries.read_abbreviation().ok()??;
        Entry::read(&mut entries, abbreviation).ok()
    }

    /// Offset in `.debug_info` of what an entry refers to.
    pub(super) fn reference(&self, value: &Value) -> Option<u64> {
        match value {
            AttributeValue::UnitRef(at) => self.offset.checked_add(at.0 as u64),
            AttributeValue::DebugInfoRef(at) => Some(at.0 as u64),
            _ => None,
        }
    }

    /// Where an entry's code is.
    pub(super) fn ranges(&self, sections: &Sections, entry: &Entry) -> Vec<Range<u64>> {
        if let Some(ranges) = &entry.ranges {
            return self.listed(sections, ranges).unwrap_or_default();
        }
        let low = entry.low_pc.as_ref();
        let low = low.and_then(|value| self.address(sections, value));
        let (Some(low), Some(high)) = (low, &entry.high_pc) else {
            return Vec::new();
        };
        let high = match high.udata_value() {
            Some(bytes) => low.checked_add(bytes),
            None => self.address(sections, high),
        };
        let range = high.map(|high| low..high);
        range
            .filter(|range| !range.is_empty())
            .into_iter()
            .collect()
    }

    /// A text, as far as it is short.
    pub(super) fn text(&self, sections: &Sections, value: &Value) -> Option<String> {
        let (part, at) = match value {
            AttributeValue::String(text) => {
                return Some(String::from_utf8_lossy(text.bytes()).into_owned());
            }
            AttributeValue::DebugStrRef(at) => (&sections.strings, at.0 as u64),
            AttributeValue::DebugLineStrRef(at) => (&sections.line_strings, at.0 as u64),
            AttributeValue::DebugStrOffsetsIndex(index) => {
                let offsets = &sections.string_offsets;
                let at = self.indexed(sections, offsets, self.string_offsets_base, index.0)?;
                (&sections.strings, at)
            }
            _ => return None,
        };
        let mut text = Vec::new();
        while text.len() <= TEXT_BYTES_MAX {
            let step = sections.some(part, at + text.len() as u64, TEXT_STEP_BYTES);
            let end = step.iter().position(|&byte| byte == 0);
            text.extend_from_slice(&step[..end.unwrap_or(step.len())]);
            if end.is_some() {
                return Some(String::from_utf8_lossy(&text).into_owned());
            }
            if step.is_empty() {
                return None;
            }
        }
        None
    }

    fn address(&self, sections: &Sections, value: &Value) -> Option<u64> {
        match value {
            AttributeValue::Addr(address) => Some(*address),
            AttributeValue::DebugAddrIndex(index) => self.address_at(sections, index.0),
            _ => None,
        }
    }

    fn address_at(&self, sections: &Sections, index: usize) -> Option<u64> {
        let at = (index as u64).checked_mul(8)?;
        let at = self.addresses_base.checked_add(at)?;
        Some(u64::from_ne_bytes(sections.word(&sections.addresses, at)?))
    }

    /// An offset in a table of offsets.
    fn indexed(
        &self,
        sections: &Sections,
        part: &super::section::Part,
        base: u64,
        index: usize,
    ) -> Option<u64> {
        let width = u64::from(self.header.format().word_size());
        let at = base.checked_add((index as u64).checked_mul(width)?)?;
        match self.header.format() {
            Format::Dwarf32 => Some(u32::from_ne_bytes(sections.word(part, at)?).into()),
            Format::Dwarf64 => Some(u64::from_ne_bytes(sections.word(part, at)?)),
        }
    }

    fn listed(&self, sections: &Sections, value: &Value) -> Option<Vec<Range<u64>>> {
        let is_old = self.header.version() < 5;
        let at = match value {
            AttributeValue::RangeListsRef(at) => at.0 as u64,
            AttributeValue::DebugRngListsIndex(index) => {
                let base = self.range_lists_base;
                let list = self.indexed(sections, &sections.range_lists, base, index.0)?;
                base.checked_add(list)?
            }
            _ => return None,
        };
        let part = if is_old {
            &sections.ranges
        } else {
            &sections.range_lists
        };
        grow(LIST_BYTES, |bytes| {
            let list = sections.some(part, at, bytes);
            self.parse_list(sections, &list)
        })
    }

    fn parse_list(&self, sections: &Sections, list: &[u8]) -> Option<Vec<Range<u64>>> {
        let lists = RangeLists::new(
            DebugRanges::new(list, NativeEndian),
            DebugRngLists::new(list, NativeEndian),
        );
        let mut entries = lists
            .raw_ranges(RangeListsOffset(0), self.header.encoding())
            .ok()?;
        let mut base = self.low_pc;
        let mut ranges = Vec::new();
        while let Some(entry) = entries.next().ok()? {
            let address = |index: gimli::DebugAddrIndex| self.address_at(sections, index.0);
            let (start, end) = match entry {
                RawRngListEntry::BaseAddress { addr } => {
                    base = addr;
                    continue;
                }
                RawRngListEntry::BaseAddressx { addr } => {
                    base = address(addr)?;
                    continue;
                }
                RawRngListEntry::StartxEndx { begin, end } => (address(begin)?, address(end)?),
                RawRngListEntry::StartxLength { begin, length } => {
                    let begin = address(begin)?;
                    (begin, begin.wrapping_add(length))
                }
                RawRngListEntry::AddressOrOffsetPair { begin, end }
                | RawRngListEntry::OffsetPair { begin, end } => {
                    (base.wrapping_add(begin), base.wrapping_add(end))
                }
                RawRngListEntry::StartEnd { begin, end } => (begin, end),
                RawRngListEntry::StartLength { begin, length } => {
                    (begin, begin.wrapping_add(length))
                }
            };
            if start < end {
                ranges.push(start..end);
            }
            if ranges.len() >= RANGES_MAX {
                break;
            }
        }
        Some(ranges)
    }
}

/// Makes the length in a unit's header that of the bytes that are there.
fn shorten(content: &mut [u8]) -> Option<()> {
    let is_64 = u32::from_ne_bytes(*content.first_chunk()?) == 0xffff_ffff;
    if is_64 {
        let length = content.len().checked_sub(12)? as u64;
        content[4..12].copy_from_slice(&length.to_ne_bytes());
    } else {
        let length = u32::try_from(content.len().checked_sub(4)?).ok()?;
        content[..4].copy_from_slice(&length.to_ne_bytes());
    }
    Some(())
}

fn abbreviations(sections: &Sections, offset: u64) -> Option<Abbreviations> {
    grow(ABBREVIATION_BYTES, |bytes| {
        let content = sections.some(&sections.abbreviations, offset, bytes);
        let content = EndianSlice::new(&content, NativeEndian);
        let table = DebugAbbrev::from(content);
        table.abbreviations(DebugAbbrevOffset(0)).ok()
    })
}

/// Parses what has no length of its own, from ever more bytes.
fn grow<T>(bytes: Range<usize>, mut parse: impl FnMut(usize) -> Option<T>) -> Option<T> {
    let mut most = bytes.start;
    loop {
        let parsed = parse(most);
        if parsed.is_some() || most >= bytes.end {
            return parsed;
        }
        most *= 4;
    }
}
