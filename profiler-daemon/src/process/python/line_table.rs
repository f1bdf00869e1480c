//! Decodes `co_linetable` of CPython 3.11 and later: from an instruction to its source line.
//!
//! The table is a list of entries, each for one to eight code units (2 bytes each) of bytecode:
//!
//! ```text
//! first byte  1 cccc lll      kind c, length l + 1 code units
//! c =  0..=9  short form      1 byte of columns; same line as before
//! c = 10..=12 one line        line += c - 10; 2 bytes of columns
//! c = 13      no columns      line += svarint
//! c = 14      long form       line += svarint; varint end line, varint column, varint end column
//! c = 15      no location     this entry has no line; the running line stays as it is
//! ```
//!
//! A varint has six bits per byte, least significant first, bit 6 set on all but the last; in an
//! svarint bit 0 is the sign.
//! <https://github.com/python/cpython/blob/v3.11.0/Objects/locations.md>

/// Ranges of code units with their line, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct LineTable {
    /// End of the range (exclusive, in code units) and the line; `None` where there is none.
    ranges: Vec<(u32, Option<u32>)>,
}

impl LineTable {
    /// Decodes the table of a code object that starts on `first_line`. Stops at the first byte that
    /// cannot belong there; what was decoded before it is kept.
    pub(crate) fn decode(bytes: &[u8], first_line: u32) -> Self {
        let mut ranges: Vec<(u32, Option<u32>)> = Vec::new();
        let mut line = i64::from(first_line);
        let mut end = 0_u32;
        let mut rest = bytes.iter().copied();
        while let Some(byte) = rest.next() {
            if byte & 0x80 == 0 {
                break;
            }
            end = end.saturating_add(u32::from(byte & 7) + 1);
            let kind = byte >> 3 & 0xf;
            let complete = match kind {
                0..=9 => rest.next().map(|_| 0),
                10..=12 => rest.nth(1).map(|_| i64::from(kind) - 10),
                13 => svarint(&mut rest),
                14 => svarint(&mut rest).filter(|_| (0..3).all(|_| varint(&mut rest).is_some())),
                _ => Some(0),
            };
            let Some(delta) = complete else { break };
            line = line.saturating_add(delta);
            let entry = if kind == 15 {
                None
            } else {
                u32::try_from(line).ok()
            };
            match ranges.last_mut() {
                Some(last) if last.1 == entry => last.0 = end,
                _ => ranges.push((end, entry)),
            }
        }
        Self { ranges }
    }

    /// The line of the instruction at this code unit.
    pub(crate) fn line(&self, unit: u32) -> Option<u32> {
        let index = self.ranges.partition_point(|&(end, _)| end <= unit);
        self.ranges.get(index)?.1
    }
}

fn varint(bytes: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let mut value = 0;
    // Eleven groups of six bits are more than 64; a line number needs six.
    for shift in (0..60).step_by(6) {
        let byte = bytes.next()?;
        value |= u64::from(byte & 0x3f) << shift;
        if byte & 0x40 == 0 {
            return Some(value);
        }
    }
    None
}

fn svarint(bytes: &mut impl Iterator<Item = u8>) -> Option<i64> {
    let value = varint(bytes)?;
    let magnitude = i64::try_from(value >> 1).ok()?;
    Some(if value & 1 == 1 {
        -magnitude
    } else {
        magnitude
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first byte of an entry for `units` code units.
    const fn entry(kind: u8, units: u8) -> u8 {
        0x80 | kind << 3 | (units - 1)
    }

    /// Check every kind of entry, including a line that is absent without disturbing the next ones.
    #[test]
    fn every_kind_of_entry_moves_the_line_as_documented() {
        let entries: [&[u8]; 6] = [
            &[entry(0, 2), 0x11],            // units 0-1, line 10
            &[entry(12, 1), 0, 0],           // unit 2, line 10 + 2
            &[entry(15, 4)],                 // units 3-6, none
            &[entry(13, 1), 0b10],           // unit 7, line 12 + 1
            &[entry(14, 8), 0b101, 0, 0, 0], // units 8-15, line 13 - 2
            &[entry(13, 1), 0x40, 0b11],     // unit 16, line 11 + (0b11 << 6) / 2
        ];
        let table = LineTable::decode(&entries.concat(), 10);
        let lines: Vec<_> = [0, 1, 2, 3, 6, 7, 8, 15, 16, 17]
            .map(|unit| table.line(unit))
            .into();
        assert_eq!(
            lines,
            [
                Some(10),
                Some(10),
                Some(12),
                None,
                None,
                Some(13),
                Some(11),
                Some(11),
                Some(107),
                None
            ]
        );
    }

    /// Check that cut and hostile tables end early and keep what came before.
    #[test]
    fn a_cut_table_keeps_its_head() {
        assert_eq!(LineTable::decode(&[], 1), LineTable::default());
        assert_eq!(LineTable::decode(&[0x80, 0, 0xf0], 7).line(0), Some(7));
        assert_eq!(LineTable::decode(&[0x80, 0, 0x00, 0x80], 7).line(1), None);
        let endless = [0xff; 64];
        assert_eq!(LineTable::decode(&endless, 1).line(0), None);
        let varint = [&[entry(13, 1)][..], &[0x7f; 40]].concat();
        assert_eq!(LineTable::decode(&varint, 1), LineTable::default());
        // A line below zero is no line.
        assert_eq!(
            LineTable::decode(&[entry(13, 1), 0b11_1111], 1).line(0),
            None
        );
    }
}
