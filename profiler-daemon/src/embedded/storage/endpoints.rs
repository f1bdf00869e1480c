//! Endpoints that services were seen to have, beside those of tasks and profiled requests.

use rusqlite::{Connection, Result};

use super::to_sql;

/// Endpoints kept per service.
const OF_SERVICE_MAX: usize = 500;
/// Endpoints kept over all services.
const ALL_MAX: usize = 20_000;
/// How much later than the stored time a sight must be to be written.
const STEP_MS: i64 = 60_000;

/// Notes that a service has an endpoint; false if there is no room for it.
pub(in super::super) fn seen(
    db: &Connection,
    (service, name): (&str, &str),
    now_ms: i64,
) -> Result<bool> {
    let mut update = db.prepare_cached(
        "UPDATE endpoint SET last_seen_ms = iif(abs(?3 - last_seen_ms) >= ?4, ?3, last_seen_ms)
         WHERE service = ?1 AND name = ?2",
    )?;
    if update.execute((service, name, now_ms, STEP_MS))? > 0 {
        return Ok(true);
    }
    let mut insert = db.prepare_cached(
        "INSERT INTO endpoint (service, name, last_seen_ms) SELECT ?1, ?2, ?3
         WHERE (SELECT count(*) FROM endpoint WHERE service = ?1) < ?4
         AND (SELECT count(*) FROM endpoint) < ?5",
    )?;
    let values = (
        service,
        name,
        now_ms,
        to_sql(OF_SERVICE_MAX),
        to_sql(ALL_MAX),
    );
    Ok(insert.execute(values)? > 0)
}

/// Removes endpoints that were last seen before this time.
pub(in super::super) fn remove_before(db: &Connection, time_ms: i64) -> Result<usize> {
    db.execute("DELETE FROM endpoint WHERE last_seen_ms < ?1", [time_ms])
}
