//! Balance, zones, weights and movement, over many clusters.

mod growth;

use super::*;
use crate::types::{ClusterId, Epoch, InstanceId, Topology, Writer};
use proptest::prelude::*;
use uuid::Uuid;

fn member(node: u16, zone: Option<&str>, weight: u32) -> Member {
    Member {
        node: NodeNum(node),
        instance: InstanceId(Uuid::from_u128(u128::from(node))),
        writer: Writer(u32::from(node)),
        zone: zone.map(str::to_owned),
        weight,
        mesh_address: format!("10.0.0.{node}:50051"),
        http_address: format!("10.0.0.{node}:8001"),
    }
}

fn plain(nodes: std::ops::RangeInclusive<u16>) -> Vec<Member> {
    nodes.map(|n| member(n, None, 1)).collect()
}

fn loads(members: &[Member], ring: &[Vec<NodeNum>]) -> Vec<usize> {
    members.iter().map(|m| ring.iter().filter(|homes| homes.contains(&m.node)).count()).collect()
}

/// How many copies the second ring keeps where the first did not.
fn moved(before: &[Vec<NodeNum>], after: &[Vec<NodeNum>]) -> usize {
    before.iter().zip(after).map(|(b, a)| a.iter().filter(|n| !b.contains(n)).count()).sum()
}

/// The most slots in which some zone (a member without one is a zone of its own) holds a copy too many.
fn crowded(members: &[Member], ring: &[Vec<NodeNum>], most: usize) -> usize {
    let zones: BTreeMap<NodeNum, &str> = members.iter().filter_map(|m| Some((m.node, m.zone.as_deref()?))).collect();
    ring.iter()
        .filter(|homes| {
            let named: Vec<&str> = homes.iter().filter_map(|n| zones.get(n).copied()).collect();
            named.iter().any(|z| named.iter().filter(|other| *other == z).count() > most)
        })
        .count()
}

/// The topology type's own invariants hold.
fn sound(members: &[Member], rf: u8, ring: &[Vec<NodeNum>]) {
    let topology = Topology {
        epoch: Epoch::FIRST,
        cluster_id: ClusterId(Uuid::from_u128(1)),
        rf,
        members: members.to_vec(),
        ring: ring.to_vec(),
        next_writer: Writer(10_000),
        moving: None,
    };
    topology.check().unwrap();
}

#[test]
fn one_node_keeps_everything_and_two_share_it() {
    let ring = plan(&plain(1..=1), 2, None);
    assert!(ring.iter().all(|homes| homes == &[NodeNum(1)]));
    let ring = plan(&plain(1..=3), 2, None);
    assert_eq!(loads(&plain(1..=3), &ring).iter().sum::<usize>(), 512);
    assert_eq!(plan(&[], 2, None), vec![Vec::new(); 256]);
}

#[test]
fn weight_zero_keeps_nothing_and_all_zero_keeps_one_copy() {
    let members = [member(1, None, 1), member(2, None, 0), member(3, None, 3), member(4, None, 1)];
    let ring = plan(&members, 2, None);
    // n3 may keep each slot once: 256, and not three fifths of 512.
    assert_eq!(loads(&members, &ring), [128, 0, 256, 128]);
    let none = [member(1, None, 0), member(2, None, 0)];
    let ring = plan(&none, 2, None);
    assert_eq!(loads(&none, &ring), [128, 128]);
    sound(&none, 2, &ring);
}

#[test]
fn a_zone_that_is_short_of_members_still_gets_its_copy_of_every_slot() {
    let members = [member(1, Some("a"), 1), member(2, Some("a"), 1), member(3, Some("b"), 1)];
    let ring = plan(&members, 2, None);
    assert_eq!(loads(&members, &ring), [128, 128, 256]);
    assert_eq!(crowded(&members, &ring, 1), 0);
    // Three copies in two zones: nobody holds all three.
    let four = [&members[..], &[member(4, Some("b"), 1)]].concat();
    let ring = plan(&four, 3, None);
    assert_eq!(loads(&four, &ring), [192; 4]);
    assert_eq!(crowded(&four, &ring, 2), 0);
}

#[test]
fn a_member_that_comes_or_goes_moves_its_own_share_and_no_more() {
    for n in [1, 2, 3, 5, 10, 30, 99] {
        for rf in [1u8, 2, 3] {
            let before = plan(&plain(1..=n), rf, None);
            let joined = plan(&plain(1..=n + 1), rf, Some(&before));
            let share = loads(&plain(n + 1..=n + 1), &joined)[0];
            assert_eq!(moved(&before, &joined), share, "join of n{} at rf {rf}", n + 1);
            let left = plan(&plain(2..=n + 1), rf, Some(&joined));
            let lost = loads(&plain(1..=1), &joined)[0];
            let placed = usize::from(rf.min(n as u8)) * 256 - (joined.iter().map(Vec::len).sum::<usize>() - lost);
            assert!(moved(&joined, &left) <= placed + 4, "leave: {} for {placed}", moved(&joined, &left));
        }
    }
}

#[test]
fn the_load_of_a_member_that_is_down_falls_on_all_others() {
    let ring = plan(&plain(1..=6), 2, None);
    for node in 1..=6 {
        let mut partners = BTreeMap::new();
        for homes in ring.iter().filter(|h| h.contains(&NodeNum(node))) {
            homes.iter().filter(|n| n.0 != node).for_each(|n| *partners.entry(*n).or_insert(0) += 1);
        }
        assert_eq!(partners.len(), 5, "n{node} shares its slots with {partners:?}");
        assert!(partners.values().all(|shared| *shared >= 8), "n{node}: {partners:?}");
    }
}

fn weighted() -> impl Strategy<Value = Vec<Member>> {
    let one = (prop::option::weighted(0.7, 0u8..5), 0u32..4);
    prop::collection::vec(one, 1..=40).prop_map(|all| {
        let names = ["a", "b", "c", "d", "e"];
        let zone = |z: Option<u8>| z.map(|z| names[usize::from(z)]);
        all.into_iter().enumerate().map(|(i, (z, w))| member(i as u16 + 1, zone(z), w)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn equal_members_keep_equal_shares_and_are_first_equally_often(n in 1u16..=100, rf in 1u8..=5) {
        let members = plain(1..=n);
        let ring = plan(&members, rf, None);
        sound(&members, rf, &ring);
        let loads = loads(&members, &ring);
        prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "{loads:?}");
        let firsts: Vec<usize> =
            members.iter().map(|m| ring.iter().filter(|h| h.first() == Some(&m.node)).count()).collect();
        prop_assert!(firsts.iter().max().unwrap() - firsts.iter().min().unwrap() <= 2, "{firsts:?}");
        prop_assert_eq!(&plan(&members, rf, Some(&ring)), &ring, "a ring that fits stays");
    }

    #[test]
    fn even_zones_hold_one_copy_each(zones in 2u16..=5, each in 1u16..=8, rf in 1u8..=5) {
        let names = ["a", "b", "c", "d", "e"];
        let members: Vec<Member> =
            (0..zones * each).map(|i| member(i + 1, Some(names[usize::from(i % zones)]), 1)).collect();
        let ring = plan(&members, rf, None);
        sound(&members, rf, &ring);
        let copies = usize::from(rf).min(members.len());
        prop_assert_eq!(crowded(&members, &ring, copies.div_ceil(usize::from(zones))), 0);
        let loads = loads(&members, &ring);
        prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "{loads:?}");
    }

    /// Whatever the members, the ring is sound, zones are as distinct as they can be, and within a zone members keep
    /// their share by weight to within one.
    #[test]
    fn any_members_get_a_sound_ring(members in weighted(), rf in 1u8..=4, change in any::<prop::sample::Index>()) {
        let ring = plan(&members, rf, None);
        sound(&members, rf, &ring);
        let able: Vec<&Member> = members.iter().filter(|m| m.weight > 0).collect();
        if !able.is_empty() {
            let sizes = able.iter().fold(BTreeMap::new(), |mut sizes, m| {
                *sizes.entry(m.zone.as_deref().ok_or(m.node)).or_insert(0usize) += 1;
                sizes
            });
            let copies = usize::from(rf).min(able.len());
            let most = (1..=copies).find(|k| sizes.values().map(|n| n.min(k)).sum::<usize>() >= copies).unwrap();
            prop_assert_eq!(crowded(&members, &ring, most), 0);
        }
        let loads = loads(&members, &ring);
        for (a, la) in members.iter().zip(&loads) {
            for (b, lb) in members.iter().zip(&loads).filter(|(b, _)| b.zone.is_some() && b.zone == a.zone) {
                prop_assert!(a.weight != b.weight || la.abs_diff(*lb) <= 1);
                prop_assert!(a.weight < b.weight || la + 1 >= *lb);
            }
        }

        // And after one of them went, still so.
        let gone = change.index(members.len());
        let rest: Vec<Member> =
            members.iter().enumerate().filter(|(i, _)| *i != gone).map(|(_, m)| m.clone()).collect();
        if !rest.is_empty() {
            let after = plan(&rest, rf, Some(&ring));
            sound(&rest, rf, &after);
        }
    }
}
