//! The result of a task in the form `record --format json` prints. Other programs rely on these
//! names: only add to them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Everything known about one task: what was asked, what was seen, what was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProfileReport {
    /// The task as it was requested.
    pub task: TaskReport,
    /// What was seen, kept and lost.
    pub coverage: CoverageReport,
    /// The profiled requests, oldest first.
    pub segments: Vec<SegmentReport>,
}

/// The task as it was run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskReport {
    /// Task id.
    pub task_id: String,
    /// Service name.
    pub service: String,
    /// Endpoint as the user wrote it.
    pub endpoint: String,
    /// Start, epoch milliseconds.
    pub start_ms: i64,
    /// How long it ran or will run, milliseconds.
    pub duration_ms: i64,
    /// Only requests longer than this are kept.
    pub min_duration_threshold_ms: u32,
    /// One stack per this many milliseconds.
    pub dump_period_ms: u32,
    /// Most profiled requests.
    pub max_sampling_count: u32,
}

/// Counts by [`super::Counter::name`], zero ones included, and notes for people.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CoverageReport {
    /// Every counter.
    #[serde(flatten)]
    pub counters: BTreeMap<String, u64>,
    /// Sentences about the task as a whole.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// One profiled request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SegmentReport {
    /// Trace segment id.
    pub segment_id: String,
    /// Trace id: the caller's, if the request carried one.
    #[serde(default)]
    pub trace_id: String,
    /// Service instance that served it.
    #[serde(default)]
    pub service_instance: String,
    /// Endpoint reported: of the request itself, where the task's endpoint stands for several.
    pub endpoint: String,
    /// Method of the request; empty if nobody knows it.
    #[serde(default)]
    pub method: String,
    /// Its path, without query; empty if nobody knows it.
    #[serde(default)]
    pub path: String,
    /// Start, epoch milliseconds.
    pub start_ms: i64,
    /// From the head read to the last write, or to where the request is cut, milliseconds.
    pub duration_ms: i64,
    /// HTTP status, if a response line was seen.
    pub status: Option<u16>,
    /// Why the request's end is not shown: it lasted longer than `duration_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<String>,
    /// The snapshots, by sequence.
    pub snapshots: Vec<SnapshotReport>,
    /// OAP's analysis of the snapshots over the whole segment.
    pub trees: Vec<TreeNode>,
}

impl SegmentReport {
    /// Takes method and path from the tags of a span, as agents write them: `http.method`, and `url` with or without
    /// host and query.
    pub fn read_request<'a>(&mut self, tags: impl IntoIterator<Item = (&'a str, &'a str)>) {
        for (key, value) in tags {
            match key {
                "http.method" => value.clone_into(&mut self.method),
                "url" => {
                    let target = value.split_once("://").map_or(value, |(_, after)| {
                        after.find('/').map_or("/", |at| &after[at..])
                    });
                    let path = target.split('?').next().unwrap_or(target);
                    path.clone_into(&mut self.path);
                }
                _ => {}
            }
        }
    }

    /// Method and path as a name of an endpoint, where the endpoint reported does not say as much.
    #[must_use]
    pub fn concrete(&self) -> Option<String> {
        let own = format!("{}:{}", self.method, self.path);
        (!self.path.is_empty() && own != self.endpoint).then_some(own)
    }
}

/// One thread snapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// From 0, without holes.
    pub sequence: i32,
    /// Epoch milliseconds.
    pub time_ms: i64,
    /// Code signatures, root first.
    pub stack: Vec<String>,
}

/// A node of a call tree, as OAP computes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TreeNode {
    /// Code signature: the node's identity below its parent.
    pub code_signature: String,
    /// Total, milliseconds.
    pub duration_ms: i64,
    /// Total less the children's, milliseconds.
    pub self_ms: i64,
    /// Snapshots through this node.
    pub count: u32,
    /// Callees, in first-seen order.
    pub children: Vec<Self>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that method and path are found in tags, and stand beside the endpoint where they say more.
    #[test]
    fn a_request_is_read_from_tags() {
        let concrete = |endpoint: &str, url: &str| {
            let mut segment = SegmentReport {
                endpoint: endpoint.to_owned(),
                ..SegmentReport::default()
            };
            segment.read_request([("http.method", "GET"), ("url", url), ("x", "y")]);
            segment.concrete()
        };
        let own = |text: &str| Some(text.to_owned());
        assert_eq!(concrete("GET:/a", "http://h:80/a?b=/c"), None);
        assert_eq!(concrete("GET:/a/{id}", "/a/1?b"), own("GET:/a/1"));
        assert_eq!(concrete("*", "http://h"), own("GET:/"));
        assert_eq!(SegmentReport::default().concrete(), None);
    }
}
