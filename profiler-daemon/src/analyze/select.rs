//! Turns queries into the rows that are analysed: time range to sequence range, cap, duplicates.

use std::collections::{HashMap, HashSet};

use super::{MAX_SNAPSHOTS, Query, Row};

/// The rows to analyse, in encounter order.
pub(super) struct Selection<'a> {
    pub(super) rows: Vec<Row<'a>>,
    pub(super) tip: Option<String>,
}

/// Applies `queries` in order.
///
/// A time range only decides the first and the last sequence; what lies between them is taken
/// whatever its time. The pages of 500 in which OAP reads a range do not change the result.
pub(super) fn select<'a>(rows: &[Row<'a>], queries: &[Query<'_>]) -> Selection<'a> {
    let mut segments: HashMap<&str, Vec<Row<'a>>> = HashMap::new();
    for row in rows {
        segments.entry(row.segment).or_default().push(*row);
    }
    for rows in segments.values_mut() {
        rows.sort_by_key(|row| row.sequence); // stable: of two equal rows the first given wins
    }

    let mut total = 0_i64;
    let mut seen = HashSet::new();
    let mut selected = Vec::new();
    for query in queries {
        let Some(rows) = segments.get(query.segment) else {
            continue;
        };
        let Some((low, high)) = sequence_range(rows, query) else {
            continue;
        };
        total += high - low; // holes count as well
        let high = high.min(low + MAX_SNAPSHOTS);
        let first = rows.partition_point(|row| i64::from(row.sequence) < low);
        let last = rows.partition_point(|row| i64::from(row.sequence) < high);
        for row in &rows[first..last] {
            if seen.insert(row.sequence) {
                selected.push(*row);
            }
        }
    }
    selected.retain(|row| !row.stack.is_empty());
    Selection {
        rows: selected,
        tip: (total > MAX_SNAPSHOTS).then(|| {
            format!(
                "Out of snapshot analyze limit, {total} snapshots found, but analysis first \
                 {MAX_SNAPSHOTS} snapshots only."
            )
        }),
    }
}

/// Sequences `low..high` of the rows in the time range; `None` if there are none.
fn sequence_range(rows: &[Row<'_>], query: &Query<'_>) -> Option<(i64, i64)> {
    let mut inside = rows
        .iter()
        .filter(|row| (query.start_ms..=query.end_ms).contains(&row.time_ms))
        .map(|row| i64::from(row.sequence));
    let low = inside.next()?; // rows are sorted by sequence
    let high = inside.next_back().unwrap_or(low) + 1;
    (high > 0).then_some((low, high))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn rows<'a>(segment: &'a str, times: &[i64], stack: &'a [Arc<str>]) -> Vec<Row<'a>> {
        times
            .iter()
            .zip(0..)
            .map(|(&time_ms, sequence)| Row {
                segment,
                sequence,
                time_ms,
                stack,
            })
            .collect()
    }

    fn all(segment: &str) -> Query<'_> {
        Query {
            segment,
            start_ms: 0,
            end_ms: i64::MAX,
        }
    }

    fn sequences(selection: &Selection<'_>) -> Vec<i32> {
        selection.rows.iter().map(|row| row.sequence).collect()
    }

    /// Check that both ends of a time range are included.
    #[test]
    fn both_ends_of_a_range_are_included() {
        let stack = [Arc::from("main")];
        let rows = rows("s", &[0, 10, 20, 30, 40], &stack);
        let query = Query {
            segment: "s",
            start_ms: 10,
            end_ms: 30,
        };
        assert_eq!(sequences(&select(&rows, &[query])), [1, 2, 3]);
    }

    /// Check that a row between the first and the last sequence is taken whatever its time.
    #[test]
    fn the_range_is_one_of_sequences() {
        let stack = [Arc::from("main")];
        let rows = rows("s", &[10, 99, 20], &stack);
        let query = Query {
            segment: "s",
            start_ms: 10,
            end_ms: 20,
        };
        assert_eq!(sequences(&select(&rows, &[query])), [0, 1, 2]);
    }

    /// Check that a range without a snapshot, an unknown segment and no query select nothing.
    #[test]
    fn nothing_in_range_selects_nothing() {
        let stack = [Arc::from("main")];
        let rows = rows("s", &[10, 20], &stack);
        let query = Query {
            segment: "s",
            start_ms: 11,
            end_ms: 19,
        };
        assert!(select(&rows, &[query]).rows.is_empty());
        assert!(select(&rows, &[all("unknown")]).rows.is_empty());
        assert!(select(&rows, &[]).rows.is_empty());
    }

    /// Check that several ranges of one segment give each snapshot once, in query order.
    #[test]
    fn overlapping_ranges_give_each_snapshot_once() {
        let stack = [Arc::from("main")];
        let rows = rows("s", &[0, 10, 20, 30], &stack);
        let late = Query {
            segment: "s",
            start_ms: 20,
            end_ms: 30,
        };
        let selection = select(&rows, &[late, all("s")]);
        assert_eq!(sequences(&selection), [2, 3, 0, 1]);
    }

    /// Check that the cap applies to each query, that the tip counts all of them, and that the
    /// rows of a second segment are dropped where the first had the same sequence.
    #[test]
    fn the_cap_is_per_query_and_the_tip_counts_all() {
        let stack = [Arc::from("main")];
        let times: Vec<i64> = (0..12_500).map(|i| i * 10).collect();
        let rows = rows("s", &times, &stack);
        let selection = select(&rows, &[all("s")]);
        assert_eq!(selection.rows.len(), 12_000);
        assert_eq!(
            selection.tip.as_deref(),
            Some(
                "Out of snapshot analyze limit, 12500 snapshots found, but analysis first 12000 \
                 snapshots only."
            )
        );
        let head = Query {
            segment: "s",
            start_ms: 0,
            end_ms: 119_990,
        };
        assert_eq!(select(&rows, &[head]).tip, None);
        let tail = Query {
            segment: "s",
            start_ms: 120_000,
            end_ms: i64::MAX,
        };
        let selection = select(&rows, &[head, tail]);
        assert_eq!(selection.rows.len(), 12_500);
        assert!(selection.tip.is_some_and(|tip| tip.contains("12500")));
    }

    /// Check that a hole counts towards the limit, as it does in OAP.
    #[test]
    fn holes_count_towards_the_limit() {
        let stack = [Arc::from("main")];
        let mut rows = rows("s", &[0, 10], &stack);
        rows[1].sequence = 12_000;
        let selection = select(&rows, &[all("s")]);
        assert_eq!(sequences(&selection), [0]);
        assert!(selection.tip.is_some_and(|tip| tip.contains("12001")));
    }

    /// Check that negative sequences are taken if one at 0 or above follows, and only then.
    #[test]
    fn negative_sequences_need_a_natural_one() {
        let stack = [Arc::from("main")];
        let mut rows = rows("s", &[0, 10], &stack);
        rows[0].sequence = -1;
        rows[1].sequence = 0;
        assert_eq!(sequences(&select(&rows, &[all("s")])), [-1, 0]);
        assert!(select(&rows[..1], &[all("s")]).rows.is_empty());
    }
}
