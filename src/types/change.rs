//! Changes: which versions of which keys a replica stored, in the order in which it did.
//!
//! A replica's log numbers them from 1 in each of its lives; a [`Position`] is good for that life alone.

use bytes::Bytes;

use super::key::Key;
use super::record::Record;
use super::version::Version;

/// A version of a key that was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyChange {
    pub key: Key,
    pub version: Version,
    pub kind: ChangeKind,
}

/// What a change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    Put {
        /// Wall milliseconds at which the value ends.
        expires_at_ms: Option<u64>,
    },
    Delete,
    /// The value's time was up.
    Expire,
}

impl KeyChange {
    /// What storing that record changes. The key's bytes are copied: those that came lie in a message as large as a mebibyte,
    /// which a change that is remembered would keep.
    pub fn of(key: &Key, record: &Record) -> Self {
        let kind = match record.is_tombstone() {
            false => ChangeKind::Put { expires_at_ms: record.expires_at_ms() },
            true if record.version.is_end() => ChangeKind::Expire,
            true => ChangeKind::Delete,
        };
        Self { key: key.detached(), version: record.version, kind }
    }
}

/// A place in the log of a replica: behind its change of that number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Which life of the replica: drawn by chance at each start, as a directory that was copied back counts its starts anew.
    pub boot: u64,
    pub seq: u64,
}

/// Which keys somebody watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    One(Key),
    /// All that begin with these bytes.
    Prefix(Bytes),
}

impl Watched {
    pub fn holds(&self, key: &Key) -> bool {
        match self {
            Watched::One(one) => one == key,
            Watched::Prefix(prefix) => key.as_bytes().starts_with(prefix),
        }
    }
}

/// A question for what a replica stored behind a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangesAsk {
    pub watched: Watched,
    /// Behind which place; absent: only where the log is now.
    pub from: Option<Position>,
    /// How long the replica may wait for a change before it answers that there is none.
    pub wait_ms: u32,
}

/// What a replica stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangesPage {
    /// In the order in which they were stored.
    pub changes: Vec<KeyChange>,
    /// Told up to here.
    pub at: Position,
    /// The log reaches back to the place that was asked for. Where it does not nothing is told, and `at` is its end.
    pub reaches: bool,
    /// The log goes on behind `at`.
    pub more: bool,
}
