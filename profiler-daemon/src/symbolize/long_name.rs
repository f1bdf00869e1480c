//! Shortens long function names without making two functions one.
//!
//! In:  a demangled name: C++, Rust or anything else
//! Out: the name, or a text of at most [`NAME_UNITS_MAX`] units that no other name has
//! Lost: the arguments of templates, generics and functions, from the innermost outwards; then the name's middle
//!
//! ```text
//! Pack<int, long, ... 400 more>::First::run(int)   ->   Pack<…>::First::run(int)#0b1c2d3e
//! ```
//!
//! # Why always a mark
//! What an OAP compares is the text, and it compares texts of runs and hosts that know nothing of each other. Whether
//! another name has the same short text cannot be known, so each short text carries a mark of its whole name.

use std::borrow::Cow;

pub(super) use crate::model::name::FUNCTION_MAX as NAME_UNITS_MAX;
use crate::model::name::{mark, shorten};

/// Groups in groups that are told apart: beyond, the arguments are left out in any case.
const DEPTH_MAX: usize = 6;
/// Left as it is: a name and no list of arguments.
const ANONYMOUS: &str = "(anonymous namespace)";
const ELIDED: &str = "…";

/// The name as it is shown.
pub(super) fn readable(name: &str) -> Cow<'_, str> {
    // A unit is a byte or more.
    if name.len() <= NAME_UNITS_MAX {
        return Cow::Borrowed(name);
    }
    let units = |text: &str| text.encode_utf16().count();
    if units(name) <= NAME_UNITS_MAX {
        return Cow::Borrowed(name);
    }
    let mark = mark(name);
    let groups = groups(name);
    let fitting = (0..DEPTH_MAX).rev().find_map(|depth| {
        let short = elide(name, &groups, depth) + &mark;
        (units(&short) <= NAME_UNITS_MAX).then_some(short)
    });
    fitting.map_or_else(|| shorten(name, NAME_UNITS_MAX), Cow::Owned)
}

/// A pair of brackets with something in between.
#[derive(Debug)]
struct Group {
    /// Position of the opening bracket.
    start: usize,
    /// Position of the closing one.
    end: usize,
    /// How many groups it is in.
    depth: usize,
}

/// The groups of a name, by their start.
fn groups(name: &str) -> Vec<Group> {
    let bytes = name.as_bytes();
    let mut open: Vec<(usize, u8)> = Vec::new();
    let mut groups = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if let Some(symbols) = operator(bytes, at) {
            at += symbols;
            continue;
        }
        match byte {
            b'(' if name[at..].starts_with(ANONYMOUS) => at += ANONYMOUS.len() - 1,
            b'<' => open.push((at, b'>')),
            b'(' => open.push((at, b')')),
            // The arrow before a type that is returned.
            b'>' if at > 0 && bytes[at - 1] == b'-' => {}
            b'>' | b')' if open.last().is_some_and(|&(_, closing)| closing == byte) => {
                if let Some((start, _)) = open.pop()
                    && start + 1 < at
                {
                    groups.push(Group {
                        start,
                        end: at,
                        depth: open.len(),
                    });
                }
            }
            _ => {}
        }
        at += 1;
    }
    groups.sort_unstable_by_key(|group| group.start);
    groups
}

/// Length of `operator` and the symbols behind it that look like brackets: `operator<`, `operator->`, `operator()`.
fn operator(bytes: &[u8], at: usize) -> Option<usize> {
    const WORD: &[u8] = b"operator";
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let rest = bytes.get(at..)?.strip_prefix(WORD)?;
    if at > 0 && is_part(&bytes[at - 1]) {
        return None;
    }
    let symbols = match rest {
        [b'(', b')', ..] => 2,
        _ => {
            let is_symbol = |byte: &&u8| matches!(byte, b'<' | b'>' | b'=' | b'-');
            rest.iter().take(3).take_while(is_symbol).count()
        }
    };
    (symbols > 0).then_some(WORD.len() + symbols)
}

/// The name without what stands in groups that are in `depth` others.
fn elide(name: &str, groups: &[Group], depth: usize) -> String {
    let mut short = String::with_capacity(name.len());
    let mut done = 0;
    for group in groups.iter().filter(|group| group.depth == depth) {
        short.push_str(&name[done..=group.start]);
        short.push_str(ELIDED);
        done = group.end;
    }
    short.push_str(&name[done..]);
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elided(name: &str, depth: usize) -> String {
        elide(name, &groups(name), depth)
    }

    /// Check that two methods of a template with long arguments keep their names and stay two.
    #[test]
    fn arguments_are_left_out_and_the_end_stays() {
        let arguments = "std::vector<int>, ".repeat(40);
        let method = |name: &str| format!("Pack<{arguments}long>::{name}::run");
        let (first, second) = (method("First"), method("Second"));
        let expected = |name: &str| format!("Pack<…>::{name}::run{}", mark(&method(name)));
        assert_eq!(readable(&first), expected("First"));
        assert_eq!(readable(&second), expected("Second"));
    }

    /// Check that the outermost arguments stay if they fit without their own.
    #[test]
    fn inner_arguments_go_first() {
        let inner = "x".repeat(300);
        let name = format!("<alloc::vec::Vec<{inner}> as shop::Orders>::sum");
        let expected = format!("<alloc::vec::Vec<…> as shop::Orders>::sum{}", mark(&name));
        assert_eq!(readable(&name), expected);
    }

    /// Check that names which differ only in what is left out stay two.
    #[test]
    fn names_that_differ_in_full_do_not_merge() {
        let name = |argument: &str| format!("f<{argument}{}>", "x".repeat(300));
        let (int, long) = (name("int"), name("long"));
        assert!(readable(&int).starts_with("f<…>#"));
        assert_ne!(readable(&int), readable(&long));
        let plain = |middle: &str| format!("{}{middle}{}", "a".repeat(300), "b".repeat(300));
        assert_ne!(readable(&plain("1")), readable(&plain("2")));
    }

    /// Check that every text fits, and one that fits is not touched.
    #[test]
    fn names_fit() {
        let fits = "é".repeat(NAME_UNITS_MAX);
        assert_eq!(readable(&fits), fits);
        for name in [
            "é".repeat(NAME_UNITS_MAX + 1),
            "<".repeat(5000),
            "<(".repeat(5000) + &")>".repeat(5000),
            "a<b>::".repeat(500),
            ">".repeat(300),
            "operator".repeat(100) + "<",
        ] {
            let units = readable(&name).encode_utf16().count();
            assert!(units <= NAME_UNITS_MAX, "{units}");
        }
    }

    /// Check which brackets make a group.
    #[test]
    fn brackets_are_understood() {
        for (name, expected) in [
            ("a<b<c>, d>::e(f)", "a<…>::e(…)"),
            ("a::b() const", "a::b() const"),
            ("operator<(a, b)", "operator<(…)"),
            ("operator<< <int>(a)", "operator<< <…>(…)"),
            ("ns::operator->*(a)", "ns::operator->*(…)"),
            ("a::operator()(int) const", "a::operator()(…) const"),
            ("my_operator<int>()", "my_operator<…>()"),
            (
                "(anonymous namespace)::f(int)",
                "(anonymous namespace)::f(…)",
            ),
            ("f<fn(a) -> b>::{{closure}}", "f<…>::{{closure}}"),
            (
                "f::{lambda(int)#1}::operator()",
                "f::{lambda(…)#1}::operator()",
            ),
            ("a<(b>c)>::d", "a<…>::d"),
            ("a<b::c(d", "a<b::c(d"),
            ("é<ü>ö", "é<…>ö"),
        ] {
            assert_eq!(elided(name, 0), expected);
        }
        assert_eq!(elided("a<b<c>, d(e)>(f<g>)", 1), "a<b<…>, d(…)>(f<…>)");
    }
}
