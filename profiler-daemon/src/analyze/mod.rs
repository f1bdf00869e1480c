//! Turns thread snapshots into call trees, with exactly OAP's semantics.
//!
//! In:  [`Row`]s (stored snapshots) and [`Query`]s (a segment and a time range each)
//! Out: [`Analysis`]: one [`Tree`] per distinct root frame, and OAP's tip when its limit cut rows
//! Lost: rows over [`MAX_SNAPSHOTS`] per query (the tip says so); frames below [`MAX_DEPTH`]
//!
//! # The rules
//!
//! ```text
//! time      0    10   20   30   40   50      sequence 4 is missing
//! sequence  0    1    2    3    .    5
//! stack     A    A    A>B  A>B       A>B
//!           |----------- A ----|     .       A: one run 0..3 = 30 ms; the run {5} adds 0
//!                     |-- B ---|     .       B: one run 2..3 = 10 ms; the step 1 -> 2 is A's own
//! ```
//!
//! A node is a path of code signatures. Its count is the number of snapshots through it; its
//! duration is the sum, over runs of consecutive sequence numbers, of the last snapshot's time less
//! the first's. So a lone snapshot lasts 0 ms, a missing number loses two periods, the step from one
//! child to the next belongs to the parent, and times that run backwards give negative values.
//! Several queries are analysed as one: a sequence number that was already seen, in whatever
//! segment, is dropped. That is a defect of OAP that users of its results see, so it is kept.
//!
//! # Where it comes from
//!
//! `ProfileAnalyzer`, `ProfileStackNode` and `ProfileAnalyzeCollector` of the OAP server
//! (`oap-server/server-core/.../profiling/trace/analyze`), 10.1.0 and later. Three differences:
//! durations are 64 bits wide and saturate, where OAP's 32 bits throw above 24.8 days; rows are
//! taken in sequence order within a query, where OAP takes the storage's; and a range without any
//! snapshot adds nothing, as on Elasticsearch since 10.3, where SQL storages add sequence 0.

mod lines;
mod order;
mod select;
mod tree;
#[cfg(test)]
mod worked_example;

use std::sync::Arc;

use crate::model::Snapshot;

pub use lines::{LineError, Lines, OwnedRow};
pub use tree::{Element, Tree, TreeError};

/// Most snapshots analysed for one query (`maxQueryCount` in OAP's `CoreModuleConfig`).
pub const MAX_SNAPSHOTS: i64 = 12_000;

/// Deepest call tree built. Agents send at most 501 frames; the nesting of [`crate::model::TreeNode`]
/// has to stay within a thread's stack.
pub const MAX_DEPTH: usize = 1024;

/// One stored snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Trace segment it belongs to.
    pub segment: &'a str,
    /// Number within the segment.
    pub sequence: i32,
    /// Epoch milliseconds.
    pub time_ms: i64,
    /// Code signatures, root first.
    pub stack: &'a [Arc<str>],
}

/// What to analyse: the snapshots of a segment taken in `start_ms..=end_ms`.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Trace segment.
    pub segment: &'a str,
    /// First instant, epoch milliseconds.
    pub start_ms: i64,
    /// Last instant, epoch milliseconds; included.
    pub end_ms: i64,
}

/// The result of an analysis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Analysis {
    /// Why the trees do not cover everything, in OAP's words.
    pub tip: Option<String>,
    /// One tree per distinct root frame, in OAP's order.
    pub trees: Vec<Tree>,
}

/// Analyses `rows` for `queries`, in the order of the queries.
#[must_use]
pub fn analyze(rows: &[Row<'_>], queries: &[Query<'_>]) -> Analysis {
    let selection = select::select(rows, queries);
    Analysis {
        tip: selection.tip,
        trees: tree::build(&selection.rows),
    }
}

/// The rows that [`analyze`] would take, in encounter order.
#[must_use]
pub fn select_rows<'a>(rows: &[Row<'a>], queries: &[Query<'_>]) -> Vec<Row<'a>> {
    select::select(rows, queries).rows
}

/// Analyses one segment over `start_ms..=end_ms`.
#[must_use]
pub fn analyze_snapshots(snapshots: &[Snapshot], start_ms: i64, end_ms: i64) -> Analysis {
    const SEGMENT: &str = "";
    let rows: Vec<Row<'_>> = snapshots
        .iter()
        .map(|snapshot| Row {
            segment: SEGMENT,
            sequence: snapshot.sequence,
            time_ms: snapshot.unix_ms,
            stack: &snapshot.stack,
        })
        .collect();
    let query = Query {
        segment: SEGMENT,
        start_ms,
        end_ms,
    };
    analyze(&rows, &[query])
}
