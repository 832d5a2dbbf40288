//! What a change of the topology moves: which members get which slots, which give them up, and how few could be moved.
//!
//! A slot moves where other members keep it than before; a copy moves for each member that keeps it now and did not. What
//! this costs in bytes only a node can guess (`node::plan`).
//!
//! Caveat: [`Transfer::ideal`] is a bound from below. No ring with these shares that spreads copies over zones as well
//! moves fewer copies, but there may be none that moves as few.

use std::collections::BTreeMap;

use crate::types::{Member, NodeNum, Slot, Topology};

/// What one member gets and gives up, in slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub node: NodeNum,
    /// Slots it keeps before and after.
    pub before: usize,
    pub after: usize,
    /// In order.
    pub gained: Vec<Slot>,
    pub given_up: Vec<Slot>,
}

/// What moves between two topologies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Everybody who is a member before or after, in order.
    pub parts: Vec<Part>,
    /// Slots that other members keep than before.
    pub slots: usize,
    /// Copies of slots that somebody has to get.
    pub copies: usize,
    /// The fewest that could be.
    pub ideal: usize,
}

impl Transfer {
    pub fn between(before: &Topology, after: &Topology) -> Self {
        let members = before.members.iter().chain(&after.members).map(|m| m.node);
        let part = |node| (node, Part { node, before: 0, after: 0, gained: Vec::new(), given_up: Vec::new() });
        let mut parts: BTreeMap<NodeNum, Part> = members.map(part).collect();
        let mut slots = 0;
        for slot in Slot::all() {
            let (had, has) = (before.home_replicas(slot), after.home_replicas(slot));
            let mut moves = false;
            for (node, part) in &mut parts {
                let (kept, keeps) = (had.contains(node), has.contains(node));
                part.before += usize::from(kept);
                part.after += usize::from(keeps);
                moves |= kept != keeps;
                match (kept, keeps) {
                    (false, true) => part.gained.push(slot),
                    (true, false) => part.given_up.push(slot),
                    _ => {}
                }
            }
            slots += usize::from(moves);
        }
        let parts: Vec<Part> = parts.into_values().collect();
        let copies = parts.iter().map(|part| part.gained.len()).sum();
        let by_shares: usize = parts.iter().map(|part| part.after.saturating_sub(part.before)).sum();
        Self { slots, copies, ideal: by_shares.max(by_slots(before, after)), parts }
    }
}

/// Copies that must be placed anew because nobody may go on keeping them: who had them keeps nothing any more, or too many of
/// them stand in one zone.
fn by_slots(before: &Topology, after: &Topology) -> usize {
    let able: Vec<&Member> = after.members.iter().filter(|m| m.weight > 0 && Some(m.node) != after.leaver()).collect();
    let zone = |m: &Member| m.zone.clone().ok_or(m.node);
    let mut sizes = BTreeMap::new();
    able.iter().for_each(|m| *sizes.entry(zone(m)).or_insert(0usize) += 1);
    let fresh = |slot: Slot| {
        let copies = after.home_replicas(slot).len();
        // The fewest copies that some zone must take.
        let most = (1..=copies).find(|k| sizes.values().map(|n| n.min(k)).sum::<usize>() >= copies).unwrap_or(copies);
        let mut stay = BTreeMap::new();
        let had = before.home_replicas(slot);
        able.iter().filter(|m| had.contains(&m.node)).for_each(|m| *stay.entry(zone(m)).or_insert(0usize) += 1);
        copies.saturating_sub(stay.values().map(|n| n.min(&most)).sum())
    };
    Slot::all().map(fresh).sum()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::protocol::founding::first_topology;
    use crate::protocol::planner;
    use crate::protocol::succession::change::{self, Wish};
    use crate::types::{Announcement, ClusterId, InstanceId};
    use proptest::prelude::*;
    use uuid::Uuid;

    pub(in crate::protocol) fn founder(node: u16, zone: Option<&str>, weight: u32, rf: u8) -> Announcement {
        Announcement {
            node: NodeNum(node),
            instance: InstanceId(Uuid::from_u128(node.into())),
            zone: zone.map(str::to_owned),
            weight,
            mesh_address: String::new(),
            http_address: String::new(),
            cluster_size: 3,
            rf,
        }
    }

    fn topology(members: u16, rf: u8) -> Topology {
        let founders: Vec<_> = (1..=members).map(|n| founder(n, None, 1, rf)).collect();
        first_topology(&founders, ClusterId(Uuid::from_u128(9)))
    }

    fn of(before: &Topology, wish: &Wish) -> Transfer {
        Transfer::between(before, &change::begin(before, wish).unwrap())
    }

    #[test]
    fn who_joins_gets_its_share_and_nobody_else_gets_anything() {
        let transfer = of(&topology(3, 2), &Wish::Join(founder(4, None, 1, 2)));
        assert_eq!((transfer.slots, transfer.copies, transfer.ideal), (128, 128, 128));
        let [.., newcomer] = &transfer.parts[..] else { panic!("four parts") };
        assert_eq!((newcomer.node, newcomer.before, newcomer.after, newcomer.gained.len()), (NodeNum(4), 0, 128, 128));
        for part in &transfer.parts[..3] {
            assert_eq!(part.before - part.given_up.len(), part.after);
            assert!(part.gained.is_empty() && part.given_up.is_sorted());
        }
    }

    #[test]
    fn a_leavers_slots_go_to_the_others() {
        let transfer = of(&topology(4, 3), &Wish::Leave(NodeNum(2)));
        let leaver = &transfer.parts[1];
        assert_eq!((leaver.before, leaver.after, leaver.given_up.len()), (192, 0, 192));
        assert_eq!((transfer.slots, transfer.copies, transfer.ideal), (192, 192, 192));
    }

    #[test]
    fn fewer_copies_move_nothing_though_every_slot_has_other_replicas() {
        let transfer = of(&topology(3, 3), &Wish::ReplicationFactor(2));
        assert_eq!((transfer.slots, transfer.copies, transfer.ideal), (256, 0, 0));
        let more = of(&topology(3, 2), &Wish::ReplicationFactor(3));
        assert_eq!((more.slots, more.copies, more.ideal), (256, 256, 256));
    }

    #[test]
    fn what_zones_forbid_must_move_though_shares_stay() {
        let zones = ["a", "a", "b", "b"];
        let founders: Vec<_> = zones.iter().zip(1..).map(|(zone, n)| founder(n, Some(*zone), 1, 2)).collect();
        let before = first_topology(&founders, ClusterId(Uuid::from_u128(9)));
        let mut after = before.clone();
        (after.members[1].zone, after.members[2].zone) = (Some("b".into()), Some("a".into()));
        after.ring = planner::plan(&after.members, 2, Some(&before.ring));
        let transfer = Transfer::between(&before, &after);
        assert!(transfer.parts.iter().all(|part| part.before == part.after), "{transfer:?}");
        // n1 and n3 stand together now, as do n2 and n4.
        let together =
            |homes: &&Vec<NodeNum>| homes.iter().map(|n| n.0 % 2).max() == homes.iter().map(|n| n.0 % 2).min();
        let crowded = before.ring.iter().filter(together).count();
        assert!(crowded > 0 && transfer.ideal == crowded && transfer.copies >= crowded, "{crowded}: {transfer:?}");
    }

    proptest! {
        /// The bound is one, and the planner stays near it.
        #[test]
        fn no_fewer_move_than_must(n in 2u16..9, rf in 1u8..4, which in 0u16..9, what in 0u8..4) {
            let before = topology(n, rf);
            let node = NodeNum(which % n + 1);
            let wish = match what {
                0 => Wish::Join(founder(n + 1, None, 1, rf)),
                1 => Wish::Leave(node),
                2 => Wish::Weight(node, 2),
                _ => Wish::ReplicationFactor(rf + 1),
            };
            let Ok(after) = change::begin(&before, &wish) else { return Ok(()) };
            let transfer = Transfer::between(&before, &after);
            prop_assert!(transfer.ideal <= transfer.copies);
            prop_assert!(10 * transfer.copies <= 13 * transfer.ideal + 80, "{} of {}", transfer.copies, transfer.ideal);
            let back = Transfer::between(&after, &before);
            let gained = |t: &Transfer| t.parts.iter().map(|p| p.gained.clone()).collect::<Vec<_>>();
            let given_up = |t: &Transfer| t.parts.iter().map(|p| p.given_up.clone()).collect::<Vec<_>>();
            prop_assert_eq!((gained(&back), back.slots), (given_up(&transfer), transfer.slots));
        }
    }
}
