//! Reads the settings of the Java agent: a properties file with placeholders, and what overrides it.
//!
//! In:  the text of `agent.config`, `-Dskywalking.*` options, options behind the jar, environment
//! Out: a value per key
//! Lost: lines that go on in the next one and escapes; the keys that are asked for have neither
//!
//! As `SnifferConfigInitializer` does it: the file, then system properties that begin with
//! `skywalking.`, then options of the agent; each later one wins. In the file `${NAME:default}` stands
//! for the system property NAME, else the variable, else the default, and stays as it is without one.

use std::collections::HashMap;

/// Placeholders that are replaced in one value: each replacement goes on behind its own text.
const PLACEHOLDERS_MAX: usize = 16;
/// Longest value.
const VALUE_MAX_BYTES: usize = 4096;

/// Where values come from.
pub(super) struct Settings<'a> {
    file: HashMap<&'a str, &'a str>,
    /// System properties of the JVM, the later wins.
    pub(super) properties: &'a [(&'a str, &'a str)],
    /// `key=value,key=value` behind the path of the jar.
    pub(super) options: &'a str,
    pub(super) environment: &'a [(String, String)],
}

impl<'a> Settings<'a> {
    pub(super) fn new(
        file: &'a str,
        properties: &'a [(&'a str, &'a str)],
        options: &'a str,
        environment: &'a [(String, String)],
    ) -> Self {
        let lines = file.lines().map(str::trim);
        let pairs = lines
            .filter(|line| !line.starts_with(['#', '!']))
            .filter_map(|line| line.split_once(['=', ':']));
        Self {
            file: pairs
                .map(|(key, value)| (key.trim(), value.trim()))
                .collect(),
            properties,
            options,
            environment,
        }
    }

    /// The value of a key such as `agent.service_name`; `None` if it is not set or empty.
    pub(super) fn get(&self, key: &str) -> Option<String> {
        let option = pairs(self.options).find(|&(name, _)| name == key);
        let property = || {
            let mut properties = self.properties.iter().rev();
            properties.find(|(name, _)| name.strip_prefix("skywalking.") == Some(key))
        };
        let value = match option.or_else(|| property().copied()) {
            Some((_, value)) => value.to_owned(),
            None => self.replaced(self.file.get(key)?),
        };
        Some(value).filter(|value| !value.trim().is_empty())
    }

    fn replaced(&self, value: &str) -> String {
        let mut text = String::new();
        let mut rest = value;
        for _ in 0..PLACEHOLDERS_MAX {
            let Some((before, after)) = rest.split_once("${") else {
                break;
            };
            let Some((name, behind)) = after.split_once('}') else {
                break;
            };
            text.push_str(before);
            let (name, default) = match name.split_once(':') {
                Some((name, default)) => (name, Some(default)),
                None => (name, None),
            };
            match self.lookup(name).or(default) {
                Some(found) => text.push_str(found),
                None => text.extend(["${", name, "}"]),
            }
            rest = behind;
            if text.len() > VALUE_MAX_BYTES {
                return String::new();
            }
        }
        text + rest
    }

    fn lookup(&self, name: &str) -> Option<&str> {
        let mut properties = self.properties.iter().rev();
        let property = properties.find(|&&(given, _)| given == name);
        let variable = || self.environment.iter().find(|(given, _)| given == name);
        property
            .map(|&(_, value)| value)
            .or_else(|| variable().map(|(_, value)| value.as_str()))
    }
}

/// `a=b,c='d,e'`: a comma between quotes does not separate.
fn pairs(options: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut is_quoted = false;
    let parts = options.split(move |c| {
        is_quoted ^= c == '\'';
        c == ',' && !is_quoted
    });
    let pairs = parts.filter_map(|part| part.split_once('='));
    pairs.map(|(key, value)| (key.trim(), value.trim().trim_matches('\'')))
}

/// Asks a file, which is also the options, for all that is asked for.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_all(file: &str, environment: &[(String, String)]) {
    let settings = Settings::new(file, &[], file, environment);
    for key in ["agent.service_name", "profile.active", "a"] {
        let _ = settings.get(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# agent.service_name=comment
agent.service_name=${SW_AGENT_NAME:Your_ApplicationName}
agent.instance_name=${SW_AGENT_INSTANCE_NAME:}
profile.active = ${SW_AGENT_PROFILE_ACTIVE:true}
a=x${A:1}-${B}-${C:2
";

    fn get(
        properties: &[(&str, &str)],
        options: &str,
        variables: &[(&str, &str)],
        key: &str,
    ) -> Option<String> {
        let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        let environment: Vec<_> = variables.iter().map(own).collect();
        Settings::new(FILE, properties, options, &environment).get(key)
    }

    /// Check defaults in the file, variables, and placeholders that nothing fills.
    #[test]
    fn placeholders_are_filled() {
        let name = "agent.service_name";
        assert_eq!(
            get(&[], "", &[], name).as_deref(),
            Some("Your_ApplicationName")
        );
        let variables = [("SW_AGENT_NAME", "shop"), ("A", "7")];
        assert_eq!(get(&[], "", &variables, name).as_deref(), Some("shop"));
        assert_eq!(
            get(&[], "", &variables, "a").as_deref(),
            Some("x7-${B}-${C:2")
        );
        assert_eq!(get(&[], "", &variables, "agent.instance_name"), None);
        assert_eq!(get(&[], "", &[], "none"), None);
    }

    /// Check that options win over properties, and those over the file; of two properties the later.
    #[test]
    fn the_later_source_wins() {
        let properties = [
            ("skywalking.profile.active", "true"),
            ("skywalking.profile.active", "false"),
            ("SW_AGENT_NAME", "by-property"),
        ];
        let key = "profile.active";
        assert_eq!(get(&properties, "", &[], key).as_deref(), Some("false"));
        let options = "x='1,2',profile.active=true";
        assert_eq!(get(&properties, options, &[], key).as_deref(), Some("true"));
        assert_eq!(get(&[], options, &[], "x").as_deref(), Some("1,2"));
        let variables = [("SW_AGENT_NAME", "shop")];
        let name = get(&properties, "", &variables, "agent.service_name");
        assert_eq!(name.as_deref(), Some("by-property"));
    }
}
