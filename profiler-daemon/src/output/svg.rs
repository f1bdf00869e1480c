//! Turns snapshots into a flame graph: one SVG file that needs no server.

use std::io::Write;

use anyhow::{Context, Result, bail};
use inferno::flamegraph::{self, Options};

use super::folded;
use super::text::clean;
use crate::model::ProfileReport;

pub(super) fn write(report: &ProfileReport, out: &mut dyn Write) -> Result<()> {
    let mut lines = folded::lines(report, |weighted| weighted.wall_ms);
    if lines.is_empty() {
        // Requests shorter than a millisecond have snapshots and no time: draw the snapshots.
        lines = folded::lines(report, |_| 1);
    }
    if lines.is_empty() {
        bail!("there is no stack to draw: no request was profiled");
    }
    let mut options = Options::default();
    options.title = clean(&report.task.endpoint).into_owned();
    options.subtitle = Some(subtitle(report));
    options.count_name = "ms".to_owned();
    options.name_type = "Function:".to_owned();
    // Equal input, equal picture.
    options.deterministic = true;
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), out)
        .context("failed to draw the flame graph")
}

fn subtitle(report: &ProfileReport) -> String {
    let requests = report.segments.len();
    let total_ms = report
        .segments
        .iter()
        .fold(0_i64, |sum, s| sum.saturating_add(s.duration_ms));
    format!(
        "{}: {requests} request{}, {total_ms} ms of wall-clock time, one stack per {} ms",
        clean(&report.task.service),
        if requests == 1 { "" } else { "s" },
        report.task.dump_period_ms
    )
}

#[cfg(test)]
mod tests {
    use super::super::{Format, sample, write};
    use crate::model::ProfileReport;

    /// Check that the graph is titled by the endpoint, weighs milliseconds and escapes names.
    #[test]
    fn the_graph_weighs_milliseconds() {
        let mut out = Vec::new();
        write(&sample::report(), Format::Svg, &mut out).unwrap();
        let svg = String::from_utf8(out).unwrap();
        assert!(svg.contains("GET:/a&lt;b"), "the title");
        assert!(svg.contains("<title>main (60 ms, 100.00%)</title>"));
        assert!(svg.contains("<title>b (30 ms, 50.00%)</title>"));
        assert!(svg.contains("shop: 1 request, 60 ms"));
    }

    /// Check that a report without stacks is an error, not an empty picture.
    #[test]
    fn nothing_to_draw_is_an_error() {
        let mut out = Vec::new();
        let error = write(&ProfileReport::default(), Format::Svg, &mut out).unwrap_err();
        assert!(error.to_string().contains("no stack to draw"));
        assert!(out.is_empty());
    }
}
