//! What clients did and were told, and what disks ever held: the material of the checks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use a3::node::request::{Failure, FailureKind, Found, Outcome, Receipt};
use a3::types::{Accepted, Condition, Content, Hlc, Key, Level, Record, Tags, Ttl, Version};
use parking_lot::Mutex;

use crate::network::Socket;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ask {
    Get,
    /// A value that no other request writes.
    Put(String),
    /// The same, with an end. Its time to live is an even number of milliseconds.
    PutFor(String, Ttl),
    /// Another end for the value that is there: an odd number of milliseconds, which no other request gives.
    Touch(Ttl),
    Delete,
}

/// Of what a conditional write depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wish {
    Nothing,
    /// `If-Match: "version"`
    Match(Version),
    /// `If-Match: *`
    Some,
    /// `If-None-Match: *`
    None,
}

impl Wish {
    pub(crate) fn condition(self) -> Condition {
        match self {
            Wish::Nothing => Condition::default(),
            Wish::Match(version) => Condition { if_match: Some(Tags::Of(vec![version])), ..Condition::default() },
            Wish::Some => Condition { if_match: Some(Tags::Any), ..Condition::default() },
            Wish::None => Condition { if_none_match: Some(Tags::Any), ..Condition::default() },
        }
    }

    /// Whether it is true where this version is live, or none is.
    pub(crate) fn holds(self, live: Option<Version>) -> bool {
        match self {
            Wish::Nothing => true,
            Wish::Match(version) => live == Some(version),
            Wish::Some => live.is_some(),
            Wish::None => live.is_none(),
        }
    }
}

/// What makes a write a register operation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Terms {
    pub(crate) wish: Wish,
    /// `Idempotency-Key`
    pub(crate) idempotency: Option<String>,
}

/// What a client sends: the same one may be sent again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Request {
    pub(crate) key: Key,
    pub(crate) level: Level,
    pub(crate) ask: Ask,
    /// `None`: a plain read or write, of its level.
    pub(crate) terms: Option<Terms>,
}

impl Request {
    pub(crate) fn plain(key: Key, level: Level, ask: Ask) -> Self {
        Self { key, level, ask, terms: None }
    }

    pub(crate) fn idempotency(&self) -> Option<&str> {
        self.terms.as_ref()?.idempotency.as_deref()
    }

    /// What it writes, as a record says it; `None` for reads, and where that depends on what is there.
    pub(crate) fn content(&self) -> Option<Option<String>> {
        match &self.ask {
            Ask::Get | Ask::Touch(_) => None,
            Ask::Put(text) | Ask::PutFor(text, _) => Some(Some(text.clone())),
            Ask::Delete => Some(None),
        }
    }

    /// The value it writes, if it brings one.
    pub(crate) fn text(&self) -> Option<&str> {
        if let Ask::Put(text) | Ask::PutFor(text, _) = &self.ask { Some(text) } else { None }
    }

    /// The milliseconds that a touch gives a value to live.
    pub(crate) fn touches(&self) -> Option<u64> {
        if let Ask::Touch(ttl) = &self.ask { Some(ttl.ms()) } else { None }
    }

    /// Whether it leaves a value behind, and whether that has an end.
    pub(crate) fn leaves(&self) -> (bool, bool) {
        (
            matches!(self.ask, Ask::Put(_) | Ask::PutFor(..) | Ask::Touch(_)),
            matches!(self.ask, Ask::PutFor(..) | Ask::Touch(_)),
        )
    }

    /// Whether it may have made that record.
    pub(crate) fn made(&self, held: &Held) -> bool {
        match self.touches() {
            Some(ttl) => held.ttl == Some(ttl),
            None => !held.is_touched() && self.content() == Some(held.text.clone()),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} {}", self.ask, self.key, self.level)?;
        let Some(terms) = &self.terms else { return Ok(()) };
        match &terms.wish {
            Wish::Nothing => {}
            Wish::Match(version) => write!(f, " if-match={version}")?,
            Wish::Some => write!(f, " if-match=*")?,
            Wish::None => write!(f, " if-none-match=*")?,
        }
        terms.idempotency.as_ref().map_or(Ok(()), |name| write!(f, " idempotency-key={name}"))
    }
}

/// What it was told.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    Wrote(Receipt),
    Found {
        version: Option<Version>,
        text: Option<String>,
        strict: bool,
    },
    Failed(Failure),
    /// The node died before it answered.
    Died,
    /// It did not answer in time, though it lived: a fault of its own.
    Stuck,
}

impl Told {
    pub(crate) fn found(found: &Found) -> Self {
        let record = found.record.as_ref();
        Told::Found { version: record.map(|r| r.version), text: record.and_then(text_of), strict: found.strict }
    }

    /// One word for it.
    pub(crate) fn word(&self) -> &'static str {
        let Told::Failed(failure) = self else {
            return match self {
                Told::Wrote(receipt) if !receipt.strict => "written, not strict",
                Told::Wrote(_) => "written",
                Told::Found { version: Some(version), .. } if version.is_end() => "read, ended",
                Told::Found { strict: false, .. } => "read, not strict",
                Told::Found { .. } => "read",
                Told::Died => "died",
                Told::Stuck | Told::Failed(_) => "stuck",
            };
        };
        match (failure.kind, failure.outcome) {
            (FailureKind::ConditionFailed, _) => "condition failed",
            (FailureKind::Conflict, _) => "conflict",
            (FailureKind::KeyReused, _) => "key reused",
            (FailureKind::ClockSkew { .. }, _) => "clock skew",
            (FailureKind::DiskFull, Some(Outcome::NotApplied)) => "disk full",
            (_, Some(Outcome::NotApplied)) => "not applied",
            (_, Some(Outcome::Applied)) => "applied, level not met",
            (_, Some(Outcome::Unknown)) => "unknown",
            (_, None) => "not read",
        }
    }
}

/// One request of a client. `began` and `ended` are places in the order of all such events.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) client: usize,
    pub(crate) at: Socket,
    /// The node's life, and its wall clock, milliseconds: when it was asked, and when it had told.
    pub(crate) life: u64,
    pub(crate) wall_ms: [u64; 2],
    /// Whether the node served when it was asked.
    pub(crate) served: bool,
    pub(crate) request: Request,
    pub(crate) began: u64,
    pub(crate) ended: u64,
    pub(crate) told: Told,
    /// What a majority of the home replicas' disks held at its end: this version, or each a newer one.
    pub(crate) settled: Option<Version>,
    /// Disks that held what it acknowledged, or the end that it told, or something newer, when it did: copies and hints.
    pub(crate) disks: usize,
    /// The greatest tombstone of the key that was purged anywhere by its end.
    pub(crate) buried: Option<Version>,
    /// The greatest version that a floor of its slot named by its end: what is written where there is nothing goes above it.
    pub(crate) floor: Version,
}

impl Operation {
    pub(crate) fn key(&self) -> &Key {
        &self.request.key
    }

    pub(crate) fn receipt(&self) -> Option<&Receipt> {
        if let Told::Wrote(receipt) = &self.told { Some(receipt) } else { None }
    }

    pub(crate) fn failure(&self) -> Option<&Failure> {
        if let Told::Failed(failure) = &self.told { Some(failure) } else { None }
    }

    pub(crate) fn outcome(&self) -> Option<Outcome> {
        self.failure().and_then(|f| f.outcome)
    }

    /// Acknowledged, and held by a majority of home replicas.
    pub(crate) fn strict_write(&self) -> Option<Version> {
        self.receipt().filter(|r| r.strict).map(|r| r.version)
    }

    /// What a strict read at quorum or above found: a version, or nothing. A tombstone that is purged is not found, and was
    /// there all the same.
    pub(crate) fn strict_read(&self) -> Option<Option<Version>> {
        match &self.told {
            Told::Found { version, strict: true, .. } if self.request.level != Level::One => {
                Some(version.or(self.buried))
            }
            _ => None,
        }
    }

    /// Its condition was false: of this live version, or of there being none.
    pub(crate) fn met(&self) -> Option<Option<Version>> {
        let failure = self.failure().filter(|f| f.kind == FailureKind::ConditionFailed)?;
        Some(failure.met.as_ref().and_then(|met| met.version))
    }

    /// It was told that nothing was written, whatever became of the same request sent another time.
    pub(crate) fn without_effect(&self) -> bool {
        let refused = |kind| matches!(kind, FailureKind::Conflict | FailureKind::KeyReused | FailureKind::Exhausted);
        let refused = self.failure().is_some_and(|f| refused(f.kind));
        refused || self.outcome() == Some(Outcome::NotApplied) || self.met().is_some()
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, at, request, began, ended, told, .. } = self;
        write!(f, "client {client} at {at}: {request} [{began}..{ended}] -> ")?;
        match told {
            Told::Wrote(r) => {
                let Receipt { version, strict, created, acked, hinted, .. } = r;
                write!(f, "{version:?} strict={strict} created={created} acked={acked:?} hinted={hinted:?}")
            }
            Told::Found { version, text, strict } => write!(f, "{version:?} {text:?} strict={strict}"),
            Told::Failed(failure) => {
                write!(f, "{} {:?} acked={:?} {:?}", failure.kind, failure.outcome, failure.acked, failure.failed)?;
                self.met().map_or(Ok(()), |met| write!(f, " met {met:?}"))
            }
            Told::Died => write!(f, "the node died"),
            Told::Stuck => write!(f, "no answer"),
        }
    }
}

/// The value of a record; `None` for a tombstone.
pub(crate) fn text_of(record: &Record) -> Option<String> {
    match &record.content {
        Content::Value { bytes, .. } => Some(String::from_utf8_lossy(bytes).into_owned()),
        Content::Tombstone => None,
    }
}

/// Every operation of one run, in the order they ended.
#[derive(Default)]
pub(crate) struct History {
    operations: Mutex<Vec<Operation>>,
    events: Mutex<u64>,
    tally: Mutex<Tally>,
}

/// How often what happened.
pub(crate) type Tally = BTreeMap<String, u64>;

impl History {
    /// The next place in the order of events.
    pub(crate) fn tick(&self) -> u64 {
        let mut events = self.events.lock();
        *events += 1;
        *events
    }

    pub(crate) fn ended(&self, operation: Operation) {
        let (request, told) = (&operation.request, &operation.told);
        let kind = match (&request.terms, &request.ask, request.level) {
            (Some(_), Ask::Touch(_), _) => "touch",
            (Some(_), ..) => "conditional",
            (_, Ask::Get, Level::Linearizable) => "linearizable read",
            (_, _, Level::Linearizable) => "linearizable write",
            (_, Ask::Get, _) => "plain read",
            _ => "plain write",
        };
        self.count(&format!("{kind}: {}", told.word()));
        self.operations.lock().push(operation);
    }

    /// Something happened, once more.
    pub(crate) fn count(&self, what: &str) {
        *self.tally.lock().entry(what.to_owned()).or_default() += 1;
    }

    pub(crate) fn tally(&self) -> Tally {
        self.tally.lock().clone()
    }

    pub(crate) fn operations(&self) -> Vec<Operation> {
        self.operations.lock().clone()
    }
}

/// What a record held.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Held {
    /// `None`: a tombstone.
    pub(crate) text: Option<String>,
    /// From its writing to its end, milliseconds.
    pub(crate) ttl: Option<u64>,
}

impl Held {
    pub(crate) fn of(record: &Record) -> Self {
        let ttl = record.expires_at_ms().map(|at| at - record.written.ms());
        Self { text: text_of(record), ttl }
    }

    /// Whether a touch made it, of a value that was there.
    pub(crate) fn is_touched(&self) -> bool {
        self.ttl.is_some_and(|ttl| ttl % 2 == 1)
    }
}

/// The content that each version of each key had.
pub(crate) type Contents = BTreeMap<(Key, Version), Held>;

/// Every record that any disk ever held, as its own or as a hint, and every one that a register accepted. Nothing is
/// ever forgotten, so that a version which comes back with another content is noticed.
#[derive(Default)]
pub(crate) struct Witness {
    /// The place in the order of events that was taken last.
    pub(crate) now: Mutex<u64>,
    seen: Mutex<BTreeMap<(Key, Version), Record>>,
    accepted: Mutex<BTreeSet<(Key, Version, Held)>>,
    /// The tombstones that the values which have an end will leave: their versions and checksums.
    ends: Mutex<BTreeSet<(Key, Version, u64)>>,
    conflicts: Mutex<Vec<String>>,
    buried: Mutex<BTreeMap<Key, (Version, Hlc)>>,
    /// When registers were dropped, in the order of events.
    forgotten: Mutex<Vec<(Key, u64)>>,
}

impl Witness {
    pub(crate) fn stored(&self, key: &Key, record: &Record) {
        self.will_end(key, record);
        let mut seen = self.seen.lock();
        let before = seen.entry((key.clone(), record.version)).or_insert_with(|| record.clone());
        if before != record {
            self.conflicts.lock().push(format!("one version, two contents: {key:?} {before:?} {record:?}"));
        }
    }

    pub(crate) fn accepted(&self, key: &Key, accepted: &Accepted) {
        if let Some(record) = &accepted.record {
            self.will_end(key, record);
            self.accepted.lock().insert((key.clone(), record.version, Held::of(record)));
        }
    }

    /// A disk dropped the tombstone, or only the register, of a key.
    pub(crate) fn purged(&self, key: &Key, tombstone: Option<&Record>, register: bool) {
        if let Some(record) = tombstone {
            let mut buried = self.buried.lock();
            let greatest = buried.entry(key.clone()).or_default();
            *greatest = (record.version, record.written).max(*greatest);
        }
        if register {
            self.forgotten.lock().push((key.clone(), *self.now.lock()));
        }
    }

    /// The greatest tombstone of the key that some disk dropped, and when it was written.
    pub(crate) fn buried(&self, key: &Key) -> Option<(Version, Hlc)> {
        self.buried.lock().get(key).copied()
    }

    /// When registers of the key were dropped.
    pub(crate) fn forgotten(&self, key: &Key) -> Vec<u64> {
        self.forgotten.lock().iter().filter(|(k, _)| k == key).map(|(_, at)| *at).collect()
    }

    fn will_end(&self, key: &Key, record: &Record) {
        if let Some(end) = record.end(key) {
            self.ends.lock().insert((key.clone(), end.version, end.checksum));
        }
    }

    pub(crate) fn ends(&self) -> BTreeSet<(Key, Version, u64)> {
        self.ends.lock().clone()
    }

    pub(crate) fn conflicts(&self) -> Vec<String> {
        self.conflicts.lock().clone()
    }

    /// Of rows and hints.
    pub(crate) fn seen(&self) -> Contents {
        self.seen.lock().iter().map(|(at, record)| (at.clone(), Held::of(record))).collect()
    }

    /// The same, whole.
    pub(crate) fn records(&self) -> BTreeMap<(Key, Version), Record> {
        self.seen.lock().clone()
    }

    /// States that some replica accepted; one version may be there with several contents, of which one at most is decided.
    pub(crate) fn ever_accepted(&self) -> BTreeSet<(Key, Version, Held)> {
        self.accepted.lock().clone()
    }
}
