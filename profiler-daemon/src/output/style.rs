//! How lines are laid out: the width of the terminal, and colours by kind of frame.

use std::io::{self, IsTerminal as _};

use crate::frames::kind_of;
use crate::model::FrameKind;

/// How lines are laid out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// Columns of the terminal; `None` cuts nothing.
    pub(super) width: Option<usize>,
    /// Names are coloured by the kind of their code.
    pub(super) has_colours: bool,
}

impl Style {
    /// For files and pipes.
    pub(super) const PLAIN: Self = Self {
        width: None,
        has_colours: false,
    };

    /// For standard output: if it is a terminal, for that one.
    pub(super) fn of_stdout() -> Self {
        if !io::stdout().is_terminal() {
            return Self::PLAIN;
        }
        let size = terminal_size::terminal_size();
        let variable = |name| std::env::var_os(name).unwrap_or_default();
        Self {
            width: size.map(|(width, _)| usize::from(width.0)),
            // <https://no-color.org>: any value but the empty one.
            has_colours: variable("NO_COLOR").is_empty() && variable("TERM") != "dumb",
        }
    }

    /// A name as it is printed: coloured by the kind of the signature that it shows.
    pub(super) fn paint(self, name: &str, signature: &str) -> String {
        let colour = match Class::of(signature) {
            _ if !self.has_colours => return name.to_owned(),
            Class::Language => 32, // green
            Class::Native => 33,   // yellow
            Class::Kernel => 36,   // cyan
            Class::Other => return name.to_owned(),
        };
        format!("\u{1b}[{colour}m{name}\u{1b}[0m")
    }
}

/// The kinds of frames that have colours of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Functions of a language with a runtime.
    Language,
    /// Machine code.
    Native,
    /// The kernel, and what a thread waits for.
    Kernel,
    /// No code.
    Other,
}

impl Class {
    pub(super) fn of(signature: &str) -> Self {
        match kind_of(signature) {
            FrameKind::Python | FrameKind::Builtin => Self::Language,
            FrameKind::Native | FrameKind::CLibrary | FrameKind::RuntimeInternal => Self::Native,
            FrameKind::Kernel | FrameKind::Activity => Self::Kernel,
            FrameKind::Elided => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that kinds differ in colour, and that nothing is added without colours.
    #[test]
    fn kinds_have_colours() {
        let style = Style {
            width: None,
            has_colours: true,
        };
        for (signature, painted) in [
            ("shop.pay:7", "\u{1b}[32mx\u{1b}[0m"),
            ("time.sleep", "\u{1b}[32mx\u{1b}[0m"),
            ("PQexec (libpq.so.5)", "\u{1b}[33mx\u{1b}[0m"),
            ("[system call read]", "\u{1b}[36mx\u{1b}[0m"),
            ("do_nanosleep [kernel]", "\u{1b}[36mx\u{1b}[0m"),
            ("...", "x"),
        ] {
            assert_eq!(style.paint("x", signature), painted, "{signature}");
            assert_eq!(Style::PLAIN.paint("x", signature), "x");
        }
    }
}
