//! Finds the image that contains a CPython interpreter, of any version, and that version.

use super::{PythonError, PythonVersion, object};
use crate::model::Pid;
use crate::process::image::Image;
use crate::process::mapped_image::{MappedImage, mapped_images, maps_path};
use crate::process::page_cache::PageCache;
use crate::process::{ProcessMemory, ReadMemory};

/// An interpreter of any version, found but not yet understood.
pub(super) struct Located<'m> {
    pub(super) image: Image<'m>,
    pub(super) version: PythonVersion,
    /// Address of `_PyRuntime`.
    pub(super) runtime: u64,
}

impl<'m> Located<'m> {
    /// Looks in those of the mapped images that may be one.
    pub(super) fn find(
        pid: Pid,
        images: &[MappedImage],
        memory: &'m dyn ReadMemory,
    ) -> Result<Option<Self>, PythonError> {
        for mapped in object::candidates(images.to_vec()) {
            let image = match Image::load(memory, mapped.base) {
                Ok(image) => image,
                // Any executable may be statically linked; only a libpython promises to be Python.
                Err(_) if !object::is_libpython(&mapped) => continue,
                Err(source) => {
                    let path = mapped.path;
                    return Err(PythonError::Image { pid, path, source });
                }
            };
            let Some(runtime) = image.symbol("_PyRuntime") else {
                continue;
            };
            let version = match image.symbol("Py_Version") {
                Some(symbol) => {
                    let hex = memory.read_u64(symbol.address);
                    PythonVersion::from_hex(hex.map_err(|source| PythonError::Memory {
                        pid,
                        what: "Py_Version",
                        source,
                    })?)
                }
                // 3.10 and older do not say.
                None => object::version_in_name(&mapped).unwrap_or(PythonVersion::UNKNOWN),
            };
            return Ok(Some(Self {
                image,
                version,
                runtime: runtime.address,
            }));
        }
        Ok(None)
    }
}

/// What is mapped in a process.
///
/// # Errors
///
/// The process is gone or belongs to someone else.
pub(super) fn images(pid: Pid) -> Result<Vec<MappedImage>, PythonError> {
    mapped_images(pid).map_err(|source| PythonError::Proc {
        path: maps_path(pid),
        source,
    })
}

/// The version of the CPython interpreter among a process's mapped images, supported or not; `None` if there is none.
///
/// # Errors
///
/// The process is gone, or its memory cannot be read.
pub(crate) fn find_version(
    pid: Pid,
    images: &[MappedImage],
) -> Result<Option<PythonVersion>, PythonError> {
    let memory = ProcessMemory::new(pid);
    let memory = PageCache::new(&memory);
    match Located::find(pid, images, &memory)? {
        Some(found) => Ok(Some(found.version)),
        // 3.6 and older have no `_PyRuntime`, but a name.
        None => Ok(object::candidates(images.to_vec())
            .iter()
            .filter(|image| object::is_libpython(image))
            .find_map(object::version_in_name)),
    }
}
