//! The ports: what the node's drivers need from the world, and what the world may ask of a node.
//!
//! Production plugs in SQLite, gRPC, the system clock and tokio; the simulation plugs in a simulated disk and network.
//! The ports are shaped for the hot path: [`Peers::send`] and [`Store::submit`] only queue, and batches form behind
//! them. Rare requests are futures.
//!
//! Invariants:
//! - Each request gets exactly one answer: [`ReplyTo`] answers [`PeerError::Lost`] when it is dropped unanswered.
//! - **Persist before you speak**: a [`ReplicaReply`] that acknowledges a change leaves the store only after that
//!   change is on disk (`DURABILITY` says what that means).
//! - What one request changes is one transaction.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use smallvec::SmallVec;
use tokio::time::Instant;
use uuid::Uuid;

pub use crate::protocol::founding::Announcement;
pub use crate::protocol::membership::InfoStamp;
use crate::types::{
    ClusterId, Epoch, Floor, Hlc, Identity, InstanceId, Key, NodeNum, Record, Slot, Token, Topology, TopologyError,
    Version,
};

// ------------------------------------------------------------------------------------------------ the node's world

/// Wall time. Timers use `tokio::time`, which is virtual in simulation.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970; may jump either way.
    fn wall_ms(&self) -> u64;
}

/// All randomness, identifiers too.
pub trait Entropy: Send + Sync {
    fn u64(&self) -> u64;

    /// A uniform number below `bound` (0 when `bound` is 0). For jitter and choice, not for secrets.
    fn below(&self, bound: u64) -> u64 {
        ((u128::from(self.u64()) * u128::from(bound)) >> 64) as u64
    }

    fn uuid(&self) -> Uuid {
        let bits = u128::from(self.u64()) << 64 | u128::from(self.u64());
        uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid()
    }
}

/// Starts a node's tasks, which die with it.
pub trait Spawn: Send + Sync {
    fn spawn(&self, task: BoxFuture<'static, ()>);
}

// --------------------------------------------------------------------------------------------------------- answers

/// What became of a request to a replica.
pub type Answer = Result<ReplicaReply, PeerError>;

/// Where answers arrive. `deliver` only notes the answer and wakes; it never blocks.
pub trait Inbox: Send + Sync {
    /// `tag` is what the request's [`ReplyTo`] was made with.
    fn deliver(&self, tag: u64, answer: Answer);
}

/// The one place where the answer to one request goes. Dropped unanswered, it answers [`PeerError::Lost`].
pub struct ReplyTo {
    inbox: Option<Arc<dyn Inbox>>,
    tag: u64,
}

impl ReplyTo {
    pub fn new(inbox: Arc<dyn Inbox>, tag: u64) -> Self {
        Self { inbox: Some(inbox), tag }
    }

    pub fn send(mut self, answer: Answer) {
        if let Some(inbox) = self.inbox.take() {
            inbox.deliver(self.tag, answer);
        }
    }
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        if let Some(inbox) = self.inbox.take() {
            inbox.deliver(self.tag, Err(PeerError::Lost));
        }
    }
}

impl fmt::Debug for ReplyTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReplyTo({})", self.tag)
    }
}

// -------------------------------------------------------------------------------------------- requests to a replica

/// How much of a record a read wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadPart {
    /// All of it.
    Record,
    /// Only its version and liveness, for comparing copies.
    Version,
}

/// The hot path: what a coordinator asks of one replica about one key. Travels batched.
#[derive(Clone, Debug, PartialEq)]
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
}

impl ReplicaRequest {
    pub fn key(&self) -> &Key {
        match self {
            ReplicaRequest::Read { key, .. } | ReplicaRequest::Write { key, .. } | ReplicaRequest::Hint { key, .. } => {
                key
            }
        }
    }

    /// Whether performing it changes a disk.
    pub fn writes(&self) -> bool {
        !matches!(self, ReplicaRequest::Read { .. })
    }
}

/// What stood in a row, without its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub version: Version,
    pub written: Hlc,
    /// Whether a reader finds a value there (no tombstone, not expired, by the replica's clock).
    pub live: bool,
    pub checksum: u64,
}

impl Seen {
    pub fn of(record: &Record, now: Hlc) -> Self {
        Self { version: record.version, written: record.written, live: record.is_live(now), checksum: record.checksum }
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
    /// The peer belongs to another cluster. Nothing was done.
    #[error("the peer belongs to another cluster")]
    ForeignCluster,
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

// ------------------------------------------------------------------------------------------------------- the mesh

/// What stands on top of every message between nodes, either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// `None` only before the sender has founded or joined a cluster.
    pub cluster: Option<ClusterId>,
    pub node: NodeNum,
    pub instance: InstanceId,
    pub hlc: Hlc,
    pub wall_ms: u64,
}

/// One request of the hot path.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaCall {
    /// The epoch its write sets were computed under.
    pub epoch: Epoch,
    pub request: ReplicaRequest,
    /// When the caller stops waiting. Absent on the receiving side, where it is not known.
    pub deadline: Option<Instant>,
}

/// A call and where its answer goes. One allocation-free batch of one for the local replica, a message's worth else.
#[derive(Debug)]
pub struct Delivery {
    pub call: ReplicaCall,
    pub reply_to: ReplyTo,
}

pub type Deliveries = SmallVec<[Delivery; 1]>;

/// Whom a rare request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A member that was introduced.
    Member(NodeNum),
    /// Whoever listens at `host:port` (seeds, gossip, first start).
    Address(String),
}

/// Rare requests between nodes, one call each.
#[derive(Clone, Debug, PartialEq)]
pub enum PeerRequest {
    /// A packet of the gossip protocol, opaque here.
    Gossip(Bytes),
    /// What do you know about nodes that I do not? The answer holds the asked node's own facts always, and every fact
    /// newer than this digest.
    NodeInfo { digest: Vec<InfoStamp> },
    /// Which topology do you hold?
    Topology,
    /// A new node looking for its cluster.
    Announce(Announcement),
    /// Epoch 1, proposed to every instance it names.
    Found { topology: Arc<Topology> },
    /// Epoch 1 was accepted by all: store it.
    Founded { topology: Arc<Topology> },
}

/// Answers to [`PeerRequest`], in the same order.
#[derive(Clone, Debug, PartialEq)]
pub enum PeerReply {
    /// To `Gossip`, `Found` (accepted and on disk), `Founded` (stored).
    Done,
    NodeInfo {
        infos: Vec<NodeInfo>,
        digest: Vec<InfoStamp>,
    },
    Topology {
        topology: Option<Arc<Topology>>,
    },
    /// The topology if there is one, and who takes part in a first start: the answerer, then everyone who announced
    /// themselves to it lately.
    Announced {
        topology: Option<Arc<Topology>>,
        heard: Vec<Announcement>,
    },
}

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeState {
    /// Looking for its cluster, or opening its store.
    Starting,
    Serving,
    /// Finishing what it has, taking nothing new.
    Draining,
    /// Alive, but its store has stopped writing.
    Failed,
}

/// What a node tells about itself; pulled, not gossiped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    pub stamp: InfoStamp,
    pub mesh_address: String,
    pub http_address: String,
    pub zone: Option<String>,
    pub weight: u32,
    pub state: NodeState,
    /// Of the program, e.g. `0.1.0`.
    pub program: String,
    pub epoch: Epoch,
    pub keys: u64,
    pub bytes: u64,
    /// Hints this node keeps: for whom, how many, how many bytes.
    pub hints: Vec<(NodeNum, u64, u64)>,
    /// Requests answered in the last second.
    pub requests_per_second: u64,
}

/// The other nodes.
pub trait Peers: Send + Sync {
    /// Queues one request; the local replica is reached the same way, without a wire. Answers exactly once.
    fn send(&self, to: NodeNum, call: ReplicaCall, reply_to: ReplyTo);

    /// One rare request.
    fn ask(
        &self,
        to: Destination,
        request: PeerRequest,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<PeerReply, PeerError>>;

    /// Says where a member is now, and which instance must answer there. Replaces what was said before.
    fn introduce(&self, node: NodeNum, instance: InstanceId, mesh_address: &str);

    /// Whether there is a connection, as far as is known. True for a peer never tried.
    fn connected(&self, to: NodeNum) -> bool;
}

/// The node as its peers see it: the mirror of [`Peers`].
pub trait PeerHandler: Send + Sync {
    /// The top of the next message to send.
    fn header(&self) -> Header;

    /// Looks at the top of a message that came, before anything in it is believed: observes its clocks, and refuses a
    /// foreign cluster or a message meant for another instance (`to`; `None` where the sender did not know).
    ///
    /// # Errors
    /// [`PeerError::ForeignCluster`], [`PeerError::WrongRecipient`]. Nothing was done.
    fn admit(&self, from: &Header, to: Option<InstanceId>) -> Result<(), PeerError>;

    /// A whole message of requests. Only queues.
    fn deliver(&self, from: NodeNum, batch: Deliveries);

    /// One rare request.
    fn answer(self: Arc<Self>, from: Header, request: PeerRequest) -> BoxFuture<'static, Result<PeerReply, PeerError>>;
}

// ------------------------------------------------------------------------------------------------------- the store

/// A request for this node's disk.
#[derive(Debug)]
pub struct Submission {
    pub token: Token,
    pub request: ReplicaRequest,
    pub reply_to: ReplyTo,
}

pub type Submissions = SmallVec<[Submission; 1]>;

/// One kept hint.
#[derive(Clone, Debug, PartialEq)]
pub struct Hint {
    pub target: NodeNum,
    pub slot: Slot,
    pub key: Key,
    pub record: Record,
    pub counted: bool,
    /// When it was kept, wall milliseconds.
    pub kept_at_ms: u64,
}

/// The hints kept for one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HintTotals {
    pub count: u64,
    pub bytes: u64,
    /// Wall milliseconds of the oldest, 0 when there is none.
    pub oldest_ms: u64,
    /// Dropped undelivered since the node started: too old, or no longer wanted.
    pub dropped: u64,
}

/// What the store holds. Counts are exact once `counted` is true; before, they are of the part counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreTotals {
    /// Live keys: tombstones are not counted.
    pub keys: u64,
    pub tombstones: u64,
    /// Bytes of keys and contents.
    pub bytes: u64,
    pub counted: bool,
    /// Of the database file and of its write-ahead log.
    pub file_bytes: u64,
    pub wal_bytes: u64,
    /// Whether it takes writes.
    pub writable: bool,
}

/// Why the store could not do a rare request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Nothing was written.
    #[error("the disk is full")]
    DiskFull,
    /// A write or sync failed; the store takes no more writes. What was acknowledged is on disk; the rest is unknown.
    #[error("the store has stopped writing: {0}")]
    Failed(String),
    /// What was read is not what was written. Nothing was written.
    #[error("damaged: {0}")]
    Damaged(String),
    /// The store is closing. Nothing was written.
    #[error("the store is closing")]
    Closing,
    #[error(transparent)]
    Topology(Arc<TopologyErrorText>),
}

/// A [`TopologyError`] as text, so that a [`StoreError`] can be cloned and compared.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored topology cannot be used: {0}")]
pub struct TopologyErrorText(pub String);

impl From<TopologyError> for StoreError {
    fn from(error: TopologyError) -> Self {
        StoreError::Topology(Arc::new(TopologyErrorText(error.to_string())))
    }
}

/// This node's disk. The replica's rules are pure functions in `protocol`; a store only loads, applies and saves.
pub trait Store: Send + Sync {
    /// Queues requests. Each is answered after what it changed is on disk. Reads see every change acknowledged before
    /// they were submitted.
    fn submit(&self, batch: Submissions);

    /// Tells the store what time the node's hybrid clock shows at least; replies judge expiry by it.
    fn observe(&self, now: Hlc);

    /// Hints for one node in (slot, key) order after `after`, at most `limit` of them and about 1 MiB.
    fn hints(
        &self,
        target: NodeNum,
        after: Option<(Slot, Key)>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<Hint>, StoreError>>;

    /// Deletes those of these hints that still hold the same version (a newer one stays).
    fn forget_hints(&self, delivered: Vec<(NodeNum, Slot, Key, Version)>)
    -> BoxFuture<'static, Result<(), StoreError>>;

    /// Drops uncounted hints kept before that wall time; answers how many.
    fn drop_hints_before(&self, kept_before_ms: u64) -> BoxFuture<'static, Result<u64, StoreError>>;

    /// Per target, in order. From memory.
    fn hint_totals(&self) -> Vec<(NodeNum, HintTotals)>;

    /// From memory.
    fn totals(&self) -> StoreTotals;

    /// Records of one slot in key order after `after`, at most `limit` of them and about 1 MiB.
    fn scan(
        &self,
        slot: Slot,
        after: Option<Key>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<(Key, Record)>, StoreError>>;

    /// Who this node is. From memory.
    fn identity(&self) -> Identity;

    /// Replaces the identity file; durable when it answers. Node and instance never change.
    fn save_identity(&self, identity: Identity) -> BoxFuture<'static, Result<(), StoreError>>;

    /// The committed topology.
    fn topology(&self) -> BoxFuture<'static, Result<Option<Topology>, StoreError>>;

    /// Commits a topology; durable when it answers. An older epoch than the stored one changes nothing.
    fn save_topology(&self, topology: Arc<Topology>) -> BoxFuture<'static, Result<(), StoreError>>;

    /// A founding proposal this node accepted but that is not known to be committed.
    fn proposal(&self) -> BoxFuture<'static, Result<Option<Topology>, StoreError>>;

    /// Accepts a founding proposal in place of the one before; durable when it answers.
    fn save_proposal(&self, topology: Arc<Topology>) -> BoxFuture<'static, Result<(), StoreError>>;

    /// Up to which reading the clock may issue stamps, as last reserved.
    fn clock_reservation(&self) -> BoxFuture<'static, Result<Hlc, StoreError>>;

    /// Reserves readings up to `until`; durable when it answers, whatever `DURABILITY` says.
    fn reserve_clock(&self, until: Hlc) -> BoxFuture<'static, Result<(), StoreError>>;

    /// Resolves when the store has stopped writing for good, with the reason.
    fn failed(&self) -> BoxFuture<'static, StoreError>;
}
