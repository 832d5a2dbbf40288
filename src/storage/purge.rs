//! Purging on disk: surveys, seals and floors, and dropping tombstones with their registers.
//!
//! Invariants:
//! - A key is dropped in one transaction, its register with it, and only by the rules of `protocol::purge`: what a scan
//!   found is looked at again there.
//! - What is damaged is kept: a tombstone or a register that cannot be read says nothing of what may be forgotten.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rusqlite::params;

use super::commit::change_through;
use super::engine::{Batch, Change, Engine, Outcome};
use super::remains::{Candidate, Candidates, Greatest, Hinted, Pieces, Surveying, Unsettled, in_pieces};
use super::row::{self, Loaded};
use super::store::{SqliteStore, done, seed_of};
use super::tree::Moved;
use super::{floors, register};
use crate::ports::{Purging, Store, StoreError};
use crate::protocol::purge;
use crate::types::{Dropped, Floor, Hlc, Key, Sealed, Slot, SlotDrop, SlotFloor, SlotSet, Survey, TokenSeed, Version};

impl Batch<'_> {
    /// The slot's floor and seal, with what this batch raised.
    pub(super) fn kept(&self, slot: Slot) -> SlotFloor {
        self.raised.get(&slot).copied().unwrap_or_else(|| self.engine.floors.get(slot))
    }

    pub(super) fn raise(&mut self, floors: &[(Slot, SlotFloor)]) -> rusqlite::Result<()> {
        for (slot, floor) in floors {
            let before = self.kept(*slot);
            let after = before.merge(floor);
            if after != before {
                floors::put(&self.engine.conn, *slot, &after)?;
                self.raised.insert(*slot, after);
            }
        }
        Ok(())
    }

    /// Drops those of these keys that the rules let go.
    pub(super) fn purge(&mut self, seed: TokenSeed, drop: &SlotDrop, keys: &[Candidate]) -> rusqlite::Result<Dropped> {
        let mut dropped = Dropped::default();
        let floor = self.kept(drop.slot).floor;
        if floor.merge(&drop.floor) != floor {
            return Ok(dropped);
        }
        for (name, listed) in keys {
            match Key::new(name.clone()) {
                Ok(key) => dropped += self.purge_key(seed, drop, &floor, (&key, *listed))?,
                // What was damaged in the list leads nowhere. (A register that was stays.)
                Err(_) => self.forget_listed(drop.slot, name, *listed)?,
            }
        }
        Ok(dropped)
    }

    fn forget_listed(&self, slot: Slot, name: &[u8], listed: Option<Hlc>) -> rusqlite::Result<()> {
        listed.map_or(Ok(()), |written| self.unlist(slot, written, name))
    }

    fn purge_key(
        &mut self,
        seed: TokenSeed,
        drop: &SlotDrop,
        floor: &Floor,
        (key, listed): (&Key, Option<Hlc>),
    ) -> rusqlite::Result<Dropped> {
        let (slot, conn) = (drop.slot, &self.engine.conn);
        let mut dropped = Dropped::default();
        let promised = match register::promised(conn, slot, key) {
            Ok(promised) => promised,
            Err(what) => {
                self.meters.damaged(slot, key, &what);
                return Ok(dropped);
            }
        };
        match row::load(&mut self.select, slot, key)? {
            Some(Loaded { stored: Some(stored), weight }) if stored.record.is_tombstone() => {
                let record = &stored.record;
                if listed.is_some_and(|written| written != record.written) {
                    self.forget_listed(slot, key.as_bytes(), listed)?;
                }
                match purge::may_drop(floor, drop.up_to, (&record.version, record.written), promised) {
                    Ok(true) => {
                        conn.prepare_cached("DELETE FROM records WHERE slot = ?1 AND key = ?2")?
                            .execute(params![slot.0, key.as_bytes()])?;
                        self.unlist(slot, record.written, key.as_bytes())?;
                        self.entries.rows.push(Moved::gone(key.token(seed), record, weight));
                        dropped.tombstones += 1;
                    }
                    Ok(false) => return Ok(dropped),
                    Err(_) => {
                        dropped.kept += 1;
                        return Ok(dropped);
                    }
                }
            }
            // It may be the tombstone.
            Some(Loaded { stored: None, .. }) => return Ok(dropped),
            Some(_) => {
                self.forget_listed(slot, key.as_bytes(), listed)?;
                return Ok(dropped);
            }
            None if listed.is_some() => {
                self.forget_listed(slot, key.as_bytes(), listed)?;
                return Ok(dropped);
            }
            None if promised.is_some_and(|p| purge::may_drop_orphan(floor, drop.up_to, p)) => {}
            None => return Ok(dropped),
        }
        if promised.is_some() {
            register::remove(conn, slot, key)?;
            dropped.registers += 1;
        }
        Ok(dropped)
    }
}

/// As a batch takes them.
fn raising(floors: impl IntoIterator<Item = (Slot, SlotFloor)>) -> Change {
    Change::Raise(floors.into_iter().collect())
}

fn sealing(slots: &SlotSet, up_to: Hlc) -> Change {
    raising(slots.iter().map(|slot| (slot, SlotFloor { sealed: up_to, ..SlotFloor::default() })))
}

impl Purging for SqliteStore {
    fn survey(&self, slots: SlotSet) -> BoxFuture<'static, Result<Vec<Survey>, StoreError>> {
        let (reads, floors, book) = (self.reads.clone(), self.floors.clone(), self.book.clone());
        async move {
            let mut all = Vec::new();
            for slot in slots.iter() {
                let survey = Surveying::new(slot, floors.get(slot).floor, book.tombstones(slot));
                all.push(in_pieces(&reads, survey).await?.found);
            }
            Ok(all)
        }
        .boxed()
    }

    fn greatest_tombstone(&self, slot: Slot, up_to: Hlc) -> BoxFuture<'static, Result<Version, StoreError>> {
        let reads = self.reads.clone();
        async move { Ok(in_pieces(&reads, Greatest::new(slot, up_to)).await?.found) }.boxed()
    }

    fn hinted(&self, up_to: Hlc) -> BoxFuture<'static, Result<SlotSet, StoreError>> {
        // A hint that was acknowledged is booked by now.
        if self.book.hint_targets().is_empty() {
            return std::future::ready(Ok(SlotSet::NONE)).boxed();
        }
        let reads = self.reads.clone();
        async move { Ok(in_pieces(&reads, Hinted::new(up_to)).await?.found) }.boxed()
    }

    fn seal(&self, slots: SlotSet, up_to: Hlc) -> BoxFuture<'static, Result<Vec<Sealed>, StoreError>> {
        let sealed = self.change(sealing(&slots, up_to));
        let (reads, floors) = (self.reads.clone(), self.floors.clone());
        async move {
            sealed.await?;
            let mut all = Vec::new();
            for slot in slots.iter() {
                all.push(in_pieces(&reads, Unsettled::new(slot, floors.get(slot))).await?.found);
            }
            Ok(all)
        }
        .boxed()
    }

    fn raise(&self, floors: Vec<(Slot, Floor)>) -> BoxFuture<'static, Result<(), StoreError>> {
        let kept = floors.into_iter().map(|(slot, floor)| (slot, SlotFloor { floor, ..SlotFloor::default() }));
        done(self.change(raising(kept)))
    }

    fn purge(&self, drops: Vec<SlotDrop>) -> BoxFuture<'static, Result<Dropped, StoreError>> {
        let (reads, writes) = (self.reads.clone(), self.writes.clone());
        let seed = seed_of(&Store::identity(self));
        async move {
            let (mut dropped, Some(seed)) = (Dropped::default(), seed) else { return Ok(Dropped::default()) };
            for drop in drops {
                let mut looking = Candidates::new(drop);
                loop {
                    let (keys, more);
                    (looking, keys, more) = looking.next(&reads).await?;
                    if !keys.is_empty() {
                        match change_through(&writes, Change::Purge { seed, drop, keys }).await? {
                            Outcome::Purged(of_step) => dropped += of_step,
                            _ => break,
                        }
                    }
                    if !more {
                        break;
                    }
                }
            }
            Ok(dropped)
        }
        .boxed()
    }
}

/// The same for whoever has no threads.
impl Engine {
    /// What is kept of a slot.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] where it cannot be read; so with the others.
    pub fn survey(&self, slot: Slot) -> Result<Survey, StoreError> {
        let survey = Surveying::new(slot, self.floors.get(slot).floor, None);
        Ok(survey.whole(&self.conn, &self.meters)?.found)
    }

    /// The greatest version of a slot's tombstones written up to that time.
    ///
    /// # Errors
    /// As for [`Self::survey`].
    pub fn greatest_tombstone(&self, slot: Slot, up_to: Hlc) -> Result<Version, StoreError> {
        Ok(Greatest::new(slot, up_to).whole(&self.conn, &self.meters)?.found)
    }

    /// The slots with hints written up to that time.
    ///
    /// # Errors
    /// As for [`Self::survey`].
    pub fn hinted(&self, up_to: Hlc) -> Result<SlotSet, StoreError> {
        Ok(Hinted::new(up_to).whole(&self.conn, &self.meters)?.found)
    }

    /// What a seal leaves to be settled in a slot.
    ///
    /// # Errors
    /// As for [`Self::survey`].
    pub fn unsettled(&self, slot: Slot) -> Result<Sealed, StoreError> {
        Ok(Unsettled::new(slot, self.floors.get(slot)).whole(&self.conn, &self.meters)?.found)
    }

    /// The change that drops what these let go.
    ///
    /// # Errors
    /// As for [`Self::survey`].
    pub fn purging(&self, seed: TokenSeed, drop: SlotDrop) -> Result<Change, StoreError> {
        let keys = Candidates::new(drop).whole(&self.conn, &self.meters)?.found;
        Ok(Change::Purge { seed, drop, keys })
    }

    /// A slot's floor and seal.
    pub fn kept(&self, slot: Slot) -> SlotFloor {
        self.floors.get(slot)
    }
}
