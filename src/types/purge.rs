//! The words of purging: how the home replicas of a slot agree on what has been deleted for good.
//!
//! The rules are in `protocol::purge`. Every message names the epoch it was computed under; a replica that has another
//! one in force does nothing.

use super::id::{Epoch, Writer};
use super::key::{Key, Slot};
use super::record::Floor;
use super::register::Ballot;
use super::tree::SlotSet;
use super::version::Hlc;

impl Floor {
    /// The greater of each part: what two replicas have purged up to together. No part ever goes down.
    #[must_use]
    pub fn merge(&self, other: &Floor) -> Floor {
        Floor {
            written: self.written.max(other.written),
            version: self.version.max(other.version),
            ballot: self.ballot.max(other.ballot),
        }
    }
}

impl Ballot {
    /// The greatest ballot of that time: a seal up to then refuses it and all below.
    pub fn sealing(up_to: Hlc) -> Self {
        Self { hlc: up_to, writer: Writer(u32::MAX) }
    }
}

/// What a replica keeps of a slot for purging.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SlotFloor {
    pub floor: Floor,
    /// Ballots up to [`Ballot::sealing`] of this are refused, though what was accepted under them still counts.
    pub sealed: Hlc,
}

impl SlotFloor {
    /// Ballots up to this one are refused.
    pub fn bound(&self) -> Ballot {
        if self.sealed == Hlc::ZERO { self.floor.ballot } else { self.floor.ballot.max(Ballot::sealing(self.sealed)) }
    }

    /// What a promise tells a proposer: accepted values below its ballot count for nothing any more. Never the seal, below which
    /// something may still have been decided.
    pub fn told(&self) -> Floor {
        self.floor
    }

    #[must_use]
    pub fn merge(&self, other: &SlotFloor) -> SlotFloor {
        SlotFloor { floor: self.floor.merge(&other.floor), sealed: self.sealed.max(other.sealed) }
    }
}

/// One step of purging, asked of a replica.
#[derive(Clone, Debug, PartialEq)]
pub enum PurgeStep {
    /// What do you keep of these slots? Nothing is changed.
    Survey { slots: SlotSet },
    /// Refuse ballots up to that time in these slots from now on, and name the keys whose register accepted something
    /// that is newer than their record.
    Seal { slots: SlotSet, up_to: Hlc },
    /// In which slots do you keep hints written up to that time? Nothing is changed.
    Hints { up_to: Hlc },
    /// Merge these floors into yours.
    Raise { floors: Vec<(Slot, Floor)> },
    /// Drop what these floors allow: all of them are complete.
    Drop { drops: Vec<SlotDrop> },
    /// How does purging stand at you? For people.
    Status,
}

/// What may be dropped of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotDrop {
    pub slot: Slot,
    /// Complete: every home replica has it, or more.
    pub floor: Floor,
    /// Only what was written up to this time.
    pub up_to: Hlc,
}

/// What a replica keeps of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Survey {
    pub slot: Slot,
    pub floor: Floor,
    pub tombstones: u64,
    /// Registers of keys that have no record.
    pub orphans: u64,
    /// The greatest time of a ballot that a register promised.
    pub promised: Hlc,
    /// When the oldest tombstone was written.
    pub oldest: Option<Hlc>,
    /// The least time that a register without a record promised.
    pub oldest_orphan: Option<Hlc>,
}

impl Survey {
    /// Of a slot with nothing in it.
    pub fn empty(slot: Slot, floor: Floor) -> Self {
        let promised = Hlc::ZERO;
        Self { slot, floor, tombstones: 0, orphans: 0, promised, oldest: None, oldest_orphan: None }
    }
}

/// What a seal found in one slot: keys whose accepted state has to be settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    pub slot: Slot,
    pub unsettled: Vec<Key>,
    /// There are more of them.
    pub more: bool,
    /// A register cannot be read. What else there is to be settled is not known.
    pub damaged: bool,
}

impl Sealed {
    /// Of a slot in which everything is settled.
    pub fn empty(slot: Slot) -> Self {
        Self { slot, unsettled: Vec::new(), more: false, damaged: false }
    }
}

/// What was dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    pub tombstones: u64,
    pub registers: u64,
    /// Tombstones that a newer promise of their register kept. The next floor is for them.
    pub kept: u64,
}

impl std::ops::AddAssign for Dropped {
    fn add_assign(&mut self, other: Dropped) {
        self.tombstones += other.tombstones;
        self.registers += other.registers;
        self.kept += other.kept;
    }
}

/// How purging stands at one member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PurgeStatus {
    /// Tombstones it keeps.
    pub tombstones: u64,
    /// When the oldest of them was written, as of its last look; 0 where there is none, or it has not looked.
    pub oldest_ms: u64,
    /// Dropped since it started.
    pub purged: u64,
    /// When it last raised a floor, wall milliseconds; 0 when never since it started.
    pub raised_ms: u64,
    /// Members that it waits for, and why.
    pub waiting_for: Vec<(super::id::NodeNum, String)>,
}

/// The answer to a [`PurgeStep`], in the same order.
#[derive(Clone, Debug, PartialEq)]
pub enum PurgeReply {
    /// The clock when this was said, and what is kept.
    Surveyed {
        now: Hlc,
        slots: Vec<Survey>,
    },
    Sealed(Vec<Sealed>),
    Hinted(SlotSet),
    /// On disk.
    Raised,
    Dropped(Dropped),
    Status(PurgeStatus),
    /// Another topology is in force. Nothing was done.
    WrongEpoch {
        epoch: Epoch,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Version;

    #[test]
    fn floors_merge_part_by_part() {
        let version = |n| Version::plain(Hlc(n), Writer(1));
        let one = Floor { written: Hlc(5), version: version(2), ballot: Ballot::sealing(Hlc(5)) };
        let other = Floor { written: Hlc(3), version: version(3), ballot: Ballot::sealing(Hlc(3)) };
        let both = Floor { written: Hlc(5), version: version(3), ballot: Ballot::sealing(Hlc(5)) };
        assert_eq!(one.merge(&other), both);
        assert_eq!(other.merge(&one), both);
    }

    #[test]
    fn a_seal_refuses_every_ballot_of_its_time() {
        let sealed = SlotFloor { sealed: Hlc(7), ..SlotFloor::default() };
        assert_eq!(sealed.bound(), Ballot { hlc: Hlc(7), writer: Writer(u32::MAX) });
        assert_eq!(SlotFloor::default().bound(), Ballot::default());
    }
}
