//! Service instances that have reported.

use std::collections::BTreeMap;

use rusqlite::{Connection, Result};

use super::super::record::{InstanceRecord, NamedInstance};
use super::to_sql;
use crate::process::VERSION_PROPERTY;

/// How much later than the stored time a heartbeat must be to be written: instances ask every five
/// seconds, and a row for each would write gigabytes a day for nothing.
const STEP_MS: i64 = 60_000;

/// Notes that an instance lives; yields how many that were silent for longest made room for it.
pub(in super::super) fn seen(
    db: &Connection,
    (service, name): (&str, &str),
    properties: Option<&BTreeMap<String, String>>,
    now_ms: i64,
    limit: usize,
) -> Result<usize> {
    let properties = properties.map(|properties| {
        serde_json::to_string(properties).expect("a map of texts is a JSON object")
    });
    let mut upsert = db.prepare_cached(
        "INSERT INTO instance (service, name, last_seen_ms, properties)
         VALUES (?1, ?2, ?3, coalesce(?4, '{}'))
         ON CONFLICT DO UPDATE
         SET last_seen_ms = excluded.last_seen_ms, properties = coalesce(?4, properties)
         WHERE abs(excluded.last_seen_ms - last_seen_ms) >= ?5 OR ?4 <> properties",
    )?;
    if upsert.execute((service, name, now_ms, properties, STEP_MS))? == 0 {
        return Ok(0);
    }
    // The one that has just come stays, whatever the clock says.
    let mut evict = db.prepare_cached(
        "DELETE FROM instance WHERE (service, name) IN (
             SELECT service, name FROM instance WHERE (service, name) <> (?1, ?2)
             ORDER BY last_seen_ms
             LIMIT max(0, (SELECT count(*) FROM instance) - ?3))",
    )?;
    evict.execute((service, name, to_sql(limit)))
}

/// All instances, by service and name.
pub(in super::super) fn all(db: &Connection) -> Result<Vec<NamedInstance>> {
    let mut rows = db.prepare_cached(
        "SELECT service, name, last_seen_ms, properties FROM instance ORDER BY service, name",
    )?;
    let instances = rows.query_map([], |row| {
        let properties: String = row.get(3)?;
        let properties = serde_json::from_str(&properties).map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(
                3,
                rusqlite::types::Type::Text,
                Box::new(error),
            )
        })?;
        let last_seen_ms = row.get(2)?;
        let record = InstanceRecord {
            properties,
            last_seen_ms,
        };
        Ok(((row.get(0)?, row.get(1)?), record))
    })?;
    instances.collect()
}

/// Whether an instance of a service has reported that is not profilerd's: agents name endpoints as they like.
pub(in super::super) fn has_agent(db: &Connection, service: &str) -> Result<bool> {
    let mut query = db.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM instance
             WHERE service = ?1 AND properties <> '{}' AND instr(properties, ?2) = 0)",
    )?;
    query.query_row((service, format!("\"{VERSION_PROPERTY}\"")), |row| {
        row.get(0)
    })
}

/// Removes instances that were last seen before this time.
pub(in super::super) fn remove_before(db: &Connection, time_ms: i64) -> Result<usize> {
    db.execute("DELETE FROM instance WHERE last_seen_ms < ?1", [time_ms])
}
