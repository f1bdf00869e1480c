//! Makes foreign text safe for terminals.

use std::borrow::Cow;

/// `text` without control characters. Names come from other users' processes, and an escape
/// sequence in one must not reach the terminal.
#[must_use]
pub fn clean(text: &str) -> Cow<'_, str> {
    // Bidirectional overrides reorder what is shown, so a name could pose as another.
    let is_bad =
        |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if text.contains(is_bad) {
        Cow::Owned(text.replace(is_bad, "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// At most `width` characters of `text`: the middle gives way, since names differ at both ends.
pub(super) fn fit(text: &str, width: usize) -> Cow<'_, str> {
    let chars = text.chars().count();
    if chars <= width {
        return Cow::Borrowed(text);
    }
    let kept = width.saturating_sub(1);
    let (head, tail) = (kept - kept / 2, kept / 2);
    let mut short: String = text.chars().take(head).collect();
    short.push('\u{2026}');
    short.extend(text.chars().skip(chars - tail));
    Cow::Owned(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that neither an escape sequence nor a bidirectional override survives.
    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(clean("\u{1b}[2Ja\nb"), "\u{fffd}[2Ja\u{fffd}b");
        assert_eq!(clean("a\u{202e}b"), "a\u{fffd}b");
        assert!(matches!(clean("f (lib.so)"), Cow::Borrowed(_)));
    }

    /// Check that long names keep both ends, counted in characters.
    #[test]
    fn long_names_keep_both_ends() {
        assert_eq!(fit("abcdefghij", 10), "abcdefghij");
        assert_eq!(fit("abcdefghijk", 10), "abcde\u{2026}hijk");
        assert_eq!(fit("äöüäöü", 3), "ä\u{2026}ü");
        assert_eq!(fit("abc", 0), "\u{2026}");
    }
}
