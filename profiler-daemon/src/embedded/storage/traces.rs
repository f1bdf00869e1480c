//! Segments as traces: found by a condition, and read with their spans.

use rusqlite::types::Value;
use rusqlite::{Connection, Result, params_from_iter};

use super::super::record::TraceFilter;
use super::super::trace::StoredSegment;
use super::{segments, to_sql};

/// Most segments read of one trace: with 16 KiB of spans each, 3 MiB.
const TRACE_SEGMENTS_MAX: usize = 200;
/// Most keys or values of tags to choose from.
const CHOICES_MAX: usize = 100;

/// The segments that a condition has, in its order; one page.
pub(in super::super) fn find(db: &Connection, filter: &TraceFilter) -> Result<Vec<StoredSegment>> {
    let mut sql = "SELECT * FROM segment WHERE 1".to_owned();
    let mut values: Vec<Value> = Vec::new();
    let mut add = |condition: &str, value: Option<Value>| {
        if let Some(value) = value {
            sql += " AND ";
            sql += condition;
            values.push(value);
        }
    };
    let text = |text: &Option<String>| text.clone().map(Value::Text);
    add("service = ?", text(&filter.service));
    add("instance = ?", text(&filter.instance));
    add("endpoint = ?", text(&filter.endpoint));
    add("trace_id = ?", text(&filter.trace_id));
    add("start_ms >= ?", filter.since_ms.map(Value::Integer));
    add("start_ms < ?", filter.before_ms.map(Value::Integer));
    let (least, most) = filter.duration_ms;
    add("end_ms - start_ms >= ?", least.map(Value::Integer));
    add("end_ms - start_ms <= ?", most.map(Value::Integer));
    let is_error = filter.is_error.map(|is| Value::Integer(is.into()));
    add("is_error = ?", is_error);
    for tag in &filter.tags {
        // Both texts were written by serde_json.
        let pair = serde_json::to_string(tag).expect("a pair of texts is JSON");
        let has = "EXISTS (SELECT 1 FROM json_each(tags) AS tag WHERE tag.value = ?)";
        add(has, Some(Value::Text(pair)));
    }
    sql += match filter.by_duration {
        true => " ORDER BY end_ms - start_ms DESC, key DESC",
        false => " ORDER BY start_ms DESC, key DESC",
    };
    sql += " LIMIT ? OFFSET ?";
    values.push(Value::Integer(to_sql(filter.count)));
    values.push(Value::Integer(to_sql(filter.skip)));
    let mut rows = db.prepare(&sql)?;
    rows.query_map(params_from_iter(values), segments::stored)?
        .collect()
}

/// The segments of a trace, oldest first.
pub(in super::super) fn of_trace(db: &Connection, trace_id: &str) -> Result<Vec<StoredSegment>> {
    let mut rows = db.prepare_cached(
        "SELECT * FROM segment WHERE trace_id = ?1 ORDER BY start_ms, key LIMIT ?2",
    )?;
    rows.query_map((trace_id, to_sql(TRACE_SEGMENTS_MAX)), segments::stored)?
        .collect()
}

/// The segments of a task that can be shown, oldest first.
pub(in super::super) fn of_task(db: &Connection, task: i64) -> Result<Vec<StoredSegment>> {
    let mut rows = db.prepare_cached(
        "SELECT segment.* FROM task_segment
         JOIN segment ON segment.id = task_segment.segment_id
         WHERE task_segment.task = ?1 AND EXISTS (
             SELECT 1 FROM snapshot WHERE snapshot.segment = task_segment.key AND sequence = 0)
         ORDER BY segment.start_ms, segment.id",
    )?;
    rows.query_map([task], segments::stored)?.collect()
}

/// Keys of the tags of segments, by name.
pub(in super::super) fn tag_keys(db: &Connection) -> Result<Vec<String>> {
    let mut rows = db.prepare_cached(
        "SELECT DISTINCT json_extract(tag.value, '$[0]') FROM segment, json_each(segment.tags) AS tag
         ORDER BY 1 LIMIT ?1",
    )?;
    rows.query_map([to_sql(CHOICES_MAX)], |row| row.get(0))?
        .collect()
}

/// Values of a tag of segments, in their order.
pub(in super::super) fn tag_values(db: &Connection, key: &str) -> Result<Vec<String>> {
    let mut rows = db.prepare_cached(
        "SELECT DISTINCT json_extract(tag.value, '$[1]') FROM segment, json_each(segment.tags) AS tag
         WHERE json_extract(tag.value, '$[0]') = ?1 ORDER BY 1 LIMIT ?2",
    )?;
    rows.query_map((key, to_sql(CHOICES_MAX)), |row| row.get(0))?
        .collect()
}
