//! What profilerd writes about profiled requests, in the form of `record --format json`, as far as the developer
//! commands look at it.

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The part of a report that the demo and the benchmark look at.
#[derive(Debug, Deserialize)]
pub(crate) struct Report {
    pub(crate) coverage: Map<String, Value>,
    pub(crate) segments: Vec<Segment>,
}

/// One profiled request.
#[derive(Debug, Deserialize)]
pub(crate) struct Segment {
    pub(crate) segment_id: String,
    pub(crate) endpoint: String,
    pub(crate) duration_ms: i64,
    pub(crate) status: Option<u16>,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) trees: Vec<Node>,
}

/// One stack.
#[derive(Debug, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) sequence: i64,
    pub(crate) time_ms: i64,
    pub(crate) stack: Vec<String>,
}

/// One node of a call tree.
#[derive(Debug, Deserialize)]
pub(crate) struct Node {
    pub(crate) code_signature: String,
    pub(crate) duration_ms: i64,
    #[serde(default)]
    pub(crate) children: Vec<Self>,
}

impl Report {
    /// Reads the parts that are looked at.
    pub(crate) fn from_json(value: &Value) -> Result<Self> {
        Self::deserialize(value).context("the result does not have the form of a report")
    }

    /// A counter of the coverage, 0 if there is none of that name.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.coverage.get(name).and_then(Value::as_u64).unwrap_or(0)
    }

    /// Share of the dump periods inside profiled requests that have a snapshot.
    pub(crate) fn share_of_periods(&self) -> f64 {
        let expected = self.counter("periods_expected").max(1);
        self.counter("periods_sampled") as f64 / expected as f64
    }
}

/// Time under the function: the sum over its topmost nodes.
pub(crate) fn total_ms(nodes: &[Node], function: &str) -> i64 {
    nodes
        .iter()
        .map(|node| {
            if names(&node.code_signature, function) {
                node.duration_ms
            } else {
                total_ms(&node.children, function)
            }
        })
        .sum()
}

/// Whether one of the words of a code signature is `function`; `*name` stands for words that end so, as
/// the variants of a system call do (`__x64_sys_clock_nanosleep`).
pub(crate) fn names(code_signature: &str, function: &str) -> bool {
    code_signature
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .any(|word| match function.strip_prefix('*') {
            Some(end) => word.ends_with(end),
            None => word == function,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that names are matched as whole words.
    #[test]
    fn functions_are_matched_by_whole_words() {
        assert!(names("sample_service.Handler.do_POST:86", "do_POST"));
        assert!(names("__x64_sys_clock_nanosleep (kernel)", "*nanosleep"));
        assert!(!names("sample_service.method31:1", "method3"));
        assert!(!names("syscall_inner (app)", "inner"));
        assert!(names("exact_service.alternate:84", "alternate"));
        assert!(!names("exact_service.alternate_run:92", "alternate"));
    }

    /// Check that durations of one function under several callers are summed, and that a call of its own name
    /// below it is part of it.
    #[test]
    fn durations_are_summed() {
        let node = |code_signature: &str, duration_ms, children| Node {
            code_signature: code_signature.to_owned(),
            duration_ms,
            children,
        };
        let own = node("m.f:3", 20, vec![node("m.Base.f:9", 15, Vec::new())]);
        let trees = [node("m.g:1", 60, vec![node("m.f:3", 10, Vec::new()), own])];
        assert_eq!(["f", "g"].map(|name| total_ms(&trees, name)), [30, 60]);
    }
}
