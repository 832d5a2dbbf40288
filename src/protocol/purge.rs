//! Purging tombstones: when a deleted key may be forgotten, by rules that need no clock to be right.
//!
//! A tombstone that is dropped too early lets an old copy of the value come back: from a replica that was down, from a
//! hint, from a write that was under way. So the home replicas of a slot agree on a *floor* {G, V, L} first: nothing
//! written up to G with a version up to V is new where nothing is stored, and no ballot up to L is. The lowest-numbered
//! home replica raises it, step by step, each on disk everywhere before the next:
//!
//! 1. *survey*: all floors are equal; else the greater of each part is completed everywhere first. The greatest clock among
//!    the answers is what the next G must reach: whatever an old base let somebody accept before the floor was complete
//!    was written by then.
//! 2. *seal* G', some minutes in the past: ballots up to (G', max) are refused from now on. What was accepted under them and
//!    is newer than its record is settled, as it may have been decided: proposed again, accepted and written.
//! 3. *hints*: every member has none written up to G'. So whatever was acknowledged up to then lies on a home replica. (A
//!    hint may be delivered while copies are compared, so this comes before.)
//! 4. *exchange*: the raiser compares itself with each of the others twice over, and the second time finds no difference
//!    written up to G'. Once over would not do: what it learns from the last, the first does not have.
//! 5. *floor*: {G', V, (G', max)} on every home replica, V the greatest version that will be dropped.
//! 6. *drop*: tombstones written up to the *previous* G, each with its register and only where that promised nothing above
//!    L, and registers of keys without a record.
//!
//! Why the previous G: a conditional write that was judged on an older base than the tombstone carries a ballot from before
//! the previous floor was complete, and so is below the next one, and is refused where the tombstone is gone.
//!
//! A step that fails ends the attempt; whatever it left behind (seals, a floor on some replicas) only ever refuses more than
//! it must, and the next attempt begins at the survey. The epoch must be the same throughout, and no change of the topology under
//! way: a new replica of a slot is caught up from what the others hold, which must not shrink meanwhile.

use std::collections::BTreeMap;

use super::ring::Ring;
use crate::types::{Ballot, Epoch, Floor, Hlc, NodeNum, Record, Register, Slot, SlotFloor, Version};

/// A floor is sealed at least so far in the past, beside what clocks may differ by, in milliseconds: longer than any
/// request may take.
pub const SEAL_AGE_MS: u64 = 120_000;
/// Keys of one slot that a seal names at a time.
pub const UNSETTLED_MAX: usize = 256;

/// How far in the past a seal lies: the longest a write may be under way, and what its stamp may lag behind the raiser's
/// clock, as each may be off by the allowed skew. Who keeps tombstones for less than that has said that his writes take
/// less.
pub fn seal_age_ms(grace_ms: u64, skew_max_ms: u64) -> u64 {
    SEAL_AGE_MS.saturating_add(skew_max_ms.saturating_mul(2)).min(grace_ms)
}

/// Whether that node raises the slot's floor: as its lowest-numbered home replica. Nobody does while the topology changes: a home
/// replica that is still catching up has not seen all that a floor would end.
pub fn raises(ring: &Ring, node: NodeNum, slot: Slot) -> bool {
    ring.topology().moving.is_none() && ring.placement(slot).home_replicas().iter().min() == Some(&node)
}

/// Whether a tombstone may be dropped under a floor that is complete, with its register; `Err`: not yet, as the register
/// promised something newer than the floor knows of.
///
/// # Errors
/// The tombstone must stay for its register's sake.
pub fn may_drop(
    floor: &Floor,
    up_to: Hlc,
    (version, written): (&Version, Hlc),
    promised: Option<Ballot>,
) -> Result<bool, Ballot> {
    if written > up_to || !floor.covers(version, written) {
        return Ok(false);
    }
    match promised {
        Some(promised) if promised > floor.ballot => Err(promised),
        _ => Ok(true),
    }
}

/// Whether the register of a key without a record may be dropped: nobody used it lately.
pub fn may_drop_orphan(floor: &Floor, up_to: Hlc, promised: Ballot) -> bool {
    promised <= floor.ballot && promised.hlc <= up_to
}

/// Whether a floor has ended what was accepted under that ballot.
pub fn is_ended(accepted: Ballot, kept: &SlotFloor) -> bool {
    accepted < kept.floor.ballot
}

/// Whether what a register accepted must be settled before ballots up to the seal may be forgotten: it is newer than the
/// record, and no floor has ended it yet. A tombstone that the floor covers was in its place and has been purged: it is
/// accepted again where another replica keeps it still, and could never be written here any more.
pub fn is_unsettled(register: &Register, record: Option<&Version>, kept: &SlotFloor) -> bool {
    let Some(accepted) = register.accepted.as_ref().filter(|accepted| !is_ended(accepted.ballot, kept)) else {
        return false;
    };
    let purged = |r: &Record| record.is_none() && r.is_tombstone() && kept.floor.covers(&r.version, r.written);
    accepted.record.as_ref().is_some_and(|r| Some(&r.version) > record && !purged(r))
}

/// What to do about a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// There is nothing that is old enough to be purged.
    Nothing,
    /// Some home replica does not have this floor.
    Complete(Floor),
    /// It is too early for the next seal.
    Wait,
    /// Raise it above this floor.
    Raise(Floor),
}

/// What the home replicas said of a slot: each its clock, its floor, and when the oldest was written that it has to purge.
pub type Said = (Hlc, Floor, Option<Hlc>);

/// Which floors are known to be complete, and since which reading of the clocks.
#[derive(Clone, Debug, Default)]
pub struct Complete {
    epoch: Option<Epoch>,
    slots: BTreeMap<Slot, (Floor, Hlc)>,
}

impl Complete {
    /// Takes in a survey of all home replicas of a slot. `seal` is the time that would be sealed now; what was written up to
    /// `of_age` is old enough to go.
    ///
    /// A floor is raised only where something is of age: either the last floor covers it, and it is dropped now, or this
    /// one will (a seal is never older than what is of age), and it is dropped with the next.
    pub fn next(&mut self, epoch: Epoch, slot: Slot, said: &[Said], (seal, of_age): (Hlc, Hlc)) -> Next {
        if self.epoch != Some(epoch) {
            // Another instance may have come in, which knows nothing of what was complete before.
            *self = Self { epoch: Some(epoch), slots: BTreeMap::new() };
        }
        let floor = said.iter().fold(Floor::default(), |all, (_, floor, _)| all.merge(floor));
        if said.iter().any(|(_, theirs, _)| *theirs != floor) {
            self.slots.remove(&slot);
            return Next::Complete(floor);
        }
        let greatest = said.iter().map(|(now, ..)| *now).max().unwrap_or_default();
        let known = self.slots.entry(slot).or_insert((floor, greatest));
        if known.0 != floor {
            *known = (floor, greatest);
        }
        if !said.iter().any(|(_, _, oldest)| oldest.is_some_and(|oldest| oldest <= of_age)) {
            return Next::Nothing;
        }
        if seal < known.1 || seal <= floor.written { Next::Wait } else { Next::Raise(floor) }
    }
}

/// The floor after that one, sealed up to then; `greatest` is the greatest version that will be dropped.
pub fn above(floor: &Floor, sealed: Hlc, greatest: Version) -> Floor {
    floor.merge(&Floor { written: sealed, version: greatest, ballot: Ballot::sealing(sealed) })
}

/// What was written up to this time is as old as it must be.
pub fn of_age(now: Hlc, grace_ms: u64) -> Hlc {
    Hlc::from_ms(now.ms().saturating_sub(grace_ms))
}

/// Up to which time tombstones may be dropped once a floor above that one is complete: they were covered by it, and are as
/// old as they must be.
pub fn drop_up_to(before: &Floor, now: Hlc, grace_ms: u64) -> Hlc {
    before.written.min(of_age(now, grace_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Accepted, Content, Key, OpId, Recent, Writer};

    fn version(hlc: u64) -> Version {
        Version::plain(Hlc(hlc), Writer(1))
    }

    fn floor(g: u64, v: u64) -> Floor {
        Floor { written: Hlc(g), version: version(v), ballot: Ballot::sealing(Hlc(g)) }
    }

    #[test]
    fn a_tombstone_goes_with_its_register_and_only_below_the_floor() {
        let at = |written: u64| may_drop(&floor(10, 8), Hlc(5), (&version(written), Hlc(written)), None);
        assert_eq!([at(5), at(6)], [Ok(true), Ok(false)]);
        assert_eq!(may_drop(&floor(10, 4), Hlc(5), (&version(5), Hlc(5)), None), Ok(false), "above V");
        let with = |hlc| {
            let promised = Ballot { hlc: Hlc(hlc), writer: Writer(3) };
            may_drop(&floor(10, 8), Hlc(5), (&version(5), Hlc(5)), Some(promised))
        };
        assert_eq!(with(10), Ok(true));
        assert!(with(11).is_err());
        let orphan = |hlc| may_drop_orphan(&floor(10, 8), Hlc(5), Ballot { hlc: Hlc(hlc), writer: Writer(3) });
        assert_eq!([orphan(5), orphan(6), orphan(11)], [true, false, false]);
    }

    #[test]
    fn what_was_accepted_above_its_record_is_settled_unless_a_floor_ended_it() {
        let key = Key::new("k").unwrap();
        let holding = |hlc, written: Option<u64>, content: &Content| Register {
            promised: Ballot::default(),
            accepted: Some(Accepted {
                ballot: Ballot { hlc: Hlc(hlc), writer: Writer(1) },
                op: OpId(uuid::Uuid::nil()),
                record: written.map(|v| Record::seal(&key, version(v), Hlc(v), content.clone())),
                recent: Recent::NONE,
            }),
        };
        let state = |hlc, written| holding(hlc, written, &Content::Tombstone);
        let none = SlotFloor::default();
        assert!(is_unsettled(&state(5, Some(4)), None, &none));
        assert!(is_unsettled(&state(5, Some(4)), Some(&version(3)), &none));
        assert!(!is_unsettled(&state(5, Some(4)), Some(&version(4)), &none));
        assert!(!is_unsettled(&state(5, None), None, &none));
        let sealed = SlotFloor { sealed: Hlc(9), ..none };
        assert!(is_unsettled(&state(5, Some(4)), None, &sealed), "a seal ends nothing");
        let ended = SlotFloor { floor: floor(5, 0), sealed: Hlc(5) };
        assert!(!is_unsettled(&state(5, Some(4)), None, &ended));
        let purged = SlotFloor { floor: floor(4, 4), sealed: Hlc(4) };
        assert!(!is_unsettled(&state(5, Some(4)), None, &purged), "a tombstone that is below the floor");
        assert!(is_unsettled(&state(6, Some(5)), None, &purged), "one that is not");
        assert!(is_unsettled(&state(5, Some(4)), Some(&version(3)), &purged), "something else stands there");
        assert!(is_unsettled(&holding(5, Some(4), &Content::value("v")), None, &purged), "a value never was purged");
    }

    #[test]
    fn a_floor_is_raised_once_all_are_equal_and_time_has_passed() {
        let mut complete = Complete::default();
        let slot = Slot(3);
        let mut next = |epoch, said: &[Said], seal| complete.next(Epoch(epoch), slot, said, (Hlc(seal), Hlc(50)));
        let (low, high) = (floor(4, 1), floor(5, 0));
        let both = low.merge(&high);
        let old = Some(Hlc(50));
        assert_eq!(next(1, &[(Hlc(90), low, old), (Hlc(95), high, None)], 99), Next::Complete(both));
        assert_eq!(next(1, &[(Hlc(100), both, old), (Hlc(105), both, None)], 99), Next::Wait);
        assert_eq!(next(1, &[(Hlc(200), both, None), (Hlc(205), both, old)], 104), Next::Wait);
        assert_eq!(next(1, &[(Hlc(300), both, None), (Hlc(305), both, old)], 105), Next::Raise(both));
        assert_eq!(next(2, &[(Hlc(300), both, old), (Hlc(305), both, old)], 304), Next::Wait, "all anew");
    }

    #[test]
    fn nothing_is_raised_before_something_is_of_age() {
        let mut complete = Complete::default();
        let mut next = |at: u64, oldest: [Option<Hlc>; 2], of_age| {
            let said = oldest.map(|oldest| (Hlc(at), floor(4, 1), oldest));
            complete.next(Epoch(1), Slot(3), &said, (Hlc(at - 10), Hlc(of_age)))
        };
        // That the floor is complete is noted all the same.
        assert_eq!(next(100, [None, None], 60), Next::Nothing);
        assert_eq!(next(110, [Some(Hlc(81)), None], 80), Next::Nothing);
        assert_eq!(next(110, [Some(Hlc(81)), Some(Hlc(80))], 80), Next::Raise(floor(4, 1)));
    }

    /// A raiser that looks now and then, over a tombstone: at which of the floors since it came of age it is dropped.
    fn dropped_with(written: u64, grace_ms: u64, look_ms: u64) -> Option<usize> {
        let (mut complete, mut kept) = (Complete::default(), Floor::default());
        let tombstone = version(Hlc::from_ms(written).0);
        let mut floors = 0;
        for look in 1..100 {
            let now = Hlc::from_ms(written + look * look_ms);
            let seal = Hlc::from_ms(now.ms() - seal_age_ms(grace_ms, 50).min(now.ms()));
            let (said, of_age) = ((now, kept, Some(tombstone.hlc)), of_age(now, grace_ms));
            let Next::Raise(before) = complete.next(Epoch(1), Slot(0), &[said, said], (seal, of_age)) else { continue };
            assert!(tombstone.hlc <= of_age, "in vain");
            floors += 1;
            let up_to = drop_up_to(&before, now, grace_ms);
            let greatest = if tombstone.hlc <= up_to { tombstone } else { Version::default() };
            kept = above(&before, seal, greatest);
            if may_drop(&kept, up_to, (&tombstone, tombstone.hlc), None) == Ok(true) {
                return Some(floors);
            }
        }
        None
    }

    #[test]
    fn a_tombstone_goes_with_the_second_floor_after_it_came_of_age() {
        // A grace below the seal's age, and the default with looks ten minutes apart.
        for (grace_ms, look_ms) in [(2_000, 300), (86_400_000, 3_600_000), (86_400_000, 1_000_000)] {
            assert_eq!(dropped_with(500_000_000, grace_ms, look_ms), Some(2), "{grace_ms} {look_ms}");
        }
    }

    #[test]
    fn only_what_the_floor_before_covered_is_dropped() {
        let before = floor(5, 3);
        let next = above(&before, Hlc(9), version(2));
        assert_eq!(next, Floor { written: Hlc(9), version: version(3), ballot: Ballot::sealing(Hlc(9)) });
        let at = |ms: u64| Hlc::from_ms(ms);
        let before = Floor { written: at(50), ..before };
        assert_eq!(drop_up_to(&before, at(100), 20), at(50));
        assert_eq!(drop_up_to(&before, at(100), 60), at(40));
        assert_eq!(seal_age_ms(86_400_000, 300_000), 720_000);
        assert_eq!(seal_age_ms(5_000, 300_000), 5_000);
    }
}
