//! Follows the perf maps of processes while they are written.
//!
//! In:  `/tmp/perf-PID.map` as the process sees it
//! Out: the name of the function at an address of its generated code
//! Lost: what follows the first [`FILE_BYTES_MAX`] bytes of a map; maps of others than the process's user and
//!       root; the least used maps beyond [`MAPS_BYTES_MAX`], until they are read again
//!
//! # What is read
//! A map only grows, so a look reads what was added since the last one, up to the last whole line. A map is read from
//! its start when another file has taken its place, when it has become shorter, and when the bytes before its
//! tail are others than they were.
//!
//! # Whose map
//! The path is followed inside the process's root, where a link named `/tmp` cannot lead to a file of the host. A link in
//! the place of the map is refused: anybody may write to `/tmp`.

use std::fs::File;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::perf_map::PerfMap;
use crate::model::{Pid, ProcessKey, Tid};
use crate::process::foreign_file::{self, LastLink};
use crate::process::procfs::Procfs;
use crate::process::python::innermost_tid;

/// Most bytes of a map that are read. node writes about 100 bytes per function, some 50,000 times.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Most bytes read by one look: 16 MiB take about a tenth of a second.
const LOOK_BYTES_MAX: u64 = 16 << 20;
/// Read at once.
const STEP_BYTES: usize = 1 << 20;
/// Memory for the maps of all processes. That of a large node service takes 10 MiB.
const MAPS_BYTES_MAX: usize = 96 << 20;
/// Least time between two looks at a file.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Least time before a map that made room for others is read again: two large ones must not take turns.
const REREAD_INTERVAL: Duration = Duration::from_secs(30);
/// Bytes before the tail that tell whether the file is still the one that was read.
const SEAM_BYTES: usize = 256;

/// The perf maps of all processes, the most recently used first.
pub(super) struct PerfMaps {
    followed: LruCache<ProcessKey, Followed>,
    bytes_max: usize,
}

/// A perf map that is being written.
struct Followed {
    pid: Pid,
    /// `None` if the process was gone when it was first asked about.
    path: Option<PathBuf>,
    /// When to look again.
    due: Option<Instant>,
    version: Option<Version>,
    /// Bytes that were taken over, all of them whole lines.
    taken: u64,
    /// The last of them.
    seam: Vec<u8>,
    map: PerfMap,
}

/// Equal as long as nobody wrote to the file.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    bytes: u64,
    modified_s: i64,
    modified_ns: i64,
}

impl PerfMaps {
    pub(super) fn new() -> Self {
        Self {
            followed: LruCache::unbounded(),
            bytes_max: MAPS_BYTES_MAX,
        }
    }

    /// The function at an address of a process. Its map is read when first asked for.
    pub(super) fn find(&mut self, process: ProcessKey, address: u64) -> Option<&str> {
        if !self.followed.contains(&process) {
            self.followed.put(process, Followed::new(process.pid));
            self.look(process, Instant::now());
        }
        self.followed.get(&process)?.map.find(address)
    }

    /// Reads what was added to a map that has been asked for, at most once a second. Returns whether names may have
    /// changed.
    pub(super) fn refresh(&mut self, process: ProcessKey) -> bool {
        self.look(process, Instant::now())
    }

    /// Drops the map of a process.
    pub(super) fn forget(&mut self, process: ProcessKey) {
        self.followed.pop(&process);
    }

    fn look(&mut self, process: ProcessKey, now: Instant) -> bool {
        let Some(followed) = self.followed.get_mut(&process) else {
            return false;
        };
        if followed.due.is_some_and(|due| now < due) {
            return false;
        }
        followed.due = Some(now + LOOK_INTERVAL);
        let is_changed = followed.follow().unwrap_or(false);
        if is_changed {
            self.make_room(now);
        }
        is_changed
    }

    /// The map used last stays, however large.
    fn make_room(&mut self, now: Instant) {
        let maps = self.followed.iter().map(|(_, followed)| followed);
        let mut sum: usize = maps.map(|followed| followed.map.bytes()).sum();
        for (_, followed) in self.followed.iter_mut().skip(1).rev() {
            if sum <= self.bytes_max {
                return;
            }
            let bytes = followed.map.bytes();
            if bytes > 0 {
                sum -= bytes;
                followed.restart();
                followed.due = Some(now + REREAD_INTERVAL);
            }
        }
    }
}

impl Followed {
    fn new(pid: Pid) -> Self {
        // The name has the id that the process knows itself by.
        let own_pid = innermost_tid(pid, Tid(pid.0)).ok();
        Self {
            pid,
            path: own_pid.map(|own_pid| format!("/tmp/perf-{own_pid}.map").into()),
            due: None,
            version: None,
            taken: 0,
            seam: Vec::new(),
            map: PerfMap::default(),
        }
    }

    /// Forgets what was read.
    fn restart(&mut self) {
        self.version = None;
        self.taken = 0;
        self.seam.clear();
        self.map = PerfMap::default();
    }

    /// Takes over what was written since the last time. Returns whether that was anything.
    fn follow(&mut self) -> Result<bool, Error> {
        let path = self.path.as_deref().ok_or(ErrorKind::NotFound)?;
        let file = foreign_file::regular(self.pid, path, LastLink::Refuse)?;
        let metadata = file.metadata()?;
        let version = Version {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
        };
        if self.version == Some(version) || !self.is_trusted(metadata.uid()) {
            return Ok(false);
        }
        let was_taken = self.taken;
        let is_another = self.version.is_some() && !self.continues(&file, &version)?;
        if is_another {
            self.restart();
        }
        self.version = Some(version);
        let is_whole = self.take(&file)?;
        if !is_whole {
            // The next look goes on where this one stopped, changed or not.
            self.version = self.version.map(|version| Version {
                modified_ns: -1,
                ..version
            });
        }
        Ok(is_another || self.taken != was_taken)
    }

    /// The map names functions of one user's process: nobody else but root may write it, as perf has it.
    fn is_trusted(&self, owner: u32) -> bool {
        owner == 0 || Procfs::default().effective_uid(self.pid) == Some(owner)
    }

    /// Whether a file begins with what was taken over.
    fn continues(&self, file: &File, version: &Version) -> Result<bool, Error> {
        let is_same = |known: &Version| {
            (known.device, known.inode) == (version.device, version.inode)
                && self.taken <= version.bytes
        };
        if !self.version.as_ref().is_some_and(is_same) {
            return Ok(false);
        }
        let mut seam = vec![0; self.seam.len()];
        file.read_exact_at(&mut seam, self.taken - self.seam.len() as u64)?;
        Ok(seam == self.seam)
    }

    /// Takes over whole lines. Returns whether the file's end was reached.
    fn take(&mut self, file: &File) -> Result<bool, Error> {
        let end = FILE_BYTES_MAX.min(self.taken + LOOK_BYTES_MAX);
        let mut buffer = vec![0; STEP_BYTES];
        while self.taken < end {
            let read = read_at(file, self.taken, &mut buffer)?;
            // The last line may still be written; a line as long as the buffer is none.
            let lines = buffer[..read].iter().rposition(|&byte| byte == b'\n');
            let Some(lines) = lines.map(|newline| &buffer[..=newline]) else {
                return Ok(true);
            };
            self.map.append(lines);
            self.taken += lines.len() as u64;
            self.seam = lines[lines.len().saturating_sub(SEAM_BYTES)..].to_vec();
            if read < buffer.len() {
                return Ok(true);
            }
        }
        Ok(end == FILE_BYTES_MAX)
    }
}

fn read_at(file: &File, offset: u64, buffer: &mut [u8]) -> Result<usize, Error> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    /// A map of ours in a place of its own: tests run side by side in one process.
    struct Fixture {
        _folder: tempfile::TempDir,
        path: PathBuf,
        maps: PerfMaps,
        now: Instant,
    }

    fn own() -> ProcessKey {
        let pid = Pid(std::process::id());
        Procfs::default().key(pid).unwrap()
    }

    impl Fixture {
        fn new(text: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("perf.map");
            fs::write(&path, text).unwrap();
            let mut maps = PerfMaps::new();
            let followed = Followed {
                path: Some(path.clone()),
                ..Followed::new(own().pid)
            };
            maps.followed.put(own(), followed);
            Self {
                _folder: folder,
                path,
                maps,
                now: Instant::now(),
            }
        }

        fn look(&mut self) -> bool {
            self.now += LOOK_INTERVAL;
            self.maps.look(own(), self.now)
        }

        fn find(&mut self, address: u64) -> Option<&str> {
            self.maps.find(own(), address)
        }

        fn append(&self, text: &str) {
            let mut file = File::options().append(true).open(&self.path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }
    }

    /// Check that a map is read from where the runtime writes it, and at most once a second.
    #[test]
    fn a_map_is_read_from_the_process() {
        let path = format!("/tmp/perf-{}.map", std::process::id());
        fs::write(&path, "1000 10 whole\n2000 10 hal").unwrap();
        let mut maps = PerfMaps::new();
        assert!(!maps.refresh(own()), "nobody has asked for it");
        assert_eq!(maps.find(own(), 0x1000), Some("whole"));
        assert_eq!(maps.find(own(), 0x2000), None);
        fs::write(&path, "1000 10 whole\n2000 10 half\n").unwrap();
        assert!(!maps.refresh(own()), "too soon");
        fs::remove_file(&path).unwrap();
    }

    /// Check that only what was added is read: a line changed behind our back keeps its old name.
    #[test]
    fn only_the_tail_is_read() {
        let filler = "9000 10 filler\n".repeat(50);
        let mut fixture = Fixture::new(&format!("1000 10 first\n{filler}2000 10 hal"));
        assert!(fixture.look());
        assert!(!fixture.look(), "nothing was written");
        assert_eq!(fixture.find(0x2000), None);
        let file = File::options().write(true).open(&fixture.path).unwrap();
        file.write_all_at(b"1000 10 FIRST\n", 0).unwrap();
        fixture.append("f\n3000 10 third\n");
        assert!(fixture.look());
        assert_eq!(fixture.find(0x1000), Some("first"));
        assert_eq!(fixture.find(0x2000), Some("half"));
        assert_eq!(fixture.find(0x3000), Some("third"));
    }

    /// Check that a map that was cut, written anew in its place, or replaced by another file is read from its start.
    #[test]
    fn another_map_is_read_from_its_start() {
        let mut fixture = Fixture::new("1000 10 a\n2000 10 b\n");
        assert!(fixture.look());
        fs::write(&fixture.path, "3000 10 c\n").unwrap();
        assert!(fixture.look());
        assert_eq!(fixture.find(0x1000), None);
        assert_eq!(fixture.find(0x3000), Some("c"));
        fs::write(&fixture.path, "4000 10 d\n5000 10 e\n").unwrap();
        assert!(fixture.look());
        assert_eq!(fixture.find(0x3000), None);
        assert_eq!(fixture.find(0x5000), Some("e"));
        let other = fixture.path.with_extension("other");
        fs::write(&other, "4000 10 d\n5000 10 f\n6000 10 g\n").unwrap();
        fs::rename(&other, &fixture.path).unwrap();
        assert!(fixture.look());
        assert_eq!(fixture.find(0x5000), Some("f"));
        fs::remove_file(&fixture.path).unwrap();
        assert!(!fixture.look());
        assert_eq!(
            fixture.find(0x6000),
            Some("g"),
            "what was described still runs"
        );
    }

    /// Check that a link in the place of the map is not followed, wherever it leads.
    #[test]
    fn a_link_is_refused() {
        let mut fixture = Fixture::new("1000 10 a\n");
        let link = fixture.path.with_extension("link");
        std::os::unix::fs::symlink(&fixture.path, &link).unwrap();
        fs::rename(&link, &fixture.path).unwrap();
        assert!(!fixture.look());
        assert_eq!(fixture.find(0x1000), None);
    }

    /// Check that a map larger than one look is read by several, and that the least used map makes room and comes
    /// back later.
    #[test]
    fn maps_are_bounded() {
        let line = format!("1000 10 {}\n", "x".repeat(1000));
        let lines = (LOOK_BYTES_MAX as usize + 2 * STEP_BYTES) / line.len();
        let mut fixture = Fixture::new(&(line.repeat(lines) + "2000 10 last\n"));
        assert!(fixture.look());
        assert_eq!(fixture.find(0x2000), None);
        assert!(fixture.look(), "the rest");
        assert_eq!(fixture.find(0x2000), Some("last"));
        assert!(!fixture.look());

        // Another process takes all the room.
        fixture.maps.bytes_max = 1;
        let other = ProcessKey {
            pid: Pid(1),
            start_ticks: 0,
        };
        let followed = Followed {
            path: Some(fixture.path.clone()),
            ..Followed::new(own().pid)
        };
        fixture.maps.followed.put(other, followed);
        assert!(fixture.maps.look(other, fixture.now));
        assert_eq!(fixture.find(0x2000), None);
        assert!(!fixture.look(), "it would push out the other at once");
        fixture.now += REREAD_INTERVAL;
        assert!(fixture.look());
        let map = &fixture.maps.followed.peek(&other).unwrap().map;
        assert_eq!(map.bytes(), 0);
    }
}
