//! The ring: for each slot its write sets and its preference list, computed once per topology.
//!
//! The preference list of a slot is its home replicas, then every other member as a fallback, nearest slots first:
//! walking the ring from the slot, members are taken as they come up, so that neighbouring slots share fallbacks and
//! the load of a member that is down spreads over all others. One that is only joining stands in for nobody.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::types::{Epoch, Key, Level, NodeNum, Slot, Token, TokenSeed, Topology, majority};

/// The home replicas that a write must satisfy together. Two of them while a slot moves, one otherwise.
pub type WriteSet = SmallVec<[NodeNum; 4]>;

/// Where one slot lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

    /// Whether it is still a home replica when the change under way has ended, if one is.
    pub fn keeps(&self, node: NodeNum) -> bool {
        self.write_sets.last().is_some_and(|set| set.contains(&node))
    }

    /// The most answers one write set needs at that level.
    pub fn needed(&self, level: Level) -> usize {
        self.write_sets.iter().map(|set| level.needed(set.len())).max().unwrap_or(0)
    }

    /// What each write set gave and needs at that level, where it takes more than one: what was before the change, and what is to
    /// be. `None` where the slot does not move.
    pub fn answers(&self, level: Level, from: &[NodeNum]) -> Option<Box<[OfSet; 2]>> {
        let of = |set: &WriteSet| OfSet {
            given: set.iter().filter(|node| from.contains(node)).count(),
            needed: level.needed(set.len()),
        };
        let [before, after] = &self.write_sets[..] else { return None };
        Some(Box::new([of(before), of(after)]))
    }

    /// Whether a majority of every write set is among these.
    pub fn is_majority(&self, nodes: &[NodeNum]) -> bool {
        self.write_sets.iter().all(|set| set.iter().filter(|n| nodes.contains(n)).count() >= majority(set.len()))
    }
}

/// Answers of one of the two write sets of a slot that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfSet {
    pub given: usize,
    pub needed: usize,
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
    let set = |nodes: &[NodeNum]| nodes.iter().copied().collect::<WriteSet>();
    // What was before comes first: it is the one that has everything from the start.
    let before = topology.replicas_before(slot).map(set);
    let write_sets = before.into_iter().chain([set(topology.home_replicas(slot))]).collect();
    let mut placement = Placement { write_sets, fallbacks: Vec::new() };
    let homes = placement.home_replicas();
    let fallbacks = &mut placement.fallbacks;
    let around = (1..Slot::COUNT).map(|step| Slot(slot.0.wrapping_add(step as u8)));
    let nearest = around.flat_map(|s| topology.home_replicas(s).iter().copied());
    // What it kept for others would go with it, if the change is taken back.
    let stands_in = |node: &NodeNum| Some(*node) != topology.joiner();
    let others = topology.members.iter().filter(|m| stands_in(&m.node) && !homes.contains(&m.node)).count();
    for node in nearest.chain(topology.members.iter().map(|m| m.node)).filter(stands_in) {
        // The circle is long, and everybody is met early on it.
        if fallbacks.len() == others {
            break;
        }
        if !homes.contains(&node) && !fallbacks.contains(&node) {
            fallbacks.push(node);
        }
    }
    placement
}

/// What can be had of a slot now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SlotHealth {
    /// Not even a quorum with stand-ins; or stand-ins alone, which take writes and do not know what there was before.
    Lost,
    /// A quorum only with stand-ins.
    StoodIn,
    /// A majority of home replicas in every write set.
    Quorum,
    /// Every home replica.
    Full,
}

impl Placement {
    pub fn health(&self, reachable: impl Fn(NodeNum) -> bool) -> SlotHealth {
        let stand_ins = self.fallbacks.iter().filter(|n| reachable(**n)).count();
        let of_set = |set: &WriteSet| {
            let homes = set.iter().filter(|n| reachable(**n)).count();
            match majority(set.len()) {
                _ if homes == set.len() => SlotHealth::Full,
                needed if homes >= needed => SlotHealth::Quorum,
                needed if homes > 0 && homes + stand_ins >= needed => SlotHealth::StoodIn,
                _ => SlotHealth::Lost,
            }
        };
        self.write_sets.iter().map(of_set).min().unwrap_or(SlotHealth::Lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ClusterId, InstanceId, Member, Writer};
    use uuid::Uuid;

    fn topology(members: u16, rf: usize) -> Arc<Topology> {
        let member = |n: u16| Member {
            node: NodeNum(n),
            instance: InstanceId(Uuid::from_u128(u128::from(n))),
            writer: Writer(u32::from(n)),
            zone: None,
            weight: 1,
            mesh_address: String::new(),
            http_address: String::new(),
        };
        let homes = |slot: usize| (0..rf).map(|i| NodeNum(((slot + i) % usize::from(members)) as u16 + 1)).collect();
        let topology = Topology {
            epoch: Epoch::FIRST,
            cluster_id: ClusterId(Uuid::from_u128(7)),
            rf: rf as u8,
            members: (1..=members).map(member).collect(),
            ring: (0..Slot::COUNT).map(homes).collect(),
            next_writer: Writer(u32::from(members) + 1),
            moving: None,
        };
        topology.check().unwrap();
        Arc::new(topology)
    }

    #[test]
    fn a_preference_list_holds_every_member_once_and_homes_first() {
        let ring = Ring::new(topology(5, 2));
        for slot in Slot::all() {
            let placement = ring.placement(slot);
            let mut all = placement.home_replicas().to_vec();
            assert_eq!(all, ring.topology().home_replicas(slot));
            all.extend(&placement.fallbacks);
            all.sort();
            assert_eq!(all, (1..=5).map(NodeNum).collect::<Vec<_>>());
        }
    }

    #[test]
    fn while_a_slot_moves_answers_are_counted_of_either_set() {
        let set = |nodes: &[u16]| nodes.iter().copied().map(NodeNum).collect::<WriteSet>();
        let moving =
            Placement { write_sets: [set(&[1, 2]), set(&[1, 3, 4])].into_iter().collect(), fallbacks: Vec::new() };
        let answers =
            |level, from: &[u16]| moving.answers(level, &set(from)).map(|sets| sets.map(|of| (of.given, of.needed)));
        assert_eq!(answers(Level::Quorum, &[1, 3]), Some([(1, 2), (2, 2)]), "two of two, and not what was needed");
        assert_eq!(answers(Level::All, &[3, 4, 9]), Some([(0, 2), (2, 3)]));
        assert_eq!(
            Placement { write_sets: [set(&[1, 2])].into_iter().collect(), ..moving.clone() }.answers(Level::One, &[]),
            None
        );
    }

    #[test]
    fn the_first_fallback_is_the_neighbour() {
        let ring = Ring::new(topology(5, 2));
        assert_eq!(ring.placement(Slot(0)).fallbacks[0], NodeNum(3));
        assert_eq!(ring.placement(Slot(1)).fallbacks[0], NodeNum(4));
    }

    #[test]
    fn the_health_of_a_slot_is_what_can_be_had_of_it() {
        let ring = Ring::new(topology(3, 2));
        let placement = ring.placement(Slot(0));
        let without = |down: &'static [u16]| placement.health(move |n| !down.contains(&n.0));
        assert_eq!(without(&[]), SlotHealth::Full);
        assert_eq!(without(&[3]), SlotHealth::Full);
        assert_eq!(without(&[2]), SlotHealth::StoodIn);
        assert_eq!(without(&[2, 3]), SlotHealth::Lost);
        let three = Ring::new(topology(3, 3));
        assert_eq!(three.placement(Slot(0)).health(|n| n.0 != 1), SlotHealth::Quorum);
        let five = Ring::new(topology(5, 3));
        let without = |down: &'static [u16]| five.placement(Slot(0)).health(move |n| !down.contains(&n.0));
        assert_eq!((without(&[1, 2]), without(&[1, 2, 4])), (SlotHealth::StoodIn, SlotHealth::StoodIn));
        assert_eq!(without(&[1, 2, 3]), SlotHealth::Lost, "two are left, which know nothing of it");
    }
}
