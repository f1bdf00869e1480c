//! The results of the two tasks as one report.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// One report of several tasks: all segments, counters summed, notes joined; `task` is the first one's
/// with all endpoints, and `tasks` keeps each with its own coverage.
pub(super) fn merge(reports: &[Value]) -> Value {
    let mut counters = BTreeMap::<&str, u64>::new();
    let mut notes = Vec::new();
    let mut segments = Vec::new();
    let mut endpoints = Vec::new();
    for report in reports {
        for (name, value) in report["coverage"].as_object().into_iter().flatten() {
            if let Some(count) = value.as_u64() {
                *counters.entry(name).or_default() += count;
            }
        }
        notes.extend(report["coverage"]["notes"].as_array().into_iter().flatten());
        segments.extend(report["segments"].as_array().into_iter().flatten());
        endpoints.extend(report["task"]["endpoint"].as_str());
    }
    let mut task = reports
        .first()
        .map_or(Value::Null, |first| first["task"].clone());
    task["endpoint"] = endpoints.join(", ").into();
    let mut coverage = json!(counters);
    coverage["notes"] = json!(notes);
    let tasks: Vec<_> = reports
        .iter()
        .map(|report| json!({"task": report["task"], "coverage": report["coverage"]}))
        .collect();
    json!({"task": task, "coverage": coverage, "segments": segments, "tasks": tasks})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that two reports become one with both segments and the sums of the counters.
    #[test]
    fn merged_reports_keep_segments_and_sum_counters() {
        let report = |endpoint: &str, seen: u64| {
            json!({
                "task": {"task_id": endpoint, "endpoint": endpoint},
                "coverage": {"requests_seen": seen, "notes": [endpoint]},
                "segments": [{"segment_id": endpoint}],
            })
        };
        let merged = merge(&[report("POST:/", 3), report("GET:/busy", 4)]);
        assert_eq!(merged["task"]["endpoint"], "POST:/, GET:/busy");
        assert_eq!(merged["coverage"]["requests_seen"], 7);
        assert_eq!(merged["coverage"]["notes"], json!(["POST:/", "GET:/busy"]));
        assert_eq!(merged["segments"].as_array().unwrap().len(), 2);
        assert_eq!(merged["tasks"][1]["coverage"]["requests_seen"], 4);
    }
}
