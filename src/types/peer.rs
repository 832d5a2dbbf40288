//! What nodes say to each other about themselves and their cluster: rare, one call each.

use std::sync::Arc;

use bytes::Bytes;

use super::id::{Epoch, InstanceId, NodeNum};
use super::proposal::{Proposal, Verdict};
use super::topology::Topology;

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
    /// Propose this conditional write, and give up after so many milliseconds. Never repeated, and never passed on again.
    Propose { proposal: Box<Proposal>, timeout_ms: u64 },
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
    /// What became of the proposal.
    Proposed(Box<Verdict>),
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
}
