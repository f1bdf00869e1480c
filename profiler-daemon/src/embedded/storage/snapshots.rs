//! Snapshots, with the texts and stacks of a task stored once.
//!
//! In:  stacks in any order of their sequences
//! Out: snapshots of a segment by sequence

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, Params, Result};

use super::segments;
use crate::model::Snapshot;

type SharedStack = Arc<[Arc<str>]>;

/// Number of a text of a task.
type TextKey = u32;

/// Adds snapshots to a task. It remembers what it has looked up, so it lives no longer than the
/// transaction, and not past the removal of the task's results.
#[derive(Debug)]
pub(in super::super) struct Writer<'db> {
    db: &'db Connection,
    task: i64,
    segments: HashMap<String, i64>,
    texts: HashMap<String, TextKey>,
    stacks: HashMap<Vec<u8>, i64>,
}

impl<'db> Writer<'db> {
    pub(in super::super) fn new(db: &'db Connection, task: i64) -> Self {
        Self {
            db,
            task,
            segments: HashMap::new(),
            texts: HashMap::new(),
            stacks: HashMap::new(),
        }
    }

    /// Adds a snapshot; false if the segment has that sequence already: the row that came first stays.
    pub(in super::super) fn insert(
        &mut self,
        segment_id: String,
        sequence: i32,
        unix_ms: i64,
        stack: Vec<String>,
    ) -> Result<bool> {
        let segment = self.segment(segment_id)?;
        let mut known = self
            .db
            .prepare_cached("SELECT 1 FROM snapshot WHERE segment = ?1 AND sequence = ?2")?;
        if known.exists((segment, sequence))? {
            return Ok(false);
        }
        let stack = self.stack(stack)?;
        let mut insert = self.db.prepare_cached(
            "INSERT INTO snapshot (segment, sequence, unix_ms, stack) VALUES (?1, ?2, ?3, ?4)",
        )?;
        insert.execute((segment, sequence, unix_ms, stack))?;
        Ok(true)
    }

    fn segment(&mut self, id: String) -> Result<i64> {
        if let Some(&key) = self.segments.get(&id) {
            return Ok(key);
        }
        let key = segments::key_of(self.db, self.task, &id)?;
        self.segments.insert(id, key);
        Ok(key)
    }

    fn stack(&mut self, stack: Vec<String>) -> Result<i64> {
        let mut texts = Vec::with_capacity(stack.len() * size_of::<TextKey>());
        for text in stack {
            texts.extend(self.text(text)?.to_le_bytes());
        }
        if let Some(&key) = self.stacks.get(&texts) {
            return Ok(key);
        }
        let find = "SELECT key FROM stack WHERE task = ?1 AND texts = ?2";
        let insert = "INSERT INTO stack (task, texts) VALUES (?1, ?2)";
        let key = found_or_added(self.db, find, insert, (self.task, &texts))?;
        self.stacks.insert(texts, key);
        Ok(key)
    }

    fn text(&mut self, text: String) -> Result<TextKey> {
        if let Some(&key) = self.texts.get(&text) {
            return Ok(key);
        }
        let find = "SELECT key FROM text WHERE task = ?1 AND text = ?2";
        let insert = "INSERT INTO text (task, text) VALUES (?1, ?2)";
        let key = TextKey::try_from(found_or_added(self.db, find, insert, (self.task, &text))?);
        let key =
            key.map_err(|_| rusqlite::Error::ToSqlConversionFailure("too many texts".into()))?;
        self.texts.insert(text, key);
        Ok(key)
    }
}

/// The number of a row; it is added if it is not there.
fn found_or_added(
    db: &Connection,
    find: &str,
    insert: &str,
    row: impl Params + Copy,
) -> Result<i64> {
    let known = db
        .prepare_cached(find)?
        .query_row(row, |row| row.get(0))
        .optional()?;
    match known {
        Some(key) => Ok(key),
        None => db.prepare_cached(insert)?.insert(row),
    }
}

/// Number of snapshots of a task.
pub(in super::super) fn count(db: &Connection, task: i64) -> Result<u64> {
    let mut count = db.prepare_cached(
        "SELECT count(*) FROM task_segment JOIN snapshot ON snapshot.segment = task_segment.key
         WHERE task_segment.task = ?1",
    )?;
    let count: i64 = count.query_row([task], |row| row.get(0))?;
    Ok(count.unsigned_abs())
}

/// The snapshots of a segment by its number, by sequence. Equal texts and stacks are shared.
pub(in super::super) fn of_segment(db: &Connection, segment: i64) -> Result<Vec<Snapshot>> {
    let mut reader = Reader {
        db,
        texts: HashMap::new(),
        stacks: HashMap::new(),
    };
    let mut rows = db.prepare_cached(
        "SELECT sequence, unix_ms, stack FROM snapshot WHERE segment = ?1 ORDER BY sequence",
    )?;
    let mut rows = rows.query([segment])?;
    let mut snapshots = Vec::new();
    while let Some(row) = rows.next()? {
        snapshots.push(Snapshot {
            sequence: row.get(0)?,
            unix_ms: row.get(1)?,
            stack: reader.stack(row.get(2)?)?,
        });
    }
    Ok(snapshots)
}

struct Reader<'db> {
    db: &'db Connection,
    texts: HashMap<TextKey, Arc<str>>,
    stacks: HashMap<i64, SharedStack>,
}

impl Reader<'_> {
    fn stack(&mut self, key: i64) -> Result<SharedStack> {
        if let Some(stack) = self.stacks.get(&key) {
            return Ok(Arc::clone(stack));
        }
        let mut find = self
            .db
            .prepare_cached("SELECT texts FROM stack WHERE key = ?1")?;
        let texts: Vec<u8> = find.query_row([key], |row| row.get(0))?;
        let (texts, _) = texts.as_chunks();
        let texts = texts
            .iter()
            .map(|&key| self.text(TextKey::from_le_bytes(key)));
        let stack: SharedStack = texts.collect::<Result<_>>()?;
        self.stacks.insert(key, Arc::clone(&stack));
        Ok(stack)
    }

    fn text(&mut self, key: TextKey) -> Result<Arc<str>> {
        if let Some(text) = self.texts.get(&key) {
            return Ok(Arc::clone(text));
        }
        let mut find = self
            .db
            .prepare_cached("SELECT text FROM text WHERE key = ?1")?;
        let text: Arc<str> = find.query_row([key], |row| row.get(0))?;
        self.texts.insert(key, Arc::clone(&text));
        Ok(text)
    }
}
