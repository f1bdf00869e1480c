//! Turns a YAML file into [`Config`]; errors name file, line and what was meant.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer};
use serde_json::Value;
use serde_path_to_error::Track;
use thiserror::Error;

use super::Config;
use super::plain::PlainTexts;

/// Largest file read: a thousand rules have a tenth of it.
const FILE_MAX_BYTES: u64 = 1 << 20;
/// Most nodes that aliases (`*name`) of anchors (`&name`) stand for, altogether. A few lines in which each list
/// names the one before ten times would be billions.
const ALIASED_NODES_MAX: usize = 10_000;
/// Least likeness (Jaro-Winkler, 0 to 1) of a key that is offered for an unknown one.
const LIKENESS_MIN: f64 = 0.75;

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("failed to read the configuration {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A key or value in the file.
    #[error("{file}:{line}:{column}: {problem}")]
    Content {
        /// The file.
        file: String,
        /// Line, from 1.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// What is wrong and what is accepted.
        problem: String,
    },
    /// A variable.
    #[error("the variable {name}: {problem}")]
    Variable {
        /// Name of the variable.
        name: String,
        /// What is wrong and what is accepted.
        problem: String,
    },
}

/// The text of a file.
pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = File::open(path).map_err(unreadable)?;
    let length = file
        .take(FILE_MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if length as u64 > FILE_MAX_BYTES {
        return Err(unreadable(io::Error::other("it is larger than 1 MiB")));
    }
    Ok(text)
}

/// Reads the text of a file; `file` names it in errors.
pub(super) fn parse(text: &str, file: &str) -> Result<Config, ConfigError> {
    let mut track = Track::new();
    // A file of comments only is an empty document.
    let parsed = serde_saphyr::from_str_with_options::<Option<PlainTexts>>(text, options())
        .and_then(|_| {
            serde_saphyr::with_deserializer_from_str_with_options(text, options(), |values| {
                let values = serde_path_to_error::Deserializer::new(values, &mut track);
                Option::<Config>::deserialize(values)
            })
        });
    parsed.map(Option::unwrap_or_default).map_err(|error| {
        let location = error.location();
        ConfigError::Content {
            file: file.to_owned(),
            line: location.as_ref().map_or(0, serde_saphyr::Location::line),
            column: location.as_ref().map_or(0, serde_saphyr::Location::column),
            problem: problem(&error, &track.path()),
        }
    })
}

/// The values of a text that [`parse`] accepts.
pub(super) fn value(text: &str) -> anyhow::Result<Value> {
    let value: Option<Value> = serde_saphyr::from_str_with_options(text, options())?;
    Ok(value.unwrap_or_default())
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: ALIASED_NODES_MAX,
        },
    }
}

/// What is wrong with the value of a key.
fn problem(error: &serde_saphyr::Error, key: &serde_path_to_error::Path) -> String {
    use serde_saphyr::Error as E;
    let problem = match error.without_snippet() {
        E::SerdeUnknownField {
            field, expected, ..
        } => return unknown("key", field, expected),
        E::SerdeUnknownVariant {
            variant, expected, ..
        } => unknown("value", variant, expected),
        E::SerdeMissingField { field, .. } => format!("the key {field:?} is missing"),
        other => other.to_string(),
    };
    match key.iter().next() {
        Some(_) => format!("{key}: {problem}"),
        None => problem,
    }
}

fn unknown(what: &str, given: &str, known: &[&str]) -> String {
    let hint = match nearest(given, known.iter().copied()) {
        Some(name) => format!("did you mean {name:?}? "),
        None => String::new(),
    };
    format!(
        "unknown {what} {given:?}; {hint}known here: {}",
        known.join(", ")
    )
}

/// The known name that is most like `given`, if one is like it at all.
#[must_use]
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |name: &str| strsim::jaro_winkler(&given.to_lowercase(), &name.to_lowercase());
    let rated = known.into_iter().map(|name| (likeness(name), name));
    rated
        .filter(|&(likeness, _)| likeness >= LIKENESS_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// A section whose keys are all commented out is null, and means its defaults.
pub(super) fn section<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text, "p.yaml").unwrap_err().to_string()
    }

    /// Check that an unknown key is answered with file, line and the nearest known key.
    #[test]
    fn an_unknown_key_is_answered_with_the_nearest() {
        let text = error("oap:\n  backends: [a:1]\n  poll_intervall: 5s\n");
        assert!(
            text.starts_with("p.yaml:3:3: unknown key \"poll_intervall\""),
            "{text}"
        );
        assert!(text.contains("did you mean \"poll_interval\"?"), "{text}");
        let text = error("zzz: 1\n");
        assert!(
            text.starts_with("p.yaml:1:1:") && !text.contains("did you mean"),
            "{text}"
        );
        assert!(text.contains("known here: oap, services"), "{text}");
    }

    /// Check that a value out of range is answered with the range, at its line.
    #[test]
    fn a_bad_value_is_answered_with_the_range() {
        let text = error("oap:\n  poll_interval: 1ms\n");
        assert!(text.starts_with("p.yaml:2:"), "{text}");
        assert!(
            text.contains(
                "oap.poll_interval: 1ms is out of range: accepted is 1s to 5m, the nearest is 1s"
            ),
            "{text}"
        );
        let text = error("code_signature: lines\n");
        assert!(
            text.contains("code_signature: unknown value")
                && text.contains("did you mean \"line\"?"),
            "{text}"
        );
        let text = error("limits:\n\n  sample_queue: many\n");
        assert!(text.starts_with("p.yaml:3:"), "{text}");
        assert!(error("oap: [1]\n").starts_with("p.yaml:1:"));
        assert!(error("oap: {a\n").starts_with("p.yaml:"));
    }

    /// Check that empty files and empty sections mean the defaults.
    #[test]
    fn empty_means_default() {
        for text in [
            "",
            "# nothing\n",
            "oap:\nlimits:\n  # sample_queue: 5\nservices:\n",
        ] {
            assert_eq!(parse(text, "f").unwrap(), Config::default(), "{text:?}");
        }
    }

    /// Check that aliases work, and that those that multiply are refused with their place, as is what nests.
    #[test]
    fn aliases_do_not_multiply() {
        let text = "services:\n  - match: {exe: a}\n    service: s\n    tags: &t {site: one}\n  \
                    - match: {exe: b}\n    service: s\n    tags: *t\n";
        let config = parse(text, "f").unwrap();
        assert_eq!(config.services[0].tags.len(), 1);
        let mut bomb = "services:\n  - &l0 {match: {exe: a}, service: s}\n".to_owned();
        for level in 1..9 {
            let names = vec![format!("*l{}", level - 1); 10].join(", ");
            bomb += &format!("  - &l{level} [{names}]\n");
        }
        assert!(error(&bomb).starts_with("p.yaml:"));
        // Nothing but the number of aliases is wrong with it.
        let many = |count: usize| {
            format!(
                "services:\n  - &r {{match: {{exe: a}}, service: s}}\n{}",
                "  - *r\n".repeat(count)
            )
        };
        assert_eq!(parse(&many(99), "f").unwrap().services.len(), 100);
        assert!(error(&many(5_000)).starts_with("p.yaml:"));
        for nested in [
            "[".repeat(100_000),
            "a: {".repeat(50_000),
            "- ".repeat(100_000),
        ] {
            assert!(error(&nested).starts_with("p.yaml:"));
        }
    }

    /// Check that a file that is not there, or is not text, is named.
    #[test]
    fn an_unreadable_file_is_named() {
        let error = read(Path::new("/nonexistent/p.yaml"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("/nonexistent/p.yaml"), "{error}");
        assert!(read(Path::new("/dev/zero")).is_err());
    }
}
