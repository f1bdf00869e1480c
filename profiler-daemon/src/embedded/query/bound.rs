//! Bounds the work that a query asks for, before it is validated.
//!
//! In:  the text of a query and its variables
//! Out: the query, parsed; or an error of GraphQL that names the bound
//! Lost: nothing
//!
//! Validation visits a fragment each time it is spread. Thirty fragments, of which each spreads the one before ten
//! times, are 2.6 kB of text and 10^29 visits, so the expanded size is summed up here first: each fragment once,
//! from the innermost on.
//!
//! ```text
//! fragment a { x y }           2
//! fragment b { ...a ...a }     2 x (1 + 2) = 6
//! fragment c { ...b ...b }     2 x (1 + 6) = 14
//! { ...c }                     15
//!                              37 in all, since a fragment is validated on its own as well
//! ```

use std::collections::HashMap;

use async_graphql::parser::types::{Directive, ExecutableDocument, Selection, SelectionSet};
use async_graphql::{Name, Positioned, Request, ServerError, Variables};
use async_graphql_value::{ConstValue, Value};

/// Longest text of a query; usual ones have some hundred bytes, an introspection two thousand.
pub(super) const TEXT_MAX_BYTES: usize = 64 << 10;
/// Deepest nesting of brackets, and of selections with the fragments in them. Parser and validation call
/// themselves for each level.
pub(super) const NESTING_MAX: usize = 64;
/// Most parts: fields, spreads, directives and values, in fragments as often as these are spread. An introspection
/// by usual tools has fewer than 1,000.
pub(super) const PARTS_MAX: u64 = 10_000;

/// Parses a query unless it is over a bound. The work is linear in its text.
pub(super) fn parse(request: &mut Request) -> Result<(), ServerError> {
    let length = request.query.len();
    if length > TEXT_MAX_BYTES {
        return refuse(format!(
            "the query has {length} bytes, at most {TEXT_MAX_BYTES} are read; put long values into its variables"
        ));
    }
    check_nesting(&request.query)?;
    let variables = variable_parts(&request.variables);
    let document = request.parsed_query()?;
    Parts::new(document, variables).check()
}

fn refuse<T>(text: String) -> Result<T, ServerError> {
    Err(ServerError::new(text, None))
}

fn too_nested<T>() -> Result<T, ServerError> {
    refuse(format!(
        "the query is nested too deep, at most {NESTING_MAX} levels are read, with the fragments that are spread"
    ))
}

/// Checks brackets outside of texts and comments, which have the same form everywhere in GraphQL.
fn check_nesting(query: &str) -> Result<(), ServerError> {
    let mut rest = query.as_bytes();
    let mut level = 0_usize;
    while let Some((&byte, after)) = rest.split_first() {
        rest = match byte {
            b'"' => match after_text(rest) {
                Some(after) => after,
                None => return refuse("a text in the query has no end".to_owned()),
            },
            b'#' => {
                let end = after.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
                after.get(end.unwrap_or(after.len())..).unwrap_or_default()
            }
            b'{' | b'[' | b'(' => {
                level += 1;
                if level > NESTING_MAX {
                    return too_nested();
                }
                after
            }
            b'}' | b']' | b')' => {
                level = level.saturating_sub(1);
                after
            }
            _ => after,
        };
    }
    Ok(())
}

/// What follows a text that begins with a quotation mark; `None` if it has no end.
fn after_text(text: &[u8]) -> Option<&[u8]> {
    const BLOCK: &[u8] = b"\"\"\"";
    const ESCAPED: &[u8] = b"\\\"\"\"";
    if let Some(mut rest) = text.strip_prefix(BLOCK) {
        loop {
            if let Some(after) = rest.strip_prefix(BLOCK) {
                return Some(after);
            }
            rest = match rest.strip_prefix(ESCAPED) {
                Some(after) => after,
                None => rest.get(1..)?,
            };
        }
    }
    let mut rest = text.get(1..)?;
    loop {
        let (&byte, after) = rest.split_first()?;
        rest = match byte {
            b'"' => return Some(after),
            b'\\' => after.get(1..)?,
            b'\n' | b'\r' => return None,
            _ => after,
        };
    }
}

/// Parts of each variable: its value is copied wherever it is used.
fn variable_parts(variables: &Variables) -> HashMap<Name, u64> {
    let parts = variables.iter();
    parts
        .map(|(name, value)| (name.clone(), const_parts(value)))
        .collect()
}

/// The JSON that it comes from has at most 128 levels.
fn const_parts(value: &ConstValue) -> u64 {
    let inner = match value {
        ConstValue::List(values) => sum(values.iter().map(const_parts)),
        ConstValue::Object(values) => sum(values.values().map(const_parts)),
        _ => 0,
    };
    inner.saturating_add(1)
}

fn sum(parts: impl Iterator<Item = u64>) -> u64 {
    parts.fold(0, u64::saturating_add)
}

/// Sums up the parts of a document.
struct Parts<'a> {
    document: &'a ExecutableDocument,
    variables: HashMap<Name, u64>,
    /// Parts of fragments; `None` while a fragment is being summed up.
    fragments: HashMap<&'a str, Option<u64>>,
}

impl<'a> Parts<'a> {
    fn new(document: &'a ExecutableDocument, variables: HashMap<Name, u64>) -> Self {
        Self {
            document,
            variables,
            fragments: HashMap::new(),
        }
    }

    fn check(mut self) -> Result<(), ServerError> {
        let document = self.document;
        let mut parts = 0_u64;
        for (_, operation) in document.operations.iter() {
            for variable in &operation.node.variable_definitions {
                let default = variable.node.default_value.as_ref();
                let value = default.map_or(0, |value| const_parts(&value.node));
                let known = self.variables.entry(variable.node.name.node.clone());
                let known = known.or_default();
                *known = (*known).max(value);
                parts = parts.saturating_add(value).saturating_add(1);
            }
        }
        for (_, operation) in document.operations.iter() {
            let own = self.directives(&operation.node.directives);
            parts = parts.saturating_add(own);
            parts = parts.saturating_add(self.selections(&operation.node.selection_set.node, 1)?);
        }
        for name in document.fragments.keys() {
            parts = parts.saturating_add(self.fragment(name, 1)?);
        }
        if parts <= PARTS_MAX {
            return Ok(());
        }
        refuse(format!(
            "the query has more than {PARTS_MAX} parts, counting fragments and variables as often as they are used; \
             ask for less, or in several requests"
        ))
    }

    fn fragment(&mut self, name: &'a Name, level: usize) -> Result<u64, ServerError> {
        match self.fragments.get(name.as_str()) {
            Some(Some(parts)) => return Ok(*parts),
            Some(None) => return refuse(format!("the fragment {name} spreads itself")),
            None => {}
        }
        // A name that nothing has is for validation to refuse.
        let Some(fragment) = self.document.fragments.get(name) else {
            return Ok(0);
        };
        self.fragments.insert(name, None);
        let own = self.directives(&fragment.node.directives);
        let inner = self.selections(&fragment.node.selection_set.node, level)?;
        let parts = own.saturating_add(inner);
        self.fragments.insert(name, Some(parts));
        Ok(parts)
    }

    fn selections(&mut self, set: &'a SelectionSet, level: usize) -> Result<u64, ServerError> {
        if level > NESTING_MAX {
            return too_nested();
        }
        let mut parts = 0_u64;
        for selection in &set.items {
            let inner = match &selection.node {
                Selection::Field(field) => {
                    let values = field.node.arguments.iter().map(|(_, value)| &value.node);
                    let values = sum(values.map(|value| self.value(value)));
                    let inner = self.selections(&field.node.selection_set.node, level + 1)?;
                    values.saturating_add(inner)
                }
                Selection::FragmentSpread(spread) => {
                    self.fragment(&spread.node.fragment_name.node, level + 1)?
                }
                Selection::InlineFragment(inline) => {
                    self.selections(&inline.node.selection_set.node, level + 1)?
                }
            };
            let own = self.directives(selection.node.directives());
            let own = own.saturating_add(1);
            parts = parts.saturating_add(own).saturating_add(inner);
        }
        Ok(parts)
    }

    fn directives(&self, directives: &[Positioned<Directive>]) -> u64 {
        let values = |directive: &Positioned<Directive>| {
            let values = directive.node.arguments.iter();
            let values = sum(values.map(|(_, value)| self.value(&value.node)));
            values.saturating_add(1)
        };
        sum(directives.iter().map(values))
    }

    fn value(&self, value: &Value) -> u64 {
        let inner = match value {
            Value::Variable(name) => self.variables.get(name).copied().unwrap_or_default(),
            Value::List(values) => sum(values.iter().map(|value| self.value(value))),
            Value::Object(values) => sum(values.values().map(|value| self.value(value))),
            _ => 0,
        };
        inner.saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(query: &str) -> Option<String> {
        refusal_with(query, Variables::default())
    }

    fn refusal_with(query: &str, variables: Variables) -> Option<String> {
        let mut request = Request::new(query).variables(variables);
        parse(&mut request).err().map(|error| error.message)
    }

    /// Fragments of which each spreads the one before so many times, and an operation that spreads the last.
    fn doubling(levels: usize, fan: usize) -> String {
        let mut text = "fragment f0 on Query { version } ".to_owned();
        for level in 1..=levels {
            let spreads = format!("...f{} ", level - 1).repeat(fan);
            text += &format!("fragment f{level} on Query {{ {spreads} }} ");
        }
        text + &format!("{{ ...f{levels} }}")
    }

    /// Check that fragments count as often as they are spread, however many levels multiply.
    #[test]
    fn fragments_count_as_often_as_they_are_spread() {
        for (levels, fan) in [(30, 10), (30, 2), (4, 10), (13, 2), (50, 60)] {
            let text = refusal(&doubling(levels, fan)).unwrap();
            assert!(
                text.contains("more than 10000 parts"),
                "{levels} {fan}: {text}"
            );
        }
        for (levels, fan) in [(0, 1), (3, 10), (10, 2), (60, 1)] {
            assert_eq!(refusal(&doubling(levels, fan)), None, "{levels} {fan}");
        }
        assert!(
            refusal(&doubling(63, 1))
                .unwrap()
                .contains("nested too deep")
        );
        let unused = doubling(30, 10).replace("{ ...f30 }", "{ version }");
        assert!(refusal(&unused).unwrap().contains("parts"));
    }

    /// Check that values count, and those of a variable wherever it is used.
    #[test]
    fn values_count_where_they_are_used() {
        let list = |count: usize| format!("{{ a(b: [{}]) }}", "1 ".repeat(count));
        assert_eq!(refusal(&list(9_000)), None);
        assert!(refusal(&list(10_000)).unwrap().contains("parts"));
        let uses = |count: usize| {
            let fields = (0..count).map(|i| format!("a{i}: a(b: $v) "));
            format!("query($v: [Int]) {{ {} }}", fields.collect::<String>())
        };
        let variables = || Variables::from_json(serde_json::json!({ "v": vec![1; 1_000] }));
        assert_eq!(refusal_with(&uses(9), variables()), None);
        let text = refusal_with(&uses(10), variables()).unwrap();
        assert!(text.contains("parts"), "{text}");
        let default = uses(10).replace("[Int]", &format!("[Int] = [{}]", "1 ".repeat(1_000)));
        assert!(refusal_with(&default, Variables::default()).is_some());
        let directives = format!("{{ a {} }}", "@skip(if: true) ".repeat(3_000));
        assert_eq!(refusal(&directives), None);
        let directives = format!("{{ a {} }}", "@x(a:[1 1 1 1 1]) ".repeat(3_000));
        assert!(refusal(&directives).unwrap().contains("parts"));
    }

    /// Check that brackets nest to the bound, and that those in texts and comments do not count.
    #[test]
    fn brackets_nest_to_the_bound() {
        let nested =
            |count: usize| format!("{{ a(b: {}1{}) }}", "[".repeat(count), "]".repeat(count));
        assert_eq!(refusal(&nested(NESTING_MAX - 2)), None);
        for count in [NESTING_MAX - 1, 30_000] {
            let text = refusal(&nested(count)).unwrap();
            assert!(text.contains("nested too deep"), "{count}: {text}");
        }
        let brackets = "[{(".repeat(100);
        for query in [
            format!("{{ a(b: \"{brackets}\") }}"),
            format!("{{ a(b: \"\\\"{brackets}\") }}"),
            format!("{{ a(b: \"\"\"{brackets} \" \\\"\"\" {brackets}\n\"\"\") }}"),
            format!("{{ a # {brackets} \"\n }}"),
            format!("{{ a(b: \"\") # {brackets}\r }}"),
        ] {
            assert_eq!(refusal(&query), None, "{query}");
        }
        for query in [
            format!("{{ a(b: \"x\" c: {brackets}"),
            format!("{{ a(b: \"\"\"\\\"\"\"\"\"\" c: {brackets}"),
        ] {
            let text = refusal(&query).unwrap();
            assert!(text.contains("nested too deep"), "{text}");
        }
        for query in [
            "{ a(b: \"",
            "{ a(b: \"\n\") }",
            "{ a(b: \"\"\" \") }",
            "\"\\",
        ] {
            let text = refusal(query).unwrap();
            assert!(text.contains("has no end"), "{query}: {text}");
        }
    }

    /// Check that a fragment that spreads itself, and a text that is too long, are refused.
    #[test]
    fn a_cycle_and_a_long_text_are_refused() {
        let cycle = "fragment a on Query { ...b } fragment b on Query { version ...a } { version }";
        assert!(refusal(cycle).unwrap().contains("spreads itself"));
        let long = format!("{{ version }} # {}", "x".repeat(TEXT_MAX_BYTES));
        assert!(refusal(&long).unwrap().contains("65536 are read"));
        assert_eq!(refusal("{ ...nowhere }"), None);
        assert!(refusal("{").is_some());
    }
}
