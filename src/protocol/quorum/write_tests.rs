//! The write fold: tables for each rule, and a property that counts disks the obvious way.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::testing::*;
use super::{Ask, WriteAsk, WriteFold, WriteState};
use crate::types::{Answer, Hlc, Level, NodeNum, PeerError, Refusal, ReplicaReply};

fn all_up(_: NodeNum) -> Ask {
    Ask::Yes
}

fn down(numbers: &[u16]) -> impl Fn(NodeNum) -> Ask + use<> {
    let down = nodes(numbers);
    move |node| if down.contains(&node) { Ask::No } else { Ask::Yes }
}

fn write(to: u16) -> WriteAsk {
    WriteAsk::Write { to: n(to) }
}

fn hint(to: u16, target: u16, counted: bool) -> WriteAsk {
    WriteAsk::Hint { to: n(to), target: n(target), counted }
}

fn fold(homes: &[u16], fallbacks: &[u16], level: Level) -> WriteFold {
    WriteFold::plain(placement(&[homes], fallbacks), level, version(10, 1))
}

const HINTED: Answer = Ok(ReplicaReply::Hinted);

#[test]
fn two_of_two_acks_meet_quorum_strictly() {
    let mut fold = fold(&[1, 2], &[3], Level::Quorum);
    assert_eq!(fold.start(&all_up).as_slice(), [write(1), write(2)]);
    fold.on_write(n(1), &stored(None), &all_up);
    assert_eq!(fold.state(), WriteState::Waiting);
    fold.on_write(n(2), &stored(None), &all_up);
    assert_eq!(fold.state(), WriteState::Met);
    assert!(fold.is_strict() && fold.is_new() && !fold.is_open());
}

#[test]
fn an_unreachable_replica_is_replaced_by_a_counted_hint_at_once() {
    let mut fold = fold(&[1, 2], &[3], Level::Quorum);
    assert_eq!(fold.start(&down(&[2])).as_slice(), [write(1), hint(3, 2, true)]);
    fold.on_write(n(1), &stored(None), &all_up);
    fold.on_hint(n(3), n(2), true, &HINTED, &all_up);
    assert_eq!(fold.state(), WriteState::Met);
    assert!(!fold.is_strict());
    assert_eq!(fold.hinted().collect::<Vec<_>>(), [(n(2), n(3))]);
}

#[test]
fn what_cannot_be_met_is_not_begun() {
    for (fallbacks, level) in [(&[][..], Level::Quorum), (&[3][..], Level::All), (&[3][..], Level::Linearizable)] {
        let mut fold = fold(&[1, 2], fallbacks, level);
        assert!(fold.start(&down(&[2])).is_empty());
        assert_eq!(fold.state(), WriteState::Failed);
        assert!(!fold.maybe_stored());
        assert_eq!(fold.failed().len(), 2);
    }
}

#[test]
fn at_one_a_single_copy_answers_and_the_other_home_keeps_the_hint() {
    let mut fold = fold(&[1, 2], &[], Level::One);
    assert_eq!(fold.start(&down(&[2])).as_slice(), [write(1)]);
    fold.on_write(n(1), &stored(None), &all_up);
    assert_eq!(fold.state(), WriteState::Met);
    assert!(!fold.is_strict());
    assert_eq!(fold.leftovers(&all_up).as_slice(), [hint(1, 2, false)]);
}

#[test]
fn what_a_replaced_instance_acknowledged_counts_no_more() {
    let mut fold = fold(&[1, 2, 3], &[], Level::Quorum);
    fold.start(&all_up);
    fold.on_write(n(1), &stored(None), &all_up);
    fold.on_write(n(2), &Err(PeerError::Lost), &all_up);
    assert_eq!(fold.move_to(placement(&[&[1, 2, 3]], &[]), &nodes(&[1]), &all_up).as_slice(), [1, 2, 3].map(write));
    fold.on_write(n(2), &stored(None), &all_up);
    assert_eq!(fold.state(), WriteState::Waiting);
    fold.on_write(n(3), &stored(None), &all_up);
    assert_eq!(fold.state(), WriteState::Met);
}

#[test]
fn a_lagging_clock_stamps_again_once_a_majority_was_heard() {
    let mut fold = fold(&[1, 2, 3], &[4], Level::Quorum);
    fold.start(&all_up);
    fold.on_write(n(1), &dominated(version(20, 2)), &all_up);
    assert_eq!(fold.state(), WriteState::Waiting);
    fold.on_write(n(2), &stored(None), &all_up);
    assert_eq!(fold.state(), WriteState::Restamp { above: Hlc(20) });
    let again = fold.restart(version(21, 1), &all_up);
    assert_eq!(again.len(), 3);
    // In the second round every answer is an acknowledgement.
    fold.on_write(n(1), &dominated(version(30, 2)), &all_up);
    fold.on_write(n(3), &stored(Some(seen(version(10, 1), true))), &all_up);
    assert_eq!(fold.state(), WriteState::Met);
    assert!(fold.is_strict());
    assert_eq!(fold.version(), version(21, 1));
}

#[test]
fn with_two_copies_both_are_heard_before_it_is_stamped_again() {
    let mut fold = fold(&[1, 2], &[], Level::Quorum);
    fold.start(&all_up);
    fold.on_write(n(1), &dominated(version(20, 2)), &all_up);
    assert_eq!(fold.state(), WriteState::Waiting);
    fold.on_write(n(2), &dominated(version(30, 2)), &all_up);
    assert_eq!(fold.state(), WriteState::Restamp { above: Hlc(30) });
}

#[test]
fn a_majority_of_acks_needs_no_second_stamp() {
    let mut fold = fold(&[1, 2, 3], &[], Level::Quorum);
    fold.start(&all_up);
    fold.on_write(n(1), &stored(None), &all_up);
    fold.on_write(n(2), &stored(None), &all_up);
    fold.on_write(n(3), &dominated(version(20, 2)), &all_up);
    assert_eq!(fold.state(), WriteState::Met);
}

#[test]
fn stamped_again_without_a_majority_is_not_strict() {
    let mut fold = fold(&[1, 2], &[3], Level::Quorum);
    fold.start(&down(&[2]));
    fold.on_write(n(1), &dominated(version(20, 2)), &all_up);
    assert_eq!(fold.state(), WriteState::Restamp { above: Hlc(20) });
    fold.restart(version(21, 1), &all_up);
    fold.on_write(n(1), &stored(None), &all_up);
    fold.on_write(n(2), &stored(None), &all_up);
    assert_eq!(fold.state(), WriteState::Met);
    assert!(!fold.is_strict());
}

#[test]
fn a_copy_of_its_own_that_came_another_way_is_an_ack() {
    let mut fold = fold(&[1, 2], &[], Level::Quorum);
    fold.start(&all_up);
    fold.on_write(n(1), &dominated(version(10, 1)), &all_up);
    let built_on_it = crate::types::Version { rmw: 2, ..version(10, 1) };
    fold.on_write(n(2), &dominated(built_on_it), &all_up);
    assert_eq!(fold.state(), WriteState::Met);
    assert!(fold.is_new());
}

#[test]
fn below_the_floor_is_stamped_again_and_then_is_no_ack() {
    let floor = crate::types::Floor { version: version(40, 3), ..Default::default() };
    let below: Answer = Ok(ReplicaReply::BelowFloor { floor });
    let mut fold = fold(&[1], &[], Level::Quorum);
    fold.start(&all_up);
    fold.on_write(n(1), &below, &all_up);
    assert_eq!(fold.state(), WriteState::Restamp { above: Hlc(40) });
    fold.restart(version(41, 1), &all_up);
    fold.on_write(n(1), &below, &all_up);
    assert_eq!(fold.state(), WriteState::Failed);
}

#[test]
fn a_hung_replica_and_its_hint_count_once() {
    let mut fold = fold(&[1, 2, 3], &[4, 5], Level::Quorum);
    fold.start(&all_up);
    fold.on_write(n(1), &Err(PeerError::Unreachable), &all_up);
    let asks = fold.on_silence(&nodes(&[2]), &all_up);
    // With two of three gone a hint must count, and the one for n1 is promoted.
    assert_eq!(asks.as_slice(), [hint(4, 1, true), hint(5, 2, true)]);
    fold.on_hint(n(5), n(2), true, &HINTED, &all_up);
    fold.on_write(n(2), &stored(None), &all_up);
    assert_eq!(fold.state(), WriteState::Waiting, "n2 and the hint for n2 are one copy");
    fold.on_hint(n(4), n(1), true, &HINTED, &all_up);
    assert_eq!(fold.state(), WriteState::Met);
    assert_eq!(fold.hinted().collect::<Vec<_>>(), [(n(1), n(4))]);
}

#[test]
fn hints_on_one_disk_count_once() {
    let mut fold = fold(&[1, 2, 3, 4, 5], &[6], Level::Quorum);
    let asks = fold.start(&down(&[2, 3, 4]));
    assert_eq!(asks.iter().filter(|a| matches!(a, WriteAsk::Hint { .. })).count(), 3);
    fold.on_write(n(1), &stored(None), &all_up);
    for target in [2, 3, 4] {
        fold.on_hint(n(6), n(target), true, &HINTED, &all_up);
    }
    assert_eq!(fold.state(), WriteState::Waiting, "two disks of the three needed");
    fold.on_write(n(5), &stored(None), &all_up);
    assert_eq!(fold.state(), WriteState::Met);
}

#[test]
fn a_full_fallback_is_passed_over() {
    let full: Answer = Ok(ReplicaReply::Refused(Refusal::HintsFull));
    let mut fold = fold(&[1, 2], &[3, 4], Level::Quorum);
    fold.start(&down(&[2]));
    assert_eq!(fold.on_hint(n(3), n(2), true, &full, &down(&[2])).as_slice(), [hint(4, 2, true)]);
    assert!(fold.on_hint(n(4), n(2), true, &full, &down(&[2])).is_empty());
    assert_eq!(fold.state(), WriteState::Failed);
}

#[test]
fn refusals_by_all_leave_nothing_behind() {
    let refused: Answer = Ok(ReplicaReply::Refused(Refusal::DiskFull));
    let mut fold = fold(&[1, 2], &[], Level::Quorum);
    fold.start(&all_up);
    fold.on_write(n(1), &refused, &all_up);
    fold.on_write(n(2), &refused, &all_up);
    assert_eq!(fold.state(), WriteState::Failed);
    assert!(!fold.maybe_stored() && fold.disks_full());
    let mut fold = super::write_tests::fold(&[1, 2], &[], Level::Quorum);
    fold.start(&all_up);
    fold.on_write(n(1), &refused, &all_up);
    fold.on_write(n(2), &Err(PeerError::Lost), &all_up);
    assert!(fold.maybe_stored());
}

#[test]
fn a_hint_that_could_not_be_promoted_may_still_be_delivered() {
    let refused: Answer = Ok(ReplicaReply::Refused(Refusal::DiskFull));
    let mut fold = fold(&[1, 2, 3], &[4], Level::Quorum);
    assert_eq!(fold.start(&down(&[1])).as_slice(), [write(2), write(3), hint(4, 1, false)]);
    fold.on_hint(n(4), n(1), false, &HINTED, &down(&[1]));
    assert!(fold.on_write(n(2), &refused, &down(&[1])).contains(&hint(4, 1, true)));
    fold.on_hint(n(4), n(1), true, &Err(PeerError::Unreachable), &down(&[1, 4]));
    fold.on_hint(n(4), n(2), true, &Err(PeerError::Unreachable), &down(&[1, 4]));
    fold.on_write(n(3), &refused, &down(&[1, 4]));
    assert_eq!(fold.state(), WriteState::Failed);
    assert!(fold.maybe_stored(), "n4 kept the first hint");
}

#[test]
fn a_probed_replica_has_a_stand_in_from_the_start() {
    let probing = |node: NodeNum| if node == n(2) { Ask::Probe } else { Ask::Yes };
    let mut fold = fold(&[1, 2], &[3], Level::Quorum);
    assert_eq!(fold.start(&probing).as_slice(), [write(1), write(2), hint(3, 2, true)]);
}

fn silent_lately(numbers: &[u16], down: &[u16]) -> impl Fn(NodeNum) -> Ask + use<> {
    let (last, down) = (nodes(numbers), nodes(down));
    move |node| match node {
        node if down.contains(&node) => Ask::No,
        node if last.contains(&node) => Ask::Last,
        _ => Ask::Yes,
    }
}

#[test]
fn who_was_silent_lately_is_asked_where_nobody_else_is_left() {
    // A stand-in takes its place.
    let mut fresh = fold(&[1, 2], &[3], Level::Quorum);
    assert_eq!(fresh.start(&silent_lately(&[2], &[])).as_slice(), [write(1), hint(3, 2, true)]);
    // It is the only stand-in, a home replica beside a dead one, or needed by the level.
    let mut fresh = fold(&[1, 2], &[3], Level::Quorum);
    assert_eq!(fresh.start(&silent_lately(&[3], &[2])).as_slice(), [write(1), hint(3, 2, true)]);
    let mut beside = fold(&[1, 2], &[3], Level::Quorum);
    let asks = beside.start(&silent_lately(&[1], &[2]));
    assert_eq!(asks.as_slice(), [hint(3, 1, true), hint(3, 2, true), write(1)]);
    beside.on_hint(n(3), n(2), true, &HINTED, &all_up);
    assert_eq!(beside.state(), WriteState::Waiting);
    beside.on_write(n(1), &stored(None), &all_up);
    assert_eq!(beside.state(), WriteState::Met);
    let mut all = fold(&[1, 2], &[3], Level::All);
    assert_eq!(all.start(&silent_lately(&[2], &[])).as_slice(), [write(1), write(2)]);
    // Nothing that may be dropped is worth it.
    let mut fresh = fold(&[1, 2, 3], &[4], Level::Quorum);
    assert_eq!(fresh.start(&silent_lately(&[4], &[3])).as_slice(), [write(1), write(2)]);
}

#[test]
fn every_write_set_must_be_met() {
    let mut fold = WriteFold::plain(placement(&[&[1, 2], &[2, 3]], &[]), Level::Quorum, version(10, 1));
    assert_eq!(fold.start(&all_up).as_slice(), [write(1), write(2), write(3)]);
    fold.on_write(n(1), &stored(None), &all_up);
    fold.on_write(n(2), &stored(None), &all_up);
    assert_eq!(fold.state(), WriteState::Waiting);
    fold.on_write(n(3), &stored(None), &all_up);
    assert_eq!(fold.state(), WriteState::Met);
}

#[test]
fn only_somebody_elses_live_value_makes_it_a_replacement() {
    for (replaced, new) in
        [(None, true), (Some(seen(version(5, 2), false)), true), (Some(seen(version(5, 2), true)), false)]
    {
        let mut fold = fold(&[1], &[], Level::Quorum);
        fold.start(&all_up);
        fold.on_write(n(1), &stored(replaced), &all_up);
        assert_eq!(fold.is_new(), new);
    }
}

#[test]
fn a_write_back_asks_only_those_without_the_record() {
    let mut fold = WriteFold::write_back(
        placement(&[&[1, 2, 3]], &[]),
        Level::Quorum,
        &record(version(10, 1), Some("v")),
        &nodes(&[2]),
    );
    assert_eq!(fold.start(&all_up).as_slice(), [write(1), write(3)]);
    fold.on_write(n(1), &dominated(version(20, 2)), &all_up);
    assert_eq!(fold.state(), WriteState::Met);
}

/// What may come to a write under way.
#[derive(Clone, Debug)]
enum Event {
    Home(u16, u8),
    Hint(usize, bool),
    Silence(u16),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (1u16..=3, 0u8..4).prop_map(|(n, a)| Event::Home(n, a)),
        (0usize..8, any::<bool>()).prop_map(|(i, kept)| Event::Hint(i, kept)),
        (1u16..=3).prop_map(Event::Silence),
    ]
}

proptest! {
    /// Whatever comes in whatever order: it is met exactly when enough different disks hold a copy that counts.
    #[test]
    fn met_means_enough_disks(
        rf in 1u16..=3,
        fallbacks in 0u16..3,
        downs in prop::collection::vec(1u16..=6, 0..3),
        level in prop_oneof![Just(Level::One), Just(Level::Quorum), Just(Level::All)],
        events in prop::collection::vec(event(), 0..12),
    ) {
        let homes: Vec<u16> = (1..=rf).collect();
        let asking = down(&downs);
        let mut fold = fold(&homes, &(4..4 + fallbacks).collect::<Vec<_>>(), level);
        let mut sent: Vec<WriteAsk> = fold.start(&asking).to_vec();
        let mut answered = BTreeSet::new();
        let mut acked = BTreeSet::new();
        let mut hints: BTreeSet<(u16, u16)> = BTreeSet::new();
        for event in events {
            if fold.state() != WriteState::Waiting { break }
            let more = match event {
                Event::Home(to, answer) => {
                    if !sent.contains(&write(to)) || !answered.insert((to, 0, false)) { continue }
                    let answer = match answer {
                        0 | 1 => { acked.insert(to); stored(None) }
                        2 => Err(PeerError::Lost),
                        _ => Ok(ReplicaReply::Refused(Refusal::NotWriting)),
                    };
                    fold.on_write(n(to), &answer, &asking)
                }
                Event::Hint(i, kept) => {
                    let Some(WriteAsk::Hint { to, target, counted }) = sent.get(i).copied() else { continue };
                    if !answered.insert((to.0, target.0, counted)) { continue }
                    if kept && counted { hints.insert((target.0, to.0)); }
                    let answer = if kept { HINTED } else { Ok(ReplicaReply::Refused(Refusal::HintsFull)) };
                    fold.on_hint(to, target, counted, &answer, &asking)
                }
                Event::Silence(node) => fold.on_silence(&[n(node)], &asking),
            };
            sent.extend(more);
        }
        let holders: BTreeSet<u16> = hints.iter().filter(|(t, h)| !acked.contains(t) && !acked.contains(h)).map(|(_, h)| *h).collect();
        let needed = level.needed(usize::from(rf));
        prop_assert_eq!(fold.state() == WriteState::Met, acked.len() + holders.len() >= needed);
        for ask in &sent {
            let (WriteAsk::Write { to } | WriteAsk::Hint { to, .. }) = ask;
            prop_assert!(!downs.contains(&to.0), "nobody unreachable is asked");
        }
        if level == Level::All { prop_assert!(hints.is_empty()) }
    }
}

#[test]
fn a_purged_tombstone_is_there_and_a_purged_value_is_not() {
    let below: Answer = Ok(ReplicaReply::BelowFloor { floor: Default::default() });
    for (content, state) in [(None, WriteState::Met), (Some("v"), WriteState::Waiting)] {
        let record = record(version(10, 1), content);
        let mut fold = WriteFold::write_back(placement(&[&[1, 2, 3]], &[]), Level::Linearizable, &record, &nodes(&[2]));
        fold.start(&all_up);
        fold.on_write(n(1), &below, &all_up);
        assert_eq!(fold.state(), state);
    }
}
