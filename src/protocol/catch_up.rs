//! Whom a replica must have heard before it knows all of a slot that it answers for.
//!
//! Whatever was decided, a majority of some write set knows; so a majority of that set tells it, whichever. A replica that *catches
//! up* for a change asks the set that the slot had before: what is decided meanwhile, a majority of the new set hears by itself.
//! A new instance that is *rebuilt* must know what the old one helped to decide: of each set that it is in, a majority of the
//! others tells, as one of them at least heard each piece.
//!
//! Who catches up does with fewer where the one that leaves has been dead for long: of a set of n in which m are a majority, any
//! n - m + 1 meet every majority, so one of them at least knows each piece. Of two that is one; of an odd number it is the
//! majority. It is not asked for so few otherwise: a write at `one` may be with those alone who are not heard.
//!
//! Those that leave the slot are asked first: what they alone hold (a write at `one`) is lost with them otherwise.

use std::collections::BTreeSet;

use smallvec::SmallVec;

use crate::protocol::ring::{Placement, WriteSet};
use crate::types::{NodeNum, majority};

/// The sources of one slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    sets: SmallVec<[Asked; 2]>,
    /// All of them, in the order in which they are asked.
    all: Vec<NodeNum>,
}

/// So many of a set must be heard.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    of: WriteSet,
    needed: usize,
    /// Where one of them is not waited for any more.
    without_one: usize,
}

impl Asked {
    fn majority_of(of: WriteSet) -> Self {
        let needed = majority(of.len());
        Self { of, needed, without_one: needed }
    }
}

/// Whether a dead member may leave slots that so many keep: one of the others at least knows each piece of what was decided.
pub fn can_do_without_one(copies: usize) -> bool {
    copies > 1
}

/// So many of a set know all that was decided, when one of it is dead: a majority, or else all the others.
fn without_one(copies: usize) -> usize {
    if can_do_without_one(copies) { majority(copies).min(copies - 1) } else { majority(copies) }
}

impl Sources {
    /// For a replica that keeps the slot when the change ends. Where it kept it before, it is one of those who know.
    pub fn to_catch_up(placement: &Placement, me: NodeNum) -> Self {
        let before = placement.write_sets.iter().take(1).map(|set| {
            let known = usize::from(set.contains(&me));
            let (needed, without_one) = (majority(set.len()) - known, without_one(set.len()) - known);
            Asked { of: others(set, me), needed, without_one }
        });
        Self::new(before.collect(), placement)
    }

    /// For a new instance under the number of a home replica.
    pub fn to_rebuild(placement: &Placement, me: NodeNum) -> Self {
        let mut sets: SmallVec<[Asked; 2]> = SmallVec::new();
        for (at, set) in placement.write_sets.iter().enumerate() {
            let others = others(set, me);
            match (set.contains(&me), others.len()) {
                (true, 0) => {}
                (true, _) => sets.push(Asked::majority_of(others)),
                // It is to keep the slot and did not before: what was decided before, it has from there.
                (false, _) if at == 0 => sets.push(Asked::majority_of(others)),
                (false, _) => {}
            }
        }
        if sets.is_empty() {
            // Nobody else had a copy: whoever gets the slot may have caught up on it.
            let rest = placement.write_sets.iter().filter(|set| !set.contains(&me));
            sets.extend(rest.map(|set| Asked::majority_of(set.clone())));
        }
        Self::new(sets, placement)
    }

    fn new(sets: SmallVec<[Asked; 2]>, placement: &Placement) -> Self {
        let stays = |node: &NodeNum| placement.write_sets.last().is_some_and(|set| set.contains(node));
        let mut all: Vec<NodeNum> = Vec::new();
        for node in sets.iter().flat_map(|asked| &asked.of) {
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

    /// Whether enough was heard from these. `gone`: one that leaves, and has been dead for long.
    pub fn are_heard(&self, heard: &BTreeSet<NodeNum>, gone: Option<NodeNum>) -> bool {
        self.sets.iter().all(|asked| {
            let lacks_one = gone.is_some_and(|gone| asked.of.contains(&gone));
            let needed = if lacks_one { asked.without_one } else { asked.needed };
            asked.of.iter().filter(|node| heard.contains(node)).count() >= needed
        })
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
        without(sources, nodes, None)
    }

    fn without(sources: &Sources, nodes: &[u16], gone: Option<u16>) -> bool {
        sources.are_heard(&nodes.iter().copied().map(NodeNum).collect(), gone.map(NodeNum))
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

    /// Who had the slot, whom of those who know it catches up with (itself among them), which of them leaves and is dead, and
    /// whether that is enough.
    #[test]
    fn a_dead_leaver_of_two_is_done_without_and_nobody_else_is() {
        type Row = (&'static [u16], &'static [u16], Option<u16>, bool);
        let table: &[Row] = &[
            (&[1, 2], &[1], None, false),
            (&[1, 2], &[1], Some(2), true),
            (&[1, 2], &[1], Some(9), false),
            (&[1, 2], &[], Some(2), false),
            (&[1, 2], &[1, 2], None, true),
            (&[1], &[], Some(1), false),
            (&[1, 2, 3], &[1], Some(3), false),
            (&[1, 2, 3], &[1, 2], Some(3), true),
            (&[1, 2, 3, 4], &[1, 2], Some(4), false),
            (&[1, 2, 3, 4], &[1, 2, 3], Some(4), true),
            (&[1, 2, 3, 4, 5], &[1, 2, 3], Some(5), true),
        ];
        for (before, knows, gone, enough) in table {
            let after: Vec<u16> = before.iter().copied().filter(|node| Some(*node) != *gone).chain([7]).collect();
            let placement = placement(&[before, &after]);
            let new = Sources::to_catch_up(&placement, NodeNum(7));
            assert_eq!(without(&new, knows, *gone), *enough, "{before:?} {knows:?} {gone:?}");
            if let Some((me, others)) = knows.split_first() {
                let stays = Sources::to_catch_up(&placement, NodeNum(*me));
                assert_eq!(without(&stays, others, *gone), *enough, "n{me} of {before:?} {knows:?} {gone:?}");
            }
            let meets_every_majority = knows.len() + majority(before.len()) > before.len();
            assert!(!enough || meets_every_majority, "{before:?} {knows:?}");
        }
        let rebuilt = Sources::to_rebuild(&placement(&[&[1, 2], &[1, 3]]), NodeNum(1));
        assert!(!without(&rebuilt, &[3], Some(2)), "a new instance knows nothing by itself");
    }

    #[test]
    fn a_new_instance_hears_a_majority_of_the_others_of_each_set_it_is_in() {
        let one = Sources::to_rebuild(&placement(&[&[1, 2, 3]]), NodeNum(1));
        assert!(!heard(&one, &[2]) && heard(&one, &[2, 3]));
        assert!(heard(&Sources::to_rebuild(&placement(&[&[1, 2]]), NodeNum(1)), &[2]));
        let only = Sources::to_rebuild(&placement(&[&[1]]), NodeNum(1));
        assert!(only.all().is_empty() && heard(&only, &[]));
        let gone = Sources::to_rebuild(&placement(&[&[1], &[3]]), NodeNum(1));
        assert!(!heard(&gone, &[]) && heard(&gone, &[3]), "nobody else had a copy");
        let moving = placement(&[&[1, 2, 3], &[3, 4, 5]]);
        let gets = Sources::to_rebuild(&moving, NodeNum(4));
        assert!(!heard(&gets, &[3, 5]) && !heard(&gets, &[1, 2]) && heard(&gets, &[2, 3, 5]));
        let gives = Sources::to_rebuild(&moving, NodeNum(1));
        assert!(heard(&gives, &[2, 3]) && !heard(&gives, &[3, 4]));
    }
}
