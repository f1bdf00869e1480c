//! Which mapped files of a process may contain a CPython interpreter.
//!
//! A `libpython3.*.so*`, wherever it is mapped (uWSGI, mod_wsgi, embedding programs), or the
//! executable itself (Debian's `python3` is linked statically). The shared library goes first: the
//! `python3` that uses one is a stub.

use super::PythonVersion;
use crate::process::mapped_image::MappedImage;

/// The files to look at, the best guess first.
pub(super) fn candidates(images: Vec<MappedImage>) -> Vec<MappedImage> {
    let mut candidates: Vec<_> = images
        .into_iter()
        .filter(|image| image.is_executable || is_libpython(image))
        .collect();
    candidates.sort_by_key(|image| !is_libpython(image));
    candidates
}

/// Whether, by its name, the file is CPython as a shared library.
pub(super) fn is_libpython(image: &MappedImage) -> bool {
    let name = image.name();
    // `libpython3.so` forwards to the versioned library and contains nothing.
    name.starts_with("libpython3.") && name.contains(".so") && !name.starts_with("libpython3.so")
}

/// The version that the file's name claims: `libpython3.9.so.1.0`, `python3.9`.
pub(super) fn version_in_name(image: &MappedImage) -> Option<PythonVersion> {
    let minor = image.name().split_once("python3.")?.1;
    let digits = minor.len() - minor.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    Some(PythonVersion {
        major: 3,
        minor: minor[..digits].parse().ok()?,
        micro: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check which files are taken for CPython as a shared library, and the version in their names.
    #[test]
    fn libpython_is_recognised_by_name() {
        for (path, libpython, minor) in [
            ("/usr/lib/libpython3.12.so.1.0", true, Some(12)),
            ("/usr/lib/libpython3.6m.so.1.0 (deleted)", true, Some(6)),
            ("/usr/lib/libpython3.so", false, None),
            ("/usr/lib/libpython2.7.so.1.0", false, None),
            ("/usr/bin/python3.9", false, Some(9)),
            ("/usr/bin/python3", false, None),
        ] {
            let image = MappedImage {
                path: path.to_owned(),
                base: 0,
                is_executable: false,
            };
            assert_eq!(is_libpython(&image), libpython, "{path}");
            let version = version_in_name(&image);
            assert_eq!(version.map(|version| version.minor), minor, "{path}");
        }
    }
}
