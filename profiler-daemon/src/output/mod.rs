//! Stand-in with the agreed signatures until the output module is merged.

use std::io::Write;

use crate::model::{CoverageReport, ProfileReport, TreeNode};

/// Output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Text.
    Tree,
    /// JSON.
    Json,
}

/// Writes a report.
///
/// # Errors
///
/// If `out` fails.
pub fn write(report: &ProfileReport, format: Format, out: &mut dyn Write) -> anyhow::Result<()> {
    if format == Format::Json {
        serde_json::to_writer(&mut *out, report)?;
        return Ok(());
    }
    for segment in &report.segments {
        writeln!(out, "{} {} ms", segment.endpoint, segment.duration_ms)?;
        for tree in &segment.trees {
            write_node(tree, 1, out)?;
        }
    }
    Ok(())
}

fn write_node(node: &TreeNode, depth: usize, out: &mut dyn Write) -> anyhow::Result<()> {
    let (total, own, count) = (node.duration_ms, node.self_ms, node.count);
    writeln!(
        out,
        "{total:8} {own:8} {count:6} {:depth$}{}",
        "", node.code_signature
    )?;
    node.children
        .iter()
        .try_for_each(|child| write_node(child, depth + 1, out))
}

/// Non-zero counters and notes.
#[must_use]
pub fn coverage_text(coverage: &CoverageReport) -> String {
    let counters = coverage.counters.iter().filter(|&(_, &count)| count > 0);
    let counters = counters.map(|(name, count)| format!("{name} {count}"));
    let lines: Vec<String> = counters.chain(coverage.notes.iter().cloned()).collect();
    lines.join("\n")
}

/// Why there is no data.
#[must_use]
pub fn explain(report: &ProfileReport) -> Option<String> {
    report
        .segments
        .is_empty()
        .then(|| "no request was profiled".to_owned())
}
