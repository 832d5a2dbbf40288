//! A record: what a replica keeps for a key.
//!
//! Invariants:
//! - The checksum covers the key and every field, so a row that was damaged, or swapped with another key's, is found
//!   when it is read. A record is built sealed and never changed afterwards.
//! - Merge is the greater version; equal versions with different content (a restored file) still converge, by
//!   [`Record::beats`].

use std::cmp::Ordering;
use std::fmt;

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3Default;

use super::key::Key;
use super::limits::CONTENT_TYPE_BYTES_MAX;
use super::register::Ballot;
use super::version::{Hlc, Version};

/// A media type as the client sent it: visible ASCII and spaces, 1 to [`CONTENT_TYPE_BYTES_MAX`] bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ContentType(Bytes);

/// The bytes are no content type. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a content type is 1 to {CONTENT_TYPE_BYTES_MAX} visible ASCII characters")]
pub struct ContentTypeError;

impl ContentType {
    /// # Errors
    /// When the bytes are none, too many, or not printable ASCII.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, ContentTypeError> {
        let bytes = bytes.into();
        let printable = bytes.iter().all(|b| (0x20..0x7f).contains(b));
        if bytes.is_empty() || bytes.len() > CONTENT_TYPE_BYTES_MAX || !printable {
            return Err(ContentTypeError);
        }
        Ok(Self(bytes))
    }

    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    pub fn as_str(&self) -> &str {
        // Printable ASCII by construction, so the fallback is never taken.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the client stored, or that it deleted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    Value {
        bytes: Bytes,
        /// `None` is `application/octet-stream`.
        content_type: Option<ContentType>,
        /// Wall milliseconds at which the value reads as absent.
        expires_at_ms: Option<u64>,
    },
    Tombstone,
}

impl Content {
    pub fn value(bytes: impl Into<Bytes>) -> Self {
        Content::Value { bytes: bytes.into(), content_type: None, expires_at_ms: None }
    }

    /// The bytes of value and content type.
    pub fn size(&self) -> usize {
        match self {
            Content::Value { bytes, content_type, .. } => {
                bytes.len() + content_type.as_ref().map_or(0, |c| c.bytes().len())
            }
            Content::Tombstone => 0,
        }
    }
}

/// One version of one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    pub version: Version,
    /// When it came to be: a plain write's own clock reading, a conditional write's first ballot, an end's time. Age and
    /// purging use it; order uses `version`.
    pub written: Hlc,
    pub content: Content,
    /// xxh3-64 over key and record.
    pub checksum: u64,
}

impl Record {
    /// Builds a record of that key, with its checksum.
    pub fn seal(key: &Key, version: Version, written: Hlc, content: Content) -> Self {
        let checksum = checksum(key, &version, written, &content);
        Self { version, written, content, checksum }
    }

    /// Whether the checksum is that of this key and record: false means damage on a disk or a wire.
    pub fn is_intact(&self, key: &Key) -> bool {
        self.checksum == checksum(key, &self.version, self.written, &self.content)
    }

    pub fn is_tombstone(&self) -> bool {
        matches!(self.content, Content::Tombstone)
    }

    /// Whether a reader at that time finds a value.
    pub fn is_live(&self, now: Hlc) -> bool {
        !self.is_tombstone() && !self.has_ended(now)
    }

    /// Wall milliseconds at which its value ends; `None` where there is none, or it never does.
    pub fn expires_at_ms(&self) -> Option<u64> {
        if let Content::Value { expires_at_ms, .. } = self.content { expires_at_ms } else { None }
    }

    /// Whether its value's time is up.
    pub fn has_ended(&self, now: Hlc) -> bool {
        self.expires_at_ms().is_some_and(|at| at <= now.ms())
    }

    /// The tombstone that takes the place of a value when its time is up: the same one, whoever writes it and whenever.
    /// `None` where it has no end.
    pub fn end(&self, key: &Key) -> Option<Record> {
        let at = self.expires_at_ms()?;
        Some(Self::seal(key, self.version.ended(), Hlc::from_ms(at), Content::Tombstone))
    }

    /// The same plain write under another stamp. A time to live counts from that one.
    pub fn stamped_again(&self, key: &Key, version: Version) -> Record {
        let mut content = self.content.clone();
        if let Content::Value { expires_at_ms: Some(at), .. } = &mut content {
            *at = version.hlc.ms() + at.saturating_sub(self.written.ms());
        }
        Self::seal(key, version, version.hlc, content)
    }

    /// The bytes a record weighs in limits and metrics: value and content type, not the key.
    pub fn content_bytes(&self) -> usize {
        self.content.size()
    }

    /// Whether this record replaces the other on a replica: the greater version, and between two contents of one
    /// version (which must not happen) the tombstone, then the greater checksum.
    pub fn beats(&self, other: &Record) -> bool {
        let by_content = || (self.is_tombstone(), self.checksum).cmp(&(other.is_tombstone(), other.checksum));
        self.version.cmp(&other.version).then_with(by_content) == Ordering::Greater
    }
}

fn checksum(key: &Key, version: &Version, written: Hlc, content: &Content) -> u64 {
    let mut hash = Xxh3Default::new();
    // Every variable part is preceded by its length, so that no two records feed the same bytes.
    let mut head = [0u8; 40];
    head[..4].copy_from_slice(&(key.as_bytes().len() as u32).to_le_bytes());
    head[4..12].copy_from_slice(&version.hlc.0.to_le_bytes());
    head[12..16].copy_from_slice(&version.writer.0.to_le_bytes());
    head[16..20].copy_from_slice(&version.rmw.to_le_bytes());
    head[20..28].copy_from_slice(&written.0.to_le_bytes());
    if let Content::Value { content_type, expires_at_ms, .. } = content {
        head[28] = 1 | u8::from(content_type.is_some()) << 1 | u8::from(expires_at_ms.is_some()) << 2;
        head[29] = content_type.as_ref().map_or(0, |c| c.bytes().len() as u8);
        head[30..38].copy_from_slice(&expires_at_ms.unwrap_or(0).to_le_bytes());
    }
    hash.update(&head);
    hash.update(key.as_bytes());
    if let Content::Value { bytes, content_type, .. } = content {
        if let Some(content_type) = content_type {
            hash.update(content_type.bytes());
        }
        hash.update(bytes);
    }
    hash.digest()
}

/// What a slot has purged up to. It refuses only where nothing is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Floor {
    /// G: nothing written up to this time is new.
    pub written: Hlc,
    /// V: the greatest version that was dropped.
    pub version: Version,
    /// L: ballots up to this one are refused.
    pub ballot: Ballot,
}

impl Floor {
    /// Whether a record may have been purged here already, so that it must not come back where nothing is stored.
    pub fn covers(&self, version: &Version, written: Hlc) -> bool {
        *version <= self.version && written <= self.written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Writer;
    use proptest::prelude::*;

    fn key(text: &str) -> Key {
        Key::new(text.to_owned()).unwrap()
    }

    fn version(hlc: u64) -> Version {
        Version::plain(Hlc(hlc), Writer(1))
    }

    #[test]
    fn the_checksum_covers_the_key_and_each_field() {
        let content = |v: &'static str, t: Option<&'static str>, e| Content::Value {
            bytes: Bytes::from(v),
            content_type: t.map(|t| ContentType::new(t).unwrap()),
            expires_at_ms: e,
        };
        let all = [
            Record::seal(&key("k"), version(1), Hlc(1), content("ab", None, None)),
            Record::seal(&key("l"), version(1), Hlc(1), content("ab", None, None)),
            Record::seal(&key("k"), version(2), Hlc(1), content("ab", None, None)),
            Record::seal(&key("k"), version(1), Hlc(2), content("ab", None, None)),
            Record::seal(&key("k"), version(1), Hlc(1), content("ab", Some("a"), None)),
            Record::seal(&key("k"), version(1), Hlc(1), content("b", Some("a"), None)),
            Record::seal(&key("k"), version(1), Hlc(1), content("ab", None, Some(0))),
            Record::seal(&key("k"), version(1), Hlc(1), content("", None, None)),
            Record::seal(&key("k"), version(1), Hlc(1), Content::Tombstone),
        ];
        let sums: std::collections::BTreeSet<u64> = all.iter().map(|r| r.checksum).collect();
        assert_eq!(sums.len(), all.len());
        assert!(all[0].is_intact(&key("k")) && !all[0].is_intact(&key("l")));
    }

    #[test]
    fn expiry_ends_a_value_exactly_at_its_millisecond() {
        let content = Content::Value { bytes: Bytes::new(), content_type: None, expires_at_ms: Some(10) };
        let record = Record::seal(&key("k"), version(1), Hlc(1), content);
        assert!(record.is_live(Hlc::from_ms(9)));
        assert!(!record.is_live(Hlc::from_ms(10)));
    }

    #[test]
    fn an_end_is_the_same_tombstone_everywhere_and_beats_only_its_value() {
        let k = key("k");
        let content = |at| Content::Value { bytes: "v".into(), content_type: None, expires_at_ms: at };
        let value = Record::seal(&k, version(Hlc::from_ms(2).0), Hlc::from_ms(2), content(Some(10)));
        let end = value.end(&k).unwrap();
        assert_eq!((end.version, end.written), (value.version.ended(), Hlc::from_ms(10)));
        assert!(end.is_intact(&k) && end.is_tombstone() && end.beats(&value) && end.end(&k).is_none());
        let built = Record::seal(&k, value.version.conditional().unwrap(), Hlc::from_ms(3), content(None));
        assert!(built.beats(&end) && built.end(&k).is_none());
    }

    #[test]
    fn a_plain_write_that_is_stamped_again_lives_as_long_as_before() {
        let k = key("k");
        let content = |at| Content::Value { bytes: "v".into(), content_type: None, expires_at_ms: at };
        let first = version(Hlc::from_ms(2).0);
        let again = version(Hlc::from_ms(50).0);
        let stamped = |at| Record::seal(&k, first, first.hlc, content(at)).stamped_again(&k, again);
        assert_eq!(stamped(Some(12)), Record::seal(&k, again, again.hlc, content(Some(60))));
        assert_eq!(stamped(None), Record::seal(&k, again, again.hlc, content(None)));
    }

    proptest! {
        /// Whatever order two replicas meet the same records in, they end with the same one.
        #[test]
        fn merge_converges(records in prop::collection::vec((0u64..3, 0u8..3), 1..8)) {
            let k = key("k");
            let built: Vec<Record> = records.iter().map(|(h, v)| {
                let content = if *v == 0 { Content::Tombstone } else { Content::value(vec![*v]) };
                Record::seal(&k, version(*h), Hlc(*h), content)
            }).collect();
            let merge = |a: Record, b: &Record| if b.beats(&a) { b.clone() } else { a };
            let forward = built.iter().skip(1).fold(built[0].clone(), merge);
            let backward = built.iter().rev().skip(1).fold(built[built.len() - 1].clone(), merge);
            prop_assert_eq!(forward, backward);
        }
    }
}
