//! What a node tells people about itself and its cluster: plain values, gathered from memory.

use crate::ports::{HintTotals, NodeInfo};
use crate::protocol::spread::Spread;
use crate::protocol::transfer::Transfer;
use crate::types::{ClusterId, Convergence, Epoch, InstanceId, Key, NodeNum, Slot, Token, Topology, TopologyChange};
use std::sync::Arc;

/// What gossip holds of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Liveness {
    Alive,
    Suspect,
    Down,
}

impl Liveness {
    pub fn as_str(self) -> &'static str {
        match self {
            Liveness::Alive => "alive",
            Liveness::Suspect => "suspect",
            Liveness::Down => "down",
        }
    }
}

/// One member as this node sees it.
#[derive(Clone, Debug)]
pub struct MemberView {
    pub node: NodeNum,
    pub instance: InstanceId,
    pub liveness: Liveness,
    /// Whether the coordinator here would ask it right now.
    pub reachable: bool,
    /// Slots it is a home replica of.
    pub slots: usize,
    /// Live addresses, else those of the topology.
    pub mesh_address: String,
    pub http_address: String,
    pub zone: Option<String>,
    pub weight: u32,
    /// What it said of itself, once it did.
    pub info: Option<NodeInfo>,
    /// Hints owed to it by all nodes, as far as they told.
    pub hints_owed: u64,
}

/// The cluster as this node sees it.
#[derive(Clone, Debug)]
pub struct ClusterView {
    pub asked: NodeNum,
    pub cluster_id: ClusterId,
    pub epoch: Epoch,
    pub rf: u8,
    pub members: Vec<MemberView>,
}

/// Whether the cluster can do its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterHealth {
    /// Every home replica of every slot is reachable.
    Healthy,
    /// Every slot can be read and written at quorum, stand-ins counted.
    Degraded,
    /// Some slot cannot.
    Unavailable,
}

#[derive(Clone, Debug)]
pub struct HealthView {
    pub health: ClusterHealth,
    /// Slots with all their home replicas reachable.
    pub slots_full: usize,
    /// Slots with a majority of home replicas reachable (those with all included).
    pub slots_at_quorum: usize,
    /// Slots that cannot be served at quorum even with stand-ins.
    pub slots_unavailable: usize,
    pub slots_total: usize,
    pub members_down: Vec<NodeNum>,
    /// On all nodes, as far as they told.
    pub hints_pending: u64,
}

/// Where a key lives.
#[derive(Clone, Debug)]
pub struct PlacementView {
    pub key: Key,
    pub token: Token,
    pub slot: Slot,
    pub home_replicas: Vec<NodeNum>,
    pub fallbacks: Vec<NodeNum>,
    /// Of both lists: who would be asked right now.
    pub reachable: Vec<NodeNum>,
}

/// One condition of readiness.
#[derive(Clone, Debug)]
pub struct Check {
    pub name: &'static str,
    pub ok: bool,
    /// What is missing, or a fact worth knowing.
    pub detail: String,
}

/// Whether the node answers clients, and what it waits for.
#[derive(Clone, Debug)]
pub struct Readiness {
    pub ready: bool,
    pub checks: Vec<Check>,
}

/// The hints this node keeps, per target.
#[derive(Clone, Debug)]
pub struct HintsView {
    pub asked: NodeNum,
    pub targets: Vec<(NodeNum, HintTotals)>,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// A member came, went, moved, hung or answered again.
    Membership,
    /// Another topology is in force.
    Topology,
    /// Copies were compared and made equal, or could not be.
    Repair,
    /// Hints went to their home replica, or were dropped.
    Hints,
    /// What was on a disk is not what was written.
    Damage,
}

impl EventKind {
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Membership => "membership",
            EventKind::Topology => "topology",
            EventKind::Repair => "repair",
            EventKind::Hints => "hints",
            EventKind::Damage => "damage",
        }
    }
}

/// Something that happened to the cluster, as the node that tells of it saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Counted from 1 since that node's start.
    pub number: u64,
    /// Of that node's wall clock.
    pub at_ms: u64,
    /// Whom it is about.
    pub node: NodeNum,
    pub kind: EventKind,
    /// Goes on from the name of `node`: "is down".
    pub text: String,
}

/// The ring, slot by slot, and how it spreads the copies.
#[derive(Clone, Debug)]
pub struct RingView {
    pub topology: Arc<Topology>,
    pub spread: Spread,
}

/// What a change of the topology would do. Nothing is changed by it.
#[derive(Clone, Debug)]
pub struct PlanView {
    pub asked: NodeNum,
    /// The epoch in force, from which the change would go.
    pub epoch: Epoch,
    pub change: TopologyChange,
    /// Copies asked for, before and after.
    pub rf: (u8, u8),
    pub transfer: Transfer,
    /// How the copies would be spread.
    pub spread: Spread,
    /// What each member would fetch, of the parts of `transfer` in their order: an estimate, in bytes of keys and values.
    pub bytes: Vec<u64>,
}

/// The change of the topology that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeView {
    /// The epoch in which it began, which names it.
    pub since: Epoch,
    /// The one in force.
    pub epoch: Epoch,
    pub change: TopologyChange,
    /// Slots that move.
    pub slots: u64,
    /// How far the members are that have something to do. None was asked yet where the change has just begun or ended.
    pub members: Vec<MemberProgress>,
    /// For whom it waits, and why.
    pub waiting_for: Vec<(NodeNum, String)>,
}

/// How far one member is with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberProgress {
    pub node: NodeNum,
    /// Slots to catch up on, and those of which it said that it has everything.
    pub slots: u64,
    pub done: u64,
    /// Fetched for that: keys, and the bytes of them and their contents.
    pub keys: u64,
    pub bytes: u64,
    /// Why it said nothing.
    pub error: Option<String>,
}

/// How the copies on each pair of members agree.
#[derive(Clone, Debug)]
pub struct ConvergenceView {
    pub asked: NodeNum,
    /// Pairs that share slots, in order of their numbers. `Err`: neither of the two could say, and why.
    pub pairs: Vec<(NodeNum, NodeNum, Result<Convergence, String>)>,
    /// Slots that move to other members, which nobody compares meanwhile.
    pub moving: usize,
    /// When each member last ended reading all its rows, wall milliseconds; `None`: not since it started, or it did not say.
    pub scrubs: Vec<(NodeNum, Option<u64>)>,
}

/// What a repair is to do.
#[derive(Clone, Debug, Default)]
pub struct RepairRequest {
    /// Count what differs and change nothing.
    pub dry_run: bool,
    /// Only these chunks (0 to 15); none: all.
    pub chunks: Vec<u8>,
}

/// Where a long-running operation is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationState {
    Running,
    Done,
    Failed(String),
    Aborted,
}

/// A long-running operation of this node, as it stands. Kept in memory: a restart forgets it (a repair that was cut off is
/// taken up by anti-entropy).
#[derive(Clone, Debug, PartialEq)]
pub struct OperationView {
    pub id: uuid::Uuid,
    /// What it is: `repair`.
    pub kind: &'static str,
    pub state: OperationState,
    pub started_ms: u64,
    /// Wall milliseconds; `None` while it runs.
    pub ended_ms: Option<u64>,
    pub dry_run: bool,
    /// Leaves compared, and to compare: as far as is known, with peers that were not reached yet taken to be like the others.
    pub done: u64,
    pub total: Option<u64>,
    /// Records found to differ; sent to peers, and taken from them.
    pub differing: u64,
    pub sent: u64,
    pub received: u64,
    /// Of those records and of the lists that were compared, both ways; in a dry run an estimate for the records.
    pub bytes: u64,
    /// Leaves compared a second since it began.
    pub per_second: f64,
    /// Milliseconds that are left at that rate; `None` when unknown.
    pub eta_ms: Option<u64>,
}

/// What deleted keys leave behind.
#[derive(Clone, Debug)]
pub struct TombstonesView {
    pub asked: NodeNum,
    pub members: Vec<MemberTombstones>,
    /// Who keeps tombstones from being purged, and why; in order.
    pub waiting_for: Vec<(NodeNum, String)>,
}

/// What one member said of its tombstones; nothing where it did not answer.
#[derive(Clone, Debug)]
pub struct MemberTombstones {
    pub node: NodeNum,
    pub tombstones: Option<u64>,
    pub oldest_ms: Option<u64>,
    pub purged: Option<u64>,
    pub raised_ms: Option<u64>,
}
