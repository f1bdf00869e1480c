//! A file of the [`super::spool`]: its name says how far it was sent, its bytes are records.
//!
//! In:  [`Item`]s; bytes that a daemon before has left
//! Out: records; [`Found`]s
//! Lost: records that cannot be read are told apart by what has to follow, see [`Found`]
//!
//! | length u32 | CRC-32 u32 | `SpoolRecord` | length | ...      little-endian

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::outgoing::Item;

/// Longest record: a request of 12,000 snapshots of 500 frames that are all different is shorter.
pub(super) const RECORD_MAX_BYTES: u32 = 32 << 20;
const HEADER_BYTES: usize = 8;
/// No daemon lives long enough for these; arithmetic below them does not overflow.
const NUMBERS_END: u64 = 1 << 62;
const POSITIONS_END: u64 = 1 << 62;

/// The name of a file: `NUMBER`, or `NUMBER.DEALT-HANDED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileName {
    pub(super) number: u64,
    /// Records at its beginning that were dealt with.
    pub(super) dealt: u64,
    /// Records at its beginning that were given to a connection, or were to be.
    pub(super) handed: u64,
}

impl FileName {
    /// Ending of a file that was moved aside.
    pub(super) const DAMAGED: &str = "damaged";

    pub(super) fn new(number: u64) -> Self {
        Self {
            number,
            dealt: 0,
            handed: 0,
        }
    }

    /// `None` for a file that is none of the spool's.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (number, position) = name.split_once('.').unwrap_or((name, "0-0"));
        let (dealt, handed) = position.split_once('-')?;
        let name = Self {
            number: number.parse().ok()?,
            dealt: dealt.parse().ok()?,
            handed: handed.parse().ok()?,
        };
        let is_ours = name.dealt <= name.handed
            && name.handed < POSITIONS_END
            && (1..NUMBERS_END).contains(&name.number);
        is_ours.then_some(name)
    }

    pub(super) fn path(&self, folder: &Path) -> PathBuf {
        folder.join(match self.handed {
            0 => self.number.to_string(),
            handed => format!("{}.{}-{handed}", self.number, self.dealt),
        })
    }
}

/// What was found where a record begins.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// A record.
    Item(Item),
    /// A record as it was written that says nothing we know; the next one follows.
    Unreadable,
    /// What follows cannot be found.
    Broken(Broken),
    /// The end of the file.
    End,
}

/// How a file ends before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// With bytes that nobody has written so.
    Damaged,
    /// With the beginning of a record whose end is missing.
    Torn,
}

/// The records of a file, one after the other.
#[derive(Debug)]
pub(super) struct Records<R> {
    file: R,
    broken: Option<Broken>,
}

impl<R: Read> Records<R> {
    pub(super) fn new(file: R) -> Self {
        Self { file, broken: None }
    }

    /// Goes past so many records, or to the end.
    pub(super) fn skip(&mut self, count: u64) -> io::Result<()> {
        for _ in 0..count {
            if !matches!(self.next()?, Found::Item(_) | Found::Unreadable) {
                break;
            }
        }
        Ok(())
    }

    /// The next record. Memory for it is taken as its bytes come, whatever length it claims.
    pub(super) fn next(&mut self) -> io::Result<Found> {
        if let Some(broken) = self.broken {
            return Ok(Found::Broken(broken));
        }
        let found = self.read()?;
        if let Found::Broken(broken) = found {
            self.broken = Some(broken);
        }
        Ok(found)
    }

    fn read(&mut self) -> io::Result<Found> {
        let mut header = Vec::with_capacity(HEADER_BYTES);
        (&mut self.file)
            .take(HEADER_BYTES as u64)
            .read_to_end(&mut header)?;
        let Some((length, checksum)) = header.split_first_chunk() else {
            return Ok(if header.is_empty() {
                Found::End
            } else {
                Found::Broken(Broken::Torn)
            });
        };
        let length = u32::from_le_bytes(*length);
        if length > RECORD_MAX_BYTES {
            return Ok(Found::Broken(Broken::Damaged));
        }
        let mut payload = Vec::new();
        (&mut self.file)
            .take(u64::from(length))
            .read_to_end(&mut payload)?;
        if checksum.len() < 4 || payload.len() < length as usize {
            return Ok(Found::Broken(Broken::Torn));
        }
        if checksum != crc32fast::hash(&payload).to_le_bytes() {
            return Ok(Found::Broken(Broken::Damaged));
        }
        Ok(Item::decode(&payload).map_or(Found::Unreadable, Found::Item))
    }
}

/// A record that would be longer than one may be, with its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong(pub(super) usize);

/// An item as a record.
pub(super) fn record(item: &Item) -> Result<Vec<u8>, TooLong> {
    let payload = item.encode();
    let length = u32::try_from(payload.len()).ok();
    let length = length.filter(|&length| length <= RECORD_MAX_BYTES);
    let length = length.ok_or(TooLong(payload.len()))?;
    let mut record = Vec::with_capacity(HEADER_BYTES + payload.len());
    record.extend(length.to_le_bytes());
    record.extend(crc32fast::hash(&payload).to_le_bytes());
    record.extend(payload);
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::super::outgoing::Outgoing;
    use super::super::segment::tests::segment;
    use super::*;

    fn item(id: &str) -> Item {
        Item::Segment(Box::new(Outgoing::new(segment("t", id, &["main>a"]))))
    }

    fn bytes(ids: &[&str]) -> Vec<u8> {
        let records = ids.iter().map(|id| record(&item(id)).unwrap());
        records.flatten().collect()
    }

    /// What is read behind the first record.
    fn second(bytes: &[u8]) -> Found {
        let mut records = Records::new(bytes);
        assert_eq!(records.next().unwrap(), Found::Item(item("a")));
        records.next().unwrap()
    }

    /// Check that a missing end is told from damage, and damage from a record that is not known.
    #[test]
    fn what_cannot_be_read_is_told_apart() {
        let whole = bytes(&["a", "b"]);
        let one = bytes(&["a"]).len();
        assert_eq!(second(&whole), Found::Item(item("b")));
        assert_eq!(second(&whole[..one]), Found::End);
        for cut in [1, 4, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1] {
            assert_eq!(
                second(&whole[..one + cut]),
                Found::Broken(Broken::Torn),
                "{cut}"
            );
        }
        assert_eq!(
            second(&whole[..whole.len() - 1]),
            Found::Broken(Broken::Torn)
        );
        for at in [4, HEADER_BYTES, HEADER_BYTES + 9] {
            let mut damaged = whole.clone();
            damaged[one + at] ^= 1;
            assert_eq!(second(&damaged), Found::Broken(Broken::Damaged), "{at}");
        }
        let mut long = whole[..one].to_vec();
        long.extend([0xff; HEADER_BYTES]);
        assert_eq!(second(&long), Found::Broken(Broken::Damaged));
        let mut unknown = whole[..one].to_vec();
        unknown.extend(1_u32.to_le_bytes());
        unknown.extend(crc32fast::hash(&[0xff]).to_le_bytes());
        unknown.push(0xff);
        assert_eq!(second(&unknown), Found::Unreadable);
    }

    /// Check that names come back, and that others are left alone.
    #[test]
    fn names_come_back() {
        let folder = Path::new("/s");
        for text in ["7", "7.0-3", "7.3-3"] {
            let name = FileName::parse(text).unwrap();
            assert_eq!(name.path(folder), folder.join(text));
        }
        for text in [
            "",
            "x",
            "7.damaged",
            "7.3-2",
            "7.1",
            "-1",
            "0",
            "7.1-2.new",
            "7.0-18446744073709551615",
        ] {
            assert_eq!(FileName::parse(text), None, "{text}");
        }
    }
}
