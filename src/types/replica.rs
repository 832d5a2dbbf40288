//! What is asked of one replica about one key, and what it answers: the words of the hot path.

use std::sync::Arc;

use super::id::{ClusterId, NodeNum};
use super::key::Key;
use super::record::{Floor, Record};
use super::register::{Accepted, Ballot, Promise};
use super::topology::Topology;
use super::version::{Hlc, Version};

/// How much of a record a read wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReadPart {
    /// All of it.
    Record,
    /// Only its version and liveness, for comparing copies.
    Version,
}

/// The hot path: what a coordinator asks of one replica about one key. Travels batched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ReplicaRequest {
    Read {
        key: Key,
        part: ReadPart,
        /// Also look at the hints this node keeps for the key (asked of a stand-in).
        hints: bool,
    },
    Write {
        key: Key,
        record: Record,
    },
    /// Keep the record for its home replica.
    Hint {
        target: NodeNum,
        key: Key,
        record: Record,
        /// It may count towards the write's level: no age limit, only delivery ends it.
        counted: bool,
    },
    /// Listen to no lower ballot from now on, and say what you hold.
    Prepare {
        key: Key,
        ballot: Ballot,
    },
    /// Accept this state of the key's register. Reads never see it.
    Accept {
        key: Key,
        accepted: Box<Accepted>,
    },
}

impl ReplicaRequest {
    pub fn key(&self) -> &Key {
        match self {
            ReplicaRequest::Read { key, .. }
            | ReplicaRequest::Write { key, .. }
            | ReplicaRequest::Hint { key, .. }
            | ReplicaRequest::Prepare { key, .. }
            | ReplicaRequest::Accept { key, .. } => key,
        }
    }

    /// Whether performing it changes a disk.
    pub fn writes(&self) -> bool {
        !matches!(self, ReplicaRequest::Read { .. })
    }
}

/// What stood in a row, without its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seen {
    pub version: Version,
    pub written: Hlc,
    /// Whether a reader finds a value there (no tombstone, not expired, by the replica's clock).
    pub live: bool,
    pub tombstone: bool,
    pub checksum: u64,
}

impl Seen {
    pub fn of(record: &Record, now: Hlc) -> Self {
        Self {
            version: record.version,
            written: record.written,
            live: record.is_live(now),
            tombstone: record.is_tombstone(),
            checksum: record.checksum,
        }
    }

    /// Whether it loses against the other: the order of [`Record::beats`].
    pub fn is_older_than(&self, other: &Seen) -> bool {
        (self.version, self.tombstone, self.checksum) < (other.version, other.tombstone, other.checksum)
    }
}

/// A replica's answer.
#[derive(Clone, Debug, PartialEq)]
pub enum ReplicaReply {
    /// To a read of [`ReadPart::Record`].
    Record { record: Option<Record>, floor: Floor },
    /// To a read of [`ReadPart::Version`].
    Version { seen: Option<Seen>, floor: Floor },
    /// The record is on disk; this is what it replaced.
    Stored { replaced: Option<Seen> },
    /// Something at least as new stands there already; nothing changed.
    Dominated { by: Seen },
    /// Nothing is stored and the record may have been purged here; nothing changed.
    BelowFloor { floor: Floor },
    /// The hint (or a newer one) is on disk.
    Hinted,
    /// To `Prepare`: the promise is on disk.
    Promised(Box<Promise>),
    /// To `Accept`: it is on disk.
    Accepted,
    /// To `Prepare` and `Accept`: a ballot as high, or higher, is promised already. Nothing changed.
    Outbid { promised: Ballot },
    /// The request was computed under an older topology than the replica's. Nothing changed.
    WrongEpoch { topology: Arc<Topology> },
    /// Nothing changed, and the same request will be refused again until the reason ends.
    Refused(Refusal),
}

/// Why a replica refuses. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the stamp is {ahead_ms} ms ahead of the replica's clock")]
    ClockSkew { ahead_ms: u64 },
    #[error("the disk is full")]
    DiskFull,
    #[error("the store has stopped writing")]
    NotWriting,
    #[error("the hints kept here reached their limit")]
    HintsFull,
    #[error("the row is damaged")]
    Damaged,
    #[error("the value is {bytes} bytes long, over this replica's limit")]
    TooLarge { bytes: u64 },
    #[error("the record does not match its checksum")]
    Corrupt,
    #[error("the node is not a member of the topology")]
    NotMember,
    #[error("the node is not ready")]
    NotReady,
    #[error("the node has too many requests under way")]
    Overloaded,
}

/// Why there is no answer from a peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Not connected; nothing was sent.
    #[error("unreachable")]
    Unreachable,
    /// Too much is queued for this peer; nothing was sent.
    #[error("overloaded")]
    Overloaded,
    /// The deadline passed; it may have been done.
    #[error("timed out")]
    TimedOut,
    /// The connection or the peer went away; it may have been done.
    #[error("connection lost")]
    Lost,
    /// Another instance than the one addressed listens there. Nothing was done.
    #[error("another instance answers at that address")]
    WrongRecipient,
    /// The peer belongs to another cluster, this one. Nothing was done.
    #[error("the peer belongs to another cluster, {0}")]
    ForeignCluster(ClusterId),
    /// The peer's answer, or our request, was not understood. Nothing was done.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// The peer understood and refuses. Nothing was done.
    #[error("refused: {0}")]
    Refused(String),
}

impl PeerError {
    /// Whether the request may have been carried out all the same.
    pub fn maybe_done(&self) -> bool {
        matches!(self, PeerError::TimedOut | PeerError::Lost)
    }
}

/// What became of a request to a replica.
pub type Answer = Result<ReplicaReply, PeerError>;
