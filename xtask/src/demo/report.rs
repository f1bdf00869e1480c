//! The results of the two tasks as one report, and the part of it that is checked.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The part of a report that the demo checks; the whole is passed on as it came.
#[derive(Debug, Deserialize)]
pub(super) struct Report {
    pub(super) coverage: Map<String, Value>,
    pub(super) segments: Vec<Segment>,
}

/// One profiled request.
#[derive(Debug, Deserialize)]
pub(super) struct Segment {
    pub(super) segment_id: String,
    pub(super) endpoint: String,
    pub(super) duration_ms: i64,
    pub(super) status: Option<u16>,
    pub(super) snapshots: Vec<Snapshot>,
    pub(super) trees: Vec<Node>,
}

/// One stack.
#[derive(Debug, Deserialize)]
pub(super) struct Snapshot {
    pub(super) sequence: i64,
    pub(super) stack: Vec<String>,
}

/// One node of a call tree.
#[derive(Debug, Deserialize)]
pub(super) struct Node {
    pub(super) code_signature: String,
    pub(super) duration_ms: i64,
    #[serde(default)]
    pub(super) children: Vec<Self>,
}

impl Report {
    /// Reads the parts that are checked.
    pub(super) fn from_json(value: &Value) -> Result<Self> {
        Self::deserialize(value).context("the result does not have the form of a report")
    }

    /// A counter of the coverage, 0 if there is none of that name.
    pub(super) fn counter(&self, name: &str) -> u64 {
        self.coverage.get(name).and_then(Value::as_u64).unwrap_or(0)
    }
}

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
