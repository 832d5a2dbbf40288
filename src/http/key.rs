//! The key of a request, out of the raw path.
//!
//! The key is everything after `/kv/`, percent-decoded exactly once: `/kv/a/b` and `/kv/a%2Fb` are one key, `/kv/%2541`
//! is the key `%41`. Nothing is folded (`.`, `..`, `//`), so the path is taken as it came and never as a framework
//! reads it.

use std::borrow::Cow;

use bytes::Bytes;

use super::problem::{Code, Problem};
use crate::types::{Key, KeyError};

const PREFIX: &str = "/kv/";

/// # Errors
/// A problem of the kinds `bad-key` and `key-too-long`.
pub(super) fn key_of_path(path: &str) -> Result<Key, Problem> {
    let Some(raw) = path.strip_prefix(PREFIX) else {
        return Err(Problem::new(Code::BadKey, "the path does not begin with /kv/"));
    };
    let decoded = percent_decoded(raw.as_bytes())
        .ok_or_else(|| Problem::new(Code::BadKey, "a % in the key is not followed by two hexadecimal digits"))?;
    key(Bytes::from(decoded.into_owned()))
}

/// # Errors
/// A problem of the kinds `bad-key` and `key-too-long`.
pub(super) fn key(bytes: Bytes) -> Result<Key, Problem> {
    Key::new(bytes).map_err(|error| match error {
        KeyError::Empty => Problem::new(Code::BadKey, error.to_string()),
        KeyError::TooLong(_) => Problem::new(Code::KeyTooLong, error.to_string()),
    })
}

/// Decodes once; `None` where a `%` is not followed by two hexadecimal digits.
pub(super) fn percent_decoded(raw: &[u8]) -> Option<Cow<'_, [u8]>> {
    let Some(first) = raw.iter().position(|b| *b == b'%') else {
        return Some(Cow::Borrowed(raw));
    };
    let (plain, mut rest) = raw.split_at(first);
    let mut decoded = Vec::with_capacity(raw.len());
    decoded.extend_from_slice(plain);
    while let Some((byte, tail)) = rest.split_first() {
        if *byte == b'%' {
            let [high, low, ..] = tail else { return None };
            decoded.push(nibble(*high)? << 4 | nibble(*low)?);
            rest = tail.get(2..)?;
        } else {
            decoded.push(*byte);
            rest = tail;
        }
    }
    Some(Cow::Owned(decoded))
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|n| n as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::limits::KEY_BYTES_MAX;
    use proptest::prelude::*;

    fn key(path: &str) -> Result<Vec<u8>, Code> {
        key_of_path(path).map(|k| k.as_bytes().to_vec()).map_err(|p| p.code())
    }

    #[test]
    fn a_key_is_decoded_exactly_once() {
        assert_eq!(key("/kv/a/b"), Ok(b"a/b".to_vec()));
        assert_eq!(key("/kv/a%2Fb"), Ok(b"a/b".to_vec()));
        assert_eq!(key("/kv/a%2fb"), Ok(b"a/b".to_vec()));
        assert_eq!(key("/kv/%2541"), Ok(b"%41".to_vec()));
        assert_eq!(key("/kv/%ff%00"), Ok(vec![0xff, 0]));
        assert_eq!(key("/kv/a+b"), Ok(b"a+b".to_vec()));
        assert_eq!(key("/kv/%F0%9F%A6%80"), Ok("🦀".as_bytes().to_vec()));
    }

    #[test]
    fn nothing_is_folded() {
        for raw in [".", "..", "/", "//", "a//b", "a/../b", "./a", "/", "a/"] {
            assert_eq!(key(&format!("/kv/{raw}")), Ok(raw.as_bytes().to_vec()));
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert_eq!(key("/kv/"), Err(Code::BadKey));
        for bad in ["%", "%4", "%zz", "a%", "%4%41", "%+1", "% 1"] {
            assert_eq!(key(&format!("/kv/{bad}")), Err(Code::BadKey), "{bad}");
        }
        assert!(key(&format!("/kv/{}", "k".repeat(KEY_BYTES_MAX))).is_ok());
        assert_eq!(key(&format!("/kv/{}", "k".repeat(KEY_BYTES_MAX + 1))), Err(Code::KeyTooLong));
        assert!(key(&format!("/kv/{}", "%41".repeat(KEY_BYTES_MAX))).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_survive_their_encoding(bytes in prop::collection::vec(any::<u8>(), 1..64)) {
            let encoded: String = bytes.iter().map(|b| format!("%{b:02X}")).collect();
            prop_assert_eq!(key(&format!("/kv/{encoded}")), Ok(bytes));
        }
    }
}
