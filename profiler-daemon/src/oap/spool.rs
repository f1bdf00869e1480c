//! Keeps on disk what the memory has no room for while no OAP takes it.
//!
//! In:  [`Item`]s, in order
//! Out: the same, in order, a file at a time; also after a restart
//! Lost: items over the limit (refused, the caller counts them); what was being sent when the daemon died,
//!       counted at the next start; records that cannot be read, counted
//!
//! ```text
//! spool/4294967296   | length u32 | CRC-32 u32 | SpoolRecord | length | ...      little-endian
//! spool/4294967297   written at its end; the oldest file is read first
//! spool/4294967295.taken   being sent; removed when all of it was dealt with
//! ```
//!
//! # Why
//! No snapshot may be sent twice, and which ones the OAP has got is not known after a crash. So a file is
//! renamed before the first of its records is sent, and one that is found renamed is not sent again.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::outgoing::Item;
use super::queue::TaskAt;

/// A file is closed at this size: as much is read into memory, and lost with a crash, at a time.
const FILE_BYTES: u64 = 4 << 20;
/// Longest record: a request of 12,000 snapshots of 500 frames that are all different is shorter.
const RECORD_MAX_BYTES: u32 = 256 << 20;
const HEADER_BYTES: usize = 8;
/// Numbers below it are for what has to be sent before the oldest file.
const FIRST_NUMBER: u64 = 1 << 32;
const TAKEN: &str = "taken";

/// The files.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    limit_bytes: u64,
    /// Number and size of each, oldest first.
    files: VecDeque<(u64, u64)>,
    /// The last of `files`, if it may grow.
    open: Option<File>,
    next: u64,
    taken: Option<PathBuf>,
}

/// Snapshots that a crash made uncertain, by task and instance, and records nobody can read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Losses {
    pub(super) snapshots: BTreeMap<TaskAt, u64>,
    pub(super) records: u64,
}

impl Spool {
    /// Opens a folder, and makes it if it is not there; also tells what a crash has cost.
    ///
    /// # Errors
    ///
    /// It cannot be made or read.
    pub(super) fn open(folder: &Path, limit_bytes: u64) -> Result<(Self, Losses)> {
        let shown = || format!("failed to use the spool {}", folder.display());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(shown)?;
        let mut spool = Self {
            folder: folder.to_owned(),
            limit_bytes,
            files: VecDeque::new(),
            open: None,
            next: FIRST_NUMBER,
            taken: None,
        };
        let mut losses = Losses::default();
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).with_context(shown)? {
            let entry = entry.with_context(shown)?;
            let path = entry.path();
            let number = path
                .file_stem()
                .and_then(|name| name.to_str()?.parse().ok());
            let Some(number) = number else { continue };
            if path.extension().is_some_and(|extension| extension == TAKEN) {
                losses.add(&path).with_context(shown)?;
                fs::remove_file(&path).with_context(shown)?;
            } else if path.extension().is_none() {
                files.push((number, entry.metadata().with_context(shown)?.len()));
            }
        }
        files.sort_unstable();
        spool.next = files.last().map_or(FIRST_NUMBER, |&(number, _)| number + 1);
        spool.files = files.into();
        Ok((spool, losses))
    }

    /// Nothing waits in it.
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Adds an item at the end. `Ok(false)` if there is no room.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub(super) fn push(&mut self, item: &Item) -> io::Result<bool> {
        let record = record(item);
        let used: u64 = self.files.iter().map(|&(_, bytes)| bytes).sum();
        if used + record.len() as u64 > self.limit_bytes {
            return Ok(false);
        }
        let is_full = self
            .files
            .back()
            .is_some_and(|&(_, bytes)| bytes >= FILE_BYTES);
        let mut file = match self.open.take().filter(|_| !is_full) {
            Some(file) => file,
            None => {
                let file = File::create_new(self.path(self.next))?;
                self.files.push_back((self.next, 0));
                self.next += 1;
                file
            }
        };
        // A record that is written in part ends the file: what would follow could not be found.
        file.write_all(&record)?;
        self.open = Some(file);
        if let Some((_, bytes)) = self.files.back_mut() {
            *bytes += record.len() as u64;
        }
        Ok(true)
    }

    /// Puts items before all others, whatever the limit: they were let in before. They replace the file
    /// that was taken last.
    ///
    /// # Errors
    ///
    /// They cannot be written.
    pub(super) fn put_back<'a>(&mut self, items: impl Iterator<Item = &'a Item>) -> io::Result<()> {
        let bytes: Vec<u8> = items.flat_map(record).collect();
        if !bytes.is_empty() {
            let first = self.files.front().map_or(self.next, |&(number, _)| number);
            let number = first - 1;
            fs::write(self.path(number), &bytes)?;
            self.files.push_front((number, bytes.len() as u64));
        }
        self.dealt_with()
    }

    /// Takes the oldest file; what cannot be read of it is counted.
    ///
    /// # Errors
    ///
    /// It cannot be renamed or read.
    pub(super) fn take(&mut self) -> io::Result<Option<(Vec<Item>, u64)>> {
        self.dealt_with()?;
        let Some((number, _)) = self.files.pop_front() else {
            return Ok(None);
        };
        if self.files.is_empty() {
            self.open = None;
        }
        let taken = self.path(number).with_extension(TAKEN);
        fs::rename(self.path(number), &taken)?;
        self.taken = Some(taken.clone());
        read(&mut File::open(&taken)?).map(Some)
    }

    /// All that was taken has been sent, or counted.
    ///
    /// # Errors
    ///
    /// Its file cannot be removed.
    pub(super) fn dealt_with(&mut self) -> io::Result<()> {
        match self.taken.take() {
            Some(taken) => fs::remove_file(taken),
            None => Ok(()),
        }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(number.to_string())
    }
}

impl Losses {
    fn add(&mut self, path: &Path) -> io::Result<()> {
        let (items, unreadable) = read(&mut File::open(path)?)?;
        self.records += unreadable;
        for item in items.iter().filter(|item| item.snapshots() > 0) {
            *self.snapshots.entry(item.key().clone()).or_default() += item.snapshots() as u64;
        }
        Ok(())
    }
}

fn record(item: &Item) -> Vec<u8> {
    let payload = item.encode();
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut record = Vec::with_capacity(HEADER_BYTES + payload.len());
    record.extend(length.to_le_bytes());
    record.extend(crc32fast::hash(&payload).to_le_bytes());
    record.extend(payload);
    record
}

/// All records of a file, and how many there are that cannot be read: one whose end is missing, and
/// everything behind one whose bytes are not what was written, counted as one.
pub(super) fn read(file: &mut impl Read) -> io::Result<(Vec<Item>, u64)> {
    let mut items = Vec::new();
    let mut unreadable = 0;
    loop {
        let mut header = Vec::with_capacity(HEADER_BYTES);
        file.take(HEADER_BYTES as u64).read_to_end(&mut header)?;
        let Some((length, rest)) = header.split_first_chunk() else {
            unreadable += u64::from(!header.is_empty());
            break;
        };
        let length = u32::from_le_bytes(*length);
        let mut payload = Vec::new();
        file.take(u64::from(length.min(RECORD_MAX_BYTES)))
            .read_to_end(&mut payload)?;
        if payload.len() as u64 != u64::from(length)
            || rest != crc32fast::hash(&payload).to_le_bytes()
        {
            unreadable += 1;
            break;
        }
        match Item::decode(&payload) {
            Some(item) => items.push(item),
            None => unreadable += 1,
        }
    }
    Ok((items, unreadable))
}

#[cfg(test)]
mod tests {
    use super::super::outgoing::Outgoing;
    use super::super::segment::tests::segment;
    use super::*;

    fn item(id: &str) -> Item {
        Item::Segment(Box::new(Outgoing::new(segment(
            "t",
            id,
            &["main>a", "main>b"],
        ))))
    }

    fn ids(items: &[Item]) -> Vec<String> {
        let id = |item: &Item| match item {
            Item::Segment(segment) => segment.segment_id.clone(),
            Item::Finish(..) => "end".to_owned(),
        };
        items.iter().map(id).collect()
    }

    fn open(folder: &Path) -> (Spool, Losses) {
        Spool::open(folder, 1 << 20).unwrap()
    }

    /// Check that items come back in order over a restart, those put back first, and that nothing stays.
    #[test]
    fn items_come_back_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let (mut spool, losses) = open(folder.path());
        assert_eq!(losses, Losses::default());
        for id in ["c", "d"] {
            assert!(spool.push(&item(id)).unwrap());
        }
        spool.put_back([item("a"), item("b")].iter()).unwrap();
        drop(spool);
        let (mut spool, losses) = open(folder.path());
        assert_eq!(losses, Losses::default());
        assert!(spool.push(&item("e")).unwrap());
        let mut order = Vec::new();
        while let Some((items, unreadable)) = spool.take().unwrap() {
            order.extend(ids(&items));
            assert_eq!(unreadable, 0);
        }
        assert_eq!(order, ["a", "b", "c", "d", "e"]);
        assert!(spool.is_empty());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(spool.push(&item("f")).unwrap());
        assert_eq!(ids(&spool.take().unwrap().unwrap().0), ["f"]);
    }

    /// Check that what was being sent at a crash is not sent again, but counted by task.
    #[test]
    fn what_was_being_sent_at_a_crash_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let (mut spool, _) = open(folder.path());
        for id in ["a", "b"] {
            spool.push(&item(id)).unwrap();
        }
        spool.take().unwrap().unwrap();
        drop(spool);
        let (spool, losses) = open(folder.path());
        assert!(spool.is_empty());
        let key = item("a").key().clone();
        assert_eq!(losses.snapshots, BTreeMap::from([(key, 4)]));
        assert_eq!(open(folder.path()).1, Losses::default());
    }

    /// Check that a torn end costs the last record alone, and damage what follows it, counted.
    #[test]
    fn a_torn_file_keeps_what_is_whole() {
        let bytes: Vec<u8> = ["a", "b", "c"]
            .into_iter()
            .flat_map(|id| record(&item(id)))
            .collect();
        let one = record(&item("a")).len();
        let (items, unreadable) = read(&mut &bytes[..]).unwrap();
        assert_eq!(
            (ids(&items), unreadable),
            (["a", "b", "c"].map(str::to_owned).to_vec(), 0)
        );
        for cut in [1, HEADER_BYTES, one - 1] {
            let (items, unreadable) = read(&mut &bytes[..2 * one + cut]).unwrap();
            assert_eq!(
                (ids(&items), unreadable),
                (["a", "b"].map(str::to_owned).to_vec(), 1),
                "{cut}"
            );
        }
        let mut damaged = bytes;
        damaged[one + HEADER_BYTES] ^= 1;
        let (items, unreadable) = read(&mut &damaged[..]).unwrap();
        assert_eq!((ids(&items), unreadable), (vec!["a".to_owned()], 1));
    }

    /// Check that a full spool refuses the newest.
    #[test]
    fn a_full_spool_refuses_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        let two = 2 * record(&item("a")).len() as u64;
        let (mut spool, _) = Spool::open(folder.path(), two).unwrap();
        let taken: Vec<bool> = ["a", "b", "c"]
            .map(|id| spool.push(&item(id)).unwrap())
            .into();
        assert_eq!(taken, [true, true, false]);
        assert_eq!(ids(&spool.take().unwrap().unwrap().0), ["a", "b"]);
    }
}
