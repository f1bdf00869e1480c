//! The memory of a thread at one instant: the copied stack, and what can be read besides it.
//!
//! In:  [`StackBytes`] of a sample; live memory, if the caller allows it
//! Out: words, to the unwinding rules
//! Lost: an address in neither is an [`UnwindEnd`]

use crate::model::{StackBytes, UnwindEnd};
use crate::process::ReadMemory;
use crate::process::page_cache::PageCache;

/// Memory for one walk.
pub(super) struct StackMemory<'m> {
    stack: &'m StackBytes,
    beyond: Option<PageCache<'m>>,
}

impl<'m> StackMemory<'m> {
    pub(super) fn new(stack: &'m StackBytes, beyond: Option<&'m dyn ReadMemory>) -> Self {
        Self {
            stack,
            beyond: beyond.map(PageCache::new),
        }
    }

    /// Reads a word.
    pub(super) fn read_u64(&self, address: u64) -> Result<u64, UnwindEnd> {
        let mut word = [0; 8];
        self.read(address, &mut word)?;
        Ok(u64::from_ne_bytes(word))
    }

    /// Reads an unsigned integer of 1 to 8 bytes.
    pub(super) fn read_uint(&self, address: u64, bytes: u8) -> Result<u64, UnwindEnd> {
        let mut word = [0; 8];
        let bytes = usize::from(bytes.min(8));
        let part = if cfg!(target_endian = "little") {
            &mut word[..bytes]
        } else {
            &mut word[8 - bytes..]
        };
        self.read(address, part)?;
        Ok(u64::from_ne_bytes(word))
    }

    /// Fills `buffer`.
    pub(super) fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), UnwindEnd> {
        if let Some(bytes) = self.copied(address, buffer.len()) {
            buffer.copy_from_slice(bytes);
            return Ok(());
        }
        match &self.beyond {
            // Nobody had written there; since then the thread may have.
            _ if self.is_skipped(address) => Err(UnwindEnd::Unreadable),
            Some(memory) => memory
                .read_exact(address, buffer)
                .map_err(|_| UnwindEnd::Unreadable),
            None if self.stack.cut && address >= self.stack.sp => Err(UnwindEnd::StackCut),
            None => Err(UnwindEnd::Unreadable),
        }
    }

    fn copied(&self, address: u64, bytes: usize) -> Option<&[u8]> {
        let start = address.checked_sub(self.stack.sp)?;
        let start = usize::try_from(start.checked_sub(self.stack.skipped.into())?).ok()?;
        self.stack.bytes.get(start..start.checked_add(bytes)?)
    }

    fn is_skipped(&self, address: u64) -> bool {
        let start = address.checked_sub(self.stack.sp);
        start.is_some_and(|start| start < self.stack.skipped.into())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;

    /// Every word is its own address.
    struct Live;

    impl ReadMemory for Live {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Error> {
            if address >= 0x3000 || buffer.len() > 8 {
                return Err(Error::from(ErrorKind::InvalidInput));
            }
            buffer.copy_from_slice(&address.to_ne_bytes()[..buffer.len()]);
            Ok(buffer.len())
        }
    }

    fn stack(cut: bool) -> StackBytes {
        StackBytes {
            sp: 0x1000,
            skipped: 0,
            bytes: (0..16).collect(),
            cut,
        }
    }

    /// Check that the copy comes first and that its bounds hold at both ends.
    #[test]
    fn the_copy_is_read_within_its_bounds() {
        let stack = stack(true);
        let memory = StackMemory::new(&stack, None);
        assert_eq!(
            memory.read_u64(0x1008),
            Ok(u64::from_ne_bytes([8, 9, 10, 11, 12, 13, 14, 15]))
        );
        assert_eq!(memory.read_uint(0x100e, 2), Ok(0x0f0e));
        assert_eq!(memory.read_u64(0x1009), Err(UnwindEnd::StackCut));
        assert_eq!(memory.read_u64(0xfff), Err(UnwindEnd::Unreadable));
        assert_eq!(memory.read_u64(u64::MAX), Err(UnwindEnd::StackCut));
        let whole = StackBytes {
            cut: false,
            ..stack
        };
        let memory = StackMemory::new(&whole, None);
        assert_eq!(memory.read_u64(0x1010), Err(UnwindEnd::Unreadable));
    }

    /// Check that bytes below the copy are not taken from live memory, and that the copy is where it was.
    #[test]
    fn skipped_bytes_are_unreadable() {
        let stack = StackBytes {
            skipped: 0x20,
            ..stack(true)
        };
        let memory = StackMemory::new(&stack, Some(&Live));
        for address in [0x1000, 0x1018] {
            assert_eq!(memory.read_u64(address), Err(UnwindEnd::Unreadable));
        }
        assert_eq!(
            memory.read_u64(0x1020),
            Ok(u64::from_ne_bytes([0, 1, 2, 3, 4, 5, 6, 7]))
        );
        assert_eq!(memory.read_u64(0x1030), Ok(0x1030));
        assert_eq!(memory.read_u64(0xff8), Ok(0xff8));
    }

    /// Check that live memory serves what the copy lacks, and nothing that it has.
    #[test]
    fn live_memory_is_the_rest() {
        let stack = stack(true);
        let memory = StackMemory::new(&stack, Some(&Live));
        assert_eq!(memory.read_u64(0x2000), Ok(0x2000));
        assert_eq!(memory.read_uint(0x1001, 1), Ok(1));
        assert_eq!(memory.read_u64(0x3000), Err(UnwindEnd::Unreadable));
    }
}
