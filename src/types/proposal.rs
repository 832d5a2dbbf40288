//! A conditional write on its way to whoever proposes it, and the verdict on its way back.

use super::condition::Condition;
use super::edit::Edit;
use super::id::{NodeNum, OpId};
use super::key::Key;
use super::record::Record;
use super::register::Idempotency;
use super::version::{Hlc, Version};

/// A write that is decided by the key's register.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proposal {
    pub key: Key,
    pub condition: Condition,
    /// What is done where the condition is true.
    pub edit: Edit,
    /// Drawn for this operation alone.
    pub op: OpId,
    pub idempotency: Option<Idempotency>,
    /// When a value ended of which the asker has told so: the proposer takes that for past, though its clock be behind.
    pub ended: Option<Hlc>,
}

/// What became of a proposal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It is written, on a majority of home replicas in every write set.
    Applied {
        version: Version,
        /// There was no live value before.
        created: bool,
        /// When what it wrote ends, wall milliseconds. Not said of an operation that was done before.
        expires_at_ms: Option<u64>,
        /// Home replicas that have it on disk.
        acked: Vec<NodeNum>,
    },
    /// The condition was false of what stands there: a live record, a tombstone (also in place of a value that has ended),
    /// or nothing at all. Definite: nothing was written.
    ConditionFailed { current: Option<Record> },
    /// As before, said again under an `Idempotency-Key`: the first request was refused when this version stood there
    /// (`None`: nothing did). Nothing was written.
    FailedBefore { version: Option<Version> },
    /// Its `Idempotency-Key` belongs to another request. Nothing was written.
    KeyReused,
    /// Others were always first, until it gave up. Definite: nothing was written.
    Conflict,
    /// The key had so many conditional writes since its last plain one that their count is used up. Nothing was written.
    Exhausted,
    /// No majority of home replicas could be had. Nothing was written.
    Unavailable { required: usize, acked: Vec<NodeNum>, failed: Vec<(NodeNum, String)> },
    /// It was proposed, and nobody could say in time what became of it.
    Unknown { required: usize, acked: Vec<NodeNum>, failed: Vec<(NodeNum, String)> },
}
