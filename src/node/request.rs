//! What a client asks of a coordinator, and what it is told: honest about what really happened.

use tokio::time::Instant;

use crate::ports::Seen;
use crate::protocol::ring::OfSet;
use crate::types::{Condition, Idempotency, Key, Level, NodeNum, Record, Version};
pub use crate::types::{Edit, NewContent, Ttl};

/// A client's read.
#[derive(Clone, Debug)]
pub struct Get {
    pub key: Key,
    pub level: Level,
    pub deadline: Instant,
    /// Ask every home replica for its version, for showing them side by side.
    pub every_copy: bool,
}

/// What a read found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The newest record among those that count; a tombstone too, also in place of a value that has ended.
    pub record: Option<Record>,
    /// Whether a reader finds a value, by the coordinator's hybrid clock.
    pub live: bool,
    /// False where a stand-in was counted, among those that answered or those that hold what was found: it may miss writes
    /// that were strict, and the next read may miss what it found.
    pub strict: bool,
    /// The home replicas of the key.
    pub replicas: Vec<NodeNum>,
    /// What each node that answered holds: nothing, or which version.
    pub copies: Vec<(NodeNum, Option<Seen>)>,
}

/// A client's write.
#[derive(Clone, Debug)]
pub struct Put {
    pub key: Key,
    pub content: NewContent,
    pub level: Level,
    pub deadline: Instant,
}

/// A client's write that is decided by the key's register: it does something only where its condition is true, or it
/// carries an `Idempotency-Key`, or it changes the value that is there. It is linearizable.
#[derive(Clone, Debug)]
pub struct ConditionalPut {
    pub key: Key,
    pub condition: Condition,
    pub edit: Edit,
    pub idempotency: Option<Idempotency>,
    pub deadline: Instant,
}

/// A client's write, of either kind.
#[derive(Clone, Debug)]
pub enum Write {
    Plain(Put),
    Conditional(ConditionalPut),
}

/// What a write really did, from the replies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub version: Version,
    pub level: Level,
    pub replicas: Vec<NodeNum>,
    /// Home replicas that have it on disk.
    pub acked: Vec<NodeNum>,
    /// Home replica -> the node that keeps a hint for it.
    pub hinted: Vec<(NodeNum, NodeNum)>,
    /// False while fewer than a majority of home replicas hold it, or where fewer were heard before it was stamped
    /// again.
    pub strict: bool,
    /// No answering replica had a live value before.
    pub created: bool,
    /// When what was written ends, wall milliseconds. Not said of a request that was done before.
    pub expires_at_ms: Option<u64>,
}

/// What became of a write that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A majority of home replicas has it on disk, though the level asked for more.
    Applied,
    /// Nothing was sent, or every replica refused.
    NotApplied,
    Unknown,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Applied => "applied",
            Outcome::NotApplied => "not_applied",
            Outcome::Unknown => "unknown",
        }
    }
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FailureKind {
    /// Not enough replicas can be had now.
    #[error("not enough replicas can be reached")]
    Unavailable,
    /// Not enough of them answered in time.
    #[error("not enough replicas answered in time")]
    TimedOut,
    /// This node's clock is off, so it does not coordinate writes.
    #[error("this node's clock is {by_ms} ms off the median of its peers' clocks")]
    ClockSkew { by_ms: i64 },
    /// No topology yet, or not yet joined; for a write also: not a member, or no stamps could be reserved on disk.
    #[error("the node is not ready")]
    NotReady,
    /// Replicas have no room.
    #[error("the replicas' disks are full")]
    DiskFull,
    /// The condition of a conditional write is false; [`Failure::met`] says of what.
    #[error("the condition is false")]
    ConditionFailed,
    /// Other conditional writes were always first: they outbid this one, or it waited behind them until its time was up.
    #[error("other conditional writes were first until its time was up")]
    Conflict,
    /// The `Idempotency-Key` belongs to another request.
    #[error("the Idempotency-Key was used for another request")]
    KeyReused,
    /// The count of conditional writes on top of one plain write is used up.
    #[error("the key had too many conditional writes since its last plain one")]
    Exhausted,
}

impl FailureKind {
    /// Whether the operation was carried out, and this is what came of it: nothing failed but what the client asked.
    pub fn is_answer(self) -> bool {
        matches!(self, FailureKind::ConditionFailed | FailureKind::KeyReused)
    }
}

/// A failed operation: who was needed, who answered, and why the others did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    /// Of writes only.
    pub outcome: Option<Outcome>,
    pub level: Level,
    /// Answers needed; the most that one set of replicas needs, while the slot moves.
    pub required: usize,
    /// While the slot moves: what was before, and what is to be. `None` also where a proposer told only what it had in all.
    pub sets: Option<Box<[OfSet; 2]>>,
    pub acked: Vec<NodeNum>,
    pub failed: Vec<(NodeNum, String)>,
    /// Of [`FailureKind::ConditionFailed`] only.
    pub met: Option<Box<Met>>,
}

/// What a condition met that was false.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Met {
    /// `None`: there was no value.
    pub version: Option<Version>,
    /// The live record; `None` also where the answer is one that was given before, under an `Idempotency-Key`.
    pub record: Option<Record>,
}
