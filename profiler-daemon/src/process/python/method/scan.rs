//! Finds arrays of method definitions, and whose methods they are, among the words of a segment.
//!
//! In:  a writable segment of a loaded image
//! Out: names of functions, to [`Names`]
//! Lost: arrays without an owner

use std::collections::HashMap;

use super::Names;
use crate::process::ReadMemory;
use crate::process::image::{Headers, PF_X, PT_LOAD, Segment};

/// Most bytes scanned of one segment: libpython's data are 1 to 2 MB.
const SEGMENT_BYTES_MAX: u64 = 16 << 20;
/// Most arrays of methods in an image. libpython has some 600.
const TABLES_MAX: usize = 16_384;
/// Most methods in an array. `posix` has the most, some 350.
const METHODS_MAX: usize = 4_096;
/// Longest name of a method, module or type that is believed.
const NAME_BYTES_MAX: usize = 96;
/// Slots of a type that are walked back to find the first one; there are about 80 kinds.
const SLOTS_MAX: usize = 100;
/// `Py_tp_methods`.
pub(super) const SLOT_METHODS: u64 = 64;
/// `METH_CLASS | METH_STATIC | METH_COEXIST`: may be added to any calling convention.
const FLAGS_EXTRA: u64 = 0x70;
/// `METH_VARARGS`, with `METH_KEYWORDS`, `METH_NOARGS`, `METH_O`, `METH_FASTCALL`, with keywords, and with
/// `METH_METHOD`.
const FLAGS: [u64; 7] = [0x1, 0x3, 0x4, 0x8, 0x80, 0x82, 0x282];

/// What can be read of a segment, from its first aligned word on.
fn words(memory: &dyn ReadMemory, segment: &Segment) -> Vec<u64> {
    let start = segment.address.next_multiple_of(8);
    let mut bytes = vec![0; segment.bytes.min(SEGMENT_BYTES_MAX) as usize];
    let read = memory.read(start, &mut bytes).unwrap_or(0);
    let words = bytes[..read].chunks_exact(8);
    words
        .map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default()))
        .collect()
}

/// An array of methods: names and functions.
struct Table {
    start: u64,
    methods: Vec<(String, u64)>,
}

/// One segment.
pub(super) struct Scan<'a> {
    memory: &'a dyn ReadMemory,
    headers: &'a Headers,
    start: u64,
    words: Vec<u64>,
}

impl<'a> Scan<'a> {
    pub(super) fn new(memory: &'a dyn ReadMemory, headers: &'a Headers, segment: &Segment) -> Self {
        Self {
            memory,
            headers,
            start: segment.address.next_multiple_of(8),
            words: words(memory, segment),
        }
    }

    /// Adds the methods of all arrays that have an owner.
    pub(super) fn add_names(&self, names: &mut Names) {
        let tables = self.tables();
        let mut owners: Vec<Option<String>> = vec![None; tables.len()];
        let starts: HashMap<u64, usize> = (0..).zip(&tables).map(|(i, t)| (t.start, i)).collect();
        // Arrays of slots by each address at which they may begin.
        let mut slots: HashMap<u64, usize> = HashMap::new();
        for (at, word) in self.pointers() {
            let Some(&table) = starts.get(&word) else {
                continue;
            };
            if at > 0 && self.words[at - 1] == SLOT_METHODS {
                slots.extend(self.slot_starts(at).map(|start| (start, table)));
            } else if owners[table].is_none() {
                owners[table] = self.module_name(at).or_else(|| self.type_name(at));
            }
        }
        if !slots.is_empty() {
            for (at, word) in self.pointers() {
                if let Some(&table) = slots.get(&word)
                    && owners[table].is_none()
                {
                    owners[table] = self.spec_name(at);
                }
            }
        }
        for (table, owner) in tables.into_iter().zip(owners) {
            if let Some(owner) = owner {
                names.add(&owner, table.methods);
            }
        }
    }

    /// Words that point into the segment.
    fn pointers(&self) -> impl Iterator<Item = (usize, u64)> {
        let bytes = 8 * self.words.len() as u64;
        let words = self.words.iter().copied().enumerate();
        words.filter(move |&(_, word)| word.wrapping_sub(self.start) < bytes)
    }

    /// All arrays of methods.
    fn tables(&self) -> Vec<Table> {
        let mut tables = Vec::new();
        let mut at = 0;
        while at + 4 <= self.words.len() && tables.len() < TABLES_MAX {
            let mut methods = Vec::new();
            let mut end = at;
            while methods.len() < METHODS_MAX
                && let Some(method) = self.method(end)
            {
                methods.push(method);
                end += 4;
            }
            if methods.is_empty() {
                at += 1;
            } else {
                tables.push(Table {
                    start: self.address(at),
                    methods,
                });
                at = end;
            }
        }
        tables
    }

    fn method(&self, at: usize) -> Option<(String, u64)> {
        let &[name, function, flags, doc] = self.words.get(at..at + 4)? else {
            return None;
        };
        let is_method = FLAGS.contains(&(flags & !FLAGS_EXTRA))
            && (doc == 0 || self.headers.span.contains(&doc))
            && self.is_code(function);
        let name = is_method.then(|| self.text(name)).flatten()?;
        (!name.contains('.')).then_some((name, function))
    }

    /// The name of the module whose definition has its methods at `at`.
    fn module_name(&self, at: usize) -> Option<String> {
        let &[name, doc, size] = self.words.get(at.checked_sub(3)?..at)? else {
            return None;
        };
        let is_module = (doc == 0 || self.headers.span.contains(&doc))
            && (-1..1 << 20).contains(&size.cast_signed());
        is_module.then(|| self.text(name)).flatten()
    }

    /// The name of the static type that has its methods at `at`.
    fn type_name(&self, at: usize) -> Option<String> {
        let &[items, name, bytes, item_bytes, dealloc] =
            self.words.get(at.checked_sub(27)?..at - 22)?
        else {
            return None;
        };
        let is_type = items == 0
            && (1..1 << 16).contains(&bytes)
            && item_bytes < 1 << 16
            && (dealloc == 0 || self.is_code(dealloc));
        is_type.then(|| self.text(name)).flatten()
    }

    /// The name in the specification of a type that has its slots at `at`.
    fn spec_name(&self, at: usize) -> Option<String> {
        let &[name, sizes, flags] = self.words.get(at.checked_sub(3)?..at)? else {
            return None;
        };
        let is_spec = (sizes & 0xffff_ffff) < 1 << 16 && flags >> 32 == 0;
        is_spec.then(|| self.text(name)).flatten()
    }

    /// Where the array of slots whose methods are at `at` may begin.
    fn slot_starts(&self, at: usize) -> impl Iterator<Item = u64> {
        let own = at - 1;
        let mut first = own;
        while first >= 2
            && own - first < 2 * SLOTS_MAX
            && (1..=SLOTS_MAX as u64).contains(&self.words[first - 2])
        {
            first -= 2;
        }
        (first..=own).step_by(2).map(|at| self.address(at))
    }

    fn address(&self, at: usize) -> u64 {
        self.start.wrapping_add(8 * at as u64)
    }

    fn is_code(&self, address: u64) -> bool {
        let segments = self.headers.segments.iter();
        let mut code = segments.filter(|s| s.kind == PT_LOAD && s.flags & PF_X != 0);
        code.any(|s| address.wrapping_sub(s.address) < s.bytes)
    }

    /// A name, perhaps with dots, in the image.
    fn text(&self, address: u64) -> Option<String> {
        if !self.headers.span.contains(&address) {
            return None;
        }
        let mut bytes = [0; NAME_BYTES_MAX];
        let read = self.memory.read(address, &mut bytes).ok()?;
        let end = bytes[..read].iter().position(|&byte| byte == 0)?;
        let name = std::str::from_utf8(&bytes[..end]).ok()?;
        let is_name = name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.');
        let is_start = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        (is_name && is_start).then(|| name.to_owned())
    }
}
