//! Names addresses in ELF objects: functions through blazesym, inlined ones by their debug information.
//!
//! In:  a [`Mapping`] and an address in it
//! Out: [`CodeName`]: the demangled name of the function there, and of those inlined into it
//! Lost: an object that cannot be read has no names; so has one that blazesym fails on
//!
//! # Memory
//! Copies of symbol tables, what blazesym makes of them (8 bytes per symbol) and what is kept of debug information
//! stay for the least recently used [`OBJECTS_BYTES_MAX`], and are dropped at once by [`ObjectSymbols::release`].

use std::io::Error;
use std::num::NonZeroUsize;
use std::sync::Arc;

use blazesym::symbolize::evict::{self, Evict};
use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{Input, Symbolized, Symbolizer};
use lru::LruCache;

use super::debug_file;
use super::demangle::Demangler;
use super::dwarf::DebugInfo;
use super::symbol_copy::SymbolCopy;
use crate::process::eh_frame::function_at;
use crate::process::elf::ElfLayout;
use crate::process::object::{FileId, ObjectFile};
use crate::process::{Mapping, Process};
use crate::quiet_panic::catch_quietly;

/// Symbol tables and debug information kept: those of some unstripped servers with all their libraries.
const OBJECTS_BYTES_MAX: u64 = 96 << 20;
/// Names kept of an object. A process has its own, by address.
const NAMES_KEPT: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

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
    debug_symbols: Option<SymbolCopy>,
    /// Of the object or of its debug file.
    debug_info: Option<DebugInfo>,
    names: SymbolNames,
}

/// Names of an object's symbols: each is demangled once, however many addresses of its function are asked for.
struct SymbolNames {
    /// By the symbol's address.
    by_start: LruCache<u64, Arc<str>>,
    demangler: Demangler,
}

/// A symbol as the object has it.
struct FoundSymbol {
    start: u64,
    name: String,
}

/// Names of an address.
pub(super) struct CodeName {
    /// Functions inlined there, innermost first.
    pub(super) inlined: Vec<Arc<str>>,
    /// The function that has the code.
    pub(super) function: Function,
}

impl CodeName {
    /// The name of the function that has the code.
    pub(super) fn name(&self) -> Option<&str> {
        match &self.function {
            Function::Named(name) => Some(name),
            Function::At(_) | Function::Unknown => None,
        }
    }
}

/// A function of an object.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Function {
    /// It has a symbol: the demangled name.
    Named(Arc<str>),
    /// It has no name and begins at this address of the object, as `addr2line` and `objdump` take it.
    At(u64),
    /// Nothing is known.
    Unknown,
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
    pub(super) fn name(&mut self, process: &Process, mapping: &Mapping, address: u64) -> CodeName {
        let unknown = CodeName {
            inlined: Vec::new(),
            function: Function::Unknown,
        };
        self.find(process, mapping, address).unwrap_or(unknown)
    }

    fn find(&mut self, process: &Process, mapping: &Mapping, address: u64) -> Option<CodeName> {
        let file = open(process, mapping)?;
        let id = file.id();
        if !self.objects.contains(&id) {
            self.load(process, mapping);
        }
        let object = self.objects.get_mut(&id)?.as_mut()?;
        let file_offset = (address - mapping.start).wrapping_add(mapping.file_offset);
        let address = object.layout.address_of(file_offset)?;
        let debug_info = object.debug_info.as_mut();
        let inlined = debug_info.map_or_else(Vec::new, |info| info.inlined_at(address));
        let unnamed = |object: &Object| {
            let function = function_at(&file, &object.layout, address);
            function.map_or(Function::Unknown, |function| Function::At(function.start))
        };
        let paths: Vec<_> = [&object.symbols, &object.debug_symbols]
            .into_iter()
            .flatten()
            .map(SymbolCopy::path)
            .collect();
        let mut paths = paths.into_iter();
        let symbol = paths.find_map(|path| self.look_up(Elf::new(path), address));
        let object = self.objects.get_mut(&id)?.as_mut()?;
        let function = match symbol {
            Some(symbol) => Function::Named(object.names.of(&symbol)),
            None => unnamed(object),
        };
        Some(CodeName { inlined, function })
    }

    /// Reads the symbols of the object behind a mapping, if that has not happened yet.
    pub(super) fn load(&mut self, process: &Process, mapping: &Mapping) {
        let Some(file) = open(process, mapping) else {
            return;
        };
        let id = file.id();
        if self.objects.contains(&id) {
            return;
        }
        let object = Object::load(process, mapping, file).inspect_err(|error| {
            tracing::debug!(pid = %process.key, path = mapping.path, %error, "no symbols");
        });
        self.objects.put(id, object.ok());
        self.make_room();
    }

    /// Drops everything.
    pub(super) fn release(&mut self) {
        self.blazesym = new_blazesym();
        self.objects.clear();
    }

    fn look_up(&mut self, mut source: Elf, address: u64) -> Option<FoundSymbol> {
        source.debug_syms = false;
        let source = Source::Elf(source);
        let symbolized = catch_quietly(|| {
            let input = Input::VirtOffset(address);
            match self.blazesym.symbolize_single(&source, input) {
                Ok(Symbolized::Sym(symbol)) => Some(FoundSymbol {
                    start: symbol.addr,
                    name: symbol.name.into_owned(),
                }),
                Ok(Symbolized::Unknown(_)) => None,
                Err(error) => {
                    tracing::debug!(%error, "failed to symbolize an address");
                    None
                }
            }
        });
        symbolized.unwrap_or_else(|| {
            tracing::warn!("the symbolizer failed on an object and is started again");
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
            let copies = object.map(|object| [object.symbols, object.debug_symbols]);
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

/// Opens the object behind a mapping; `None` for anonymous memory.
fn open(process: &Process, mapping: &Mapping) -> Option<ObjectFile> {
    if !mapping.is_file() && !mapping.is_vdso() {
        return None;
    }
    let file = ObjectFile::open(process.key.pid, &process.memory, mapping);
    let file = file.inspect_err(
        |error| tracing::debug!(pid = %process.key, %error, "object cannot be opened"),
    );
    file.ok()
}

impl Object {
    fn load(process: &Process, mapping: &Mapping, file: ObjectFile) -> Result<Self, Error> {
        let mut layout = ElfLayout::read(&file)?;
        let symbols = SymbolCopy::new(&file, &layout)?;
        let debug_file = debug_file::open(process.key.pid, mapping, &file, &layout);
        let debug_file = debug_file.and_then(|file| {
            let layout = ElfLayout::read(&file).ok()?;
            Some((file, layout))
        });
        let debug_symbols = debug_file
            .as_ref()
            .and_then(|(file, layout)| SymbolCopy::new(file, layout).ok()?);
        let info = |file, layout: &ElfLayout| {
            let info = DebugInfo::open(file, layout).inspect_err(|error| {
                tracing::debug!(path = mapping.path, %error, "no debug information");
            });
            info.ok().flatten()
        };
        let debug_info = info(file, &layout)
            .or_else(|| debug_file.and_then(|(file, layout)| info(file, &layout)));
        layout.forget_sections();
        Ok(Self {
            layout,
            symbols,
            debug_symbols,
            debug_info,
            names: SymbolNames::default(),
        })
    }

    fn bytes(&self) -> u64 {
        let copies = [&self.symbols, &self.debug_symbols].into_iter().flatten();
        let info = self.debug_info.as_ref().map_or(0, DebugInfo::bytes);
        info + copies.map(|copy| copy.bytes).sum::<u64>()
    }
}

impl Default for SymbolNames {
    fn default() -> Self {
        Self {
            by_start: LruCache::new(NAMES_KEPT),
            demangler: Demangler::default(),
        }
    }
}

impl SymbolNames {
    fn of(&mut self, symbol: &FoundSymbol) -> Arc<str> {
        let demangler = &mut self.demangler;
        let name = self
            .by_start
            .get_or_insert(symbol.start, || demangler.name(&symbol.name).into());
        Arc::clone(name)
    }
}

/// Only symbols: `dwarf` and `demangle` say why the rest is ours.
fn new_blazesym() -> Symbolizer {
    Symbolizer::builder()
        .enable_code_info(false)
        .enable_inlined_fns(false)
        .enable_demangling(false)
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
        let code = symbols.name(process, mapping, address);
        code.name().map(str::to_owned)
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
        let mut codes = (vdso.start..vdso.end)
            .step_by(16)
            .map(|address| symbols.name(&process, vdso, address));
        let is_clock = |code: CodeName| {
            let name = code.name();
            name.is_some_and(|name| name.contains("clock_gettime"))
        };
        assert!(codes.any(is_clock));
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
