//! Turns the call trees of several requests into one.
//!
//! ```text
//! request 1      request 2      merged: total, worst request, count
//! main 100       main 300       main 400, 300
//!   a   40         a  200         a  240, 200
//!   b   50         c   90         c   90,  90
//!                                 b   50,  50
//! ```
//!
//! A node is a path of code signatures. Totals, self times and counts are the sums of what OAP's analysis
//! says of each request, so that those of one request are OAP's own.

use crate::model::{SegmentReport, TreeNode};

/// A function below its callers, over all requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node<'a> {
    /// Code signature.
    pub(super) signature: &'a str,
    /// Milliseconds of all requests.
    pub(super) total_ms: i64,
    /// Milliseconds without its callees.
    pub(super) self_ms: i64,
    /// Milliseconds of the request in which it took longest.
    pub(super) worst_ms: i64,
    /// Snapshots through it.
    pub(super) count: u64,
    /// Callees, the longest first; equals as they were first seen.
    pub(super) children: Vec<Self>,
}

/// One forest of all requests, the longest tree first.
pub(super) fn merge<'a>(segments: impl IntoIterator<Item = &'a SegmentReport>) -> Vec<Node<'a>> {
    let mut merged = Vec::new();
    for segment in segments {
        add(&mut merged, &segment.trees);
    }
    sort(&mut merged);
    merged
}

fn add<'a>(merged: &mut Vec<Node<'a>>, trees: &'a [TreeNode]) {
    for tree in trees {
        let known = merged
            .iter()
            .position(|node| node.signature == tree.code_signature);
        let index = known.unwrap_or(merged.len());
        if known.is_none() {
            merged.push(Node {
                signature: &tree.code_signature,
                total_ms: 0,
                self_ms: 0,
                worst_ms: i64::MIN,
                count: 0,
                children: Vec::new(),
            });
        }
        let node = &mut merged[index];
        node.total_ms = node.total_ms.saturating_add(tree.duration_ms);
        node.self_ms = node.self_ms.saturating_add(tree.self_ms);
        node.worst_ms = node.worst_ms.max(tree.duration_ms);
        node.count = node.count.saturating_add(tree.count.into());
        add(&mut node.children, &tree.children);
    }
}

fn sort(nodes: &mut [Node<'_>]) {
    nodes.sort_by_key(|node| std::cmp::Reverse(node.total_ms));
    for node in nodes {
        sort(&mut node.children);
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    /// `main 100/10(a 40 b 50)` without the punctuation: names with total, worst and count.
    fn draw(nodes: &[Node<'_>]) -> String {
        let drawn: Vec<String> = nodes
            .iter()
            .map(|node| {
                let below = match node.children.as_slice() {
                    [] => String::new(),
                    children => format!(" ({})", draw(children)),
                };
                format!(
                    "{} {}-{}-{}-{}{below}",
                    node.signature, node.total_ms, node.self_ms, node.worst_ms, node.count
                )
            })
            .collect();
        drawn.join(", ")
    }

    /// Check that one request has OAP's numbers, and two have their sums and the worst of each node.
    #[test]
    fn requests_are_summed_by_path() {
        let first = sample::segment("1", &[&["m", "a"], &["m", "a"], &["m", "b"], &["m", "b"]]);
        let second = sample::segment("2", &[&["m", "a"], &["m", "c"], &["m", "c"], &["m", "c"]]);
        assert_eq!(
            draw(&merge([&first])),
            "m 30-10-30-4 (a 10-10-10-2, b 10-10-10-2)"
        );
        assert_eq!(
            draw(&merge([&first, &second])),
            "m 60-20-30-8 (c 20-20-20-3, a 10-10-10-3, b 10-10-10-2)"
        );
        assert_eq!(merge([]), []);
    }
}
