//! Dropping whole slots: those that other members keep now, or that this one gets anew and begins from nothing.
//!
//! A slot goes step by step, records first, then registers, then what the list of tombstones still has; each step is one
//! change and moves the sums with the rows. So it may be cut anywhere and done again.
//!
//! Invariants:
//! - Sound or damaged, a row goes with the slot that it says, and a stray with the slot that its key belongs to, too. As a stray
//!   may have been another slot's, that one is counted anew: it then misses the row, and fetches it.
//! - A register goes only where it is certain whose it is: another slot's lost promise must not be taken for none.
//! - A pointer to a large value is believed only in a row that is sound.
//!
//! Caveat: the large value of a damaged row stays, and the end of one until it is due.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use rusqlite::{Connection, params};

use super::book::{Count, Weight};
use super::commit::{WriteQueue, change_through};
use super::engine::{Batch, Change, Outcome};
use super::register::{self, Head};
use super::row;
use super::tree::Moved;
use super::walk::{self, Place, Walk};
use crate::ports::StoreError;
use crate::types::{Key, Leaf, Slot, SlotSet, Sum, TokenSeed};

/// Slots of which a step is asked for at a time.
const SLOTS_AT_ONCE: usize = 16;
/// Records, and registers, that go in one step.
pub(super) const ROWS_MAX: usize = 256;
/// The same in bytes of their contents; one row may have more.
const BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Drops these slots, step by step; how many records and registers went. There is nothing to drop before there is a cluster.
pub(super) fn drop_slots(
    writes: Arc<WriteQueue>,
    seed: Option<TokenSeed>,
    slots: SlotSet,
) -> BoxFuture<'static, Result<u64, StoreError>> {
    async move {
        let (mut all, Some(seed)) = (0, seed) else { return Ok(0) };
        let mut left: VecDeque<Slot> = slots.iter().collect();
        while !left.is_empty() {
            // Most have little, or nothing: several share a transaction.
            let some: Vec<Slot> = left.drain(..left.len().min(SLOTS_AT_ONCE)).collect();
            let steps = some.iter().map(|slot| change_through(&writes, Change::DropSlot { seed, slot: *slot }));
            for (slot, step) in some.iter().zip(join_all(steps).await) {
                let Outcome::DroppedPart(gone, more) = step? else { continue };
                all += gone;
                if more {
                    left.push_front(*slot);
                }
            }
        }
        Ok(all)
    }
    .boxed()
}

impl Batch<'_> {
    /// Removes a part of what is held of the slot.
    pub(super) fn drop_slot(&mut self, seed: TokenSeed, slot: Slot) -> rusqlite::Result<Outcome> {
        let conn = &self.engine.conn;
        let (records, mut more) = records(conn, seed, slot)?;
        let mut gone = records.len() as u64;
        for row in records {
            self.drop_row(seed, slot, row)?;
        }
        if !more {
            let registers;
            (registers, more) = registers_of(conn, slot)?;
            gone += registers.len() as u64;
            for register in &registers {
                drop_register(conn, slot, register)?;
            }
        }
        if !more {
            // Only what damaged records left there.
            conn.prepare_cached("DELETE FROM tombstones WHERE slot = ?1")?.execute([slot.0])?;
        }
        Ok(Outcome::DroppedPart(gone, more))
    }

    fn drop_row(&mut self, seed: TokenSeed, slot: Slot, row: RecordRow) -> rusqlite::Result<()> {
        let RecordRow { lies_in, name, weight } = row;
        let token = seed.token(&name);
        let placed = lies_in == i64::from(slot.0) && token.slot() == slot;
        if let Some(key) = Key::new(name.clone()).ok().filter(|_| placed)
            && let Some(stored) = row::load(&mut self.select, slot, &key)?.and_then(|loaded| loaded.stored)
        {
            return self.take_away(token, &key, &stored, weight);
        }
        let delete = "DELETE FROM records WHERE slot = ?1 AND key = ?2";
        self.engine.conn.prepare_cached(delete)?.execute(params![lies_in, name])?;
        let mut count = Count::default();
        count.add(weight, -1);
        self.doubt(u8::try_from(lies_in).map_or(slot, Slot), count);
        self.doubt(slot, Count::default());
        self.doubt(token.slot(), Count::default());
        Ok(())
    }

    /// What the slot's sums have of a row that went is not known.
    fn doubt(&mut self, slot: Slot, count: Count) {
        let leaf = Leaf((slot.index() * Leaf::IN_SLOT) as u16);
        self.entries.rows.push(Moved { leaf, count, sum: Sum::default(), doubtful: true });
    }
}

/// A row by slot and key as they read, and how it counts.
struct RecordRow {
    lies_in: i64,
    name: Vec<u8>,
    weight: Weight,
}

/// The first rows that go with the slot, and whether there may be more.
fn records(conn: &Connection, seed: TokenSeed, slot: Slot) -> rusqlite::Result<(Vec<RecordRow>, bool)> {
    let (mut found, mut bytes) = (Vec::new(), 0);
    let mut walk = Walk::new(seed, slot, &[]);
    let mut select = conn.prepare_cached(row::WALK_OUTLINES)?;
    let mut rows = select.query(params![slot.0, &[] as &[u8]])?;
    while let Some(row) = rows.next()? {
        let place = walk.place(row)?;
        let (lies_in, name) = walk::spot(row)?;
        match place {
            Place::End => break,
            Place::Stray if lies_in != i64::from(slot.0) && seed.token(name).slot() != slot => continue,
            Place::Stray | Place::Here(_) => {}
        }
        let weight = row::weight(row, name)?;
        bytes += weight.bytes;
        found.push(RecordRow { lies_in, name: name.to_vec(), weight });
        if found.len() == ROWS_MAX || bytes >= BYTES_MAX {
            return Ok((found, true));
        }
    }
    Ok((found, false))
}

/// A register of the slot: its key as it reads, and whether it is sound.
type RegisterRow = (Vec<u8>, bool);

/// The first registers that are surely of the slot, and whether there may be more.
fn registers_of(conn: &Connection, slot: Slot) -> rusqlite::Result<(Vec<RegisterRow>, bool)> {
    let (mut found, mut bytes) = (Vec::new(), 0);
    let mut select = conn.prepare_cached(register::WALK_HEADS)?;
    let mut rows = select.query(params![slot.0, &[] as &[u8]])?;
    while let Some(row) = rows.next()? {
        if !register::is_another(row) {
            continue;
        }
        if row.get::<_, i64>(0)? != i64::from(slot.0) {
            break;
        }
        let name = row::bytes_of(row.get_ref(1)?).unwrap_or_default().to_vec();
        let large = row.get_ref(register::AFTER_HEAD)?.as_i64_or_null().ok().flatten();
        bytes += large.map_or(0, |bytes| bytes.max(0) as u64);
        found.push((name, Head::of(row).is_some()));
        if found.len() == ROWS_MAX || bytes >= BYTES_MAX {
            return Ok((found, true));
        }
    }
    Ok((found, false))
}

fn drop_register(conn: &Connection, slot: Slot, (name, sound): &RegisterRow) -> rusqlite::Result<()> {
    match Key::new(name.clone()) {
        Ok(key) if *sound => register::remove(conn, slot, &key),
        _ => {
            let delete = "DELETE FROM registers WHERE slot = ?1 AND key = ?2";
            conn.prepare_cached(delete)?.execute(params![slot.0, name]).map(drop)
        }
    }
}
