//! What clients did and were told, and what disks ever held: the material of the checks.

use std::collections::BTreeMap;
use std::fmt;

use a3::node::request::{Failure, Found, Outcome, Receipt};
use a3::types::{Content, Key, Level, NodeNum, Record, Version};
use parking_lot::Mutex;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Get,
    /// A value that no other request writes.
    Put(String),
    Delete,
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
}

/// One request of a client. `began` and `ended` are places in the order of all such events.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) client: usize,
    pub(crate) node: NodeNum,
    pub(crate) key: Key,
    pub(crate) level: Level,
    pub(crate) ask: Ask,
    pub(crate) began: u64,
    pub(crate) ended: u64,
    pub(crate) told: Told,
    /// What a majority of the home replicas' disks held at its end: this version, or each a newer one.
    pub(crate) settled: Option<Version>,
    /// Disks that held what it acknowledged, or something newer, when it was acknowledged: copies and hints.
    pub(crate) disks: usize,
}

impl Operation {
    pub(crate) fn receipt(&self) -> Option<&Receipt> {
        if let Told::Wrote(receipt) = &self.told { Some(receipt) } else { None }
    }

    pub(crate) fn outcome(&self) -> Option<Outcome> {
        if let Told::Failed(failure) = &self.told { failure.outcome } else { None }
    }

    /// Acknowledged, and held by a majority of home replicas.
    pub(crate) fn strict_write(&self) -> Option<Version> {
        self.receipt().filter(|r| r.strict).map(|r| r.version)
    }

    /// What it wrote, as a record says it; `None` for reads.
    pub(crate) fn content(&self) -> Option<Option<String>> {
        match &self.ask {
            Ask::Get => None,
            Ask::Put(text) => Some(Some(text.clone())),
            Ask::Delete => Some(None),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, node, key, level, ask, began, ended, told, .. } = self;
        write!(f, "client {client} at {node}: {ask:?} {key:?} {level} [{began}..{ended}] -> ")?;
        match told {
            Told::Wrote(r) => {
                write!(f, "{:?} strict={} acked={:?} hinted={:?}", r.version, r.strict, r.acked, r.hinted)
            }
            Told::Found { version, text, strict } => write!(f, "{version:?} {text:?} strict={strict}"),
            Told::Failed(failure) => {
                write!(f, "{} {:?} acked={:?} {:?}", failure.kind, failure.outcome, failure.acked, failure.failed)
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
}

impl History {
    /// The next place in the order of events.
    pub(crate) fn tick(&self) -> u64 {
        let mut events = self.events.lock();
        *events += 1;
        *events
    }

    pub(crate) fn ended(&self, operation: Operation) {
        self.operations.lock().push(operation);
    }

    pub(crate) fn operations(&self) -> Vec<Operation> {
        self.operations.lock().clone()
    }
}

/// Every record that any disk ever held, as its own or as a hint.
#[derive(Default)]
pub(crate) struct Witness {
    seen: Mutex<BTreeMap<(Key, Version), Option<String>>>,
    conflicts: Mutex<Vec<String>>,
}

impl Witness {
    pub(crate) fn stored(&self, key: &Key, record: &Record) {
        let text = text_of(record);
        let mut seen = self.seen.lock();
        let before = seen.entry((key.clone(), record.version)).or_insert_with(|| text.clone());
        if *before != text {
            let conflict = format!("one version, two contents: {key:?} {:?} {before:?} {text:?}", record.version);
            self.conflicts.lock().push(conflict);
        }
    }

    pub(crate) fn conflicts(&self) -> Vec<String> {
        self.conflicts.lock().clone()
    }

    pub(crate) fn seen(&self) -> BTreeMap<(Key, Version), Option<String>> {
        self.seen.lock().clone()
    }
}
