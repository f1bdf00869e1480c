//! Says where each value of a configuration comes from, for `profilerd config show`.

use std::collections::BTreeMap;
use std::fmt;

/// What gave a key its value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

impl Origin {
    /// Which kind of source it is, in one word.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Variable(_) => "variable",
            Self::Option(_) => "option",
        }
    }

    /// Name of the variable or option.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::Default | Self::File => None,
            Self::Variable(name) | Self::Option(name) => Some(name),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{} {name}", self.kind()),
            None => f.write_str(self.kind()),
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
