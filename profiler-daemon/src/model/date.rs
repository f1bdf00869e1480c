//! Times as people and query APIs write them.

/// `2023-11-14 22:13:20.123 UTC`.
#[must_use]
pub fn utc(unix_ms: i64) -> String {
    const DAY_MS: i64 = 86_400_000;
    let (mut days, ms) = (unix_ms.div_euclid(DAY_MS), unix_ms.rem_euclid(DAY_MS));
    let is_leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let mut year = 1970;
    // Times come from segments and may be anything; the loop is for those of our age.
    if !(0..=200 * 366).contains(&days) {
        return format!("{unix_ms} ms");
    }
    loop {
        let year_days = if is_leap(year) { 366 } else { 365 };
        if days < year_days {
            break;
        }
        days -= year_days;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for month_days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < month_days {
            break;
        }
        days -= month_days;
        month += 1;
    }
    let (hour, minute) = (ms / 3_600_000, ms / 60_000 % 60);
    let (second, milli) = (ms / 1000 % 60, ms % 1000);
    format!(
        "{year}-{month:02}-{:02} {hour:02}:{minute:02}:{second:02}.{milli:03} UTC",
        days + 1
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check dates around the ends of months and years; expected values are those of `date -u`.
    #[test]
    fn dates_are_right() {
        for (unix_ms, text) in [
            (0, "1970-01-01 00:00:00.000 UTC"),
            (951_782_399_999, "2000-02-28 23:59:59.999 UTC"),
            (951_782_400_000, "2000-02-29 00:00:00.000 UTC"),
            (1_700_000_000_123, "2023-11-14 22:13:20.123 UTC"),
            (1_735_689_599_000, "2024-12-31 23:59:59.000 UTC"),
            (i64::MAX, "9223372036854775807 ms"),
            (-1, "-1 ms"),
        ] {
            assert_eq!(utc(unix_ms), text);
        }
    }
}
