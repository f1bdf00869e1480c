//! `profilerd analyze`: thread snapshots in, call tree out, by OAP's algorithm.
//!
//! In:  a file (or `-`) of JSON lines, see [`crate::analyze::Lines`]; ranges
//! Out: trees on standard output; with `--format json` one object `{"tip", "trees"}`
//! Lost: nothing; a bad line ends the command
//!
//! A SkyWalking query is a list of (segment, range) pairs. Here each range is paired with each
//! segment of the file: ranges in the order given, and within a range the segments in the order in
//! which the file first names them. Without a range each segment is taken as a whole. Several
//! segments are analysed as one query, so OAP's rule applies that a sequence number is used once.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use crate::analyze::{self, Analysis, Lines, OwnedRow, Query, Row};
use crate::model::{ProfileReport, SegmentReport, SnapshotReport, TreeNode};
use crate::output::{self, Format, View};

/// Snapshots in, call trees out.
#[derive(Args, Clone, Debug)]
pub struct AnalyzeArgs {
    /// JSON lines of {"segment_id", "sequence", "time_ms", "stack": [root, ..., leaf]}; - reads
    /// standard input
    #[arg(value_name = "FILE")]
    file: String,

    /// Analyse the snapshots taken from START_MS to END_MS, both included, in epoch milliseconds;
    /// may be given several times. Without it all segments are analysed as a whole
    #[arg(long = "range", value_name = "START_MS-END_MS")]
    ranges: Vec<TimeRange>,

    /// Format of the result
    #[arg(long, value_enum, default_value_t = Format::Tree)]
    format: Format,
}

/// `START_MS-END_MS`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TimeRange {
    start_ms: i64,
    end_ms: i64,
}

impl FromStr for TimeRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('-').and_then(|(start, end)| {
            let number = |digits: &str| {
                let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
                digits.parse::<i64>().ok().filter(|_| is_number)
            };
            Some((number(start)?, number(end)?))
        });
        match parsed {
            Some((start_ms, end_ms)) if start_ms <= end_ms => Ok(Self { start_ms, end_ms }),
            _ => Err(
                "accepted is START_MS-END_MS, two times in epoch milliseconds of which the first \
                 is not the later one, for example 1700000000000-1700000000560"
                    .to_owned(),
            ),
        }
    }
}

/// What `--format json` prints.
#[derive(Serialize)]
struct Object<'a> {
    tip: Option<&'a str>,
    trees: Vec<TreeNode>,
}

/// Runs the command.
///
/// # Errors
///
/// If the file cannot be read or a line is bad; the text names the file, the line and what is wrong.
pub fn run(args: &AnalyzeArgs) -> Result<ExitCode> {
    let rows = if args.file == "-" {
        read(io::stdin().lock())
    } else {
        let file = File::open(&args.file);
        let file = file.with_context(|| format!("failed to open {}", args.file))?;
        read(BufReader::new(file))
    };
    let name = match args.file.as_str() {
        "-" => "standard input",
        file => file,
    };
    let rows = rows.with_context(|| format!("failed to read snapshots from {name}"))?;
    let mut out = io::stdout().lock();
    write(&rows, args, name, &mut out)?;
    out.flush().context("failed to write the result")?;
    Ok(ExitCode::SUCCESS)
}

fn read(input: impl BufRead) -> Result<Vec<OwnedRow>> {
    Ok(Lines::new(input).collect::<Result<Vec<_>, _>>()?)
}

/// Segments in the order of their first row.
fn segments(rows: &[OwnedRow]) -> Vec<Arc<str>> {
    let mut seen = std::collections::HashSet::new();
    let new = rows.iter().filter(|row| seen.insert(&row.segment_id));
    new.map(|row| Arc::clone(&row.segment_id)).collect()
}

/// Each range with each segment; without ranges each segment as a whole.
fn queries<'a>(segments: &'a [Arc<str>], ranges: &[TimeRange]) -> Vec<Query<'a>> {
    let whole = [TimeRange {
        start_ms: i64::MIN,
        end_ms: i64::MAX,
    }];
    let ranges = if ranges.is_empty() { &whole } else { ranges };
    ranges
        .iter()
        .flat_map(|range| {
            segments.iter().map(|segment| Query {
                segment,
                start_ms: range.start_ms,
                end_ms: range.end_ms,
            })
        })
        .collect()
}

fn write(rows: &[OwnedRow], args: &AnalyzeArgs, name: &str, out: &mut dyn Write) -> Result<()> {
    let segments = segments(rows);
    let queries = queries(&segments, &args.ranges);
    let rows: Vec<Row<'_>> = rows.iter().map(OwnedRow::as_row).collect();
    let analysis = analyze::analyze(&rows, &queries);
    if args.format == Format::Json {
        let object = Object {
            tip: analysis.tip.as_deref(),
            trees: analysis.trees.iter().map(analyze::Tree::to_node).collect(),
        };
        return output::write_json(&object, out).context("failed to write the result");
    }
    let selected = analyze::select_rows(&rows, &queries);
    // The whole analysis, as OAP gives it.
    let view = View {
        min_percent: 0.0,
        ..args.format.into()
    };
    output::print(&report(&analysis, &selected, name), view, out)
}

/// The analysis as one request, for the formats that know requests only.
fn report(analysis: &Analysis, rows: &[Row<'_>], name: &str) -> ProfileReport {
    let start_ms = rows.iter().map(|row| row.time_ms).min().unwrap_or_default();
    let end_ms = rows.iter().map(|row| row.time_ms).max().unwrap_or_default();
    let mut ids: Vec<&str> = rows.iter().map(|row| row.segment).collect();
    ids.sort_unstable();
    ids.dedup();
    let mut report = ProfileReport::default();
    report.coverage.notes.extend(analysis.tip.clone());
    report.segments.push(SegmentReport {
        segment_id: ids.join(", "),
        endpoint: name.to_owned(),
        start_ms,
        duration_ms: end_ms.saturating_sub(start_ms),
        snapshots: rows
            .iter()
            .map(|row| SnapshotReport {
                sequence: row.sequence,
                time_ms: row.time_ms,
                stack: row.stack.iter().map(|frame| frame.to_string()).collect(),
            })
            .collect(),
        trees: analysis.trees.iter().map(analyze::Tree::to_node).collect(),
        ..SegmentReport::default()
    });
    report
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: AnalyzeArgs,
    }

    fn json(lines: &str, args: &[&str]) -> serde_json::Value {
        let args = ["analyze", "-", "--format", "json"].iter().chain(args);
        let args = Cli::try_parse_from(args).unwrap().args;
        let mut out = Vec::new();
        write(&read(lines.as_bytes()).unwrap(), &args, "-", &mut out).unwrap();
        serde_json::from_slice(&out).unwrap()
    }

    fn line(segment: &str, sequence: i32, time_ms: i64, stack: &[&str]) -> String {
        let row = json!({
            "segment_id": segment, "sequence": sequence, "time_ms": time_ms, "stack": stack
        });
        format!("{row}\n")
    }

    /// Check the object that is printed: the tip, and trees with the names of `record`.
    #[test]
    fn json_is_an_object_with_tip_and_trees() {
        let lines: String = (0..10)
            .map(|i| {
                let leaf = if i < 4 { "C" } else { "D" };
                line("s", i, i64::from(i) * 10, &["main", "A", "B", leaf])
            })
            .collect();
        let object = json(&lines, &[]);
        assert!(object["tip"].is_null());
        let root = &object["trees"][0];
        assert_eq!(root["code_signature"], "main");
        assert_eq!(root["duration_ms"], 90);
        assert_eq!(root["count"], 10);
        let b = &root["children"][0]["children"][0];
        assert_eq!(b["self_ms"], 10);
        assert_eq!(b["children"].as_array().unwrap().len(), 2);
        assert_eq!(json(&lines, &["--range", "100-200"])["trees"], json!([]));
        assert_eq!(json("", &[])["trees"], json!([]));
    }

    /// Check that each range applies to each segment, and that a sequence is used once.
    #[test]
    fn ranges_apply_to_all_segments() {
        let lines: String = (0..4)
            .map(|i| line("x", i, 100 + i64::from(i) * 10, &["main", "X"]))
            .chain((0..6).map(|i| line("y", i, 500 + i64::from(i) * 10, &["main", "Y"])))
            .collect();
        let whole = json(&lines, &[]);
        assert_eq!(whole["trees"][0]["count"], 6);
        let late = json(&lines, &["--range", "500-600"]);
        assert_eq!(late["trees"][0]["count"], 6);
        assert_eq!(late["trees"][0]["duration_ms"], 50);
        let both = json(&lines, &["--range", "520-600", "--range=100-110"]);
        let children = both["trees"][0]["children"].as_array().unwrap();
        let names: Vec<_> = children.iter().map(|c| &c["code_signature"]).collect();
        assert_eq!(names, ["Y", "X"]);
        assert_eq!(both["trees"][0]["count"], 6); // Y 2..5 and X 0..1
    }

    /// Check that a bad range is refused with the accepted form.
    #[test]
    fn a_bad_range_names_the_accepted_form() {
        for bad in ["5", "5-", "-5", "9-5", "a-b", "+1-5", "1-5-9", "1.0-2"] {
            let argument = format!("--range={bad}");
            let error = Cli::try_parse_from(["analyze", "-", &argument])
                .err()
                .unwrap();
            assert_eq!(error.exit_code(), 2, "{bad}");
            assert!(error.to_string().contains("START_MS-END_MS"), "{bad}");
        }
        assert!(Cli::try_parse_from(["analyze", "-", "--range", "5-5"]).is_ok());
    }

    /// Check that a bad line ends the command and is named.
    #[test]
    fn a_bad_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        let text = format!("{}oops\n", line("s", 0, 0, &["main"]));
        std::fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap();
        let args = Cli::try_parse_from(["analyze", path]).unwrap().args;
        let error = format!("{:#}", run(&args).unwrap_err());
        assert!(error.contains(path), "{error}");
        assert!(error.contains("line 2: expected"), "{error}");
        let args = Cli::try_parse_from(["analyze", "/nonexistent"])
            .unwrap()
            .args;
        let error = format!("{:#}", run(&args).unwrap_err());
        assert!(error.contains("/nonexistent"), "{error}");
    }
}
