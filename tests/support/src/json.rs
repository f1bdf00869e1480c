//! Reads the JSON that profilerd writes.

use serde::de::DeserializeOwned;

/// One value and nothing behind it, however deep: a call tree nests two levels a frame, and
/// `serde_json` alone stops at 128.
///
/// # Errors
///
/// The text is not JSON, or not of this shape.
pub fn read_json<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    deserializer.disable_recursion_limit();
    let value = T::deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that depth is no error, and what follows is.
    #[test]
    fn deep_values_are_read() {
        let deep = format!("{}{}", "[".repeat(300), "]".repeat(300));
        read_json::<serde_json::Value>(&deep).unwrap();
        read_json::<serde_json::Value>("[] []").unwrap_err();
    }
}
