//! The unwind information of one object: finds the [`Row`] for an address.
//!
//! In:  `.eh_frame` and `.eh_frame_hdr` of an ELF object ([`crate::process::eh_frame`] has their layout)
//! Out: [`Row`]
//! Lost: nothing; without information there is no row, and the walk follows frame pointers
//!
//! # Why rows one by one
//! A request visits some hundreds of addresses of the hundred thousand that an object has rows for.
//! Evaluating the rules of one function costs about a microsecond, compiling all of node's 60 ms.

use std::io::Error;

use gimli::{
    BaseAddresses, CieOrFde, EhFrame, EhFrameOffset, EndianSlice, NativeEndian, UnwindContext,
    UnwindSection,
};

use super::arch::Arch;
use super::row::Row;
use crate::process::ReadMemory;
use crate::process::eh_frame::{ENTRY_BYTES, Header};
use crate::process::elf::{ElfLayout, Section, Segment};
use crate::process::object::read_range;

/// More than any real section: Chromium's `.eh_frame` has about 30 MB.
const SECTION_BYTES_MAX: usize = 64 << 20;
/// Functions indexed in an object without `.eh_frame_hdr`. libLLVM has about 100,000.
const FUNCTIONS_MAX: usize = 1 << 20;
type Slice<'a> = EndianSlice<'a, NativeEndian>;

/// Unwind information of an object.
pub(super) struct UnwindTable {
    /// Unique among all tables ever loaded by this process.
    pub(super) id: u32,
    layout: ElfLayout,
    /// Content of `.eh_frame`.
    eh_frame: Vec<u8>,
    bases: BaseAddresses,
    address: u64,
    index: Index,
}

/// Finds the function description for an address.
enum Index {
    /// The object's own sorted table.
    Table { header: Header, table: Vec<u8> },
    /// Start address and offset of each description, sorted, of objects that have no such table.
    Functions(Vec<(u64, u32)>),
}

impl UnwindTable {
    /// Reads the unwind information of an object; `Ok(None)` if it has none.
    ///
    /// # Errors
    ///
    /// The object is not what it should be.
    pub(super) fn load(id: u32, object: &dyn ReadMemory) -> Result<Option<Self>, Error> {
        let mut layout = ElfLayout::read(object)?;
        let table = match read_header(object, &layout)? {
            Some(found) => Some(found),
            None => read_section(object, &layout)?,
        };
        layout.forget_sections();
        Ok(table.map(|(address, eh_frame, header)| {
            let bases = BaseAddresses::default().set_eh_frame(address);
            let index = header.unwrap_or_else(|| index_functions(&eh_frame, &bases));
            Self {
                id,
                layout,
                eh_frame,
                bases,
                address,
                index,
            }
        }))
    }

    /// The object's own address of a byte of its file.
    pub(super) fn address_of(&self, file_offset: u64) -> Option<u64> {
        self.layout.address_of(file_offset)
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        let index = match &self.index {
            Index::Table { table, .. } => table.len(),
            Index::Functions(functions) => size_of_val(functions.as_slice()),
        };
        self.eh_frame.len() + index
    }

    /// Content of `.eh_frame`, which the expressions of rows point into.
    pub(super) fn eh_frame(&self) -> &[u8] {
        &self.eh_frame
    }

    /// The row for an address of the object.
    pub(super) fn row(
        &self,
        arch: &Arch,
        context: &mut UnwindContext<usize>,
        address: u64,
    ) -> Option<Row> {
        let offset = EhFrameOffset(self.find(address)?);
        let mut section = EhFrame::new(&self.eh_frame, NativeEndian);
        section.set_vendor(arch.vendor);
        let fde = section
            .fde_from_offset(&self.bases, offset, EhFrame::cie_from_offset)
            .ok()?;
        if !fde.contains(address) {
            return None;
        }
        let row = fde
            .unwind_info_for_address(&section, &self.bases, context, address)
            .ok()?;
        Row::new(arch, row, fde.is_signal_trampoline())
    }

    /// Offset in `.eh_frame` of the last description that does not start after `address`.
    fn find(&self, address: u64) -> Option<usize> {
        match &self.index {
            Index::Functions(functions) => {
                let after = functions.partition_point(|&(start, _)| start <= address);
                Some(functions[after.checked_sub(1)?].1 as usize)
            }
            Index::Table { header, table } => {
                let (entries, _) = table.as_chunks::<ENTRY_BYTES>();
                let after = entries.partition_point(|entry| header.entry(*entry).0 <= address);
                let (_, description) = header.entry(entries[after.checked_sub(1)?]);
                usize::try_from(description.checked_sub(self.address)?).ok()
            }
        }
    }
}

type Found = (u64, Vec<u8>, Option<Index>);

/// `.eh_frame` by way of `.eh_frame_hdr`.
fn read_header(object: &dyn ReadMemory, layout: &ElfLayout) -> Result<Option<Found>, Error> {
    let Some(header) = Header::read(object, layout)? else {
        return Ok(None);
    };
    let address = header.eh_frame;
    let Some(load) = layout.segment_of(address) else {
        return Ok(None);
    };
    let table = read_range(
        object,
        header.table_offset,
        header.table_bytes,
        SECTION_BYTES_MAX,
    )?;
    let section = layout.section_at(address);
    let bytes = section.map_or_else(|| rest_of(&load, address), |section| section.bytes);
    let offset = load.offset_of(address).unwrap_or(load.offset);
    let eh_frame = read_range(object, offset, bytes, SECTION_BYTES_MAX)?;
    Ok(Some((
        address,
        eh_frame,
        Some(Index::Table { header, table }),
    )))
}

/// Without section headers `.eh_frame` is taken to reach to the end of its segment; a zero word ends
/// it earlier.
fn rest_of(load: &Segment, address: u64) -> u64 {
    load.file_bytes - address.wrapping_sub(load.address).min(load.file_bytes)
}

/// `.eh_frame` by way of the section headers.
fn read_section(object: &dyn ReadMemory, layout: &ElfLayout) -> Result<Option<Found>, Error> {
    let Some(section) = layout.section_named(object, ".eh_frame") else {
        return Ok(None);
    };
    let Section {
        address,
        offset,
        bytes,
        ..
    } = section;
    let eh_frame = read_range(object, offset, bytes, SECTION_BYTES_MAX)?;
    Ok(Some((address, eh_frame, None)))
}

fn index_functions(eh_frame: &[u8], bases: &BaseAddresses) -> Index {
    let section: EhFrame<Slice<'_>> = EhFrame::new(eh_frame, NativeEndian);
    let mut entries = section.entries(bases);
    let mut functions = Vec::new();
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else {
            continue;
        };
        // One description that cannot be read leaves one function without information.
        if let Ok(fde) = partial.parse(EhFrame::cie_from_offset)
            && let Ok(offset) = u32::try_from(fde.offset())
        {
            functions.push((fde.initial_address(), offset));
        }
        if functions.len() >= FUNCTIONS_MAX {
            break;
        }
    }
    functions.sort_unstable();
    Index::Functions(functions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Pid;
    use crate::process::object::ObjectFile;
    use crate::process::{Mappings, ProcessMemory};

    /// The object that contains our own code, and the address of `code` in it.
    fn own_object(code: *const ()) -> (ObjectFile, u64) {
        let pid = Pid(std::process::id());
        let mappings = Mappings::read(pid).unwrap();
        let mapping = mappings.find(code as u64).unwrap();
        let object = ObjectFile::open(pid, &ProcessMemory::new(pid), mapping).unwrap();
        let offset = code as u64 - mapping.start + mapping.file_offset;
        let layout = ElfLayout::read(&object).unwrap();
        let address = layout.address_of(offset).unwrap();
        (object, address)
    }

    /// Check that our own functions have rows, that data has none, and that both ways to find a
    /// function agree.
    #[test]
    fn rows_of_our_own_test_binary_are_found() {
        for code in [
            rows_of_our_own_test_binary_are_found as *const (),
            libc::qsort as *const (),
            libc::getppid as *const (),
        ] {
            let (object, address) = own_object(code);
            let table = UnwindTable::load(1, &object).unwrap().unwrap();
            let mut context = UnwindContext::new();
            assert!(table.row(Arch::HOST, &mut context, address).is_some());
            assert!(table.row(Arch::HOST, &mut context, address + 1).is_some());
            assert!(table.row(Arch::HOST, &mut context, 1).is_none());
            assert!(table.row(Arch::HOST, &mut context, u64::MAX).is_none());

            let layout = ElfLayout::read(&object).unwrap();
            let (start, eh_frame, _) = read_section(&object, &layout).unwrap().unwrap();
            assert_eq!(start, table.address);
            assert_eq!(eh_frame, table.eh_frame);
            let Index::Functions(functions) = index_functions(&eh_frame, &table.bases) else {
                panic!("a linear index was asked for");
            };
            assert!(functions.len() > 1000);
            for &(function, offset) in functions.iter().step_by(97) {
                let found = table.find(function).unwrap();
                // Several descriptions may start at one address; either is right.
                if found != offset as usize {
                    let twin = functions.iter().filter(|&&(start, _)| start == function);
                    assert!(twin.count() > 1, "{function:#x}");
                }
            }
        }
    }

    /// Check that corrupted unwind information gives no row or a wrong one, but never a panic.
    #[test]
    fn corrupted_sections_do_not_panic() {
        let (object, address) = own_object(libc::qsort as *const ());
        let mut table = UnwindTable::load(1, &object).unwrap().unwrap();
        let mut context = UnwindContext::new();
        let fde = table.find(address).unwrap();
        let whole = table.eh_frame.clone();
        let word = |at: usize| u32::from_ne_bytes(whole[at..at + 4].try_into().unwrap());
        let cie = fde + 4 - word(fde + 4) as usize;
        for start in [fde, cie] {
            for (at, &original) in whole.iter().enumerate().skip(start).take(64) {
                for byte in [0, 1, 0x7f, 0x80, 0xff] {
                    table.eh_frame[at] = byte;
                    let _ = table.row(Arch::HOST, &mut context, address);
                    let _ = table.row(Arch::HOST, &mut context, address + 40);
                    table.eh_frame[at] = original;
                }
            }
        }
        table.eh_frame.truncate(fde + 8);
        assert!(table.row(Arch::HOST, &mut context, address).is_none());
        if let Index::Table { table, .. } = &mut table.index {
            table.iter_mut().for_each(|byte| *byte = !*byte);
        }
        let _ = table.row(Arch::HOST, &mut context, address);
        let _ = index_functions(&whole[..fde + 9], &table.bases);
    }
}
