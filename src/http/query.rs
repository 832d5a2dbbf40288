//! Query parameters: each is known, given once and sound, or the answer is a 400 that lists every one that is not.

use std::borrow::Cow;
use std::time::Duration;

use super::key::percent_decoded;
use super::problem::{BadParameter, Problem};
use crate::types::Ttl;

/// Shortest and longest `?timeout=`.
pub(super) const TIMEOUT_MIN: Duration = Duration::from_millis(50);
pub(super) const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// A query under inspection: parameters are taken one by one, faults are collected.
#[derive(Debug, Default)]
pub(super) struct Query<'a> {
    given: Vec<(&'static str, Cow<'a, [u8]>)>,
    bad: Vec<BadParameter>,
}

impl<'a> Query<'a> {
    /// Takes a raw query apart. Parameters that are not in `known`, repeated or not decodable are noted as faults.
    pub(super) fn new(raw: Option<&'a str>, known: &[&'static str]) -> Self {
        let mut query = Self::default();
        for pair in raw.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            query.note(name, value, known);
        }
        query
    }

    fn note(&mut self, name: &str, value: &'a str, known: &[&'static str]) {
        let shown = || String::from_utf8_lossy(name.as_bytes().get(..64).unwrap_or(name.as_bytes())).into_owned();
        let decoded = form_decoded(name).and_then(|n| known.iter().find(|k| k.as_bytes() == n.as_ref()));
        let Some(name) = decoded.copied() else {
            let reason = if known.is_empty() {
                "unknown; this path takes no parameters".to_owned()
            } else {
                format!("unknown; this path knows {}", known.join(", "))
            };
            return self.bad.push(BadParameter { name: shown(), reason });
        };
        if self.given.iter().any(|(n, _)| *n == name) {
            return self.fault(name, "given more than once");
        }
        match form_decoded(value) {
            Some(value) => self.given.push((name, value)),
            None => self.fault(name, "a % is not followed by two hexadecimal digits"),
        }
    }

    /// The bytes of a parameter.
    pub(super) fn bytes(&mut self, name: &'static str) -> Option<Cow<'a, [u8]>> {
        let at = self.given.iter().position(|(n, _)| *n == name)?;
        Some(self.given.swap_remove(at).1)
    }

    /// A parameter of which `parse` makes something, or says why it cannot.
    pub(super) fn take<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Cow<'static, str>>,
    ) -> Option<T> {
        let bytes = self.bytes(name)?;
        let parsed = std::str::from_utf8(&bytes).map_err(|_| Cow::Borrowed("not UTF-8")).and_then(parse);
        parsed.map_err(|reason| self.fault(name, reason)).ok()
    }

    /// As [`Self::take`], and that it is missing is a fault.
    pub(super) fn needed<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Cow<'static, str>>,
    ) -> Option<T> {
        if !self.given.iter().any(|(n, _)| *n == name) {
            self.fault(name, "missing");
        }
        self.take(name, parse)
    }

    /// A parameter that is on by being there, or says `true` or `false`.
    pub(super) fn flag(&mut self, name: &'static str) -> bool {
        let parse = |text: &str| match text {
            "" | "true" => Ok(true),
            "false" => Ok(false),
            _ => Err("true or false".into()),
        };
        self.take(name, parse).unwrap_or(false)
    }

    pub(super) fn fault(&mut self, name: &'static str, reason: impl Into<String>) {
        // One fault a parameter: a thrice-given one is not two faults.
        if !self.bad.iter().any(|b| b.name == name) {
            self.bad.push(BadParameter { name: name.to_owned(), reason: reason.into() });
        }
    }

    /// # Errors
    /// When there was a fault: a problem that lists all of them.
    pub(super) fn finish(self) -> Result<(), Problem> {
        if self.bad.is_empty() { Ok(()) } else { Err(Problem::bad_parameters(self.bad)) }
    }
}

/// As forms encode: `+` is a space, then percent-decoding.
fn form_decoded(raw: &str) -> Option<Cow<'_, [u8]>> {
    if !raw.contains('+') {
        return percent_decoded(raw.as_bytes());
    }
    let spaced = raw.replace('+', " ");
    percent_decoded(spaced.as_bytes()).map(|decoded| Cow::Owned(decoded.into_owned()))
}

/// `500ms`, `2s`, `1m`: a whole number without leading zeros and its unit, from [`TIMEOUT_MIN`] to [`TIMEOUT_MAX`].
pub(super) fn timeout(text: &str) -> Result<Duration, Cow<'static, str>> {
    let ms = duration_ms(text, &[("ms", 1, 5), ("s", 1000, 2), ("m", 60_000, 1)]);
    let duration = ms.map(Duration::from_millis).filter(|d| (TIMEOUT_MIN..=TIMEOUT_MAX).contains(d));
    duration.ok_or_else(|| "a duration from 50ms to 60s, such as 500ms or 2s".into())
}

/// `60s`, `15m`, `12h`, `30d`: a whole number without leading zeros and its unit. Each unit has as many digits as keep it
/// within the limit of a time to live, so that a pattern can say what is taken.
pub(super) fn ttl(text: &str) -> Result<Ttl, Cow<'static, str>> {
    let units = [("ms", 1, 12), ("s", 1000, 9), ("m", 60_000, 7), ("h", 3_600_000, 5), ("d", 86_400_000, 4)];
    let ttl = duration_ms(text, &units).and_then(Ttl::from_ms);
    ttl.ok_or_else(|| "a duration from 1ms to 9999d, such as 60s, 15m, 12h or 30d".into())
}

/// A time to live, or `none`.
pub(super) fn new_end(text: &str) -> Result<Option<Ttl>, Cow<'static, str>> {
    if text == "none" { Ok(None) } else { ttl(text).map(Some).map_err(|wrong| format!("{wrong}, or none").into()) }
}

/// Milliseconds of a number and its unit, of which the name, the length in milliseconds and the most digits are given.
fn duration_ms(text: &str, units: &[(&str, u64, usize)]) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let (_, unit_ms, most) = units.iter().find(|(name, ..)| *name == unit)?;
    let sound = digits <= *most && !number.starts_with('0');
    number.parse::<u64>().ok().filter(|_| sound).map(|n| n * unit_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(query: Query<'_>) -> Vec<String> {
        match query.finish() {
            Ok(()) => Vec::new(),
            Err(problem) => {
                let body: serde_json::Value = serde_json::from_slice(&problem.body("r")).unwrap();
                let listed = body["parameters"].as_array().unwrap();
                listed.iter().map(|p| p["name"].as_str().unwrap().to_owned()).collect()
            }
        }
    }

    #[test]
    fn durations_are_humane_and_bounded() {
        for (text, ms) in
            [("50ms", 50), ("500ms", 500), ("60000ms", 60_000), ("2s", 2000), ("60s", 60_000), ("1m", 60_000)]
        {
            assert_eq!(timeout(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "",
            "5",
            "s",
            "49ms",
            "61s",
            "2m",
            "-2s",
            "+2s",
            "2 s",
            "1.5s",
            "02s",
            "2S",
            "99999999999999999999s",
            "0ms",
            "²s",
        ] {
            assert!(timeout(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_time_to_live_is_from_a_millisecond_to_some_decades() {
        let ms = |text| ttl(text).ok().map(Ttl::ms);
        assert_eq!(
            ["1ms", "2s", "15m", "12h", "30d"].map(ms).map(Option::unwrap),
            [1, 2_000, 900_000, 43_200_000, 2_592_000_000]
        );
        for text in ["999999999999ms", "999999999s", "9999999m", "99999h", "9999d"] {
            assert!(ms(text).is_some(), "{text}");
        }
        for text in [
            "",
            "0s",
            "01s",
            "1",
            "s",
            "1w",
            "1.5s",
            "-1s",
            "1000000000000ms",
            "1000000000s",
            "100000h",
            "10000d",
            "none",
        ] {
            assert_eq!(ms(text), None, "{text}");
        }
    }

    #[test]
    fn every_fault_is_listed_once() {
        let mut query = Query::new(Some("a=1&b=x&nope=1&a=2&a=3&c=%zz&=&"), &["a", "b", "c"]);
        assert_eq!(query.take("b", |_| Err::<(), _>("bad".into())), None);
        assert_eq!(faults(query), ["nope", "a", "c", "", "b"]);
    }

    #[test]
    fn a_sound_query_passes() {
        let mut query = Query::new(Some("key=a+b%2Bc%ff&verbose"), &["key", "verbose"]);
        assert_eq!(query.bytes("key").unwrap().as_ref(), b"a b+c\xff");
        assert!(query.flag("verbose"));
        assert_eq!(query.bytes("absent"), None);
        assert!(query.finish().is_ok());
        assert!(Query::new(None, &[]).finish().is_ok());
        assert!(Query::new(Some(""), &[]).finish().is_ok());
    }

    #[test]
    fn a_flag_says_true_or_false() {
        assert!(!Query::new(Some("v=false"), &["v"]).flag("v"));
        assert!(Query::new(Some("v=true"), &["v"]).flag("v"));
        let mut query = Query::new(Some("v=1"), &["v"]);
        assert!(!query.flag("v"));
        assert_eq!(faults(query), ["v"]);
    }
}
