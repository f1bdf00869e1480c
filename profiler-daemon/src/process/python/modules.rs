//! Keeps the module of each file that a process runs code from.
//!
//! In:  `co_filename`; `sys.path`, the working folder and the `__init__.py` files of the process
//! Out: the module's name: the same for a file as long as the process is known, another one for
//!      another file
//! Lost: nothing; past a bound, files are named by their paths
//!
//! # Why names are kept
//! `sys.path`, the working folder and the files change while a process runs, and OAP compares frames
//! by their text: a function that changed its name in the middle of a call would be two.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::module::{ImportPath, ModuleName, path_name};
use super::{PythonRuntime, sys_path};
use crate::model::Pid;
use crate::model::name::{FUNCTION_MAX, shorten};
use crate::process::{ReadMemory, foreign_file};

/// Files of a process that are named; a large Django site runs code from 3,000.
const FILES_MAX: usize = 8192;
/// Functions of a process whose signatures are kept.
const SIGNATURES_MAX: usize = 32 * 1024;
/// Files of a process that are looked for, each once.
const LOOKS_MAX: usize = 4096;
/// Least time between two readings of `sys.path`. It is read again for a file that is below none of
/// its entries: programs add entries while they start.
const READ_INTERVAL: Duration = Duration::from_secs(5);

/// The modules of one process.
#[derive(Default)]
pub(super) struct ProcessModules {
    import_path: ImportPath,
    read_at: Option<Instant>,
    /// Whether a regular file is at a path.
    seen: HashMap<String, bool>,
    names: HashMap<Arc<str>, Arc<str>>,
    /// The file of each name.
    files: HashMap<Arc<str>, Arc<str>>,
    /// The file of each signature.
    signatures: HashMap<Arc<str>, Arc<str>>,
}

impl ProcessModules {
    /// The module of a file.
    pub(super) fn name(
        &mut self,
        memory: &dyn ReadMemory,
        runtime: &PythonRuntime,
        file: &Arc<str>,
    ) -> Arc<str> {
        if let Some(name) = self.names.get(file) {
            return Arc::clone(name);
        }
        if self.names.len() >= FILES_MAX {
            return shown(&path_name(file));
        }
        if self.read_at.is_none() {
            self.read(memory, runtime);
        }
        let mut name = self.find(runtime.process.pid, file);
        let is_old = |read_at: Instant| read_at.elapsed() >= READ_INTERVAL;
        if !name.is_rooted && self.read_at.is_none_or(is_old) {
            self.read(memory, runtime);
            name = self.find(runtime.process.pid, file);
        }
        let mut name = shown(&name.text);
        if self.files.get(&name).is_some_and(|other| other != file) {
            name = shown(&path_name(file));
        }
        self.names.insert(Arc::clone(file), Arc::clone(&name));
        self.files.insert(Arc::clone(&name), Arc::clone(file));
        name
    }

    /// The signature of a function of `file`, whose module is `module`. The file's path stands in place
    /// of the module if a function of another file has the signature: class `b` of `a/__init__.py` may
    /// have a method where `a/b.py` has a function.
    pub(super) fn signature(
        &mut self,
        module: &str,
        qualname: &str,
        first_line: u32,
        file: &Arc<str>,
    ) -> Arc<str> {
        let by = |name: &str| Arc::<str>::from(format!("{name}.{qualname}:{first_line}"));
        let signature = by(module);
        match self.signatures.get(&signature) {
            Some(known) if known == file => signature,
            None if self.signatures.len() < SIGNATURES_MAX => {
                self.signatures
                    .insert(Arc::clone(&signature), Arc::clone(file));
                signature
            }
            _ => by(&shown(&path_name(file))),
        }
    }

    fn read(&mut self, memory: &dyn ReadMemory, runtime: &PythonRuntime) {
        self.read_at = Some(Instant::now());
        let entries = sys_path::read(memory, runtime);
        let folder = foreign_file::working_folder(runtime.process.pid).unwrap_or_default();
        self.import_path = ImportPath::new(&entries, &folder.to_string_lossy());
    }

    fn find(&mut self, pid: Pid, file: &str) -> ModuleName {
        let seen = &mut self.seen;
        self.import_path.name(file, |path| {
            if let Some(&is_there) = seen.get(path) {
                return is_there;
            }
            if seen.len() >= LOOKS_MAX {
                return false;
            }
            let is_there = foreign_file::is_file(pid, Path::new(path));
            seen.insert(path.to_owned(), is_there);
            is_there
        })
    }
}

/// A module as it is shown.
fn shown(name: &str) -> Arc<str> {
    shorten(name, FUNCTION_MAX).into()
}
