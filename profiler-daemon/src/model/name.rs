//! Names as OAP stores them, and names that are too long.

use std::borrow::Cow;

use super::plain::acts;

/// Longest service and service instance name (`service-name-max-length`), in UTF-16 units.
pub const SERVICE_MAX: usize = 70;
/// Longest endpoint name (`endpoint-name-max-length`), in UTF-16 units.
pub const ENDPOINT_MAX: usize = 150;
/// Longest segment and trace id, the width of OAP's columns.
pub const ID_MAX: usize = 150;
/// Longest name of a function, and of a module, that is shown, in UTF-16 units. Demangled C++ may be megabytes; OAP
/// stores any length.
pub const FUNCTION_MAX: usize = 240;

/// Cuts a name as OAP would, so that all we send about an instance carries the same name: OAP cuts
/// names of segments and heartbeats but not those of task queries. Never splits a character.
#[must_use]
pub fn cut(name: &str, max_units: usize) -> &str {
    if name.len() <= max_units {
        return name; // a character has at least as many bytes as units
    }
    let mut units = 0;
    for (at, c) in name.char_indices() {
        units += c.len_utf16();
        if units > max_units {
            return &name[..at];
        }
    }
    name
}

/// Shortens a name to at most `max_units` UTF-16 units: its middle becomes `…`, and [`mark`] at its end keeps it
/// apart from all other names that begin and end alike. The end is the larger part, since the end tells names apart
/// most often.
///
/// For names that nobody else cuts in a way of their own; for the others there is [`cut`].
#[must_use]
pub fn shorten(name: &str, max_units: usize) -> Cow<'_, str> {
    if cut(name, max_units).len() == name.len() {
        return Cow::Borrowed(name);
    }
    Cow::Owned(marked(name, max_units, &mark(name)))
}

/// The name with a mark at its end, in at most `max_units` UTF-16 units; where it does not fit, its middle becomes `…`.
/// For names whose text does not tell all that they are; the others are [`shorten`]ed.
#[must_use]
pub fn marked(name: &str, max_units: usize, mark: &str) -> String {
    let room = max_units.saturating_sub(mark.len());
    if cut(name, room).len() == name.len() {
        return format!("{name}{mark}");
    }
    let room = room.saturating_sub(1);
    let head = cut(name, room / 3);
    let tail = cut_front(&name[head.len()..], room - room / 3);
    format!("{head}…{tail}{mark}")
}

/// A text from outside as a name: on one line, without blanks around, [`shorten`]ed.
#[must_use]
pub fn tidy(text: &str, max_units: usize) -> String {
    let text = text.trim().chars().filter(|&c| !acts(c));
    shorten(&text.collect::<String>(), max_units).into_owned()
}

/// Tells names apart whose shortened texts are equal: `#` and eight hexadecimal digits that depend on the whole name
/// alone, so that they are the same in every run and process.
#[must_use]
pub fn mark(name: &str) -> String {
    mark_of(name.bytes())
}

/// As [`mark`], of bytes that are no text.
#[must_use]
pub fn mark_of(bytes: impl IntoIterator<Item = u8>) -> String {
    // FNV-1a with its 64-bit constants, folded: short and without a seed.
    let hash = bytes
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("#{:08x}", (hash ^ hash >> 32) & 0xffff_ffff)
}

/// The last `max_units` UTF-16 units. Never splits a character.
fn cut_front(name: &str, max_units: usize) -> &str {
    let mut units = 0;
    for (at, c) in name.char_indices().rev() {
        units += c.len_utf16();
        if units > max_units {
            return &name[at + c.len_utf8()..];
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a name that fits stays as it is, and that one that does not keeps both ends, within the limit.
    #[test]
    fn long_names_are_shortened() {
        assert_eq!(shorten("abc", 3), "abc");
        let long = format!("begin{}end", "x".repeat(100));
        let short = shorten(&long, 40);
        assert_eq!(short.encode_utf16().count(), 40);
        assert!(short.starts_with("beginx"), "{short}");
        assert!(short.ends_with(&format!("xend{}", mark(&long))), "{short}");
        let faces = "😀".repeat(100);
        assert!(shorten(&faces, 41).encode_utf16().count() <= 41);
        // Without room for anything.
        assert_eq!(shorten("abcdef", 3), format!("…{}", mark("abcdef")));
        assert_eq!(marked("abc", 5, "#1"), "abc#1");
        assert_eq!(marked("abcdefg", 6, "#1"), "a…fg#1");
        assert_eq!(tidy(" a\tb\n ", 3), "ab");
    }

    /// Check that names which differ only where they are cut stay different, and that the mark is the same for ever.
    #[test]
    fn shortened_names_do_not_merge() {
        let name = |middle: &str| format!("{}{middle}{}", "a".repeat(50), "b".repeat(50));
        let (one, two) = (name("1"), name("2"));
        assert_ne!(shorten(&one, 40), shorten(&two, 40));
        assert_eq!(mark("a"), "#296230c0");
    }

    /// Check that names are cut by UTF-16 units and between characters.
    #[test]
    fn names_are_cut_between_characters() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "abc");
        assert_eq!(cut("äöüß", 3), "äöü");
        assert_eq!(cut("a😀b", 2), "a"); // the face has two units
        assert_eq!(cut("a😀b", 3), "a😀");
        assert_eq!(cut("äöü", 3), "äöü");
    }
}
