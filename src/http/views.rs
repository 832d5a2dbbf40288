//! What a node tells of its cluster, in JSON.

use serde::Serialize;
use utoipa::ToSchema;

use super::bodies::{NodeName, key_texts, names};
use super::change::kind;
use crate::node::views::{ClusterHealth, ClusterView, HealthView, HintsView, MemberView, PlacementView, RingView};
use crate::ports::NodeState;
use crate::protocol::spread::Share;
use crate::types::{NodeNum, Slot, Topology};

/// The cluster, as the asked node sees it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Cluster)]
pub(super) struct ClusterBody {
    /// The node that was asked.
    node: NodeName,
    #[schema(format = "uuid")]
    cluster_id: String,
    /// The number of the topology.
    epoch: u64,
    /// Copies of each key that the cluster keeps, members permitting.
    rf: u8,
    members: Vec<MemberBody>,
}

impl From<ClusterView> for ClusterBody {
    fn from(view: ClusterView) -> Self {
        Self {
            node: NodeName(view.asked),
            cluster_id: view.cluster_id.to_string(),
            epoch: view.epoch.0,
            rf: view.rf,
            members: view.members.into_iter().map(MemberBody::from).collect(),
        }
    }
}

/// A member. What only it can know is null until it has told.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Member)]
pub(super) struct MemberBody {
    id: NodeName,
    #[schema(format = "uuid")]
    instance: String,
    /// What gossip holds of it: `alive`, `suspect` or `down`.
    #[schema(example = "alive")]
    liveness: &'static str,
    /// Whether the asked node would send it requests now.
    reachable: bool,
    /// Slots it is a home replica of, of 256.
    slots: usize,
    /// `host:port` of the mesh.
    #[schema(example = "127.0.0.1:50051")]
    mesh_address: String,
    /// `host:port` of REST.
    #[schema(example = "127.0.0.1:8001")]
    http_address: String,
    zone: Option<String>,
    weight: u32,
    /// Hints owed to it by all nodes, as far as they told.
    hints_owed: u64,
    /// `starting`, `serving`, `draining` or `failed`.
    state: Option<&'static str>,
    /// The version of the program.
    program: Option<String>,
    /// The topology it holds.
    epoch: Option<u64>,
    /// Live keys it keeps.
    keys: Option<u64>,
    /// Bytes of keys and values it keeps.
    bytes: Option<u64>,
    /// Client operations begun in the last full second.
    requests_per_second: Option<u64>,
    /// Milliseconds that 99 of 100 client operations of the last ten seconds took at most, to an eighth; null when there
    /// were none.
    latency_p99_ms: Option<f64>,
    /// The hints it keeps for others.
    hints_kept: Option<Vec<HintsKeptBody>>,
}

impl From<MemberView> for MemberBody {
    fn from(view: MemberView) -> Self {
        let info = view.info.as_ref();
        Self {
            id: NodeName(view.node),
            instance: view.instance.to_string(),
            liveness: view.liveness.as_str(),
            reachable: view.reachable,
            slots: view.slots,
            hints_owed: view.hints_owed,
            state: info.map(|i| state_name(i.state)),
            program: info.map(|i| i.program.clone()),
            epoch: info.map(|i| i.epoch.0),
            keys: info.map(|i| i.keys),
            bytes: info.map(|i| i.bytes),
            requests_per_second: info.map(|i| i.requests_per_second),
            latency_p99_ms: info.and_then(|i| i.p99_us).map(|us| us as f64 / 1000.0),
            hints_kept: info.map(|i| i.hints.iter().map(HintsKeptBody::from).collect()),
            mesh_address: view.mesh_address,
            http_address: view.http_address,
            zone: view.zone,
            weight: view.weight,
        }
    }
}

/// Hints that a node keeps for another.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = HintsKept)]
pub(super) struct HintsKeptBody {
    /// Whom they are for.
    node: NodeName,
    count: u64,
    bytes: u64,
}

impl From<&(NodeNum, u64, u64)> for HintsKeptBody {
    fn from((node, count, bytes): &(NodeNum, u64, u64)) -> Self {
        Self { node: NodeName(*node), count: *count, bytes: *bytes }
    }
}

pub(super) fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Starting => "starting",
        NodeState::Serving => "serving",
        NodeState::Draining => "draining",
        NodeState::Failed => "failed",
    }
}

/// Whether the cluster can do its work.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Health)]
pub(super) struct HealthBody {
    /// `healthy` (every home replica of every slot is reachable), `degraded` (every slot can be read and written at
    /// quorum, stand-ins counted) or `unavailable` (some slot cannot).
    #[schema(example = "healthy")]
    status: &'static str,
    /// Slots with all their home replicas reachable.
    slots_full: usize,
    /// Slots with a majority of their home replicas reachable, those with all included.
    slots_at_quorum: usize,
    /// Slots that cannot be served at quorum even with stand-ins.
    slots_unavailable: usize,
    slots_total: usize,
    members_down: Vec<NodeName>,
    /// Hints that wait for delivery, on all nodes, as far as they told.
    hints_pending: u64,
}

impl From<HealthView> for HealthBody {
    fn from(view: HealthView) -> Self {
        let status = match view.health {
            ClusterHealth::Healthy => "healthy",
            ClusterHealth::Degraded => "degraded",
            ClusterHealth::Unavailable => "unavailable",
        };
        Self {
            status,
            slots_full: view.slots_full,
            slots_at_quorum: view.slots_at_quorum,
            slots_unavailable: view.slots_unavailable,
            slots_total: view.slots_total,
            members_down: names(&view.members_down),
            hints_pending: view.hints_pending,
        }
    }
}

/// The ring: for each slot its home replicas, and how it spreads the copies.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Ring)]
pub(super) struct RingBody {
    #[schema(format = "uuid")]
    cluster_id: String,
    epoch: u64,
    rf: u8,
    /// In order of the slots.
    slots: Vec<SlotBody>,
    members: Vec<ShareBody>,
    /// Whether every member keeps what its weight gives it, to within one slot.
    even: bool,
    /// Slots whose copies stand in fewer zones than they could.
    slots_in_fewer_zones: usize,
    /// What a person should know of the ring.
    warnings: Vec<String>,
    /// The change of the topology that is under way; null where there is none. Until it ends what was before counts too.
    moving: Option<MovingBody>,
}

/// One of 256 pieces of the keyspace.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Slot)]
pub(super) struct SlotBody {
    /// The first byte of the tokens in it, in hexadecimal.
    #[schema(example = "0c", pattern = "^[0-9a-f]{2}$")]
    slot: String,
    /// The home replicas; the first is asked first. While it moves, those that it is to have.
    replicas: Vec<NodeName>,
    /// While it moves: those that it had.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    before: Option<Vec<NodeName>>,
}

/// What a member keeps of all copies.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Share)]
pub(super) struct ShareBody {
    node: NodeName,
    zone: Option<String>,
    weight: u32,
    /// Slots it is a home replica of, of 256.
    slots: usize,
    /// Its part of all copies, 0 to 1.
    share: f64,
    /// Slots that its weight alone would give it.
    slots_by_weight: usize,
}

impl From<Share> for ShareBody {
    fn from(share: Share) -> Self {
        Self {
            node: NodeName(share.node),
            zone: share.zone,
            weight: share.weight,
            slots: share.slots,
            share: share.part,
            slots_by_weight: share.by_weight,
        }
    }
}

/// A change of the topology that is under way, as the ring shows it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Moving)]
pub(super) struct MovingBody {
    /// The epoch in which it began.
    since: u64,
    /// `join`, `leave`, `weight`, `zone` or `replication-factor`.
    #[schema(example = "leave")]
    change: &'static str,
    /// The same in words.
    #[schema(example = "n2 leaves")]
    text: String,
    /// Copies of each key that were asked for before.
    rf_before: u8,
    /// Slots that move.
    slots: usize,
}

impl MovingBody {
    fn of(topology: &Topology) -> Option<Self> {
        let moving = topology.moving.as_ref()?;
        Some(Self {
            since: moving.since.0,
            change: kind(&moving.change),
            text: moving.change.to_string(),
            rf_before: moving.rf,
            slots: topology.moving_slots().count(),
        })
    }
}

impl From<RingView> for RingBody {
    fn from(RingView { topology, spread }: RingView) -> Self {
        let slot = |slot: Slot| SlotBody {
            slot: slot.to_string(),
            replicas: names(topology.home_replicas(slot)),
            before: topology.replicas_before(slot).map(names),
        };
        Self {
            cluster_id: topology.cluster_id.to_string(),
            epoch: topology.epoch.0,
            rf: topology.rf,
            slots: Slot::all().map(slot).collect(),
            members: spread.shares.into_iter().map(ShareBody::from).collect(),
            even: spread.even,
            slots_in_fewer_zones: spread.narrow,
            warnings: spread.warnings,
            moving: MovingBody::of(&topology),
        }
    }
}

/// Where a key lives.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Placement)]
pub(super) struct PlacementBody {
    /// The key as text; what is not UTF-8 in it shows as U+FFFD.
    key: String,
    /// The exact key, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    key_base64: Option<String>,
    /// The key's hash, in hexadecimal.
    #[schema(example = "0c9a55d1f00b41aa")]
    token: String,
    /// The token's first byte.
    #[schema(example = "0c")]
    slot: String,
    home_replicas: Vec<NodeName>,
    /// Who stands in for a home replica, in order.
    fallbacks: Vec<NodeName>,
    /// Of both: who would be asked now.
    reachable: Vec<NodeName>,
}

impl From<PlacementView> for PlacementBody {
    fn from(view: PlacementView) -> Self {
        let (key, key_base64) = key_texts(&view.key);
        Self {
            key: key.into_owned(),
            key_base64,
            token: view.token.to_string(),
            slot: view.slot.to_string(),
            home_replicas: names(&view.home_replicas),
            fallbacks: names(&view.fallbacks),
            reachable: names(&view.reachable),
        }
    }
}

/// The hints that the asked node keeps.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Hints)]
pub(super) struct HintsBody {
    /// The node that was asked.
    node: NodeName,
    /// All of them together.
    pending: u64,
    targets: Vec<HintTargetBody>,
}

/// The hints kept for one node.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = HintTarget)]
pub(super) struct HintTargetBody {
    node: NodeName,
    count: u64,
    bytes: u64,
    /// When the oldest was kept, milliseconds since 1970; null when there is none.
    oldest_ms: Option<u64>,
    /// Dropped undelivered since the node started, for their age.
    dropped: u64,
}

impl From<HintsView> for HintsBody {
    fn from(view: HintsView) -> Self {
        Self {
            node: NodeName(view.asked),
            pending: view.targets.iter().map(|(_, totals)| totals.count).sum(),
            targets: view
                .targets
                .into_iter()
                .map(|(node, totals)| HintTargetBody {
                    node: NodeName(node),
                    count: totals.count,
                    bytes: totals.bytes,
                    oldest_ms: (totals.oldest_ms > 0).then_some(totals.oldest_ms),
                    dropped: totals.dropped,
                })
                .collect(),
        }
    }
}
