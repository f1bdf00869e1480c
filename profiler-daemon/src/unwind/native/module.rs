//! Keeps the unwind information of all objects that profiled processes have mapped.
//!
//! In:  [`Process`], an index into its mappings
//! Out: [`UnwindTable`]s, shared between the processes that map the same file
//! Lost: an object that cannot be read is logged once per process and has no table
//!
//! # Memory
//! Tables are read whole (libc 0.2 MB, CPython 0.5 MB, node about 10 MB) and kept until their sum
//! passes [`TABLES_BYTES_MAX`]; then the least recently loaded or shared one goes.

use std::collections::HashMap;
use std::sync::Arc;

use lru::LruCache;

use super::table::UnwindTable;
use crate::model::ProcessKey;
use crate::process::Process;
use crate::process::object::{FileId, ObjectFile};

/// Room for the libraries of a dozen different large programs.
const TABLES_BYTES_MAX: usize = 48 << 20;

/// Unwind tables by process and by file.
pub(super) struct Modules {
    processes: HashMap<ProcessKey, ProcessModules>,
    tables: LruCache<FileId, Option<Arc<UnwindTable>>>,
    next_id: u32,
    bytes_max: usize,
}

struct ProcessModules {
    generation: u64,
    /// In the order of the process's mappings.
    modules: Vec<Module>,
}

#[derive(Clone)]
enum Module {
    Unopened,
    Opened(Option<Arc<UnwindTable>>),
}

impl Default for Modules {
    fn default() -> Self {
        Self {
            processes: HashMap::new(),
            tables: LruCache::unbounded(),
            next_id: 0,
            bytes_max: TABLES_BYTES_MAX,
        }
    }
}

impl Modules {
    /// The table of the object behind a mapping; `None` if there is no object or no table in it.
    pub(super) fn table(&mut self, process: &Process, index: usize) -> Option<Arc<UnwindTable>> {
        let generation = process.mappings.generation();
        let count = process.mappings.as_slice().len();
        let entry = self.processes.entry(process.key);
        let known = entry.or_insert_with(|| ProcessModules::new(generation, count));
        if known.generation != generation {
            *known = ProcessModules::new(generation, count);
        }
        if let Module::Opened(table) = &known.modules[index] {
            return table.clone();
        }
        let table = self.open(process, index);
        // Looked up again: making room may have emptied the list.
        if let Some(known) = self.processes.get_mut(&process.key) {
            known.modules[index] = Module::Opened(table.clone());
        }
        table
    }

    /// Drops what is remembered about a process. Tables stay, for the next process with that file.
    pub(super) fn forget(&mut self, process: ProcessKey) {
        self.processes.remove(&process);
    }

    fn open(&mut self, process: &Process, index: usize) -> Option<Arc<UnwindTable>> {
        let mapping = &process.mappings.as_slice()[index];
        if !mapping.is_file() && !mapping.is_vdso() {
            return None;
        }
        let object = match ObjectFile::open(process.key.pid, &process.memory, mapping) {
            Ok(object) => object,
            Err(error) => {
                tracing::debug!(pid = %process.key, %error, "object cannot be opened");
                return None;
            }
        };
        if let Some(table) = self.tables.get(&object.id()) {
            return table.clone();
        }
        self.next_id += 1;
        let table = match UnwindTable::load(self.next_id, &object) {
            Ok(table) => table.map(Arc::new),
            Err(error) => {
                let path = &mapping.path;
                tracing::debug!(pid = %process.key, path, %error, "no unwind information");
                None
            }
        };
        self.tables.put(object.id(), table.clone());
        self.make_room();
        table
    }

    fn make_room(&mut self) {
        let bytes = |table: &Option<Arc<UnwindTable>>| {
            // A file without a table still takes its place.
            table.as_ref().map_or(0, |table| table.bytes()) + size_of::<UnwindTable>()
        };
        let mut sum: usize = self.tables.iter().map(|(_, table)| bytes(table)).sum();
        while sum > self.bytes_max && self.tables.len() > 1 {
            if let Some((_, table)) = self.tables.pop_lru() {
                sum -= bytes(&table);
            }
            // They share the table. All of them: it happens rarely, and reopening is cheap.
            self.processes.clear();
        }
    }
}

impl ProcessModules {
    fn new(generation: u64, count: usize) -> Self {
        Self {
            generation,
            modules: vec![Module::Unopened; count],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Pid;

    fn tables(modules: &mut Modules, process: &Process) -> Vec<Arc<UnwindTable>> {
        let count = process.mappings.as_slice().len();
        (0..count)
            .filter_map(|index| modules.table(process, index))
            .collect()
    }

    /// Check that a second look, and a second process with the same files, load nothing.
    #[test]
    fn tables_are_loaded_once_per_file() {
        let process = Process::open(Pid(std::process::id())).unwrap();
        let mut modules = Modules::default();
        let first = tables(&mut modules, &process);
        assert!(first.len() > 2);
        let loaded = modules.next_id;
        let again = tables(&mut modules, &process);
        assert!(first.iter().zip(&again).all(|(a, b)| Arc::ptr_eq(a, b)));
        modules.forget(process.key);
        let shared = tables(&mut modules, &process);
        assert!(first.iter().zip(&shared).all(|(a, b)| Arc::ptr_eq(a, b)));
        assert_eq!(modules.next_id, loaded);
    }

    /// Check that the sum of all tables stays within its limit, and that tables come back.
    #[test]
    fn old_tables_make_room() {
        let process = Process::open(Pid(std::process::id())).unwrap();
        let mut modules = Modules {
            bytes_max: 1,
            ..Modules::default()
        };
        let count = tables(&mut modules, &process).len();
        assert_eq!(modules.tables.len(), 1);
        assert_eq!(tables(&mut modules, &process).len(), count);
    }
}
