//! Finds the file that keeps what was stripped from an object.
//!
//! In:  an object and where it is mapped from
//! Out: the debug file, checked to be the object's
//! Lost: debug files larger than [`CHECKED_BYTES_MAX`] that only `.gnu_debuglink` names
//!
//! | named by | looked for |
//! |---|---|
//! | build ID | `/usr/lib/debug/.build-id/xx/yyyy.debug`, in the root of the process and in ours |
//! | `.gnu_debuglink` | beside the object, in `.debug` beside it, in the object's folder below `/usr/lib/debug`; in the root of the process |
//!
//! <https://sourceware.org/gdb/current/onlinedocs/gdb.html/Separate-Debug-Files.html>

use std::fs::OpenOptions;
use std::io::Error;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::model::Pid;
use crate::process::elf::ElfLayout;
use crate::process::foreign_file::{self, LastLink};
use crate::process::object::{ObjectFile, read_range};
use crate::process::{Mapping, ReadMemory};

const DEBUG_FOLDER: &str = "/usr/lib/debug";
const BUILD_ID_BYTES_MAX: usize = 64;
/// A file name, filled up to four bytes, and a checksum.
const LINK_BYTES_MAX: usize = 256 + 8;
/// Largest file that a checksum is made of: a second's work.
const CHECKED_BYTES_MAX: u64 = 1 << 30;
/// Read at once.
const STEP_BYTES: usize = 1 << 20;

/// Opens the debug file of an object that a process has mapped.
pub(super) fn open(
    pid: Pid,
    mapping: &Mapping,
    object: &ObjectFile,
    layout: &ElfLayout,
) -> Option<ObjectFile> {
    by_build_id(pid, object, layout).or_else(|| by_link(pid, mapping, object, layout))
}

fn by_build_id(pid: Pid, object: &ObjectFile, layout: &ElfLayout) -> Option<ObjectFile> {
    let id = build_id(object, layout)?;
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let (folder, file) = hex.split_at(2);
    let path = format!("{DEBUG_FOLDER}/.build-id/{folder}/{file}.debug");
    let is_its = |debug: &ObjectFile| {
        let layout = ElfLayout::read(debug).ok();
        layout.and_then(|layout| build_id(debug, &layout)) == Some(id.clone())
    };
    let inside = open_inside(pid, Path::new(&path)).ok().filter(is_its);
    inside.or_else(|| open_ours(&path).ok().filter(is_its))
}

/// u32 length of the owner, u32 length of the ID, u32 type, "GNU\0", ID
fn build_id(object: &ObjectFile, layout: &ElfLayout) -> Option<Vec<u8>> {
    let section = layout.section_named(object, ".note.gnu.build-id")?;
    let note = read_range(object, section.offset, section.bytes, BUILD_ID_BYTES_MAX).ok()?;
    let id = note.get(16..).filter(|id| id.len() > 2)?;
    Some(id.to_vec())
}

fn by_link(
    pid: Pid,
    mapping: &Mapping,
    object: &ObjectFile,
    layout: &ElfLayout,
) -> Option<ObjectFile> {
    let section = layout.section_named(object, ".gnu_debuglink")?;
    let link = read_range(object, section.offset, section.bytes, LINK_BYTES_MAX).ok()?;
    let (name, checksum) = parse_link(&link)?;
    let path = mapping.bare_path();
    let folder = Path::new(path).parent()?;
    let below_debug = Path::new(DEBUG_FOLDER).join(folder.strip_prefix("/").ok()?);
    let places = [folder.to_owned(), folder.join(".debug"), below_debug];
    places.into_iter().find_map(|place| {
        let debug = open_inside(pid, &place.join(name)).ok()?;
        let is_other = debug.id() != object.id();
        (is_other && checksum_of(&debug) == Some(checksum)).then_some(debug)
    })
}

/// The file's name and the checksum of its content.
fn parse_link(link: &[u8]) -> Option<(&str, u32)> {
    let end = link.iter().position(|&byte| byte == 0)?;
    let name = std::str::from_utf8(&link[..end]).ok()?;
    let is_name = !name.is_empty() && !name.contains('/') && name != "..";
    let checksum = link.get((end + 1).next_multiple_of(4)..)?.first_chunk()?;
    is_name.then(|| (name, u32::from_ne_bytes(*checksum)))
}

fn checksum_of(object: &ObjectFile) -> Option<u32> {
    if object.bytes() > CHECKED_BYTES_MAX {
        return None;
    }
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; STEP_BYTES];
    let mut done = 0;
    while done < object.bytes() {
        let read = object
            .read(done, &mut buffer)
            .ok()
            .filter(|&read| read > 0)?;
        hasher.update(&buffer[..read]);
        done += read as u64;
    }
    Some(hasher.finalize())
}

fn open_inside(pid: Pid, path: &Path) -> Result<ObjectFile, Error> {
    ObjectFile::from_file(foreign_file::regular(pid, path, LastLink::Follow)?)
}

fn open_ours(path: &str) -> Result<ObjectFile, Error> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    ObjectFile::from_file(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a link is a name and a checksum, at the next multiple of four, and that it cannot leave its folder.
    #[test]
    fn links_are_parsed() {
        let link = |name: &[u8]| {
            let mut link = name.to_vec();
            link.resize((name.len() + 1).next_multiple_of(4), 0);
            link.extend_from_slice(&7_u32.to_ne_bytes());
            link
        };
        assert_eq!(parse_link(&link(b"a.debug")), Some(("a.debug", 7)));
        assert_eq!(parse_link(&link(b"abc")), Some(("abc", 7)));
        assert_eq!(parse_link(&link(b"abc.")), Some(("abc.", 7)));
        for bad in [&b""[..], b"..", b"../x", b"/etc/x", b"\xff"] {
            assert_eq!(parse_link(&link(bad)), None, "{bad:?}");
        }
        assert_eq!(parse_link(b"abc\0\0\0"), None);
        assert_eq!(parse_link(b"abc"), None);
    }
}
