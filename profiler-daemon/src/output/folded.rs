//! Turns snapshots into folded stacks: `root;...;leaf N`, the form that flame graph tools read.
//!
//! N counts snapshots, one per dump period, because that is what these tools expect: a whole number
//! of samples. Multiply by the dump period for time.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, Result};

use super::text::clean;
use super::weight::{Weighted, weigh_all};
use crate::model::ProfileReport;

pub(super) fn write(report: &ProfileReport, out: &mut dyn Write) -> Result<()> {
    for line in lines(report, |_| 1) {
        writeln!(out, "{line}").context("failed to write folded stacks")?;
    }
    Ok(())
}

/// One line per distinct stack that weighs something, sorted.
pub(super) fn lines(report: &ProfileReport, weight: impl Fn(Weighted<'_>) -> i64) -> Vec<String> {
    let mut sums: BTreeMap<String, i64> = BTreeMap::new();
    for weighted in weigh_all(report) {
        let sum = sums.entry(fold(weighted.stack)).or_default();
        *sum = sum.saturating_add(weight(weighted));
    }
    let lines = sums.into_iter().filter(|&(_, sum)| sum > 0);
    lines.map(|(stack, sum)| format!("{stack} {sum}")).collect()
}

/// Joins frames by `;`. What would end a frame or look like a second number is replaced.
fn fold(stack: &[String]) -> String {
    let frames: Vec<String> = stack
        .iter()
        .map(|frame| clean(frame.trim()).replace(';', ":"))
        .collect();
    let mut line = frames.join(";");
    // `f 1 20` would be read as a differential line with two counts.
    if let Some((_, last)) = line.rsplit_once(' ')
        && last
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        let at = line.len() - last.len() - 1;
        line.replace_range(at..=at, "_");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::super::{Format, sample, write};
    use super::*;

    /// Check that equal stacks are one line and that counts are snapshots.
    #[test]
    fn equal_stacks_are_counted() {
        let mut out = Vec::new();
        write(&sample::report(), Format::Folded, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "main;a 2\nmain;a;b 3\nmain;c 2\n"
        );
    }

    /// Check that names cannot break the form.
    #[test]
    fn names_cannot_break_the_form() {
        let stack = ["<[u8; 4]>::f", "line\nbreak", "operator 3"].map(str::to_owned);
        assert_eq!(fold(&stack), "<[u8: 4]>::f;line\u{fffd}break;operator_3");
    }
}
