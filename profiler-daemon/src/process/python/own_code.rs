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
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::{PythonRuntime, method};
use crate::process::ReadMemory;
use crate::process::image::{Headers, Image};
use crate::process::mapped_image::mapped_images;
use crate::process::page_cache::PageCache;

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
    /// Names of functions by their first address; read when first asked for.
    methods: OnceCell<HashMap<u64, Arc<str>>>,
}

impl OwnCode {
    /// Looks at the images of a process; empty if it is gone.
    pub(crate) fn read(memory: &dyn ReadMemory, runtime: &PythonRuntime) -> Self {
        let memory = PageCache::new(memory);
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
                    methods: OnceCell::new(),
                });
            }
        }
        Self { images }
    }

    /// Reads the names of the builtins ahead, so that the first stack does not wait for them.
    pub(crate) fn prepare(&self, memory: &dyn ReadMemory) {
        for image in &self.images {
            image.methods(memory);
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
        address: u64,
        symbol: Option<&str>,
    ) -> Option<Arc<str>> {
        let method = self.image(address).and_then(|own| {
            let memory = PageCache::new(memory);
            let image = Image::load(&memory, own.base).ok()?;
            let function = image.function_range(address)?;
            own.methods(&memory).get(&function.start).cloned()
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
    fn methods(&self, memory: &dyn ReadMemory) -> &HashMap<u64, Arc<str>> {
        self.methods
            .get_or_init(|| match Headers::read(memory, self.base) {
                Ok(headers) => method::read(memory, &headers),
                Err(_) => HashMap::new(),
            })
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
    use super::*;

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
}
