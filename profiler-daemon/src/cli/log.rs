//! Starts the log, whose lines nobody else can write.
//!
//! In:  a filter; events, with values that come from processes, clients and OAPs
//! Out: a line on standard error for each event
//! Lost: nothing; characters that act on a terminal or begin a line are escaped
//!
//! `tracing_subscriber` writes the values of fields as they are, line feeds included.

use std::fmt::{self, Debug, Write as _};
use std::io::{self, IsTerminal as _};

use tracing::field::{Field, Visit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

use crate::model::plain::Escaping;

/// Field with the text of an event.
const MESSAGE: &str = "message";
/// Begins the fields by which records of the crate `log` say where they come from.
const ORIGIN: &str = "log.";

/// Starts the log on standard error: by the flag, else by `RUST_LOG`, else at `level`.
pub(super) fn start(flag: Option<&str>, level: &str) {
    let named = match flag {
        Some(flag) => EnvFilter::try_new(flag).ok(), // checked by the parser
        None => EnvFilter::try_from_default_env().ok(),
    };
    tracing_subscriber::fmt()
        .with_env_filter(named.unwrap_or_else(|| EnvFilter::new(level)))
        .fmt_fields(PlainFields)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

/// Writes the fields of an event: its message, then `name=value`.
struct PlainFields;

impl<'w> FormatFields<'w> for PlainFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut line = Line {
            writer,
            is_empty: true,
            written: Ok(()),
        };
        fields.record(&mut line);
        line.written
    }
}

struct Line<'w> {
    writer: Writer<'w>,
    is_empty: bool,
    written: fmt::Result,
}

impl Line<'_> {
    fn add(&mut self, field: &Field, value: fmt::Arguments<'_>) -> fmt::Result {
        let name = field.name();
        if name.starts_with(ORIGIN) {
            return Ok(());
        }
        if !self.is_empty {
            self.writer.write_char(' ')?;
        }
        self.is_empty = false;
        if name != MESSAGE {
            // Italic, and a faint sign.
            match self.writer.has_ansi_escapes() {
                true => write!(self.writer, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m")?,
                false => write!(self.writer, "{name}=")?,
            }
        }
        Escaping(&mut self.writer).write_fmt(value)
    }
}

impl Visit for Line<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == MESSAGE {
            self.record_debug(field, &format_args!("{value}"));
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if self.written.is_ok() {
            self.written = self.add(field, format_args!("{value:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::model::plain::{HOSTILE, is_plain};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Check that an event is one line whatever its values are, in each way in which a value can be given, and that usual
    /// values are written as ever.
    #[test]
    fn an_event_is_one_line() {
        let lines = Lines::default();
        let writer = lines.clone();
        let log = tracing_subscriber::fmt()
            .fmt_fields(PlainFields)
            .without_time()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let forged = format!("1\n2026-01-01T00:00:00Z  INFO profiler_daemon: forged{HOSTILE}");
        tracing::subscriber::with_default(log, || {
            let error = io::Error::other(forged.clone());
            tracing::info!(task_id = %forged, "display");
            tracing::info!(task_id = forged, text = ?forged, "values");
            tracing::info!(%error, error_value = &error as &dyn std::error::Error, "error");
            tracing::info!("message {forged}");
            tracing::info_span!("span", task_id = %forged).in_scope(|| tracing::info!("in a span"));
            tracing::warn!(tgid = 7, path = "/a b", "process {} watched", 7);
        });
        let bytes = lines.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.lines().count(), 6, "{text}");
        assert!(text.lines().all(is_plain), "{text}");
        let last = text.lines().last().unwrap();
        assert!(
            last.ends_with(" process 7 watched tgid=7 path=\"/a b\""),
            "{last}"
        );
    }
}
