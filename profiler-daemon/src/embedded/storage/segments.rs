//! Trace segments, and which of them a task has snapshots of.
//!
//! Segments are kept for as long as a task has snapshots of them. Others (agents report every request)
//! are `loose`: kept only for a while, because a segment may arrive before its snapshots.

use rusqlite::{Connection, OptionalExtension as _, Result, Row};

use super::super::span;
use super::super::trace::{SegmentSummary, StoredSegment};
use super::to_sql;

/// Stores a segment. Of two with one id the first stays.
pub(in super::super) fn insert(
    db: &Connection,
    summary: &SegmentSummary,
    spans: &[u8],
) -> Result<()> {
    let mut insert = db.prepare_cached(
        "INSERT OR IGNORE INTO segment
             (id, trace_id, service, instance, endpoint, start_ms, end_ms, status, tags, is_error, spans, loose)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11,
                 NOT EXISTS (SELECT 1 FROM task_segment WHERE segment_id = ?1))",
    )?;
    let tags = serde_json::to_string(&summary.tags).expect("pairs of texts are JSON");
    let values = (
        &summary.segment_id,
        &summary.trace_id,
        &summary.service,
        &summary.instance,
        &summary.endpoint,
        summary.start_ms,
        summary.end_ms,
        summary.status,
        tags,
        summary.is_error,
        spans,
    );
    insert.execute(values).map(drop)
}

/// Removes the oldest loose segments beyond a number, and beyond so many bytes of spans.
pub(in super::super) fn trim_loose(db: &Connection, limit: usize, bytes: u64) -> Result<usize> {
    let mut delete = db.prepare_cached(
        "DELETE FROM segment WHERE key IN (
             SELECT key FROM (
                 SELECT key, row_number() OVER newest AS place, sum(length(spans)) OVER newest AS bytes
                 FROM segment WHERE loose = 1 WINDOW newest AS (ORDER BY key DESC))
             WHERE place > ?1 OR bytes > ?2)",
    )?;
    delete.execute((to_sql(limit), i64::try_from(bytes).unwrap_or(i64::MAX)))
}

/// Removes loose segments that ended before this time.
pub(in super::super) fn remove_loose_before(db: &Connection, time_ms: i64) -> Result<usize> {
    let sql = "DELETE FROM segment WHERE loose = 1 AND end_ms < ?1";
    db.execute(sql, [time_ms])
}

/// The number of a segment of a task in the snapshots' table; it is given one, and its segment kept,
/// if this is its first snapshot.
pub(super) fn key_of(db: &Connection, task: i64, segment_id: &str) -> Result<i64> {
    let mut find =
        db.prepare_cached("SELECT key FROM task_segment WHERE task = ?1 AND segment_id = ?2")?;
    let known = find.query_row((task, segment_id), |row| row.get(0));
    if let Some(key) = known.optional()? {
        return Ok(key);
    }
    let mut insert =
        db.prepare_cached("INSERT INTO task_segment (task, segment_id) VALUES (?1, ?2)")?;
    let key = insert.insert((task, segment_id))?;
    let mut pin = db.prepare_cached("UPDATE segment SET loose = 0 WHERE id = ?1")?;
    pin.execute([segment_id])?;
    Ok(key)
}

/// The segments of a task that have both their segment and their sequence 0, oldest first, with their
/// numbers in the snapshots' table.
pub(in super::super) fn listed(db: &Connection, task: i64) -> Result<Vec<(i64, SegmentSummary)>> {
    let mut rows = db.prepare_cached(
        "SELECT task_segment.key AS number, segment.* FROM task_segment
         JOIN segment ON segment.id = task_segment.segment_id
         WHERE task_segment.task = ?1 AND EXISTS (
             SELECT 1 FROM snapshot WHERE snapshot.segment = task_segment.key AND sequence = 0)
         ORDER BY segment.start_ms, segment.id",
    )?;
    let listed = rows.query_map([task], |row| Ok((row.get("number")?, summary(row)?)))?;
    listed.collect()
}

/// A row of `segment.*`, with its spans.
pub(super) fn stored(row: &Row<'_>) -> Result<StoredSegment> {
    Ok(StoredSegment {
        summary: summary(row)?,
        spans: span::from_bytes(row.get_ref("spans")?.as_blob()?),
        is_profiled: !row.get::<_, bool>("loose")?,
    })
}

fn summary(row: &Row<'_>) -> Result<SegmentSummary> {
    let tags: String = row.get("tags")?;
    Ok(SegmentSummary {
        segment_id: row.get("id")?,
        trace_id: row.get("trace_id")?,
        service: row.get("service")?,
        instance: row.get("instance")?,
        endpoint: row.get("endpoint")?,
        start_ms: row.get("start_ms")?,
        end_ms: row.get("end_ms")?,
        status: row.get("status")?,
        // Written by `insert` alone: what cannot be read is nothing that anybody waits for.
        tags: serde_json::from_str(&tags).unwrap_or_default(),
        is_error: row.get("is_error")?,
    })
}

/// The numbers of a segment in the snapshots' table, one for each task that has snapshots of it.
pub(in super::super) fn keys(db: &Connection, segment_id: &str) -> Result<Vec<i64>> {
    let mut rows =
        db.prepare_cached("SELECT key FROM task_segment WHERE segment_id = ?1 ORDER BY key")?;
    rows.query_map([segment_id], |row| row.get(0))?.collect()
}

/// Endpoints of a service: those that it was seen to have, that tasks were created for, and of its profiled segments, by
/// name.
pub(in super::super) fn endpoints(db: &Connection, service: &str) -> Result<Vec<String>> {
    let mut rows = db.prepare_cached(
        "SELECT endpoint FROM task WHERE service = ?1
         UNION SELECT name FROM endpoint WHERE service = ?1
         UNION SELECT endpoint FROM segment WHERE service = ?1 AND loose = 0 ORDER BY endpoint",
    )?;
    rows.query_map([service], |row| row.get(0))?.collect()
}

/// How many segments a task has snapshots of.
pub(in super::super) fn count(db: &Connection, task: i64) -> Result<usize> {
    let mut count = db.prepare_cached("SELECT count(*) FROM task_segment WHERE task = ?1")?;
    let count: i64 = count.query_row([task], |row| row.get(0))?;
    Ok(usize::try_from(count).unwrap_or_default())
}

/// Removes the snapshots of a task, and segments no other task has snapshots of.
pub(in super::super) fn clear(db: &Connection, task: i64) -> Result<()> {
    for sql in [
        "DELETE FROM segment WHERE id IN (SELECT segment_id FROM task_segment WHERE task = ?1)
         AND NOT EXISTS (
             SELECT 1 FROM task_segment WHERE segment_id = segment.id AND task <> ?1)",
        "DELETE FROM task_segment WHERE task = ?1",
        "DELETE FROM stack WHERE task = ?1",
        "DELETE FROM text WHERE task = ?1",
    ] {
        db.execute(sql, [task])?;
    }
    Ok(())
}
