//! Texts with placeholders, such as `{workload}-{port}`, for names that rules give.
//!
//! In:  a text of the configuration
//! Out: [`Template`]; filled with what is known of a process, a text
//!
//! `{{` and `}}` stand for braces. Known are the placeholders of [`KNOWN`], `{label.KEY}` for a label of
//! the pod, and the named groups of the rule's expressions; others are refused when the file is read.

use std::fmt;

/// Placeholders that every rule may use.
const KNOWN: [&str; 9] = [
    "container",
    "pod",
    "namespace",
    "workload",
    "unit",
    "exe",
    "port",
    "host",
    "pid",
];
/// A label of the pod, by its key.
pub const LABEL: &str = "label.";

/// A text with placeholders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Placeholder(String),
}

impl Template {
    /// Reads a text; `groups` are the named groups of the rule's expressions.
    ///
    /// # Errors
    ///
    /// A placeholder is unknown or has no end; the text lists those that are known.
    pub fn parse(text: &str, groups: &[String]) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, after) = rest.split_at(at);
            literal.push_str(before);
            if let Some(brace) = ["{{", "}}"].into_iter().find(|b| after.starts_with(b)) {
                literal.push_str(&brace[1..]);
                rest = &after[2..];
                continue;
            }
            let inside = after
                .strip_prefix('{')
                .and_then(|after| after.split_once('}'));
            let Some((name, behind)) = inside else {
                return Err(format!(
                    "{text:?} has a single brace; write {{{{ or }}}} for a brace in the text"
                ));
            };
            if !is_known(name, groups) {
                let groups = groups.iter().map(String::as_str);
                let known: Vec<&str> = KNOWN.into_iter().chain(groups).collect();
                return Err(format!(
                    "unknown placeholder {{{name}}} in {text:?}; known here: {}, label.KEY",
                    known.join(", ")
                ));
            }
            if !literal.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut literal)));
            }
            parts.push(Part::Placeholder(name.to_owned()));
            rest = behind;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Self(parts))
    }

    /// The text with every placeholder filled, `None` if one of them has no value.
    pub fn fill(&self, value: impl Fn(&str) -> Option<String>) -> Option<String> {
        let parts = self.0.iter().map(|part| match part {
            Part::Text(text) => Some(text.clone()),
            Part::Placeholder(name) => value(name).filter(|value| !value.is_empty()),
        });
        parts.collect()
    }

    /// What of it is text.
    pub(super) fn literal(&self) -> String {
        let texts = self.0.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Placeholder(_) => None,
        });
        texts.collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// As it was written.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(&text.replace('{', "{{").replace('}', "}}")),
            Part::Placeholder(name) => write!(f, "{{{name}}}"),
        })
    }
}

fn is_known(name: &str, groups: &[String]) -> bool {
    let is_label = name.strip_prefix(LABEL).is_some_and(|key| !key.is_empty());
    is_label || KNOWN.contains(&name) || groups.iter().any(|group| group == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that placeholders are filled, braces written, and that one without a value voids the text.
    #[test]
    fn placeholders_are_filled() {
        let groups = ["site".to_owned()];
        let value = |name: &str| match name {
            "pid" => Some("7".to_owned()),
            "site" => Some("eu".to_owned()),
            "label.app.kubernetes.io/name" => Some("shop".to_owned()),
            "unit" => Some(String::new()),
            _ => None,
        };
        let fill = |text: &str| Template::parse(text, &groups).unwrap().fill(value);
        assert_eq!(fill("a-{pid}.{site}").as_deref(), Some("a-7.eu"));
        assert_eq!(
            fill("{label.app.kubernetes.io/name}").as_deref(),
            Some("shop")
        );
        assert_eq!(fill("{{{pid}}}").as_deref(), Some("{7}"));
        assert_eq!(fill("plain").as_deref(), Some("plain"));
        assert_eq!(fill("{pod}"), None);
        assert_eq!(fill("x{unit}"), None);
        let text = "{{a}}-{pid}";
        assert_eq!(Template::parse(text, &[]).unwrap().to_string(), text);
    }

    /// Check that unknown placeholders are refused with the list, and lone braces with the remedy.
    #[test]
    fn unknown_placeholders_are_refused() {
        let error = Template::parse("{contaner}", &["site".to_owned()]).unwrap_err();
        assert!(
            error.contains("{contaner}") && error.contains("container, pod"),
            "{error}"
        );
        assert!(error.contains("pid, site, label.KEY"), "{error}");
        for lone in ["a{", "a}", "{pid", "{pid}}"] {
            let error = Template::parse(lone, &[]).unwrap_err();
            assert!(error.contains("a single brace"), "{error}");
        }
        assert!(Template::parse("{label.}", &[]).is_err());
    }
}
