//! Names addresses in ELF objects, through blazesym.
//!
//! In:  a [`Mapping`] and an address in it
//! Out: the demangled name of the function there
//! Lost: an object that cannot be read has no names; so has one that blazesym fails on
//!
//! # Memory
//! Copies of symbol tables and what blazesym makes of them (8 bytes per symbol) are kept for the
//! least recently used [`OBJECTS_BYTES_MAX`], and dropped at once by [`ObjectSymbols::release`].

use std::io::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};

use blazesym::symbolize::evict::{self, Evict};
use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{Input, Symbolized, Symbolizer};
use lru::LruCache;

use super::symbol_copy::{SymbolCopy, debug_file};
use crate::process::elf::ElfLayout;
use crate::process::object::{FileId, ObjectFile};
use crate::process::{Mapping, Process};

/// Symbol tables kept: those of some unstripped servers with all their libraries.
const OBJECTS_BYTES_MAX: u64 = 48 << 20;

/// Symbols of all objects that profiled processes have mapped.
pub(super) struct ObjectSymbols {
    blazesym: Symbolizer,
    objects: LruCache<FileId, Option<Object>>,
    bytes_max: u64,
}

struct Object {
    layout: ElfLayout,
    symbols: Option<SymbolCopy>,
    /// Symbols of the separate debug file.
    debug: Option<SymbolCopy>,
}

impl ObjectSymbols {
    pub(super) fn new() -> Self {
        Self {
            blazesym: new_blazesym(),
            objects: LruCache::unbounded(),
            bytes_max: OBJECTS_BYTES_MAX,
        }
    }

    /// The function at `address` of a process, which lies in `mapping`.
    pub(super) fn name(
        &mut self,
        process: &Process,
        mapping: &Mapping,
        address: u64,
    ) -> Option<String> {
        let id = self.load(process, mapping)?;
        let object = self.objects.get(&id)?.as_ref()?;
        let file_offset = (address - mapping.start).wrapping_add(mapping.file_offset);
        let address = object.layout.address_of(file_offset)?;
        let paths: Vec<_> = [&object.symbols, &object.debug]
            .into_iter()
            .flatten()
            .map(SymbolCopy::path)
            .collect();
        for path in paths {
            if let Some(name) = self.look_up(Elf::new(path), address) {
                return Some(name);
            }
        }
        None
    }

    /// Copies the symbols of the object behind a mapping, if that has not happened yet.
    pub(super) fn load(&mut self, process: &Process, mapping: &Mapping) -> Option<FileId> {
        if !mapping.is_file() && !mapping.is_vdso() {
            return None;
        }
        let file = ObjectFile::open(process.key.pid, &process.memory, mapping);
        let file = file.inspect_err(
            |error| tracing::debug!(pid = %process.key, %error, "object cannot be opened"),
        );
        let file = file.ok()?;
        let id = file.id();
        if !self.objects.contains(&id) {
            let object = Object::load(&file).inspect_err(|error| {
                tracing::debug!(pid = %process.key, path = mapping.path, %error, "no symbols");
            });
            self.objects.put(id, object.ok());
            self.make_room();
        }
        Some(id)
    }

    /// Drops everything.
    pub(super) fn release(&mut self) {
        self.blazesym = new_blazesym();
        self.objects.clear();
    }

    fn look_up(&mut self, mut source: Elf, address: u64) -> Option<String> {
        source.debug_syms = false;
        let source = Source::Elf(source);
        let symbolized = catch_unwind(AssertUnwindSafe(|| {
            let input = Input::VirtOffset(address);
            match self.blazesym.symbolize_single(&source, input) {
                Ok(Symbolized::Sym(symbol)) => Some(symbol.name.into_owned()),
                Ok(Symbolized::Unknown(_)) => None,
                Err(error) => {
                    tracing::debug!(%error, "failed to symbolize an address");
                    None
                }
            }
        }));
        symbolized.unwrap_or_else(|_| {
            tracing::warn!("an object made the symbolizer fail; starting afresh");
            self.release();
            None
        })
    }

    fn make_room(&mut self) {
        let bytes = |object: &Option<Object>| object.as_ref().map_or(0, Object::bytes);
        let mut sum: u64 = self.objects.iter().map(|(_, object)| bytes(object)).sum();
        while sum > self.bytes_max && self.objects.len() > 1 {
            let Some((_, object)) = self.objects.pop_lru() else {
                return;
            };
            sum -= bytes(&object);
            let copies = object.map(|object| [object.symbols, object.debug]);
            for copy in copies.into_iter().flatten().flatten() {
                // Before the descriptor is closed: its number may be used again.
                let evict = Evict::Elf(evict::Elf::new(copy.path()));
                if let Err(error) = self.blazesym.evict(&evict) {
                    tracing::debug!(%error, "symbols stay in memory");
                }
            }
        }
    }
}

impl Object {
    fn load(file: &ObjectFile) -> Result<Self, Error> {
        let mut layout = ElfLayout::read(file)?;
        let symbols = SymbolCopy::new(file, &layout)?;
        let debug = debug_file(file, &layout).and_then(|file| {
            let layout = ElfLayout::read(&file).ok()?;
            SymbolCopy::new(&file, &layout).ok()?
        });
        layout.forget_sections();
        Ok(Self {
            layout,
            symbols,
            debug,
        })
    }

    fn bytes(&self) -> u64 {
        let copies = [&self.symbols, &self.debug].into_iter().flatten();
        copies.map(|copy| copy.bytes).sum()
    }
}

/// Only names: no inlined functions, because a signature must not change within a function, and no
/// DWARF, because of its memory.
fn new_blazesym() -> Symbolizer {
    Symbolizer::builder()
        .enable_code_info(false)
        .enable_inlined_fns(false)
        .enable_demangling(true)
        .enable_auto_reload(false)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Pid;

    fn name_of(symbols: &mut ObjectSymbols, process: &Process, code: *const ()) -> Option<String> {
        let address = code as u64;
        let mapping = process.mappings.find(address).unwrap();
        symbols.name(process, mapping, address)
    }

    /// Check that functions of our executable, of the C library and of the vDSO have their names.
    #[test]
    fn our_own_functions_have_names() {
        let process = Process::open(Pid(std::process::id())).unwrap();
        let mut symbols = ObjectSymbols::new();
        for (code, expected) in [
            (
                our_own_functions_have_names as *const (),
                "our_own_functions_have_names",
            ),
            (libc::qsort as *const (), "qsort"),
        ] {
            let name = name_of(&mut symbols, &process, code).unwrap();
            assert!(name.contains(expected), "{name}");
        }
        let mut mappings = process.mappings.as_slice().iter();
        let vdso = mappings.find(|mapping| mapping.is_vdso()).unwrap();
        let names = (vdso.start..vdso.end)
            .step_by(16)
            .filter_map(|address| symbols.name(&process, vdso, address));
        assert!(names.into_iter().any(|name| name.contains("clock_gettime")));
    }

    /// Check that symbol tables make room for others and come back, also in blazesym's eyes.
    #[test]
    fn symbols_are_dropped_and_read_again() {
        let process = Process::open(Pid(std::process::id())).unwrap();
        let mut symbols = ObjectSymbols {
            bytes_max: 1,
            ..ObjectSymbols::new()
        };
        for _ in 0..5 {
            let own = symbols_are_dropped_and_read_again as *const ();
            for (code, expected) in [(own, "dropped"), (libc::qsort as *const (), "qsort")] {
                let name = name_of(&mut symbols, &process, code).unwrap();
                assert!(name.contains(expected), "{name}");
                assert_eq!(symbols.objects.len(), 1);
            }
        }
        symbols.release();
        assert_eq!(symbols.objects.len(), 0);
        assert!(name_of(&mut symbols, &process, libc::qsort as *const ()).is_some());
    }
}
