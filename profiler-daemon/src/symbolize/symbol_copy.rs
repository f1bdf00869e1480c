//! Copies the symbol tables of an object to where nobody can take them away.
//!
//! In:  an [`ObjectFile`]
//! Out: [`SymbolCopy`]: a file in memory with the object's symbols at their places
//! Lost: symbol tables beyond [`COPY_BYTES_MAX`]
//!
//! # Why
//! blazesym maps the files it reads. The owner of an object may truncate it at any moment, and then
//! the mapping is a SIGBUS for us: any user could end the daemon. A memfd belongs to us alone. Only
//! headers and symbol tables are copied, to the offsets they had; the rest are holes that read as
//! zero and take no memory.
//!
//! ```text
//! object: | headers | code ............ | .dynsym .dynstr | ... | .symtab .strtab | sections |
//! copy:   | headers | (hole)            | .dynsym .dynstr |     | .symtab .strtab | sections |
//! ```

use std::fs::File;
use std::io::{Error, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::process::ReadMemory;
use crate::process::elf::{ElfLayout, Section};
use crate::process::object::ObjectFile;

/// Most bytes copied of one object. An unstripped node has 25 MB of symbols.
const COPY_BYTES_MAX: u64 = 96 << 20;
/// Copied at once.
const STEP_BYTES: u64 = 1 << 20;
/// ELF header and program headers, with room.
const HEADERS_BYTES: u64 = 4096;
const SHT_SYMTAB: u32 = 2;
const SHT_DYNSYM: u32 = 11;

/// The symbol tables of an object.
pub(super) struct SymbolCopy {
    file: File,
    /// Bytes that take memory.
    pub(super) bytes: u64,
}

impl SymbolCopy {
    /// Copies the symbols of an object; `Ok(None)` if it has none.
    ///
    /// # Errors
    ///
    /// The object cannot be read, or no memory is left.
    pub(super) fn new(object: &ObjectFile, layout: &ElfLayout) -> Result<Option<Self>, Error> {
        let sections: Vec<Section> = layout.sections.sections().collect();
        let symbols = |kind| sections.iter().filter(move |section| section.kind == kind);
        // The large table comes last: it is the one to do without.
        let mut wanted: Vec<Section> = Vec::new();
        for table in symbols(SHT_DYNSYM).chain(symbols(SHT_SYMTAB)) {
            wanted.push(*table);
            wanted.extend(sections.get(table.link as usize));
        }
        if wanted.is_empty() {
            return Ok(None);
        }
        let memory = memfd_create(c"profilerd-symbols", MFdFlags::MFD_CLOEXEC)?;
        let mut copy = Self {
            file: File::from(memory),
            bytes: 0,
        };
        copy.file.set_len(object.bytes())?;
        copy.copy(object, 0, HEADERS_BYTES.min(object.bytes()))?;
        let table = &layout.sections;
        copy.copy(object, table.offset, table.bytes.len() as u64)?;
        let names = sections.get(usize::from(table.names)).copied();
        for section in names.into_iter().chain(wanted) {
            copy.copy(object, section.offset, section.bytes)?;
        }
        Ok(Some(copy))
    }

    /// A path that opens the copy, valid while it lives.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    fn copy(&mut self, object: &ObjectFile, offset: u64, bytes: u64) -> Result<(), Error> {
        // A file may claim that its symbols lie behind its end.
        let fits = offset
            .checked_add(bytes)
            .is_some_and(|end| end <= object.bytes());
        if !fits || bytes > COPY_BYTES_MAX - self.bytes {
            return Err(Error::new(ErrorKind::InvalidData, "strange symbol tables"));
        }
        let mut buffer = vec![0; bytes.min(STEP_BYTES) as usize];
        let mut done = 0;
        while done < bytes {
            let step = (bytes - done).min(STEP_BYTES);
            let buffer = &mut buffer[..step as usize];
            object.read_exact(offset + done, buffer)?;
            self.file.write_all_at(buffer, offset + done)?;
            done += step;
        }
        self.bytes += bytes;
        Ok(())
    }
}
