//! The debug sections of an object, read piece by piece.
//!
//! In:  an object with `.debug_info`
//! Out: bytes of a section
//! Lost: more than [`INFLATED_BYTES_MAX`] of compressed sections
//!
//! Debug information is many times larger than the program. What a look needs are some pieces of it, so they are
//! read when needed and the page cache keeps them. Nothing is mapped: the owner of the file may truncate it.

use std::io::{Error, ErrorKind};

use object::{CompressedData, CompressionFormat};

use crate::process::ReadMemory;
use crate::process::elf::{ElfLayout, Section};
use crate::process::object::{ObjectFile, read_range};

/// Most bytes of decompressed sections of an object. Those of the C library have 20 MB.
const INFLATED_BYTES_MAX: u64 = 32 << 20;
/// `ch_type`, a reserved word, `ch_size`, `ch_addralign`.
const COMPRESSION_HEADER_BYTES: usize = 24;
/// `ch_type`.
const COMPRESSED_BY_ZLIB: u32 = 1;
const COMPRESSED_BY_ZSTD: u32 = 2;

/// A debug section.
#[derive(Default)]
pub(super) enum Part {
    /// The object does not have it.
    #[default]
    Absent,
    /// As it is in the file.
    Stored { offset: u64, bytes: u64 },
    /// It was compressed.
    Inflated(Vec<u8>),
}

impl Part {
    /// Size of the section.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Absent => 0,
            Self::Stored { bytes, .. } => *bytes,
            Self::Inflated(content) => content.len() as u64,
        }
    }
}

/// The debug sections of an object.
pub(super) struct Sections {
    object: ObjectFile,
    pub(super) info: Part,
    pub(super) abbreviations: Part,
    pub(super) strings: Part,
    pub(super) line_strings: Part,
    pub(super) string_offsets: Part,
    pub(super) addresses: Part,
    /// Up to DWARF 4.
    pub(super) ranges: Part,
    /// From DWARF 5 on.
    pub(super) range_lists: Part,
    /// Addresses of units.
    pub(super) unit_ranges: Part,
}

impl Sections {
    /// The debug sections of an object; `Ok(None)` if it has none.
    ///
    /// # Errors
    ///
    /// A section cannot be read.
    pub(super) fn new(object: ObjectFile, layout: &ElfLayout) -> Result<Option<Self>, Error> {
        if layout.section_named(&object, ".debug_info").is_none() {
            return Ok(None);
        }
        let mut room = INFLATED_BYTES_MAX;
        let mut part = |name| match layout.section_named(&object, name) {
            Some(section) if section.is_compressed() => {
                let inflated = inflate(&object, &section, room)?;
                room -= inflated.len() as u64;
                Ok(Part::Inflated(inflated))
            }
            Some(Section { offset, bytes, .. }) => Ok(Part::Stored { offset, bytes }),
            None => Ok::<_, Error>(Part::Absent),
        };
        Ok(Some(Self {
            info: part(".debug_info")?,
            abbreviations: part(".debug_abbrev")?,
            strings: part(".debug_str")?,
            line_strings: part(".debug_line_str")?,
            string_offsets: part(".debug_str_offsets")?,
            addresses: part(".debug_addr")?,
            ranges: part(".debug_ranges")?,
            range_lists: part(".debug_rnglists")?,
            unit_ranges: part(".debug_aranges")?,
            object,
        }))
    }

    /// Memory that they take.
    pub(super) fn bytes(&self) -> u64 {
        let parts = [
            &self.info,
            &self.abbreviations,
            &self.strings,
            &self.line_strings,
            &self.string_offsets,
            &self.addresses,
            &self.ranges,
            &self.range_lists,
            &self.unit_ranges,
        ];
        let inflated = |part: &&Part| match part {
            Part::Inflated(content) => content.len() as u64,
            Part::Absent | Part::Stored { .. } => 0,
        };
        parts.iter().map(inflated).sum()
    }

    /// Up to `most` bytes of a section; fewer at its end.
    pub(super) fn some(&self, part: &Part, at: u64, most: usize) -> Vec<u8> {
        let rest = part.bytes().saturating_sub(at);
        let most = most.min(usize::try_from(rest).unwrap_or(usize::MAX));
        match part {
            Part::Absent => Vec::new(),
            Part::Stored { offset, .. } => {
                let mut content = vec![0; most];
                let offset = offset.saturating_add(at);
                let read = self.object.read(offset, &mut content).unwrap_or(0);
                content.truncate(read);
                content
            }
            Part::Inflated(content) => {
                let at = content.len().min(at as usize);
                content[at..at + most].to_vec()
            }
        }
    }

    /// A number of `N` bytes.
    pub(super) fn word<const N: usize>(&self, part: &Part, at: u64) -> Option<[u8; N]> {
        self.some(part, at, N).try_into().ok()
    }
}

fn inflate(object: &ObjectFile, section: &Section, room: u64) -> Result<Vec<u8>, Error> {
    let malformed = |what| Error::new(ErrorKind::InvalidData, what);
    let most = usize::try_from(room).unwrap_or(usize::MAX);
    let compressed = read_range(object, section.offset, section.bytes, most)?;
    let (header, data) = compressed
        .split_at_checked(COMPRESSION_HEADER_BYTES)
        .ok_or_else(|| malformed("a compressed section without a header"))?;
    let kind = header.first_chunk().copied().map(u32::from_ne_bytes);
    let format = match kind {
        Some(COMPRESSED_BY_ZLIB) => CompressionFormat::Zlib,
        Some(COMPRESSED_BY_ZSTD) => CompressionFormat::Zstandard,
        _ => return Err(malformed("a section is compressed in an unknown way")),
    };
    let size = header[8..].first_chunk().copied();
    let uncompressed_size = size.map_or(u64::MAX, u64::from_ne_bytes);
    if uncompressed_size > room {
        return Err(malformed("compressed debug sections are too large"));
    }
    // No more than that is written, whatever the content says.
    let content = CompressedData {
        format,
        data,
        uncompressed_size,
    };
    let inflated = content.decompress();
    Ok(inflated
        .map_err(|error| Error::new(ErrorKind::InvalidData, error.to_string()))?
        .into_owned())
}
