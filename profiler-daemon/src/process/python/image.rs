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

use std::io::Error;
use std::ops::Range;

use object::elf;

use crate::process::ReadMemory;

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
const CLASS_64: u8 = 2;
const DATA_NATIVE: u8 = if cfg!(target_endian = "little") { 1 } else { 2 };
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
const DT_NULL: u64 = 0;
const DT_HASH: u64 = 4;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_GNU_HASH: u64 = 0x6fff_fef5;
const SECTION_UNDEFINED: u16 = 0;
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// Real images have about a dozen.
const PROGRAM_HEADERS_MAX: usize = 64;
/// Real `.dynamic` sections have about 30 entries of 16 bytes.
const DYNAMIC_BYTES_MAX: usize = 256 * 16;
const SYMBOL_BYTES: u64 = 24;
/// Longest hash chain followed. Chains of real tables are shorter than ten.
const CHAIN_MAX: u32 = 4096;
const PAGE_MASK: u64 = 0xfff;
/// A larger function than this is not believed. CPython's interpreter loop is 34 to 90 KB.
const FUNCTION_BYTES_MAX: u64 = 4 << 20;

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

/// A dynamic symbol, at its address in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Symbol {
    pub(crate) address: u64,
    pub(crate) size: u64,
}

/// A loaded ELF image.
pub(crate) struct Image<'m> {
    memory: &'m dyn ReadMemory,
    /// `e_machine`.
    pub(crate) machine: u16,
    /// Added to an address of the file to get one of the process.
    pub(crate) bias: u64,
    /// Addresses that the image's segments span.
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
    /// Reads the headers of the image whose file offset 0 is mapped at `base`.
    ///
    /// # Errors
    ///
    /// The headers are unreadable, of another word size or byte order, or not those of a dynamically
    /// linked object.
    pub(crate) fn load(memory: &'m dyn ReadMemory, base: u64) -> Result<Self, ImageError> {
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
        let mut headers = vec![0; count * PROGRAM_HEADER_BYTES];
        memory
            .read_exact(base.wrapping_add(u64_at(&header, 32)), &mut headers)
            .map_err(|error| ImageError::Read("program headers", error))?;

        let mut bias = None;
        let mut span = u64::MAX..0;
        let mut dynamic = None;
        let mut eh_frame_hdr = None;
        for header in headers.chunks_exact(PROGRAM_HEADER_BYTES) {
            let (offset, vaddr) = (u64_at(header, 8), u64_at(header, 16));
            let memory_bytes = u64_at(header, 40);
            match u32_at(header, 0) {
                PT_LOAD => {
                    if offset & !PAGE_MASK == 0 && bias.is_none() {
                        bias = Some(base.wrapping_sub(vaddr & !PAGE_MASK));
                    }
                    span.start = span.start.min(vaddr & !PAGE_MASK);
                    span.end = span.end.max(vaddr.saturating_add(memory_bytes));
                }
                PT_DYNAMIC => dynamic = Some((vaddr, memory_bytes)),
                PT_GNU_EH_FRAME => eh_frame_hdr = Some(vaddr),
                _ => {}
            }
        }
        let bias = bias.ok_or(ImageError::Malformed("no segment maps the ELF header"))?;
        let span = bias.wrapping_add(span.start)..bias.wrapping_add(span.end);
        if span.is_empty() {
            return Err(ImageError::Malformed("segments wrap around"));
        }
        let mut image = Self {
            memory,
            machine: u16_at(&header, 18),
            bias,
            span,
            symtab: 0,
            strtab: 0,
            gnu_hash: None,
            hash: None,
            eh_frame_hdr: eh_frame_hdr.map(|vaddr| bias.wrapping_add(vaddr)),
        };
        let (vaddr, bytes) = dynamic.ok_or(ImageError::Malformed("no dynamic section"))?;
        image.read_dynamic(bias.wrapping_add(vaddr), bytes)?;
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

    /// The defined dynamic symbol of this name.
    pub(crate) fn symbol(&self, name: &str) -> Option<Symbol> {
        let index = match (self.gnu_hash, self.hash) {
            (Some(table), _) => self.find_by_gnu_hash(table, name),
            (None, Some(table)) => self.find_by_hash(table, name),
            (None, None) => None,
        }?;
        let symbol = self.read_symbol(index)?;
        let section = u16_at(&symbol, 6);
        let address = self.bias.wrapping_add(u64_at(&symbol, 8));
        (section != SECTION_UNDEFINED && self.span.contains(&address)).then(|| Symbol {
            address,
            size: u64_at(&symbol, 16),
        })
    }

    /// `u32 nbuckets, symoffset, bloom_size, bloom_shift; u64 bloom[]; u32 buckets[]; u32 chain[]`
    fn find_by_gnu_hash(&self, table: u64, name: &str) -> Option<u32> {
        let hash = elf::gnu_hash(name.as_bytes());
        let buckets = self.read_u32(table)?;
        let first_symbol = self.read_u32(table.checked_add(4)?)?;
        let bloom_words = self.read_u32(table.checked_add(8)?)?;
        let bucket_table = table.checked_add(16 + 8 * u64::from(bloom_words))?;
        let chain_table = bucket_table.checked_add(4 * u64::from(buckets))?;
        let bucket = hash.checked_rem(buckets)?;
        let mut index = self.read_u32(bucket_table.checked_add(4 * u64::from(bucket))?)?;
        for _ in 0..CHAIN_MAX {
            let slot = index.checked_sub(first_symbol)?;
            let entry = self.read_u32(chain_table.checked_add(4 * u64::from(slot))?)?;
            if entry | 1 == hash | 1 && self.has_name(index, name) {
                return Some(index);
            }
            if entry & 1 == 1 {
                return None;
            }
            index = index.checked_add(1)?;
        }
        None
    }

    /// `u32 nbucket, nchain; u32 bucket[]; u32 chain[]`
    fn find_by_hash(&self, table: u64, name: &str) -> Option<u32> {
        let hash = elf::hash(name.as_bytes());
        let buckets = self.read_u32(table)?;
        let bucket_table = table.checked_add(8)?;
        let chain_table = bucket_table.checked_add(4 * u64::from(buckets))?;
        let bucket = hash.checked_rem(buckets)?;
        let mut index = self.read_u32(bucket_table.checked_add(4 * u64::from(bucket))?)?;
        for _ in 0..CHAIN_MAX {
            if index == 0 {
                return None;
            }
            if self.has_name(index, name) {
                return Some(index);
            }
            index = self.read_u32(chain_table.checked_add(4 * u64::from(index))?)?;
        }
        None
    }

    /// `u32 name; u8 info, other; u16 section; u64 value, size`
    fn read_symbol(&self, index: u32) -> Option<[u8; SYMBOL_BYTES as usize]> {
        let address = self
            .symtab
            .checked_add(SYMBOL_BYTES.checked_mul(u64::from(index))?)?;
        let mut symbol = [0; SYMBOL_BYTES as usize];
        self.in_image(address)?;
        self.memory.read_exact(address, &mut symbol).ok()?;
        Some(symbol)
    }

    fn has_name(&self, index: u32, name: &str) -> bool {
        let Some(symbol) = self.read_symbol(index) else {
            return false;
        };
        let Some(address) = self.strtab.checked_add(u64::from(u32_at(&symbol, 0))) else {
            return false;
        };
        let mut bytes = vec![0; name.len() + 1];
        self.span.contains(&address)
            && self.memory.read_exact(address, &mut bytes).is_ok()
            && bytes.strip_suffix(&[0]) == Some(name.as_bytes())
    }

    /// The range of the function that covers `pc`: its frame description entry, found by binary
    /// search in `.eh_frame_hdr`. Understands the encodings that GNU ld, gold, lld and mold write.
    ///
    /// ```text
    /// .eh_frame_hdr: u8 version 1, u8 encoding x3; i32 eh_frame; u32 count; {i32 pc, i32 fde}[count]
    /// FDE:           u32 length, u32 CIE; i32 pc (relative to itself); u32 bytes; ...
    /// ```
    pub(crate) fn function_range(&self, pc: u64) -> Option<Range<u64>> {
        const SDATA4_DATAREL: u8 = 0x3b;
        const SDATA4_PCREL: u8 = 0x1b;
        const UDATA4: u8 = 0x03;

        let table = self.eh_frame_hdr?;
        let mut header = [0; 12];
        self.memory.read_exact(table, &mut header).ok()?;
        if header[..4] != [1, SDATA4_PCREL, UDATA4, SDATA4_DATAREL] {
            return None;
        }
        let relative =
            |base: u64, at: u64| Some(base.wrapping_add_signed(self.read_i32(at)?.into()));
        let entry = |index: u32| table.checked_add(12 + 8 * u64::from(index));

        let (mut low, mut high) = (0, u32_at(&header, 8));
        while low < high {
            let middle = low + (high - low) / 2;
            if relative(table, entry(middle)?)? <= pc {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let found = entry(low.checked_sub(1)?)?;
        let start = relative(table, found)?;
        let fde = relative(table, found + 4)?;
        let pc_field = fde.checked_add(8)?;
        // The entry must say the same as the table, which also proves the encoding we assume.
        if relative(pc_field, pc_field)? != start {
            return None;
        }
        let bytes = u64::from(self.read_u32(pc_field.checked_add(4)?)?);
        let range = start..start.checked_add(bytes)?;
        (range.contains(&pc) && bytes <= FUNCTION_BYTES_MAX).then_some(range)
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
