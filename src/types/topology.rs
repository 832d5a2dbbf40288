//! The topology: the member list and the ring, numbered by epoch.
//!
//! It is decided, never gossiped, and every node stores it. Its one encoding, on disk and on the wire, is JSON:
//! it is small, rare, and a person may have to read it.
//!
//! Invariants, checked by [`Topology::decode`] and so by everyone who receives one:
//! - members are sorted by number, without repetition; instances and writer numbers are unique;
//! - every slot has 1 to `rf` distinct home replicas, all of them members; with `rf` members or more, exactly `rf`.

use std::collections::BTreeSet;

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
        if self.ring.len() != Slot::COUNT {
            return unsound(format!("{} slots instead of {}", self.ring.len(), Slot::COUNT));
        }
        let copies = rf.min(self.members.iter().filter(|m| m.weight > 0).count().max(1));
        for (slot, homes) in self.ring.iter().enumerate() {
            let distinct: BTreeSet<_> = homes.iter().collect();
            let known = homes.iter().all(|n| self.member(*n).is_some());
            if homes.len() != copies || distinct.len() != homes.len() || !known {
                return unsound(format!("slot {slot:02x} has the home replicas {homes:?}, {copies} members wanted"));
            }
        }
        Ok(())
    }
}
