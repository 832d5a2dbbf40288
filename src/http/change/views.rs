//! What is told of a change of the topology, planned or under way, in JSON.

use serde::Serialize;
use utoipa::ToSchema;

use super::pace::Rate;
use crate::http::bodies::NodeName;
use crate::http::problem::FailedReplica;
use crate::node::views::{ChangeView, MemberProgress, PlanView};
use crate::types::TopologyChange;

/// `join`, `leave`, `weight`, `zone` or `replication-factor`.
pub(in crate::http) fn kind(change: &TopologyChange) -> &'static str {
    match change {
        TopologyChange::Join { .. } => "join",
        TopologyChange::Leave { .. } => "leave",
        TopologyChange::Weight { .. } => "weight",
        TopologyChange::Zone { .. } => "zone",
        TopologyChange::ReplicationFactor => "replication-factor",
    }
}

/// What a change would do. Nothing was changed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Plan)]
pub(super) struct PlanBody {
    /// The node that was asked.
    node: NodeName,
    /// The topology from which the change would go.
    epoch: u64,
    /// `join`, `leave`, `weight`, `zone` or `replication-factor`.
    #[schema(example = "leave")]
    change: &'static str,
    /// The same in words.
    #[schema(example = "n2 leaves")]
    text: String,
    /// Copies of each key that are asked for now.
    rf_before: u8,
    /// And then.
    rf: u8,
    /// Slots that other members would keep than now, of 256.
    slots: usize,
    /// Copies of slots that members would have to get.
    copies: usize,
    /// The fewest that any ring with these shares, as well spread over zones, would have them get.
    copies_ideal: usize,
    /// Bytes of keys and values in those copies: an estimate.
    bytes_estimate: u64,
    /// Whether every member would keep what its weight gives it, to within one slot.
    even: bool,
    /// Slots whose copies would stand in fewer zones than they could.
    slots_in_fewer_zones: usize,
    members: Vec<PlanMemberBody>,
    /// What a person should know of the ring that would come of it.
    warnings: Vec<String>,
}

/// What a change would give a member and take from it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PlanMember)]
struct PlanMemberBody {
    node: NodeName,
    zone: Option<String>,
    weight: u32,
    /// Slots it keeps now.
    slots_before: usize,
    /// And then.
    slots: usize,
    /// Slots that its weight alone would give it then.
    slots_by_weight: usize,
    /// Slots that it would get, and have to fetch.
    gained: usize,
    /// Slots that it would keep no more.
    given_up: usize,
    /// Bytes of keys and values that it would fetch: an estimate.
    bytes_estimate: u64,
}

impl From<PlanView> for PlanBody {
    fn from(view: PlanView) -> Self {
        let parts = view.transfer.parts.iter().zip(&view.bytes);
        // Whoever is a member in one of the two topologies is one in the planned one: a leaver is until the change ends.
        let members = parts.zip(&view.spread.shares).map(|((part, bytes), share)| PlanMemberBody {
            node: NodeName(part.node),
            zone: share.zone.clone(),
            weight: share.weight,
            slots_before: part.before,
            slots: part.after,
            slots_by_weight: share.by_weight,
            gained: part.gained.len(),
            given_up: part.given_up.len(),
            bytes_estimate: *bytes,
        });
        Self {
            node: NodeName(view.asked),
            epoch: view.epoch.0,
            change: kind(&view.change),
            text: view.change.to_string(),
            rf_before: view.rf.0,
            rf: view.rf.1,
            slots: view.transfer.slots,
            copies: view.transfer.copies,
            copies_ideal: view.transfer.ideal,
            bytes_estimate: view.bytes.iter().sum(),
            even: view.spread.even,
            slots_in_fewer_zones: view.spread.narrow,
            members: members.collect(),
            warnings: view.spread.warnings,
        }
    }
}

/// The change of the topology that is under way.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Change)]
pub(super) struct ChangeBody {
    /// The epoch in which it began, which names it.
    since: u64,
    /// The topology in force.
    epoch: u64,
    /// `join`, `leave`, `weight`, `zone` or `replication-factor`.
    #[schema(example = "leave")]
    change: &'static str,
    /// The same in words.
    #[schema(example = "n2 leaves")]
    text: String,
    /// Slots that move, of 256.
    slots: u64,
    /// Slots that members have everything of, counted for each member. Those of `not_heard` count as having nothing.
    done: u64,
    /// Slots that members have to catch up on, counted alike.
    total: u64,
    /// Slots caught up on a second, since this node was first asked about this change; null until there were some.
    per_second: Option<f64>,
    /// Milliseconds that are left at that rate; null when unknown, or when nothing is left to catch up on.
    eta_ms: Option<u64>,
    /// Those that have something to do. None was asked yet where the change has just begun or ended.
    members: Vec<ChangeMemberBody>,
    /// Those of them that did not say how far they are. `members` says why.
    not_heard: Vec<NodeName>,
    /// For whom it waits, and why.
    waiting_for: Vec<FailedReplica>,
}

/// How far one member is with a change.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ChangeMember)]
struct ChangeMemberBody {
    node: NodeName,
    /// Slots to catch up on.
    slots: u64,
    /// Those of which it has everything, as far as it said.
    done: u64,
    /// Keys fetched for that.
    keys: u64,
    /// Bytes of them and their values.
    bytes: u64,
    /// Why it did not say; null where it did.
    error: Option<String>,
}

impl From<MemberProgress> for ChangeMemberBody {
    fn from(view: MemberProgress) -> Self {
        let MemberProgress { node, slots, done, keys, bytes, error } = view;
        Self { node: NodeName(node), slots, done, keys, bytes, error }
    }
}

impl ChangeBody {
    pub(super) fn of(view: ChangeView, rate: Option<Rate>) -> Self {
        Self {
            since: view.since.0,
            epoch: view.epoch.0,
            change: kind(&view.change),
            text: view.change.to_string(),
            slots: view.slots,
            done: view.members.iter().map(|m| m.done).sum(),
            total: view.members.iter().map(|m| m.slots).sum(),
            per_second: rate.as_ref().map(|rate| rate.per_second),
            eta_ms: rate.and_then(|rate| rate.left).map(|left| left.as_millis() as u64),
            not_heard: view.members.iter().filter(|m| m.error.is_some()).map(|m| NodeName(m.node)).collect(),
            members: view.members.into_iter().map(ChangeMemberBody::from).collect(),
            waiting_for: view.waiting_for.iter().map(FailedReplica::from).collect(),
        }
    }
}
