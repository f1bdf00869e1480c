//! Rules that say which process belongs to which service.

use std::collections::BTreeMap;
use std::fmt;

use regex_lite::Regex;
use serde::de::{Deserialize, Deserializer, Error};
use serde::{Serialize, Serializer};

use super::template::Template;
use crate::model::plain::is_plain;

/// Longest name of a service or instance: OAP cuts there (`service.max.length`), and a name that is
/// cut never gets a task.
const NAME_MAX_CHARS: usize = 70;
/// Longest key or value of a property or tag.
const PAIR_MAX_CHARS: usize = 200;
/// Most properties, and most tags, of a rule.
const PAIRS_MAX: usize = 16;
/// Largest compiled expression; they run over command lines of foreign processes.
const PATTERN_MAX_BYTES: usize = 256 << 10;

/// One rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceRule {
    /// What a process must be like.
    pub matches: RuleMatch,
    /// The service it then belongs to. A rule whose text has a placeholder without a value does not
    /// match.
    pub service: Template,
    /// Name of its instance; one whose placeholders lack a value counts as not given.
    pub instance: Option<Template>,
    /// SkyWalking layer, `GENERAL` if not given.
    pub layer: Option<String>,
    /// Instance properties beside those that are found.
    pub properties: Vec<(String, Template)>,
    /// Tags of the spans that are reported, and instance properties too.
    pub tags: Vec<(String, Template)>,
}

/// Conditions; all that are given must hold, and one must be given.
#[derive(Clone, Debug, Default, PartialEq, serde::Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuleMatch {
    /// Path of the executable, or its file name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// Expression to find in the command line, its arguments joined by spaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Pattern>,
    /// Expression to find in the path of the control group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<Pattern>,
    /// TCP port the process listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<u16>,
    /// Expression to find in the name of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Pattern>,
    /// Kubernetes namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Labels that the pod must have, with these values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A regular expression. Its matching time is linear in the text, whatever the text is.
#[derive(Clone)]
pub struct Pattern(Regex);

impl Pattern {
    /// Compiles an expression.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        regex_lite::RegexBuilder::new(text)
            .size_limit(PATTERN_MAX_BYTES)
            .build()
            .map(Self)
            .map_err(|error| format!("{text:?} is not a regular expression: {error}"))
    }

    /// Whether it is found in `text`.
    #[must_use]
    pub fn is_in(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    /// What a named group matches in `text`.
    #[must_use]
    pub fn group<'t>(&self, name: &str, text: &'t str) -> Option<&'t str> {
        Some(self.0.captures(text)?.name(name)?.as_str())
    }

    fn groups(&self) -> impl Iterator<Item = String> {
        self.0.capture_names().flatten().map(str::to_owned)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_str().fmt(f)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.0.as_str())
    }
}

/// A rule as it is written.
#[derive(serde::Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    r#match: RuleMatch,
    service: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    properties: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tags: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for ServiceRule {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::checked(RawRule::deserialize(from)?).map_err(D::Error::custom)
    }
}

impl Serialize for ServiceRule {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let pairs = |of: &[(String, Template)]| {
            let pairs = of.iter();
            pairs
                .map(|(key, value)| (key.clone(), value.to_string()))
                .collect()
        };
        let raw = RawRule {
            r#match: self.matches.clone(),
            service: self.service.to_string(),
            instance: self.instance.as_ref().map(Template::to_string),
            layer: self.layer.clone(),
            properties: pairs(&self.properties),
            tags: pairs(&self.tags),
        };
        raw.serialize(to)
    }
}

impl ServiceRule {
    fn checked(raw: RawRule) -> Result<Self, String> {
        let matches = raw.r#match;
        if matches == RuleMatch::default() {
            return Err(
                "a rule without a condition matches every process; give exe, command, cgroup, \
                 listen_port, container, namespace or labels"
                    .to_owned(),
            );
        }
        let patterns = [&matches.command, &matches.cgroup, &matches.container];
        let groups: Vec<String> = patterns
            .into_iter()
            .flatten()
            .flat_map(Pattern::groups)
            .collect();
        let name = |text: &str| {
            let template = Template::parse(text, &groups)?;
            check(text, &template, NAME_MAX_CHARS)?;
            Ok::<_, String>(template)
        };
        if let Some(layer) = &raw.layer {
            check(layer, &Template::parse(layer, &[])?, NAME_MAX_CHARS)?;
        }
        let pairs = |what: &str, given: BTreeMap<String, String>| {
            if given.len() > PAIRS_MAX {
                return Err(format!(
                    "{} {what} are too many: at most {PAIRS_MAX} are accepted",
                    given.len()
                ));
            }
            let pairs = given.into_iter().map(|(key, text)| {
                check(&key, &Template::parse(&key, &[])?, PAIR_MAX_CHARS)?;
                let value = Template::parse(&text, &groups)?;
                check(&text, &value, PAIR_MAX_CHARS)?;
                Ok((key, value))
            });
            pairs.collect::<Result<Vec<_>, String>>()
        };
        Ok(Self {
            service: name(&raw.service)?,
            instance: raw.instance.as_deref().map(name).transpose()?,
            layer: raw.layer,
            properties: pairs("properties", raw.properties)?,
            tags: pairs("tags", raw.tags)?,
            matches,
        })
    }
}

fn check(text: &str, template: &Template, max_chars: usize) -> Result<(), String> {
    let is_bad = template.is_empty()
        || text.trim().is_empty()
        || template.literal().chars().count() > max_chars
        || !is_plain(text);
    if is_bad {
        return Err(format!(
            "{text:?} cannot be a name: accepted are 1 to {max_chars} characters, none of them a \
             control character"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::file::parse;

    /// Check a rule with all its conditions.
    #[test]
    fn a_rule_reads() {
        let yaml = "\
services:
  - match:
      exe: python3
      command: 'app\\.py (?P<site>\\w+)$'
      cgroup: shop
      listen_port: 80
      container: '^web'
      namespace: prod
      labels: {app: shop, app.kubernetes.io/part-of: site}
    service: 'shop-{site}'
    instance: '{pod}:{port}'
    layer: MESH
    properties: {team: blue}
    tags: {site: '{site}'}
";
        let config = parse(yaml, "f").unwrap();
        let rule = &config.services[0];
        assert_eq!(rule.service.to_string(), "shop-{site}");
        assert_eq!(rule.matches.listen_port, Some(80));
        let command = rule.matches.command.as_ref().unwrap();
        assert!(command.is_in("python3 app.py eu"));
        assert_eq!(command.group("site", "python3 app.py eu"), Some("eu"));
        assert_eq!(rule.matches.labels["app"], "shop");
        assert_eq!(rule.tags[0].0, "site");
        assert_eq!(rule.properties[0].1.to_string(), "blue");
    }

    /// Check what is refused: no condition, no name, a bad expression, a port out of range, an unknown
    /// placeholder, too many tags.
    #[test]
    fn bad_rules_are_refused() {
        let error = |condition: &str, service: &str| {
            let yaml = format!("services:\n  - match: {{{condition}}}\n    service: '{service}'\n");
            parse(&yaml, "f").unwrap_err().to_string()
        };
        assert!(error("", "a").contains("matches every process"));
        assert!(error("labels: {}", "a").contains("matches every process"));
        assert!(error("exe: a", "").contains("1 to 70 characters"));
        assert!(error("exe: a", &"x".repeat(71)).contains("1 to 70 characters"));
        assert!(error("command: '('", "a").contains("not a regular expression"));
        assert!(error("listen_port: 70000", "a").contains("f:2:"));
        let nearest = error("comand: a", "a");
        assert!(nearest.contains("did you mean \"command\""), "{nearest}");
        let unknown = error("exe: a", "{app}");
        assert!(unknown.contains("unknown placeholder {app}"), "{unknown}");
        let tags: Vec<String> = (0..17).map(|n| format!("t{n}: a")).collect();
        let yaml = format!(
            "services:\n  - match: {{exe: a}}\n    service: a\n    tags: {{{}}}\n",
            tags.join(", ")
        );
        let error = parse(&yaml, "f").unwrap_err().to_string();
        assert!(error.contains("at most 16"), "{error}");
    }
}
