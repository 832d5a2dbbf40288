//! The requests of a run: built once for each connection, then only key digits and a few bytes of the value change.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rand::RngCore;

use super::super::client::key_path;
use super::wire::{ETAG_BYTES_MAX, Etag};

/// A key is the prefix and this many decimal digits, so that every request has the same length.
const DIGITS: usize = 10;
/// How many bytes of a value change from put to put, so that each changes its row. Whole groups of base64.
const CHANGING: usize = 6;
/// Room for a condition's header line. What is shorter is followed by blanks, which do not belong to a header's value.
const CONDITION_BYTES: usize = IF_MATCH.len() + ETAG_BYTES_MAX;
const IF_MATCH: &[u8] = b"If-Match: ";
const IF_ABSENT: &[u8] = b"If-None-Match: *";

/// Whose API is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    A3,
    /// The JSON gateway of etcd 3.4 and later.
    Etcd,
}

/// What all requests of a run share.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) dialect: Dialect,
    pub(super) prefix: String,
    pub(super) value_bytes: usize,
    /// `one`, `quorum`, `all`, `linearizable`; `None` leaves it to the server.
    pub(super) consistency: Option<String>,
}

/// One request's bytes, and where its key and value stand.
#[derive(Clone, Debug)]
pub(super) struct Template {
    dialect: Dialect,
    prefix: Vec<u8>,
    bytes: Vec<u8>,
    key_at: usize,
    /// `None` for a read, and for a value too short to change.
    value_at: Option<usize>,
    /// Of a put with a condition.
    condition_at: Option<usize>,
}

impl Template {
    pub(super) fn get(shape: &Shape, host: &str) -> Self {
        match shape.dialect {
            Dialect::A3 => {
                let end = format!("{} HTTP/1.1\r\nHost: {host}\r\n\r\n", shape.query());
                Self::new(shape, &format!("GET {}", key_path(shape.prefix.as_bytes())), &end, b"")
            }
            Dialect::Etcd => {
                let serializable = shape.consistency.as_deref() == Some("one");
                let end = format!(r#"","serializable":{serializable}}}"#);
                Self::new(shape, &shape.post("/v3/kv/range", host, &end), &end, b"")
            }
        }
    }

    pub(super) fn put(shape: &Shape, host: &str, rng: &mut impl RngCore) -> Self {
        let value = shape.value(rng);
        match shape.dialect {
            Dialect::A3 => Self::a3_put(shape, host, "", &value),
            Dialect::Etcd => {
                let value = BASE64_STANDARD.encode(&value);
                let end = format!(r#"","value":"{value}"}}"#);
                let mut template = Self::new(shape, &shape.post("/v3/kv/put", host, &end), &end, b"");
                // The value and `"}` end the request.
                let value_at = template.bytes.len() - value.len() - 2;
                template.value_at = (shape.value_bytes >= CHANGING).then_some(value_at);
                template
            }
        }
    }

    /// A put under a condition, which [`Self::fill_if`] says. Only a3 is asked so.
    pub(super) fn put_if(shape: &Shape, host: &str, rng: &mut impl RngCore) -> Self {
        let value = shape.value(rng);
        let line = format!("{}\r\n", " ".repeat(CONDITION_BYTES));
        let mut template = Self::a3_put(shape, host, &line, &value);
        // Behind the line stand an empty one and the value.
        template.condition_at = Some(template.bytes.len() - value.len() - 2 - line.len());
        template
    }

    /// `lines`: further headers, each with its line end.
    fn a3_put(shape: &Shape, host: &str, lines: &str, value: &[u8]) -> Self {
        let kind = "Content-Type: application/octet-stream";
        let (query, length) = (shape.query(), value.len());
        let end = format!("{query} HTTP/1.1\r\nHost: {host}\r\n{kind}\r\nContent-Length: {length}\r\n{lines}\r\n");
        Self::new(shape, &format!("PUT {}", key_path(shape.prefix.as_bytes())), &end, value)
    }

    /// `begin`, the key, `end`, `value`.
    fn new(shape: &Shape, begin: &str, end: &str, value: &[u8]) -> Self {
        let bytes = [begin.as_bytes(), shape.key().as_bytes(), end.as_bytes(), value].concat();
        Self {
            dialect: shape.dialect,
            prefix: shape.prefix.clone().into_bytes(),
            key_at: begin.len(),
            value_at: (value.len() >= CHANGING).then_some(bytes.len() - value.len()),
            condition_at: None,
            bytes,
        }
    }

    /// How many bytes of the request the changing ones of the value are.
    fn changing_length(&self) -> usize {
        match self.dialect {
            Dialect::A3 => CHANGING,
            Dialect::Etcd => CHANGING / 3 * 4,
        }
    }

    /// The request for the key of that number; a put's value differs for each `salt`.
    pub(super) fn fill(&mut self, key: u64, salt: u64) -> &[u8] {
        let digits = digits(key);
        match self.dialect {
            Dialect::A3 => self.bytes[self.key_at..self.key_at + DIGITS].copy_from_slice(&digits),
            Dialect::Etcd => {
                let key = BASE64_STANDARD.encode([self.prefix.as_slice(), &digits].concat());
                self.bytes[self.key_at..self.key_at + key.len()].copy_from_slice(key.as_bytes());
            }
        }
        if let Some(at) = self.value_at {
            let changing = &salt.to_le_bytes()[..CHANGING];
            let place = at..at + self.changing_length();
            match self.dialect {
                Dialect::A3 => self.bytes[place].copy_from_slice(changing),
                Dialect::Etcd => self.bytes[place].copy_from_slice(BASE64_STANDARD.encode(changing).as_bytes()),
            }
        }
        &self.bytes
    }

    /// As [`Self::fill`], for a key that must have that ETag, or no value.
    pub(super) fn fill_if(&mut self, key: u64, salt: u64, etag: Option<&Etag>) -> &[u8] {
        if let Some(at) = self.condition_at {
            let line = &mut self.bytes[at..at + CONDITION_BYTES];
            let (name, value) = etag.map_or((IF_ABSENT, &b""[..]), |etag| (IF_MATCH, etag.bytes()));
            let (start, rest) = line.split_at_mut(name.len());
            start.copy_from_slice(name);
            let (start, rest) = rest.split_at_mut(value.len());
            start.copy_from_slice(value);
            rest.fill(b' ');
        }
        self.fill(key, salt)
    }
}

impl Shape {
    fn value(&self, rng: &mut impl RngCore) -> Vec<u8> {
        let mut value = vec![0; self.value_bytes];
        rng.fill_bytes(&mut value);
        value
    }

    fn query(&self) -> String {
        self.consistency.as_ref().map(|level| format!("?consistency={level}")).unwrap_or_default()
    }

    /// What stands for the key until the first [`Template::fill`]; as long as every key.
    fn key(&self) -> String {
        let digits = "0".repeat(DIGITS);
        match self.dialect {
            Dialect::A3 => digits,
            Dialect::Etcd => BASE64_STANDARD.encode(format!("{}{digits}", self.prefix)),
        }
    }

    /// A request up to its key, which `end` follows.
    fn post(&self, path: &str, host: &str, end: &str) -> String {
        let begin = r#"{"key":""#;
        let length = begin.len() + self.key().len() + end.len();
        let kind = "Content-Type: application/json";
        format!("POST {path} HTTP/1.1\r\nHost: {host}\r\n{kind}\r\nContent-Length: {length}\r\n\r\n{begin}")
    }
}

fn digits(mut number: u64) -> [u8; DIGITS] {
    let mut text = [b'0'; DIGITS];
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;
    use serde_json::Value;

    fn shape(dialect: Dialect, consistency: Option<&str>, value_bytes: usize) -> Shape {
        // The prefix holds what could be mistaken for the digits, and a byte that is escaped.
        Shape { dialect, prefix: "0000000000/".into(), value_bytes, consistency: consistency.map(str::to_owned) }
    }

    fn rng() -> SmallRng {
        SmallRng::seed_from_u64(1)
    }

    fn split(request: &[u8]) -> (String, Vec<u8>) {
        let end = request.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        (String::from_utf8(request[..end].to_vec()).unwrap(), request[end..].to_vec())
    }

    #[test]
    fn requests_to_a3() {
        let mut get = Template::get(&shape(Dialect::A3, Some("one"), 0), "h:1");
        let wanted = "GET /kv/0000000000%2F0000000042?consistency=one HTTP/1.1\r\nHost: h:1\r\n\r\n";
        assert_eq!(get.fill(42, 0), wanted.as_bytes());
        let mut put = Template::put(&shape(Dialect::A3, None, 100), "h:1", &mut rng());
        let (head, value) = split(put.fill(7, 1));
        assert!(
            head.starts_with("PUT /kv/0000000000%2F0000000007 HTTP/1.1\r\n")
                && head.contains("Content-Length: 100\r\n")
        );
        let (_, other) = split(put.fill(7, 2));
        assert!(value.len() == 100 && other.len() == 100 && value != other && value[CHANGING..] == other[CHANGING..]);
    }

    #[test]
    fn a_condition_is_said_in_place() {
        let longest = format!("\"{}\"", "e".repeat(ETAG_BYTES_MAX - 2));
        let mut put = Template::put_if(&shape(Dialect::A3, Some("linearizable"), 100), "h:1", &mut rng());
        let length = put.bytes.len();
        for (etag, line) in [
            (Some(longest.as_str()), format!("If-Match: {longest}")),
            (None, "If-None-Match: *".to_owned()),
            (Some("\"1-1-2\""), "If-Match: \"1-1-2\"".to_owned()),
        ] {
            let etag = etag.map(|text| Etag::of(text.as_bytes()).unwrap());
            let (head, value) = split(put.fill_if(7, 1, etag.as_ref()));
            assert!(
                head.starts_with("PUT /kv/0000000000%2F0000000007?consistency=linearizable HTTP/1.1\r\n"),
                "{head}"
            );
            let said: Vec<&str> = head.lines().filter(|l| l.starts_with("If-")).map(str::trim_end).collect();
            assert_eq!((said, value.len(), head.len() + value.len()), (vec![line.as_str()], 100, length));
            assert!(head.contains("Content-Length: 100\r\n"), "{head}");
        }
    }

    #[test]
    fn requests_to_etcd() {
        let mut get = Template::get(&shape(Dialect::Etcd, Some("one"), 0), "h:1");
        let (head, body) = split(get.fill(42, 0));
        let body_length = format!("Content-Length: {}\r\n", body.len());
        assert!(head.starts_with("POST /v3/kv/range HTTP/1.1\r\n") && head.contains(&body_length));
        let body: Value = serde_json::from_slice(&body).unwrap();
        let key = BASE64_STANDARD.encode("0000000000/0000000042");
        assert_eq!(body, serde_json::json!({"key": key, "serializable": true}));
        let mut put = Template::put(&shape(Dialect::Etcd, None, 100), "h:1", &mut rng());
        let values = [1, 2].map(|salt| {
            let (_, body) = split(put.fill(42, salt));
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["key"], key);
            BASE64_STANDARD.decode(body["value"].as_str().unwrap()).unwrap()
        });
        assert!(values.iter().all(|v| v.len() == 100));
        assert!(values[0] != values[1] && values[0][CHANGING..] == values[1][CHANGING..]);
    }

    #[test]
    fn short_values_stay_as_long_as_asked() {
        for dialect in [Dialect::A3, Dialect::Etcd] {
            for length in 0..2 * CHANGING {
                let shape = shape(dialect, None, length);
                let mut put = Template::put(&shape, "h", &mut rng());
                let before = put.bytes.len();
                assert_eq!(put.fill(1, u64::MAX).len(), before);
                let (_, body) = split(put.fill(1, 5));
                match dialect {
                    Dialect::A3 => assert_eq!(body.len(), length),
                    Dialect::Etcd => {
                        let body: Value = serde_json::from_slice(&body).unwrap();
                        let value = BASE64_STANDARD.decode(body["value"].as_str().unwrap()).unwrap();
                        assert_eq!(value.len(), length);
                    }
                }
            }
        }
    }
}
