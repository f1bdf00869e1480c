//! Lists the files whose first byte is mapped into a process: its executable and its libraries.
//!
//! In:  `/proc/PID/maps`, `/proc/PID/exe`
//! Out: [`MappedImage`]s in address order
//!
//! A program's headers are at the start of its file, so "offset 0 is mapped" finds every loaded ELF
//! image together with the address of its headers.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Error, Read};

use super::patience;
use super::stand_in::door;
use crate::model::Pid;

/// Most of `/proc/PID/maps` that is read: some 10,000 mappings. The executable stands near the beginning, and in a process
/// with more mappings libraries may be missed.
const MAPS_BYTES_MAX: u64 = 1 << 20;
/// Most files listed. Large programs have some hundreds.
const IMAGES_MAX: usize = 4096;

/// A mapped file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MappedImage {
    /// The path as the kernel shows it to us; need not exist in our file system.
    pub(crate) path: String,
    /// Where its first byte is mapped.
    pub(crate) base: u64,
    /// It is the process's executable.
    pub(crate) is_executable: bool,
}

impl MappedImage {
    /// The last part of the path.
    pub(crate) fn name(&self) -> &str {
        let path = self.path.strip_suffix(" (deleted)").unwrap_or(&self.path);
        path.rsplit('/').next().unwrap_or(path)
    }
}

/// The mapped files of a process.
///
/// # Errors
///
/// `/proc/PID/maps` cannot be read: the process is gone or belongs to someone else.
pub(crate) fn mapped_images(pid: Pid) -> Result<Vec<MappedImage>, Error> {
    patience::look(pid, move || read(pid))?
}

fn read(pid: Pid) -> Result<Vec<MappedImage>, Error> {
    let maps = File::open(maps_path(pid))?.take(MAPS_BYTES_MAX);
    // Fails for kernel threads, which have no mappings either.
    let executable = fs::read_link(format!("/proc/{}/exe", door(pid))).unwrap_or_default();
    let mut images = Vec::new();
    let mut seen = HashSet::new();
    for line in BufReader::new(maps).split(b'\n') {
        let line = line?;
        let Some((base, path)) = std::str::from_utf8(&line).ok().and_then(image_start) else {
            continue;
        };
        if images.len() < IMAGES_MAX && seen.insert(path.to_owned()) {
            images.push(MappedImage {
                path: path.to_owned(),
                base,
                is_executable: executable.as_os_str() == path,
            });
        }
    }
    Ok(images)
}

/// The file that [`mapped_images`] reads, for error messages.
pub(crate) fn maps_path(pid: Pid) -> String {
    format!("/proc/{}/maps", door(pid))
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

    /// Check that our own executable is listed as such, once.
    #[test]
    fn our_executable_is_listed() {
        let images = mapped_images(Pid(std::process::id())).unwrap();
        let executables: Vec<_> = images.iter().filter(|image| image.is_executable).collect();
        assert_eq!(executables.len(), 1);
        let exe = std::env::current_exe().unwrap();
        assert_eq!(executables[0].path, exe.to_str().unwrap());
    }
}
