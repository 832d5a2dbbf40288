//! Tables.

mod model;

use std::sync::Arc;

use uuid::Uuid;

use super::*;
use crate::types::{
    ChangeKind, ClusterId, Hlc, InstanceId, Key, Member, Moving, Topology, TopologyChange, Version, Writer,
};

fn topology(epoch: u64, members: u16, rf: u8) -> Topology {
    let member = |n: u16| Member {
        node: NodeNum(n),
        instance: InstanceId(Uuid::from_u128(n.into())),
        writer: Writer(n.into()),
        zone: None,
        weight: 1,
        mesh_address: String::new(),
        http_address: String::new(),
    };
    let homes = |slot: usize| (0..rf.into()).map(|i| NodeNum(((slot + i) % usize::from(members)) as u16 + 1)).collect();
    let topology = Topology {
        epoch: Epoch(epoch),
        cluster_id: ClusterId(Uuid::from_u128(7)),
        rf,
        members: (1..=members).map(member).collect(),
        ring: (0..Slot::COUNT).map(homes).collect(),
        next_writer: Writer(u32::from(members) + 1),
        moving: None,
    };
    topology.check().unwrap();
    topology
}

fn ring(epoch: u64, members: u16, rf: u8) -> Arc<Ring> {
    Arc::new(Ring::new(Arc::new(topology(epoch, members, rf))))
}

/// The epoch after that one, as the test changes it.
fn after(ring: &Ring, change: impl FnOnce(&mut Topology)) -> Arc<Ring> {
    let mut next = (**ring.topology()).clone();
    next.epoch = Epoch(next.epoch.0 + 1);
    change(&mut next);
    Arc::new(Ring::new(Arc::new(next)))
}

/// The change that begins there: all slots move on by so many members.
fn begin(by: u16, rf: u8) -> impl FnOnce(&mut Topology) {
    move |next| {
        let (since, change) = (next.epoch, TopologyChange::ReplicationFactor);
        let before = std::mem::take(&mut next.ring);
        let members = next.members.len() as u16;
        let homes = |slot: u16| (0..rf.into()).map(|i: u16| NodeNum((slot + by + i) % members + 1)).collect();
        next.ring = (0..Slot::COUNT as u16).map(homes).collect();
        next.moving = Some(Moving { since, change, rf: next.rf, ring: before });
        next.rf = rf;
    }
}

fn complete(next: &mut Topology) {
    next.moving = None;
}

fn abort(next: &mut Topology) {
    let moving = next.moving.take().unwrap();
    (next.rf, next.ring) = (moving.rf, moving.ring);
}

fn change(key: &str, version: u64) -> KeyChange {
    let version = Version::plain(Hlc(version), Writer(1));
    KeyChange { key: Key::new(key.to_owned()).unwrap(), version, kind: ChangeKind::Delete }
}

fn page(boot: u64, seq: u64, reaches: bool, changes: Vec<KeyChange>) -> ChangesPage {
    ChangesPage { changes, at: Position { boot, seq }, reaches, more: false }
}

fn all_slots() -> SlotSet {
    Slot::all().collect()
}

/// A watch of three members with two copies, from now on.
fn begun() -> Watch {
    let mut watch = Watch::new(ring(1, 3, 2), all_slots(), None).unwrap();
    for node in 1..=3 {
        assert_eq!(watch.place(NodeNum(node)), None);
        assert_eq!(watch.on_page(NodeNum(node), page(1, 10, false, vec![]), (0, 1)), Ok(vec![]));
        // Of two copies one is enough.
        assert_eq!((watch.is_covered(), watch.awaits()), (node >= 2, node < 3), "{node}");
    }
    watch.begin();
    watch
}

fn resumed(cursor: &Cursor) -> Result<Watch, Gone> {
    Watch::new(ring(1, 3, 2), all_slots(), Some(cursor))
}

fn lost(watch: &mut Watch, node: u16, now_ms: u64) -> Result<Vec<KeyChange>, Gone> {
    watch.on_page(NodeNum(node), page(2, 3, false, vec![]), (now_ms, now_ms))
}

fn caught_up(watch: &mut Watch, node: u16, asked_ms: u64) {
    let Position { boot, seq } = watch.place(NodeNum(node)).unwrap();
    assert_eq!(watch.on_page(NodeNum(node), page(boot, seq + 1, true, vec![]), (asked_ms, asked_ms)), Ok(vec![]));
}

#[test]
fn what_two_replicas_stored_is_told_once() {
    let mut watch = begun();
    let told = watch.on_page(NodeNum(1), page(1, 12, true, vec![change("a", 5), change("b", 6)]), (2, 3));
    assert_eq!(told, Ok(vec![change("a", 5), change("b", 6)]));
    let told =
        watch.on_page(NodeNum(2), page(1, 13, true, vec![change("a", 4), change("a", 5), change("a", 7)]), (2, 3));
    assert_eq!(told, Ok(vec![change("a", 7)]));
    assert_eq!(watch.place(NodeNum(2)), Some(Position { boot: 1, seq: 13 }));
    let places: Vec<u64> = watch.cursor().places.iter().map(|(_, at)| at.seq).collect();
    assert_eq!(places, [12, 13, 10]);
}

#[test]
fn a_member_that_restarts_covers_again_once_the_others_were_heard() {
    let mut watch = begun();
    assert_eq!(lost(&mut watch, 1, 1_000), Ok(vec![]));
    assert_eq!(watch.cursor().places.iter().map(|(node, _)| node.0).collect::<Vec<_>>(), [2, 3]);
    caught_up(&mut watch, 2, 1_000 + IN_FLIGHT_MS - 1);
    caught_up(&mut watch, 3, 1_000 + IN_FLIGHT_MS);
    assert_eq!(watch.place(NodeNum(1)), Some(Position { boot: 2, seq: 3 }));
    let mut too_soon = Watch { members: watch.members.clone(), ..begun() };
    assert!(matches!(lost(&mut too_soon, 2, 6_500), Err(Gone::Forgotten(_))), "of it and node 1 nobody knows");
    caught_up(&mut watch, 2, 1_000 + IN_FLIGHT_MS);
    assert_eq!(watch.cursor().places.len(), 3);
    assert_eq!(lost(&mut watch, 2, 6_500), Ok(vec![]));
}

#[test]
fn who_is_not_heard_keeps_those_waiting_that_share_slots_with_it() {
    let mut watch = begun();
    assert_eq!(lost(&mut watch, 1, 1_000), Ok(vec![]));
    caught_up(&mut watch, 2, 7_000);
    // Node 3 was not heard: of slots on nodes 1 and 3 it alone knows; of those on 1 and 2 both do.
    let mut other = Watch { members: watch.members.clone(), ..begun() };
    assert_eq!(lost(&mut other, 2, 7_500), Ok(vec![]));
    assert!(matches!(lost(&mut watch, 3, 7_500), Err(Gone::Forgotten(_))));
}

#[test]
fn who_answers_when_it_is_in_force_only_joins() {
    let mut watch = Watch::new(ring(1, 3, 2), all_slots(), None).unwrap();
    for node in [1, 2] {
        assert_eq!(watch.on_page(NodeNum(node), page(1, 10, false, vec![]), (0, 1)), Ok(vec![]));
    }
    watch.begin();
    assert_eq!(watch.on_page(NodeNum(3), page(1, 10, false, vec![]), (0, 1)), Ok(vec![]));
    assert_eq!(watch.cursor().places.len(), 2);
    assert!(matches!(lost(&mut watch, 1, 2), Err(Gone::Forgotten(_))), "what node 3 had stored before is not known");
}

#[test]
fn the_only_copy_that_restarts_ends_it() {
    let mut watch = Watch::new(ring(1, 1, 1), all_slots(), None).unwrap();
    assert_eq!(watch.on_page(NodeNum(1), page(1, 1, false, vec![]), (0, 1)), Ok(vec![]));
    assert!(watch.is_covered());
    watch.begin();
    assert_eq!(watch.on_page(NodeNum(1), page(2, 0, false, vec![]), (2, 3)), Err(Gone::Forgotten(Slot(0))));
}

#[test]
fn a_cursor_is_good_while_every_slot_is_covered() {
    let cursor = begun().cursor();
    let mut watch = resumed(&cursor).unwrap();
    assert_eq!(watch.place(NodeNum(3)), Some(Position { boot: 1, seq: 10 }));
    assert_eq!(lost(&mut watch, 1, 1_000), Ok(vec![]));
    assert!(!watch.is_covered());
    caught_up(&mut watch, 2, 1_000);
    assert!(!watch.is_covered(), "of slots on nodes 1 and 3 nobody has answered");
    caught_up(&mut watch, 3, 1_000);
    assert!(watch.is_covered());
    let mut watch = resumed(&cursor).unwrap();
    assert_eq!(lost(&mut watch, 1, 1_000), Ok(vec![]));
    assert!(matches!(lost(&mut watch, 2, 1_000), Err(Gone::Forgotten(_))));
    let few = Cursor { places: vec![(NodeNum(1), Position::default())], ..cursor.clone() };
    assert!(matches!(resumed(&few), Err(Gone::Forgotten(_))));
    assert_eq!(resumed(&Cursor { cluster: 1, ..cursor.clone() }).unwrap_err(), Gone::Foreign);
    let other = Watch::new(ring(2, 3, 2), all_slots(), Some(&cursor)).unwrap_err();
    assert_eq!(other, Gone::Epoch { from: Epoch(1), to: Epoch(2) });
}

/// A key of that slot.
fn key_of(ring: &Ring, slot: u8) -> String {
    (0u32..)
        .map(|n| n.to_string())
        .find(|name| ring.token(&Key::new(name.clone()).unwrap()).slot() == Slot(slot))
        .unwrap()
}

#[test]
fn a_watch_goes_on_while_the_same_members_cover_what_is_watched() {
    // Of four members with two copies slot 0 is on 1 and 2, and then on 2 and 3; slot 1 follows it, and so on.
    let first = ring(1, 4, 2);
    let of = |slots: SlotSet| {
        let mut watch = Watch::new(first.clone(), slots, None).unwrap();
        for node in 1..=4 {
            watch.on_page(NodeNum(node), page(1, 10, false, vec![]), (0, 1)).unwrap();
        }
        watch.begin();
        watch
    };
    let moving = after(&first, begin(1, 2));
    let gone = |from, to| Err(Gone::Epoch { from: Epoch(from), to: Epoch(to) });
    let mut watch = of(all_slots());
    let cursor = watch.cursor();
    assert_eq!(watch.move_to(moving.clone()), Ok(()));
    assert_eq!((watch.epoch(), watch.place(NodeNum(1))), (Epoch(2), Some(Position { boot: 1, seq: 10 })));
    assert_eq!(watch.move_to(after(&moving, abort)), Ok(()), "what was before counted all along");
    let mut watch = of(all_slots());
    watch.move_to(moving.clone()).unwrap();
    assert_eq!(watch.move_to(after(&moving, complete)), gone(2, 3));
    assert_eq!(of(all_slots()).move_to(after(&moving, abort)), gone(1, 3), "nobody saw what was between");
    // A cursor is good where a change began, and where that alone was.
    assert!(Watch::new(moving.clone(), all_slots(), Some(&cursor)).is_ok());
    assert_eq!(Watch::new(moving.clone(), all_slots(), Some(&watch.cursor())).map(drop), Ok(()));
    for next in [after(&moving, abort), after(&first, |_| {}), after(&moving, |_| {})] {
        let resumed = Watch::new(next.clone(), all_slots(), Some(&cursor));
        assert_eq!(resumed.map(drop), gone(1, next.epoch().0));
    }
    // Another instance, of a member that is followed and of one that is not.
    let replaced = after(&first, |next| next.members[0].instance = InstanceId(Uuid::from_u128(99)));
    assert_eq!(of(all_slots()).move_to(replaced.clone()), gone(1, 2));
    let one = [Slot(1)].into_iter().collect();
    assert_eq!(of(one).members().collect::<Vec<_>>(), [2, 3].map(NodeNum));
    assert_eq!(of(one).move_to(replaced), Ok(()));
}

#[test]
fn a_slot_that_moves_is_covered_by_what_it_had_and_its_new_replicas_tell_no_news() {
    let moving = after(&ring(1, 4, 2), begin(2, 2));
    let only = [Slot(0)].into_iter().collect();
    let watch = Watch::new(moving.clone(), only, None).unwrap();
    assert_eq!(watch.members().collect::<Vec<_>>(), [1, 2].map(NodeNum), "3 and 4 get it");
    let mut watch = Watch::new(moving.clone(), all_slots(), None).unwrap();
    for node in 3..=4 {
        watch.on_page(NodeNum(node), page(1, 10, false, vec![]), (0, 1)).unwrap();
    }
    assert!(watch.uncovered().contains(Slot(0)) && !watch.uncovered().contains(Slot(2)));
    watch.on_page(NodeNum(1), page(1, 10, false, vec![]), (0, 1)).unwrap();
    watch.begin();
    let (gets, has) = (change(&key_of(&moving, 0), 5), change(&key_of(&moving, 2), 5));
    let told = watch.on_page(NodeNum(3), page(1, 12, true, vec![gets.clone(), has.clone()]), (2, 3));
    assert_eq!(told, Ok(vec![has]), "it may just have caught up with the other");
    assert_eq!(watch.on_page(NodeNum(1), page(1, 11, true, vec![gets.clone()]), (2, 3)), Ok(vec![gets]));
}
