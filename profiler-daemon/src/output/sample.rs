//! A report as tests of this folder need it.

use std::sync::Arc;

use crate::analyze;
use crate::model::{
    Counter, Coverage, ProfileReport, SegmentReport, Snapshot, SnapshotReport, TaskReport,
};

/// One request of 60 ms: 20 ms in `a`, 30 ms in `a > b`, 10 ms in `c`.
pub(super) fn report() -> ProfileReport {
    let stacks: [&[&str]; 7] = [
        &["main", "a"],
        &["main", "a"],
        &["main", "a", "b"],
        &["main", "a", "b"],
        &["main", "a", "b"],
        &["main", "c"],
        &["main", "c"],
    ];
    let mut coverage = Coverage::default();
    for (counter, n) in [
        (Counter::RequestsSeen, 3),
        (Counter::RequestsMatched, 1),
        (Counter::RequestsProfiled, 1),
        (Counter::PeriodsExpected, 7),
        (Counter::PeriodsSampled, 7),
    ] {
        coverage.add(counter, n);
    }
    ProfileReport {
        task: TaskReport {
            task_id: "1700000000000_c2hvcA==.1".to_owned(),
            service: "shop".to_owned(),
            endpoint: "GET:/a<b".to_owned(),
            start_ms: 1_700_000_000_000,
            duration_ms: 60_000,
            min_duration_threshold_ms: 0,
            dump_period_ms: 10,
            max_sampling_count: 5,
        },
        coverage: coverage.to_report(),
        segments: vec![segment("s1", &stacks)],
    }
}

/// A segment with one stack per 10 ms, root first.
pub(super) fn segment(id: &str, stacks: &[&[&str]]) -> SegmentReport {
    let start_ms = 1_700_000_000_123;
    let snapshots: Vec<Snapshot> = (0..)
        .zip(stacks)
        .map(|(sequence, stack)| Snapshot {
            sequence,
            unix_ms: start_ms + i64::from(sequence) * 10,
            stack: stack.iter().map(|&frame| Arc::from(frame)).collect(),
        })
        .collect();
    let duration_ms = (stacks.len() as i64 - 1).max(0) * 10;
    let analysis = analyze::analyze_snapshots(&snapshots, i64::MIN, i64::MAX);
    SegmentReport {
        segment_id: id.to_owned(),
        trace_id: "t1".to_owned(),
        service_instance: "shop-1".to_owned(),
        endpoint: "GET:/a<b".to_owned(),
        method: "GET".to_owned(),
        path: "/a<b".to_owned(),
        start_ms,
        duration_ms,
        status: Some(200),
        cut: None,
        snapshots: snapshots
            .iter()
            .map(|snapshot| SnapshotReport {
                sequence: snapshot.sequence,
                time_ms: snapshot.unix_ms,
                stack: snapshot.stack.iter().map(ToString::to_string).collect(),
            })
            .collect(),
        trees: analysis.trees.iter().map(analyze::Tree::to_node).collect(),
    }
}
