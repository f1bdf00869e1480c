//! Lists a configuration as keys with values.
//!
//! In:  a [`Config`], or the YAML of a file
//! Out: keys as paths (`oap.tls.enabled`), values as JSON; secrets are hidden
//! Lost: nothing. Lists are values: `services` is one key

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Config;

impl Config {
    /// Every key with its value, from A to Z.
    ///
    /// # Errors
    ///
    /// A path is not UTF-8.
    pub fn entries(&self) -> Result<Vec<(String, Value)>> {
        let value = serde_json::to_value(self).context("the configuration cannot be shown")?;
        let mut entries = Vec::new();
        add(&mut entries, String::new(), value);
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(entries)
    }
}

fn add(entries: &mut Vec<(String, Value)>, key: String, value: Value) {
    match value {
        Value::Object(section) => {
            for (name, value) in section {
                add(entries, join(&key, &name), value);
            }
        }
        value => entries.push((key, value)),
    }
}

/// Those of the `known` keys that a file has.
pub(super) fn keys_of(file: &Value, known: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    let mut sections = vec![(String::new(), file)];
    while let Some((key, value)) = sections.pop() {
        if known.contains(&key) {
            found.push(key);
        } else if let Value::Object(section) = value {
            sections.extend(
                section
                    .iter()
                    .map(|(name, value)| (join(&key, name), value)),
            );
        }
    }
    found
}

fn join(section: &str, name: &str) -> String {
    match section {
        "" => name.to_owned(),
        section => format!("{section}.{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;

    /// Check that the keys are those of docs/configuration.md, with the values that stand there.
    #[test]
    fn the_entries_are_the_documented_example() {
        let page = include_str!("../../../docs/configuration.md");
        let begin = page.find("```yaml\n").unwrap() + "```yaml\n".len();
        let example = &page[begin..begin + page[begin..].find("```").unwrap()];
        let mut documented = Vec::new();
        add(
            &mut documented,
            String::new(),
            file::value(example).unwrap(),
        );
        documented.sort_by(|(a, _), (b, _)| a.cmp(b));
        assert_eq!(Config::default().entries().unwrap(), documented);
    }

    /// Check that the chart's schema accepts every key that is not set by the chart itself, and no other.
    #[test]
    fn the_charts_schema_has_every_key() {
        fn keys(schema: &Value, path: &str, found: &mut Vec<String>) {
            match schema["properties"].as_object() {
                Some(section) => {
                    assert_eq!(schema["additionalProperties"], false, "{path}");
                    for (name, schema) in section {
                        keys(schema, &join(path, name), found);
                    }
                }
                None => found.push(path.to_owned()),
            }
        }
        let schema = include_str!("../../../deploy/helm/profilerd/values.schema.json");
        let schema: Value = serde_json::from_str(schema).unwrap();
        let mut accepted = Vec::new();
        keys(&schema["properties"]["config"], "", &mut accepted);
        accepted.sort();
        let of_chart = |key: &str| {
            let others = [
                "oap.backends",
                "oap.authentication",
                "oap.token_file",
                "oap.query",
            ];
            let folders = ["state_dir", "metrics", "kubernetes.enabled"];
            let sections = ["oap.tls.", "standalone."];
            others.contains(&key)
                || folders.contains(&key)
                || sections.iter().any(|section| key.starts_with(section))
        };
        let entries = Config::default().entries().unwrap().into_iter();
        let known: Vec<String> = entries
            .map(|(key, _)| key)
            .filter(|key| !of_chart(key))
            .collect();
        assert_eq!(accepted, known);
    }

    /// Check that a rule is shown as it was written, and that a secret is not shown.
    #[test]
    fn rules_are_shown_and_secrets_are_not() {
        let text = "oap: {authentication: s3cret}\nlimits: {spool: 3MiB}\nservices:\n  \
                    - {match: {command: 'a(?P<x>b)', labels: {app: web}}, service: 's-{x}', tags: {t: '{pid}'}}\n";
        let config = file::parse(text, "f").unwrap();
        let entries = config.entries().unwrap();
        let of = |key: &str| {
            let found = entries.iter().find(|(name, _)| name == key);
            found.unwrap().1.to_string()
        };
        assert_eq!(of("oap.authentication"), "\"(secret)\"");
        assert_eq!(of("limits.spool"), "\"3MiB\"");
        let rule = r#"[{"match":{"command":"a(?P<x>b)","labels":{"app":"web"}},"service":"s-{x}","tags":{"t":"{pid}"}}]"#;
        assert_eq!(of("services"), rule);
    }

    /// Check which keys a file has: those of sections, a list as a whole, and none of an empty section.
    #[test]
    fn keys_of_a_file_are_found() {
        let entries = Config::default().entries().unwrap();
        let known: BTreeSet<String> = entries.into_iter().map(|(key, _)| key).collect();
        let text = "oap: {tls: {enabled: false}, backends: [a:1]}\nlimits:\nmetrics: null\n";
        let mut found = keys_of(&file::value(text).unwrap(), &known);
        found.sort();
        assert_eq!(found, ["metrics", "oap.backends", "oap.tls.enabled"]);
    }
}
