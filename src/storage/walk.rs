//! Reading the rows of `records` in the order they lie in, and telling which of them are where they belong.
//!
//! A damaged row stays at its place in the tree, under whatever slot and key its columns say now. So a slot ends where
//! a row *belongs* to another one, not where a row merely says so; and a key is surely absent only where the rows on either
//! side of its place are those that were written there.
//!
//! Invariants:
//! - Rows out of order make the tree itself unsound: a search for a sound row may miss it, and a write may store it twice.
//!   That is reported as SQLite reports a damaged page.
//!
//! Caveat: the key of a row with a large value is told from another one by its slot alone where that value is not read, so
//! one damaged key in 256 looks sound there until a scrub reads the value.

use rusqlite::{Connection, OptionalExtension, Row, ffi, params};

use super::book::Count;
use super::engine::Batch;
use super::row::{self, AFTER_RECORD, COLUMN_LARGE, Loaded};
use super::tree::Moved;
use crate::types::{Key, Leaf, Slot, Sum, Token, TokenSeed};

/// Where a row lies in a walk through a slot.
pub(super) enum Place {
    /// In the slot, with a key of that token.
    Here(Token),
    /// Under a slot and a key that do not belong together.
    Stray,
    /// Behind the slot.
    End,
}

/// The walk through one slot: is shown each row of [`row::WALK_OUTLINES`] in turn.
pub(super) struct Walk {
    seed: TokenSeed,
    slot: Slot,
    last: (i64, Vec<u8>),
    /// `last` itself may come next.
    included: bool,
}

impl Walk {
    /// From those bytes of a key on; none of them is the beginning.
    pub(super) fn new(seed: TokenSeed, slot: Slot, after: &[u8]) -> Self {
        Self { seed, slot, last: (slot.0.into(), after.to_vec()), included: false }
    }

    /// The same, with the key of just those bytes where there is one.
    pub(super) fn at(seed: TokenSeed, slot: Slot, from: &[u8]) -> Self {
        Self { included: true, ..Self::new(seed, slot, from) }
    }

    /// Where the row lies.
    ///
    /// # Errors
    /// Where it is out of order, or its key is none that could have been stored.
    pub(super) fn place(&mut self, row: &Row<'_>) -> rusqlite::Result<Place> {
        let (slot, name) = spot(row)?;
        let (last_slot, last) = &mut self.last;
        let order = (*last_slot, &last[..]).cmp(&(slot, name));
        if order.is_gt() || order.is_eq() && !std::mem::take(&mut self.included) {
            return Err(unsound("rows of records are out of order"));
        }
        *last_slot = slot;
        last.clear();
        last.extend_from_slice(name);
        let token = self.seed.token(name);
        Ok(if slot != i64::from(token.slot().0) {
            Place::Stray
        } else if token.slot() == self.slot {
            Place::Here(token)
        } else {
            Place::End
        })
    }
}

/// Slot and key as the columns have them.
pub(super) fn spot<'a>(row: &'a Row<'_>) -> rusqlite::Result<(i64, &'a [u8])> {
    let name = row.get_ref(AFTER_RECORD)?.as_blob();
    let slot = row.get_ref(AFTER_RECORD + 1)?.as_i64();
    slot.ok().zip(name.ok()).ok_or_else(|| unsound("a key of records is none"))
}

fn unsound(what: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(what.to_owned()))
}

/// Whether a key for which a search found no row has none. A row whose key was damaged still lies where it did, and the
/// search that it leads astray ends beside it.
pub(super) fn is_absent(conn: &Connection, seed: TokenSeed, slot: Slot, key: &Key) -> rusqlite::Result<bool> {
    for beside in [row::OUTLINE_BEFORE, row::OUTLINE_AFTER] {
        let mut select = conn.prepare_cached(beside)?;
        if select.query_row(params![slot.0, key.as_bytes()], |row| is_sound(row, seed)).optional()? == Some(false) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the row before that place in the slot, if any, is the one that was written there: if it is not, its key may be one from
/// that place on.
pub(super) fn is_sound_before(conn: &Connection, seed: TokenSeed, slot: Slot, place: &[u8]) -> rusqlite::Result<bool> {
    let mut select = conn.prepare_cached(row::OUTLINE_BEFORE)?;
    let sound = select.query_row(params![slot.0, place], |row| is_sound(row, seed)).optional()?;
    Ok(sound != Some(false))
}

/// Whether the row is the one that was written there, as far as it can be said without reading a large value.
pub(super) fn is_sound(row: &Row<'_>, seed: TokenSeed) -> rusqlite::Result<bool> {
    let (slot, name) = spot(row)?;
    let Ok(key) = Key::new(name.to_vec()) else { return Ok(false) };
    if i64::from(key.token(seed).slot().0) != slot {
        return Ok(false);
    }
    Ok(row.get_ref(COLUMN_LARGE)? != rusqlite::types::ValueRef::Null || Loaded::of(row, &key)?.stored.is_some())
}

impl Batch<'_> {
    /// Removes those of these rows that are still not what was written. What they had added to the sums is unknown, so the
    /// slot is counted anew.
    pub(super) fn discard(&mut self, seed: TokenSeed, slot: Slot, rows: &[(i64, Vec<u8>)]) -> rusqlite::Result<u64> {
        let conn = &self.engine.conn;
        let mut removed = 0;
        for (lies_in, name) in rows {
            let at = params![lies_in, name];
            let weight = conn.prepare_cached(row::SELECT_RECORD)?.query_row(at, |row| {
                let placed = i64::from(seed.token(name).slot().0) == *lies_in;
                let key = Key::new(name.clone()).ok().filter(|_| placed);
                let loaded = key.map(|key| Loaded::of(row, &key)).transpose()?;
                if loaded.is_some_and(|loaded| loaded.stored.is_some()) {
                    Ok(None)
                } else {
                    row::weight(row, name).map(Some)
                }
            });
            let Some(Some(weight)) = weight.optional()? else { continue };
            conn.prepare_cached("DELETE FROM records WHERE slot = ?1 AND key = ?2")?.execute(at)?;
            let mut count = Count::default();
            count.add(weight, -1);
            let in_slot = u8::try_from(*lies_in).map_or(slot, Slot);
            let leaf = Leaf((in_slot.index() * Leaf::IN_SLOT) as u16);
            self.entries.rows.push(Moved { leaf, count, sum: Sum::default(), doubtful: true });
            removed += 1;
        }
        Ok(removed)
    }
}
