//! Finds the range of the function around an address in `.eh_frame_hdr`.

use std::ops::Range;

use super::{Image, u32_at};

/// A larger function than this is not believed. CPython's interpreter loop is 34 to 90 KB.
const FUNCTION_BYTES_MAX: u64 = 4 << 20;

impl Image<'_> {
    /// The range of the function that covers `pc`: its frame description entry, found by binary
    /// search in `.eh_frame_hdr`. Understands the encodings that GNU ld, gold, lld and mold write.
    ///
    /// ```text
    /// .eh_frame_hdr: u8 version 1, u8 encoding x3; i32 eh_frame; u32 count; {i32 pc, i32 fde}[count]
    /// FDE:           u32 length, u32 CIE; i32 pc (relative to itself); u32 bytes; ...
    /// ```
    pub(crate) fn function_range(&self, pc: u64) -> Option<Range<u64>> {
        const SDATA4_DATAREL: u8 = 0x3b;
        const SDATA4_PCREL: u8 = 0x1b;
        const UDATA4: u8 = 0x03;

        let table = self.eh_frame_hdr?;
        let mut header = [0; 12];
        self.memory.read_exact(table, &mut header).ok()?;
        if header[..4] != [1, SDATA4_PCREL, UDATA4, SDATA4_DATAREL] {
            return None;
        }
        let relative =
            |base: u64, at: u64| Some(base.wrapping_add_signed(self.read_i32(at)?.into()));
        let entry = |index: u32| table.checked_add(12 + 8 * u64::from(index));

        let (mut low, mut high) = (0, u32_at(&header, 8));
        while low < high {
            let middle = low + (high - low) / 2;
            if relative(table, entry(middle)?)? <= pc {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let found = entry(low.checked_sub(1)?)?;
        let start = relative(table, found)?;
        let fde = relative(table, found.checked_add(4)?)?;
        let pc_field = fde.checked_add(8)?;
        // The entry must say the same as the table, which also proves the encoding we assume.
        if relative(pc_field, pc_field)? != start {
            return None;
        }
        let bytes = u64::from(self.read_u32(pc_field.checked_add(4)?)?);
        let range = start..start.checked_add(bytes)?;
        (range.contains(&pc) && bytes <= FUNCTION_BYTES_MAX).then_some(range)
    }
}
