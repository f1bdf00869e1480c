//! What is removed, and when: results and tasks that are over, the oldest first, by size and by age.
//!
//! By size only results go: the task stays, with a note in its coverage. By age, or when there are too
//! many tasks, the task goes as well. A task that is not over keeps everything.

use rusqlite::{Connection, Result};
use tracing::{info, warn};

use super::tasks::{self, TaskRow};
use super::{endpoints, instances, segments};

/// Pages given back to the file system at a time, 1 MiB: nobody waits long for the lock.
const GIVE_BACK_PAGES: u32 = 256;

/// Size of all pages that hold something. The file is as large, or larger by what has been removed
/// since and is used again first.
pub(in super::super) fn used_bytes(db: &Connection) -> Result<u64> {
    let read = |pragma: &str| -> Result<i64> {
        let mut pragma = db.prepare_cached(pragma)?;
        pragma.query_row([], |row| row.get(0))
    };
    let pages = read("PRAGMA page_count")? - read("PRAGMA freelist_count")?;
    Ok(pages.unsigned_abs() * read("PRAGMA page_size")?.unsigned_abs())
}

/// Whether nothing more is expected of a task.
pub(in super::super) fn is_over(db: &Connection, row: &TaskRow, now_ms: i64) -> Result<bool> {
    let logs = tasks::logs(db, row.key)?;
    Ok(row.task.state(&logs, now_ms).is_over())
}

/// Removes the results of the oldest task that is over and has some, other than `keep`; false if
/// there is none.
pub(in super::super) fn clear_oldest(
    db: &Connection,
    keep: Option<i64>,
    now_ms: i64,
) -> Result<bool> {
    for row in tasks::all(db)? {
        let has_results = segments::count(db, row.key)? > 0;
        if Some(row.key) != keep && has_results && is_over(db, &row, now_ms)? {
            segments::clear(db, row.key)?;
            let note = "the snapshots were dropped to make room for newer ones";
            tasks::note(db, row.key, note)?;
            warn!(task_id = %row.task.id, "{note}; standalone.max_bytes is reached");
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes the oldest task that is over and ended before this time; false if there is none.
pub(in super::super) fn remove_oldest(
    db: &Connection,
    ended_before_ms: i64,
    now_ms: i64,
    why: &str,
) -> Result<bool> {
    for row in tasks::all(db)? {
        if row.task.end_ms() < ended_before_ms && is_over(db, &row, now_ms)? {
            segments::clear(db, row.key)?;
            tasks::remove(db, row.key)?;
            info!(task_id = %row.task.id, "the task and its results were removed: {why}");
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes instances, endpoints, and segments of no task that nothing was heard of since this time.
pub(in super::super) fn remove_silent(db: &Connection, since_ms: i64) -> Result<()> {
    instances::remove_before(db, since_ms)?;
    endpoints::remove_before(db, since_ms)?;
    segments::remove_loose_before(db, since_ms).map(drop)
}

/// Gives unused pages back to the file system; false when there are none left.
pub(in super::super) fn give_back(db: &Connection) -> Result<bool> {
    // A step frees one page, so the statement is run to its end.
    let mut vacuum = db.prepare(&format!("PRAGMA incremental_vacuum({GIVE_BACK_PAGES})"))?;
    let mut steps = vacuum.query([])?;
    while steps.next()?.is_some() {}
    drop(steps);
    let left: i64 = db.query_row("PRAGMA freelist_count", [], |row| row.get(0))?;
    Ok(left > 0)
}
