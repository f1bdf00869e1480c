//! Shares what was found in an image between all processes that have it mapped.
//!
//! In:  the file of an image, and the user whose process was scanned
//! Out: [`Methods`], by addresses that count from the image's first byte
//! Lost: images beyond [`NAMES_MAX`] names, least recently used first; they are scanned again
//!
//! Looking through libpython takes tens of milliseconds, and a server has many workers. The definitions lie in
//! writable memory, so a user could make up those of a process of their own; what is found is shared with processes of that
//! user alone, who may read and change each other anyway.

use std::collections::HashMap;
use std::sync::Arc;

use lru::LruCache;

use crate::process::object::FileId;

/// Names kept over all images, some 100 bytes each. CPython with all its extension modules has 5,000.
const NAMES_MAX: usize = 128 * 1024;
/// Images kept; a CPython has some 80.
const IMAGES_MAX: usize = 2048;

/// Names of functions by the distance of their first instruction from the image's first byte.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Methods(HashMap<u64, Arc<str>>);

impl Methods {
    /// From names by addresses in a process that has the image mapped at `base`.
    pub(in super::super) fn new(names: HashMap<u64, Arc<str>>, base: u64) -> Self {
        let names = names.into_iter();
        Self(
            names
                .map(|(at, name)| (at.wrapping_sub(base), name))
                .collect(),
        )
    }

    /// The name of the function at an address of a process that has the image mapped at `base`.
    pub(in super::super) fn name(&self, address: u64, base: u64) -> Option<&Arc<str>> {
        self.0.get(&address.wrapping_sub(base))
    }
}

/// An image as the processes of one user see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in super::super) struct TableKey {
    /// The image's file.
    pub(in super::super) file: FileId,
    /// Effective user of the process, as we see it.
    pub(in super::super) uid: u32,
}

/// The methods of the images of all processes.
pub(crate) struct MethodTables {
    images: LruCache<TableKey, Arc<Methods>>,
    names: usize,
    scans: u64,
}

impl Default for MethodTables {
    fn default() -> Self {
        Self {
            images: LruCache::unbounded(),
            names: 0,
            scans: 0,
        }
    }
}

impl MethodTables {
    /// The methods of an image, by `scan` if they are not known. Without a key nothing is shared.
    pub(in super::super) fn of(
        &mut self,
        key: Option<TableKey>,
        scan: impl FnOnce() -> Methods,
    ) -> Arc<Methods> {
        if let Some(methods) = key.and_then(|key| self.images.get(&key)) {
            return Arc::clone(methods);
        }
        self.scans += 1;
        let methods = Arc::new(scan());
        // Nothing at all may mean that the image has not been relocated yet.
        if let Some(key) = key
            && !methods.0.is_empty()
        {
            self.names += methods.0.len();
            self.images.push(key, Arc::clone(&methods));
            while self.names > NAMES_MAX || self.images.len() > IMAGES_MAX {
                let Some((_, oldest)) = self.images.pop_lru() else {
                    break;
                };
                self.names -= oldest.0.len();
            }
        }
        methods
    }

    /// Images that were looked through.
    #[cfg(test)]
    pub(in super::super) fn scans(&self) -> u64 {
        self.scans
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::object::ObjectFile;

    fn key(file: &str, uid: u32) -> TableKey {
        let file = ObjectFile::from_image(file.as_bytes().to_vec()).id();
        TableKey { file, uid }
    }

    fn methods(count: usize) -> Methods {
        let name: Arc<str> = Arc::from("time.sleep");
        let names = (0..count as u64).map(|at| (0x1000 + at, Arc::clone(&name)));
        Methods::new(names.collect(), 0x1000)
    }

    /// Check that an image is scanned once for all processes of a user that have it, wherever it is mapped, and again for
    /// other files and users, and where nothing was found.
    #[test]
    fn an_image_is_scanned_once() {
        let mut tables = MethodTables::default();
        for (key, count, scans) in [
            (Some(key("libpython", 1)), 3, 1),
            (Some(key("libpython", 1)), 3, 1),
            (Some(key("libpython", 2)), 3, 2),
            (Some(key("other", 1)), 3, 3),
            (None, 3, 4),
            (None, 3, 5),
            (Some(key("empty", 1)), 0, 6),
            (Some(key("empty", 1)), 3, 7),
            (Some(key("empty", 1)), 3, 7),
        ] {
            let found = tables.of(key, || methods(count));
            assert_eq!((found.0.len(), tables.scans()), (count, scans), "{key:?}");
        }
        let shared = tables.of(Some(key("libpython", 1)), Methods::default);
        assert_eq!(
            shared.name(0x7f02, 0x7f00).map(|name| &**name),
            Some("time.sleep")
        );
        assert_eq!(shared.name(0x7f03, 0x7f00), None);
    }

    /// Check that names stop growing, and that the images least used go first.
    #[test]
    fn names_are_bounded() {
        let mut tables = MethodTables::default();
        let mut add = |file: &str| {
            tables.of(Some(key(file, 0)), || methods(NAMES_MAX / 4));
            assert!(tables.names <= NAMES_MAX);
            tables.scans()
        };
        for file in ["a", "b", "c", "d", "a", "e"] {
            add(file);
        }
        assert_eq!(add("a"), 5);
        assert_eq!(add("b"), 6);
        tables.of(Some(key("huge", 0)), || methods(NAMES_MAX + 1));
        assert_eq!((tables.names, tables.images.len()), (0, 0));
    }
}
