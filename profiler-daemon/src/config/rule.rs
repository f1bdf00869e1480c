//! Rules that say which process belongs to which service.

use std::fmt;

use regex_lite::Regex;
use serde::de::{Deserialize, Deserializer, Error};

/// Longest name of a service or instance: OAP cuts there (`service.max.length`), and a name that is
/// cut never gets a task.
const NAME_MAX_CHARS: usize = 70;
/// Largest compiled expression; they run over command lines of foreign processes.
const PATTERN_MAX_BYTES: usize = 256 << 10;

/// One rule.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceRule {
    /// What a process must be like.
    pub matches: RuleMatch,
    /// The service it then belongs to.
    pub service: String,
    /// Name of its instance; only for a rule that matches one process.
    pub instance: Option<String>,
    /// SkyWalking layer, `GENERAL` if not given.
    pub layer: Option<String>,
}

/// Conditions; all that are given must hold, and one must be given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuleMatch {
    /// Path of the executable, or its file name.
    pub exe: Option<String>,
    /// Expression to find in the command line, its arguments joined by spaces.
    pub command: Option<Pattern>,
    /// Expression to find in the path of the control group.
    pub cgroup: Option<Pattern>,
    /// TCP port the process listens on.
    pub listen_port: Option<u16>,
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

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    r#match: RawMatch,
    service: String,
    instance: Option<String>,
    layer: Option<String>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMatch {
    exe: Option<String>,
    command: Option<Pattern>,
    cgroup: Option<Pattern>,
    listen_port: Option<u16>,
}

impl<'de> Deserialize<'de> for ServiceRule {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let raw = RawRule::deserialize(from)?;
        let matches = RuleMatch {
            exe: raw.r#match.exe,
            command: raw.r#match.command,
            cgroup: raw.r#match.cgroup,
            listen_port: raw.r#match.listen_port,
        };
        if matches == RuleMatch::default() {
            return Err(D::Error::custom(
                "a rule without a condition matches every process; give exe, command, cgroup or \
                 listen_port",
            ));
        }
        let names = [
            Some(&raw.service),
            raw.instance.as_ref(),
            raw.layer.as_ref(),
        ];
        for name in names.into_iter().flatten() {
            let chars = name.chars().count();
            if name.trim().is_empty() || chars > NAME_MAX_CHARS || name.contains(char::is_control) {
                return Err(D::Error::custom(format!(
                    "{name:?} cannot be a name: accepted are 1 to {NAME_MAX_CHARS} characters, none of \
                     them a control character"
                )));
            }
        }
        Ok(Self {
            matches,
            service: raw.service,
            instance: raw.instance,
            layer: raw.layer,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::parse;

    /// Check a rule with all its conditions.
    #[test]
    fn a_rule_reads() {
        let yaml = "services:\n  - match: {exe: python3, command: 'app\\.py$', cgroup: shop, listen_port: 80}\n    service: shop\n    layer: MESH\n";
        let config = parse(yaml, "f").unwrap();
        let rule = &config.services[0];
        assert_eq!(rule.service, "shop");
        assert_eq!(rule.matches.listen_port, Some(80));
        assert!(
            rule.matches
                .command
                .as_ref()
                .unwrap()
                .is_in("python3 app.py")
        );
        assert_eq!(rule.instance, None);
    }

    /// Check what is refused: no condition, no name, a bad expression, a port out of range.
    #[test]
    fn bad_rules_are_refused() {
        let error = |condition: &str, service: &str| {
            let yaml = format!("services:\n  - match: {{{condition}}}\n    service: '{service}'\n");
            parse(&yaml, "f").unwrap_err().to_string()
        };
        assert!(error("", "a").contains("matches every process"));
        assert!(error("exe: a", "").contains("1 to 70 characters"));
        assert!(error("exe: a", &"x".repeat(71)).contains("1 to 70 characters"));
        assert!(error("command: '('", "a").contains("not a regular expression"));
        assert!(error("listen_port: 70000", "a").contains("f:2:"));
        let nearest = error("comand: a", "a");
        assert!(nearest.contains("did you mean \"command\""), "{nearest}");
    }
}
