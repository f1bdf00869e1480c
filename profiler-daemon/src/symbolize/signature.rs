//! The text of native and kernel frames: stable for a function, safe to print.
//!
//! In:  a symbol's name, which the owner of the object chose
//! Out: `function (object)`, `function (inlined) (object)`, `object+0xaddress`, `function [kernel]`, `function [module]`
//! Lost: nothing
//!
//! # Why suffixes go
//! OAP merges neighbouring snapshots by text. Compilers split and copy functions (`parse.cold`,
//! `parse.part.0`, `parse.constprop.0`); all of them are `parse` to whoever reads the result, and a
//! function that moves between its hot and its cold part is still one call.

use std::borrow::Cow;
use std::sync::Arc;

use super::long_name::{NAME_UNITS_MAX, readable};
use crate::model::name::{mark, marked};
use crate::model::plain::{acts, is_plain};

/// Suffixes that compilers give to parts and copies of a function; a number may follow.
const SUFFIXES: &[&str] = &[
    ".cold",
    ".part",
    ".isra",
    ".constprop",
    ".lto_priv",
    ".llvm",
    ".localalias",
];

/// A frame in an object; `None` is a function without a name.
pub(super) fn native(function: Option<&str>, object: &str) -> Arc<str> {
    in_object(&function.map_or(Cow::Borrowed("[unknown]"), stable), object)
}

/// A function that is a part of the function below it.
pub(super) fn inlined(function: &str, object: &str) -> Arc<str> {
    in_object(&format!("{} (inlined)", stable(function)), object)
}

fn in_object(function: &str, object: &str) -> Arc<str> {
    match object {
        "" => Arc::from(function),
        // `[vdso]` is its own bracket.
        object if object.starts_with('[') => format!("{function} {}", clean(object)).into(),
        object => format!("{function} ({})", clean(object)).into(),
    }
}

/// A function without a name that begins at an address of its object: the same for all of its code, and what
/// `addr2line -f -e object` and `objdump -d --start-address` take.
pub(super) fn unnamed(object: &str, address: u64) -> Arc<str> {
    format!("{}+{address:#x}", clean(object)).into()
}

/// A frame of the kernel or of one of its modules.
pub(super) fn kernel(function: &str, module: Option<&str>) -> Arc<str> {
    format!("{} [{}]", stable(function), module.unwrap_or("kernel")).into()
}

/// A name without the marks of compilers.
fn stable(name: &str) -> Cow<'_, str> {
    let mut name = name;
    loop {
        // As the C++ demangler writes them.
        if let Some((rest, _)) = name.split_once(" [clone ") {
            name = rest;
            continue;
        }
        let digits = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let bare = digits.strip_suffix('.').unwrap_or(name);
        let found = SUFFIXES.iter().find_map(|suffix| bare.strip_suffix(suffix));
        match found {
            Some(rest) if !rest.is_empty() => name = rest,
            _ => return clean(name),
        }
    }
}

/// Text without control characters, which would reach a terminal, and of bounded length.
fn clean(text: &str) -> Cow<'_, str> {
    if is_plain(text) {
        return readable(text);
    }
    let harmless = text.replace(acts, "?");
    Cow::Owned(marked(&harmless, NAME_UNITS_MAX, &mark(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that all parts and copies of a function have one signature.
    #[test]
    fn compiler_suffixes_are_removed() {
        for (name, expected) in [
            ("parse", "parse"),
            ("parse.cold", "parse"),
            ("parse.cold.12", "parse"),
            ("parse.part.0", "parse"),
            ("parse.isra.0.cold", "parse"),
            ("parse.constprop.1.isra.0", "parse"),
            ("parse.llvm.1234567890", "parse"),
            ("finish_task_switch.isra.0", "finish_task_switch"),
            (
                "ns::parse(int) [clone .part.0] [clone .cold]",
                "ns::parse(int)",
            ),
            ("main.main", "main.main"),
            ("Foo.bar.7", "Foo.bar.7"),
            (".cold", ".cold"),
            ("a.1.2", "a.1.2"),
        ] {
            assert_eq!(stable(name), expected);
        }
    }

    /// Check the forms of frames.
    #[test]
    fn frames_name_function_and_object() {
        assert_eq!(&*native(Some("sleep"), "libc.so.6"), "sleep (libc.so.6)");
        assert_eq!(&*native(None, "libc.so.6"), "[unknown] (libc.so.6)");
        assert_eq!(&*native(None, ""), "[unknown]");
        assert_eq!(&*native(None, "[jit]"), "[unknown] [jit]");
        assert_eq!(&*unnamed("libx.so", 0x1234), "libx.so+0x1234");
        assert_eq!(&*inlined("a::b.llvm.7", "x"), "a::b (inlined) (x)");
        assert_eq!(
            &*native(Some("__vdso_time"), "[vdso]"),
            "__vdso_time [vdso]"
        );
        assert_eq!(&*kernel("do_nanosleep", None), "do_nanosleep [kernel]");
        assert_eq!(&*kernel("ext4_write", Some("ext4")), "ext4_write [ext4]");
    }

    /// Check that hostile names cannot write to a terminal or fill memory.
    #[test]
    fn hostile_names_are_tamed() {
        assert_eq!(
            &*native(Some("a\x1b[2Jb\n"), "li\x07b.so"),
            format!(
                "a?[2Jb?{} (li?b.so{})",
                mark("a\x1b[2Jb\n"),
                mark("li\x07b.so")
            )
        );
        assert_ne!(native(Some("a\x01"), "x"), native(Some("a\x02"), "x"));
        let long = native(Some(&"é".repeat(5000)), "x");
        assert_eq!(long.chars().count(), NAME_UNITS_MAX + 4);
        assert!(long.ends_with(" (x)"));
    }
}
