//! Turns the counts of a task into words: what was seen, and what was lost.

use crate::model::{Counter, CoverageReport};

use super::text::clean;

/// The coverage report for people: counters that moved, by subject, losses marked by `!`. Empty if
/// nothing has moved.
#[must_use]
pub fn coverage_text(coverage: &CoverageReport) -> String {
    let count = |counter: Counter| {
        let count = coverage.counters.get(counter.name());
        count.copied().unwrap_or(0)
    };
    let mut body = String::new();
    let mut subject = "";
    for counter in Counter::all() {
        let n = count(counter);
        // Periods are the headline.
        if n == 0 || matches!(counter, Counter::PeriodsExpected | Counter::PeriodsSampled) {
            continue;
        }
        if subject != subject_of(counter) {
            subject = subject_of(counter);
            body.push_str(&format!("  {subject}\n"));
        }
        body.push_str(&row(n, is_loss(counter), counter.text()));
    }
    let is_unknown = |name: &str| Counter::from_name(name).is_none();
    let unknown: Vec<_> = coverage.counters.iter().collect();
    let unknown = unknown
        .into_iter()
        .filter(|&(name, &n)| n > 0 && is_unknown(name));
    for (index, (name, &n)) in unknown.enumerate() {
        if index == 0 {
            body.push_str("  counted by another version of profilerd\n");
        }
        body.push_str(&row(n, false, &clean(name)));
    }
    for note in &coverage.notes {
        body.push_str(&format!("  note: {}\n", clean(note)));
    }
    let (expected, sampled) = (
        count(Counter::PeriodsExpected),
        count(Counter::PeriodsSampled),
    );
    match (expected, body.is_empty()) {
        (0, true) => String::new(),
        (0, false) => format!("coverage:\n{body}"),
        (expected, _) => format!(
            "coverage: {sampled} of {expected} dump periods of profiled requests have a snapshot \
             ({:.1} %)\n{body}",
            percent(sampled, expected)
        ),
    }
}

fn row(n: u64, is_loss: bool, text: &str) -> String {
    let mark = if is_loss { "!" } else { " " };
    format!("{mark}{n:>11}  {text}\n")
}

/// Rounded down, so that 100.0 means all.
fn percent(part: u64, whole: u64) -> f64 {
    (part as f64 * 1000.0 / whole as f64).floor() / 10.0
}

/// The heading a counter stands under; counters are declared in this order.
fn subject_of(counter: Counter) -> &'static str {
    match counter {
        c if c <= Counter::RequestsWithoutStack => "requests",
        c if c <= Counter::BadRecords => "connections and events",
        c if c <= Counter::TicksLate => "samples",
        c if c <= Counter::FramesUnknown => "stacks",
        c if c <= Counter::SegmentQueriesFailed => "delivery",
        _ => "limits",
    }
}

/// Whether a count means that something that was asked for is missing or uncertain.
pub(super) fn is_loss(counter: Counter) -> bool {
    use Counter as C;
    matches!(
        counter,
        C::RequestsOverOpenLimit
            | C::RequestsUnanswered
            | C::RequestsHandedOff
            | C::RequestsInterleaved
            | C::RequestsWithoutStack
            | C::HeadsMalformed
            | C::PipelinedHeads
            | C::HeadsUnreadable
            | C::PartialHeadsDropped
            | C::RequestEventsLost
            | C::BadRecords
            | C::SamplesRingFull
            | C::SamplesRaced
            | C::SamplesNoStack
            | C::SamplesQueueFull
            | C::TicksLate
            | C::StacksCut
            | C::StacksNoUnwindInfo
            | C::StacksUnreadable
            | C::StacksTooDeep
            | C::PythonMergeMismatch
            | C::PythonPartial
            | C::PythonNameUnreadable
            | C::FramesUnknown
            | C::SnapshotsLost
            | C::SegmentsSynthetic
            | C::SegmentQueriesFailed
            | C::TagsFull
            | C::MapUpdatesFailed
            | C::ProcessesUnsupported
            | C::ProcessesLeftToAgent
            | C::GuardSteps
    )
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
        !          2  matched requests answered by another thread than the one that read them
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
