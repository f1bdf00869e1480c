//! The section `discovery`: when the daemon looks for endpoints by itself, and how they are named.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::unit::{DurationRange, as_duration};
use super::{Config, file};
use crate::request::{EndpointError, Templates};

/// Length of a window.
pub(super) const WINDOW: DurationRange = DurationRange::ms(1_000, 300_000);
/// Time between the beginnings of two windows.
pub(super) const INTERVAL: DurationRange = DurationRange::ms(10_000, 86_400_000);

/// When endpoints are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DiscoveryMode {
    /// Never.
    Off,
    /// For a while after a service appears, and again every so often.
    #[default]
    Windows,
    /// All the time.
    Always,
}

impl DiscoveryMode {
    /// Every mode with its name.
    pub(super) const NAMED: [(&str, Self); 3] = [
        ("off", Self::Off),
        ("windows", Self::Windows),
        ("always", Self::Always),
    ];
}

/// Looking for endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiscoverySettings {
    /// When.
    pub mode: DiscoveryMode,
    /// How long a window is. In 10 s a service with a request in five seconds shows what it is asked for.
    #[serde(deserialize_with = "window", serialize_with = "as_duration")]
    pub window: Duration,
    /// Time between the beginnings of two windows. 5 min: what people will ask for next rarely changes sooner, and
    /// 10 s of it are a thirtieth of the time.
    #[serde(deserialize_with = "interval", serialize_with = "as_duration")]
    pub interval: Duration,
    /// Paths that stand for all that they match, beside ids that are recognised.
    #[serde(deserialize_with = "file::section")]
    pub templates: Vec<TemplateRule>,
}

/// Templates of a service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateRule {
    /// Name of the service, `*` for all.
    pub service: String,
    /// Paths such as `/files/**` and `/users/{name}`; the first that matches decides.
    pub paths: Vec<String>,
}

impl Default for DiscoverySettings {
    fn default() -> Self {
        Self {
            mode: DiscoveryMode::default(),
            window: Duration::from_secs(10),
            interval: Duration::from_secs(300),
            templates: Vec::new(),
        }
    }
}

impl Config {
    /// How endpoints are named.
    ///
    /// # Errors
    ///
    /// A template is no path.
    pub fn templates(&self) -> Result<Templates, EndpointError> {
        let rules = self.discovery.templates.iter();
        let paths = rules.flat_map(|rule| {
            let paths = rule.paths.iter();
            paths.map(|path| (rule.service.as_str(), path.as_str()))
        });
        Templates::new(paths)
    }
}

fn window<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    WINDOW.deserialize(from)
}

fn interval<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    INTERVAL.deserialize(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Config {
        file::parse(text, "p.yaml").unwrap()
    }

    /// Check that templates are read, and one that is no path is refused by name.
    #[test]
    fn templates_are_paths() {
        let of = |path: &str| {
            let text =
                format!("discovery:\n  templates:\n    - {{service: shop, paths: ['{path}']}}\n");
            read(&text)
        };
        let templates = of("/files/**").templates().unwrap();
        let name = templates.name("shop", "GET", "/files/a/b");
        assert_eq!(name.as_deref(), Some("GET:/files/**"));
        let error = format!("{:#}", of("files").check().unwrap_err());
        assert!(
            error.contains("discovery.templates") && error.contains("`files`"),
            "{error}"
        );
    }

    /// Check that every mode is known by its name, in the file and elsewhere.
    #[test]
    fn modes_have_names() {
        for (name, mode) in DiscoveryMode::NAMED {
            // `off` is a text here, not the boolean of older YAML.
            let config = read(&format!("discovery: {{mode: {name}}}\n"));
            assert_eq!(config.discovery.mode, mode);
        }
        let window = read("discovery: {window: 2s, interval: 10s}\n").discovery;
        assert_eq!(
            (window.window.as_secs(), window.interval.as_secs()),
            (2, 10)
        );
    }
}
