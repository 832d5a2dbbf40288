//! What nodes say to each other about themselves and their cluster: rare, one call each.

use std::sync::Arc;

use bytes::Bytes;

use super::change::{ChangesAsk, ChangesPage};
use super::id::{Epoch, InstanceId, NodeNum};
use super::key::{Key, Slot, Token};
use super::listing::{Scan, ScanPage};
use super::proposal::{Proposal, Verdict};
use super::purge::{PurgeReply, PurgeStep};
use super::record::{Floor, Record};
use super::register::{Ballot, Register};
use super::topology::{Topology, Vote};
use super::trace::Trace;
use super::tree::{Digest, Entry, Leaf, LeafSet, SlotSet, Span};
use super::version::Hlc;

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
    /// This topology was decided: store it. Epoch 1 is from the founder who proposed it; a later one follows from the one
    /// in force.
    Founded { topology: Arc<Topology> },
    /// A new instance asks for a place: a new one where its number is nobody's, or that of the member of its number. It held the
    /// directory of these instances before, so that none of them can be alive; without one of them the member must have been
    /// down for a while. It holds only while the topology is in force that the asked member told of, the one of that epoch: what is
    /// carried out later could let in again who was removed meanwhile, or take the place of somebody else.
    Replace { epoch: Epoch, newcomer: Announcement, succeeds: Vec<InstanceId> },
    /// Vote on the epoch after yours: promise that ballot, or accept this proposal under it.
    Vote { epoch: Epoch, ballot: Ballot, proposal: Option<Arc<Topology>> },
    /// Propose this conditional write, and give up after so many milliseconds. Never repeated, and never passed on again.
    Propose { proposal: Box<Proposal>, timeout_ms: u64, trace: Option<Arc<Trace>> },
    /// The digests of the sixteen parts of each of these spans, summed over the slots that asker and asked share under
    /// this epoch, but for those left out. At most [`limits::CHUNK_HASH_SPANS_MAX`](super::limits::CHUNK_HASH_SPANS_MAX)
    /// spans, all with the same number of digits.
    GetChunkHash { epoch: Epoch, left_out: SlotSet, spans: Vec<Span> },
    /// What the asker holds of these leaves, in order of tokens: what is newer on either side?
    FetchRange(Exchange),
    /// How do you and that member agree, compared anew?
    Converge { with: NodeNum, look: Look },
    /// Which leaves of a slot do you hold otherwise than by these digests, 256 in order? Asked before its pages by who has
    /// some of it already.
    CompareSlot { epoch: Epoch, slot: Slot, digests: Vec<Digest> },
    /// A page of what the asked node holds of a slot, in key order: all registers, and the records of these leaves.
    FetchSlot { epoch: Epoch, slot: Slot, leaves: LeafSet, after: Option<Key> },
    /// How far are you with the change of that epoch?
    CatchUp { epoch: Epoch },
    /// A step of purging tombstones.
    Purge { epoch: Epoch, step: PurgeStep },
    /// The keys of some slots, for a listing.
    Scan { epoch: Epoch, scan: Scan },
    /// What was stored lately, for a watch.
    Changes { epoch: Epoch, ask: ChangesAsk },
}

/// How closely two replicas are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Look {
    /// By chunks, from the sums in memory.
    #[default]
    Chunks,
    /// Down to the keys that differ.
    Keys,
    /// Every key, from the rows and not from the sums: what a damaged row hides is found, too.
    Deep,
}

/// How two replicas agree in one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkState {
    pub chunk: u8,
    pub agreement: Agreement,
    /// Since when it is so, wall milliseconds of the node that compared.
    pub since_ms: u64,
    /// When they were last found equal, and everything written up to then was; 0 when never since the node started.
    pub equal_up_to_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    Equal,
    Differs,
    /// A slot in it is being counted anew, or was never compared.
    Unknown,
}

/// How two members agree.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Convergence {
    /// Of the chunks in which they share slots.
    pub chunks: Vec<ChunkState>,
    /// Keys that differ, in order; not all of very many are named ([`limits::NAMES_MAX`](super::limits::NAMES_MAX)).
    pub keys: Vec<Key>,
    /// How many differ, at least; 0 where only chunks were looked at.
    pub differing: u64,
    /// When the one that answers last ended reading all its rows, wall milliseconds; 0 where it did not since it started.
    pub scrubbed_ms: u64,
}

/// How far a member is with a change of the topology.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CatchUp {
    /// Slots that it keeps when the change ends and that were others' before, too; and those of which it has everything.
    pub slots: u64,
    pub done: u64,
    /// It has all of them, and counts no more on what was before.
    pub caught_up: bool,
    /// Fetched for that since it began: keys, and the bytes of their contents.
    pub keys: u64,
    pub bytes: u64,
    /// Hints that it keeps for others.
    pub hints: u64,
    /// A slot that it does not get on with, and why; for a person.
    pub stuck: Option<String>,
}

/// One side's list of what it holds in some leaves of one slot.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {
    pub epoch: Epoch,
    pub slot: Slot,
    /// In order, each once.
    pub leaves: Vec<Leaf>,
    /// In order of tokens; at most [`limits::EXCHANGE_ENTRIES_MAX`](super::limits::EXCHANGE_ENTRIES_MAX), or one leaf.
    pub held: Vec<Entry>,
    /// Names the keys that differ and sends no records.
    pub names_only: bool,
    /// Compare all that was stamped up to this time, and nothing else; absent: leave out what is in flight.
    pub up_to: Option<Hlc>,
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
    /// The topology if there is one, and who takes part in a first start: the answerer, then everyone who
    /// announced themselves to it lately.
    Announced {
        topology: Option<Arc<Topology>>,
        heard: Vec<Announcement>,
    },
    /// To `Replace`: the topology that lists the newcomer, or none yet: ask again.
    Replaced {
        topology: Option<Arc<Topology>>,
    },
    /// To `Vote`: what stands now. A higher promise than was asked for is a refusal.
    Voted(Box<Vote>),
    /// What became of the proposal.
    Proposed(Box<Verdict>),
    ChunkHashes(ChunkHashes),
    Convergence(Box<Convergence>),
    Differences(Difference),
    /// To `CompareSlot`, and the slot's floor: what is missing from both sides' leaves alike is not below a higher one.
    SlotCompared {
        differing: LeafSet,
        floor: Floor,
    },
    /// To `FetchSlot`: each key with its record and its register, up to a page's bytes, and the slot's floor.
    SlotPage {
        entries: Vec<(Key, Option<Record>, Option<Register>)>,
        floor: Floor,
        /// Ask again after this key; `None` at the end of the slot.
        next: Option<Key>,
    },
    /// To `CatchUp`.
    CaughtUp(CatchUp),
    /// To the five above, to `Scan` and to `Changes`: the asked node holds another topology. Nothing was compared.
    WrongEpoch {
        epoch: Epoch,
    },
    /// To `Purge`.
    Purge(PurgeReply),
    /// To `Scan`.
    Scanned(ScanPage),
    /// To `Changes`.
    Changed(ChangesPage),
}

/// Answer to [`PeerRequest::GetChunkHash`].
#[derive(Clone, Debug, PartialEq)]
pub struct ChunkHashes {
    /// Slots whose sums the asked node does not know now. They are left out of the digests, too.
    pub left_out: SlotSet,
    /// Sixteen for each span, in order.
    pub digests: Vec<Digest>,
}

/// Answer to [`PeerRequest::FetchRange`].
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// What the asker holds newer, or alone.
    pub wanted: Vec<Token>,
    /// What the asked node holds newer, or alone; up to a message's bytes.
    pub records: Vec<(Key, Record)>,
    /// The keys of all that the asked node holds newer, or alone, where names only were asked for.
    pub names: Vec<Key>,
    /// There is more that did not fit: ask again once these are stored. Names that did not fit are left out.
    pub more: bool,
    /// The asked node serves clients: whoever goes on leaves it time for them.
    pub serving: bool,
}

/// A node that has no topology yet, as it presents itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    pub node: NodeNum,
    pub instance: InstanceId,
    pub zone: Option<String>,
    pub weight: u32,
    pub mesh_address: String,
    pub http_address: String,
    pub cluster_size: u16,
    pub rf: u8,
}

impl Announcement {
    /// The number, and the instance behind it.
    pub fn who(&self) -> (NodeNum, InstanceId) {
        (self.node, self.instance)
    }
}

/// Which facts about a node somebody holds: a higher (generation, info) is newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InfoStamp {
    pub node: NodeNum,
    pub instance: InstanceId,
    /// Grows with every start of the instance.
    pub generation: u64,
    /// Grows with every change within a generation: by [`InfoStamp::CHANGE`] when it is worth asking for at once.
    pub info: u64,
}

impl InfoStamp {
    /// One change of state, address or epoch. Smaller steps are changes of counters.
    pub const CHANGE: u64 = 1 << 32;

    /// Whether it is of the same instance and newer.
    pub fn newer_than(&self, other: &InfoStamp) -> bool {
        self.instance == other.instance && (self.generation, self.info) > (other.generation, other.info)
    }

    /// Whether it is newer by more than counters.
    pub fn changed_since(&self, other: &InfoStamp) -> bool {
        let change = |stamp: &InfoStamp| (stamp.generation, stamp.info / Self::CHANGE);
        self.instance == other.instance && change(self) > change(other)
    }
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
    /// Client operations begun in the last full second.
    pub requests_per_second: u64,
    /// What 99 of 100 client operations of the last ten seconds took at most, in microseconds; `None`: there were none.
    pub p99_us: Option<u64>,
}
