//! Which machine code of a process is the interpreter's own, and what its functions are called in Python.
//!
//! In:  the mapped images of a process with a CPython interpreter
//! Out: [`OwnCode`]: whether an address is in them, and the name of the builtin there
//! Lost: code of a library that hides the interpreter in itself under another name is an application's
//!
//! An image is the interpreter's own if it contains `_PyRuntime` (libpython, or an executable with CPython
//! in it), or is the `python3` that uses one, an extension module of the standard library
//! (`lib-dynload`), or libffi, through which it calls C functions. No symbols are needed.

use std::cell::OnceCell;
use std::ops::Range;
use std::sync::Arc;

use super::PythonRuntime;
use super::method::{self, MethodTables, Methods, TableKey};
use crate::process::image::{Headers, Image};
use crate::process::mapped_image::mapped_images;
use crate::process::object::ObjectFile;
use crate::process::page_cache::PageCache;
use crate::process::procfs::Procfs;
use crate::process::{Process, ReadMemory};

/// Functions of the interpreter that no Python code calls, in which a thread can be for long, and what to
/// call them. The collector's names differ from version to version.
const INNER: &[(&str, &str)] = &[
    ("take_gil", "[waiting for the GIL]"),
    ("drop_gil", "[handing over the GIL]"),
    ("gc_collect_main", "[garbage collection]"),
    ("gc_collect_young", "[garbage collection]"),
    ("gc_collect_increment", "[garbage collection]"),
    ("gc_collect_full", "[garbage collection]"),
];

/// The interpreter's own code in one process, as it was mapped at one moment.
#[derive(Debug, Default)]
pub(crate) struct OwnCode {
    images: Vec<OwnImage>,
}

#[derive(Debug)]
struct OwnImage {
    base: u64,
    span: Range<u64>,
    /// What it shares its methods by; none if its file cannot be opened.
    key: Option<TableKey>,
    /// Read when first asked for.
    methods: OnceCell<Arc<Methods>>,
}

impl OwnCode {
    /// Looks at the images of a process; empty if it is gone.
    pub(crate) fn read(process: &Process, runtime: &PythonRuntime) -> Self {
        let memory = PageCache::new(&process.memory);
        let uid = Procfs::default().effective_uid(process.key.pid);
        let file = |path: &str| {
            let mut mappings = process.mappings.as_slice().iter();
            let mapping = mappings.find(|mapping| mapping.path == path)?;
            let file = ObjectFile::open(process.key.pid, &process.memory, mapping).ok()?;
            Some(file.id())
        };
        let mut images = Vec::new();
        for mapped in mapped_images(runtime.process.pid).unwrap_or_default() {
            let Ok(headers) = Headers::read(&memory, mapped.base) else {
                continue;
            };
            let is_own = headers.span.contains(&runtime.runtime)
                || is_interpreter(mapped.name())
                || mapped.path.contains("/lib-dynload/");
            if is_own {
                images.push(OwnImage {
                    base: mapped.base,
                    span: headers.span,
                    key: file(&mapped.path)
                        .zip(uid)
                        .map(|(file, uid)| TableKey { file, uid }),
                    methods: OnceCell::new(),
                });
            }
        }
        Self { images }
    }

    /// Reads the names of the builtins ahead, so that the first stack does not wait for them.
    pub(crate) fn prepare(&self, memory: &dyn ReadMemory, tables: &mut MethodTables) {
        for image in &self.images {
            image.methods(memory, tables);
        }
    }

    /// Whether an address is in the interpreter's own code.
    pub(crate) fn contains(&self, address: u64) -> bool {
        self.image(address).is_some()
    }

    /// What the function at an address is called for readers of Python: `time.sleep`; `None` for one that
    /// Python code cannot call. `symbol` is its name in C, if that is known.
    pub(crate) fn label(
        &self,
        memory: &dyn ReadMemory,
        tables: &mut MethodTables,
        address: u64,
        symbol: Option<&str>,
    ) -> Option<Arc<str>> {
        let method = self.image(address).and_then(|own| {
            let memory = PageCache::new(memory);
            let image = Image::load(&memory, own.base).ok()?;
            let function = image.function_range(address)?;
            let methods = own.methods(&memory, tables);
            methods.name(function.start, own.base).cloned()
        });
        method.or_else(|| {
            let symbol = symbol?.split('.').next()?;
            let inner = INNER.iter().find(|&&(name, _)| name == symbol);
            inner.map(|&(_, label)| Arc::from(label))
        })
    }

    fn image(&self, address: u64) -> Option<&OwnImage> {
        self.images.iter().find(|own| own.span.contains(&address))
    }
}

impl OwnImage {
    fn methods(&self, memory: &dyn ReadMemory, tables: &mut MethodTables) -> &Methods {
        let scan = || {
            let headers = Headers::read(memory, self.base);
            let names = headers.map(|headers| method::read(memory, &headers));
            Methods::new(names.unwrap_or_default(), self.base)
        };
        self.methods.get_or_init(|| tables.of(self.key, scan))
    }
}

/// Whether a file is, by its name, CPython itself or the library through which it calls C functions.
#[must_use]
pub fn is_interpreter(file_name: &str) -> bool {
    let is_version = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    file_name.starts_with("libpython3.")
        || file_name.starts_with("libffi.so")
        || file_name
            .strip_prefix("python")
            .is_some_and(|version| is_version(version.trim_end_matches('t')))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    use profiler_test_support::{ChildGuard, pythons};

    use super::*;
    use crate::model::Pid;

    /// Check which files are the interpreter by their names.
    #[test]
    fn the_interpreter_is_known_by_name() {
        for (name, expected) in [
            ("libpython3.12.so.1.0", true),
            ("libpython3.13t.so.1.0", true),
            ("python3.11", true),
            ("python3", true),
            ("python3.14t", true),
            ("libffi.so.8", true),
            ("python_plugin.so", false),
            ("python3-config", false),
            ("libpq.so.5", false),
        ] {
            assert_eq!(is_interpreter(name), expected, "{name}");
        }
    }

    /// A Python process that waits for the end of its input, ready to be looked at.
    fn python(children: &mut Vec<ChildGuard>) -> Process {
        let mut command = Command::new(&pythons()[0]);
        command.args(["-c", "import time; print(flush=True); input()"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = ChildGuard::spawn("python", &mut command).unwrap();
        let mut stdout = child.process().stdout.take().unwrap();
        stdout.read_exact(&mut [0]).unwrap();
        let key = Procfs::default().key(Pid(child.id())).unwrap();
        children.push(child);
        let mut process = Process::open_same(key).unwrap();
        process.python = PythonRuntime::detect(key.pid).unwrap();
        process
    }

    /// Check that workers with one interpreter have it scanned once, and that each finds there what a scan of its own
    /// memory would have found.
    #[test]
    fn workers_share_their_methods() {
        let mut children = Vec::new();
        let mut tables = MethodTables::default();
        let (mut scans, mut empty) = (Vec::new(), 0);
        for _ in 0..3 {
            let process = python(&mut children);
            let own = OwnCode::read(&process, process.python.as_ref().unwrap());
            own.prepare(&process.memory, &mut tables);
            scans.push(tables.scans());
            let mut names = 0;
            empty = 0;
            for image in &own.images {
                assert!(image.key.is_some(), "{image:?}");
                let headers = Headers::read(&process.memory, image.base).unwrap();
                let found = method::read(&process.memory, &headers);
                names += found.len();
                empty += u64::from(found.is_empty());
                let shared = image.methods(&process.memory, &mut tables);
                assert_eq!(*shared, Methods::new(found, image.base));
            }
            assert!(names > 1000, "{names} names");
        }
        // What has no methods may not have been relocated yet: it is looked through again, and small.
        assert!(empty < scans[0] / 2, "{empty} of {}", scans[0]);
        assert_eq!(scans, [0, 1, 2].map(|worker| scans[0] + worker * empty));
    }
}
