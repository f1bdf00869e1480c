//! Counts tests over several runners from what they print.

use std::collections::BTreeSet;
use std::process::ExitCode;

/// Sums of all runners, with the names that matter.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    /// As the runners count: a test that skips itself has passed for libtest.
    passed: usize,
    failed: usize,
    /// Names of failed tests in the order they were reported, and other failures as sentences.
    failures: Vec<String>,
    skipped: BTreeSet<String>,
    /// Skips through `skip!`, which libtest counts as passed.
    self_skipped: usize,
    /// The runner is in its final list of failures.
    in_failures: bool,
    listed: Vec<String>,
}

impl Totals {
    /// Takes one line of a runner's output.
    pub(crate) fn add_line(&mut self, line: &str) {
        if let Some(skip) = line.strip_prefix("SKIPPED ") {
            let name = skip.split(": ").next().unwrap_or(skip);
            self.skipped.insert(name.to_owned());
            self.self_skipped += 1;
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.add_result(result);
        } else if let Some(name) = ignored_test(line) {
            self.skipped.insert(name.to_owned());
        } else if line == "failures:" {
            // Printed twice: before the captured output and before the names. The last one counts.
            self.in_failures = true;
            self.listed.clear();
        } else if self.in_failures
            && let Some(name) = line.strip_prefix("    ")
            && !name.is_empty()
            && !name.starts_with(' ')
        {
            self.listed.push(name.to_owned());
        }
    }

    /// "ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s"
    fn add_result(&mut self, result: &str) {
        for part in result.split([';', '.']) {
            let mut words = part.split_whitespace();
            if let (Some(Ok(count)), Some(kind)) =
                (words.next().map(str::parse::<usize>), words.next())
            {
                match kind {
                    "passed" => self.passed += count,
                    "failed" => self.failed += count,
                    _ => {}
                }
            }
        }
        self.failures.append(&mut self.listed);
        self.in_failures = false;
    }

    /// Counts a success that no runner reports, such as a clean `cargo fmt`.
    pub(crate) fn add_pass(&mut self) {
        self.passed += 1;
    }

    /// Counts a failure that no runner reports.
    pub(crate) fn add_failure(&mut self, what: &str) {
        self.failed += 1;
        self.failures.push(what.to_owned());
    }

    /// Adds the counts of another; its skipped and failed tests get `prefix` before their names.
    pub(crate) fn merge(&mut self, prefix: &str, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.self_skipped += other.self_skipped;
        let named = |name: String| format!("{prefix}{name}");
        self.failures.extend(other.failures.into_iter().map(named));
        self.skipped.extend(other.skipped.into_iter().map(named));
    }

    /// Tests that ran to a good end.
    pub(crate) fn passed(&self) -> usize {
        self.passed.saturating_sub(self.self_skipped)
    }

    /// Tests and other checks that failed.
    pub(crate) fn failed(&self) -> usize {
        self.failed
    }

    /// Tests that did not run.
    pub(crate) fn skipped(&self) -> usize {
        self.skipped.len()
    }

    /// Names of the tests that did not run.
    pub(crate) fn skipped_names(&self) -> &BTreeSet<String> {
        &self.skipped
    }

    /// What failed.
    pub(crate) fn failures(&self) -> &[String] {
        &self.failures
    }

    /// The last line of every run; other programs read it.
    pub(crate) fn closing_line(&self) -> String {
        format!(
            "{} passed, {} failed, {} skipped",
            self.passed(),
            self.failed(),
            self.skipped()
        )
    }

    /// Failure if anything failed or nothing ran.
    pub(crate) fn exit_code(&self) -> ExitCode {
        if self.failed == 0 && self.passed() > 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// "test the::name ... ignored" or "test the::name ... ignored, the reason".
fn ignored_test(line: &str) -> Option<&str> {
    let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
    outcome.starts_with("ignored").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals_of(text: &str) -> Totals {
        let mut totals = Totals::default();
        text.lines().for_each(|line| totals.add_line(line));
        totals
    }

    /// Check that counts of several runners add up and a test that skips itself is not a pass.
    #[test]
    fn the_counts_of_all_runners_add_up() {
        let totals = totals_of(
            "running 3 tests\n\
             test a ... ok\n\
             SKIPPED kernel::b: no root\n\
             test b ... ok\n\
             test c ... ignored, slow\n\
             test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
             test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s\n",
        );
        assert_eq!(totals.closing_line(), "6 passed, 0 failed, 2 skipped");
        assert_eq!(
            totals.skipped_names().iter().collect::<Vec<_>>(),
            ["c", "kernel::b"]
        );
    }

    /// Check that the names of failed tests are taken from the list at the end, not from their output.
    #[test]
    fn failed_tests_are_named() {
        let totals = totals_of(
            "failures:\n\n---- x::y stdout ----\n    indented output\n\n\nfailures:\n    x::y\n    z\n\n\
             test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!(totals.failures(), ["x::y", "z"]);
        assert_eq!(totals.closing_line(), "1 passed, 2 failed, 0 skipped");
    }

    /// Check that a run without any test is not a success.
    #[test]
    fn no_tests_are_no_success() {
        assert_eq!(Totals::default().exit_code(), ExitCode::FAILURE);
    }
}
