//! Names of result formats and sets of frames on the command line.

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::frames::FrameSet;
use crate::output::Format;

impl ValueEnum for Format {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()).help(match self {
            Self::Tree => "call trees and the coverage report, for people",
            Self::Folded => "lines `root;...;leaf N`, one per stack; N is its number of snapshots",
            Self::Svg => "a flame graph to open in a browser; widths are milliseconds",
            Self::Pprof => "a gzipped profile for `go tool pprof`",
            Self::Json => "one object with task, coverage, segments, snapshots and trees",
        }))
    }
}

impl ValueEnum for FrameSet {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()).help(match self {
            Self::Application => {
                "functions of the application, the builtins they called, and what they wait for"
            }
            Self::All => "also frames of the interpreter, of thread start and of the kernel",
        }))
    }
}
