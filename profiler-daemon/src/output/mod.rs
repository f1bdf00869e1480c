//! Turns a [`ProfileReport`] into what people and other tools read.
//!
//! In:  [`ProfileReport`]
//! Out: a call tree as text, folded stacks, an SVG flame graph, a pprof profile, or JSON
//! Lost: nothing; names are freed of control characters wherever a terminal may show them
//!
//! Two arithmetics meet here. The tree is OAP's analysis, as SkyWalking's UI shows it: the step from
//! one callee to the next belongs to the caller. Folded stacks, flame graphs and pprof profiles weigh
//! snapshots ([`weight`]): each stands for the time until the next. They differ by up to one dump
//! period per change of the stack.

mod coverage;
mod explain;
mod file;
mod folded;
mod merged;
mod own;
mod pprof;
mod reduce;
mod rows;
mod style;
mod svg;
mod text;
mod tree;
mod weight;

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;

use crate::model::ProfileReport;

pub use coverage::{closing_text, counts_text, coverage_text, losses_text, periods_text, row};
pub use explain::{explain, explain_nothing};
pub use file::{check_target, write_file};
pub use reduce::reduce;
use style::Style;
pub use text::{clean, escape_json};

/// Form of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Call trees and the coverage report, for people.
    Tree,
    /// `root;...;leaf N` per distinct stack, N being snapshots: one per dump period.
    Folded,
    /// A flame graph; widths are milliseconds.
    Svg,
    /// gzipped protocol buffer of `perftools.profiles.Profile`.
    Pprof,
    /// One [`ProfileReport`] object.
    Json,
}

impl Format {
    /// All, in the order of the help text.
    pub const ALL: [Self; 5] = [Self::Tree, Self::Folded, Self::Svg, Self::Pprof, Self::Json];

    /// Name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tree => "tree",
            Self::Folded => "folded",
            Self::Svg => "svg",
            Self::Pprof => "pprof",
            Self::Json => "json",
        }
    }

    /// The format that a file name asks for by its ending.
    #[must_use]
    pub fn from_path(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let endings = [
            (".svg", Self::Svg),
            (".json", Self::Json),
            (".pb.gz", Self::Pprof),
            (".pprof", Self::Pprof),
            (".folded", Self::Folded),
            (".collapsed", Self::Folded),
            (".txt", Self::Tree),
        ];
        endings
            .into_iter()
            .find(|(ending, _)| name.ends_with(ending))
            .map(|(_, format)| format)
    }
}

/// Share of the time below which the functions of a tree are not shown unless asked for: what they tell
/// does not pay for its line.
pub const MIN_PERCENT: f64 = 1.0;

/// A form, and what of a report is shown in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    /// The form.
    pub format: Format,
    /// One tree for each request instead of one for all.
    pub each: bool,
    /// Functions with a smaller share of the time, in percent, are left out of trees and counted.
    pub min_percent: f64,
}

impl From<Format> for View {
    fn from(format: Format) -> Self {
        Self {
            format,
            each: false,
            min_percent: MIN_PERCENT,
        }
    }
}

/// Writes a report. Lines are as long as their content; see [`print`] for terminals.
///
/// # Errors
///
/// If `out` fails, or a flame graph is asked for and there is no stack to draw.
pub fn write(report: &ProfileReport, view: impl Into<View>, out: &mut dyn Write) -> Result<()> {
    write_styled(report, view.into(), Style::PLAIN, out)
}

/// Writes a report to an `out` that leads to standard output: the lines of a tree fit the terminal, and have
/// its colours, if there is one.
///
/// # Errors
///
/// Those of [`write`].
pub fn print(report: &ProfileReport, view: impl Into<View>, out: &mut dyn Write) -> Result<()> {
    write_styled(report, view.into(), Style::of_stdout(), out)
}

/// Writes a value as JSON on one line, in which nothing acts on a terminal.
///
/// # Errors
///
/// If `out` fails.
pub fn write_json(value: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    let mut serializer = Serializer::with_formatter(&mut *out, PlainFormatter);
    value.serialize(&mut serializer)?;
    writeln!(out)
}

/// Escapes in strings what serde_json leaves.
struct PlainFormatter;

impl Formatter for PlainFormatter {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        writer.write_all(escape_json(fragment).as_bytes())
    }
}

fn write_styled(
    report: &ProfileReport,
    view: View,
    style: Style,
    out: &mut dyn Write,
) -> Result<()> {
    match view.format {
        Format::Tree => tree::write(report, view, style, out),
        Format::Folded => folded::write(report, out),
        Format::Svg => svg::write(report, out),
        Format::Pprof => pprof::write(report, out),
        Format::Json => write_json(report, out).context("failed to write JSON"),
    }?;
    out.flush().context("failed to write the result")
}

#[cfg(test)]
mod sample;

#[cfg(test)]
mod tests {
    use super::*;

    /// Check which endings choose a format.
    #[test]
    fn endings_choose_the_format() {
        let format = |name: &str| Format::from_path(Path::new(name));
        assert_eq!(format("/tmp/a.SVG"), Some(Format::Svg));
        assert_eq!(format("a.pb.gz"), Some(Format::Pprof));
        assert_eq!(format("a.folded"), Some(Format::Folded));
        assert_eq!(format("a.json"), Some(Format::Json));
        assert_eq!(format("a.gz"), None);
        assert_eq!(format("svg"), None);
    }

    /// Check that JSON is exactly the report, and one line.
    #[test]
    fn json_is_the_report() {
        let report = sample::report();
        let mut out = Vec::new();
        write(&report, Format::Json, &mut out).unwrap();
        assert_eq!(out.iter().filter(|&&byte| byte == b'\n').count(), 1);
        let back: ProfileReport = serde_json::from_slice(&out).unwrap();
        assert_eq!(back, report);
    }
}
