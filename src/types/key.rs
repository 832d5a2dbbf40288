//! A key and where it lives: its token, and the piece of the keyspace the token falls into.
//!
//! `token = xxh3_64(key)`, seeded by the cluster id. Its first byte is the slot.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::id::ClusterId;
use super::limits::KEY_BYTES_MAX;

/// Any bytes, 1 to [`KEY_BYTES_MAX`] of them; compared bytewise. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Bytes);

/// Why some bytes are no key. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("a key is at least one byte long")]
    Empty,
    #[error("a key is at most {KEY_BYTES_MAX} bytes long, this one has {0}")]
    TooLong(usize),
}

impl Key {
    /// # Errors
    /// When the bytes are none, or more than [`KEY_BYTES_MAX`].
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, KeyError> {
        let bytes = bytes.into();
        match bytes.len() {
            0 => Err(KeyError::Empty),
            n if n > KEY_BYTES_MAX => Err(KeyError::TooLong(n)),
            _ => Ok(Self(bytes)),
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The shared bytes, for a wire that takes them without a copy.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The same key in memory of its own.
    pub fn detached(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }

    pub fn token(&self, seed: TokenSeed) -> Token {
        seed.token(&self.0)
    }
}

impl fmt::Display for Key {
    /// The key as text where it is UTF-8 without control characters, else escaped bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(&self.0) {
            Ok(text) if !text.chars().any(char::is_control) => f.write_str(text),
            _ => write!(f, "{}", self.0.escape_ascii()),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

/// What a cluster's tokens are seeded with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenSeed(u64);

impl TokenSeed {
    pub fn of(cluster: ClusterId) -> Self {
        Self(xxh3_64(cluster.0.as_bytes()))
    }

    /// The token of a key by its bytes, for whoever only reads past it.
    pub fn token(self, key: &[u8]) -> Token {
        Token(xxh3_64_with_seed(key, self.0))
    }
}

/// The 64-bit hash of a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

impl Token {
    pub fn slot(self) -> Slot {
        Slot(self.0.to_be_bytes()[0])
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One of 256 equal pieces of the keyspace: the first byte of the token.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(pub u8);

impl Slot {
    /// How many slots there are.
    pub const COUNT: usize = 256;

    /// All slots, in order.
    pub fn all() -> impl DoubleEndedIterator<Item = Slot> + ExactSizeIterator + Clone {
        (0..Self::COUNT).map(|n| Slot(n as u8))
    }

    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}", self.0)
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_key_has_a_first_and_a_last_length() {
        assert_eq!(Key::new(Bytes::new()), Err(KeyError::Empty));
        assert!(Key::new(vec![0u8; KEY_BYTES_MAX]).is_ok());
        assert_eq!(Key::new(vec![0u8; KEY_BYTES_MAX + 1]), Err(KeyError::TooLong(KEY_BYTES_MAX + 1)));
    }

    #[test]
    fn the_token_is_stable_on_disk_and_wire() {
        let seed = TokenSeed::of(ClusterId(Uuid::from_u128(1)));
        let token = Key::new("name").unwrap().token(seed);
        assert_eq!(token.to_string(), Key::new("name").unwrap().token(seed).to_string());
        assert_eq!(token.slot().0, (token.0 >> 56) as u8);
        let other = TokenSeed::of(ClusterId(Uuid::from_u128(2)));
        assert_ne!(token, Key::new("name").unwrap().token(other));
    }

    #[test]
    fn keys_print_as_text_or_escaped() {
        assert_eq!(Key::new("a/b 🦀").unwrap().to_string(), "a/b 🦀");
        assert_eq!(Key::new(vec![0xff, b'a', 0]).unwrap().to_string(), "\\xffa\\x00");
        assert_eq!(Key::new("a\nb").unwrap().to_string(), "a\\nb");
    }
}
