//! Whom a replica must have heard before it knows all of a slot that it answers for.
//!
//! Whatever was decided, a majority of some write set knows; so a majority of that set tells it, whichever. A replica that *catches
//! up* for a change asks the set that the slot had before: what is decided meanwhile, a majority of the new set hears by itself.
//! A new instance that is *rebuilt* must know what the old one helped to decide: of each set that it is in, a majority of the
//! others tells, as one of them at least heard each piece.
//!
//! Those that leave the slot are asked first: what they alone hold (a write at `one`) is lost with them otherwise.

use std::collections::BTreeSet;

use smallvec::SmallVec;

use crate::protocol::ring::{Placement, WriteSet};
use crate::types::{NodeNum, majority};

/// The sources of one slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// Of each of these so many must be heard.
    sets: SmallVec<[(WriteSet, usize); 2]>,
    /// All of them, in the order in which they are asked.
    all: Vec<NodeNum>,
}

impl Sources {
    /// For a replica that keeps the slot when the change ends. Where it kept it before, it is one of those who know.
    pub fn to_catch_up(placement: &Placement, me: NodeNum) -> Self {
        let before = placement.write_sets.iter().take(1).map(|set| {
            let known = usize::from(set.contains(&me));
            (others(set, me), majority(set.len()) - known)
        });
        Self::new(before.collect(), placement)
    }

    /// For a new instance under the number of a home replica.
    pub fn to_rebuild(placement: &Placement, me: NodeNum) -> Self {
        let mut sets: SmallVec<[(WriteSet, usize); 2]> = SmallVec::new();
        for (at, set) in placement.write_sets.iter().enumerate() {
            let others = others(set, me);
            match (set.contains(&me), others.len()) {
                (true, 0) => {}
                (true, count) => sets.push((others, majority(count))),
                // It is to keep the slot and did not before: what was decided before, it has from there.
                (false, count) if at == 0 => sets.push((others, majority(count))),
                (false, _) => {}
            }
        }
        Self::new(sets, placement)
    }

    fn new(sets: SmallVec<[(WriteSet, usize); 2]>, placement: &Placement) -> Self {
        let stays = |node: &NodeNum| placement.write_sets.last().is_some_and(|set| set.contains(node));
        let mut all: Vec<NodeNum> = Vec::new();
        for node in sets.iter().flat_map(|(set, _)| set) {
            if !all.contains(node) {
                all.push(*node);
            }
        }
        all.sort_by_key(stays);
        Self { sets, all }
    }

    /// In the order in which they are asked.
    pub fn all(&self) -> &[NodeNum] {
        &self.all
    }

    /// Whether enough was heard from these.
    pub fn are_heard(&self, heard: &BTreeSet<NodeNum>) -> bool {
        self.sets.iter().all(|(set, needed)| set.iter().filter(|node| heard.contains(node)).count() >= *needed)
    }
}

fn others(set: &WriteSet, me: NodeNum) -> WriteSet {
    set.iter().copied().filter(|node| *node != me).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement(sets: &[&[u16]]) -> Placement {
        let write_sets = sets.iter().map(|set| set.iter().copied().map(NodeNum).collect()).collect();
        Placement { write_sets, fallbacks: Vec::new() }
    }

    fn heard(sources: &Sources, nodes: &[u16]) -> bool {
        sources.are_heard(&nodes.iter().copied().map(NodeNum).collect())
    }

    fn numbers(sources: &Sources) -> Vec<u16> {
        sources.all().iter().map(|node| node.0).collect()
    }

    #[test]
    fn who_gets_a_slot_hears_a_majority_of_those_who_had_it() {
        let placement = placement(&[&[1, 2, 3], &[1, 2, 4]]);
        let new = Sources::to_catch_up(&placement, NodeNum(4));
        assert_eq!(numbers(&new), [3, 1, 2], "first who leaves it");
        assert!(!heard(&new, &[3]) && !heard(&new, &[3, 4]) && heard(&new, &[1, 3]));
        let stays = Sources::to_catch_up(&placement, NodeNum(1));
        assert!(!heard(&stays, &[]) && heard(&stays, &[2]) && heard(&stays, &[3]), "it knows itself");
        let alone = Sources::to_catch_up(&self::placement(&[&[1], &[1, 2]]), NodeNum(1));
        assert!(heard(&alone, &[]), "it had the only copy");
    }

    #[test]
    fn a_new_instance_hears_a_majority_of_the_others_of_each_set_it_is_in() {
        let one = Sources::to_rebuild(&placement(&[&[1, 2, 3]]), NodeNum(1));
        assert!(!heard(&one, &[2]) && heard(&one, &[2, 3]));
        assert!(heard(&Sources::to_rebuild(&placement(&[&[1, 2]]), NodeNum(1)), &[2]));
        let only = Sources::to_rebuild(&placement(&[&[1]]), NodeNum(1));
        assert!(only.all().is_empty() && heard(&only, &[]));
        let moving = placement(&[&[1, 2, 3], &[3, 4, 5]]);
        let gets = Sources::to_rebuild(&moving, NodeNum(4));
        assert!(!heard(&gets, &[3, 5]) && !heard(&gets, &[1, 2]) && heard(&gets, &[2, 3, 5]));
        let gives = Sources::to_rebuild(&moving, NodeNum(1));
        assert!(heard(&gives, &[2, 3]) && !heard(&gives, &[3, 4]));
    }
}
