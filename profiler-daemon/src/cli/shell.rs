//! Writes commands as a shell reads them, for people who copy them.

use crate::output::clean;

/// A command line.
pub(super) fn command(words: &[impl AsRef<str>]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| quote(word.as_ref())).collect();
    quoted.join(" ")
}

/// A word, in quotes where a shell would read it otherwise.
pub(super) fn quote(word: &str) -> String {
    let word = clean(word);
    let is_plain = |c: char| c.is_alphanumeric() || "_-./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that what a shell would expand or split is quoted, and nothing else.
    #[test]
    fn words_are_quoted_where_needed() {
        assert_eq!(
            command(&[
                "profilerd",
                "record",
                "--endpoint",
                "GET:/a",
                "--service",
                "my shop"
            ]),
            "profilerd record --endpoint GET:/a --service 'my shop'"
        );
        assert_eq!(quote("GET:/{id}"), "'GET:/{id}'");
        assert_eq!(quote("*"), "'*'");
        assert_eq!(quote("it's"), "'it'\\''s'");
        assert_eq!(quote(""), "''");
    }
}
