//! Turns a report into text for people: one call tree of all requests, or one of each, and what was lost.
//!
//! ```text
//! GET:/a of shop: 2 requests profiled, one stack per 10 ms     what was asked
//! mean 55.0 ms, worst 60 ms (2023-11-14 22:13:20.123 UTC, trace t1), status 200
//!   mean ms  worst ms   self ms   count  share
//!      55.0        60       5.0      14  ########## 100 %  main     a chain of only children stays in one
//!      45.0        50      20.0      10  ########    81 %  +- a     column, so that sixty frames need no
//!      25.0        30      25.0       6  #####       45 %  |  b     sixty indents;
//!       5.0        10       5.0       4  #            9 %  `- c     callees of one caller: the longest first
//! profiled 2 of 2 matching requests; 100.0 % of their time was seen
//! ```
//!
//! Functions below [`View::min_percent`] of the time are left out and counted; so are those between the root
//! and the first function that does more than call the next one.
//!
//! The times of one request are OAP's own. Those of several are means over all of them: a request that
//! never came through a function counts with zero.

use std::io::Write;

use anyhow::{Context, Result};

use super::View;
use super::coverage::{closing_text, losses_text};
use super::merged::merge;
use super::own::own_endpoints;
use super::rows::Rows;
use super::style::Style;
use super::text::clean;
use crate::model::date::utc;
use crate::model::{ProfileReport, SegmentReport};

pub(super) fn write(
    report: &ProfileReport,
    view: View,
    style: Style,
    out: &mut dyn Write,
) -> Result<()> {
    let mut text = head(report);
    match report.segments.as_slice() {
        [] => {}
        [segment] => write_segment(segment, view, style, &mut text),
        segments if view.each => {
            for segment in segments {
                text.push('\n');
                write_segment(segment, view, style, &mut text);
            }
        }
        segments => write_all(&report.task.endpoint, segments, view, style, &mut text),
    }
    let losses = losses_text(&report.coverage);
    if !losses.is_empty() {
        text.push('\n');
        text.push_str(&losses);
    }
    if !report.task.endpoint.is_empty() {
        text.push('\n');
        text.push_str(&closing_text(report));
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

/// One tree of all requests; `task` is the endpoint that was asked for.
fn write_all(task: &str, segments: &[SegmentReport], view: View, style: Style, text: &mut String) {
    let total_ms = segments
        .iter()
        .fold(0_i64, |sum, s| sum.saturating_add(s.duration_ms));
    let requests = segments.len();
    let mean_ms = total_ms as f64 / requests as f64;
    text.push_str(&format!("mean {mean_ms:.1} ms"));
    if let Some(worst) = segments.iter().max_by_key(|s| s.duration_ms) {
        let facts = [vec![utc(worst.start_ms)], ids(worst)].concat().join(", ");
        text.push_str(&format!(", worst {} ms ({facts})", worst.duration_ms));
    }
    text.push_str(&statuses(segments));
    text.push('\n');
    if let Some(endpoints) = own_endpoints(task, segments) {
        text.push_str(&format!("  requests were to {}\n", clean(&endpoints)));
    }
    let cut = segments.iter().filter(|segment| segment.cut.is_some());
    match cut.count() {
        0 => {}
        1 => text.push_str("  1 of them is cut at the end: it lasted longer than is shown\n"),
        cut => text.push_str(&format!(
            "  {cut} of them are cut at the end: they lasted longer than is shown\n"
        )),
    }
    Rows::new(requests, view, style, text).write(&merge(segments));
}

/// The tree of one request, under its own facts.
fn write_segment(segment: &SegmentReport, view: View, style: Style, text: &mut String) {
    text.push_str(&format!(
        "{}  {} ms{}\n",
        clean(&segment.endpoint),
        segment.duration_ms,
        statuses(std::slice::from_ref(segment))
    ));
    let mut facts = vec![
        utc(segment.start_ms),
        format!("{} snapshots", segment.snapshots.len()),
    ];
    facts.extend(ids(segment));
    text.push_str(&format!("  {}\n", facts.join(", ")));
    if let Some(why) = &segment.cut {
        text.push_str(&format!(
            "  cut at the end, it lasted longer: {}\n",
            clean(why)
        ));
    }
    Rows::new(1, view, style, text).write(&merge([segment]));
}

/// What names a request elsewhere.
fn ids(segment: &SegmentReport) -> Vec<String> {
    let concrete = segment.concrete().unwrap_or_default();
    let ids = [
        ("request", &concrete),
        ("instance", &segment.service_instance),
        ("segment", &segment.segment_id),
        ("trace", &segment.trace_id),
    ];
    // A request without a caller's trace has a trace of its own, with the id of its segment.
    let is_told = |name: &str| name == "segment" && segment.segment_id == segment.trace_id;
    let given = ids
        .into_iter()
        .filter(|(name, value)| !value.is_empty() && !is_told(name));
    given
        .map(|(name, value)| format!("{name} {}", clean(value)))
        .collect()
}

/// `, status 200`, `, status 200 and 503`; empty if none is known.
fn statuses(segments: &[SegmentReport]) -> String {
    let mut known: Vec<u16> = segments.iter().filter_map(|s| s.status).collect();
    known.sort_unstable();
    known.dedup();
    let known: Vec<String> = known.iter().map(u16::to_string).collect();
    match known.as_slice() {
        [] => String::new(),
        known => format!(", status {}", known.join(" and ")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Format, sample};
    use super::*;
    use crate::model::TreeNode;

    fn text_of(report: &ProfileReport, view: View, width: Option<usize>) -> String {
        let style = Style {
            width,
            ..Style::PLAIN
        };
        let mut out = Vec::new();
        write(report, view, style, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn text(report: &ProfileReport, width: Option<usize>) -> String {
        text_of(report, Format::Tree.into(), width)
    }

    /// Two requests; the second is 100 ms longer in `b` and never comes to `c`.
    fn two_requests() -> ProfileReport {
        let mut report = sample::report();
        let mut stacks: Vec<&[&str]> = vec![&["main", "a"]; 3];
        stacks.extend(vec![&["main", "a", "b"][..]; 14]);
        let mut second = sample::segment("s2", &stacks);
        second.status = Some(503);
        report.segments.push(second);
        let counters = &mut report.coverage.counters;
        counters.insert("requests_matched".to_owned(), 2);
        report
    }

    /// Check the whole text of a report with one request, whose numbers are OAP's.
    #[test]
    fn a_small_report_reads_well() {
        insta::assert_snapshot!(text(&sample::report(), Some(100)), @r"
        GET:/a<b of shop: 1 request profiled, one stack per 10 ms
        GET:/a<b  60 ms, status 200
          2023-11-14 22:13:20.123 UTC, 7 snapshots, instance shop-1, segment s1, trace t1

          total ms   self ms   count  share
                60        10       7  ██████████ 100 %  main
                40        20       5  ██████▋     66 %  ├─ a
                20        20       3  ███▍        33 %  │  b
                10        10       2  █▋          16 %  └─ c

        profiled 1 of 1 matching requests; 100.0 % of their time was seen
        ");
    }

    /// Check that a request with a trace of its own is named once.
    #[test]
    fn one_id_is_told_once() {
        let mut report = sample::report();
        let segment = &mut report.segments[0];
        segment.trace_id.clone_from(&segment.segment_id);
        let text = text(&report, None);
        assert!(text.contains("instance shop-1, trace s1\n"), "{text}");
    }

    /// Check that several requests are one tree of means, with the worst request of each function.
    #[test]
    fn several_requests_are_one_tree() {
        insta::assert_snapshot!(text(&two_requests(), Some(100)), @r"
        GET:/a<b of shop: 2 requests profiled, one stack per 10 ms
        mean 110.0 ms, worst 160 ms (2023-11-14 22:13:20.123 UTC, instance shop-1, segment s2, trace t1), status 200 and 503

           mean ms  worst ms   self ms   count  share
             110.0       160       5.0      24  ██████████ 100 %  main
             100.0       160      25.0      22  █████████▏  90 %  ├─ a
              75.0       130      75.0      17  ██████▉     68 %  │  b
               5.0        10       5.0       2  ▌            4 %  └─ c

        profiled 2 of 2 matching requests; 100.0 % of their time was seen
        ");
    }

    /// Check that functions at the root that only call the next one are counted, and shown if asked for.
    #[test]
    fn the_trunk_is_short() {
        let mut report = sample::report();
        let stack: &[&str] = &["run", "loop", "serve", "handle", "work", "leaf"];
        let own = &stack[..5];
        report.segments = vec![sample::segment("s", &[stack, stack, own, own])];
        let names = |text: &str| -> Vec<String> {
            let rows = text.lines().filter_map(|line| line.split(" %  ").nth(1));
            rows.map(str::to_owned).collect()
        };
        let text = text(&report, None);
        assert_eq!(names(&text), ["run", "work", "leaf"], "{text}");
        let counted = text.lines().find(|line| line.contains('\u{22ee}')).unwrap();
        assert_eq!(
            counted.trim(),
            "\u{22ee} 3 functions that only call the next one"
        );
        let all = View {
            min_percent: 0.0,
            ..Format::Tree.into()
        };
        let text = text_of(&report, all, None);
        assert_eq!(names(&text), stack, "{text}");
    }

    /// Check that each request can have its own tree.
    #[test]
    fn each_request_can_have_its_tree() {
        let view = View {
            each: true,
            ..Format::Tree.into()
        };
        let text = text_of(&two_requests(), view, None);
        assert_eq!(text.matches("total ms").count(), 2, "{text}");
        assert!(text.contains("GET:/a<b  160 ms, status 503"), "{text}");
    }

    /// Check that short functions are one line that counts them, and that all can be asked for.
    #[test]
    fn short_functions_are_counted() {
        let mut report = sample::report();
        let leaf = |name: &str, ms: i64, children| TreeNode {
            code_signature: name.to_owned(),
            duration_ms: ms,
            self_ms: ms,
            count: 1,
            children,
        };
        report.segments[0].trees = vec![leaf(
            "main",
            1000,
            vec![
                leaf("long", 10, vec![]),
                leaf("short", 9, vec![leaf("below", 9, vec![])]),
                leaf("never", 0, vec![]),
            ],
        )];
        let text = text_of(&report, Format::Tree.into(), None);
        assert!(text.contains("  main\n"), "{text}");
        assert!(text.contains("  long\n"), "an only child: {text}");
        assert!(!text.contains("short") && !text.contains("never"), "{text}");
        assert!(
            text.contains(
                "  3 functions below 1 %, 9 ms in all, not shown (--min-percent 0 shows them)\n"
            ),
            "{text}"
        );
        let all = View {
            min_percent: 0.0,
            ..Format::Tree.into()
        };
        let text = text_of(&report, all, None);
        assert!(
            text.contains("never") && !text.contains("not shown"),
            "{text}"
        );
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
