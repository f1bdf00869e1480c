//! Times of queries, such as `{"start": "2026-11-30 0905", "end": "2026-11-30 0935", "step": "MINUTE"}`.
//!
//! They are in UTC, the zone that `getTimeInfo` tells, and the end is a part of the time.

use async_graphql::{Enum, InputObject, Result};

use crate::model::date::{parse_digits, utc};

/// Most steps of a time for which values are listed, as in OAP.
const STEPS_MAX: usize = 500;

#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq)]
enum Step {
    Day,
    Hour,
    Minute,
    Second,
}

#[derive(Debug, InputObject)]
pub(super) struct Duration {
    start: String,
    end: String,
    step: Step,
    /// Since OAP 10.2: whether to read what was moved to slower disks. There are none.
    cold_stage: Option<bool>,
}

impl Step {
    fn ms(self) -> i64 {
        match self {
            Self::Day => 86_400_000,
            Self::Hour => 3_600_000,
            Self::Minute => 60_000,
            Self::Second => 1_000,
        }
    }

    /// What a text of this step looks like.
    fn example(self) -> &'static str {
        let longest = "2026-11-30 090500";
        match self {
            Self::Day => &longest[..10],
            Self::Hour => &longest[..13],
            Self::Minute => &longest[..15],
            Self::Second => longest,
        }
    }
}

impl Duration {
    /// Its first millisecond, and the first behind it.
    pub(super) fn range_ms(&self) -> Result<(i64, i64)> {
        let (start, end) = (self.parse(&self.start)?, self.parse(&self.end)?);
        if end < start {
            return Err(format!(
                "the time ends before its start: {} to {}",
                self.start, self.end
            )
            .into());
        }
        Ok((start, end + self.step.ms()))
    }

    /// The name of each step, such as `202611300905`.
    pub(super) fn steps(&self) -> Result<Vec<String>> {
        let (start, before) = self.range_ms()?;
        let count = usize::try_from((before - start) / self.step.ms()).unwrap_or_default();
        if count > STEPS_MAX {
            return Err(format!(
                "the time has {count} steps, at most {STEPS_MAX} are listed; take a longer step"
            )
            .into());
        }
        let digits = self.step.example().len() - if self.step == Step::Day { 2 } else { 3 };
        let name = |at: i64| {
            utc(at)
                .chars()
                .filter(char::is_ascii_digit)
                .take(digits)
                .collect()
        };
        let starts = (0_i64..)
            .take(count)
            .map(|step| start + step * self.step.ms());
        Ok(starts.map(name).collect())
    }

    fn parse(&self, text: &str) -> Result<i64> {
        let example = self.step.example();
        let is_digit = |byte: u8| byte.is_ascii_digit();
        // Only what stands at the place of a digit differs.
        let same = |(a, b): (u8, u8)| if is_digit(b) { is_digit(a) } else { a == b };
        let fits = text.len() == example.len() && text.bytes().zip(example.bytes()).all(same);
        let digits: String = text.chars().filter(char::is_ascii_digit).collect();
        let parsed = fits.then(|| parse_digits(&digits)).flatten();
        let refusal = || format!("{text:?} is no time of this step; it is written as {example:?}");
        Ok(parsed.ok_or_else(refusal)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn duration(start: &str, end: &str, step: Step) -> Duration {
        let (start, end) = (start.to_owned(), end.to_owned());
        Duration {
            start,
            end,
            step,
            cold_stage: None,
        }
    }

    /// Check that each step has its own form, that the end is a part of the time, and the names of steps.
    #[test]
    fn times_are_read() {
        for (start, end, step, ms, names) in [
            (
                "2026-11-30",
                "2026-12-01",
                Step::Day,
                86_400_000,
                ["20261130", "20261201"],
            ),
            (
                "2026-12-31 23",
                "2027-01-01 00",
                Step::Hour,
                3_600_000,
                ["2026123123", "2027010100"],
            ),
            (
                "2024-02-28 2359",
                "2024-02-29 0000",
                Step::Minute,
                60_000,
                ["202402282359", "202402290000"],
            ),
            (
                "2026-11-30 090559",
                "2026-11-30 090600",
                Step::Second,
                1_000,
                ["20261130090559", "20261130090600"],
            ),
        ] {
            let time = duration(start, end, step);
            let (since, before) = time.range_ms().unwrap();
            assert_eq!(before - since, 2 * ms, "{start}");
            assert_eq!(time.steps().unwrap(), names);
        }
        let since = duration("2023-11-14 221320", "2023-11-14 221320", Step::Second);
        assert_eq!(
            since.range_ms().unwrap(),
            (1_700_000_000_000, 1_700_000_001_000)
        );
    }

    /// Check that other texts are refused with the form, and times that are too long to list.
    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "2026-11-30",
            "2026-11-30 25",
            "2026-13-30 0905",
            "2026-02-30 0905",
            "20261130x0905",
            "2026-11-30 09é",
            "1969-11-30 0905",
            "9999-11-30 0905",
        ] {
            let error = duration(text, text, Step::Minute).range_ms().unwrap_err();
            assert!(
                error.message.contains("2026-11-30 0905"),
                "{text}: {}",
                error.message
            );
        }
        let backwards = duration("2026-11-30 0905", "2026-11-30 0904", Step::Minute);
        assert!(backwards.range_ms().is_err());
        let long = duration("2026-11-30 000000", "2026-11-30 000820", Step::Second);
        assert!(long.range_ms().is_ok());
        assert!(long.steps().unwrap_err().message.contains("501 steps"));
    }
}
