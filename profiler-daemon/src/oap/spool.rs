//! Keeps results on disk that memory has no room for while no OAP accepts them.
//!
//! In:  [`Item`]s, in order
//! Out: the same, in order, some at a time; also after a restart
//! Lost: items over the limit, and one that is longer than a record may be (refused, the caller counts them); what was being sent when the daemon died,
//!       counted at the next start; records that cannot be read, counted, damaged files moved aside
//!
//! ```text
//! spool/4294967296.7-9   the oldest: 7 records are dealt with, the next 2 are being sent
//! spool/4294967297       written at its end
//! spool/4294967290.damaged   kept for inspection; the last one only
//! ```
//!
//! # Why
//! No snapshot may be sent twice, and which ones the OAP has got is not known after a crash. So a file is
//! renamed, and the name is on the disk, before any of the records it names is sent; those a crash finds
//! named so are not sent again. Records themselves are not forced to the disk: a crash of the daemon does
//! not touch them, and one of the machine tears off the last ones, which is seen.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tracing::warn;

use super::outgoing::Item;
use super::queue::TaskAt;
use super::spool_file::{Broken, FileName, Found, Records, TooLong, record};
use crate::state::private;

/// A file is closed at this size: its room is given back when all of it was dealt with.
const FILE_BYTES: u64 = 4 << 20;
/// Numbers below it are for what has to be sent before the oldest file.
const FIRST_NUMBER: u64 = 1 << 32;

/// The files.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    limit_bytes: u64,
    /// Oldest first, with their sizes.
    files: VecDeque<(FileName, u64)>,
    /// The last of `files`, if it may grow.
    open: Option<File>,
    next: u64,
    /// The first of `files`, if it is being read.
    reading: Option<Records<BufReader<File>>>,
    /// Files with a lower number were left by a daemon before.
    own_from: u64,
}

/// What a crash made uncertain, by task and instance, and records nobody can read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Losses {
    pub(super) uncertain: BTreeMap<TaskAt, Uncertain>,
    pub(super) records: u64,
}

/// What became of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    Written,
    NoRoom,
    /// It would be a record of so many bytes.
    TooLong(usize),
}

/// What was being sent of a task at an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Uncertain {
    pub(super) requests: u64,
    pub(super) segments: u64,
    pub(super) snapshots: u64,
}

/// What was read at a time.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) items: Vec<Item>,
    /// A daemon before has left them.
    pub(super) is_inherited: bool,
    /// Records that cannot be read.
    pub(super) unreadable: u64,
}

impl Spool {
    /// Opens a directory, and creates it if it is missing; also yields the losses of a crash.
    ///
    /// # Errors
    ///
    /// It cannot be made, read or written.
    pub(super) fn open(folder: &Path, limit_bytes: u64) -> Result<(Self, Losses)> {
        let shown = || format!("failed to use the spool {}", folder.display());
        private::folder(folder).with_context(shown)?;
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).with_context(shown)? {
            let entry = entry.with_context(shown)?;
            let name = entry.file_name().to_str().and_then(FileName::parse);
            if let Some(name) = name {
                files.push((name, entry.metadata().with_context(shown)?.len()));
            }
        }
        files.sort_unstable();
        let next = files
            .last()
            .map_or(FIRST_NUMBER, |(name, _)| name.number + 1);
        let mut spool = Self {
            folder: folder.to_owned(),
            limit_bytes,
            files: files.into(),
            open: None,
            next,
            reading: None,
            own_from: next,
        };
        let losses = spool.count_losses().with_context(shown)?;
        Ok((spool, losses))
    }

    /// Counts what was being sent, and takes it as dealt with.
    fn count_losses(&mut self) -> io::Result<Losses> {
        let mut losses = Losses::default();
        for (name, _) in &mut self.files {
            if name.handed == name.dealt {
                continue;
            }
            let mut records = Records::new(private::open(&name.path(&self.folder))?);
            records.skip(name.dealt)?;
            for _ in name.dealt..name.handed {
                match records.next()? {
                    Found::Item(Item::Segment(segment)) => {
                        let lost = losses.uncertain.entry(segment.key.clone()).or_default();
                        lost.requests += 1;
                        lost.segments += u64::from(segment.object.is_some());
                        lost.snapshots += segment.snapshots.len() as u64;
                    }
                    Found::Item(Item::Finish(..)) => {}
                    Found::Unreadable => losses.records += 1,
                    Found::Broken(_) | Found::End => break,
                }
            }
            let now = FileName {
                dealt: name.handed,
                ..*name
            };
            rename(&self.folder, name, now)?;
        }
        Ok(losses)
    }

    /// Nothing waits in it.
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Number of files.
    pub(super) fn files(&self) -> usize {
        self.files.len()
    }

    /// Size of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|&(_, bytes)| bytes).sum()
    }

    /// Adds an item at the end.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub(super) fn push(&mut self, item: &Item) -> io::Result<Pushed> {
        let record = match record(item) {
            Ok(record) => record,
            Err(TooLong(bytes)) => return Ok(Pushed::TooLong(bytes)),
        };
        let length = record.len() as u64;
        if self.bytes() + length > self.limit_bytes {
            return Ok(Pushed::NoRoom);
        }
        let is_full = self
            .files
            .back()
            .is_some_and(|&(_, bytes)| bytes >= FILE_BYTES);
        if is_full || self.open.is_none() {
            let name = FileName::new(self.next);
            self.open = Some(private::create_new(&name.path(&self.folder))?);
            self.files.push_back((name, 0));
            self.next += 1;
        }
        let (Some(file), Some((_, bytes))) = (&mut self.open, self.files.back_mut()) else {
            return Ok(Pushed::NoRoom); // opened above
        };
        if let Err(error) = file.write_all(&record) {
            // The part that was written is cut off; if even that fails, nothing more is appended.
            if file.set_len(*bytes).is_err() {
                self.open = None;
            }
            return Err(error);
        }
        *bytes += length;
        Ok(Pushed::Written)
    }

    /// Puts items before all others, whatever the limit: they were let in before. What was taken last is
    /// dealt with by that. Yields those that are longer than a record may be.
    ///
    /// # Errors
    ///
    /// They cannot be written.
    pub(super) fn put_back<'a>(
        &mut self,
        items: impl Iterator<Item = &'a Item>,
    ) -> io::Result<Vec<&'a Item>> {
        let mut bytes = Vec::new();
        let mut too_long = Vec::new();
        for item in items {
            match record(item) {
                Ok(record) => bytes.extend(record),
                Err(TooLong(_)) => too_long.push(item),
            }
        }
        if !bytes.is_empty() {
            let first = self
                .files
                .front()
                .map_or(self.next, |(name, _)| name.number);
            let name = FileName::new(first - 1);
            let mut file = private::create_new(&name.path(&self.folder))?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            self.dealt_with()?;
            self.reading = None;
            self.files.push_front((name, bytes.len() as u64));
        } else {
            self.dealt_with()?;
        }
        Ok(too_long)
    }

    /// Takes the oldest items, of about so many snapshots. What was taken before is dealt with.
    ///
    /// # Errors
    ///
    /// A file cannot be renamed, read or removed.
    pub(super) fn take(&mut self, snapshots: usize) -> io::Result<Taken> {
        let mut taken = Taken::default();
        while taken.items.is_empty() {
            let Some(&(name, _)) = self.files.front() else {
                break;
            };
            taken.is_inherited = name.number < self.own_from;
            let records = self.read(name, snapshots, &mut taken)?;
            if !taken.items.is_empty() {
                let now = FileName {
                    dealt: name.handed,
                    handed: name.handed + records,
                    ..name
                };
                if let Some((name, _)) = self.files.front_mut() {
                    rename(&self.folder, name, now)?;
                }
            }
        }
        Ok(taken)
    }

    /// Reads on in the oldest file, and is done with it if nothing is left. Yields the number of records read.
    fn read(&mut self, name: FileName, snapshots: usize, taken: &mut Taken) -> io::Result<u64> {
        let path = name.path(&self.folder);
        let mut records = match self.reading.take() {
            Some(records) => records,
            None => {
                let mut records = Records::new(BufReader::new(private::open(&path)?));
                records.skip(name.handed)?;
                records
            }
        };
        let (mut count, mut read) = (0, 0);
        while taken.items.is_empty() || count < snapshots {
            match records.next()? {
                Found::Item(item) => {
                    count += item.snapshots();
                    taken.items.push(item);
                }
                Found::Unreadable => taken.unreadable += 1,
                // Those before it first; it is found again.
                _ if !taken.items.is_empty() => break,
                Found::End => {
                    self.drop_oldest(|path| fs::remove_file(path))?;
                    return Ok(read);
                }
                Found::Broken(Broken::Torn) => {
                    taken.unreadable += 1;
                    let file = path.display();
                    warn!(%file, "the last record of a file of the spool was torn off");
                    self.drop_oldest(|path| fs::remove_file(path))?;
                    return Ok(read);
                }
                Found::Broken(Broken::Damaged) => {
                    taken.unreadable += 1;
                    self.move_aside(&path)?;
                    return Ok(read);
                }
            }
            read += 1;
        }
        self.reading = Some(records);
        Ok(read)
    }

    /// A file whose bytes are not what was written: how many records follow is not known.
    fn move_aside(&mut self, path: &Path) -> io::Result<()> {
        let damaged = |path: &Path| path.extension().is_some_and(|e| e == FileName::DAMAGED);
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if damaged(&path) {
                fs::remove_file(path)?;
            }
        }
        let aside = path.with_extension(FileName::DAMAGED);
        warn!(
            file = %path.display(), now = %aside.display(),
            "a file of the spool is damaged: the profiled requests in its rest are lost"
        );
        self.drop_oldest(|path| fs::rename(path, &aside))
    }

    fn drop_oldest(&mut self, away: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        self.reading = None;
        if let Some((name, _)) = self.files.pop_front() {
            away(&name.path(&self.folder))?;
        }
        if self.files.is_empty() {
            self.open = None;
        }
        Ok(())
    }

    /// All that was taken has been sent, or counted.
    ///
    /// # Errors
    ///
    /// The file cannot be renamed.
    fn dealt_with(&mut self) -> io::Result<()> {
        let Some((name, _)) = self.files.front_mut() else {
            return Ok(());
        };
        let now = FileName {
            dealt: name.handed,
            ..*name
        };
        rename(&self.folder, name, now)
    }
}

/// Gives a file its new name for good: a name that is lost with the power would have records sent twice.
fn rename(folder: &Path, name: &mut FileName, now: FileName) -> io::Result<()> {
    if *name != now {
        fs::rename(name.path(folder), now.path(folder))?;
        *name = now;
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::outgoing::Outgoing;
    use super::super::segment::tests::segment;
    use super::super::spool_file::RECORD_MAX_BYTES;
    use super::*;

    /// Two snapshots.
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

    fn names(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Check that items come back in order over a restart, those put back first, and that nothing stays.
    #[test]
    fn items_come_back_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let (mut spool, losses) = open(folder.path());
        assert_eq!(losses, Losses::default());
        for id in ["c", "d"] {
            assert_eq!(spool.push(&item(id)).unwrap(), Pushed::Written);
        }
        spool.put_back([item("a"), item("b")].iter()).unwrap();
        drop(spool);
        let (mut spool, losses) = open(folder.path());
        assert_eq!(losses, Losses::default());
        assert_eq!(spool.push(&item("e")).unwrap(), Pushed::Written);
        let mut order = Vec::new();
        while !spool.is_empty() {
            let taken = spool.take(3).unwrap();
            assert_eq!(taken.unreadable, 0);
            let own = taken
                .items
                .iter()
                .any(|i| ids(std::slice::from_ref(i)) == ["e"]);
            assert!(taken.items.is_empty() || taken.is_inherited != own);
            order.extend(ids(&taken.items));
        }
        assert_eq!(order, ["a", "b", "c", "d", "e"]);
        assert_eq!(names(folder.path()), Vec::<String>::new());
        assert_eq!(spool.push(&item("f")).unwrap(), Pushed::Written);
        assert_eq!(ids(&spool.take(1).unwrap().items), ["f"]);
    }

    /// Check that what was being sent at a crash is counted and not sent again, that what was sent before
    /// is neither, and that the rest of the file is sent.
    #[test]
    fn only_what_was_being_sent_at_a_crash_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let (mut spool, _) = open(folder.path());
        for id in ["a", "b", "c", "d"] {
            spool.push(&item(id)).unwrap();
        }
        assert_eq!(ids(&spool.take(1).unwrap().items), ["a"]);
        assert_eq!(ids(&spool.take(3).unwrap().items), ["b", "c"]);
        drop(spool);
        let (mut spool, losses) = open(folder.path());
        let key = item("a").key().clone();
        let lost = Uncertain {
            requests: 2,
            segments: 2,
            snapshots: 4,
        };
        assert_eq!(losses.uncertain, BTreeMap::from([(key, lost)]));
        drop(spool);
        (spool, _) = open(folder.path());
        assert_eq!(open(folder.path()).1, Losses::default());
        assert_eq!(ids(&spool.take(9).unwrap().items), ["d"]);
        assert!(spool.take(9).unwrap().items.is_empty());
        assert!(spool.is_empty());
    }

    /// Check that what is put back of something that was taken comes first, and that none of it is counted.
    #[test]
    fn what_is_put_back_is_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let (mut spool, _) = open(folder.path());
        for id in ["a", "b", "c"] {
            spool.push(&item(id)).unwrap();
        }
        let taken = spool.take(4).unwrap();
        assert_eq!(ids(&taken.items), ["a", "b"]);
        spool.put_back(taken.items[1..].iter()).unwrap();
        drop(spool);
        let (mut spool, losses) = open(folder.path());
        assert_eq!(losses, Losses::default());
        assert_eq!(ids(&spool.take(2).unwrap().items), ["b"]);
        assert_eq!(ids(&spool.take(2).unwrap().items), ["c"]);
    }

    /// Check that a file that was torn costs its last record, and that what is written later is read.
    #[test]
    fn a_torn_file_costs_its_last_record() {
        let folder = tempfile::tempdir().unwrap();
        let (mut spool, _) = open(folder.path());
        for id in ["a", "b"] {
            spool.push(&item(id)).unwrap();
        }
        drop(spool);
        let file = folder.path().join(FIRST_NUMBER.to_string());
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
        let (mut spool, _) = open(folder.path());
        spool.push(&item("c")).unwrap();
        let first = spool.take(9).unwrap();
        assert_eq!(
            (ids(&first.items), first.unreadable),
            (vec!["a".to_owned()], 0)
        );
        let second = spool.take(9).unwrap();
        assert_eq!(
            (ids(&second.items), second.unreadable),
            (vec!["c".to_owned()], 1)
        );
    }

    /// Check that a damaged file gives what is before the damage and is moved aside, the last one only.
    #[test]
    fn a_damaged_file_is_moved_aside() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..2 {
            let (mut spool, _) = open(folder.path());
            for id in ["a", "b", "c"] {
                spool.push(&item(id)).unwrap();
            }
            let number = spool.files[0].0.number;
            drop(spool);
            let file = folder.path().join(number.to_string());
            let mut bytes = fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&file, bytes).unwrap();
            let (mut spool, _) = open(folder.path());
            assert_eq!(ids(&spool.take(9).unwrap().items), ["a"]);
            let end = spool.take(9).unwrap();
            assert_eq!((end.items.len(), end.unreadable), (0, 1));
            assert!(spool.is_empty());
            assert_eq!(
                names(folder.path()),
                [format!("{number}.damaged")],
                "{round}"
            );
        }
    }

    /// Check that a full spool refuses the newest.
    #[test]
    fn a_full_spool_refuses_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        let two = 2 * record(&item("a")).unwrap().len() as u64;
        let (mut spool, _) = Spool::open(folder.path(), two).unwrap();
        let taken = ["a", "b", "c"].map(|id| spool.push(&item(id)).unwrap());
        assert_eq!(taken, [Pushed::Written, Pushed::Written, Pushed::NoRoom]);
        assert_eq!(ids(&spool.take(9).unwrap().items), ["a", "b"]);
    }

    /// Check that a request that is longer than a record may be is told from one that has no room, when it comes and
    /// when it is put back, and that the others are kept.
    #[test]
    fn what_is_too_long_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (mut spool, _) = Spool::open(folder.path(), 1 << 30).unwrap();
        let frame = "x".repeat(RECORD_MAX_BYTES as usize);
        let segment = segment("t", "long", &[&frame]);
        let long = Item::Segment(Box::new(Outgoing::new(segment)));
        let Pushed::TooLong(bytes) = spool.push(&long).unwrap() else {
            panic!("a record of more than {RECORD_MAX_BYTES} bytes was written");
        };
        assert!(bytes > RECORD_MAX_BYTES as usize);
        assert!(spool.is_empty());
        let items = [item("a"), long];
        let too_long = spool.put_back(items.iter()).unwrap();
        assert_eq!(too_long, [&items[1]]);
        assert_eq!(ids(&spool.take(9).unwrap().items), ["a"]);
    }
}
