//! Tasks, what instances did with them, and what is known about their coverage.

use profiler_proto::profilerd as pb;
use prost::Message as _;
use rusqlite::{Connection, OptionalExtension as _, Result, Row, named_params};

use super::super::task::{LogEntry, Operation, TaskRecord, TaskRequest};
use super::super::wire;
use super::to_sql;
use crate::model::Coverage;

/// A task and its number in the other tables.
#[derive(Clone, Debug)]
pub(in super::super) struct TaskRow {
    pub(in super::super) key: i64,
    pub(in super::super) task: TaskRecord,
    /// Snapshots that were not stored.
    pub(in super::super) lost: i64,
}

fn read(row: &Row<'_>) -> Result<TaskRow> {
    Ok(TaskRow {
        key: row.get("key")?,
        lost: row.get("lost")?,
        task: TaskRecord {
            id: row.get("id")?,
            create_ms: row.get("create_ms")?,
            cancelled_ms: row.get("cancelled_ms")?,
            request: TaskRequest {
                service: row.get("service")?,
                endpoint: row.get("endpoint")?,
                start_ms: row.get("start_ms")?,
                duration_minutes: row.get("duration_minutes")?,
                min_duration_threshold_ms: row.get("min_duration_threshold_ms")?,
                dump_period_ms: row.get("dump_period_ms")?,
                max_sampling_count: row.get("max_sampling_count")?,
            },
        },
    })
}

/// All tasks, oldest first.
pub(in super::super) fn all(db: &Connection) -> Result<Vec<TaskRow>> {
    let mut rows = db.prepare_cached("SELECT * FROM task ORDER BY key")?;
    rows.query_map([], read)?.collect()
}

/// The tasks of a service, oldest first.
pub(in super::super) fn of_service(db: &Connection, service: &str) -> Result<Vec<TaskRow>> {
    let mut rows = db.prepare_cached("SELECT * FROM task WHERE service = ?1 ORDER BY key")?;
    rows.query_map([service], read)?.collect()
}

pub(in super::super) fn find(db: &Connection, id: &str) -> Result<Option<TaskRow>> {
    let mut row = db.prepare_cached("SELECT * FROM task WHERE id = ?1")?;
    row.query_row([id], read).optional()
}

pub(in super::super) fn newest(db: &Connection) -> Result<Option<TaskRow>> {
    let mut row = db.prepare_cached("SELECT * FROM task ORDER BY key DESC LIMIT 1")?;
    row.query_row([], read).optional()
}

/// The tasks whose id begins so, at most five.
pub(in super::super) fn beginning(db: &Connection, text: &str) -> Result<Vec<TaskRow>> {
    let mut rows = db.prepare_cached(
        "SELECT * FROM task WHERE substr(id, 1, length(?1)) = ?1 ORDER BY key LIMIT 5",
    )?;
    rows.query_map([text], read)?.collect()
}

pub(in super::super) fn insert(db: &Connection, task: &TaskRecord) -> Result<()> {
    let request = &task.request;
    let mut insert = db.prepare_cached(
        "INSERT INTO task (id, service, endpoint, start_ms, duration_minutes,
                           min_duration_threshold_ms, dump_period_ms, max_sampling_count, create_ms)
         VALUES (:id, :service, :endpoint, :start_ms, :duration_minutes,
                 :min_duration_threshold_ms, :dump_period_ms, :max_sampling_count, :create_ms)",
    )?;
    let inserted = insert.execute(named_params! {
        ":id": task.id,
        ":service": request.service,
        ":endpoint": request.endpoint,
        ":start_ms": request.start_ms,
        ":duration_minutes": request.duration_minutes,
        ":min_duration_threshold_ms": request.min_duration_threshold_ms,
        ":dump_period_ms": request.dump_period_ms,
        ":max_sampling_count": request.max_sampling_count,
        ":create_ms": task.create_ms,
    });
    inserted.map(drop)
}

/// Notes that a task was cancelled.
pub(in super::super) fn cancel(db: &Connection, key: i64, now_ms: i64) -> Result<()> {
    let mut update = db.prepare_cached("UPDATE task SET cancelled_ms = ?2 WHERE key = ?1")?;
    update.execute((key, now_ms)).map(drop)
}

/// Removes a task without results ([`super::segments::clear`]), with all that was said about it.
pub(in super::super) fn remove(db: &Connection, key: i64) -> Result<()> {
    let mut delete = db.prepare_cached("DELETE FROM task WHERE key = ?1")?;
    delete.execute([key]).map(drop)
}

/// Adds an entry to the log of a task; false if it has as many as it may.
pub(in super::super) fn log(
    db: &Connection,
    key: i64,
    entry: &LogEntry,
    limit: usize,
) -> Result<bool> {
    let mut insert = db.prepare_cached(
        "INSERT INTO task_log (task, instance, operation, time_ms) SELECT ?1, ?2, ?3, ?4
         WHERE (SELECT count(*) FROM task_log WHERE task = ?1) < ?5",
    )?;
    let values = (
        key,
        &entry.instance,
        entry.operation.name(),
        entry.time_ms,
        to_sql(limit),
    );
    Ok(insert.execute(values)? > 0)
}

/// The log of a task, oldest first.
pub(in super::super) fn logs(db: &Connection, key: i64) -> Result<Vec<LogEntry>> {
    let mut rows = db.prepare_cached(
        "SELECT instance, operation, time_ms FROM task_log WHERE task = ?1 ORDER BY key",
    )?;
    let entry = |row: &Row<'_>| {
        let operation: String = row.get(1)?;
        Ok(LogEntry {
            instance: row.get(0)?,
            operation: if operation == Operation::Finished.name() {
                Operation::Finished
            } else {
                Operation::Notified
            },
            time_ms: row.get(2)?,
        })
    };
    rows.query_map([key], entry)?.collect()
}

/// Replaces what an instance reported; false if as many others have reported as may.
pub(in super::super) fn set_coverage(
    db: &Connection,
    key: i64,
    instance: &str,
    coverage: &Coverage,
    limit: usize,
) -> Result<bool> {
    let mut replace = db.prepare_cached(
        "INSERT OR REPLACE INTO coverage (task, instance, message) SELECT ?1, ?2, ?3
         WHERE (SELECT count(*) FROM coverage WHERE task = ?1 AND instance <> ?2) < ?4",
    )?;
    let message = wire::coverage_to_wire(coverage).encode_to_vec();
    Ok(replace.execute((key, instance, message, to_sql(limit)))? > 0)
}

/// What all instances reported, and the notes of the store.
pub(in super::super) fn coverage(db: &Connection, key: i64) -> Result<Coverage> {
    let mut coverage = Coverage::default();
    let mut messages =
        db.prepare_cached("SELECT message FROM coverage WHERE task = ?1 ORDER BY instance")?;
    for message in messages.query_map([key], |row| row.get::<_, Vec<u8>>(0))? {
        match pb::Coverage::decode(&*message?) {
            Ok(message) => coverage.merge(&wire::coverage_from_wire(&message)),
            Err(error) => coverage.note(format!("an instance's report is unreadable: {error}")),
        }
    }
    let mut notes = db.prepare_cached("SELECT text FROM note WHERE task = ?1 ORDER BY key")?;
    for note in notes.query_map([key], |row| row.get::<_, String>(0))? {
        coverage.note(note?);
    }
    Ok(coverage)
}

/// Adds a sentence about a loss, once.
pub(in super::super) fn note(db: &Connection, key: i64, text: &str) -> Result<()> {
    let mut insert =
        db.prepare_cached("INSERT OR IGNORE INTO note (task, text) VALUES (?1, ?2)")?;
    insert.execute((key, text)).map(drop)
}

/// Counts a snapshot that was not stored, and says why.
pub(in super::super) fn lose(db: &Connection, key: i64, why: &str) -> Result<()> {
    let mut update = db.prepare_cached("UPDATE task SET lost = lost + 1 WHERE key = ?1")?;
    update.execute([key])?;
    note(db, key, why)
}
