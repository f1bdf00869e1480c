//! Turns a report into text for people: per request a call tree, at the end the coverage.
//!
//! ```text
//! GET:/a  60 ms  status 200                            one head per request
//!   total ms  self ms  count
//!         60        0      7  main                     a chain of only children stays in one column,
//!         50       20      5  +- a                     so that sixty frames need no sixty indents;
//!         30       30      3  |  b                     callees of one caller: the longest first
//!         10       10      2  `- c
//! ```

use std::io::Write;

use anyhow::{Context, Result};

use super::coverage::coverage_text;
use super::text::{clean, fit};
use crate::model::date::utc;
use crate::model::{ProfileReport, SegmentReport, TreeNode};

/// Columns that branches may take; beyond, the oldest ones are left out.
const INDENT_MAX_CHARS: usize = 48;
/// Least columns for a name, however narrow the terminal is.
const NAME_MIN_CHARS: usize = 24;

/// How lines are laid out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// Columns of the terminal; `None` cuts nothing.
    width: Option<usize>,
}

impl Style {
    /// For files and pipes.
    pub(super) const PLAIN: Self = Self { width: None };

    /// For the terminal that we run in.
    pub(super) fn of_terminal() -> Self {
        let size = terminal_size::terminal_size();
        Self {
            width: size.map(|(width, _)| usize::from(width.0)),
        }
    }
}

pub(super) fn write(report: &ProfileReport, style: Style, out: &mut dyn Write) -> Result<()> {
    let mut text = head(report);
    for segment in &report.segments {
        text.push('\n');
        write_segment(segment, style, &mut text);
    }
    let coverage = coverage_text(&report.coverage);
    if !coverage.is_empty() {
        text.push('\n');
        text.push_str(&coverage);
    }
    out.write_all(text.as_bytes())
        .context("failed to write the call trees")
}

/// What was asked for. A report of `analyze` has no task.
fn head(report: &ProfileReport) -> String {
    let task = &report.task;
    if task.endpoint.is_empty() {
        return String::new();
    }
    let requests = report.segments.len();
    let mut text = format!(
        "{} of {}: {requests} request{} profiled, one stack per {} ms",
        clean(&task.endpoint),
        clean(&task.service),
        if requests == 1 { "" } else { "s" },
        task.dump_period_ms
    );
    if task.min_duration_threshold_ms > 0 {
        let threshold = task.min_duration_threshold_ms;
        text.push_str(&format!(", slower than {threshold} ms"));
    }
    text.push('\n');
    text
}

fn write_segment(segment: &SegmentReport, style: Style, text: &mut String) {
    let status = segment.status;
    let status = status.map_or_else(String::new, |status| format!("  status {status}"));
    text.push_str(&format!(
        "{}  {} ms{status}\n",
        clean(&segment.endpoint),
        segment.duration_ms
    ));
    let mut facts = vec![
        utc(segment.start_ms),
        format!("{} snapshots", segment.snapshots.len()),
    ];
    for (name, value) in [
        ("instance", &segment.service_instance),
        ("segment", &segment.segment_id),
        ("trace", &segment.trace_id),
    ] {
        if !value.is_empty() {
            facts.push(format!("{name} {}", clean(value)));
        }
    }
    text.push_str(&format!("  {}\n", facts.join(", ")));
    if segment.trees.is_empty() {
        text.push_str("  no call tree: there are no snapshots\n");
        return;
    }
    text.push_str("  total ms   self ms   count\n");
    for tree in by_duration(&segment.trees) {
        Rows { style, text }.write(tree, &mut String::new(), "");
    }
}

/// The longest first; equals stay in the order in which they were first seen.
fn by_duration(nodes: &[TreeNode]) -> Vec<&TreeNode> {
    let mut sorted: Vec<&TreeNode> = nodes.iter().collect();
    sorted.sort_by_key(|node| std::cmp::Reverse(node.duration_ms));
    sorted
}

struct Rows<'a> {
    style: Style,
    text: &'a mut String,
}

impl Rows<'_> {
    /// A node and what is below it. `indent` is what stands before the names of this column.
    fn write(&mut self, node: &TreeNode, indent: &mut String, branch: &str) {
        let (mut node, mut branch) = (node, branch);
        loop {
            self.row(node, indent, branch);
            // From the second row on the branch continues as a line, or is over.
            if !branch.is_empty() {
                indent.push_str(if branch.starts_with('├') {
                    "│  "
                } else {
                    "   "
                });
                branch = "";
            }
            match node.children.as_slice() {
                [] => return,
                [only] => node = only,
                children => {
                    let last = children.len() - 1;
                    for (index, child) in by_duration(children).into_iter().enumerate() {
                        let length = indent.len();
                        let branch = if index == last { "└─ " } else { "├─ " };
                        self.write(child, indent, branch);
                        indent.truncate(length);
                    }
                    return;
                }
            }
        }
    }

    fn row(&mut self, node: &TreeNode, indent: &str, branch: &str) {
        let chars = indent.chars().count() + branch.chars().count();
        let (dots, skipped) = match chars.checked_sub(INDENT_MAX_CHARS) {
            Some(over) if over > 0 => ("\u{2026}", over + 1),
            _ => ("", 0),
        };
        let numbers = format!(
            "{:>10}{:>10}{:>8}  ",
            node.duration_ms, node.self_ms, node.count
        );
        let lines: String = indent.chars().chain(branch.chars()).skip(skipped).collect();
        let name = clean(&node.code_signature);
        let name = match self.style.width {
            Some(width) => {
                let used = numbers.len() + chars.min(INDENT_MAX_CHARS);
                fit(&name, width.saturating_sub(used).max(NAME_MIN_CHARS))
            }
            None => name,
        };
        self.text
            .push_str(&format!("{numbers}{dots}{lines}{name}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn text(report: &ProfileReport, width: Option<usize>) -> String {
        let mut out = Vec::new();
        write(report, Style { width }, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// Check the whole text of a small report.
    #[test]
    fn a_small_report_reads_well() {
        insta::assert_snapshot!(text(&sample::report(), Some(80)), @r"
        GET:/a<b of shop: 1 request profiled, one stack per 10 ms

        GET:/a<b  60 ms  status 200
          2023-11-14 22:13:20.123 UTC, 7 snapshots, instance shop-1, segment s1, trace t1
          total ms   self ms   count
                60        10       7  main
                40        20       5  ├─ a
                20        20       3  │  b
                10        10       2  └─ c

        coverage: 7 of 7 dump periods of profiled requests have a snapshot (100.0 %)
          requests
                   3  request heads read by processes of the task's service
                   1  requests whose endpoint matched
                   1  matched requests that were profiled and reported
        ");
    }

    /// Check that a chain of only children stays in one column and that deep branches stay narrow.
    #[test]
    fn deep_trees_stay_narrow() {
        let leaf = |name: &str| TreeNode {
            code_signature: name.to_owned(),
            ..TreeNode::default()
        };
        let mut node = leaf("deepest");
        for _ in 0..300 {
            node = TreeNode {
                children: vec![node, leaf("side")],
                ..leaf("branch")
            };
        }
        for _ in 0..60 {
            node = TreeNode {
                children: vec![node],
                ..leaf("chain")
            };
        }
        let mut report = sample::report();
        report.segments[0].trees = vec![node];
        let text = text(&report, Some(120));
        assert!(text.lines().all(|line| line.chars().count() <= 120));
        let chain = text.lines().filter(|line| line.ends_with("  chain"));
        assert_eq!(chain.count(), 60);
        assert!(text.contains("deepest"));
    }

    /// Check that long names are cut to the terminal, and only there.
    #[test]
    fn names_are_cut_to_the_terminal() {
        let mut report = sample::report();
        report.segments[0].trees[0].code_signature = "x".repeat(300);
        let row = |text: String| text.lines().find(|l| l.contains("xx")).unwrap().to_owned();
        assert_eq!(row(text(&report, Some(80))).chars().count(), 80);
        assert!(row(text(&report, None)).ends_with(&"x".repeat(300)));
    }

    /// Check that names of other users' processes cannot drive the terminal.
    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        let mut report = sample::report();
        report.segments[0].trees[0].code_signature = "\u{1b}]0;title\u{7}".to_owned();
        report.segments[0].endpoint = "GET:/\u{1b}[31m".to_owned();
        report.coverage.notes.push("\u{1b}[2J".to_owned());
        assert!(!text(&report, None).contains(['\u{1b}', '\u{7}']));
    }
}
