//! Where a result goes and in which form: the same for all commands that have one.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::shell;
use crate::frames::FrameSet;
use crate::model::ProfileReport;
use crate::model::plain::clean_lines;
use crate::output::{self, Format, View};

/// Exit code of a result without any profiled request.
pub(super) const EXIT_NO_REQUEST: u8 = 3;

#[derive(Args, Clone, Debug)]
pub(super) struct OutputArgs {
    /// Write the result to this file instead of standard output; the file is complete or not written at all
    #[arg(short, long, value_name = "FILE", value_parser = output_file)]
    output: Option<PathBuf>,

    /// Format of the result; by default chosen by the extension of FILE (.svg, .json, .pb.gz,
    /// .folded), otherwise tree
    #[arg(long, value_enum)]
    format: Option<Format>,

    /// Frames to show, instead of the configured ones; frames that were left out when the result
    /// was recorded cannot be shown
    #[arg(long, value_enum)]
    pub(super) frames: Option<FrameSet>,

    /// With trees: print one for each request instead of one for all requests
    #[arg(long)]
    each: bool,

    /// With trees: leave out functions below this share of the time, in percent, 0 to 100
    #[arg(long, value_name = "PERCENT", default_value_t = output::MIN_PERCENT, value_parser = percent)]
    min_percent: f64,
}

fn percent(text: &str) -> Result<f64, String> {
    let percent = text.parse().ok();
    let accepted = percent.filter(|percent| (0.0..=100.0).contains(percent));
    accepted.ok_or_else(|| "accepted is a number from 0 to 100".to_owned())
}

fn output_file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match output::check_target(&path) {
        Ok(()) => Ok(path),
        Err(error) => Err(error.to_string()),
    }
}

impl OutputArgs {
    pub(super) fn format(&self) -> Format {
        let by_name = self.output.as_deref().and_then(Format::from_path);
        self.format.or(by_name).unwrap_or(Format::Tree)
    }

    /// Writes a result to its file or to `out`, which leads to standard output; returns the exit
    /// code. A result without requests is still an object, but no tree and no picture: coverage and
    /// the reason go to standard error. `again` is the command that gives the result once more: what to
    /// try next begins with it.
    pub(super) fn deliver(
        &self,
        report: &ProfileReport,
        again: &[String],
        out: &mut dyn Write,
    ) -> Result<u8> {
        let format = self.format();
        let view = View {
            each: self.each,
            min_percent: self.min_percent,
            ..format.into()
        };
        let why = output::explain(report);
        if why.is_none() || format == Format::Json {
            match &self.output {
                Some(file) => output::write_file(report, view, file)?,
                None => output::print(report, view, out)?,
            }
        }
        let Some(why) = why else {
            let next = self.next(again);
            // A tree ends with what was seen and lost; beside what is for programs it is said here.
            if format == Format::Tree && self.output.is_none() {
                writeln!(out, "{next}")?;
            } else {
                let losses = output::losses_text(&report.coverage);
                let closing = output::closing_text(report);
                eprintln!("{}", clean_lines(&format!("{losses}{closing}{next}")));
            }
            return Ok(0);
        };
        eprint!("{}", clean_lines(&output::coverage_text(&report.coverage)));
        super::say(&why);
        Ok(EXIT_NO_REQUEST)
    }

    /// The command to try next.
    fn next(&self, again: &[String]) -> String {
        let mut again = shell::command(again);
        if let Some(frames) = self.frames {
            again.push_str(&format!(" --frames {}", frames.name()));
        }
        let file = self
            .output
            .as_deref()
            .map(|file| shell::quote(&file.to_string_lossy()));
        match (self.format(), file) {
            (Format::Tree | Format::Folded, _) => {
                format!("next: {again} -o flame.svg  (a flame graph, for a browser)")
            }
            (Format::Pprof, Some(file)) => format!("next: go tool pprof -http=: {file}"),
            (Format::Pprof, None) => format!("next: {again} -o profile.pb.gz"),
            (Format::Svg | Format::Json, _) => {
                format!("next: {again} --format tree  (where the time went, as text)")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: OutputArgs,
    }

    fn parse(args: &[&str]) -> Result<OutputArgs, String> {
        let parsed = Cli::try_parse_from(["x"].iter().chain(args));
        parsed
            .map(|cli| cli.args)
            .map_err(|error| error.to_string())
    }

    /// Check that a file's ending gives the format unless one is named.
    #[test]
    fn the_ending_gives_the_format() {
        let format = |args: &[&str]| parse(args).unwrap().format();
        assert_eq!(format(&[]), Format::Tree);
        assert_eq!(format(&["-o", "/tmp/x.svg"]), Format::Svg);
        assert_eq!(
            format(&["--output", "/tmp/x.svg", "--format", "json"]),
            Format::Json
        );
        assert!(
            parse(&["-o", "/tmp"])
                .unwrap_err()
                .contains("is a directory")
        );
        assert!(parse(&["--format", "xml"]).unwrap_err().contains("folded"));
    }

    /// Check that a result without requests is an object and exit code 3, and otherwise nothing.
    #[test]
    fn a_result_without_requests_is_only_an_object() {
        let report = ProfileReport::default();
        for (format, is_written) in [("json", true), ("tree", false), ("svg", false)] {
            let mut out = Vec::new();
            let args = parse(&["--format", format]).unwrap();
            assert_eq!(
                args.deliver(&report, &["x".to_owned()], &mut out).unwrap(),
                EXIT_NO_REQUEST
            );
            assert_eq!(!out.is_empty(), is_written, "{format}");
        }
    }

    /// Check that a result ends with what was seen of how much, and a command to try.
    #[test]
    fn a_result_ends_with_what_to_try_next() {
        let mut report = ProfileReport::default();
        report.task.endpoint = "/a".to_owned();
        report.segments.push(Default::default());
        for (name, n) in [
            ("requests_matched", 2),
            ("periods_expected", 1000),
            ("periods_sampled", 992),
        ] {
            report.coverage.counters.insert(name.to_owned(), n);
        }
        let mut out = Vec::new();
        let again = ["profilerd", "record", "--endpoint", "GET:/orders/{id}"].map(str::to_owned);
        parse(&[])
            .unwrap()
            .deliver(&report, &again, &mut out)
            .unwrap();
        let text = String::from_utf8(out).unwrap();
        let end: Vec<&str> = text.lines().rev().take(2).collect();
        assert_eq!(
            end,
            [
                "next: profilerd record --endpoint 'GET:/orders/{id}' -o flame.svg  (a flame graph, for a browser)",
                "profiled 1 of 2 matching requests; 99.2 % of their time was seen",
            ]
        );
    }

    /// Check which command follows which form.
    #[test]
    fn the_next_command_depends_on_the_form() {
        let next = |args: &[&str]| parse(args).unwrap().next(&["again".to_owned()]);
        assert!(next(&["--format", "folded"]).starts_with("next: again -o flame.svg"));
        assert_eq!(
            next(&["-o", "/tmp/a b.pb.gz"]),
            "next: go tool pprof -http=: '/tmp/a b.pb.gz'"
        );
        assert!(next(&["-o", "/tmp/x.svg"]).starts_with("next: again --format tree"));
    }

    /// Check that shares out of range are refused with the range.
    #[test]
    fn shares_are_checked() {
        assert!(parse(&["--min-percent", "0.5"]).is_ok());
        for bad in ["-1", "101", "NaN", "x"] {
            let error = parse(&[&format!("--min-percent={bad}")]).unwrap_err();
            assert!(error.contains("from 0 to 100"), "{error}");
        }
    }
}
