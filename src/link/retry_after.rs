//! `Retry-After` (RFC 9110 § 10.2.3) as a wait in milliseconds. Knows no clock: a date is read against the date of
//! the very answer that carries it, so that a gateway without a clock understands it too.

/// The wait that a `Retry-After` value asks for, in ms: seconds, or a date read against the answer's `Date`. `None`
/// where it says neither, or says a date and the answer has none.
pub fn retry_after_ms(value: &str, date: Option<&str>) -> Option<u64> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than a u64 holds are still a number: for ever, to be capped.
        return Some(value.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(1000));
    }
    let (until, from) = (unix_s(value)?, unix_s(date?.trim())?);
    Some(until.saturating_sub(from).saturating_mul(1000))
}

/// Unix seconds of an IMF-fixdate (RFC 9110 § 5.6.7), `Sun, 06 Nov 1994 08:49:37 GMT`, from 1970 on. The two
/// obsolete formats are not understood.
fn unix_s(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_ascii_whitespace();
    let (weekday, day, month, year) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let (time, zone) = (words.next()?, words.next()?);
    if weekday.len() != 4 || !weekday.ends_with(',') || zone != "GMT" || words.next().is_some() {
        return None;
    }
    let day = number(day, 2, 1..=31)?;
    let month = MONTHS.iter().position(|name| *name == month)? as u64;
    let year = number(year, 4, 1970..=9999)?;
    let mut parts = time.split(':');
    let hour = number(parts.next()?, 2, 0..=23)?;
    let minute = number(parts.next()?, 2, 0..=59)?;
    let second = number(parts.next()?, 2, 0..=60)?; // 60: a leap second
    if parts.next().is_some() {
        return None;
    }
    Some(((days_since_1970(year, month, day) * 24 + hour) * 60 + minute) * 60 + second)
}

/// A decimal of exactly so many digits within the range.
fn number(text: &str, digits: usize, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
    let well_formed = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit());
    let value = text.parse().ok().filter(|_| well_formed)?;
    range.contains(&value).then_some(value)
}

/// Days from 1970-01-01 to a day of the Gregorian calendar; `month` from 0.
pub(crate) fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    const BEFORE: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    let is_leap = leaps(year) > leaps(year - 1);
    let leap_day_passed = is_leap && month >= 2;
    (year - 1970) * 365 + (leaps(year - 1) - leaps(1969)) + BEFORE[month as usize] + u64::from(leap_day_passed) + day
        - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: &str = "Tue, 29 Feb 2028 12:00:00 GMT";

    #[test]
    fn seconds_are_milliseconds_times_a_thousand() {
        assert_eq!(retry_after_ms("120", None), Some(120_000));
        assert_eq!(retry_after_ms(" 0 ", None), Some(0));
        assert_eq!(retry_after_ms("99999999999999999999999", None), Some(u64::MAX));
    }

    #[test]
    fn a_date_is_read_against_the_answers_date() {
        assert_eq!(retry_after_ms("Wed, 01 Mar 2028 12:00:07 GMT", Some(NOON)), Some((86_400 + 7) * 1000));
        assert_eq!(retry_after_ms("Tue, 29 Feb 2028 11:00:00 GMT", Some(NOON)), Some(0), "past: at once");
        assert_eq!(retry_after_ms("Wed, 01 Mar 2028 12:00:07 GMT", None), None);
        assert_eq!(retry_after_ms("Wed, 01 Mar 2028 12:00:07 GMT", Some("yesterday")), None);
    }

    #[test]
    fn dates_agree_with_the_calendar() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777), // the example of RFC 9110
            ("Tue, 29 Feb 2000 00:00:00 GMT", 951_782_400),
            ("Fri, 31 Dec 1999 23:59:59 GMT", 946_684_799),
            ("Thu, 01 Jan 2026 00:00:00 GMT", 1_767_225_600),
            ("Mon, 01 Mar 2100 00:00:00 GMT", 4_107_542_400), // 2100 is no leap year
        ] {
            assert_eq!(unix_s(text), Some(seconds), "{text}");
        }
    }

    #[test]
    fn nonsense_is_none() {
        for value in [
            "",
            "-1",
            "1.5",
            "+5",
            "soon",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1969 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 GMT again",
            "Sun, +6 Nov 1994 08:49:37 GMT",
        ] {
            assert_eq!(retry_after_ms(value, Some(NOON)), None, "{value:?}");
        }
    }
}
