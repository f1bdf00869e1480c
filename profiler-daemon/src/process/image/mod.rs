//! Finds dynamic symbols and function ranges in an ELF image that is loaded in another process.
//!
//! In:  the address where the image's first byte is mapped
//! Out: [`Symbol`]s by name; the range of the function around an address, from `.eh_frame_hdr`
//! Lost: nothing; what is missing or malformed is an [`ImageError`] or `None`
//!
//! # Why memory and not the file
//! The program headers, `.dynamic`, `.dynsym`, its hash table and `.eh_frame_hdr` are all mapped,
//! and stripping keeps them. Reading them in place needs no path, so containers, chroots and deleted
//! or upgraded libraries make no difference, it costs some twenty page reads instead of a parse of
//! the file, and the addresses found are those of this process. All tables are hostile: counts are
//! bounded and every address is checked against the image.
//!
//! Formats: System V gABI (ELF header, program header, dynamic section, symbol, hash table),
//! <https://flapenguin.me/elf-dt-gnu-hash> (GNU hash table), Linux Standard Base 5.0, Core,
//! chapter 10.6 (`.eh_frame`, `.eh_frame_hdr`).

mod function;
mod header;
mod symbol;

use std::io::Error;
use std::ops::Range;

use crate::process::ReadMemory;

pub(crate) use header::{Headers, PF_W, PF_X, PT_LOAD, Segment};

const PT_DYNAMIC: u32 = 2;
const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
const DT_NULL: u64 = 0;
const DT_HASH: u64 = 4;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_GNU_HASH: u64 = 0x6fff_fef5;
/// Real `.dynamic` sections have about 30 entries of 16 bytes.
const DYNAMIC_BYTES_MAX: usize = 256 * 16;

/// Why an image could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Its memory could not be read.
    #[error("failed to read the {0}")]
    Read(&'static str, #[source] Error),
    /// It is not what it should be.
    #[error("{0}")]
    Malformed(&'static str),
}

/// A loaded, dynamically linked ELF image.
pub(crate) struct Image<'m> {
    memory: &'m dyn ReadMemory,
    /// `e_machine`.
    pub(crate) machine: u16,
    bias: u64,
    span: Range<u64>,
    symtab: u64,
    strtab: u64,
    gnu_hash: Option<u64>,
    hash: Option<u64>,
    eh_frame_hdr: Option<u64>,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let mut word = [0; 2];
    word.copy_from_slice(&bytes[at..at + 2]);
    u16::from_ne_bytes(word)
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

impl<'m> Image<'m> {
    /// Reads the headers and the dynamic section of the image whose file offset 0 is mapped at
    /// `base`.
    ///
    /// # Errors
    ///
    /// As for [`Headers::read`], and for images without dynamic symbols.
    pub(crate) fn load(memory: &'m dyn ReadMemory, base: u64) -> Result<Self, ImageError> {
        let headers = Headers::read(memory, base)?;
        let dynamic = headers
            .segment(PT_DYNAMIC)
            .ok_or(ImageError::Malformed("no dynamic section"))?;
        let eh_frame_hdr = headers.segment(PT_GNU_EH_FRAME);
        let mut image = Self {
            memory,
            machine: headers.machine,
            bias: headers.bias,
            span: headers.span,
            symtab: 0,
            strtab: 0,
            gnu_hash: None,
            hash: None,
            eh_frame_hdr: eh_frame_hdr.map(|segment| segment.address),
        };
        image.read_dynamic(dynamic.address, dynamic.bytes)?;
        Ok(image)
    }

    fn read_dynamic(&mut self, address: u64, bytes: u64) -> Result<(), ImageError> {
        let bytes = usize::try_from(bytes).map_or(DYNAMIC_BYTES_MAX, |n| n.min(DYNAMIC_BYTES_MAX));
        let mut dynamic = vec![0; bytes];
        self.memory
            .read_exact(address, &mut dynamic)
            .map_err(|error| ImageError::Read("dynamic section", error))?;
        for entry in dynamic.chunks_exact(16) {
            let value = u64_at(entry, 8);
            // glibc relocates these pointers in place, musl and a read-only section do not.
            let pointer = if self.span.contains(&value) {
                value
            } else {
                self.bias.wrapping_add(value)
            };
            match u64_at(entry, 0) {
                DT_NULL => break,
                DT_SYMTAB => self.symtab = pointer,
                DT_STRTAB => self.strtab = pointer,
                DT_GNU_HASH => self.gnu_hash = Some(pointer),
                DT_HASH => self.hash = Some(pointer),
                _ => {}
            }
        }
        if self.span.contains(&self.symtab) && self.span.contains(&self.strtab) {
            Ok(())
        } else {
            Err(ImageError::Malformed("no dynamic symbols"))
        }
    }

    fn in_image(&self, address: u64) -> Option<()> {
        self.span.contains(&address).then_some(())
    }

    fn read_u32(&self, address: u64) -> Option<u32> {
        self.in_image(address)?;
        self.memory.read_u32(address).ok()
    }

    fn read_i32(&self, address: u64) -> Option<i32> {
        self.read_u32(address).map(u32::cast_signed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Pid;
    use crate::process::ProcessMemory;

    /// Start of the mapping of `name` in our own process.
    fn base_of(name: &str) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.contains(name)).unwrap();
        u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap()
    }

    /// Check that a function of the C library is found where the dynamic linker put it, and that its
    /// unwind entry covers it; and that an unknown name is not found.
    #[test]
    fn libc_symbols_are_found_where_the_linker_put_them() {
        let memory = ProcessMemory::new(Pid(std::process::id()));
        let image = Image::load(&memory, base_of("libc.so.6")).unwrap();
        for (name, address) in [
            ("getppid", libc::getppid as *const () as u64),
            ("qsort", libc::qsort as *const () as u64),
        ] {
            let symbol = image.symbol(name).unwrap();
            assert_eq!(symbol.address, address, "{name}");
            let range = image.function_range(symbol.address + 1).unwrap();
            assert_eq!(
                range,
                symbol.address..symbol.address + symbol.size,
                "{name}"
            );
        }
        assert_eq!(image.symbol("_PyRuntime"), None);
        assert_eq!(image.function_range(image.span.end + 1), None);
    }

    /// Bytes that start at an address.
    struct Recorded(u64, Vec<u8>);

    impl ReadMemory for Recorded {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Error> {
            let bytes = address
                .checked_sub(self.0)
                .and_then(|at| self.1.get(at as usize..))
                .filter(|bytes| !bytes.is_empty())
                .ok_or(std::io::ErrorKind::InvalidInput)?;
            let n = buffer.len().min(bytes.len());
            buffer[..n].copy_from_slice(&bytes[..n]);
            Ok(n)
        }
    }

    /// Check that no single corrupted byte of real headers makes the reader panic or run away.
    #[test]
    fn corrupted_headers_are_errors() {
        let memory = ProcessMemory::new(Pid(std::process::id()));
        let base = base_of("libc.so.6");
        let mut bytes = vec![0; 0x2000];
        memory.read_exact(base, &mut bytes).unwrap();
        for at in 0..0x400 {
            let mut corrupted = bytes.clone();
            corrupted[at] ^= 0xff;
            let recorded = Recorded(base, corrupted);
            if let Ok(image) = Image::load(&recorded, base) {
                let _ = image.symbol("getppid");
                let _ = image.function_range(base + 0x1000);
            }
        }
        assert!(matches!(
            Image::load(&Recorded(0, vec![0; 64]), 0),
            Err(ImageError::Malformed("not an ELF image"))
        ));
    }
}
