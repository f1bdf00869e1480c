//! Turns symbols into names that people read.
//!
//! In:  a symbol of an object, which the object's owner chose
//! Out: its name in Rust or C++, as binutils writes it; the symbol itself if it is in neither
//! Lost: names beyond [`NAME_BYTES_MAX`]: the symbol is shown
//!
//! # Why not by blazesym
//! A symbol of some hundred bytes can describe a name of gigabytes. The name is written into a buffer that refuses
//! more, which ends the demangler as well.
//!
//! # What is mended
//! `cpp_demangle` differs from binutils where a parameter pack is empty, where a function is local to another one,
//! in the first parameter of constructors that are templates, and in the suffixes of numbers:
//!
//! ```text
//! void std::call_once<void (&)(), >(std::once_flag&, void (&)(), &&)::{lambda()#1}::operator()() const
//!      std::call_once<void (&)()>(std::once_flag&, void (&)())::{lambda()#1}::operator()() const
//! ```

use std::borrow::Cow;
use std::fmt::{self, Write};

use cpp_demangle::{DemangleOptions, Symbol};

use crate::quiet_panic::catch_quietly;

/// Most bytes of a symbol and of its name. The longest names of real programs have some thousand.
const NAME_BYTES_MAX: usize = 4096;
/// Types of numbers that binutils writes as a suffix, as in C.
const SUFFIXES: &[(&str, &str)] = &[
    ("(unsigned long long)", "ull"),
    ("(unsigned long)", "ul"),
    ("(unsigned int)", "u"),
    ("(long long)", "ll"),
    ("(long)", "l"),
];
/// Constructors with arguments of a template: complete, base, allocating, and those that stand for all.
const CONSTRUCTORS: &[&str] = &["C1I", "C2I", "C3I", "C4I", "C5I"];
/// Places in a symbol where the parameters may begin that are tried.
const ENDS_MAX: usize = 64;
const ANONYMOUS: &str = "(anonymous namespace)";

/// The name that a symbol stands for.
pub(super) fn demangle(symbol: &str) -> Cow<'_, str> {
    let is_mangled = symbol.starts_with("_Z") || symbol.starts_with("_R");
    if !is_mangled || symbol.len() > NAME_BYTES_MAX {
        return Cow::Borrowed(symbol);
    }
    // cpp_demangle adds numbers of a symbol without asking whether their sum fits.
    let name = catch_quietly(|| rust(symbol).or_else(|| cpp(symbol)));
    name.flatten().map_or(Cow::Borrowed(symbol), Cow::Owned)
}

fn rust(symbol: &str) -> Option<String> {
    let demangled = rustc_demangle::try_demangle(symbol).ok()?;
    let mut name = Bounded::default();
    // The alternate form has no hash.
    write!(name, "{demangled:#}").ok()?;
    Some(name.0)
}

fn cpp(symbol: &str) -> Option<String> {
    let name = unmended(symbol)?;
    let name = with_first_parameter(symbol, &name).unwrap_or(name);
    Some(Mend::default().mend(&name))
}

fn unmended(symbol: &str) -> Option<String> {
    let demangled = Symbol::new(symbol).ok()?;
    let mut name = Bounded::default();
    demangled
        .structured_demangle(&mut name, &DemangleOptions::default())
        .ok()?;
    Some(name.0)
}

/// A template that is a constructor has no return type, but its first parameter is taken for one and left out. A
/// type that may be left out, put before the parameters, brings it back. Where they begin the symbol does not say: the
/// first place that leaves the name as it is.
fn with_first_parameter(symbol: &str, name: &str) -> Option<String> {
    if !symbol.starts_with("_ZN") || !CONSTRUCTORS.iter().any(|mark| symbol.contains(mark)) {
        return None;
    }
    let function = constructor(name)?;
    let ends = symbol.match_indices('E').take(ENDS_MAX);
    let mut again = ends.filter_map(|(end, _)| {
        let (before, parameters) = symbol.split_at(end + 1);
        unmended(&format!("{before}v{parameters}"))
    });
    again.find(|again| {
        again
            .strip_prefix(function)
            .is_some_and(|rest| rest.starts_with('('))
    })
}

/// `ns::Pair<int>::Pair<long>` of `ns::Pair<int>::Pair<long>(...)`, if it is a constructor.
fn constructor(name: &str) -> Option<&str> {
    let function = before_last(name, '(', ')')?;
    let (outer, own) = before_last(function, '<', '>')?.rsplit_once("::")?;
    let class = before_last(outer, '<', '>').unwrap_or(outer);
    let class = class.rsplit("::").next().unwrap_or(class);
    (class == own).then_some(function)
}

/// What stands before the group at the end.
fn before_last(name: &str, opening: char, closing: char) -> Option<&str> {
    let mut depth = 0_usize;
    if !name.ends_with(closing) {
        return None;
    }
    for (at, c) in name.char_indices().rev() {
        if c == closing {
            depth += 1;
        } else if c == opening {
            depth = depth.checked_sub(1)?;
            if depth == 0 {
                return Some(&name[..at]);
            }
        }
    }
    None
}

/// Text of at most [`NAME_BYTES_MAX`] bytes.
#[derive(Default)]
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > NAME_BYTES_MAX {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// Rewrites a name of `cpp_demangle` in one pass.
#[derive(Default)]
struct Mend {
    out: String,
    /// Lists that are open, the outermost first.
    lists: Vec<List>,
    /// The part of the innermost list that is being written; without a list, of the name.
    item: Item,
}

struct List {
    is_anonymous: bool,
    /// The item that the list is part of.
    outer: Item,
}

#[derive(Clone, Copy, Default)]
struct Item {
    /// Where it begins in `out`.
    start: usize,
    /// Where a name begins that may have a type before it.
    name: usize,
}

impl Mend {
    fn mend(mut self, name: &str) -> String {
        let mut rest = name;
        while let Some(c) = rest.chars().next() {
            rest = self.step(rest, c);
        }
        self.out
    }

    /// Takes over what `rest` begins with, and returns what follows.
    fn step<'n>(&mut self, rest: &'n str, c: char) -> &'n str {
        if let Some(after) = self.skip_empty_item(rest) {
            return after;
        }
        if let Some((number, after)) = self.suffixed(rest) {
            self.out.push_str(&number);
            return after;
        }
        let after = &rest[c.len_utf8()..];
        if c == ',' && after.starts_with(' ') && !self.lists.is_empty() {
            self.out.push_str(", ");
            self.item = Item::at(self.out.len());
            return &after[1..];
        }
        self.out.push(c);
        match c {
            '<' | '(' | '{' if !self.is_in_operator() => {
                self.lists.push(List {
                    is_anonymous: rest.starts_with(ANONYMOUS),
                    outer: self.item,
                });
                self.item = Item::at(self.out.len());
            }
            '>' | ')' | '}' if !self.is_in_operator() => {
                if let Some(list) = self.lists.pop() {
                    self.item = list.outer;
                    if c == ')' && !list.is_anonymous && is_scope(after) {
                        self.drop_return_type();
                    }
                }
            }
            // `operator bool` is a name; what stands behind a list of parameters says more about it.
            ' ' if !self.out.ends_with("operator ") && !self.out.ends_with(") ") => {
                self.item.name = self.out.len();
            }
            _ => {}
        }
        after
    }

    /// An item of a list that an empty parameter pack left behind: nothing, or the reference to nothing.
    fn skip_empty_item<'n>(&mut self, rest: &'n str) -> Option<&'n str> {
        let list_start = self.out.trim_end_matches(['<', '(']);
        let opens = list_start.len() < self.out.len();
        // `void (&)()` is no list, and `operator<` opens none.
        let is_first = opens && !list_start.ends_with([' ', '*']) && !self.is_in_operator();
        let ends = |text: &str| text.starts_with(['>', ')']);
        let after_item = |text: &'n str| text.trim_start_matches(['&', '*']);
        if let Some(next) = rest.strip_prefix(", ") {
            let after = after_item(next);
            if ends(after) || after.starts_with(", ") {
                return (!self.lists.is_empty()).then_some(after);
            }
            return (is_first && !self.lists.is_empty()).then_some(next);
        }
        let after = after_item(rest);
        let is_reference = is_first && after.len() < rest.len();
        (is_reference && (ends(after) || after.starts_with(", "))).then_some(after)
    }

    /// `(unsigned long)3` as `3ul`.
    fn suffixed<'n>(&self, rest: &'n str) -> Option<(String, &'n str)> {
        let (cast, suffix) = SUFFIXES.iter().find(|(cast, _)| rest.starts_with(cast))?;
        let number = &rest[cast.len()..];
        let digits = number.trim_start_matches('-');
        let after = digits.trim_start_matches(|c: char| c.is_ascii_digit());
        let text = &number[..number.len() - after.len()];
        (after.len() < digits.len()).then(|| (format!("{text}{suffix}"), after))
    }

    /// Functions that others are local to have no return type.
    fn drop_return_type(&mut self) {
        let Item { start, name } = self.item;
        if start < name && name <= self.out.len() {
            self.out.replace_range(start..name, "");
            self.item.name = start;
        }
    }

    /// The last character belongs to the name of an operator.
    fn is_in_operator(&self) -> bool {
        let symbols = ['<', '>', '=', '-', '(', ')', '*'];
        let word = self.out.trim_end_matches(symbols);
        let written = &self.out[word.len()..];
        word.ends_with("operator")
            && matches!(
                written,
                "<" | ">"
                    | "<<"
                    | ">>"
                    | "<="
                    | ">="
                    | "<=>"
                    | "<<="
                    | ">>="
                    | "-"
                    | "->"
                    | "->*"
                    | "("
                    | "()"
            )
    }
}

impl Item {
    fn at(start: usize) -> Self {
        Self { start, name: start }
    }
}

/// What follows a list of parameters says that the function has something local.
fn is_scope(after: &str) -> bool {
    let after = after.strip_prefix(" const").unwrap_or(after);
    after.starts_with("::")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that both languages are read, without hashes, and that other symbols stay what they are.
    #[test]
    fn languages_are_told_apart() {
        for (symbol, name) in [
            ("main", "main"),
            ("_ZN4shop6Orders3sumEv", "shop::Orders::sum()"),
            ("_ZN4core3fmt5write17h0123456789abcdefE", "core::fmt::write"),
            ("_RNvCs1234_4shop3sum", "shop::sum"),
            ("_Znot", "_Znot"),
            ("_ZSt", "_ZSt"),
            // Makes the demangler panic where overflow is checked.
            (
                "_Z1fIiEvT9223372036854775807_",
                "_Z1fIiEvT9223372036854775807_",
            ),
        ] {
            assert_eq!(demangle(symbol), name);
        }
    }

    /// Check that empty parameter packs leave nothing behind, and that local functions have no return type:
    /// binutils' `c++filt` wrote what is expected here.
    #[test]
    fn names_are_those_of_binutils() {
        for (symbol, name) in [
            (
                "_ZZSt9call_onceIRFvvEJEEvRSt9once_flagOT_DpOT0_ENKUlvE_clEv",
                "std::call_once<void (&)()>(std::once_flag&, void (&)())::{lambda()#1}::operator()() const",
            ),
            (
                "_ZSt9call_onceIRFvvEJEEvRSt9once_flagOT_DpOT0_",
                "void std::call_once<void (&)()>(std::once_flag&, void (&)())",
            ),
            (
                "_ZSt9call_onceIMSt6threadFvvEJPS0_EEvRSt9once_flagOT_DpOT0_",
                "void std::call_once<void (std::thread::*)(), std::thread*>(std::once_flag&, void (std::thread::*&&)(), std::thread*&&)",
            ),
            (
                "_ZNSt5tupleIJPFvvEEEC1ILb1ELb1EEERKS1_",
                "std::tuple<void (*)()>::tuple<true, true>(void (* const&)())",
            ),
            (
                "_ZNSt15error_conditionC2ISt4errcvEET_",
                "std::error_condition::error_condition<std::errc, void>(std::errc)",
            ),
            ("_ZN1AIiEC1IlEEiT_", "A<int>::A<long>(int, long)"),
            ("_Z3cntIJEEiDpT_", "int cnt<>()"),
            ("_Z3cntIJidEEiDpT_", "int cnt<int, double>(int, double)"),
            ("_Z1fILm3EEvv", "void f<3ul>()"),
            (
                "_ZN12_GLOBAL__N_11fIiEEvT_",
                "void (anonymous namespace)::f<int>(int)",
            ),
            ("_ZN1AlsEi", "A::operator<<(int)"),
            (
                "_ZZNK1AcvbEvENKUlvE_clEv",
                "A::operator bool() const::{lambda()#1}::operator()() const",
            ),
        ] {
            assert_eq!(demangle(symbol), name);
        }
    }

    /// Check that a short symbol with an endless name is given up soon, and stands for itself.
    #[test]
    fn endless_names_are_given_up() {
        // Each level holds the one before eight times.
        let mut symbol = "_Z1f1aIS_S_S_S_S_S_S_S_E".to_owned();
        for level in 0..20 {
            let seq = if level == 0 {
                "0".to_owned()
            } else {
                level.to_string()
            };
            let before = format!("S{seq}_").repeat(8);
            symbol.push_str(&format!("1bI{before}E"));
        }
        let start = std::time::Instant::now();
        assert!(demangle(&symbol).len() <= NAME_BYTES_MAX);
        assert!(start.elapsed().as_secs() < 5);
    }
}
