//! Makes text fit the place where it is shown.

use std::borrow::Cow;

pub use crate::model::plain::{clean, escape_json};

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

    /// Check that long names keep both ends, counted in characters.
    #[test]
    fn long_names_keep_both_ends() {
        assert_eq!(fit("abcdefghij", 10), "abcdefghij");
        assert_eq!(fit("abcdefghijk", 10), "abcde\u{2026}hijk");
        assert_eq!(fit("äöüäöü", 3), "ä\u{2026}ü");
        assert_eq!(fit("abc", 0), "\u{2026}");
    }
}
