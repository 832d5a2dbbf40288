//! The ring: for each slot its write sets and its preference list, computed once per topology.
//!
//! The preference list of a slot is its home replicas, then every other member as a fallback, nearest slots first:
//! walking the ring from the slot, members are taken as they come up, so that neighbouring slots share fallbacks and
//! the load of a member that is down spreads over all others.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::types::{Epoch, Key, Level, NodeNum, Slot, Token, TokenSeed, Topology};

/// The home replicas that a write must satisfy together. Two of them while a slot moves, one otherwise.
pub type WriteSet = SmallVec<[NodeNum; 4]>;

/// Where one slot lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Each must be satisfied by its own level.
    pub write_sets: SmallVec<[WriteSet; 1]>,
    /// Who stands in, in order. Never a home replica.
    pub fallbacks: Vec<NodeNum>,
}

impl Placement {
    /// All home replicas of all write sets, each once, in order.
    pub fn home_replicas(&self) -> WriteSet {
        let mut all = WriteSet::new();
        for node in self.write_sets.iter().flatten() {
            if !all.contains(node) {
                all.push(*node);
            }
        }
        all
    }

    pub fn is_home(&self, node: NodeNum) -> bool {
        self.write_sets.iter().any(|set| set.contains(&node))
    }

    /// The most answers one write set needs at that level.
    pub fn needed(&self, level: Level) -> usize {
        self.write_sets.iter().map(|set| level.needed(set.len())).max().unwrap_or(0)
    }
}

/// A topology with the placement of every slot at hand.
#[derive(Debug)]
pub struct Ring {
    topology: Arc<Topology>,
    seed: TokenSeed,
    placements: Vec<Arc<Placement>>,
}

impl Ring {
    pub fn new(topology: Arc<Topology>) -> Self {
        let placements = Slot::all().map(|slot| Arc::new(place(&topology, slot))).collect();
        Self { seed: TokenSeed::of(topology.cluster_id), placements, topology }
    }

    pub fn topology(&self) -> &Arc<Topology> {
        &self.topology
    }

    pub fn epoch(&self) -> Epoch {
        self.topology.epoch
    }

    pub fn token(&self, key: &Key) -> Token {
        key.token(self.seed)
    }

    pub fn placement(&self, slot: Slot) -> &Arc<Placement> {
        &self.placements[slot.index()]
    }
}

fn place(topology: &Topology, slot: Slot) -> Placement {
    let homes: WriteSet = topology.home_replicas(slot).iter().copied().collect();
    let mut fallbacks = Vec::new();
    let around = (1..Slot::COUNT).map(|step| Slot(slot.0.wrapping_add(step as u8)));
    let nearest = around.flat_map(|s| topology.home_replicas(s).iter().copied());
    for node in nearest.chain(topology.members.iter().map(|m| m.node)) {
        if !homes.contains(&node) && !fallbacks.contains(&node) {
            fallbacks.push(node);
        }
    }
    Placement { write_sets: SmallVec::from_iter([homes]), fallbacks }
}
