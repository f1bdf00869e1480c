//! Serves many small reads of another process from few system calls.
//!
//! Interpreter frames lie next to each other, as do the symbols of a hash chain: a page read once
//! answers dozens of the 8 to 100 byte reads that follow. The cache is short-lived by design: it is
//! made for one walk and thrown away, because the pages age as soon as the process runs.

use std::cell::RefCell;
use std::io::Error;

use crate::process::ReadMemory;

/// The read unit. Every architecture's page size is a multiple of it.
const PAGE_BYTES: usize = 4096;
/// Most pages held. A walk alternates between the data stack, the C stack and the heap, so a few
/// would do; symbol lookups profit from more.
const PAGES_MAX: usize = 32;

struct Page {
    address: u64,
    bytes: Box<[u8; PAGE_BYTES]>,
}

/// Memory read by the page and kept for the length of one walk.
pub(crate) struct PageCache<'m> {
    memory: &'m dyn ReadMemory,
    pages: RefCell<Pages>,
}

#[derive(Default)]
struct Pages {
    held: Vec<Page>,
    /// The slot that the next page takes when all are used: round robin.
    next: usize,
}

impl<'m> PageCache<'m> {
    pub(crate) fn new(memory: &'m dyn ReadMemory) -> Self {
        Self {
            memory,
            pages: RefCell::default(),
        }
    }

    /// Copies from the page at `page` into `buffer`, reading the page if it is not held. `false` if
    /// the page cannot be read as a whole.
    fn copy_from_page(&self, page: u64, offset: usize, buffer: &mut [u8]) -> bool {
        let mut pages = self.pages.borrow_mut();
        let index = match pages.held.iter().position(|held| held.address == page) {
            Some(index) => index,
            None => {
                let mut bytes = Box::new([0; PAGE_BYTES]);
                if self.memory.read_exact(page, &mut bytes[..]).is_err() {
                    return false;
                }
                let read = Page {
                    address: page,
                    bytes,
                };
                if pages.held.len() < PAGES_MAX {
                    pages.held.push(read);
                    pages.held.len() - 1
                } else {
                    let index = pages.next;
                    pages.next = (index + 1) % PAGES_MAX;
                    pages.held[index] = read;
                    index
                }
            }
        };
        buffer.copy_from_slice(&pages.held[index].bytes[offset..offset + buffer.len()]);
        true
    }
}

impl ReadMemory for PageCache<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Error> {
        if buffer.len() > PAGE_BYTES {
            return self.memory.read(address, buffer);
        }
        let mut done = 0;
        while done < buffer.len() {
            let Some(at) = address.checked_add(done as u64) else {
                break;
            };
            let offset = (at % PAGE_BYTES as u64) as usize;
            let chunk = (PAGE_BYTES - offset).min(buffer.len() - done);
            if !self.copy_from_page(at - offset as u64, offset, &mut buffer[done..done + chunk]) {
                // Recorded memory in tests need not be aligned: what was asked for may be there.
                let rest = self.memory.read(at, &mut buffer[done..]);
                return match rest {
                    Ok(n) => Ok(done + n),
                    Err(_) if done > 0 => Ok(done),
                    Err(error) => Err(error),
                };
            }
            done += chunk;
        }
        Ok(done)
    }

    /// Not by pages: the words of a list lie far from each other.
    fn read_words(&self, addresses: &[u64]) -> Vec<Option<u64>> {
        self.memory.read_words(addresses)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::ErrorKind;

    use super::*;

    struct Counting {
        reads: Cell<u32>,
        end: u64,
    }

    impl ReadMemory for Counting {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Error> {
            self.reads.set(self.reads.get() + 1);
            if address >= self.end {
                return Err(Error::from(ErrorKind::InvalidInput));
            }
            let n = buffer.len().min((self.end - address) as usize);
            for (at, byte) in (address..).zip(&mut buffer[..n]) {
                *byte = (at / 8) as u8;
            }
            Ok(n)
        }
    }

    /// Check that neighbouring reads cost one read of the process, also across a page boundary.
    #[test]
    fn a_page_is_read_once() {
        let memory = Counting {
            reads: Cell::new(0),
            end: 0x10_000,
        };
        let cache = PageCache::new(&memory);
        for address in (0x1000..0x1800).step_by(80) {
            let mut buffer = [0; 80];
            cache.read_exact(address, &mut buffer).unwrap();
            assert_eq!(buffer[0], (address / 8) as u8);
        }
        assert_eq!(memory.reads.get(), 1);
        let mut buffer = [0; 16];
        cache.read_exact(0x1ff8, &mut buffer).unwrap();
        assert_eq!(buffer[8..], [0; 8]);
        assert_eq!(memory.reads.get(), 2);
    }

    /// Check that a page that is readable only in part still yields its readable bytes.
    #[test]
    fn the_end_of_memory_is_a_short_read() {
        let memory = Counting {
            reads: Cell::new(0),
            end: 0x1010,
        };
        let cache = PageCache::new(&memory);
        let mut buffer = [0; 32];
        assert_eq!(cache.read(0x1000, &mut buffer).unwrap(), 16);
        assert!(cache.read(0x2000, &mut buffer).is_err());
    }
}
