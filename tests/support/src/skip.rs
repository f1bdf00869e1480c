//! Tests that cannot run on a machine say so; none passes by not running.

use std::io::Write;

/// Leaves the test as skipped: prints `SKIPPED <test>: <reason>`, which `cargo xtask test` counts and
/// compares with `tests/expected-skips.txt`. For test functions that return nothing, in any crate.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        fn here() {}
        $crate::report_skip(::std::any::type_name_of_val(&here), &::std::format!($($reason)*));
        return;
    }};
}

/// Leaves the test as skipped unless it runs as root.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !$crate::is_root() {
            $crate::skip!("needs root");
        }
    };
}

/// What [`skip!`] prints. Straight to the descriptor: the test harness captures `eprintln!` of tests
/// that pass.
#[doc(hidden)]
pub fn report_skip(path_of_here: &str, reason: &str) {
    let line = skip_line(path_of_here, reason);
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn skip_line(path_of_here: &str, reason: &str) -> String {
    let test = path_of_here
        .trim_end_matches("::here")
        .trim_end_matches("::{{closure}}");
    // On a line of its own, though the harness has just written "test <name> ... " without an end.
    format!("\nSKIPPED {test}: {}\n", reason.replace('\n', " "))
}

/// Whether we have root's privileges.
#[must_use]
pub fn is_root() -> bool {
    // SAFETY: a system call without arguments that cannot fail.
    unsafe { libc::geteuid() == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that a skip names the test that calls it, also from inside a closure.
    #[test]
    fn a_skip_line_names_the_test_and_stays_on_one_line() {
        assert_eq!(
            skip_line("kernel_load::a_test::here", "no\nroot"),
            "\nSKIPPED kernel_load::a_test: no root\n"
        );
        assert_eq!(
            skip_line("t::a_test::{{closure}}::here", "x"),
            "\nSKIPPED t::a_test: x\n"
        );
    }
}
