//! Opens the files behind mappings.
//!
//! In:  a [`Mapping`]; `/proc/PID/map_files`, `/proc/PID/root`, process memory for the vDSO
//! Out: [`ObjectFile`], [`FileId`]
//! Lost: nothing; what cannot be opened is an error
//!
//! # Which file
//! `/proc/PID/map_files/START-END` is the mapped file itself: it works for deleted files, chroots and
//! containers, and cannot be exchanged. It needs `CAP_SYS_ADMIN` or `CAP_CHECKPOINT_RESTORE`
//! (<https://github.com/torvalds/linux/blob/v6.12/fs/proc/base.c#L2292>). Otherwise the path is tried
//! in the process's root and in ours, and only a regular file with the mapping's inode is taken.
//!
//! # Why read and not mmap
//! The owner of a file can truncate it at any moment, and touching a mapped page behind the new end
//! is a SIGBUS: any user could end the daemon. A read just comes back short. It may also never come back
//! ([`patience`]): only deputies and threads that can be replaced read objects.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::LazyLock;

use super::foreign_file::{self, LastLink};
use super::{Mapping, ProcessMemory, ReadMemory, patience};
use crate::model::Pid;

/// Real vDSO images are 4 to 16 KiB.
const VDSO_BYTES_MAX: u64 = 128 << 10;
/// Allocation step of [`read_range`], so that a size that the file does not have costs nothing.
const READ_STEP_BYTES: usize = 1 << 20;

/// Identity of a file's content: equal as long as nobody wrote to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
    bytes: u64,
    modified_s: i64,
    modified_ns: i64,
}

impl FileId {
    /// The vDSO has no file. It is the same in every process of its kind, but a process can write to
    /// its own copy: only the content tells.
    fn from_image(image: &[u8]) -> Self {
        static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self {
            device: 0,
            inode: HASHER.hash_one(image),
            bytes: image.len() as u64,
            modified_s: 0,
            modified_ns: 0,
        }
    }
}

/// Bytes of an object by file offset: a file, or an image in memory that looks like its file.
pub(crate) struct ObjectFile {
    id: FileId,
    source: Source,
}

enum Source {
    File(File),
    Image(Vec<u8>),
}

impl ObjectFile {
    /// Opens what is mapped: a file or the vDSO.
    ///
    /// # Errors
    ///
    /// The mapping is of neither kind, or its file cannot be opened.
    pub(crate) fn open(pid: Pid, memory: &ProcessMemory, mapping: &Mapping) -> Result<Self, Error> {
        if mapping.is_vdso() {
            return Self::from_vdso(memory, mapping);
        }
        if !mapping.is_file() {
            return Err(Error::new(ErrorKind::NotFound, "anonymous memory"));
        }
        let mapping = mapping.clone();
        patience::look(pid, move || Self::open_file(pid, &mapping))?
    }

    fn open_file(pid: Pid, mapping: &Mapping) -> Result<Self, Error> {
        let path = mapping.bare_path();
        Self::from_path(&mapping.file_path(pid), None)
            .or_else(|_| {
                let file = foreign_file::regular(pid, Path::new(path), LastLink::Follow)?;
                Self::from_file(file)?.with_inode(mapping.inode)
            })
            .or_else(|_| Self::from_path(path, Some(mapping.inode)))
            .map_err(|error| Error::new(error.kind(), format!("failed to open {path}: {error}")))
    }

    fn from_path(path: &str, inode: Option<u64>) -> Result<Self, Error> {
        // A path of another user may lead to a pipe, which must not block us.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)?;
        let object = Self::from_file(file)?;
        match inode {
            Some(inode) => object.with_inode(inode),
            None => Ok(object),
        }
    }

    fn with_inode(self, inode: u64) -> Result<Self, Error> {
        if inode != self.id.inode {
            return Err(Error::new(
                ErrorKind::NotFound,
                "another file has this path",
            ));
        }
        Ok(self)
    }

    /// An object in a file.
    ///
    /// # Errors
    ///
    /// It is not a regular file.
    pub(crate) fn from_file(file: File) -> Result<Self, Error> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(Error::new(ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Self {
            id: FileId {
                device: metadata.dev(),
                inode: metadata.ino(),
                bytes: metadata.size(),
                modified_s: metadata.mtime(),
                modified_ns: metadata.mtime_nsec(),
            },
            source: Source::File(file),
        })
    }

    /// The vDSO's mapping is a whole ELF file, section headers included.
    fn from_vdso(memory: &ProcessMemory, mapping: &Mapping) -> Result<Self, Error> {
        let bytes = (mapping.end - mapping.start).min(VDSO_BYTES_MAX);
        let mut image = vec![0; usize::try_from(bytes).unwrap_or_default()];
        memory.read_exact(mapping.start, &mut image)?;
        Ok(Self::from_image(image))
    }

    /// An object whose bytes are already here.
    pub(crate) fn from_image(image: Vec<u8>) -> Self {
        Self {
            id: FileId::from_image(&image),
            source: Source::Image(image),
        }
    }

    /// Identity of the content, for caches.
    pub(crate) fn id(&self) -> FileId {
        self.id
    }

    /// Size in bytes when it was opened.
    pub(crate) fn bytes(&self) -> u64 {
        self.id.bytes
    }
}

/// Addresses are file offsets.
impl ReadMemory for ObjectFile {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Error> {
        match &self.source {
            Source::File(file) => read_file(file, address, buffer),
            Source::Image(image) => {
                let rest = usize::try_from(address).ok().and_then(|at| image.get(at..));
                let rest = rest.unwrap_or_default();
                let n = rest.len().min(buffer.len());
                buffer[..n].copy_from_slice(&rest[..n]);
                Ok(n)
            }
        }
    }
}

fn read_file(file: &File, offset: u64, buffer: &mut [u8]) -> Result<usize, Error> {
    let mut done = 0;
    while done < buffer.len() {
        patience::note_read();
        match file.read_at(&mut buffer[done..], offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Reads `bytes` bytes at a file offset.
///
/// # Errors
///
/// They are more than `max`, or the object ends before them.
pub(crate) fn read_range(
    object: &dyn ReadMemory,
    offset: u64,
    bytes: u64,
    max: usize,
) -> Result<Vec<u8>, Error> {
    let bytes = usize::try_from(bytes)
        .ok()
        .filter(|&bytes| bytes <= max)
        .ok_or_else(|| Error::new(ErrorKind::InvalidData, "a part of the object is too large"))?;
    let mut read = Vec::new();
    while read.len() < bytes {
        let at = read.len();
        read.resize(bytes.min(at + READ_STEP_BYTES), 0);
        object.read_exact(offset.saturating_add(at as u64), &mut read[at..])?;
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Mappings;
    use crate::process::elf::ElfLayout;

    /// Check that the files of all our mappings and our vDSO can be opened, and that an address of
    /// our own code lies where the headers say.
    #[test]
    fn our_own_objects_can_be_read() {
        let pid = Pid(std::process::id());
        let memory = ProcessMemory::new(pid);
        let mappings = Mappings::read(pid).unwrap();
        let here = our_own_objects_can_be_read as *const () as u64;
        let mut code = [0; 16];
        memory.read_exact(here, &mut code).unwrap();
        let mut vdsos = 0;
        for mapping in mappings.as_slice() {
            if !mapping.is_file() && !mapping.is_vdso() {
                assert!(ObjectFile::open(pid, &memory, mapping).is_err());
                continue;
            }
            vdsos += u32::from(mapping.is_vdso());
            let object = ObjectFile::open(pid, &memory, mapping).unwrap();
            let layout = ElfLayout::read(&object).unwrap();
            assert!(layout.eh_frame_hdr.is_some(), "{mapping:?}");
            let first = layout.address_of(mapping.file_offset);
            assert!(first.is_some(), "{mapping:?}");
            if (mapping.start..mapping.end).contains(&here) {
                let offset = here - mapping.start + mapping.file_offset;
                let address = layout.address_of(offset).unwrap();
                let segment = layout.segment_of(address).unwrap();
                assert_eq!(segment.offset_of(address), Some(offset));
                assert_eq!(read_range(&object, offset, 16, 16).unwrap(), code);
            }
        }
        assert_eq!(vdsos, 1);
    }

    /// Check that a path that now leads to another file, or to a pipe, is refused.
    #[test]
    fn another_file_under_the_same_path_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("object");
        std::fs::write(&path, b"x").unwrap();
        let path = path.to_str().unwrap();
        let inode = std::fs::metadata(path).unwrap().ino();
        assert!(ObjectFile::from_path(path, Some(inode)).is_ok());
        assert!(ObjectFile::from_path(path, Some(inode + 1)).is_err());
        let pipe = directory.path().join("pipe");
        let mode = nix::sys::stat::Mode::S_IRWXU;
        nix::unistd::mkfifo(&pipe, mode).unwrap();
        assert!(ObjectFile::from_path(pipe.to_str().unwrap(), None).is_err());
    }

    /// Check that a file of 100 GB with nothing in it, and an object with so much nothing behind it, take no more than
    /// their headers.
    #[test]
    fn sparse_files_are_not_read_through() {
        const HUGE: u64 = 100 << 30;
        let file = tempfile::tempfile().unwrap();
        file.set_len(HUGE).unwrap();
        assert!(ElfLayout::read(&ObjectFile::from_file(file).unwrap()).is_err());
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &std::fs::read("/bin/true").unwrap()).unwrap();
        file.set_len(HUGE).unwrap();
        let object = ObjectFile::from_file(file).unwrap();
        assert!(ElfLayout::read(&object).unwrap().eh_frame_hdr.is_some());
        assert!(read_range(&object, 0, HUGE, 1 << 30).is_err());
    }

    /// Check that sizes and offsets that the file does not have are errors.
    #[test]
    fn ranges_are_checked() {
        let exe = std::fs::read("/bin/true").unwrap();
        let object = ObjectFile::from_image(exe);
        assert!(read_range(&object, 0, u64::MAX, 1 << 30).is_err());
        assert!(read_range(&object, 0, 1 << 29, 1 << 30).is_err());
        assert!(read_range(&object, u64::MAX, 8, 8).is_err());
        assert_eq!(read_range(&object, 1, 3, 8).unwrap(), b"ELF");
    }
}
