//! Where a result goes and in which form: the same for all commands that have one.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::model::ProfileReport;
use crate::output::{self, Format};

/// Exit code of a result without any profiled request.
pub(super) const EXIT_NO_REQUEST: u8 = 3;

#[derive(Args, Clone, Debug)]
pub(super) struct OutputArgs {
    /// File for the result instead of standard output; it is complete or not there
    #[arg(short, long, value_name = "FILE", value_parser = output_file)]
    output: Option<PathBuf>,

    /// Form of the result; if not given, by the ending of FILE (.svg, .json, .pb.gz, .folded),
    /// else tree
    #[arg(long, value_enum)]
    format: Option<Format>,
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
    /// the reason go to standard error.
    pub(super) fn deliver(&self, report: &ProfileReport, out: &mut dyn Write) -> Result<u8> {
        let format = self.format();
        let why = output::explain(report);
        if why.is_none() || format == Format::Json {
            match &self.output {
                Some(file) => output::write_file(report, format, file)?,
                None => output::print(report, format, out)?,
            }
        }
        // A tree and an object bring their coverage along.
        if why.is_some() || !matches!(format, Format::Tree | Format::Json) {
            eprint!("{}", output::coverage_text(&report.coverage));
        }
        let Some(why) = why else {
            return Ok(0);
        };
        eprintln!("profilerd: {why}");
        Ok(EXIT_NO_REQUEST)
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
            assert_eq!(args.deliver(&report, &mut out).unwrap(), EXIT_NO_REQUEST);
            assert_eq!(!out.is_empty(), is_written, "{format}");
        }
    }
}
