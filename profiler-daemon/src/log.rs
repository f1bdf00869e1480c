//! Starts the log, whose lines nobody else can write.
//!
//! In:  a filter; events, with values that come from processes, clients and OAPs
//! Out: a line on standard error for each event, as text or as JSON
//! Lost: nothing; characters that act on a terminal or begin a line are escaped
//!
//! `tracing_subscriber` writes the values of fields as they are, as text line feeds included.

use std::fmt::{self, Debug, Write as _};
use std::io::{self, IsTerminal as _};
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt as lines, reload};

use crate::config::{LogFormat, LogLevel, Origin};
use crate::model::plain::{Escaping, escape_json};

/// Field with the text of an event.
const MESSAGE: &str = "message";
/// Begins the fields by which records of the crate `log` say where they come from.
const ORIGIN: &str = "log.";

/// The log of this process.
static STARTED: OnceLock<Started> = OnceLock::new();

struct Started {
    format: LogFormat,
    /// Level unless the configuration names one.
    usual: &'static str,
    filter: reload::Handle<EnvFilter, Registry>,
    /// Who decides on the filter instead of the configuration.
    decider: Option<Origin>,
}

/// The filter that is used whatever the configuration says, and who gave it: the flag, else `RUST_LOG`, unless that is empty
/// or no filter.
pub(crate) fn filter_given(flag: Option<&str>) -> Option<(String, Origin)> {
    if let Some(flag) = flag {
        return Some((filter_of(flag), Origin::Option("--log-level"))); // checked by the parser
    }
    let filter = std::env::var(EnvFilter::DEFAULT_ENV).ok()?;
    let is_filter = !filter.is_empty() && EnvFilter::try_new(&filter).is_ok();
    is_filter.then_some((filter, Origin::Variable(EnvFilter::DEFAULT_ENV)))
}

/// The filter that a level stands for; another filter is itself. Details of libraries, such as a line for each instruction of
/// a BPF program that is relocated, would hide our own: they are shown to who names the library.
fn filter_of(level: &str) -> String {
    match level.to_ascii_lowercase().as_str() {
        "debug" | "trace" => format!("info,profiler_daemon={level},profiler_ebpf={level}"),
        _ => level.to_owned(),
    }
}

/// Starts the log on standard error: by the flag, else by `RUST_LOG`, else by the configuration, else at the `usual` level.
pub(crate) fn start(
    flag: Option<&str>,
    level: Option<LogLevel>,
    usual: &'static str,
    format: LogFormat,
) {
    let (filter, decider) = filter_given(flag).unzip();
    let filter = filter.unwrap_or_else(|| filter_of(level.map_or(usual, LogLevel::name)));
    let filter = EnvFilter::new(filter);
    let (filter, handle) = reload::Layer::new(filter);
    let text = lines::layer()
        .fmt_fields(PlainFields)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let json = lines::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(PlainJson(io::stderr));
    let is_json = format == LogFormat::Json;
    tracing_subscriber::registry()
        .with(filter)
        .with((!is_json).then_some(text))
        .with(is_json.then_some(json))
        .init();
    let started = Started {
        format,
        usual,
        filter: handle,
        decider,
    };
    // A second log cannot be started.
    let _ = STARTED.set(started);
}

/// Whether lines are JSON.
pub(crate) fn is_json() -> bool {
    STARTED
        .get()
        .is_some_and(|started| started.format == LogFormat::Json)
}

/// Changes the level to that of the configuration.
///
/// # Errors
///
/// What decides on the level instead.
pub(crate) fn set_level(level: Option<LogLevel>) -> Result<(), Origin> {
    let Some(started) = STARTED.get() else {
        return Ok(());
    };
    if let Some(decider) = started.decider {
        return Err(decider);
    }
    let filter = EnvFilter::new(filter_of(level.map_or(started.usual, LogLevel::name)));
    // It fails if the subscriber is gone, and so is the log.
    let _ = started.filter.reload(filter);
    Ok(())
}

/// Writes lines of JSON of which no character acts, where the inner one writes.
struct PlainJson<W>(W);

impl<'w, W: MakeWriter<'w>> MakeWriter<'w> for PlainJson<W> {
    type Writer = PlainJson<W::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        PlainJson(self.0.make_writer())
    }
}

impl<W: io::Write> io::Write for PlainJson<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        self.0.write_all(escape_json(&text).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
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

    /// Check that a level shows our own details and not those of libraries, and that each of its filters is one.
    #[test]
    fn a_level_is_about_our_own_modules() {
        assert_eq!(filter_of("warn"), "warn");
        assert_eq!(filter_of("info,aya=debug"), "info,aya=debug");
        for level in ["debug", "trace", "DEBUG"] {
            let written = Lines::default();
            let writer = written.clone();
            let log = tracing_subscriber::fmt()
                .with_env_filter(EnvFilter::try_new(filter_of(level)).unwrap())
                .with_writer(move || writer.clone())
                .finish();
            tracing::subscriber::with_default(log, || {
                tracing::debug!("ours");
                tracing::debug!(target: "profiler_ebpf", "a program's");
                tracing::debug!(target: "aya_obj::relocation", "of a library");
                tracing::info!(target: "aya", "important");
            });
            let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
            let shown = |what: &str| text.contains(what);
            assert!(
                shown("ours") && shown("a program's") && shown("important"),
                "{text}"
            );
            assert!(!shown("of a library"), "{text}");
        }
    }

    /// Check that an event is one JSON object on one line whatever its values are, and what it is called there.
    #[test]
    fn an_event_is_one_json_object() {
        let written = Lines::default();
        let writer = written.clone();
        let log = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_writer(PlainJson(move || writer.clone()))
            .finish();
        let forged = format!("1\n{{}}{HOSTILE}");
        tracing::subscriber::with_default(log, || {
            tracing::warn!(target: "profiler_daemon::app", tgid = 7, path = %forged, "process {} watched", 7);
            tracing::error!("message {forged}");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines.iter().all(|line| is_plain(line)), "{text}");
        let first: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
        let mut names: Vec<&String> = first.as_object().unwrap().keys().collect();
        names.sort();
        assert_eq!(
            names,
            ["level", "message", "path", "target", "tgid", "timestamp"]
        );
        assert_eq!(first["level"], "WARN");
        assert_eq!(first["message"], "process 7 watched");
        assert_eq!(first["target"], "profiler_daemon::app");
        assert_eq!(first["tgid"], 7);
        assert_eq!(first["path"].as_str().unwrap(), forged);
        let second: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
        assert_eq!(second["message"], format!("message {forged}"));
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
