//! Names as OAP stores them.

/// Longest service and service instance name (`service-name-max-length`), in UTF-16 units.
pub const SERVICE_MAX: usize = 70;
/// Longest endpoint name (`endpoint-name-max-length`), in UTF-16 units.
pub const ENDPOINT_MAX: usize = 150;
/// Longest segment and trace id, the width of OAP's columns.
pub const ID_MAX: usize = 150;

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

#[cfg(test)]
mod tests {
    use super::*;

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
