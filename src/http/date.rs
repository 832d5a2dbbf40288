//! Points in time as texts, exact to the millisecond. HTTP's own dates are only exact to the second.

/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;
/// The end of the year 9999, the last that has four digits.
const MS_MAX: u64 = 253_402_300_799_999;

/// RFC 3339, in UTC: `2026-11-29T00:46:21.123Z`.
pub(super) fn exact(ms: u64) -> String {
    let ms = ms.min(MS_MAX);
    let (year, month, day) = civil(ms / DAY_MS);
    let of_day = ms % DAY_MS;
    let (hour, minute, second) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", of_day % 1000)
}

/// Year, month and day of a day since 1970, in the Gregorian calendar. Source: Howard Hinnant, "chrono-Compatible Low-Level
/// Date Algorithms": years that begin in March have the day that some lack at their end.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn dates_are_exact_and_agree_with_those_of_http() {
        assert_eq!(exact(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(exact(951_782_400_000 + 1), "2000-02-29T00:00:00.001Z");
        assert_eq!(exact(u64::MAX), "9999-12-31T23:59:59.999Z");
        const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        for day in 0..60_000 {
            let ms = day * DAY_MS + day * 997 % DAY_MS;
            let text = exact(ms);
            let month: usize = text[5..7].parse().unwrap();
            let http = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(ms));
            let wanted = format!("{} {} {} {} GMT", &text[8..10], MONTHS[month - 1], &text[..4], &text[11..19]);
            assert!(http.ends_with(&wanted), "{text} is {http}");
        }
    }
}
