//! Says where each value of a configuration comes from, for `profilerd config show`.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// What gave a key its value. In JSON `source` is one of these, and `name` is there where it has one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(tag = "source", content = "name", rename_all = "lowercase")]
pub enum Origin {
    /// Nobody.
    #[default]
    Default,
    /// The configuration file.
    File,
    /// The variable of this name.
    Variable(&'static str),
    /// The option of this name.
    Option(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File => f.write_str("file"),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::Option(name) => write!(f, "option {name}"),
        }
    }
}

/// The origins of all keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<String, Origin>);

impl Origins {
    /// A later source replaces an earlier one.
    pub(super) fn set(&mut self, key: &str, origin: Origin) {
        self.0.insert(key.to_owned(), origin);
    }

    /// What gave a key its value.
    #[must_use]
    pub fn of(&self, key: &str) -> Origin {
        self.0.get(key).copied().unwrap_or_default()
    }
}
