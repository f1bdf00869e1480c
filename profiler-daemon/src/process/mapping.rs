//! Turns `/proc/PID/maps` into the list of a process's [`Mapping`]s.
//!
//! In:  `/proc/PID/maps`
//! Out: [`Mappings`], to [`crate::unwind`] and [`crate::symbolize`]
//! Lost: lines that cannot be parsed, and what follows the first [`MAPPINGS_MAX`] mappings or
//!       [`MAPS_BYTES_MAX`] bytes: code there has no unwind information and no name
//!
//! ```text
//! 7f2a1c028000-7f2a1c1bd000 r-xp 00028000 fe:00 917562     /usr/lib/x86_64-linux-gnu/libc.so.6
//! start        end          perms offset  device inode     path, to the end of the line
//! ```
//!
//! The line is written by
//! <https://github.com/torvalds/linux/blob/v6.12/fs/proc/task_mmu.c#L280>. A process chooses its
//! file names, so a path may hold anything but a newline, which the kernel writes as `\012`.

use std::fs::File;
use std::io::{BufRead, BufReader, Error, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use super::patience;
use super::stand_in::door;
use crate::model::Pid;

/// Most bytes of `/proc/PID/maps` that are read; a line is about 100 bytes, and the kernel's limit
/// of 65,530 mappings per process is seldom raised above four times that.
const MAPS_BYTES_MAX: u64 = 32 << 20;
/// Most executable mappings kept. Large programs have some hundreds.
const MAPPINGS_MAX: usize = 16_384;
/// Name of the mapping of the kernel's vDSO image.
const VDSO: &str = "[vdso]";

/// One executable mapping of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Address of its first byte.
    pub start: u64,
    /// Address after its last byte.
    pub end: u64,
    /// Offset of its first byte in the file.
    pub file_offset: u64,
    /// Device of the file as `major << 32 | minor`, 0 if it has none.
    pub device: u64,
    /// Inode of the file, 0 if it has none.
    pub inode: u64,
    /// Path as the kernel shows it to us, or a name in brackets, or empty.
    pub path: String,
}

impl Mapping {
    /// The last part of the path, without the kernel's mark for deleted files; empty for anonymous
    /// memory.
    #[must_use]
    pub fn file_name(&self) -> &str {
        let path = self.bare_path();
        path.rsplit('/').next().unwrap_or(path)
    }

    /// The path without the kernel's mark for deleted files.
    pub(crate) fn bare_path(&self) -> &str {
        self.path.strip_suffix(" (deleted)").unwrap_or(&self.path)
    }

    /// Whether a file backs it.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.inode != 0
    }

    /// Where the kernel shows the file itself, whatever has become of its path.
    pub(crate) fn file_path(&self, pid: Pid) -> String {
        let door = door(pid);
        format!("/proc/{door}/map_files/{:x}-{:x}", self.start, self.end)
    }

    /// Whether it is the kernel's vDSO image.
    #[must_use]
    pub fn is_vdso(&self) -> bool {
        !self.is_file() && self.path == VDSO
    }

    /// Whether it is the C library or what belongs to it, by its name: the loader, the thread library.
    #[must_use]
    pub fn is_c_library(&self) -> bool {
        is_c_library(self.file_name())
    }

    /// Parses a line of `/proc/PID/maps`; `None` if it is not one, or not executable.
    fn from_line(line: &[u8]) -> Option<Self> {
        let mut fields = line.splitn(6, |&byte| byte == b' ');
        let mut text = || std::str::from_utf8(fields.next()?).ok();
        let (start, end) = text()?.split_once('-')?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let end = u64::from_str_radix(end, 16).ok()?;
        if start >= end || text()?.as_bytes().get(2) != Some(&b'x') {
            return None;
        }
        let file_offset = u64::from_str_radix(text()?, 16).ok()?;
        let (major, minor) = text()?.split_once(':')?;
        let major = u32::from_str_radix(major, 16).ok()?;
        let minor = u32::from_str_radix(minor, 16).ok()?;
        let inode = text()?.parse().ok()?;
        let path = fields.next().unwrap_or_default().trim_ascii_start();
        Some(Self {
            start,
            end,
            file_offset,
            device: u64::from(major) << 32 | u64::from(minor),
            inode,
            path: String::from_utf8_lossy(path).into_owned(),
        })
    }
}

/// Whether a file is, by its name, the C library or what belongs to it: the loader, the thread library.
#[must_use]
pub fn is_c_library(file_name: &str) -> bool {
    const NAMES: [&str; 7] = [
        "libc.so",
        "libc-2.",
        "libpthread",
        "ld-linux",
        "ld-2.",
        "ld-musl-",
        "libc.musl-",
    ];
    NAMES.iter().any(|name| file_name.starts_with(name))
}

/// The executable mappings of a process at one moment.
#[derive(Clone, Debug)]
pub struct Mappings {
    /// By address.
    entries: Vec<Mapping>,
    generation: u64,
}

impl Mappings {
    /// Reads the mappings of a process.
    ///
    /// # Errors
    ///
    /// `/proc/PID/maps` cannot be read: the process is gone or belongs to someone else.
    pub fn read(pid: Pid) -> Result<Self, Error> {
        let path = format!("/proc/{}/maps", door(pid));
        let failed =
            |error: Error| Error::new(error.kind(), format!("failed to read {path}: {error}"));
        let maps = path.clone();
        patience::look(pid, move || Self::parse(File::open(maps)?))
            .flatten()
            .map_err(failed)
    }

    /// Parses the text of a `/proc/PID/maps` file.
    ///
    /// # Errors
    ///
    /// The text cannot be read.
    pub fn parse(text: impl Read) -> Result<Self, Error> {
        let mut entries = Vec::new();
        for line in BufReader::new(text.take(MAPS_BYTES_MAX)).split(b'\n') {
            entries.extend(Mapping::from_line(&line?));
            if entries.len() >= MAPPINGS_MAX {
                break;
            }
        }
        // The kernel writes them in order; `find` must not depend on it.
        entries.sort_by_key(|mapping: &Mapping| mapping.start);
        Ok(Self {
            entries,
            generation: next_generation(),
        })
    }

    /// The mapping that contains `address`.
    #[must_use]
    pub fn find(&self, address: u64) -> Option<&Mapping> {
        self.index_of(address).map(|index| &self.entries[index])
    }

    /// Index of the mapping that contains `address`, valid for this generation.
    #[must_use]
    pub fn index_of(&self, address: u64) -> Option<usize> {
        let after = self.entries.partition_point(|entry| entry.start <= address);
        let index = after.checked_sub(1)?;
        (address < self.entries[index].end).then_some(index)
    }

    /// The mappings by address; positions are those of [`Mappings::index_of`].
    #[must_use]
    pub fn as_slice(&self) -> &[Mapping] {
        &self.entries
    }

    /// A number that no other list has, in any process: what was derived from a list holds while its
    /// generation does.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

fn next_generation() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Mappings {
        Mappings::parse(text.as_bytes()).unwrap()
    }

    /// Check that executable mappings are kept with all their fields, and others are not.
    #[test]
    fn executable_lines_are_parsed() {
        let mappings = parse(concat!(
            "00400000-00401000 r--p 00000000 fe:01 131                        /usr/bin/sleep\n",
            "00401000-00405000 r-xp 00001000 fe:01 131                        /usr/bin/sleep\n",
            "7f00-8000 rw-p 00000000 00:00 0 \n",
            "7ffd1000-7ffd3000 r-xp 00000000 00:00 0                          [vdso]\n",
            "7ffe1000-7ffe3000 rwxp 00000000 00:00 0 \n",
        ));
        let sleep = Mapping {
            start: 0x40_1000,
            end: 0x40_5000,
            file_offset: 0x1000,
            device: 0xfe << 32 | 1,
            inode: 131,
            path: "/usr/bin/sleep".to_owned(),
        };
        assert_eq!(mappings.as_slice()[0], sleep);
        assert_eq!(mappings.as_slice().len(), 3);
        assert!(mappings.as_slice()[1].is_vdso());
        assert_eq!(mappings.as_slice()[2].file_name(), "");
    }

    /// Check that `find` respects both ends of a mapping and the holes between them.
    #[test]
    fn addresses_are_found_in_their_mapping() {
        let mappings = parse(concat!(
            "3000-4000 r-xp 00000000 fe:00 2 /b\n",
            "1000-2000 r-xp 00000000 fe:00 1 /a\n",
        ));
        let name = |address| mappings.find(address).map(Mapping::file_name);
        assert_eq!(name(0xfff), None);
        assert_eq!(name(0x1000), Some("a"));
        assert_eq!(name(0x1fff), Some("a"));
        assert_eq!(name(0x2000), None);
        assert_eq!(name(0x3000), Some("b"));
        assert_eq!(name(u64::MAX), None);
        assert_eq!(parse("").find(0x1000).map(Mapping::file_name), None);
    }

    /// Check that hostile paths are kept as one field, and lines that make no sense are skipped.
    #[test]
    fn hostile_lines_do_no_harm() {
        let line = |path: &str| format!("1000-2000 r-xp 00000000 fe:00 7      {path}\n");
        for (path, name) in [
            ("/tmp/a b  c-x 00:00 9 /etc/passwd", "passwd"),
            (
                "/tmp/x\\0123000-4000 r-xp 0 0:0 1 y",
                "x\\0123000-4000 r-xp 0 0:0 1 y",
            ),
            ("/usr/lib/libfoo.so (deleted)", "libfoo.so"),
            ("/memfd:jit (deleted)", "memfd:jit"),
            ("/tmp/dir/", ""),
        ] {
            let mappings = parse(&line(path));
            assert_eq!(mappings.as_slice()[0].path, path);
            assert_eq!(mappings.as_slice()[0].file_name(), name);
        }
        let not_utf8 = [
            b"1000-2000 r-xp 00000000 fe:00 7 /\xff\xfe".as_slice(),
            b"\n",
        ]
        .concat();
        assert_eq!(
            Mappings::parse(&not_utf8[..]).unwrap().as_slice()[0].file_name(),
            "\u{fffd}\u{fffd}"
        );
        for line in [
            "",
            " ",
            "-",
            "1000-2000",
            "2000-1000 r-xp 00000000 fe:00 7 /x",
            "1000-1000 r-xp 00000000 fe:00 7 /x",
            "1000-2000 r- 00000000 fe:00 7 /x",
            "1000-2000 r-xp zz fe:00 7 /x",
            "1000-2000 r-xp 0 fe 7 /x",
            "1000-2000 r-xp 0 fe:00 -7 /x",
            "1000-2000 r-xp 0 fe:00",
            "11111111111111111-22222222222222222 r-xp 0 fe:00 7 /x",
        ] {
            assert!(parse(line).as_slice().is_empty(), "{line}");
        }
    }

    /// Check that our own code is found in our own mappings.
    #[test]
    fn our_own_code_is_mapped() {
        let mappings = Mappings::read(Pid(std::process::id())).unwrap();
        let here = our_own_code_is_mapped as *const () as u64;
        let exe = std::env::current_exe().unwrap();
        assert_eq!(
            mappings.find(here).map(|mapping| mapping.path.as_str()),
            exe.to_str()
        );
    }
}
