//! Sentences about a whole task, for example "process 4711 (Go 1.24) is not profiled: ...".
//!
//! A server that forks for every request, and thousands of processes with the same fault, make any number of them that
//! differ in an id only. So a few of each kind are kept and the others counted, and there are not many kinds.

/// Notes kept that differ in numbers only.
const OF_KIND_MAX: usize = 4;
/// Kinds kept: more than there are places that write notes.
const KINDS_MAX: usize = 64;
/// A note is cut after so many bytes.
const TEXT_MAX_BYTES: usize = 1024;
/// What is quoted of a note when others like it are left out.
const QUOTE_MAX_BYTES: usize = 80;

/// Notes, each once, in the order in which their kinds came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    kinds: Vec<Kind>,
    /// Notes of kinds for which there was no place.
    left_out: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Kind {
    /// The text without its numbers.
    form: String,
    texts: Vec<String>,
    left_out: u64,
}

impl Notes {
    /// Adds a note, once.
    pub fn add(&mut self, text: &str) {
        let text = &text[..text.floor_char_boundary(TEXT_MAX_BYTES)];
        let form = form(text);
        let Some(kind) = self.kinds.iter_mut().find(|kind| kind.form == form) else {
            if self.kinds.len() < KINDS_MAX {
                let texts = vec![text.to_owned()];
                let left_out = 0;
                self.kinds.push(Kind {
                    form,
                    texts,
                    left_out,
                });
            } else {
                self.left_out += 1;
            }
            return;
        };
        if kind.texts.iter().any(|known| known == text) {
            return;
        }
        if kind.texts.len() < OF_KIND_MAX {
            kind.texts.push(text.to_owned());
        } else {
            kind.left_out += 1;
        }
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        self.left_out += other.left_out;
        for kind in &other.kinds {
            kind.texts.iter().for_each(|text| self.add(text));
            let own = self.kinds.iter_mut().find(|own| own.form == kind.form);
            *own.map_or(&mut self.left_out, |own| &mut own.left_out) += kind.left_out;
        }
    }

    /// There is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// The notes, and how many are left out, in words.
    pub fn texts(&self) -> impl Iterator<Item = String> {
        let of_kinds = self.kinds.iter().flat_map(|kind| {
            let more = (kind.left_out > 0).then(|| {
                let quoted = kind.texts.first().map_or("", |text| quote(text));
                format!("{} more notes like \"{quoted}...\"", kind.left_out)
            });
            kind.texts.iter().cloned().chain(more)
        });
        let more =
            (self.left_out > 0).then(|| format!("{} more notes of other kinds", self.left_out));
        of_kinds.chain(more)
    }
}

/// Each run of digits as one.
fn form(text: &str) -> String {
    let mut form = String::with_capacity(text.len());
    for c in text.chars() {
        let c = if c.is_ascii_digit() { '0' } else { c };
        if c != '0' || !form.ends_with('0') {
            form.push(c);
        }
    }
    form
}

fn quote(text: &str) -> &str {
    &text[..text.floor_char_boundary(QUOTE_MAX_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(notes: &Notes) -> Vec<String> {
        notes.texts().collect()
    }

    /// Check that a note is kept once, and that of many that differ in an id a few are kept and the rest is counted, in
    /// words.
    #[test]
    fn notes_of_one_kind_are_bounded() {
        let mut notes = Notes::default();
        for pid in 1..=1_000 {
            notes.add(&format!("process {pid} is not profiled"));
            notes.add("profilerd was stopped");
        }
        assert_eq!(
            texts(&notes),
            [
                "process 1 is not profiled",
                "process 2 is not profiled",
                "process 3 is not profiled",
                "process 4 is not profiled",
                "996 more notes like \"process 1 is not profiled...\"",
                "profilerd was stopped",
            ]
        );
    }

    /// Check that there is an end to kinds and to the length of one note, and that no character is cut.
    #[test]
    fn kinds_and_lengths_are_bounded() {
        let mut notes = Notes::default();
        for length in 1..=1_000 {
            notes.add(&"ä".repeat(length));
        }
        let texts = texts(&notes);
        assert_eq!(texts.len(), KINDS_MAX + 1);
        assert_eq!(texts[KINDS_MAX], "936 more notes of other kinds");
        let mut notes = Notes::default();
        notes.add(&"ä".repeat(1_000));
        assert_eq!(notes.texts().next().unwrap().len(), TEXT_MAX_BYTES);
    }

    /// Check that merging keeps what both have and the sum of what both left out.
    #[test]
    fn merging_adds_what_is_left_out() {
        let of = |pids: std::ops::Range<u32>| {
            let mut notes = Notes::default();
            pids.for_each(|pid| notes.add(&format!("process {pid}")));
            notes
        };
        let mut notes = of(0..6);
        notes.merge(&of(10..16));
        let last = texts(&notes).pop().unwrap();
        assert_eq!(last, "8 more notes like \"process 0...\"");
        assert_eq!(texts(&notes).len(), OF_KIND_MAX + 1);
    }
}
