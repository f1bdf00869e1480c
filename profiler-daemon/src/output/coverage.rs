//! Turns the counts of a task, or of all, into words: what was seen, and what was lost.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::model::{Counter, CoverageReport, ProfileReport};

use super::text::clean;

/// The coverage report for people: counters that moved, by subject, losses marked by `!`. Empty if
/// nothing has moved.
#[must_use]
pub fn coverage_text(coverage: &CoverageReport) -> String {
    let mut body = counts_text(&coverage.counters);
    for note in &coverage.notes {
        body.push_str(&format!("  note: {}\n", clean(note)));
    }
    match (periods_text(&coverage.counters), body.is_empty()) {
        (None, true) => String::new(),
        (None, false) => format!("coverage:\n{body}"),
        (Some(periods), _) => format!("coverage: {periods}\n{body}"),
    }
}

/// What of a task was lost or is uncertain, for people: empty if nothing is.
#[must_use]
pub fn losses_text(coverage: &CoverageReport) -> String {
    let mut text = String::new();
    for counter in Counter::all().filter(|counter| counter.is_loss()) {
        let n = count_of(&coverage.counters, counter);
        if n > 0 {
            text.push_str(&row(n, true, counter.text()));
        }
    }
    for note in &coverage.notes {
        text.push_str(&format!("  note: {}\n", clean(note)));
    }
    text
}

/// How complete a report is, in one line.
#[must_use]
pub fn closing_text(report: &ProfileReport) -> String {
    let counts = &report.coverage.counters;
    let profiled = report.segments.len();
    let mut text = match count_of(counts, Counter::RequestsMatched) {
        // An OAP has no place for it.
        0 => format!(
            "profiled {profiled} request{}",
            if profiled == 1 { "" } else { "s" }
        ),
        matched => format!("profiled {profiled} of {matched} matching requests"),
    };
    let expected = count_of(counts, Counter::PeriodsExpected);
    if expected > 0 {
        let seen = percent(count_of(counts, Counter::PeriodsSampled), expected);
        text.push_str(&format!("; {seen:.1} % of their time was seen"));
    }
    text.push('\n');
    text
}

/// How many dump periods of profiled requests have a snapshot, if any request was profiled.
#[must_use]
pub fn periods_text(counts: &BTreeMap<String, u64>) -> Option<String> {
    let expected = count_of(counts, Counter::PeriodsExpected);
    let sampled = count_of(counts, Counter::PeriodsSampled);
    (expected > 0).then(|| {
        format!(
            "{sampled} of {expected} dump periods of profiled requests have a snapshot ({:.1} %)",
            percent(sampled, expected)
        )
    })
}

/// Counters that moved, by subject, losses marked by `!`; without the periods, which are the headline.
#[must_use]
pub fn counts_text(counts: &BTreeMap<String, u64>) -> String {
    let mut text = String::new();
    let mut subject = None;
    for counter in Counter::all() {
        let n = count_of(counts, counter);
        if n == 0 || matches!(counter, Counter::PeriodsExpected | Counter::PeriodsSampled) {
            continue;
        }
        if subject.replace(counter.subject()) != Some(counter.subject()) {
            text.push_str(&format!("  {}\n", counter.subject().text()));
        }
        text.push_str(&row(n, counter.is_loss(), counter.text()));
    }
    let is_unknown = |name: &str| Counter::from_name(name).is_none();
    let unknown = counts
        .iter()
        .filter(|&(name, &n)| n > 0 && is_unknown(name));
    for (index, (name, &n)) in unknown.enumerate() {
        if index == 0 {
            text.push_str("  counted by another version of profilerd\n");
        }
        text.push_str(&row(n, false, &clean(name)));
    }
    text
}

fn count_of(counts: &BTreeMap<String, u64>, counter: Counter) -> u64 {
    counts.get(counter.name()).copied().unwrap_or(0)
}

/// A line of a report: a figure, marked if it is a loss, and what it is.
#[must_use]
pub fn row(figure: impl Display, is_loss: bool, text: &str) -> String {
    let mark = if is_loss { "!" } else { " " };
    let figure = figure.to_string(); // not every type pads itself
    format!("{mark}{figure:>11}  {text}\n")
}

/// Rounded down, so that 100.0 means all.
fn percent(part: u64, whole: u64) -> f64 {
    (part as f64 * 1000.0 / whole as f64).floor() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Coverage;

    /// Check that losses are marked, zero counts left out, and subjects named once.
    #[test]
    fn losses_stand_out() {
        let mut coverage = Coverage::default();
        coverage.add(Counter::RequestsSeen, 12);
        coverage.add(Counter::RequestsHandedOff, 2);
        coverage.add(Counter::PeriodsExpected, 1000);
        coverage.add(Counter::PeriodsSampled, 999);
        coverage.add(Counter::SamplesRingFull, 1);
        coverage.note("pid 4711 is a Go process");
        let mut report = coverage.to_report();
        report.counters.insert("from_the_future".to_owned(), 3);
        insta::assert_snapshot!(coverage_text(&report), @r"
        coverage: 999 of 1000 dump periods of profiled requests have a snapshot (99.9 %)
          requests
                  12  request heads read by processes of the task's service
        !          2  matched requests answered by a thread other than the one that read them
          samples
        !          1  on-CPU samples lost to a full ring buffer
          counted by another version of profilerd
                   3  from_the_future
          note: pid 4711 is a Go process
        ");
    }

    /// Check that nothing moved means no text, and that almost all is not 100 %.
    #[test]
    fn extremes_read_right() {
        assert_eq!(coverage_text(&Coverage::default().to_report()), "");
        assert_eq!(coverage_text(&CoverageReport::default()), "");
        assert!(percent(99_999, 100_000) < 100.0);
        assert!(percent(5, 5) >= 100.0);
    }
}
