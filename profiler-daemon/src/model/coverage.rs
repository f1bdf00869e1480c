//! The coverage report: what a task saw, kept and lost, and why. It answers "no data" questions.

use std::collections::BTreeMap;

use super::Counter;
use super::note::Notes;

/// Begins the note of a task that did not run.
const NOT_RUN: &str = "not run: ";

/// Counts of one task (or of one request, to be merged into its task's).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    counts: BTreeMap<Counter, u64>,
    notes: Notes,
}

impl Coverage {
    /// Of a task that does not run, and why.
    #[must_use]
    pub fn not_run(reason: &str) -> Self {
        let mut coverage = Self::default();
        coverage.bump(Counter::TasksNotRun);
        coverage.note(format!("{NOT_RUN}{reason}"));
        coverage
    }

    /// Adds one.
    pub fn bump(&mut self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Adds `n`.
    pub fn add(&mut self, counter: Counter, n: u64) {
        if n > 0 {
            *self.counts.entry(counter).or_default() += n;
        }
    }

    /// Sets a count that is kept elsewhere (the kernel's).
    pub fn set(&mut self, counter: Counter, n: u64) {
        if n > 0 {
            self.counts.insert(counter, n);
        } else {
            self.counts.remove(&counter);
        }
    }

    /// The count, 0 if it never moved.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.counts.get(&counter).copied().unwrap_or(0)
    }

    /// Adds a note once.
    pub fn note(&mut self, text: impl AsRef<str>) {
        self.notes.add(text.as_ref());
    }

    /// Sentences about the whole task.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        self.notes.texts()
    }

    /// The form printed and sent: every counter by name, zero ones included.
    #[must_use]
    pub fn to_report(&self) -> super::CoverageReport {
        super::CoverageReport {
            counters: Counter::all()
                .map(|c| (c.name().to_owned(), self.get(c)))
                .collect(),
            notes: self.notes().collect(),
        }
    }

    /// Adds all counts and notes of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (&counter, &n) in &other.counts {
            self.add(counter, n);
        }
        self.notes.merge(&other.notes);
    }
}

impl super::CoverageReport {
    /// Why the task did not run at an instance, if so.
    #[must_use]
    pub fn why_not_run(&self) -> Option<&str> {
        let mut notes = self.notes.iter();
        notes.find_map(|note| note.strip_prefix(NOT_RUN))
    }
}
