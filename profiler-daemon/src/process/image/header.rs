//! Reads the ELF header and the program headers of a loaded image.

use std::ops::Range;

use super::{ImageError, u16_at, u32_at, u64_at};
use crate::process::ReadMemory;

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
const CLASS_64: u8 = 2;
const DATA_NATIVE: u8 = if cfg!(target_endian = "little") { 1 } else { 2 };
pub(crate) const PT_LOAD: u32 = 1;
/// `p_flags` of an executable segment.
pub(crate) const PF_X: u32 = 1;
/// `p_flags` of a writable segment.
pub(crate) const PF_W: u32 = 2;
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// Real images have about a dozen.
const PROGRAM_HEADERS_MAX: usize = 64;
const PAGE_MASK: u64 = 0xfff;

/// An entry of the program headers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// `p_type`.
    pub(crate) kind: u32,
    /// `p_flags`.
    pub(crate) flags: u32,
    /// Where it is mapped in the process.
    pub(crate) address: u64,
    /// `p_memsz`.
    pub(crate) bytes: u64,
}

/// The headers of a loaded ELF image, dynamically linked or not.
pub(crate) struct Headers {
    /// `e_machine`.
    pub(crate) machine: u16,
    /// Added to an address of the file to get one of the process.
    pub(super) bias: u64,
    /// Addresses that the image's segments span.
    pub(crate) span: Range<u64>,
    /// All segments.
    pub(crate) segments: Vec<Segment>,
}

impl Headers {
    /// Headers of an image that a test has made up.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn of(span: Range<u64>, segments: Vec<Segment>) -> Self {
        Self {
            machine: 0,
            bias: 0,
            span,
            segments,
        }
    }

    /// Reads the headers of the image whose file offset 0 is mapped at `base`.
    ///
    /// # Errors
    ///
    /// The headers are unreadable, malformed, or of another word size or byte order.
    pub(crate) fn read(memory: &dyn ReadMemory, base: u64) -> Result<Self, ImageError> {
        let mut header = [0; HEADER_BYTES];
        memory
            .read_exact(base, &mut header)
            .map_err(|error| ImageError::Read("ELF header", error))?;
        if header[..4] != ELF_MAGIC {
            return Err(ImageError::Malformed("not an ELF image"));
        }
        if header[4] != CLASS_64 || header[5] != DATA_NATIVE {
            return Err(ImageError::Malformed("not a 64-bit image of this machine"));
        }
        let count = usize::from(u16_at(&header, 56));
        if usize::from(u16_at(&header, 54)) != PROGRAM_HEADER_BYTES || count > PROGRAM_HEADERS_MAX {
            return Err(ImageError::Malformed("strange program headers"));
        }
        let mut table = vec![0; count * PROGRAM_HEADER_BYTES];
        memory
            .read_exact(base.wrapping_add(u64_at(&header, 32)), &mut table)
            .map_err(|error| ImageError::Read("program headers", error))?;

        let mut bias = None;
        let (mut start, mut end) = (u64::MAX, 0_u64);
        let mut segments = Vec::new();
        for entry in table.chunks_exact(PROGRAM_HEADER_BYTES) {
            let (offset, vaddr) = (u64_at(entry, 8), u64_at(entry, 16));
            let segment = Segment {
                kind: u32_at(entry, 0),
                flags: u32_at(entry, 4),
                address: vaddr,
                bytes: u64_at(entry, 40),
            };
            if segment.kind == PT_LOAD {
                if offset & !PAGE_MASK == 0 && bias.is_none() {
                    bias = Some(base.wrapping_sub(vaddr & !PAGE_MASK));
                }
                start = start.min(vaddr & !PAGE_MASK);
                end = end.max(vaddr.saturating_add(segment.bytes));
            }
            segments.push(segment);
        }
        let bias = bias.ok_or(ImageError::Malformed("no segment maps the ELF header"))?;
        for segment in &mut segments {
            segment.address = bias.wrapping_add(segment.address);
        }
        let span = bias.wrapping_add(start)..bias.wrapping_add(end);
        if span.is_empty() {
            return Err(ImageError::Malformed("segments wrap around"));
        }
        Ok(Self {
            machine: u16_at(&header, 18),
            bias,
            span,
            segments,
        })
    }

    pub(super) fn segment(&self, kind: u32) -> Option<Segment> {
        self.segments
            .iter()
            .find(|segment| segment.kind == kind)
            .copied()
    }
}
