//! Names the functions that compilers have inlined, from debug information.
//!
//! In:  an object with DWARF, an address in it
//! Out: names of the functions inlined there, innermost first
//! Lost: names that only another file has (split and supplementary DWARF); what the modules below leave out
//!
//! # Cost
//! The units' addresses are read when an object is loaded. A unit is looked through when an address in it is first
//! asked for, and a function's description likewise; only their results are kept. Everything is read from the
//! file, in pieces, by the thread that names frames.
//!
//! # Why not by blazesym
//! It maps the file, which its owner may truncate under us. A copy, as of symbols, would be gigabytes for some programs,
//! of which a request needs kilobytes.

mod function;
mod index;
mod section;
mod unit;

use std::io::Error;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;

use gimli::UnitOffset;
use lru::LruCache;

use super::demangle::Demangler;
use crate::process::elf::ElfLayout;
use crate::process::object::ObjectFile;
use function::{Functions, Inlined};
use index::UnitIndex;
use section::Sections;
use unit::{Extent, Unit};

/// Bytes of units kept of an object. A reference may lead to another unit and back.
const UNIT_BYTES_MAX: usize = 16 << 20;
/// Functions whose inlined functions are kept.
const FUNCTIONS_KEPT: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// Names kept.
const NAMES_KEPT: NonZeroUsize = NonZeroUsize::new(8192).expect("not zero");
/// Memory for the functions of the units that were looked through.
const FUNCTION_BYTES_MAX: usize = 16 << 20;
/// Descriptions that refer to each other until one has a name.
const HOPS_MAX: usize = 8;

/// Debug information of an object.
pub(crate) struct DebugInfo {
    sections: Sections,
    index: UnitIndex,
    units: LruCache<u64, Rc<Unit>>,
    /// By unit.
    functions: LruCache<u64, Rc<Functions>>,
    /// By the description's offset in `.debug_info`.
    inlined: LruCache<u64, Rc<[Inlined]>>,
    names: LruCache<u64, Option<Arc<str>>>,
    demangler: Demangler,
}

impl DebugInfo {
    /// Opens the debug information of an object; `Ok(None)` if it has none.
    ///
    /// # Errors
    ///
    /// Its sections cannot be read.
    pub(crate) fn open(object: ObjectFile, layout: &ElfLayout) -> Result<Option<Self>, Error> {
        let sections = Sections::new(object, layout)?;
        Ok(sections.map(|sections| Self {
            index: UnitIndex::new(&sections),
            sections,
            units: LruCache::unbounded(),
            functions: LruCache::unbounded(),
            inlined: LruCache::new(FUNCTIONS_KEPT),
            names: LruCache::new(NAMES_KEPT),
            demangler: Demangler::default(),
        }))
    }

    /// Memory that it takes beside what [`DebugInfo::inlined_at`] keeps, which is bounded.
    pub(super) fn bytes(&self) -> u64 {
        self.sections.bytes() + self.index.bytes()
    }

    /// Names of the functions inlined at an address of the object, innermost first.
    pub(crate) fn inlined_at(&mut self, address: u64) -> Vec<Arc<str>> {
        let origins = self.origins(address).unwrap_or_default();
        let names = origins.into_iter().filter_map(|origin| self.name(origin));
        names.collect()
    }

    fn origins(&mut self, address: u64) -> Option<Vec<u64>> {
        let offset = self.index.of_address(address)?;
        let function = self.functions_of(offset)?.find(address)?;
        let key = offset.checked_add(function as u64)?;
        if let Some(inlined) = self.inlined.get(&key) {
            return Some(function::at(inlined, address));
        }
        let unit = self.unit(offset)?;
        let inlined = function::inlined_into(&self.sections, &unit, function);
        let origins = function::at(&inlined, address);
        self.inlined.put(key, inlined.into());
        Some(origins)
    }

    fn functions_of(&mut self, offset: u64) -> Option<Rc<Functions>> {
        if let Some(functions) = self.functions.get(&offset) {
            return Some(Rc::clone(functions));
        }
        let unit = self.unit(offset)?;
        let functions = Rc::new(Functions::new(&self.sections, &unit));
        self.functions.put(offset, Rc::clone(&functions));
        make_room(&mut self.functions, FUNCTION_BYTES_MAX, |functions| {
            functions.bytes()
        });
        Some(functions)
    }

    /// A unit, whole.
    fn unit(&mut self, offset: u64) -> Option<Rc<Unit>> {
        if let Some(unit) = self.units.get(&offset) {
            return Some(Rc::clone(unit));
        }
        let unit = Rc::new(Unit::load(&self.sections, offset, Extent::Whole)?);
        self.units.put(offset, Rc::clone(&unit));
        make_room(&mut self.units, UNIT_BYTES_MAX, |unit| unit.bytes);
        Some(unit)
    }

    /// The name of the function that is described at an offset in `.debug_info`.
    fn name(&mut self, offset: u64) -> Option<Arc<str>> {
        if let Some(name) = self.names.get(&offset) {
            return name.clone();
        }
        let name = self.find_name(offset).map(Arc::from);
        self.names.put(offset, name.clone());
        name
    }

    /// The name that the linker knows, which has all of its parts; else the one in the source.
    fn find_name(&mut self, mut offset: u64) -> Option<String> {
        let mut plain = None;
        for _ in 0..HOPS_MAX {
            let unit = self.index.of_offset(offset)?;
            let unit = self.unit(unit)?;
            let at = usize::try_from(offset - unit.offset).ok()?;
            let entry = unit.entry(UnitOffset(at))?;
            if let Some(name) = &entry.linkage_name
                && let Some(name) = unit.text(&self.sections, name)
            {
                return Some(self.demangler.name(&name).into_owned());
            }
            if plain.is_none() {
                let name = entry.name.as_ref();
                plain = name.and_then(|name| unit.text(&self.sections, name));
            }
            let next = entry.origin.as_ref().or(entry.specification.as_ref());
            match next.and_then(|next| unit.reference(next)) {
                Some(next) => offset = next,
                None => break,
            }
        }
        plain
    }
}

/// Drops what was used least; what was used last stays.
fn make_room<T>(kept: &mut LruCache<u64, Rc<T>>, bytes_max: usize, bytes: impl Fn(&T) -> usize) {
    let mut sum: usize = kept.iter().map(|(_, one)| bytes(one)).sum();
    while sum > bytes_max && kept.len() > 1 {
        let least = kept.pop_lru();
        sum -= least.map_or(0, |(_, one)| bytes(&one));
    }
}
