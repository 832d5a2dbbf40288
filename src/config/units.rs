//! Durations and sizes as people write them: `500ms`, `30s`, `5min`, `1 GiB`.

use std::time::Duration;

/// Milliseconds in each unit of time, greatest first; where a unit has two names, the one printed comes first.
const TIME: &[(&str, u64)] =
    &[("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Bytes in each unit of size, greatest first. `K`, `M` and `G` alone are left out: people disagree what they mean.
const SIZE: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("B", 1),
];

/// A whole number with a unit, e.g. `500ms`, `30 s`, `3h`. `None` for anything else, a bare number too.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let (_, ms) = TIME.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*ms).map(Duration::from_millis)
}

/// A plain number of bytes, or a whole number with a unit, e.g. `1MiB`, `1 GiB`. `None` for anything else.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    if unit.is_empty() {
        return Some(number);
    }
    let (_, bytes) = SIZE.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    number.checked_mul(*bytes)
}

/// In the greatest unit that gives a whole number; [`parse_duration`] reads it back, to the millisecond.
pub fn show_duration(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    show(ms, TIME, "ms")
}

/// In the greatest binary unit that gives a whole number; [`parse_bytes`] reads it back.
pub fn show_bytes(bytes: u64) -> String {
    show(bytes, &SIZE[..4], "B")
}

/// About so many bytes, for people: `1.5 MiB`.
pub fn about_bytes(bytes: u64) -> String {
    match SIZE[..4].iter().find(|(_, size)| bytes >= *size) {
        Some((unit, size)) => format!("{:.1} {unit}", bytes as f64 / *size as f64),
        None => format!("{bytes} B"),
    }
}

fn show(number: u64, units: &[(&str, u64)], smallest: &str) -> String {
    let whole = units.iter().find(|(_, size)| number >= *size && number.is_multiple_of(*size));
    whole.map_or_else(|| format!("{number}{smallest}"), |(unit, size)| format!("{}{unit}", number / size))
}

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_as_people_write_them() {
        let ms = |text| parse_duration(text).map(|d| d.as_millis());
        assert_eq!(ms("500ms"), Some(500));
        assert_eq!(ms(" 30 s "), Some(30_000));
        assert_eq!(ms("5min"), ms("5m"));
        assert_eq!(ms("3h"), Some(10_800_000));
        for wrong in ["", "30", "s", "1.5s", "-1s", "30 seconds", "1h30m", "99999999999999999999s", "9999999999999999d"]
        {
            assert_eq!(ms(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sizes_as_people_write_them() {
        assert_eq!(parse_bytes("1 GiB"), Some(1 << 30));
        assert_eq!(parse_bytes("1mib"), Some(1 << 20));
        assert_eq!(parse_bytes("2MB"), Some(2_000_000));
        assert_eq!(parse_bytes("1048576"), Some(1 << 20));
        for wrong in ["", "1G", "MiB", "1.5MiB", "-1", "99999999TiB"] {
            assert_eq!(parse_bytes(wrong), None, "{wrong}");
        }
        assert_eq!(about_bytes(1_572_864), "1.5 MiB");
        assert_eq!(about_bytes(1023), "1023 B");
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(n in 0u64..1 << 50) {
            prop_assert_eq!(parse_duration(&show_duration(Duration::from_millis(n))), Some(Duration::from_millis(n)));
            prop_assert_eq!(parse_bytes(&show_bytes(n)), Some(n));
        }
    }
}
