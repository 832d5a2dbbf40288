//! The ports: what the node's drivers need from the world, and what the world may ask of a node.
//!
//! Production plugs in SQLite, gRPC, the system clock and tokio; tests plug in a disk and a network of their own.
//! The ports are shaped for the hot path: [`Peers::send`] and [`Store::submit`] only queue, and batches form behind
//! them. Rare requests are futures.
//!
//! Invariants:
//! - Each request gets exactly one answer: [`ReplyTo`] answers [`PeerError::Lost`] when it is dropped unanswered.
//! - **Persist before you speak**: a [`ReplicaReply`] that acknowledges a change leaves the store only after that
//!   change is on disk (`DURABILITY` says what that means).
//! - What one request changes is one transaction.

mod backup;
mod changes;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use smallvec::SmallVec;
use tokio::time::Instant;
use uuid::Uuid;

pub use backup::{Backup, BackupError};
pub use changes::{CHANGES_MAX, ChangeLog};

pub use crate::types::{
    Announcement, Answer, InfoStamp, NodeInfo, NodeState, PeerError, PeerReply, PeerRequest, ReadPart, Refusal,
    ReplicaReply, ReplicaRequest, Seen,
};
use crate::types::{
    ClusterId, Dropped, Entry, Epoch, Floor, Hlc, Identity, InstanceId, Key, Leaf, NodeNum, Record, Register, Scan,
    ScanPage, Sealed, Slot, SlotDrop, SlotSet, Sum, Survey, Token, Topology, TopologyError, Trace, Version, Vote,
};

// ------------------------------------------------------------------------------------------------ the node's world

/// Wall time. Timers use `tokio::time`, which is virtual where a test pauses it.
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
    /// It is for healing, and no client waits for it: whatever clients ask for goes first.
    pub behind: bool,
    /// Whose request it belongs to, for log lines.
    pub trace: Option<Arc<Trace>>,
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
    /// As [`ReplicaCall::behind`]. It counts for what is written; reads are quick.
    pub behind: bool,
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
    /// Dropped undelivered since the node started, for their age.
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

/// What stands in some leaves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Holdings {
    /// In order of tokens.
    pub intact: Vec<(Entry, Key)>,
    /// The sums of these, leaf by leaf, where there are any.
    pub leaves: BTreeMap<Leaf, Sum>,
    /// Rows that failed their checksum: missing and suspect.
    pub damaged: Vec<Key>,
    /// Rows in the slot that no key belongs to, as slot and key of them read now: whose they were cannot be said.
    pub strays: Vec<(i64, Vec<u8>)>,
    /// Registers that are damaged, by the bytes of their keys as they read; looked for only where all leaves were asked for.
    /// What they promised is not known to anybody.
    pub lost: Vec<Vec<u8>>,
}

impl Holdings {
    /// Adds an intact one.
    pub fn add(&mut self, token: Token, key: Key, record: &Record) {
        self.leaves.entry(Leaf::of(token)).or_default().add(Sum::of(token, &record.version, record.checksum));
        self.intact.push((Entry::of(token, record), key));
    }

    /// The keys under which something lies that is not what was written.
    pub fn suspects(&self) -> impl Iterator<Item = Key> {
        let strays = self.strays.iter().filter_map(|(_, name)| Key::new(name.clone()).ok());
        let lost = self.lost.iter().filter_map(|name| Key::new(name.clone()).ok());
        self.damaged.iter().cloned().chain(strays).chain(lost)
    }
}

/// The records that were found, and how many keys were looked up for them.
pub type RecordPage = (Vec<(Key, Record)>, usize);

/// A key with its record and its register.
pub type SlotEntry = (Key, Option<Record>, Option<Register>);

/// A part of what a slot holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SlotPage {
    /// In key order.
    pub entries: Vec<SlotEntry>,
    pub floor: Floor,
    /// Where the page after begins; `None` at the end of the slot.
    pub next: Option<Key>,
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

/// What a replica keeps, and drops, for purging tombstones: the steps are those of `protocol::purge`.
pub trait Purging: Send + Sync {
    /// What is kept of these slots, in order.
    fn survey(&self, slots: SlotSet) -> BoxFuture<'static, Result<Vec<Survey>, StoreError>>;

    /// The greatest version of the tombstones of a slot that were written up to that time; the least of all where there are
    /// none.
    fn greatest_tombstone(&self, slot: Slot, up_to: Hlc) -> BoxFuture<'static, Result<Version, StoreError>>;

    /// The slots with hints written up to that time, for whichever node.
    fn hinted(&self, up_to: Hlc) -> BoxFuture<'static, Result<SlotSet, StoreError>>;

    /// Refuses ballots up to that time in these slots from now on, durably whatever `DURABILITY` says, and names what
    /// their registers accepted above their records by then.
    fn seal(&self, slots: SlotSet, up_to: Hlc) -> BoxFuture<'static, Result<Vec<Sealed>, StoreError>>;

    /// Merges these floors into those that are kept; durable when it answers, whatever `DURABILITY` says. Comes into
    /// force in the order in which it was asked for among all changes.
    fn raise(&self, floors: Vec<(Slot, Floor)>) -> BoxFuture<'static, Result<(), StoreError>>;

    /// Drops what may be forgotten, each key with its register in one transaction. A slot whose floor is below the one
    /// that is named is left as it is.
    fn purge(&self, drops: Vec<SlotDrop>) -> BoxFuture<'static, Result<Dropped, StoreError>>;
}

/// This node's disk. The replica's rules are pure functions in `protocol`; a store only loads, applies and saves.
pub trait Store: Purging {
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

    /// The keys of some slots in order, with the newest of record and hints of each: from one snapshot, which has all that was
    /// acknowledged before. It is bounded in rows and bytes, and tells up to where it came. A damaged row is told as such;
    /// where it cannot be said whose a row is, its slot is named.
    fn scan(&self, scan: Scan) -> BoxFuture<'static, Result<ScanPage, StoreError>>;

    /// What it kept lately.
    fn changes(&self) -> Arc<ChangeLog>;

    /// The sum of each slot, in order; `None` while the store counts it anew. From memory, and of all that was
    /// acknowledged.
    fn slot_sums(&self) -> Vec<Option<Sum>>;

    /// The sums of a slot's 256 leaves, in order; `None` while the store counts the slot anew. From memory.
    fn leaf_sums(&self, slot: Slot) -> Option<Vec<Sum>>;

    /// Has the slot's sums counted anew from its rows, in the background: they were found to be off.
    fn count_anew(&self, slot: Slot);

    /// What stands in these leaves of one slot, from its rows, each verified: in order of tokens.
    fn holdings(&self, slot: Slot, leaves: Vec<Leaf>) -> BoxFuture<'static, Result<Holdings, StoreError>>;

    /// Removes these of the slot's rows that are not what was written, by slot and key as they read: damaged ones and strays.
    /// One that is sound by now stays. Answers how many went. Only for rows of which no other replica has anything.
    fn discard(&self, slot: Slot, rows: Vec<(i64, Vec<u8>)>) -> BoxFuture<'static, Result<u64, StoreError>>;

    /// Gives the whole database up: it stops writing for good, and a store that others can replace is moved aside at the next
    /// start. Only for damage that nobody can mend, once the others have what is here.
    fn condemn(&self, what: &str);

    /// The records of these keys, in the order asked, until about 1 MiB is full; a damaged or missing one is left out.
    /// Says how many of the keys were looked up.
    fn records(&self, keys: Vec<(Slot, Key)>) -> BoxFuture<'static, Result<RecordPage, StoreError>>;

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

    /// This member's vote on the epoch after its own.
    fn vote(&self) -> BoxFuture<'static, Result<Option<Vote>, StoreError>>;

    /// Replaces the vote; durable when it answers, whatever `DURABILITY` says.
    fn save_vote(&self, vote: Vote) -> BoxFuture<'static, Result<(), StoreError>>;

    /// All that is held of a slot, in key order after `after`, about 1 MiB of it, and after which key to go on. What was
    /// acknowledged before the first page was asked for is in the pages.
    ///
    /// Fails with `Damaged` where a record or register of the page cannot be told for certain: whoever asks relies on all
    /// of it.
    fn slot_page(&self, slot: Slot, after: Option<Key>) -> BoxFuture<'static, Result<SlotPage, StoreError>>;

    /// Takes over what another replica holds of these keys, where it is newer: the greater record, the higher promise,
    /// the state accepted under the higher ballot. Durable when it answers, whatever `DURABILITY` says.
    fn absorb(&self, entries: Vec<(Token, SlotEntry)>) -> BoxFuture<'static, Result<(), StoreError>>;

    /// Drops those of these keys' records that the floor covers; a register, if there is one, stays. Only for a replica that
    /// is being rebuilt, of what its sources do not hold. Answers how many went.
    fn drop_covered(&self, floor: Floor, keys: Vec<(Token, Key)>) -> BoxFuture<'static, Result<u64, StoreError>>;

    /// Removes all that is held of these slots (records with their ends, registers, the list of tombstones), as this is no home
    /// replica of theirs any more, or gets them anew and must begin from nothing. Hints stay, and floors and seals, which hold
    /// for whoever keeps the slot; watches are not told. It goes step by step, so that clients get in between; what comes to
    /// these slots meanwhile may go, too. Durable when it answers, whatever `DURABILITY` says; cut short, it is done again.
    /// Answers how many records and registers went.
    fn drop_slots(&self, slots: SlotSet) -> BoxFuture<'static, Result<u64, StoreError>>;

    /// Up to which reading the clock may issue stamps, as last reserved.
    fn clock_reservation(&self) -> BoxFuture<'static, Result<Hlc, StoreError>>;

    /// Reserves readings up to `until`; durable when it answers, whatever `DURABILITY` says.
    fn reserve_clock(&self, until: Hlc) -> BoxFuture<'static, Result<(), StoreError>>;

    /// No stamp above `last` was issued, and none will be in this life: the reservation ends there.
    fn release_clock(&self, last: Hlc) -> BoxFuture<'static, Result<(), StoreError>>;

    /// Writes the tombstones of at most `limit` values whose time is up at `now`, and says which. It was fewer than `limit`
    /// where none is left.
    fn end_due(&self, now: Hlc, limit: usize) -> BoxFuture<'static, Result<Vec<(Key, Record)>, StoreError>>;

    /// A copy of everything here, as of one moment after it was asked for, verified row by row. One at a time.
    fn backup(&self) -> BoxFuture<'static, Result<Backup, BackupError>> {
        Box::pin(async { Err(BackupError::Failed("this store has no file".into())) })
    }

    /// Resolves when the store has stopped writing for good, with the reason.
    fn failed(&self) -> BoxFuture<'static, StoreError>;
}
