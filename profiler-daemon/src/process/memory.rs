//! Reads the memory of another process.

use std::io::{Error, ErrorKind, IoSliceMut};

use nix::sys::uio::{RemoteIoVec, process_vm_readv};

use super::patience;
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

    /// Reads native-endian `u64`s, `None` for those that are unreadable. After many of these the rest may
    /// be `None` as well.
    fn read_words(&self, addresses: &[u64]) -> Vec<Option<u64>> {
        addresses.iter().map(|&at| self.read_u64(at).ok()).collect()
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

/// Words of one system call; `IOV_MAX` is 1024.
const WORDS_MAX: usize = 512;
/// Unreadable words after which the rest of a list is not tried: the process is gone, or makes addresses up.
const FAILURES_MAX: usize = 16;

impl ProcessMemory {
    /// The thread that the kernel shows the memory of.
    fn thread(self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(door(self.pid).0.cast_signed())
    }

    /// Reads by one system call.
    fn read_at(self, address: u64, buffer: &mut [u8]) -> Result<usize, Error> {
        let Ok(base) = usize::try_from(address) else {
            return Err(Error::from(ErrorKind::InvalidInput));
        };
        let remote = [RemoteIoVec {
            base,
            len: buffer.len(),
        }];
        // One remote vector that runs into an unreadable page is cut there, at page granularity.
        Ok(process_vm_readv(
            self.thread(),
            &mut [IoSliceMut::new(buffer)],
            &remote,
        )?)
    }

    /// Reads words, those of which many are unreadable as `None`.
    fn read_words_at(self, addresses: &[u64]) -> Vec<Option<u64>> {
        let mut words = Vec::with_capacity(addresses.len());
        let mut failures = 0;
        while words.len() < addresses.len() && failures < FAILURES_MAX {
            let rest = &addresses[words.len()..];
            let batch = &rest[..rest.len().min(WORDS_MAX)];
            let (read, failed) = self.read_batch(batch);
            words.extend(read.map(Some));
            // It ends before the first one that is unreadable.
            if failed {
                words.push(None);
                failures += 1;
            }
        }
        words.resize(addresses.len(), None);
        words
    }

    /// Reads words by one system call, up to the first that is unreadable: `true` if there is one.
    fn read_batch(self, addresses: &[u64]) -> (impl Iterator<Item = u64> + use<>, bool) {
        let mut bytes = vec![0; 8 * addresses.len()];
        let remote: Vec<RemoteIoVec> = addresses
            .iter()
            .map(|&address| RemoteIoVec {
                base: usize::try_from(address).unwrap_or_default(),
                len: 8,
            })
            .collect();
        let read = process_vm_readv(self.thread(), &mut [IoSliceMut::new(&mut bytes)], &remote);
        let whole = read.unwrap_or(0) / 8;
        bytes.truncate(8 * whole);
        let words = (0..whole).map(move |index| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[8 * index..8 * index + 8]);
            u64::from_ne_bytes(word)
        });
        (words, whole < addresses.len())
    }
}

impl ReadMemory for ProcessMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Error> {
        let memory = *self;
        if patience::is_on_replaceable_thread() {
            // Without a copy: most reads are these.
            patience::admit(memory.pid)?;
            return memory.read_at(address, buffer);
        }
        let mut bytes = vec![0; buffer.len()];
        let read = move || {
            let n = memory.read_at(address, &mut bytes)?;
            bytes.truncate(n);
            Ok::<_, Error>(bytes)
        };
        let bytes = patience::look(memory.pid, read)??;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn read_words(&self, addresses: &[u64]) -> Vec<Option<u64>> {
        let (memory, wanted) = (*self, addresses.to_vec());
        patience::look(memory.pid, move || memory.read_words_at(&wanted))
            .unwrap_or_else(|_| vec![None; addresses.len()])
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

    /// Check that many words are read in their order, over several system calls, and that unreadable ones
    /// between them leave their place empty.
    #[test]
    fn words_are_read_in_order_around_unreadable_ones() {
        let memory = ProcessMemory::new(Pid(std::process::id()));
        let own: Vec<u64> = (0..2 * WORDS_MAX as u64).map(|n| n * 3).collect();
        let mut addresses: Vec<u64> = own.iter().map(|word| &raw const *word as u64).collect();
        let mut expected: Vec<Option<u64>> = own.iter().copied().map(Some).collect();
        for at in [0, 1, 700, expected.len() - 1] {
            addresses[at] = 8;
            expected[at] = None;
        }
        assert_eq!(memory.read_words(&addresses), expected);
        assert!(memory.read_words(&[]).is_empty());
        let gone = ProcessMemory::new(Pid(u32::MAX >> 2));
        assert_eq!(gone.read_words(&addresses[..3]), [None::<u64>; 3]);
    }
}
