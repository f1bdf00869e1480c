//! Removes frames from a finished report that are not to be shown.

use std::sync::Arc;

use crate::analyze;
use crate::frames::FrameSet;
use crate::model::{ProfileReport, SegmentReport, Snapshot};

/// Reduces the stacks of a report to a set of frames and analyses them anew. Frames that were left out when
/// it was taken stay out; a request of which an OAP gives only the tree stays as it is.
pub fn reduce(report: &mut ProfileReport, frames: FrameSet) {
    if frames == FrameSet::All {
        return;
    }
    for segment in &mut report.segments {
        if !segment.snapshots.is_empty() {
            reduce_segment(segment, frames);
        }
    }
}

fn reduce_segment(segment: &mut SegmentReport, frames: FrameSet) {
    let mut snapshots: Vec<Snapshot> = Vec::with_capacity(segment.snapshots.len());
    for index in 0..segment.snapshots.len() {
        let report = &segment.snapshots[index];
        // A blocked thread repeats its stack.
        let repeated = index
            .checked_sub(1)
            .filter(|&before| segment.snapshots[before].stack == report.stack)
            .map(|before| Arc::clone(&snapshots[before].stack));
        let stack = repeated.unwrap_or_else(|| {
            let stack: Vec<Arc<str>> = report.stack.iter().map(|f| Arc::from(f.as_str())).collect();
            frames.apply_to_signatures(&stack).into()
        });
        snapshots.push(Snapshot {
            sequence: report.sequence,
            unix_ms: report.time_ms,
            stack,
        });
    }
    let analysis = analyze::analyze_snapshots(&snapshots, i64::MIN, i64::MAX);
    segment.trees = analysis.trees.iter().map(analyze::Tree::to_node).collect();
    for (report, snapshot) in segment.snapshots.iter_mut().zip(&snapshots) {
        report.stack = snapshot.stack.iter().map(ToString::to_string).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    /// Check that frames of the kernel become one, at the same times, and that the tree follows.
    #[test]
    fn a_report_is_reduced_to_the_application() {
        let stacks: [&[&str]; 2] = [
            &[
                "main:1",
                "read (libc.so.6)",
                "__x64_sys_read [kernel]",
                "schedule [kernel]",
            ],
            &["main:1", "read (libc.so.6)", "__x64_sys_read [kernel]"],
        ];
        let mut report = sample::report();
        report.segments = vec![sample::segment("s", &stacks)];
        let whole = report.clone();
        reduce(&mut report, FrameSet::All);
        assert_eq!(report, whole);
        reduce(&mut report, FrameSet::Application);
        let segment = &report.segments[0];
        assert_eq!(segment.snapshots[1].stack, ["main:1", "[system call read]"]);
        assert_eq!(
            segment.snapshots[1].time_ms,
            whole.segments[0].snapshots[1].time_ms
        );
        let main = &segment.trees[0];
        assert_eq!((main.duration_ms, main.count), (10, 2));
        assert_eq!(main.children[0].code_signature, "[system call read]");
        assert_eq!(main.children[0].duration_ms, 10);
    }
}
