//! Which mapped files of a process may contain a CPython interpreter.
//!
//! A `libpython3.*.so*`, wherever it is mapped (uWSGI, mod_wsgi, embedding programs), or the
//! executable itself (Debian's `python3` is linked statically). The shared library goes first: the
//! `python3` that uses one is a stub.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};

use super::{PythonError, PythonVersion};
use crate::model::Pid;

/// Most of `/proc/PID/maps` that is read; a line is about 100 bytes.
const MAPS_BYTES_MAX: u64 = 16 << 20;

/// A mapped file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    /// The path as the kernel shows it to us; need not exist in our file system.
    pub(super) path: String,
    /// Where its first byte is mapped.
    pub(super) base: u64,
    /// By its name, it is CPython as a shared library.
    pub(super) is_libpython: bool,
}

impl Object {
    /// The version that the file's name claims: `libpython3.9.so.1.0`, `python3.9`.
    pub(super) fn version_in_name(&self) -> Option<PythonVersion> {
        let name = self.path.rsplit('/').next()?;
        let minor = name.split_once("python3.")?.1;
        let digits = minor.len() - minor.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        Some(PythonVersion {
            major: 3,
            minor: minor[..digits].parse().ok()?,
            micro: 0,
        })
    }
}

/// The files to look at, the best guess first.
pub(super) fn python_objects(pid: Pid) -> Result<Vec<Object>, PythonError> {
    let path = format!("/proc/{pid}/maps");
    let failed = |source| PythonError::Proc {
        path: path.clone(),
        source,
    };
    let maps = File::open(&path).map_err(failed)?.take(MAPS_BYTES_MAX);
    // Fails for kernel threads, which have no mappings either.
    let executable = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let mut objects: Vec<Object> = Vec::new();
    for line in BufReader::new(maps).split(b'\n') {
        let line = line.map_err(failed)?;
        let Some((base, path)) = std::str::from_utf8(&line).ok().and_then(image_start) else {
            continue;
        };
        let is_libpython = is_libpython(path);
        let is_executable = executable.as_os_str() == path;
        if (is_libpython || is_executable) && objects.iter().all(|object| object.path != path) {
            objects.push(Object {
                path: path.to_owned(),
                base,
                is_libpython,
            });
        }
    }
    objects.sort_by_key(|object| !object.is_libpython);
    Ok(objects)
}

/// Address and path of a line that maps the first byte of a file.
fn image_start(line: &str) -> Option<(u64, &str)> {
    // address perms offset dev inode      path
    let mut fields = line.splitn(6, ' ');
    let address = fields.next()?;
    let offset = fields.nth(1)?;
    let path = fields.nth(2)?.trim_start();
    if !path.starts_with('/') || u64::from_str_radix(offset, 16).ok()? != 0 {
        return None;
    }
    let start = address.split('-').next()?;
    Some((u64::from_str_radix(start, 16).ok()?, path))
}

fn is_libpython(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    // `libpython3.so` forwards to the versioned library and contains nothing.
    name.starts_with("libpython3.") && name.contains(".so") && !name.starts_with("libpython3.so")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that only lines that map the start of a file count, also for paths with spaces.
    #[test]
    fn the_start_of_an_image_is_found() {
        let cases = [
            (
                "00400000-00420000 r--p 00000000 fe:00 131      /usr/bin/python3.11",
                Some((0x40_0000, "/usr/bin/python3.11")),
            ),
            (
                "7f00-7f10 r--p 00000000 fe:00 7 /opt/my app/libpython3.12.so.1.0 (deleted)",
                Some((0x7f00, "/opt/my app/libpython3.12.so.1.0 (deleted)")),
            ),
            (
                "00420000-00430000 r-xp 00020000 fe:00 131 /usr/bin/python3.11",
                None,
            ),
            ("7ffe0000-7ffe1000 rw-p 00000000 00:00 0 [stack]", None),
            ("7ffe0000-7ffe1000 rw-p 00000000 00:00 0", None),
            ("zz-7ffe1000 rw-p 00000000 00:00 0 /x", None),
            ("", None),
        ];
        for (line, expected) in cases {
            assert_eq!(image_start(line), expected, "{line}");
        }
    }

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
            let object = Object {
                path: path.to_owned(),
                base: 0,
                is_libpython: is_libpython(path),
            };
            assert_eq!(object.is_libpython, libpython, "{path}");
            let version = object.version_in_name();
            assert_eq!(version.map(|version| version.minor), minor, "{path}");
        }
    }
}
