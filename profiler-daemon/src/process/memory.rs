//! Reads the memory of another process.

use std::io::{Error, ErrorKind, IoSliceMut};

use nix::sys::uio::{RemoteIoVec, process_vm_readv};

use super::stand_in::door;
use crate::model::Pid;

/// Something that can be read like a process's memory: a process, or recorded bytes in a test.
pub trait ReadMemory {
    /// Reads up to `buffer.len()` bytes from `address` and returns how many could be read; fewer
    /// only if the memory after them is unreadable.
    ///
    /// # Errors
    ///
    /// The first byte is unreadable, or the process is gone.
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Error>;

    /// Fills `buffer` from `address`.
    ///
    /// # Errors
    ///
    /// Any byte is unreadable.
    fn read_exact(&self, address: u64, buffer: &mut [u8]) -> Result<(), Error> {
        match self.read(address, buffer)? {
            n if n == buffer.len() => Ok(()),
            n => Err(Error::new(
                ErrorKind::UnexpectedEof,
                format!(
                    "only {n} of {} bytes at {address:#x} are readable",
                    buffer.len()
                ),
            )),
        }
    }

    /// Reads a native-endian `u64`.
    ///
    /// # Errors
    ///
    /// The address is unreadable.
    fn read_u64(&self, address: u64) -> Result<u64, Error> {
        let mut bytes = [0; 8];
        self.read_exact(address, &mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// Reads a native-endian `u32`.
    ///
    /// # Errors
    ///
    /// The address is unreadable.
    fn read_u32(&self, address: u64) -> Result<u32, Error> {
        let mut bytes = [0; 4];
        self.read_exact(address, &mut bytes)?;
        Ok(u32::from_ne_bytes(bytes))
    }
}

/// Memory of a live process, by `process_vm_readv(2)`. Needs `CAP_SYS_PTRACE`.
#[derive(Clone, Copy, Debug)]
pub struct ProcessMemory {
    pid: Pid,
}

impl ProcessMemory {
    /// Memory of this process; the process is not touched until a read.
    #[must_use]
    pub fn new(pid: Pid) -> Self {
        Self { pid }
    }
}

impl ReadMemory for ProcessMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Error> {
        let Ok(base) = usize::try_from(address) else {
            return Err(Error::from(ErrorKind::InvalidInput));
        };
        let remote = [RemoteIoVec {
            base,
            len: buffer.len(),
        }];
        let thread = nix::unistd::Pid::from_raw(door(self.pid).0.cast_signed());
        // One remote vector that runs into an unreadable page is cut there, at page granularity.
        Ok(process_vm_readv(
            thread,
            &mut [IoSliceMut::new(buffer)],
            &remote,
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that our own memory can be read, and that an unmapped address is an error.
    #[test]
    fn own_memory_is_readable_and_address_zero_is_not() {
        let memory = ProcessMemory::new(Pid(std::process::id()));
        let word = 0x1122_3344_5566_7788_u64;
        assert_eq!(memory.read_u64(&raw const word as u64).unwrap(), word);
        assert!(memory.read_u64(8).is_err());
    }
}
