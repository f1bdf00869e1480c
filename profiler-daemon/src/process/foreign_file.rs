//! Opens files as a process sees them: in its root, following its links, and no further.
//!
//! In:  a process and a path in its file system
//! Out: bytes, an open file, or names of a folder's entries
//! Lost: what is beyond a bound
//!
//! A path below `/proc/PID/root` is not enough: an absolute symbolic link on it leads into *our* root,
//! so that a container could name a file of the host and have us read it. `openat2` with
//! `RESOLVE_IN_ROOT` (Linux 5.6) keeps every step inside. What is no regular file is refused before it
//! is read, and opened without waiting: a pipe without a writer would hold us for ever.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::patience;
use super::stand_in::door;
use crate::model::Pid;

/// Most entries of a folder that are read.
const ENTRIES_MAX: usize = 4096;

/// The first `max_bytes` of a regular file.
///
/// # Errors
///
/// It is not there, no regular file, or the process is gone.
pub(super) fn read(pid: Pid, path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let path = path.to_owned();
    patience::look(pid, move || {
        let mut bytes = Vec::new();
        let file = regular(pid, &path, LastLink::Follow)?;
        file.take(max_bytes).read_to_end(&mut bytes)?;
        Ok(bytes)
    })?
}

/// What a symbolic link at the end of a path does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastLink {
    /// It is followed, within the process's root.
    Follow,
    /// It is an error: in a folder where everybody may write, anybody can make a link.
    Refuse,
}

/// Opens a regular file for reading. Its reads may not return: see [`patience`].
///
/// # Errors
///
/// It is not there, no regular file, or the process is gone.
pub(crate) fn regular(pid: Pid, path: &Path, last_link: LastLink) -> io::Result<File> {
    let mut flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    flags.set(OFlag::O_NOFOLLOW, last_link == LastLink::Refuse);
    let file = open(pid, path, flags)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    Ok(file)
}

/// Names in a folder, in no order; none if it cannot be read.
pub(super) fn names(pid: Pid, folder: &Path) -> Vec<String> {
    let folder = folder.to_owned();
    let names = patience::look(pid, move || {
        let opened = open(pid, &folder, OFlag::O_DIRECTORY)?;
        let entries = fs::read_dir(format!("/proc/self/fd/{}", opened.as_raw_fd()))?;
        let names = entries
            .take(ENTRIES_MAX)
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok::<_, io::Error>(names.collect())
    });
    names.flatten().unwrap_or_default()
}

/// Whether a path is a regular file; nothing is read.
pub(super) fn is_file(pid: Pid, path: &Path) -> bool {
    let path = path.to_owned();
    patience::look(pid, move || {
        open(pid, &path, OFlag::O_PATH)?
            .metadata()
            .map(|metadata| metadata.is_file())
    })
    .flatten()
    .unwrap_or(false)
}

/// Where a process stands, as it sees it: relative paths on its command line begin there.
pub(super) fn working_folder(pid: Pid) -> io::Result<PathBuf> {
    let door = door(pid);
    let folder = fs::read_link(format!("/proc/{door}/cwd"))?;
    // A root that is a folder of ours (chroot) is part of the link, that of a container is not.
    let root = fs::read_link(format!("/proc/{door}/root"))?;
    Ok(match folder.strip_prefix(root) {
        Ok(below) => Path::new("/").join(below),
        Err(_) => folder,
    })
}

fn open(pid: Pid, path: &Path, flags: OFlag) -> io::Result<File> {
    let path = path.to_owned();
    patience::look(pid, move || open_now(pid, &path, flags))?
}

fn open_now(pid: Pid, path: &Path, flags: OFlag) -> io::Result<File> {
    let root = File::options()
        .read(true)
        .custom_flags(OFlag::O_PATH.bits() | OFlag::O_DIRECTORY.bits())
        .open(format!("/proc/{}/root", door(pid)))?;
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(File::from(openat2(&root, path, how)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that files are read to a bound, and that what is no file is refused at once.
    #[test]
    fn only_regular_files_are_read() {
        let own = Pid(std::process::id());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        fs::write(&path, "0123456789").unwrap();
        assert_eq!(read(own, &path, 4).unwrap(), b"0123");
        assert_eq!(names(own, folder.path()), ["a.txt"]);
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read(own, &pipe, 4).is_err());
        assert!(read(own, folder.path(), 4).is_err());
        assert!(read(own, Path::new("/proc/self/exe"), 4).is_err());
        assert!(names(own, &path).is_empty());

        assert!(is_file(own, &path));
        for other in [&pipe, folder.path(), Path::new("/proc/self/exe")] {
            assert!(!is_file(own, other), "{}", other.display());
        }
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(is_file(own, &link));
    }

    /// Check that a link at the end of a path is followed or refused as asked.
    #[test]
    fn a_last_link_is_followed_or_refused() {
        let own = Pid(std::process::id());
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "x").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for last_link in [LastLink::Follow, LastLink::Refuse] {
            assert!(regular(own, &file, last_link).is_ok());
        }
        assert!(regular(own, &link, LastLink::Follow).is_ok());
        assert!(regular(own, &link, LastLink::Refuse).is_err());
    }
}
