//! A watch: the changes of all replicas, merged into one stream that misses no acknowledged write.
//!
//! Each replica keeps a log of what it stored lately, and loses it when it restarts. The fold follows the logs of the members
//! that hold what is watched, and tells a version of a key where it is above the last one that it told.
//!
//! **What it promises**: of every write that began after it did and that a majority of home replicas acknowledged, that version or
//! a later one is told (from a cursor on: of every such write that was not told before it), unless the watch ends as [`Gone`].
//! The argument: such a write is in the logs of a majority of the key's home replicas. While a slot is *covered*, so many of its
//! home replicas' logs are followed without a gap that every majority has one of them: `RF - majority + 1`. A watch of which a slot
//! is not covered any more has gone.
//!
//! A write that fewer home replicas acknowledged (at `one`, or with a stand-in counted) is told by those who stored it, and when
//! its hint or a repair brings it to others. It can be missed without a word where its only holder restarts, counts again, and whoever
//! gets it next restarts before it told.
//!
//! A member that lost its log is followed from its new log's end. It covers a slot again only once whatever its old log may
//! have lost was seen in the logs of the slot's other home replicas: each of them was heard to its end, asked
//! [`IN_FLIGHT_MS`] later at the earliest, as the lost write may have been on its way to them still. A member that cannot be
//! reached keeps its place, and goes on covering: its log is there when it comes back, or is found lost then.
//!
//! **While the topology changes** a slot that moves has two write sets. It is covered by what it had *before*, alone: every write that
//! is acknowledged then has a majority of that, also one from a coordinator that has not heard of the change; and the new replicas
//! keep much that is no news, as they catch up (it is not told). So a watch goes on into the next epoch where all of its slots are
//! covered by the same members under the same instances as before: where a change begins, where one is taken back, and where none of
//! its slots is concerned. Where a slot has moved, and where an epoch was skipped, it has gone. A cursor is good in its own epoch,
//! and in the next one if that began a change: what was before is known there, and nowhere else.
//!
//! Invariants:
//! - Versions of one key are told in ascending order, as far as [`Told`] remembers: the keys that were told last, at most
//!   [`told::KEYS_MAX`] of them. A change that is behind them all (of a member that was away) may be told again.
//! - A cursor names only places up to which everything was told, of members that cover.
//!
//! Caveat: a write that is on its way for longer than [`IN_FLIGHT_MS`], from a replica that restarted meanwhile to one that does
//! then, is of those that can be missed.

mod cursor;
#[cfg(test)]
mod tests;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use cursor::{Cursor, CursorError};
use told::Told;

use super::ring::{Ring, WriteSet};
use super::succession;
use crate::types::{ChangesPage, Epoch, KeyChange, NodeNum, Position, Slot, SlotSet, Topology, majority};

/// A write that one replica stored is at the others within so many milliseconds, or on nobody's way any more.
pub const IN_FLIGHT_MS: u64 = 5_000;

/// The watch cannot go on: it may have missed something. Who watches reads what it needs, and watches anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Gone {
    /// The replicas of that slot forgot what comes behind the place.
    #[error("the replicas no longer remember what changed since (slot {0})")]
    Forgotten(Slot),
    /// Other members, or other instances, keep what is watched.
    #[error("the cluster's topology changed from epoch {from} to {to} since")]
    Epoch { from: Epoch, to: Epoch },
    /// The cursor is of another cluster.
    #[error("the cursor is of another cluster")]
    Foreign,
}

/// How a member's log is followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Tail {
    /// It never told where its log is.
    #[default]
    Unknown,
    /// Everything up to there was told.
    Followed(Position),
    /// It began anew. Everything of the new log up to there was told.
    Joining {
        at: Position,
        since_ms: u64,
        /// Who has still to be heard to the end.
        waits: BTreeSet<NodeNum>,
    },
}

#[derive(Clone, Debug, Default)]
struct Followed {
    tail: Tail,
    /// It answered since the watch began.
    heard: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Watch {
    ring: Arc<Ring>,
    slots: SlotSet,
    members: BTreeMap<NodeNum, Followed>,
    told: Told,
    /// It goes on from a cursor.
    resumes: bool,
    /// It is in force.
    begun: bool,
}

impl Watch {
    /// A watch of keys of these slots, from now on or from a cursor on.
    ///
    /// # Errors
    /// Where the cursor is good for nothing.
    pub fn new(ring: Arc<Ring>, slots: SlotSet, cursor: Option<&Cursor>) -> Result<Self, Gone> {
        let topology = ring.topology();
        if let Some(cursor) = cursor {
            if cursor.cluster != topology.cluster_id.digest() {
                return Err(Gone::Foreign);
            }
            if cursor.epoch != topology.epoch && !begins_after(topology, cursor.epoch) {
                return Err(Gone::Epoch { from: cursor.epoch, to: topology.epoch });
            }
        }
        let followed = slots.iter().flat_map(|slot| covering(&ring, slot));
        let mut members: BTreeMap<NodeNum, Followed> = followed.map(|node| (*node, Followed::default())).collect();
        for (node, at) in cursor.iter().flat_map(|cursor| &cursor.places) {
            if let Some(member) = members.get_mut(node) {
                member.tail = Tail::Followed(*at);
            }
        }
        let (told, resumes) = (Told::default(), cursor.is_some());
        let watch = Self { ring, slots, members, told, resumes, begun: false };
        if resumes {
            watch.check(|_| true)?;
        }
        Ok(watch)
    }

    /// Whose logs are followed.
    pub fn members(&self) -> impl Iterator<Item = NodeNum> {
        self.members.keys().copied()
    }

    pub fn epoch(&self) -> Epoch {
        self.ring.epoch()
    }

    /// A newer topology is in force; the watch goes on under it if it can.
    ///
    /// # Errors
    /// Where it cannot.
    pub fn move_to(&mut self, ring: Arc<Ring>) -> Result<(), Gone> {
        let (from, to) = (self.ring.epoch(), ring.epoch());
        let gone = succession::gone(self.ring.topology(), ring.topology());
        let same = |slot: Slot| {
            let (before, now) = (covering(&self.ring, slot), covering(&ring, slot));
            before.len() == now.len() && before.iter().all(|node| now.contains(node) && !gone.contains(node))
        };
        if to.0 != from.0 + 1 || !self.slots.iter().all(same) {
            return Err(Gone::Epoch { from, to });
        }
        self.ring = ring;
        Ok(())
    }

    /// Behind which place a member is to be asked.
    pub fn place(&self, node: NodeNum) -> Option<Position> {
        match self.members.get(&node)?.tail {
            Tail::Unknown => None,
            Tail::Followed(at) | Tail::Joining { at, .. } => Some(at),
        }
    }

    /// Whether it can be in force: every slot is covered by members that answered.
    pub fn is_covered(&self) -> bool {
        self.uncovered().is_empty()
    }

    /// Whether a member has still to be heard.
    pub fn awaits(&self) -> bool {
        self.members.values().any(|member| !member.heard)
    }

    /// It is in force from now on: what it promises is told to whoever asked for it.
    pub fn begin(&mut self) {
        self.begun = true;
    }

    /// Slots that members that answered do not cover.
    pub fn uncovered(&self) -> SlotSet {
        self.slots.iter().filter(|slot| !self.covers(*slot, |_, member| member.heard)).collect()
    }

    /// What a member answered to a question for what is behind its place, which was asked at that time; gives what is to be
    /// told of it. Times are milliseconds of one clock that never goes back.
    ///
    /// # Errors
    /// Where the watch cannot go on.
    pub fn on_page(
        &mut self,
        node: NodeNum,
        page: ChangesPage,
        (asked_ms, now_ms): (u64, u64),
    ) -> Result<Vec<KeyChange>, Gone> {
        let others: BTreeSet<NodeNum> = self.heard_of().filter(|other| *other != node).collect();
        let starts = !self.begun && !self.resumes;
        let Some(member) = self.members.get_mut(&node) else { return Ok(Vec::new()) };
        member.heard = true;
        let tail = match (&member.tail, page.reaches) {
            (Tail::Joining { since_ms, waits, .. }, true) => {
                Tail::Joining { at: page.at, since_ms: *since_ms, waits: waits.clone() }
            }
            (_, true) => Tail::Followed(page.at),
            (Tail::Unknown, false) if starts => Tail::Followed(page.at),
            (_, false) => Tail::Joining { at: page.at, since_ms: now_ms, waits: others },
        };
        member.tail = tail;
        if !page.reaches && !starts {
            // What it lost is told by others, or by nobody.
            self.check(|one| one != node)?;
        }
        if page.reaches && !page.more {
            self.heard_to_its_end(node, asked_ms);
        }
        let is_told = |change: &KeyChange| {
            let slot = self.ring.token(&change.key).slot();
            covering(&self.ring, slot).contains(&node) || !self.ring.placement(slot).is_home(node)
        };
        Ok(page.changes.into_iter().filter(|change| is_told(change) && self.told.is_news(change)).collect())
    }

    /// From where another watch can go on.
    pub fn cursor(&self) -> Cursor {
        let followed = |(node, member): (&NodeNum, &Followed)| match member.tail {
            Tail::Followed(at) => Some((*node, at)),
            _ => None,
        };
        let topology = self.ring.topology();
        Cursor {
            cluster: topology.cluster_id.digest(),
            epoch: topology.epoch,
            places: self.members.iter().filter_map(followed).collect(),
        }
    }

    /// Whoever began anew long enough before need not wait for that member any more.
    fn heard_to_its_end(&mut self, node: NodeNum, asked_ms: u64) {
        for member in self.members.values_mut() {
            if let Tail::Joining { at, since_ms, waits } = &mut member.tail
                && asked_ms >= *since_ms + IN_FLIGHT_MS
                && waits.remove(&node)
                && waits.is_empty()
            {
                member.tail = Tail::Followed(*at);
            }
        }
    }

    fn heard_of(&self) -> impl Iterator<Item = NodeNum> {
        self.members.iter().filter(|(_, member)| member.tail != Tail::Unknown).map(|(node, _)| *node)
    }

    /// # Errors
    /// Where those members do not cover every slot.
    fn check(&self, counts: impl Fn(NodeNum) -> bool) -> Result<(), Gone> {
        match self.slots.iter().find(|slot| !self.covers(*slot, |node, _| counts(node))) {
            Some(slot) => Err(Gone::Forgotten(slot)),
            None => Ok(()),
        }
    }

    /// Whether so many of a slot's home replicas are followed that every majority has one of them.
    fn covers(&self, slot: Slot, counts: impl Fn(NodeNum, &Followed) -> bool) -> bool {
        let homes = covering(&self.ring, slot);
        let follows = |node: &NodeNum| {
            self.members.get(node).is_some_and(|member| {
                counts(*node, member)
                    && match &member.tail {
                        Tail::Unknown => false,
                        Tail::Followed(_) => true,
                        Tail::Joining { waits, .. } => homes.iter().all(|home| !waits.contains(home)),
                    }
            })
        };
        let followed = homes.iter().filter(|node| follows(node)).count();
        followed + majority(homes.len()) > homes.len()
    }
}

/// The home replicas whose logs cover a slot: those that every acknowledged write has a majority of. While it moves, those before.
fn covering(ring: &Ring, slot: Slot) -> &[NodeNum] {
    ring.placement(slot).write_sets.first().map_or(&[], WriteSet::as_slice)
}

/// Whether a change began with that topology, and with what was in force in that epoch.
fn begins_after(topology: &Topology, epoch: Epoch) -> bool {
    let began = topology.moving.as_ref().is_some_and(|moving| moving.since == topology.epoch);
    began && topology.epoch.0 == epoch.0 + 1
}
