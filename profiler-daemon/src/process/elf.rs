//! Reads where the parts of an ELF object are.
//!
//! In:  an object's bytes by file offset, which its owner chose
//! Out: [`ElfLayout`]
//! Lost: nothing; what is malformed is an error
//!
//! Formats: System V gABI, chapters 4 and 5 (ELF header, section header, program header).

use std::io::{Error, ErrorKind};

use super::ReadMemory;
use super::object::read_range;

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
const CLASS_64: u8 = 2;
const DATA_NATIVE: u8 = if cfg!(target_endian = "little") { 1 } else { 2 };
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const SECTION_HEADER_BYTES: usize = 64;
/// Real objects have about a dozen.
const PROGRAM_HEADERS_MAX: usize = 128;
/// Linked objects have about 40; those built with a section per function may keep thousands.
const SECTION_HEADERS_MAX: usize = 16_384;
/// Most bytes of section names that are read.
const SECTION_NAMES_BYTES_MAX: usize = 1 << 20;
const PT_LOAD: u32 = 1;
const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
/// `sh_flags` of a section that is compressed.
const SHF_COMPRESSED: u64 = 0x800;
/// `p_flags` of an executable segment.
const PF_X: u32 = 1;

/// A part of an object, in the file and in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Offset in the file.
    pub(crate) offset: u64,
    /// Bytes in the file.
    pub(crate) file_bytes: u64,
    /// Address in the object, before it is loaded somewhere.
    pub(crate) address: u64,
    executable: bool,
}

impl Segment {
    /// File offset of an address.
    pub(crate) fn offset_of(&self, address: u64) -> Option<u64> {
        let within = address.checked_sub(self.address)?;
        (within < self.file_bytes).then(|| self.offset.saturating_add(within))
    }

    /// Address of a file offset.
    fn address_of(&self, offset: u64) -> Option<u64> {
        let within = offset.checked_sub(self.offset)?;
        (within < self.file_bytes).then(|| self.address.wrapping_add(within))
    }
}

/// An entry of the section headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    /// Offset of its name in the section of names.
    name: u32,
    /// `sh_type`.
    pub(crate) kind: u32,
    /// `sh_flags`.
    flags: u64,
    /// Address in the object, 0 if it is not loaded.
    pub(crate) address: u64,
    /// Offset in the file.
    pub(crate) offset: u64,
    /// Bytes in the file.
    pub(crate) bytes: u64,
    /// Index of a section it refers to.
    pub(crate) link: u32,
}

impl Section {
    /// Whether its content begins with a compression header.
    pub(crate) fn is_compressed(&self) -> bool {
        self.flags & SHF_COMPRESSED != 0
    }
}

/// The section headers as they are in the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct SectionTable {
    /// Offset of the table in the file.
    pub(crate) offset: u64,
    /// The table.
    pub(crate) bytes: Vec<u8>,
    /// Index of the section that has the sections' names.
    pub(crate) names: u16,
}

impl SectionTable {
    /// The sections, in file order.
    pub(crate) fn sections(&self) -> impl Iterator<Item = Section> {
        self.bytes
            .chunks_exact(SECTION_HEADER_BYTES)
            .map(|entry| Section {
                name: u32_at(entry, 0),
                kind: u32_at(entry, 4),
                flags: u64_at(entry, 8),
                address: u64_at(entry, 16),
                offset: u64_at(entry, 24),
                bytes: u64_at(entry, 32),
                link: u32_at(entry, 40),
            })
    }
}

/// Where the parts of an ELF object are.
#[derive(Clone, Debug)]
pub(crate) struct ElfLayout {
    /// Loaded segments.
    loads: Vec<Segment>,
    /// `.eh_frame_hdr`, if it is announced by a program header.
    pub(crate) eh_frame_hdr: Option<Segment>,
    /// Section headers; empty if the object was stripped of them.
    pub(crate) sections: SectionTable,
}

impl ElfLayout {
    /// Reads the headers of an object.
    ///
    /// # Errors
    ///
    /// They are unreadable, malformed, or of another word size or byte order.
    pub(crate) fn read(object: &dyn ReadMemory) -> Result<Self, Error> {
        let malformed = |what| Error::new(ErrorKind::InvalidData, what);
        let mut header = [0; HEADER_BYTES];
        object.read_exact(0, &mut header)?;
        if header[..4] != ELF_MAGIC {
            return Err(malformed("not an ELF object"));
        }
        if header[4] != CLASS_64 || header[5] != DATA_NATIVE {
            return Err(malformed("not a 64-bit object of this machine"));
        }
        if usize::from(u16_at(&header, 54)) != PROGRAM_HEADER_BYTES {
            return Err(malformed("strange program headers"));
        }
        let table = read_range(
            object,
            u64_at(&header, 32),
            u64::from(u16_at(&header, 56)) * PROGRAM_HEADER_BYTES as u64,
            PROGRAM_HEADERS_MAX * PROGRAM_HEADER_BYTES,
        )?;
        let mut layout = Self {
            loads: Vec::new(),
            eh_frame_hdr: None,
            sections: Self::read_sections(object, &header).unwrap_or_default(),
        };
        for entry in table.chunks_exact(PROGRAM_HEADER_BYTES) {
            let segment = Segment {
                offset: u64_at(entry, 8),
                file_bytes: u64_at(entry, 32),
                address: u64_at(entry, 16),
                executable: u32_at(entry, 4) & PF_X != 0,
            };
            match u32_at(entry, 0) {
                PT_LOAD => layout.loads.push(segment),
                PT_GNU_EH_FRAME => layout.eh_frame_hdr = Some(segment),
                _ => {}
            }
        }
        // Neighbouring segments may share a page of the file: code is looked for in code first.
        layout.loads.sort_by_key(|segment| !segment.executable);
        Ok(layout)
    }

    fn read_sections(object: &dyn ReadMemory, header: &[u8]) -> Result<SectionTable, Error> {
        if usize::from(u16_at(header, 58)) != SECTION_HEADER_BYTES {
            return Ok(SectionTable::default());
        }
        let offset = u64_at(header, 40);
        let bytes = u64::from(u16_at(header, 60)) * SECTION_HEADER_BYTES as u64;
        Ok(SectionTable {
            offset,
            bytes: read_range(
                object,
                offset,
                bytes,
                SECTION_HEADERS_MAX * SECTION_HEADER_BYTES,
            )?,
            names: u16_at(header, 62),
        })
    }

    /// The address in the object of a byte of the file.
    pub(crate) fn address_of(&self, offset: u64) -> Option<u64> {
        self.loads.iter().find_map(|load| load.address_of(offset))
    }

    /// The loaded segment that contains an address of the object.
    pub(crate) fn segment_of(&self, address: u64) -> Option<Segment> {
        let mut loads = self.loads.iter();
        loads
            .find(|load| load.offset_of(address).is_some())
            .copied()
    }

    /// The section with this name.
    pub(crate) fn section_named(&self, object: &dyn ReadMemory, name: &str) -> Option<Section> {
        let names = self
            .sections
            .sections()
            .nth(usize::from(self.sections.names))?;
        let names = read_range(object, names.offset, names.bytes, SECTION_NAMES_BYTES_MAX).ok()?;
        let is_named = |section: &Section| {
            let rest = names
                .get(section.name as usize..)?
                .strip_prefix(name.as_bytes())?;
            (rest.first() == Some(&0)).then_some(())
        };
        let mut sections = self.sections.sections();
        sections.find(|section| is_named(section).is_some())
    }

    /// Frees the section headers.
    pub(crate) fn forget_sections(&mut self) {
        self.sections = SectionTable::default();
    }

    /// The section that starts at an address of the object.
    pub(crate) fn section_at(&self, address: u64) -> Option<Section> {
        let mut sections = self.sections.sections();
        sections.find(|section| section.address == address && section.bytes > 0)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::object::ObjectFile;

    /// Check that no corrupted or missing byte of real headers makes the reader panic.
    #[test]
    fn corrupted_headers_are_errors_or_nothing() {
        let exe = std::fs::read("/bin/true").unwrap();
        for at in 0..0x400 {
            let mut bytes = exe[..0x2000].to_vec();
            bytes[at] ^= 0xff;
            if let Ok(layout) = ElfLayout::read(&ObjectFile::from_image(bytes.clone())) {
                let _ = (layout.address_of(u64::MAX), layout.section_at(0x1000));
            }
            let _ = ElfLayout::read(&ObjectFile::from_image(bytes[..at].to_vec()));
        }
    }
}
