//! Refuses control characters in a configuration, in whatever key it has, known or not.
//!
//! In:  any YAML
//! Out: nothing but the refusal, with its place

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::model::plain::check_plain;

/// Values of which no text, nor key, acts on a terminal or in the log.
pub(super) struct PlainTexts;

impl<'de> Deserialize<'de> for PlainTexts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for PlainTexts {
    type Value = Self;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self, E> {
        check_plain("a text", text).map_err(E::custom)?;
        Ok(Self)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_i128<E: Error>(self, _: i128) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_u128<E: Error>(self, _: u128) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_unit<E: Error>(self) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_none<E: Error>(self) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Self, D::Error> {
        Self::deserialize(from)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(Self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self, A::Error> {
        while entries.next_entry::<Self, Self>()?.is_some() {}
        Ok(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::parse;

    /// Check that a control character is refused in each value and key, with its line, written raw or as an escape of YAML.
    #[test]
    fn control_characters_are_refused_everywhere() {
        for (text, line) in [
            ("oap:\n  query: \"http://a\\e[31m/\"\n", 2),
            (
                "services:\n  - service: \"a\\nb\"\n    match: {unit: x}\n",
                2,
            ),
            ("standalone:\n  token_file: \"/a\\u202eb\"\n", 2),
            ("\"a\\x07\": 1\n", 1),
            ("state_dir: \"/a\\x9b\"\n", 1),
        ] {
            let error = parse(text, "file").unwrap_err().to_string();
            assert!(error.contains("control character"), "{error}");
            assert!(error.starts_with(&format!("file:{line}:")), "{error}");
            assert!(crate::model::plain::is_plain(&error), "{error:?}");
        }
        assert!(parse("# é\nstate_dir: /déjà\n", "file").is_ok());
    }
}
