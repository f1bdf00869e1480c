//! Finds the function that contains an address, by the unwind information that stripped objects keep.
//!
//! In:  `.eh_frame_hdr` and `.eh_frame` of an ELF object
//! Out: [`Header`], the range of a function
//! Lost: objects without `.eh_frame_hdr`
//!
//! # Layout
//! ```text
//! .eh_frame_hdr: u8 version 1, u8 encoding x3; i32 .eh_frame; u32 count; {i32 pc, i32 FDE}[count]
//!                the table is sorted; its numbers are relative to the start of .eh_frame_hdr
//! .eh_frame:     CIE (common rules of a compilation unit), FDE (rules of a function), FDE, ...
//! FDE:           u32 length, u32 distance back to the CIE, pc, bytes of code, ...; the CIE knows their encoding
//! ```
//! Linux Standard Base 5.0, Core, chapter 10.6.

use std::io::Error;
use std::ops::Range;

use gimli::{BaseAddresses, EhFrame, EhFrameOffset, NativeEndian, UnwindSection};

use super::ReadMemory;
use super::elf::ElfLayout;

/// `.eh_frame_hdr` as all linkers write it: version 1, `.eh_frame` as pcrel sdata4, count as udata4,
/// table as datarel sdata4.
const HEADER: [u8; 4] = [1, 0x1b, 0x03, 0x3b];
const HEADER_BYTES: usize = 12;
/// Bytes of an entry of the table.
pub(crate) const ENTRY_BYTES: usize = 8;
/// Beginning of a description that is read: length, distance, pc and bytes of code.
const FDE_BYTES: usize = 24;
/// Beginning of a common description that is read: the encoding is in its first 30 bytes.
const CIE_BYTES: usize = 64;

/// `.eh_frame_hdr` of an object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    /// Its address, which the numbers of the table count from.
    pub(crate) address: u64,
    /// Address of `.eh_frame`.
    pub(crate) eh_frame: u64,
    /// File offset of the table.
    pub(crate) table_offset: u64,
    /// Bytes of the table.
    pub(crate) table_bytes: u64,
}

impl Header {
    /// Reads the header; `Ok(None)` if there is none of the usual form.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub(crate) fn read(object: &dyn ReadMemory, layout: &ElfLayout) -> Result<Option<Self>, Error> {
        let Some(segment) = layout.eh_frame_hdr else {
            return Ok(None);
        };
        let mut header = [0; HEADER_BYTES];
        object.read_exact(segment.offset, &mut header)?;
        let [a, b, c, d, rest @ ..] = header;
        if [a, b, c, d] != HEADER {
            return Ok(None);
        }
        let [a, b, c, d, e, f, g, h] = rest;
        let relative = i64::from(i32::from_ne_bytes([a, b, c, d]));
        let count = u64::from(u32::from_ne_bytes([e, f, g, h]));
        let room = segment.file_bytes.saturating_sub(HEADER_BYTES as u64);
        Ok(Some(Self {
            address: segment.address,
            eh_frame: segment
                .address
                .wrapping_add(4)
                .wrapping_add_signed(relative),
            table_offset: segment.offset.saturating_add(HEADER_BYTES as u64),
            table_bytes: room.min(count * ENTRY_BYTES as u64),
        }))
    }

    /// Start of the function and address of its description, as an entry of the table has them.
    pub(crate) fn entry(&self, entry: [u8; ENTRY_BYTES]) -> (u64, u64) {
        let at = |relative: [u8; 4]| {
            let relative = i64::from(i32::from_ne_bytes(relative));
            self.address.wrapping_add_signed(relative)
        };
        let [a, b, c, d, e, f, g, h] = entry;
        (at([a, b, c, d]), at([e, f, g, h]))
    }
}

/// The function of an object that contains an address of it. Reads some dozens of bytes and keeps nothing.
pub(crate) fn function_at(
    object: &dyn ReadMemory,
    layout: &ElfLayout,
    address: u64,
) -> Option<Range<u64>> {
    let header = Header::read(object, layout).ok()??;
    let entry = |index: u64| {
        let mut entry = [0; ENTRY_BYTES];
        let offset = header
            .table_offset
            .saturating_add(index * ENTRY_BYTES as u64);
        object.read_exact(offset, &mut entry).ok()?;
        Some(header.entry(entry))
    };
    // The first entry that starts after the address.
    let (mut low, mut high) = (0, header.table_bytes / ENTRY_BYTES as u64);
    while low < high {
        let middle = low.midpoint(high);
        if entry(middle)?.0 <= address {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let (start, description) = entry(low.checked_sub(1)?)?;
    let bytes = code_bytes(object, layout, description)?;
    let end = start.checked_add(bytes)?;
    (start..end).contains(&address).then_some(start..end)
}

/// Bytes of code that the description at an address is of.
fn code_bytes(object: &dyn ReadMemory, layout: &ElfLayout, description: u64) -> Option<u64> {
    let read = |address: u64, buffer: &mut [u8]| {
        let offset = layout.segment_of(address)?.offset_of(address)?;
        object.read(offset, buffer).ok()
    };
    let mut fde = [0; FDE_BYTES];
    let read_bytes = read(description, &mut fde)?;
    let word = |at: usize| {
        Some(u32::from_ne_bytes(
            *fde[..read_bytes].get(at..)?.first_chunk()?,
        ))
    };
    // The distance counts from where it stands.
    let common = description.checked_add(4)?.checked_sub(word(4)?.into())?;
    let mut cie = [0; CIE_BYTES];
    let read_bytes = read(common, &mut cie)?;
    let encoding = address_encoding(cie.get(..read_bytes)?)?;
    // The low half of an encoding is its width.
    match encoding.0 & 0x0f {
        0x00 | 0x04 | 0x0c => Some(u64::from_ne_bytes(*fde.get(16..)?.first_chunk()?)),
        0x03 | 0x0b => word(12).map(u64::from),
        _ => None,
    }
}

/// How the descriptions that belong to a CIE write addresses.
fn address_encoding(bytes: &[u8]) -> Option<gimli::DwEhPe> {
    // Instructions follow, whose end is of no interest: a description longer than what was read is cut.
    let mut bytes = bytes.to_vec();
    let room = u32::try_from(bytes.len().checked_sub(4)?).ok()?;
    let length = u32::from_ne_bytes(*bytes.first_chunk()?).min(room);
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    let section = EhFrame::new(&bytes, NativeEndian);
    let bases = BaseAddresses::default().set_eh_frame(0);
    let cie = section.cie_from_offset(&bases, EhFrameOffset(0)).ok()?;
    Some(cie.fde_address_encoding().unwrap_or(gimli::DW_EH_PE_absptr))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Pid;
    use crate::process::object::ObjectFile;
    use crate::process::{Mappings, ProcessMemory};

    fn own_object(code: *const ()) -> (ObjectFile, ElfLayout, u64) {
        let pid = Pid(std::process::id());
        let mappings = Mappings::read(pid).unwrap();
        let mapping = mappings.find(code as u64).unwrap();
        let object = ObjectFile::open(pid, &ProcessMemory::new(pid), mapping).unwrap();
        let layout = ElfLayout::read(&object).unwrap();
        let offset = code as u64 - mapping.start + mapping.file_offset;
        let address = layout.address_of(offset).unwrap();
        (object, layout, address)
    }

    /// Check that functions of ours and of the C library are found from any address in them, and that there is none
    /// where there is no code.
    #[test]
    fn functions_are_found() {
        for code in [
            functions_are_found as *const (),
            libc::qsort as *const (),
            libc::getppid as *const (),
        ] {
            let (object, layout, address) = own_object(code);
            let function = function_at(&object, &layout, address).unwrap();
            assert_eq!(function.start, address);
            for inside in [address + 1, function.end - 1] {
                let again = function_at(&object, &layout, inside);
                assert_eq!(again, Some(function.clone()));
            }
            assert_ne!(
                function_at(&object, &layout, function.end),
                Some(function.clone())
            );
            assert_eq!(function_at(&object, &layout, 0), None);
            assert_eq!(function_at(&object, &layout, u64::MAX), None);
        }
    }

    /// Check that no corrupted byte of the header, the table or a description makes the reader panic.
    #[test]
    fn corrupted_descriptions_do_not_panic() {
        let exe = std::fs::read("/bin/true").unwrap();
        let layout = ElfLayout::read(&ObjectFile::from_image(exe.clone())).unwrap();
        let header = Header::read(&ObjectFile::from_image(exe.clone()), &layout)
            .unwrap()
            .unwrap();
        let eh_frame = layout
            .segment_of(header.eh_frame)
            .and_then(|segment| segment.offset_of(header.eh_frame))
            .unwrap() as usize;
        let start = header.table_offset as usize;
        let (first, _) = header.entry(*exe[start..].first_chunk().unwrap());
        for at in (start - HEADER_BYTES..start + 64).chain(eh_frame..eh_frame + 96) {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = exe.clone();
                bytes[at] = byte;
                let object = ObjectFile::from_image(bytes);
                for address in [first, first + 1, u64::MAX] {
                    let _ = function_at(&object, &layout, address);
                }
            }
        }
    }
}
