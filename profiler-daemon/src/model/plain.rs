//! Keeps text from outside from acting on a terminal or forging a line: at the doors, in what is printed, in the log.
//!
//! In:  text that another user, a client, an OAP or a profiled service chose
//! Out: the text if it is plain, or a text of which nothing acts
//! Lost: the characters that act, see [`acts`]

use std::borrow::Cow;
use std::fmt::{self, Write as _};

/// Whether a character does something instead of standing for itself: the control characters (C0, DEL, C1), separators
/// of lines and paragraphs, and bidirectional overrides, which reorder what is shown, so that a name could pose as another.
#[must_use]
pub fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether nothing in a text acts.
#[must_use]
pub fn is_plain(text: &str) -> bool {
    !text.contains(acts)
}

/// Refuses a text that is not plain; `what` names it.
///
/// # Errors
///
/// The sentence to refuse with.
pub fn check_plain(what: &str, text: &str) -> Result<(), String> {
    if is_plain(text) {
        return Ok(());
    }
    Err(format!(
        "{what} has a control character or a bidirectional override, which are not accepted in names"
    ))
}

/// `text` on one line, with a mark in place of each character that acts.
#[must_use]
pub fn clean(text: &str) -> Cow<'_, str> {
    if is_plain(text) {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(text.replace(acts, "\u{fffd}"))
    }
}

/// As [`clean`], of a text that may have several lines.
#[must_use]
pub fn clean_lines(text: &str) -> Cow<'_, str> {
    let acts = |c: char| c != '\n' && acts(c);
    if text.contains(acts) {
        Cow::Owned(text.replace(acts, "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// JSON in which characters that act are written as JSON escapes. serde_json does so up to U+001F only. Outside of its
/// strings JSON has no such characters but line feeds, which stay.
#[must_use]
pub fn escape_json(json: &str) -> Cow<'_, str> {
    let acts = |c: char| c != '\n' && acts(c);
    if !json.contains(acts) {
        return Cow::Borrowed(json);
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if acts(c) {
            // All of them have four digits. A String takes everything.
            let _ = write!(escaped, "\\u{:04x}", u32::from(c));
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Writes what passes through with its acting characters escaped as in Rust: `\n`, `\u{1b}`.
#[derive(Debug)]
pub struct Escaping<'w, W: fmt::Write>(pub &'w mut W);

impl<W: fmt::Write> fmt::Write for Escaping<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(acts) {
            let (plain, from) = rest.split_at(at);
            self.0.write_str(plain)?;
            let mut chars = from.chars();
            if let Some(c) = chars.next() {
                write!(self.0, "{}", c.escape_default())?;
            }
            rest = chars.as_str();
        }
        self.0.write_str(rest)
    }
}

/// Characters of every kind that acts, for tests: what a terminal would do, and a line of its own.
#[cfg(any(test, feature = "fuzzing"))]
pub const HOSTILE: &str =
    "\u{1b}]52;c;eA==\u{7}\u{1b}[2J\n\r\t\u{0}\u{8}\u{7f}\u{85}\u{9b}31m\u{2028}\u{202e}\u{2066}";

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that each form leaves nothing that acts, and plain text of any language as it is.
    #[test]
    fn nothing_acts_afterwards() {
        let hostile = format!("a{HOSTILE}ü");
        assert!(!is_plain(&hostile));
        assert!(is_plain(&clean(&hostile)));
        assert_eq!(clean("a\u{1b}[2J\nb"), "a\u{fffd}[2J\u{fffd}b");
        assert_eq!(clean_lines("a\u{1b}\nb\r"), "a\u{fffd}\nb\u{fffd}");
        let mut escaped = String::new();
        write!(Escaping(&mut escaped), "{hostile}").unwrap();
        assert!(is_plain(&escaped));
        assert!(escaped.starts_with("a\\u{1b}]52;c;eA==\\u{7}\\u{1b}[2J\\n\\r\\t"));
        for plain in ["", "f (lib.so)", "déjà vu", "服务", "שלום"] {
            assert!(matches!(clean(plain), Cow::Borrowed(_)));
            assert_eq!(check_plain("it", plain), Ok(()));
        }
        assert!(
            check_plain("the name", &hostile)
                .unwrap_err()
                .starts_with("the name has")
        );
    }

    /// Check that escaped JSON means the same, and that the lines of a pretty form stay.
    #[test]
    fn escaped_json_means_the_same() {
        let value = serde_json::json!({ "name": HOSTILE, "more": ["x"] });
        for json in [
            serde_json::to_string(&value).unwrap(),
            serde_json::to_string_pretty(&value).unwrap(),
        ] {
            let escaped = escape_json(&json);
            assert!(escaped.lines().all(is_plain));
            assert_eq!(escaped.lines().count(), json.lines().count());
            let back: serde_json::Value = serde_json::from_str(&escaped).unwrap();
            assert_eq!(back, value);
        }
        assert!(matches!(escape_json("{}\n"), Cow::Borrowed(_)));
    }
}
