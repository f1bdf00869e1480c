//! Names the endpoints of the requests of a task that stands for several.

use std::collections::BTreeMap;

use crate::model::SegmentReport;

/// Endpoints named in one line.
const NAMED_MAX: usize = 3;

/// The endpoints of the requests with their numbers, the most frequent first; none if all have the task's.
pub(super) fn own_endpoints(task: &str, segments: &[SegmentReport]) -> Option<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for segment in segments.iter().filter(|it| !it.endpoint.is_empty()) {
        *counts.entry(&segment.endpoint).or_default() += 1;
    }
    if counts.keys().all(|name| *name == task) {
        return None;
    }
    let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    let mut names: Vec<String> = counts
        .iter()
        .take(NAMED_MAX)
        .map(|(name, count)| match count {
            1 => (*name).to_owned(),
            count => format!("{name} ({count})"),
        })
        .collect();
    if let Some(more @ 1..) = counts.len().checked_sub(NAMED_MAX) {
        names.push(format!("{more} others"));
    }
    Some(names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that endpoints are named by their number, and not if they are what was asked for.
    #[test]
    fn endpoints_of_requests_are_named() {
        let of = |task: &str, names: &[&str]| {
            let segments: Vec<SegmentReport> = names
                .iter()
                .map(|name| SegmentReport {
                    endpoint: (*name).to_owned(),
                    ..SegmentReport::default()
                })
                .collect();
            own_endpoints(task, &segments)
        };
        assert_eq!(of("/a", &["/a", "/a"]), None);
        assert_eq!(of("*", &[]), None);
        assert_eq!(
            of("*", &["GET:/b", "GET:/a", "GET:/a"]).unwrap(),
            "GET:/a (2), GET:/b"
        );
        assert_eq!(
            of("*", &["a", "b", "c", "d", "e"]).unwrap(),
            "a, b, c, 2 others"
        );
    }
}
