//! The words of a key's register: what proposers ask of a replica, and what a replica keeps beside its record.
//!
//! Sources: Rystsov, "CASPaxos: Replicated State Machines without logs" (2018) for the register; Burke et al., "Gryff"
//! (NSDI 2020) for ordering it with plain writes by carstamps. The rules are in `protocol::register`.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3Default;

use super::id::{OpId, Writer};
use super::limits::REMEMBERED_MAX;
use super::record::{Floor, Record};
use super::version::{Hlc, Version};

/// What a proposer prepares with: greater outbids. No two are the same, as no stamp is issued twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ballot {
    pub hlc: Hlc,
    pub writer: Writer,
}

/// What a replica keeps of a key that a register operation touched. Absent is the default: nothing promised beyond the
/// slot's floor, nothing accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Register {
    /// No lower ballot is listened to.
    pub promised: Ballot,
    pub accepted: Option<Accepted>,
}

/// A state of the register that was accepted under a ballot. Reads never see it: it becomes visible when its record is
/// written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Accepted {
    pub ballot: Ballot,
    /// The operation that made this state. Whoever accepts it again, unchanged, leaves it.
    pub op: OpId,
    /// `None`: the key has no record.
    pub record: Option<Record>,
    pub recent: Recent,
}

impl Accepted {
    /// The version of its record; the least one where it has none.
    pub fn version(&self) -> Version {
        self.record.as_ref().map_or_else(Version::default, |r| r.version)
    }
}

/// A replica's answer to `Prepare`: from now on it refuses lower ballots, and this is what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Promise {
    pub accepted: Option<Accepted>,
    pub record: Option<Record>,
    pub floor: Floor,
}

/// A request that carried an `Idempotency-Key`: what it is told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Idempotency {
    /// Of the key as the client sent it.
    pub key: u128,
    /// Of everything that decides what the request does.
    pub request: u128,
}

impl Idempotency {
    /// Hashes the key, and the parts of the request in order; each part is told from the next.
    pub fn of(key: &[u8], request: &[&[u8]]) -> Self {
        let mut hash = Xxh3Default::new();
        for part in request {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self { key: xxhash_rust::xxh3::xxh3_128(key), request: hash.digest128() }
    }
}

/// An answer that was given under an `Idempotency-Key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Remembered {
    pub request: Idempotency,
    pub answer: RememberedAnswer,
    /// What was written, or what the condition met (the least version where it met nothing).
    pub version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RememberedAnswer {
    Created,
    Replaced,
    ConditionFailed,
}

/// The last [`REMEMBERED_MAX`] answers of a key, oldest first. They travel through every accept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Recent(Vec<Remembered>);

impl Recent {
    pub const NONE: Recent = Recent(Vec::new());

    /// The newest of them are kept.
    pub fn new(mut entries: Vec<Remembered>) -> Self {
        let over = entries.len().saturating_sub(REMEMBERED_MAX);
        entries.drain(..over);
        Self(entries)
    }

    pub fn entries(&self) -> &[Remembered] {
        &self.0
    }

    /// The answer given under that key.
    pub fn find(&self, key: u128) -> Option<&Remembered> {
        self.0.iter().rev().find(|r| r.request.key == key)
    }

    /// With one more, in place of the oldest where there is no room.
    #[must_use]
    pub fn with(&self, entry: Remembered) -> Self {
        let mut entries = Vec::with_capacity(self.0.len() + 1);
        entries.extend_from_slice(&self.0);
        entries.push(entry);
        Self::new(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remembered(key: u128) -> Remembered {
        let request = Idempotency { key, request: 0 };
        Remembered { request, answer: RememberedAnswer::Created, version: Version::default() }
    }

    #[test]
    fn the_last_answers_are_remembered() {
        let recent = (0..10).fold(Recent::default(), |recent, key| recent.with(remembered(key)));
        assert_eq!(recent.entries().len(), REMEMBERED_MAX);
        assert!(recent.find(1).is_none() && recent.find(2).is_some() && recent.find(9).is_some());
    }

    #[test]
    fn a_request_is_told_by_each_of_its_parts() {
        let of = |key: &str, parts: &[&[u8]]| Idempotency::of(key.as_bytes(), parts);
        assert_eq!(of("k", &[b"a", b"b"]), of("k", &[b"a", b"b"]));
        assert_ne!(of("k", &[b"a", b"b"]).request, of("k", &[b"ab", b""]).request);
        assert_ne!(of("k", &[b"a"]).key, of("l", &[b"a"]).key);
    }
}
