//! A ring buffer record that is not what the programs write.

use thiserror::Error;

/// Why a record could not be decoded. It is counted (`Counter::BadRecords`), never fatal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadRecord {
    /// The record ends inside its header.
    #[error("a record of {len} bytes is shorter than its header of {header}")]
    Short {
        /// Bytes of the record.
        len: usize,
        /// Bytes of the header.
        header: usize,
    },
    /// The parts the header announces do not fit the record.
    #[error("a record of {len} bytes announces {announced}")]
    Length {
        /// Bytes of the record.
        len: usize,
        /// Bytes by its header.
        announced: usize,
    },
    /// More frames than the programs ever write.
    #[error("a record announces {0} frames")]
    Frames(u32),
    /// An unknown kind of event.
    #[error("unknown event kind {0}")]
    Kind(u32),
    /// An unknown reason for a request's end.
    #[error("unknown end reason {0}")]
    Reason(u32),
    /// A task slot that does not exist.
    #[error("task slot {0} does not exist")]
    Slot(u32),
}

/// Takes native-endian integers off the front of a record.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u16::from_ne_bytes(*bytes))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u32::from_ne_bytes(*bytes))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u64::from_ne_bytes(*bytes))
    }
}
