//! How a ring spreads the copies over members and zones: what each member keeps beside what its weight would give it, and
//! what the zones cannot carry, in words.
//!
//! It judges a ring that stands or is planned, and changes nothing. A member without a zone counts as a zone of its own, as
//! the planner has it ([`super::planner`]). Members without weight, and one that leaves, keep nothing and count for nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::planner;
use crate::types::{Member, NodeNum, Slot, Topology};

/// What one member keeps.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    pub node: NodeNum,
    pub zone: Option<String>,
    pub weight: u32,
    /// Slots it is a home replica of.
    pub slots: usize,
    /// Its part of all copies, 0 to 1.
    pub part: f64,
    /// Slots that its weight alone would give it; zones may demand others.
    pub by_weight: usize,
}

/// How copies are spread.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    /// In the order of the members.
    pub shares: Vec<Share>,
    /// Every member keeps what its weight gives it, to within one slot.
    pub even: bool,
    /// Slots whose replicas stand in fewer zones than they could.
    pub narrow: usize,
    /// What a person should know of it; each stands by itself.
    pub warnings: Vec<String>,
}

/// A zone by its name, or a member that has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Zone<'a> {
    Named(&'a str),
    Own(NodeNum),
}

impl<'a> Zone<'a> {
    fn of(member: &'a Member) -> Self {
        member.zone.as_deref().map_or(Zone::Own(member.node), Zone::Named)
    }
}

impl Spread {
    /// Of the ring that is in force, or will be when the change under way ends.
    pub fn of(topology: &Topology) -> Self {
        let shares = shares(topology);
        let even = shares.iter().all(|share| share.slots.abs_diff(share.by_weight) <= 1);
        let able = keepers(topology);
        let kept = topology.ring.iter().map(Vec::len).max().unwrap_or(0);
        let zones: BTreeSet<Zone<'_>> = able.iter().map(|m| Zone::of(m)).collect();
        let narrow = Slot::all().filter(|slot| is_narrow(topology, *slot, zones.len())).count();
        let mut warnings = zone_warnings(topology, &able, &zones, kept);
        if kept < usize::from(topology.rf) {
            let (rf, members) = (topology.rf, able.len());
            warnings.push(format!(
                "{rf} copies of each key are asked for, and {kept} are kept: {members} members keep slots"
            ));
        }
        if narrow > 0 {
            warnings
                .push(format!("{narrow} of {} slots have their copies in fewer zones than they could", Slot::COUNT));
        }
        let uneven = shares.iter().filter(|share| share.slots.abs_diff(share.by_weight) > 1);
        let uneven: Vec<String> =
            uneven.map(|s| format!("{} keeps {} slots instead of {}", s.node, s.slots, s.by_weight)).collect();
        if !uneven.is_empty() {
            warnings.push(format!("shares are not as the weights are: {}", uneven.join(", ")));
        }
        Self { shares, even, narrow, warnings }
    }
}

/// The members that may keep slots.
fn keepers(topology: &Topology) -> Vec<&Member> {
    topology.members.iter().filter(|m| m.weight > 0 && Some(m.node) != topology.leaver()).collect()
}

fn shares(topology: &Topology) -> Vec<Share> {
    let mut slots: BTreeMap<NodeNum, usize> = BTreeMap::new();
    topology.ring.iter().flatten().for_each(|node| *slots.entry(*node).or_default() += 1);
    let all: usize = slots.values().sum();
    let kept = |node: NodeNum| slots.get(&node).copied().unwrap_or(0);
    let stay: Vec<Member> = topology.members.iter().filter(|m| Some(m.node) != topology.leaver()).cloned().collect();
    let by_weight: BTreeMap<NodeNum, usize> = planner::shares(&stay, topology.rf, kept).into_iter().collect();
    let share = |m: &Member| Share {
        node: m.node,
        zone: m.zone.clone(),
        weight: m.weight,
        slots: kept(m.node),
        part: kept(m.node) as f64 / all.max(1) as f64,
        by_weight: by_weight.get(&m.node).copied().unwrap_or(0),
    };
    topology.members.iter().map(share).collect()
}

fn is_narrow(topology: &Topology, slot: Slot, zones: usize) -> bool {
    let homes = topology.home_replicas(slot);
    let stands_in: BTreeSet<Zone<'_>> = homes.iter().filter_map(|n| topology.member(*n)).map(Zone::of).collect();
    stands_in.len() < homes.len().min(zones)
}

/// What the zones cannot carry. Where nobody has one there is nothing to say.
fn zone_warnings(topology: &Topology, able: &[&Member], zones: &BTreeSet<Zone<'_>>, copies: usize) -> Vec<String> {
    let names: Vec<&str> =
        zones.iter().filter_map(|z| if let Zone::Named(name) = z { Some(*name) } else { None }).collect();
    let without: Vec<String> = able.iter().filter(|m| m.zone.is_none()).map(|m| m.node.to_string()).collect();
    let mut warnings = Vec::new();
    if names.is_empty() {
        return warnings;
    }
    if !without.is_empty() {
        let (who, counts) = (without.join(", "), if without.len() == 1 { "has" } else { "have" });
        warnings.push(format!("{who} {counts} no zone while others do: each counts as a zone of its own"));
    }
    match zones.len() {
        1 if copies > 1 => {
            warnings.push(format!("all copies stand in the one zone {}: its loss takes them all", names[0]))
        }
        n if n < copies => {
            let crowded = Slot::all().filter(|slot| is_crowded(topology, *slot)).count();
            warnings.push(format!(
                "{n} zones cannot carry {copies} copies apart: {crowded} of {} slots have two copies or more in one zone",
                Slot::COUNT
            ));
        }
        _ => {}
    }
    warnings
}

/// Whether a zone holds more than one copy of it.
fn is_crowded(topology: &Topology, slot: Slot) -> bool {
    let mut seen = BTreeSet::new();
    topology.home_replicas(slot).iter().filter_map(|n| topology.member(*n)).any(|m| !seen.insert(Zone::of(m)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::founding::first_topology;
    use crate::protocol::succession::change::{self, Wish};
    use crate::protocol::transfer::tests::founder;
    use crate::types::ClusterId;
    use uuid::Uuid;

    /// A cluster whose members stand in these zones; `-` is none.
    fn in_zones(zones: &str, rf: u8) -> Topology {
        let founders: Vec<_> =
            zones.split(' ').zip(1..).map(|(zone, n)| founder(n, Some(zone).filter(|z| *z != "-"), 1, rf)).collect();
        first_topology(&founders, ClusterId(Uuid::from_u128(9)))
    }

    fn warnings(zones: &str, rf: u8) -> Vec<String> {
        Spread::of(&in_zones(zones, rf)).warnings
    }

    #[test]
    fn shares_are_told_beside_what_the_weights_give() {
        let spread = Spread::of(&in_zones("- - -", 2));
        assert_eq!((spread.even, spread.narrow, spread.warnings.len()), (true, 0, 0));
        let slots: usize = spread.shares.iter().map(|s| s.slots).sum();
        assert_eq!((slots, spread.shares.iter().map(|s| s.part).sum::<f64>().round()), (512, 1.0));
        assert!(spread.shares.iter().all(|s| (170..=171).contains(&s.by_weight) && s.slots == s.by_weight));
        let heavier = change::begin(&in_zones("- - -", 2), &Wish::Weight(NodeNum(1), 2)).unwrap();
        let spread = Spread::of(&heavier);
        assert_eq!((spread.even, spread.shares[0].slots, spread.shares[0].weight), (true, 256, 2));
    }

    #[test]
    fn where_nobody_has_weight_one_copy_is_spread_evenly() {
        let founders: Vec<_> = (1..=3).map(|n| founder(n, None, 0, 1)).collect();
        let spread = Spread::of(&first_topology(&founders, ClusterId(Uuid::from_u128(9))));
        assert_eq!((spread.even, spread.warnings), (true, Vec::new()));
    }

    #[test]
    fn a_zone_that_takes_more_than_its_members_weigh_is_told() {
        let spread = Spread::of(&in_zones("a a b", 2));
        assert_eq!((spread.even, spread.narrow), (false, 0));
        let told = spread.warnings.join("\n");
        assert!(told.contains("n3 keeps 256 slots instead of 17") && spread.warnings.len() == 1, "{told}");
    }

    #[test]
    fn zones_that_cannot_carry_the_copies_are_told() {
        assert_eq!(warnings("a b c", 3), Vec::<String>::new());
        assert_eq!(warnings("a b", 3), ["3 copies of each key are asked for, and 2 are kept: 2 members keep slots"]);
        assert_eq!(
            warnings("a b a b", 3),
            ["2 zones cannot carry 3 copies apart: 256 of 256 slots have two copies or more in one zone"]
        );
        assert_eq!(warnings("a a a", 2), ["all copies stand in the one zone a: its loss takes them all"]);
        assert_eq!(warnings("a a a", 1), Vec::<String>::new());
        assert_eq!(warnings("a - b", 3), ["n2 has no zone while others do: each counts as a zone of its own"]);
    }

    #[test]
    fn slots_that_stand_closer_than_they_need_are_counted() {
        let mut topology = in_zones("a a b b", 2);
        assert_eq!(Spread::of(&topology).narrow, 0);
        topology.ring[7] = vec![NodeNum(1), NodeNum(2)];
        let spread = Spread::of(&topology);
        assert_eq!(spread.narrow, 1);
        assert!(spread.warnings[0].starts_with("1 of 256 slots have their copies in fewer zones"), "{spread:?}");
    }

    #[test]
    fn a_leaver_has_no_share_any_more_and_its_zone_does_not_count() {
        let leaving = change::begin(&in_zones("a a b", 2), &Wish::Leave(NodeNum(3))).unwrap();
        let spread = Spread::of(&leaving);
        assert_eq!((spread.shares[2].slots, spread.shares[2].by_weight, spread.even), (0, 0, true));
        assert_eq!(spread.narrow, 0, "there is nowhere else to stand");
        assert_eq!(spread.warnings, ["all copies stand in the one zone a: its loss takes them all"]);
    }
}
