//! What a listing asks of a replica, and what that tells: keys in order, without their values unless they are wanted.

use bytes::Bytes;

use super::key::Key;
use super::record::{Content, ContentType, Record};
use super::tree::SlotSet;
use super::version::{Hlc, Version};

/// A question for the keys of some slots, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    pub slots: SlotSet,
    /// Only keys that begin with this.
    pub prefix: Bytes,
    /// Only keys from this place on, itself included.
    pub from: Bytes,
    /// Where it is not empty: keys that have it behind the prefix share a *common prefix*, up to the first of it.
    pub delimiter: Bytes,
    /// So many live keys of one common prefix are told before the others of it are skipped; at least one.
    pub samples: u32,
    /// Live keys and common prefixes told, at most; at least one.
    pub limit: u32,
    /// Values, too.
    pub values: bool,
    /// By this time values are live or not.
    pub now: Hlc,
}

/// What a replica holds of a key, without its value unless that was wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    pub version: Version,
    /// When it came to be: see [`Record::written`].
    pub written: Hlc,
    pub tombstone: bool,
    pub checksum: u64,
    /// Of the value.
    pub bytes: u64,
    pub content_type: Option<ContentType>,
    pub expires_at_ms: Option<u64>,
    pub value: Option<Bytes>,
}

impl Outline {
    pub fn of(record: &Record, with_value: bool) -> Self {
        let (value, content_type, expires_at_ms) = match &record.content {
            Content::Tombstone => (None, None, None),
            Content::Value { bytes, content_type, expires_at_ms } => {
                (Some(bytes), content_type.clone(), *expires_at_ms)
            }
        };
        Self {
            version: record.version,
            written: record.written,
            tombstone: value.is_none(),
            checksum: record.checksum,
            bytes: value.map_or(0, |bytes| bytes.len() as u64),
            content_type,
            expires_at_ms,
            value: value.filter(|_| with_value).cloned(),
        }
    }

    /// Whether it replaces the other: the order of [`Record::beats`].
    pub fn beats(&self, other: &Outline) -> bool {
        (self.version, self.tombstone, self.checksum) > (other.version, other.tombstone, other.checksum)
    }

    /// Whether a reader at that time finds a value.
    pub fn is_live(&self, now: Hlc) -> bool {
        !self.tombstone && self.expires_at_ms.is_none_or(|at| at > now.ms())
    }

    /// Near enough what it takes on its way, in bytes, without its key.
    pub fn weight(&self) -> usize {
        let content_type = self.content_type.as_ref().map_or(0, |kind| kind.bytes().len());
        56 + content_type + self.value.as_ref().map_or(0, Bytes::len)
    }
}

/// One key that is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanEntry {
    pub key: Key,
    /// `None`: something lies here that is not what was written.
    pub copy: Option<Outline>,
    /// Nothing more is told of this key's common prefix.
    pub skips: bool,
}

/// Answer to a [`Scan`]: all that the replica holds of these slots up to a place, but for what it skipped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanPage {
    /// In key order, each key once; tombstones and values that have ended, too.
    pub entries: Vec<ScanEntry>,
    /// Up to where it is told, itself excluded; `None`: to the end of the prefix.
    pub next: Option<Bytes>,
    /// Slots with a row of which it cannot be said whose it is: what is told of these may lack a key.
    pub doubtful: SlotSet,
}
