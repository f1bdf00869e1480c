//! Names the objects of a process in its frames.
//!
//! In:  the mappings of a process
//! Out: a name for each file, which no other file of the process has: `libx.so`, or `simplejson/_speedups.so` beside
//!      `markupsafe/_speedups.so`
//! Lost: nothing
//!
//! OAP compares frames by their text. Extension modules of different packages often have the same file name, and frames
//! without a symbol (`_speedups.so+0x1234`) would be one function for both.
//!
//! A file keeps its name for as long as the process is known: a function whose name changed in the middle of a call would be
//! two. Of files that are seen at the same time each has the folders that tell it apart, in whatever order they are mapped,
//! so that replicas agree.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::process::Mapping;

/// Most files with names; as many as mappings are kept.
const FILES_MAX: usize = 16_384;
/// Folders that may stand before a file's name. Files that differ further up are named by their whole paths.
const FOLDERS_MAX: usize = 6;

/// The objects of one process.
#[derive(Default)]
pub(super) struct ObjectNames {
    /// By path.
    names: HashMap<String, Arc<str>>,
    taken: HashSet<Arc<str>>,
}

impl ObjectNames {
    /// Names the files that are new.
    pub(super) fn add(&mut self, mappings: &[Mapping]) {
        let files = mappings.iter().filter(|mapping| mapping.is_file());
        let new: BTreeSet<&str> = files
            .map(Mapping::bare_path)
            .filter(|path| !self.names.contains_key(*path))
            .take(FILES_MAX.saturating_sub(self.names.len()))
            .collect();
        let mut uses: HashMap<&str, usize> = HashMap::new();
        for tail in new.iter().flat_map(|path| tails(path)) {
            *uses.entry(tail).or_default() += 1;
        }
        for path in new {
            let is_free = |tail: &&str| uses.get(tail) == Some(&1) && !self.taken.contains(*tail);
            let name: Arc<str> = tails(path).find(is_free).unwrap_or(path).into();
            self.taken.insert(Arc::clone(&name));
            self.names.insert(path.to_owned(), name);
        }
    }

    /// The name of the object that is mapped.
    pub(super) fn of<'a>(&'a self, mapping: &'a Mapping) -> &'a str {
        let known = self.names.get(mapping.bare_path());
        known.map_or(mapping.file_name(), AsRef::as_ref)
    }
}

/// The file's name, and with one folder after the other before it.
fn tails(path: &str) -> impl Iterator<Item = &str> {
    let starts = path.rmatch_indices('/').map(|(slash, _)| slash + 1);
    starts.take(FOLDERS_MAX + 1).map(|start| &path[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(path: &str) -> Mapping {
        Mapping {
            start: 0,
            end: 1,
            file_offset: 0,
            device: 1,
            inode: 1,
            path: path.to_owned(),
        }
    }

    fn named(names: &mut ObjectNames, paths: &[&str]) -> Vec<String> {
        let mappings: Vec<Mapping> = paths.iter().map(|path| mapping(path)).collect();
        names.add(&mappings);
        let names = mappings.iter().map(|mapping| names.of(mapping).to_owned());
        names.collect()
    }

    /// Check that files of one name are told apart by their folders, in any order, and that all others have their bare
    /// names.
    #[test]
    fn files_of_one_name_are_told_apart() {
        let paths = [
            "/lib/a/x.so",
            "/lib/b/x.so",
            "/lib/libc.so.6",
            "/opt/b/x.so",
        ];
        let expected = ["a/x.so", "lib/b/x.so", "libc.so.6", "opt/b/x.so"];
        assert_eq!(named(&mut ObjectNames::default(), &paths), expected);
        let reversed: Vec<&str> = paths.iter().rev().copied().collect();
        let mut names = named(&mut ObjectNames::default(), &reversed);
        names.reverse();
        assert_eq!(names, expected);
    }

    /// Check that a file keeps its name when another one of that name comes later, and when it is deleted.
    #[test]
    fn a_name_is_kept() {
        let mut names = ObjectNames::default();
        assert_eq!(named(&mut names, &["/a/x.so"]), ["x.so"]);
        assert_eq!(
            named(&mut names, &["/b/x.so", "/a/x.so"]),
            ["b/x.so", "x.so"]
        );
        assert_eq!(named(&mut names, &["/a/x.so (deleted)"]), ["x.so"]);
    }

    /// Check that files which differ far up only are named by their paths, and that there is an end to names.
    #[test]
    fn deep_and_many_files_are_bounded() {
        let deep = |top: &str| format!("/{top}{}/x.so", "/d".repeat(100));
        let (a, b) = (deep("a"), deep("b"));
        assert_eq!(named(&mut ObjectNames::default(), &[&a, &b]), [a, b]);
        let many: Vec<String> = (0..FILES_MAX + 10).map(|i| format!("/{i}.so")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let mut names = ObjectNames::default();
        assert_eq!(named(&mut names, &many).len(), many.len());
        assert_eq!(names.names.len(), FILES_MAX);
    }
}
