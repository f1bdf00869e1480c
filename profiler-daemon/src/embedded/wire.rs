//! Between the model and the messages of `profilerd.v1`, both ways.
//!
//! In a `Segment` every code signature and every stack is sent once and named by index; trees are
//! flat. What arrives is checked: an index out of range is a [`WireError`], never a panic.

use std::collections::HashMap;
use std::sync::Arc;

use profiler_proto::profilerd as pb;
use thiserror::Error;

use super::store::{SegmentData, TaskView};
use super::task::{TaskRecord, TaskRequest, TaskState};
use crate::analyze::{self, Element, Tree, TreeError};
use crate::model::plain::clean;
use crate::model::{
    Counter, Coverage, CoverageReport, SegmentReport, SnapshotReport, TAG_CUT, TaskReport,
};

/// Most counters and notes accepted in one coverage report.
const COVERAGE_MAX_ENTRIES: usize = 256;

/// Why a message cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum WireError {
    /// A signature or stack index has nothing behind it.
    #[error("segment {0} names a text or stack that it does not carry")]
    BadIndex(String),
    /// A tree is none.
    #[error("segment {0}: {1}")]
    BadTree(String, TreeError),
}

/// Coverage as sent.
#[must_use]
pub fn coverage_to_wire(coverage: &Coverage) -> pb::Coverage {
    pb::Coverage {
        counters: Counter::all()
            .filter(|&counter| coverage.get(counter) > 0)
            .map(|counter| (counter.name().to_owned(), coverage.get(counter)))
            .collect(),
        notes: coverage.notes().collect(),
    }
}

/// Coverage as received. Counters with unknown names are skipped, notes are cut and made plain.
#[must_use]
pub fn coverage_from_wire(wire: &pb::Coverage) -> Coverage {
    let mut coverage = Coverage::default();
    for (name, &count) in wire.counters.iter().take(COVERAGE_MAX_ENTRIES) {
        if let Some(counter) = Counter::from_name(name) {
            coverage.set(counter, count);
        }
    }
    for note in wire.notes.iter().take(COVERAGE_MAX_ENTRIES) {
        coverage.note(clean(note));
    }
    coverage
}

/// Coverage in the form of reports.
#[must_use]
pub fn coverage_report(wire: Option<&pb::Coverage>) -> CoverageReport {
    wire.map(coverage_from_wire).unwrap_or_default().to_report()
}

/// A task as sent.
#[must_use]
pub fn task_to_wire(task: &TaskRecord, state: TaskState) -> pb::Task {
    let state = match state {
        TaskState::Scheduled => pb::TaskState::Scheduled,
        TaskState::Waiting => pb::TaskState::Waiting,
        TaskState::Running => pb::TaskState::Running,
        TaskState::Finished => pb::TaskState::Finished,
        TaskState::Expired => pb::TaskState::Expired,
        TaskState::Cancelled => pb::TaskState::Cancelled,
    };
    let request = task.request.clone();
    pb::Task {
        task_id: task.id.clone(),
        service: request.service,
        endpoint: request.endpoint,
        start_ms: request.start_ms,
        duration_minutes: request.duration_minutes,
        min_duration_threshold_ms: request.min_duration_threshold_ms,
        dump_period_ms: request.dump_period_ms,
        max_sampling_count: request.max_sampling_count,
        create_ms: task.create_ms,
        state: state.into(),
    }
}

/// A creation request as received.
#[must_use]
pub fn request_from_wire(wire: pb::CreateTaskRequest) -> TaskRequest {
    TaskRequest {
        service: wire.service,
        endpoint: wire.endpoint,
        start_ms: wire.start_ms,
        duration_minutes: wire.duration_minutes,
        min_duration_threshold_ms: wire.min_duration_threshold_ms,
        dump_period_ms: wire.dump_period_ms,
        max_sampling_count: wire.max_sampling_count,
    }
}

/// A task in the form of reports.
#[must_use]
pub fn task_report(task: &pb::Task) -> TaskReport {
    let count = |n: i32| u32::try_from(n).unwrap_or_default();
    TaskReport {
        task_id: task.task_id.clone(),
        service: task.service.clone(),
        endpoint: task.endpoint.clone(),
        start_ms: task.start_ms,
        duration_ms: i64::from(task.duration_minutes) * 60_000,
        min_duration_threshold_ms: count(task.min_duration_threshold_ms),
        dump_period_ms: count(task.dump_period_ms),
        max_sampling_count: count(task.max_sampling_count),
    }
}

/// A task with its log and counts, as sent.
#[must_use]
pub fn detail_to_wire(view: &TaskView) -> pb::TaskDetail {
    let logs = view.logs.iter().rev().map(|entry| pb::TaskLog {
        service_instance: entry.instance.clone(),
        operation: entry.operation.name().to_owned(),
        time_ms: entry.time_ms,
    });
    pb::TaskDetail {
        task: Some(task_to_wire(&view.task, view.state)),
        logs: logs.collect(),
        coverage: Some(coverage_to_wire(&view.coverage)),
        segments: u32::try_from(view.segments).unwrap_or(u32::MAX),
        snapshots: view.snapshots,
    }
}

/// Numbers texts and stacks in the order of their first use.
#[derive(Default)]
struct Interner {
    texts: HashMap<Arc<str>, u32>,
    signatures: Vec<String>,
}

impl Interner {
    fn text(&mut self, text: &Arc<str>) -> u32 {
        if let Some(&index) = self.texts.get(text) {
            return index;
        }
        let index = self.signatures.len() as u32;
        self.texts.insert(Arc::clone(text), index);
        self.signatures.push(text.to_string());
        index
    }
}

/// A profiled segment as sent, analysed over its whole length.
#[must_use]
pub fn segment_to_wire(data: &SegmentData) -> pb::Segment {
    let summary = &data.summary;
    let analysis = analyze::analyze_snapshots(&data.snapshots, summary.start_ms, summary.end_ms);
    let mut interner = Interner::default();
    let mut stacks = Vec::new();
    let mut stack_indices = HashMap::new();
    let snapshots = data
        .snapshots
        .iter()
        .map(|snapshot| {
            let next = stacks.len() as u32;
            let stack = *stack_indices.entry(&snapshot.stack).or_insert(next);
            if stack == next {
                let frames = snapshot.stack.iter().map(|text| interner.text(text));
                stacks.push(pb::Stack {
                    frames: frames.collect(),
                });
            }
            pb::Snapshot {
                sequence: snapshot.sequence,
                time_ms: snapshot.unix_ms,
                stack,
            }
        })
        .collect();
    let trees = analysis
        .trees
        .iter()
        .map(|tree| {
            let elements = tree.elements().iter().map(|element| pb::Element {
                id: element.id,
                parent_id: element.parent_id,
                signature: interner.text(&element.code_signature),
                duration_ms: element.duration_ms,
                self_ms: element.self_ms,
                count: element.count,
            });
            pb::Tree {
                elements: elements.collect(),
            }
        })
        .collect();
    pb::Segment {
        segment_id: summary.segment_id.clone(),
        trace_id: summary.trace_id.clone(),
        service_instance: summary.instance.clone(),
        endpoint: summary.endpoint.clone(),
        start_ms: summary.start_ms,
        duration_ms: summary.end_ms.saturating_sub(summary.start_ms),
        status: summary.status.map(u32::from),
        signatures: interner.signatures,
        stacks,
        snapshots,
        trees,
        tip: analysis.tip.unwrap_or_default(),
        tags: summary
            .tags
            .iter()
            .map(|(key, value)| pb::Tag {
                key: key.clone(),
                value: value.clone(),
            })
            .collect(),
    }
}

/// A profiled segment in the form of reports.
///
/// # Errors
///
/// [`WireError`] if the message contradicts itself.
pub fn segment_report(wire: pb::Segment) -> Result<SegmentReport, WireError> {
    let bad_index = || WireError::BadIndex(wire.segment_id.clone());
    let mut snapshots = Vec::with_capacity(wire.snapshots.len());
    for snapshot in &wire.snapshots {
        let stack = wire.stacks.get(snapshot.stack as usize);
        let frames = stack.ok_or_else(bad_index)?.frames.iter();
        let texts = frames.map(|&frame| wire.signatures.get(frame as usize).cloned());
        snapshots.push(SnapshotReport {
            sequence: snapshot.sequence,
            time_ms: snapshot.time_ms,
            stack: texts.collect::<Option<_>>().ok_or_else(bad_index)?,
        });
    }
    let mut trees = Vec::with_capacity(wire.trees.len());
    for tree in &wire.trees {
        let elements = tree.elements.iter().map(|element| {
            let text = wire.signatures.get(element.signature as usize)?;
            Some(Element {
                id: element.id,
                parent_id: element.parent_id,
                code_signature: Arc::from(text.as_str()),
                duration_ms: element.duration_ms,
                self_ms: element.self_ms,
                count: element.count,
            })
        });
        let elements = elements.collect::<Option<_>>().ok_or_else(bad_index)?;
        let tree = Tree::try_from_elements(elements)
            .map_err(|error| WireError::BadTree(wire.segment_id.clone(), error))?;
        trees.push(tree.to_node());
    }
    let mut report = SegmentReport::default();
    let tags = wire.tags.iter();
    report.read_request(tags.map(|tag| (tag.key.as_str(), tag.value.as_str())));
    let cut = wire.tags.into_iter().find(|tag| tag.key == TAG_CUT);
    Ok(SegmentReport {
        segment_id: wire.segment_id,
        trace_id: wire.trace_id,
        service_instance: wire.service_instance,
        endpoint: wire.endpoint,
        start_ms: wire.start_ms,
        duration_ms: wire.duration_ms,
        status: wire.status.and_then(|status| u16::try_from(status).ok()),
        cut: cut.map(|tag| tag.value),
        snapshots,
        trees,
        ..report
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::trace::SegmentSummary;
    use crate::model::Snapshot;

    fn data() -> SegmentData {
        let stack = |text: &str| text.split('>').map(Arc::from).collect::<Arc<[Arc<str>]>>();
        let snapshot = |sequence, text| Snapshot {
            sequence,
            unix_ms: 1000 + i64::from(sequence) * 10,
            stack: stack(text),
        };
        SegmentData {
            summary: SegmentSummary {
                segment_id: "s".to_owned(),
                trace_id: "t".to_owned(),
                service: "svc".to_owned(),
                instance: "one".to_owned(),
                endpoint: "/".to_owned(),
                start_ms: 1000,
                end_ms: 1030,
                status: Some(200),
                tags: vec![(TAG_CUT.to_owned(), "the task ended first".to_owned())],
                is_error: false,
            },
            snapshots: vec![
                snapshot(0, "main>a"),
                snapshot(1, "main>a"),
                snapshot(2, "main>b"),
            ],
        }
    }

    /// Check that a segment survives the wire, with repeated stacks sent once.
    #[test]
    fn a_segment_survives_the_wire() {
        let wire = segment_to_wire(&data());
        assert_eq!(wire.signatures, ["main", "a", "b"]);
        assert_eq!(wire.stacks.len(), 2);
        let report = segment_report(wire).unwrap();
        assert_eq!(report.snapshots.len(), 3);
        assert_eq!(report.snapshots[2].stack, ["main", "b"]);
        assert_eq!((report.start_ms, report.duration_ms), (1000, 30));
        assert_eq!(report.status, Some(200));
        assert_eq!(report.cut.as_deref(), Some("the task ended first"));
        let root = &report.trees[0];
        assert_eq!((root.duration_ms, root.self_ms, root.count), (20, 10, 3));
        assert_eq!(root.children.len(), 2);
    }

    /// Check that indices without anything behind them and broken trees are errors.
    #[test]
    fn contradictions_are_errors() {
        let mut wire = segment_to_wire(&data());
        wire.snapshots[0].stack = 9;
        assert!(matches!(segment_report(wire), Err(WireError::BadIndex(_))));
        let mut wire = segment_to_wire(&data());
        wire.stacks[0].frames[0] = 9;
        assert!(matches!(segment_report(wire), Err(WireError::BadIndex(_))));
        let mut wire = segment_to_wire(&data());
        wire.trees[0].elements[1].parent_id = 7;
        assert!(matches!(segment_report(wire), Err(WireError::BadTree(..))));
    }

    /// Check that coverage survives the wire and that foreign counters and long notes are bounded.
    #[test]
    fn coverage_survives_the_wire() {
        let mut coverage = Coverage::default();
        coverage.add(Counter::RequestsMatched, 3);
        coverage.note("a note");
        let mut wire = coverage_to_wire(&coverage);
        assert_eq!(wire.counters.len(), 1);
        assert_eq!(coverage_from_wire(&wire), coverage);
        wire.counters.insert("unheard_of".to_owned(), 1);
        wire.notes = vec!["ä".repeat(1000)];
        let read = coverage_from_wire(&wire);
        assert_eq!(read.get(Counter::RequestsMatched), 3);
        assert!(read.notes().all(|note| note.len() < 2000));
    }
}
