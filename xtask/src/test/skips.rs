//! The skipped tests of a run, compared with `tests/expected-skips.txt`: a test that silently stopped
//! running, and an entry that became stale, both fail the run.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail};
use profiler_test_support::workspace_root;

use super::Totals;

/// Names begin with this when the test ran in a virtual machine.
const VM_PREFIX: &str = "vm:";

/// The entries of the list.
#[derive(Debug, Default, PartialEq, Eq)]
struct Expected {
    /// Must be skipped.
    always: BTreeSet<String>,
    /// May be skipped: depends on the machine.
    maybe: BTreeSet<String>,
}

/// Counts every difference as a failure. `complete` tells that no filter kept tests from running.
pub(super) fn compare(totals: &mut Totals, complete: bool, with_vm: bool) -> Result<()> {
    let path = workspace_root().join("tests/expected-skips.txt");
    let text =
        fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let expected = parse(&text).with_context(|| path.display().to_string())?;
    for difference in differences(&expected, totals.skipped_names(), complete, with_vm) {
        totals.add_failure(&difference);
    }
    Ok(())
}

/// One entry a line: `name`, or `name?` when it depends on the machine; `#` begins a comment.
fn parse(text: &str) -> Result<Expected> {
    let mut expected = Expected::default();
    for (index, line) in text.lines().enumerate() {
        let entry = line.split('#').next().unwrap_or_default().trim();
        if entry.contains(char::is_whitespace) {
            bail!("line {}: one test name a line", index + 1);
        }
        if let Some(name) = entry.strip_suffix('?') {
            expected.maybe.insert(name.to_owned());
        } else if !entry.is_empty() {
            expected.always.insert(entry.to_owned());
        }
    }
    Ok(expected)
}

fn differences(
    expected: &Expected,
    skipped: &BTreeSet<String>,
    complete: bool,
    with_vm: bool,
) -> Vec<String> {
    let unexpected = skipped
        .iter()
        .filter(|name| !expected.always.contains(*name) && !expected.maybe.contains(*name))
        .map(|name| format!("{name} was skipped and is not in tests/expected-skips.txt"));
    let ran = |name: &&String| complete && (with_vm || !name.starts_with(VM_PREFIX));
    let stale = expected
        .always
        .difference(skipped)
        .filter(ran)
        .map(|name| format!("{name} is in tests/expected-skips.txt and was not skipped"));
    unexpected.chain(stale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    /// Check that comments and optional entries are understood.
    #[test]
    fn the_list_has_comments_and_optional_entries() {
        let expected = parse("# why\na::b  # reason\n\nc?\n").unwrap();
        assert_eq!(expected.always, set(&["a::b"]));
        assert_eq!(expected.maybe, set(&["c"]));
        assert!(parse("two words").is_err());
    }

    /// Check that a new skip and a stale entry both count, an optional entry never does.
    #[test]
    fn new_skips_and_stale_entries_are_differences() {
        let expected = parse("a\nb\nc?\nvm:d").unwrap();
        let found = differences(&expected, &set(&["a", "new"]), true, false);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("new was skipped"));
        assert!(found[1].starts_with("b is in"));
    }

    /// Check that a filtered run does not complain about tests that it left out.
    #[test]
    fn a_filtered_run_reports_only_new_skips() {
        let expected = parse("a").unwrap();
        assert!(differences(&expected, &set(&[]), false, false).is_empty());
    }
}
