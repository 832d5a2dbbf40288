//! The topology: the member list and the ring, numbered by epoch.
//!
//! It is decided, never gossiped, and every node stores it. Its one encoding, on disk and on the wire, is JSON:
//! it is small, rare, and a person may have to read it.
//!
//! Invariants, checked by [`Topology::decode`] and so by everyone who receives one:
//! - members are sorted by number, without repetition; instances and writer numbers are unique;
//! - every slot has 1 to `rf` distinct home replicas, all of them members; with `rf` members or more, exactly `rf`;
//! - the same holds of what slots had before, while they move.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::id::{ClusterId, Epoch, InstanceId, NodeNum, Writer};
use super::key::Slot;
use super::limits::{ADDRESS_BYTES_MAX, MEMBERS_MAX, REPLICATION_FACTOR_MAX, WEIGHT_MAX, ZONE_BYTES_MAX};
use super::register::Ballot;

/// A node as the topology lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub node: NodeNum,
    pub instance: InstanceId,
    pub writer: Writer,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    pub weight: u32,
    /// Where the mesh found it when it was admitted: a first guess. Live addresses come by gossip.
    pub mesh_address: String,
    pub http_address: String,
}

/// Who the members are and which of them keep which slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    pub epoch: Epoch,
    pub cluster_id: ClusterId,
    /// Copies of each key that the cluster was asked to keep. Fewer members keep fewer.
    pub rf: u8,
    pub members: Vec<Member>,
    /// For each slot, in order, its home replicas; the first is asked first.
    pub ring: Vec<Vec<NodeNum>>,
    /// The next writer number to give; never below one that was given.
    pub next_writer: Writer,
    /// The change under way: slots count by what they had before, too, until what they have now is caught up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Moving>,
}

/// A change of the topology that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moving {
    /// The epoch in which it began.
    pub since: Epoch,
    pub change: TopologyChange,
    /// The copies that were asked for before.
    pub rf: u8,
    /// For each slot, in order, its home replicas before.
    pub ring: Vec<Vec<NodeNum>>,
}

/// What a change is, with what it takes to undo it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TopologyChange {
    /// That member is new.
    Join { node: NodeNum },
    /// That member keeps nothing any more, and is none when the change ends.
    Leave { node: NodeNum },
    /// That member's share is another one.
    Weight { node: NodeNum, before: u32 },
    /// That member stands elsewhere.
    Zone { node: NodeNum, before: Option<String> },
    /// Another number of copies.
    ReplicationFactor,
}

impl fmt::Display for TopologyChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TopologyChange::Join { node } => write!(f, "{node} joins"),
            TopologyChange::Leave { node } => write!(f, "{node} leaves"),
            TopologyChange::Weight { node, .. } => write!(f, "{node} gets another weight"),
            TopologyChange::Zone { node, .. } => write!(f, "{node} gets another zone"),
            TopologyChange::ReplicationFactor => f.write_str("another replication factor"),
        }
    }
}

/// What a member promised and accepted about the epoch after its own: its part in deciding it (`protocol::succession`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// The epoch to be decided.
    pub epoch: Epoch,
    /// No lower ballot is listened to.
    pub promised: Ballot,
    pub accepted: Option<(Ballot, Topology)>,
}

impl Vote {
    /// One encoding, on disk and on the wire: JSON, like the topology in it.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// # Errors
    /// When the bytes are not JSON of this shape, or hold a topology that is not sound.
    pub fn decode(bytes: &[u8]) -> Result<Self, TopologyError> {
        let vote: Vote = serde_json::from_slice(bytes)?;
        vote.accepted.iter().try_for_each(|(_, topology)| topology.check())?;
        Ok(vote)
    }
}

/// Why a topology is refused. Nothing was stored.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    #[error("not a topology: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("not a sound topology: {0}")]
    Unsound(String),
}

impl Topology {
    pub fn member(&self, node: NodeNum) -> Option<&Member> {
        self.members.binary_search_by_key(&node, |m| m.node).ok().map(|i| &self.members[i])
    }

    pub fn home_replicas(&self, slot: Slot) -> &[NodeNum] {
        &self.ring[slot.index()]
    }

    /// What the slot had before, where that was other members: they count beside those that it has now.
    pub fn replicas_before(&self, slot: Slot) -> Option<&[NodeNum]> {
        let before = &self.moving.as_ref()?.ring[slot.index()];
        let same = |a: &[NodeNum], b: &[NodeNum]| a.len() == b.len() && a.iter().all(|node| b.contains(node));
        (!same(before, self.home_replicas(slot))).then_some(before.as_slice())
    }

    /// The slots that other members keep than before the change.
    pub fn moving_slots(&self) -> impl Iterator<Item = Slot> + '_ {
        Slot::all().filter(|slot| self.replicas_before(*slot).is_some())
    }

    /// The member that is to be none when the change ends.
    pub fn leaver(&self) -> Option<NodeNum> {
        match self.moving.as_ref()?.change {
            TopologyChange::Leave { node } => Some(node),
            _ => None,
        }
    }

    /// The member that was none before the change.
    pub fn joiner(&self) -> Option<NodeNum> {
        match self.moving.as_ref()?.change {
            TopologyChange::Join { node } => Some(node),
            _ => None,
        }
    }

    /// The member that may be none when the change ends, or is taken back: nothing is left with it that nobody else has.
    pub fn passes(&self) -> Option<NodeNum> {
        self.leaver().or(self.joiner())
    }

    /// Those who decide on the next epoch: all members but one that is only joining, whose loss must not keep the others from
    /// deciding that it joins no more.
    pub fn voters(&self) -> impl Iterator<Item = &Member> {
        let joiner = self.joiner();
        self.members.iter().filter(move |m| Some(m.node) != joiner)
    }

    pub fn encode(&self) -> Vec<u8> {
        // Plain structs of strings and numbers with string keys: serialisation to memory has no way to fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// # Errors
    /// When the bytes are not JSON of this shape, or break an invariant of this type.
    pub fn decode(bytes: &[u8]) -> Result<Self, TopologyError> {
        let topology: Topology = serde_json::from_slice(bytes)?;
        topology.check()?;
        Ok(topology)
    }

    /// # Errors
    /// When an invariant of this type is broken; the text names it.
    pub fn check(&self) -> Result<(), TopologyError> {
        let unsound = |what: String| Err(TopologyError::Unsound(what));
        if self.members.is_empty() || self.members.len() > MEMBERS_MAX {
            return unsound(format!("{} members, 1 to {MEMBERS_MAX} allowed", self.members.len()));
        }
        if !self.members.is_sorted_by(|a, b| a.node < b.node) {
            return unsound("members are not in order, or one is listed twice".into());
        }
        let rf = usize::from(self.rf);
        if rf == 0 || rf > REPLICATION_FACTOR_MAX {
            return unsound(format!("replication factor {rf}, 1 to {REPLICATION_FACTOR_MAX} allowed"));
        }
        let instances: BTreeSet<_> = self.members.iter().map(|m| m.instance).collect();
        let writers: BTreeSet<_> = self.members.iter().map(|m| m.writer).collect();
        if instances.len() != self.members.len() || writers.len() != self.members.len() {
            return unsound("two members share an instance or a writer number".into());
        }
        if writers.last().is_some_and(|w| *w >= self.next_writer) {
            return unsound("the next writer number was given already".into());
        }
        for m in &self.members {
            let long = m.mesh_address.len().max(m.http_address.len()) > ADDRESS_BYTES_MAX
                || m.zone.as_ref().is_some_and(|z| z.len() > ZONE_BYTES_MAX);
            if long || m.weight > WEIGHT_MAX {
                return unsound(format!("{}: an address, zone or weight is over its limit", m.node));
            }
        }
        let keeps = |m: &&Member| m.weight > 0 && Some(m.node) != self.leaver();
        let copies = rf.min(self.members.iter().filter(keeps).count().max(1));
        self.check_ring(&self.ring, copies..=copies)?;
        if let Some(moving) = &self.moving {
            if moving.since > self.epoch || moving.rf == 0 || usize::from(moving.rf) > REPLICATION_FACTOR_MAX {
                return unsound("what was before the change is not possible".into());
            }
            self.check_ring(&moving.ring, 1..=usize::from(moving.rf))?;
        }
        Ok(())
    }

    /// Whether so many distinct members keep each slot.
    fn check_ring(&self, ring: &[Vec<NodeNum>], copies: RangeInclusive<usize>) -> Result<(), TopologyError> {
        if ring.len() != Slot::COUNT {
            return Err(TopologyError::Unsound(format!("{} slots instead of {}", ring.len(), Slot::COUNT)));
        }
        for (slot, homes) in ring.iter().enumerate() {
            let distinct: BTreeSet<_> = homes.iter().collect();
            let known = homes.iter().all(|n| self.member(*n).is_some());
            if !copies.contains(&homes.len()) || distinct.len() != homes.len() || !known {
                let wanted = format!("{} to {} members", copies.start(), copies.end());
                return Err(TopologyError::Unsound(format!(
                    "slot {slot:02x} has the home replicas {homes:?}, {wanted} wanted"
                )));
            }
        }
        Ok(())
    }
}
