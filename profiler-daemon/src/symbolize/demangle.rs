//! Turns symbols into names that people read.
//!
//! In:  a symbol of an object, which the object's owner chose
//! Out: its name in Rust or C++, as binutils writes it; the symbol itself if it is in neither
//! Lost: names beyond [`NAME_BYTES_MAX`], nested too deeply, or of an object whose names have taken [`TIME_MAX`]: the
//!       symbol is shown
//!
//! # What bounds the work
//! A symbol of some hundred bytes can describe a name of gigabytes. blazesym would write it; here the name is written into
//! a buffer that refuses more, which ends both demanglers as well.
//!
//! `cpp_demangle` tries the meanings that a part of a symbol may have one after the other, and with each the meanings of
//! what is inside. A symbol that is wrong at its innermost part is therefore read twice or more for each level: the time
//! grows exponentially with the depth, which [`levels`] limits. What is left of it is bounded by the time that the names
//! of an object may take.
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
use std::time::{Duration, Instant};

use cpp_demangle::{DemangleOptions, ParseOptions, Symbol};

use crate::quiet_panic::catch_quietly;

/// Most bytes of a symbol and of its name. The longest names of real programs have some thousand.
const NAME_BYTES_MAX: usize = 4096;
/// Levels of nesting that are read: a template argument of a template argument is eight levels deeper. Of the 230,000 C++
/// functions of LLVM and libstdc++ 52 need more than 64.
const LEVELS: u32 = 96;
/// With a literal of a type that has a name.
const LEVELS_LITERAL: u32 = 64;
/// With an operator that converts, or a constructor that is inherited.
const LEVELS_CONVERSION: u32 = 48;
/// Types of literals that have a letter of their own.
const LITERAL_TYPES: &[u8] = b"abcdefghijlmnostwxy";
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
/// Time for them. Each takes some microseconds.
const TRIES_TIME_MAX: Duration = Duration::from_millis(20);
/// Time for the names of an object: half a million of usual ones.
const TIME_MAX: Duration = Duration::from_secs(2);
const ANONYMOUS: &str = "(anonymous namespace)";

/// Demangles the symbols of one object.
#[derive(Default)]
pub(super) struct Demangler {
    spent: Duration,
}

impl Demangler {
    /// The name that a symbol stands for.
    pub(super) fn name<'s>(&mut self, symbol: &'s str) -> Cow<'s, str> {
        if self.spent >= TIME_MAX {
            return Cow::Borrowed(symbol);
        }
        let start = Instant::now();
        let name = demangle(symbol);
        self.spent += start.elapsed();
        name
    }
}

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

/// How deeply the parts of a symbol may be nested: less where it may have the marks that begin what can be understood in
/// several ways. With these limits the worst symbols that were found take some 20 ms.
fn levels(symbol: &str) -> u32 {
    let pairs = symbol.as_bytes().windows(2);
    let limits = pairs.map(|pair| match pair {
        // An inherited constructor.
        b"cv" | b"CI" => LEVELS_CONVERSION,
        // Or a name that is local to a file.
        [b'L', kind] if !LITERAL_TYPES.contains(kind) => LEVELS_LITERAL,
        _ => LEVELS,
    });
    limits.min().unwrap_or(LEVELS)
}

fn unmended(symbol: &str) -> Option<String> {
    let options = ParseOptions::default().recursion_limit(levels(symbol));
    let demangled = Symbol::new_with_options(symbol, &options).ok()?;
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
    let start = Instant::now();
    let ends = ends.take_while(|_| start.elapsed() < TRIES_TIME_MAX);
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

    /// The longest of some symbols, in time, and what it is shown as: each has a name of bounded length.
    fn slowest(symbols: impl Iterator<Item = String>) -> Duration {
        let times = symbols.map(|symbol| {
            let start = Instant::now();
            assert!(demangle(&symbol).len() <= NAME_BYTES_MAX.max(symbol.len()));
            start.elapsed()
        });
        times.max().unwrap_or_default()
    }

    /// Check that symbols which stand for endless names, and symbols that keep a parser busy for hours, are given up: the
    /// time is that of a slow machine, and many times less than what they would take.
    #[test]
    fn hostile_symbols_are_given_up() {
        let sequence = |number: usize| match number {
            0 => "S_".to_owned(),
            _ => {
                let digit = |n: usize| char::from_digit(n as u32, 36).unwrap().to_ascii_uppercase();
                let (high, low) = ((number - 1) / 36, (number - 1) % 36);
                let high = (high > 0).then(|| digit(high)).into_iter();
                format!("S{}_", high.chain([digit(low)]).collect::<String>())
            }
        };
        // f(a, b<a, a>, b<b<a, a>, b<a, a> >, ...): each level holds the one before many times.
        let endless = (12..=40_usize).flat_map(|levels| [2, 4, 8].map(|fan| (levels, fan)));
        let endless = endless.map(|(levels, fan)| {
            let level = |level: usize| format!("1bI{}E", sequence(2 * level).repeat(fan));
            format!("_Z1f1a{}", (0..levels).map(level).collect::<String>())
        });
        assert!(slowest(endless) < Duration::from_secs(1));
        // Wrong at the innermost part, and understood in several ways at each level.
        let parts = [
            "T_I", "L1aI", "S_I", "LN1aI", "XL1aI", "cvT_I", "Dpcv", "L_Z1aI", "T_IL1aI", "S_IT_I",
            "CI1",
        ];
        let starts = [
            "_Z", "_Zcv", "_Z1fI", "_Z1f1aI", "_ZN1acv", "_Z1fIX", "_ZN1aC1I",
        ];
        let ambiguous = starts
            .into_iter()
            .flat_map(|start| parts.map(|part| (start, part)));
        let ambiguous = ambiguous.flat_map(|pair| (4..40).map(move |levels| (pair, levels)));
        let ambiguous =
            ambiguous.map(|((start, part), levels)| format!("{start}{}", part.repeat(levels)));
        assert!(slowest(ambiguous) < Duration::from_secs(2));
        // Names of Rust that refer to each other.
        let twice = |levels: u32| {
            let tuples = (0..levels).map(|level| format!("TB{}_B{}_E", level, level));
            format!("_RINvC1a1f{}E", tuples.collect::<String>())
        };
        assert!(slowest((4..40).map(twice)) < Duration::from_secs(1));
    }

    /// Check that an object whose names have taken their time is shown by its symbols.
    #[test]
    fn the_names_of_an_object_have_a_time() {
        let mut demangler = Demangler::default();
        assert_eq!(demangler.name("_Z1fv"), "f()");
        demangler.spent = TIME_MAX;
        assert_eq!(demangler.name("_Z1fv"), "_Z1fv");
    }
}
