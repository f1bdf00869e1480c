//! Durations, sizes and numbers with their accepted ranges, from text. No value is without a unit.

use std::fmt;
use std::time::Duration;

use serde::Serializer;
use serde::de::{Deserialize, Deserializer, Error};

/// Milliseconds per unit, the largest first.
const TIME_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
/// Bytes per unit, the largest first.
const SIZE_UNITS: [(&str, u64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Durations from one to another, both included.
#[derive(Clone, Copy, Debug)]
pub struct DurationRange {
    /// Least, in milliseconds.
    pub min_ms: u64,
    /// Most, in milliseconds.
    pub max_ms: u64,
}

/// Sizes from one to another, both included.
#[derive(Clone, Copy, Debug)]
pub struct SizeRange {
    min_bytes: u64,
    max_bytes: u64,
    is_power: bool,
}

/// Whole numbers from one to another, both included.
#[derive(Clone, Copy, Debug)]
pub(super) struct NumberRange {
    min: u32,
    max: u32,
}

/// `10ms`, `30s`, `5m`, `1h`.
///
/// # Errors
///
/// Says what a duration looks like.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    parse(text, &TIME_UNITS)
        .map(Duration::from_millis)
        .ok_or_else(|| {
            format!(
                "{text:?} is not a duration: write a whole number with ms, s, m or h, such as 30s"
            )
        })
}

/// A duration in its largest whole unit: `10ms`, `90s`, `5m`.
#[must_use]
pub fn duration_text(duration: Duration) -> String {
    in_units(
        u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        &TIME_UNITS,
    )
}

/// Writes a duration as [`parse_duration`] reads it.
pub(super) fn as_duration<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&duration_text(*duration))
}

/// Writes a size as [`SizeRange::parse`] reads it.
pub(super) fn as_size<S: Serializer, T: Copy + Into<u64>>(
    bytes: &T,
    to: S,
) -> Result<S::Ok, S::Error> {
    to.serialize_str(&in_units((*bytes).into(), &SIZE_UNITS))
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let unit = text[digits..].trim_start();
    let &(_, factor) = units.iter().find(|&&(name, _)| name == unit)?;
    number.checked_mul(factor)
}

fn in_units(value: u64, units: &[(&str, u64)]) -> String {
    let unit = units
        .iter()
        .find(|&&(_, factor)| value >= factor && value.is_multiple_of(factor));
    let &(name, factor) = unit.unwrap_or(&units[units.len() - 1]);
    format!("{}{name}", value / factor)
}

fn out_of_range(given: &str, min: &str, max: &str, nearest: &str) -> String {
    format!("{given} is out of range: accepted is {min} to {max}, the nearest is {nearest}")
}

impl DurationRange {
    /// From and to, in milliseconds.
    #[must_use]
    pub const fn ms(min_ms: u64, max_ms: u64) -> Self {
        Self { min_ms, max_ms }
    }

    /// A duration in the range.
    ///
    /// # Errors
    ///
    /// Names the accepted range and the nearest value in it.
    pub fn parse(self, text: &str) -> Result<Duration, String> {
        let duration =
            parse_duration(text).map_err(|error| format!("{error}; accepted is {self}"))?;
        let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let nearest = ms.clamp(self.min_ms, self.max_ms);
        if nearest == ms {
            return Ok(duration);
        }
        let text = |ms| in_units(ms, &TIME_UNITS);
        Err(out_of_range(
            &text(ms),
            &text(self.min_ms),
            &text(self.max_ms),
            &text(nearest),
        ))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        self,
        from: D,
    ) -> Result<Duration, D::Error> {
        self.parse(&String::deserialize(from)?)
            .map_err(D::Error::custom)
    }
}

impl fmt::Display for DurationRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |ms| in_units(ms, &TIME_UNITS);
        write!(f, "{} to {}", text(self.min_ms), text(self.max_ms))
    }
}

impl SizeRange {
    /// Powers of two, from and to in bytes.
    #[must_use]
    pub const fn powers_of_two(min_bytes: u64, max_bytes: u64) -> Self {
        Self {
            min_bytes,
            max_bytes,
            is_power: true,
        }
    }

    /// Any size, from and to in bytes.
    #[must_use]
    pub const fn new(min_bytes: u64, max_bytes: u64) -> Self {
        Self {
            min_bytes,
            max_bytes,
            is_power: false,
        }
    }

    /// Bytes in the range.
    ///
    /// # Errors
    ///
    /// Names the accepted range and the nearest value in it.
    pub fn parse<T: TryFrom<u64>>(self, text: &str) -> Result<T, String> {
        let show = |bytes| in_units(bytes, &SIZE_UNITS);
        let (min, max) = (show(self.min_bytes), show(self.max_bytes));
        let bytes = parse(text, &SIZE_UNITS).ok_or_else(|| {
            format!("{text:?} is not a size: write a whole number with B, KiB, MiB or GiB, such as {min}")
        })?;
        let in_range = bytes.clamp(self.min_bytes, self.max_bytes);
        if in_range != bytes {
            return Err(out_of_range(&show(bytes), &min, &max, &show(in_range)));
        }
        if self.is_power && !bytes.is_power_of_two() {
            let above = bytes.next_power_of_two();
            let nearest = if above - bytes <= bytes - above / 2 {
                above
            } else {
                above / 2
            };
            return Err(format!(
                "{} is not a power of two: accepted are those from {min} to {max}, the nearest is {}",
                show(bytes),
                show(nearest)
            ));
        }
        T::try_from(bytes).map_err(|_| format!("{} is too large", show(bytes)))
    }

    pub(super) fn deserialize<'de, T: TryFrom<u64>, D: Deserializer<'de>>(
        self,
        from: D,
    ) -> Result<T, D::Error> {
        self.parse(&String::deserialize(from)?)
            .map_err(D::Error::custom)
    }
}

impl NumberRange {
    pub(super) const fn new(min: u32, max: u32) -> Self {
        Self { min, max }
    }

    pub(super) fn check(self, number: i64) -> Result<u32, String> {
        let (min, max) = (i64::from(self.min), i64::from(self.max));
        let nearest = number.clamp(min, max);
        match u32::try_from(number) {
            Ok(accepted) if nearest == number => Ok(accepted),
            _ => Err(out_of_range(
                &number.to_string(),
                &min.to_string(),
                &max.to_string(),
                &nearest.to_string(),
            )),
        }
    }

    pub(super) fn parse(self, text: &str) -> Result<u32, String> {
        let number = text.trim().parse();
        let number = number.map_err(|_| {
            format!(
                "{text:?} is not a whole number: accepted is {} to {}",
                self.min, self.max
            )
        })?;
        self.check(number)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(self, from: D) -> Result<u32, D::Error> {
        self.check(i64::deserialize(from)?)
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check the units of durations, and that a number alone is refused with an example.
    #[test]
    fn durations_have_a_unit() {
        let range = DurationRange::ms(1, 900_000);
        assert_eq!(range.parse("10ms"), Ok(Duration::from_millis(10)));
        assert_eq!(range.parse(" 5 m "), Ok(Duration::from_secs(300)));
        for bad in [
            "",
            "5",
            "s",
            "-5s",
            "1.5s",
            "5d",
            "99999999999999999999s",
            "99999999999999999h",
        ] {
            let error = range.parse(bad).unwrap_err();
            assert!(
                error.contains("such as 30s") && error.contains("1ms to 15m"),
                "{error}"
            );
        }
    }

    /// Check that a value out of range is answered with the range and the nearest value.
    #[test]
    fn a_refusal_names_range_and_nearest() {
        assert_eq!(
            DurationRange::ms(1_000, 300_000)
                .parse("500ms")
                .unwrap_err(),
            "500ms is out of range: accepted is 1s to 5m, the nearest is 1s"
        );
        assert_eq!(
            NumberRange::new(16, 1000).parse("5000").unwrap_err(),
            "5000 is out of range: accepted is 16 to 1000, the nearest is 1000"
        );
        assert!(NumberRange::new(1, 2).check(-1).is_err());
        let sizes = SizeRange::powers_of_two(64 << 10, 256 << 20);
        let ring = |text| sizes.parse::<u32>(text);
        assert_eq!(ring("16MiB"), Ok(16 << 20));
        assert!(ring("1KiB").unwrap_err().ends_with("the nearest is 64KiB"));
        assert!(ring("5MiB").unwrap_err().ends_with("the nearest is 4MiB"));
        assert!(ring("7MiB").unwrap_err().ends_with("the nearest is 8MiB"));
        assert!(ring("16MB").unwrap_err().contains("KiB"));
    }

    /// Check that durations are shown in their largest whole unit.
    #[test]
    fn durations_are_shown_in_whole_units() {
        let text = |ms| duration_text(Duration::from_millis(ms));
        assert_eq!(text(0), "0ms");
        assert_eq!(text(1500), "1500ms");
        assert_eq!(text(90_000), "90s");
        assert_eq!(text(900_000), "15m");
    }
}
