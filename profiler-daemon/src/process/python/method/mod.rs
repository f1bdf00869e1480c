//! Finds out which Python names the C functions of an interpreter's image have.
//!
//! In:  the writable segments of a loaded image
//! Out: `time.sleep`, `list.sort`, `select.epoll.poll` by the address of the function
//! Lost: functions that are reached through slots (`a + b`, `len` of a type) have no name; nor has one
//!       that several types share under one name
//!
//! # How
//! A function that Python code can call stands in an array of method definitions, which ends with zeros:
//!
//! ```text
//! PyMethodDef { char *ml_name; PyCFunction ml_meth; int ml_flags; char *ml_doc; }   32 bytes
//! ```
//!
//! Whose methods they are, says what points at the array:
//!
//! ```text
//! PyModuleDef  { m_base 40 bytes; char *m_name; char *m_doc; Py_ssize_t m_size; PyMethodDef *m_methods; ...
//! PyTypeObject { ob_base 24 bytes; char *tp_name; basicsize; itemsize; dealloc; ... tp_methods at 232; ...
//! PyType_Slot  { int slot = 64 (Py_tp_methods); PyMethodDef *; }  in the array that a
//! PyType_Spec  { char *name; int basicsize, itemsize; unsigned flags; PyType_Slot *slots; }  points at
//! ```
//!
//! These are parts of the stable ABI or have not moved since 3.2 (Include/methodobject.h, moduleobject.h,
//! cpython/object.h, typeslots.h). Names and functions are pointers into the image, flags have few legal
//! values: random words do not look like that, and a wrong match needs a wrong owner as well. The image is
//! hostile all the same; what it claims is only printed.

mod scan;
mod shared;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

pub(crate) use shared::MethodTables;
pub(super) use shared::{Methods, TableKey};

use crate::process::ReadMemory;
use crate::process::image::{Headers, PF_W, PT_LOAD};
use crate::process::page_cache::PageCache;
use scan::Scan;

/// Names of the functions of an image by their addresses.
pub(crate) fn read(memory: &dyn ReadMemory, headers: &Headers) -> HashMap<u64, Arc<str>> {
    let memory = &PageCache::new(memory);
    let mut names = Names::default();
    let segments = headers.segments.iter();
    for segment in segments.filter(|s| s.kind == PT_LOAD && s.flags & PF_W != 0) {
        Scan::new(memory, headers, segment).add_names(&mut names);
    }
    names.finish()
}

/// Names by function; `None` where types share one, which then is not known to belong to either.
#[derive(Default)]
struct Names(HashMap<u64, Option<Named>>);

#[derive(Clone, PartialEq, Eq)]
struct Named {
    owner: String,
    method: String,
}

impl Names {
    fn add(&mut self, owner: &str, methods: Vec<(String, u64)>) {
        for (method, function) in methods {
            let named = Named {
                owner: owner.to_owned(),
                method,
            };
            match self.0.entry(function) {
                Entry::Vacant(entry) => {
                    entry.insert(Some(named));
                }
                Entry::Occupied(mut entry) => {
                    // `acquire` and `acquire_lock`, the old name, are one function of one type.
                    let key = |named: &Named| (named.method.len(), named.method.clone());
                    let known = entry.get_mut();
                    match known {
                        Some(known) if known.owner == named.owner => {
                            if key(&named) < key(known) {
                                *known = named;
                            }
                        }
                        _ => *known = None,
                    }
                }
            }
        }
    }

    fn finish(self) -> HashMap<u64, Arc<str>> {
        let named = self.0.into_iter();
        named
            .filter_map(|(function, named)| {
                let Named { owner, method } = named?;
                Some((
                    function,
                    match owner.as_str() {
                        "builtins" => Arc::from(method),
                        // `os` is the module that people import.
                        "posix" => format!("os.{method}").into(),
                        owner => format!("{owner}.{method}").into(),
                    },
                ))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::scan::SLOT_METHODS;
    use super::*;
    use crate::process::image::{PF_X, Segment};

    const CODE: u64 = 0x1_0000;
    const DATA: u64 = 0x3_0000;

    /// An image: code at [`CODE`], names behind it, words at [`DATA`].
    #[derive(Default)]
    struct Made {
        names: Vec<u8>,
        words: Vec<u64>,
    }

    impl Made {
        fn name(&mut self, name: &str) -> u64 {
            let address = CODE + 0x1_0000 + self.names.len() as u64;
            self.names.extend(name.as_bytes());
            self.names.push(0);
            address
        }

        /// Adds words; returns the address of the first.
        fn add(&mut self, words: &[u64]) -> u64 {
            let address = DATA + 8 * self.words.len() as u64;
            self.words.extend(words);
            address
        }

        fn methods(&mut self, methods: &[(&str, u64)]) -> u64 {
            let mut words = Vec::new();
            for &(name, function) in methods {
                words.extend([self.name(name), CODE + function, 0x82, 0]);
            }
            words.extend([0; 4]);
            self.add(&words)
        }

        fn module(&mut self, name: &str, methods: u64) {
            let name = self.name(name);
            self.add(&[1, 0, 0, 0, 0, name, 0, u64::MAX, methods, 0]);
        }

        fn static_type(&mut self, name: &str, methods: u64) {
            let mut words = [0; 40];
            words[0] = 1;
            words[3] = self.name(name);
            words[4] = 40;
            words[29] = methods;
            self.add(&words);
        }

        fn spec_type(&mut self, name: &str, methods: u64) {
            let name = self.name(name);
            let slots = self.add(&[52, CODE + 8, SLOT_METHODS, methods, 73, DATA, 0, 0]);
            self.add(&[name, 24, 0, slots]);
        }

        fn read(&self) -> Vec<(u64, String)> {
            let segment = |flags, address, bytes| Segment {
                kind: PT_LOAD,
                flags,
                address,
                bytes,
            };
            let headers = Headers::of(
                CODE..DATA + 0x1_0000,
                vec![
                    segment(PF_X, CODE, 0x1_0000),
                    segment(PF_W, DATA, 8 * self.words.len() as u64),
                ],
            );
            let names = read(self, &headers).into_iter();
            let mut names: Vec<_> = names
                .map(|(at, name)| (at - CODE, name.to_string()))
                .collect();
            names.sort();
            names
        }
    }

    impl ReadMemory for Made {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Error> {
            let words: Vec<u8> = self
                .words
                .iter()
                .flat_map(|word| word.to_ne_bytes())
                .collect();
            for (start, bytes) in [(CODE + 0x1_0000, &self.names), (DATA, &words)] {
                let at = address.checked_sub(start).map(|at| at as usize);
                if let Some(found) = at.and_then(|at| bytes.get(at..)).filter(|b| !b.is_empty()) {
                    let n = buffer.len().min(found.len());
                    buffer[..n].copy_from_slice(&found[..n]);
                    return Ok(n);
                }
            }
            Err(Error::from(ErrorKind::InvalidInput))
        }
    }

    fn named(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
        expected
            .iter()
            .map(|&(at, name)| (at, name.to_owned()))
            .collect()
    }

    /// Check the three kinds of owners, and the names people know.
    #[test]
    fn functions_are_named_by_module_or_type() {
        let mut made = Made::default();
        let time = made.methods(&[("sleep", 0x10), ("time", 0x20)]);
        let builtins = made.methods(&[("sorted", 0x30)]);
        let posix = made.methods(&[("read", 0x40)]);
        let list = made.methods(&[("sort", 0x50)]);
        let epoll = made.methods(&[("poll", 0x60)]);
        made.module("time", time);
        made.module("builtins", builtins);
        made.module("posix", posix);
        made.static_type("list", list);
        made.spec_type("select.epoll", epoll);
        assert_eq!(
            made.read(),
            named(&[
                (0x10, "time.sleep"),
                (0x20, "time.time"),
                (0x30, "sorted"),
                (0x40, "os.read"),
                (0x50, "list.sort"),
                (0x60, "select.epoll.poll"),
            ])
        );
    }

    /// Check that a function with two names in one type has the shorter one, and that one of two types,
    /// or of none, has no name.
    #[test]
    fn what_is_not_certain_has_no_name() {
        let mut made = Made::default();
        let lock = made.methods(&[("acquire_lock", 0x10), ("acquire", 0x10), ("shared", 0x20)]);
        let other = made.methods(&[("shared", 0x20)]);
        made.methods(&[("orphan", 0x30)]);
        made.spec_type("_thread.lock", lock);
        made.static_type("other", other);
        assert_eq!(made.read(), named(&[(0x10, "_thread.lock.acquire")]));
    }

    /// Check that words which are no methods are none: attributes, other flags, foreign pointers, text.
    #[test]
    fn look_alikes_are_left_out() {
        let mut made = Made::default();
        let name = made.name("getter");
        let text = made.name("not a name");
        let getset = made.add(&[name, CODE, 0, 0, 0, 0, 0, 0]);
        let flags = made.add(&[name, CODE, 0x5, 0, 0, 0, 0, 0]);
        let foreign = made.add(&[name, 0x7fff_0000, 0x1, 0, 0, 0, 0, 0]);
        let bad = made.add(&[text, CODE, 0x1, 0, 0, 0, 0, 0]);
        for table in [getset, flags, foreign, bad] {
            made.module("m", table);
        }
        made.module("empty", u64::MAX);
        assert_eq!(made.read(), []);
    }
}
