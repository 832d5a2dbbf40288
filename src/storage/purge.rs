//! Purging on disk: surveys, seals and floors, and dropping tombstones with their registers.
//!
//! Invariants:
//! - A key is dropped in one transaction, its register with it, and only by the rules of `protocol::purge`: what a scan
//!   found is looked at again there.
//! - What is damaged is kept: a tombstone or a register that cannot be read says nothing of what may be forgotten.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rusqlite::{Connection, params};

use super::engine::{Batch, Change, Engine, Outcome};
use super::meters::Meters;
use super::read::damaged;
use super::row::{self, Loaded};
use super::store::{SqliteStore, change_through, done, read_through, seed_of};
use super::tree::Moved;
use super::{floors, register};
use crate::ports::{Purging, Store, StoreError};
use crate::protocol::purge::{self, UNSETTLED_MAX};
use crate::types::{
    Dropped, Floor, Hlc, Key, Sealed, Slot, SlotDrop, SlotFloor, SlotSet, Survey, Token, TokenSeed, Tombstones,
};

/// Keys dropped in one transaction, so that writes get in between.
const DROP_STEP: usize = 256;

const COUNT_TOMBSTONES: &str = "SELECT count(*) FROM records WHERE slot = ?1 AND value IS NULL AND large IS NULL";
const COUNT_ORPHANS: &str = "SELECT count(*) FROM registers g WHERE g.slot = ?1 \
     AND NOT EXISTS (SELECT 1 FROM records r WHERE r.slot = g.slot AND r.key = g.key)";
const MAX_PROMISED: &str = "SELECT ifnull(max(promised_hlc), 0) FROM registers WHERE slot = ?1";
const SCAN_TOMBSTONES: &str = "SELECT r.hlc, r.writer, r.rmw, r.written, r.expires_at_ms, r.checksum, r.content_type, r.value, \
     r.large, r.large_bytes, NULL, r.key FROM records r WHERE r.slot = ?1 AND r.value IS NULL AND r.large IS NULL";
const REGISTERS: &str = "SELECT key FROM registers WHERE slot = ?1 ORDER BY key";
const HINTED: &str = "SELECT DISTINCT slot FROM hints WHERE ifnull(written, hlc) <= ?1";
/// Keys that may be dropped, after one of them.
const CANDIDATES: &str = "SELECT key FROM records WHERE slot = ?1 AND key > ?3 AND value IS NULL AND large IS NULL \
     AND ifnull(written, hlc) <= ?2 \
     UNION SELECT g.key FROM registers g WHERE g.slot = ?1 AND g.key > ?3 AND g.promised_hlc <= ?2 \
     AND NOT EXISTS (SELECT 1 FROM records r WHERE r.slot = g.slot AND r.key = g.key) ORDER BY key LIMIT ?4";

fn count(conn: &Connection, meters: &Meters, query: &str, slot: Slot) -> Result<u64, StoreError> {
    let counted = conn.prepare_cached(query).and_then(|mut q| q.query_row([slot.0], |row| row.get::<_, i64>(0)));
    counted.map(|n| n as u64).map_err(|error| damaged(meters, error))
}

fn key_at(row: &rusqlite::Row<'_>, column: usize) -> Option<Key> {
    let bytes = row.get_ref(column).ok().and_then(row::bytes_of)?;
    Key::new(bytes.to_vec()).ok()
}

/// What is kept of a slot. `tombstones`: as counted in memory, where that is known.
pub(super) fn survey(
    conn: &Connection,
    meters: &Meters,
    slot: Slot,
    floor: Floor,
    tombstones: Option<u64>,
) -> Result<Survey, StoreError> {
    let tombstones = tombstones.map_or_else(|| count(conn, meters, COUNT_TOMBSTONES, slot), Ok)?;
    let promised = Hlc(count(conn, meters, MAX_PROMISED, slot)?);
    Ok(Survey { slot, floor, tombstones, orphans: count(conn, meters, COUNT_ORPHANS, slot)?, promised })
}

/// The tombstones of a slot.
pub(super) fn tombstones(conn: &Connection, meters: &Meters, slot: Slot, up_to: Hlc) -> Result<Tombstones, StoreError> {
    let damaged = |error| damaged(meters, error);
    let mut found = Tombstones::default();
    let mut select = conn.prepare_cached(SCAN_TOMBSTONES).map_err(damaged)?;
    let mut rows = select.query([slot.0]).map_err(damaged)?;
    while let Some(row) = rows.next().map_err(damaged)? {
        let Some(key) = key_at(row, row::AFTER_RECORD) else { continue };
        let Some(stored) = Loaded::of(row, &key).map_err(damaged)?.stored else { continue };
        let written = stored.record.written;
        found.oldest = Some(found.oldest.map_or(written, |oldest| oldest.min(written)));
        if written <= up_to {
            found.greatest = found.greatest.max(stored.record.version);
        }
    }
    Ok(found)
}

/// The slots with hints written up to that time.
pub(super) fn hinted(conn: &Connection, meters: &Meters, up_to: Hlc) -> Result<SlotSet, StoreError> {
    let damaged = |error| damaged(meters, error);
    let mut select = conn.prepare_cached(HINTED).map_err(damaged)?;
    let rows = select.query_map([up_to.0 as i64], |row| row.get(0).map(Slot)).map_err(damaged)?;
    rows.collect::<rusqlite::Result<SlotSet>>().map_err(damaged)
}

/// What a seal leaves to be settled in a slot.
pub(super) fn unsettled(
    conn: &Connection,
    meters: &Meters,
    slot: Slot,
    kept: &SlotFloor,
) -> Result<Sealed, StoreError> {
    let damaged = |error| damaged(meters, error);
    let mut sealed = Sealed { slot, unsettled: Vec::new(), more: false };
    let mut select = conn.prepare_cached(REGISTERS).map_err(damaged)?;
    let mut record = conn.prepare_cached(row::SELECT_RECORD).map_err(damaged)?;
    let mut rows = select.query([slot.0]).map_err(damaged)?;
    while let Some(row) = rows.next().map_err(damaged)? {
        let key = key_at(row, 0).ok_or_else(|| StoreError::Damaged("the key of a register".into()))?;
        let of_key = |what: String| {
            meters.damaged(slot, &key, &what);
            StoreError::Damaged(format!("{key}: {what}"))
        };
        let Some(found) = register::read(conn, slot, &key).map_err(of_key)? else { continue };
        let row = row::load(&mut record, slot, &key).map_err(damaged)?;
        let stored = row.and_then(|loaded| loaded.stored).map(|stored| stored.record.version);
        if purge::is_unsettled(&found, stored.as_ref(), kept) {
            if sealed.unsettled.len() == UNSETTLED_MAX {
                sealed.more = true;
                break;
            }
            sealed.unsettled.push(key);
        }
    }
    Ok(sealed)
}

/// The next keys that may be dropped.
fn candidates(conn: &Connection, meters: &Meters, drop: &SlotDrop, after: &[u8]) -> Result<Vec<Key>, StoreError> {
    let damaged = |error| damaged(meters, error);
    let mut select = conn.prepare_cached(CANDIDATES).map_err(damaged)?;
    let mut rows = select.query(params![drop.slot.0, drop.up_to.0 as i64, after, DROP_STEP as i64]).map_err(damaged)?;
    let mut keys = Vec::new();
    while let Some(row) = rows.next().map_err(damaged)? {
        // A key that was damaged is no key any more, and stays.
        keys.extend(key_at(row, 0));
    }
    Ok(keys)
}

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
    pub(super) fn purge(&mut self, drop: &SlotDrop, keys: &[(Token, Key)]) -> rusqlite::Result<Dropped> {
        let mut dropped = Dropped::default();
        let floor = self.kept(drop.slot).floor;
        if floor.merge(&drop.floor) != floor {
            return Ok(dropped);
        }
        for (token, key) in keys {
            dropped += self.purge_key(drop, &floor, *token, key)?;
        }
        Ok(dropped)
    }

    fn purge_key(&mut self, drop: &SlotDrop, floor: &Floor, token: Token, key: &Key) -> rusqlite::Result<Dropped> {
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
                match purge::may_drop(floor, drop.up_to, (&record.version, record.written), promised) {
                    Ok(true) => {
                        conn.prepare_cached("DELETE FROM records WHERE slot = ?1 AND key = ?2")?
                            .execute(params![slot.0, key.as_bytes()])?;
                        self.entries.rows.push(Moved::gone(token, record, weight));
                        dropped.tombstones += 1;
                    }
                    Ok(false) => return Ok(dropped),
                    Err(_) => {
                        dropped.kept += 1;
                        return Ok(dropped);
                    }
                }
            }
            Some(_) => return Ok(dropped),
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

fn with_tokens(seed: TokenSeed, keys: Vec<Key>) -> Vec<(Token, Key)> {
    keys.into_iter().map(|key| (key.token(seed), key)).collect()
}

impl Purging for SqliteStore {
    fn survey(&self, slots: SlotSet) -> BoxFuture<'static, Result<Vec<Survey>, StoreError>> {
        let (reads, floors, book) = (self.reads.clone(), self.floors.clone(), self.book.clone());
        async move {
            let mut all = Vec::new();
            // Slot by slot: clients' reads get in between.
            for slot in slots.iter() {
                let (floor, tombstones) = (floors.get(slot).floor, book.tombstones(slot));
                all.push(
                    read_through(&reads, move |conn, meters| survey(conn, meters, slot, floor, tombstones)).await?,
                );
            }
            Ok(all)
        }
        .boxed()
    }

    fn tombstones(&self, slot: Slot, up_to: Hlc) -> BoxFuture<'static, Result<Tombstones, StoreError>> {
        self.read(move |conn, meters| tombstones(conn, meters, slot, up_to))
    }

    fn hinted(&self, up_to: Hlc) -> BoxFuture<'static, Result<SlotSet, StoreError>> {
        self.read(move |conn, meters| hinted(conn, meters, up_to))
    }

    fn seal(&self, slots: SlotSet, up_to: Hlc) -> BoxFuture<'static, Result<Vec<Sealed>, StoreError>> {
        let sealed = self.change(sealing(&slots, up_to));
        let (reads, floors) = (self.reads.clone(), self.floors.clone());
        async move {
            sealed.await?;
            let mut all = Vec::new();
            for slot in slots.iter() {
                let kept = floors.get(slot);
                all.push(read_through(&reads, move |conn, meters| unsettled(conn, meters, slot, &kept)).await?);
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
                let mut after = Vec::new();
                loop {
                    let from = after;
                    let keys = read_through(&reads, move |conn, meters| candidates(conn, meters, &drop, &from)).await?;
                    let Some(last) = keys.last() else { break };
                    after = last.as_bytes().to_vec();
                    let change = Change::Purge { drop, keys: with_tokens(seed, keys) };
                    match change_through(&writes, change).await? {
                        Outcome::Purged(of_step) => dropped += of_step,
                        _ => break,
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
        survey(&self.conn, &self.meters, slot, self.floors.get(slot).floor, None)
    }

    /// The tombstones of a slot.
    ///
    /// # Errors
    /// As for [`Self::survey`].
    pub fn tombstones(&self, slot: Slot, up_to: Hlc) -> Result<Tombstones, StoreError> {
        tombstones(&self.conn, &self.meters, slot, up_to)
    }

    /// The slots with hints written up to that time.
    ///
    /// # Errors
    /// As for [`Self::survey`].
    pub fn hinted(&self, up_to: Hlc) -> Result<SlotSet, StoreError> {
        hinted(&self.conn, &self.meters, up_to)
    }

    /// What a seal leaves to be settled in a slot.
    ///
    /// # Errors
    /// As for [`Self::survey`].
    pub fn unsettled(&self, slot: Slot) -> Result<Sealed, StoreError> {
        unsettled(&self.conn, &self.meters, slot, &self.floors.get(slot))
    }

    /// The change that drops the first of what these let go.
    ///
    /// # Errors
    /// As for [`Self::survey`].
    pub fn purging(&self, seed: TokenSeed, drop: SlotDrop) -> Result<Change, StoreError> {
        let keys = candidates(&self.conn, &self.meters, &drop, &[])?;
        Ok(Change::Purge { drop, keys: with_tokens(seed, keys) })
    }

    /// A slot's floor and seal.
    pub fn kept(&self, slot: Slot) -> SlotFloor {
        self.floors.get(slot)
    }
}
