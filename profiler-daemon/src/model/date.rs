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

/// Epoch milliseconds of digits of UTC: year, month, day, and hour, minute, second as far as they are there.
/// Nothing before 1970 or after 2169.
#[must_use]
pub fn parse_digits(text: &str) -> Option<i64> {
    let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_digits || !matches!(text.len(), 8 | 10 | 12 | 14) {
        return None;
    }
    let number = |from: usize, to: usize| text.get(from..to).unwrap_or("0").parse::<i64>();
    let (year, month, day) = (number(0, 4).ok()?, number(4, 6).ok()?, number(6, 8).ok()?);
    let (hour, minute, second) = (
        number(8, 10).ok()?,
        number(10, 12).ok()?,
        number(12, 14).ok()?,
    );
    let is_leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let february = 28 + i64::from(is_leap(year));
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let before = usize::try_from(month).ok()?.checked_sub(1)?;
    let is_date = (1970..2170).contains(&year) && (1..=*months.get(before)?).contains(&day);
    if !is_date || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let years: i64 = (1970..year)
        .map(|year| 365 + i64::from(is_leap(year)))
        .sum();
    let days = years + months[..before].iter().sum::<i64>() + day - 1;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000)
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

    /// Check that digits are the time that they were written from, and that other texts are none.
    #[test]
    fn digits_are_read_as_they_are_written() {
        for unix_ms in [
            0,
            951_782_399_000,
            951_782_400_000,
            1_700_000_000_000,
            1_735_689_599_000,
            4_102_444_800_000,
        ] {
            let text: String = utc(unix_ms).chars().filter(char::is_ascii_digit).collect();
            assert_eq!(parse_digits(&text[..14]), Some(unix_ms), "{text}");
            let day_ms = unix_ms - unix_ms % 86_400_000;
            assert_eq!(parse_digits(&text[..8]), Some(day_ms), "{text}");
        }
        for text in [
            "",
            "2023",
            "202311",
            "2023111",
            "202311142",
            "20231131",
            "20230229",
            "20231301",
            "20230001",
            "20230100",
            "2023010124",
            "202301012360",
            "20230101236061",
            "+0230101",
            "19691231",
            "21700101",
            "202301012359591",
            "äää",
        ] {
            assert_eq!(parse_digits(text), None, "{text}");
        }
    }
}
