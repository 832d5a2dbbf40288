//! What a slot holds, row by row and verified: for comparing lists, and for finding what is damaged (all leaves of a slot
//! are a scrub of it).
//!
//! A slot is read in pieces, each a short snapshot of its own, so that reads of clients get in between. A row that is
//! written meanwhile is listed as it was, or as it is, or (new behind the place that is reached) not at all.

use rusqlite::{Connection, params};

use super::meters::Meters;
use super::read::{Page, damaged};
use super::row::{self, AFTER_RECORD, COLUMN_LARGE, Loaded};
use crate::ports::{Holdings, StoreError};
use crate::types::{Entry, Key, Leaf, Record, Slot, TokenSeed};

/// Rows looked at in one piece: one or two milliseconds of a reader's time.
const ROWS_MAX: usize = 2048;
/// The same in bytes of what is verified.
const BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Which leaves of which slot.
pub(super) struct Wanted {
    seed: TokenSeed,
    slot: Slot,
    leaves: [bool; Leaf::IN_SLOT],
}

impl Wanted {
    /// Leaves of other slots are passed over.
    pub(super) fn new(seed: TokenSeed, slot: Slot, leaves: &[Leaf]) -> Self {
        let mut wanted = [false; Leaf::IN_SLOT];
        leaves.iter().filter(|leaf| leaf.slot() == slot).for_each(|leaf| wanted[leaf.within_slot()] = true);
        Self { seed, slot, leaves: wanted }
    }
}

/// What was found by reading on for a while.
#[derive(Default)]
pub(super) struct Piece {
    /// In key order.
    pub(super) held: Holdings,
    /// There was a row whose key is not what was written: whose it was cannot be said, and the sums still count that key.
    pub(super) strays: bool,
    /// The bytes of the key after which to go on; `None` at the end of the slot.
    pub(super) next: Option<Vec<u8>>,
}

/// The piece after those bytes of a key; none of them is the beginning of the slot.
pub(super) fn piece(conn: &Connection, meters: &Meters, wanted: &Wanted, after: &[u8]) -> Result<Piece, StoreError> {
    let slot = wanted.slot;
    let mut piece = Piece::default();
    let (mut seen, mut bytes) = (0, 0);
    let mut select = conn.prepare_cached(row::SCAN_OUTLINES).map_err(damaged)?;
    let mut rows = select.query(params![slot.0, after]).map_err(damaged)?;
    while let Some(row) = rows.next().map_err(damaged)? {
        let name = row.get_ref(AFTER_RECORD).ok().and_then(row::bytes_of).unwrap_or_default();
        if seen >= ROWS_MAX || bytes >= BYTES_MAX {
            return Ok(piece);
        }
        seen += 1;
        let next = piece.next.get_or_insert_default();
        next.clear();
        next.extend_from_slice(name);
        let token = wanted.seed.token(name);
        if token.slot() != slot || name.is_empty() {
            meters.damaged(slot, &name.escape_ascii(), &"a key of another slot");
            piece.strays = true;
            continue;
        }
        if !wanted.leaves[Leaf::of(token).within_slot()] {
            continue;
        }
        let Ok(key) = Key::new(name.to_vec()) else {
            meters.damaged(slot, &"unreadable", &"key");
            piece.strays = true;
            continue;
        };
        let loaded = match row.get_ref(COLUMN_LARGE).map_err(damaged)? {
            rusqlite::types::ValueRef::Null => Loaded::of(row, &key).map(Some),
            _ => conn.prepare_cached(row::SELECT_RECORD).and_then(|mut select| row::load(&mut select, slot, &key)),
        };
        let Some(loaded) = loaded.map_err(damaged)? else { continue };
        bytes += loaded.weight.bytes;
        match loaded.stored {
            Some(stored) => piece.held.intact.push((Entry::of(token, &stored.record), key)),
            None => {
                meters.damaged(slot, &key, &"checksum");
                piece.held.damaged.push(key);
            }
        }
    }
    piece.next = None;
    Ok(piece)
}

/// Puts the pieces of one slot together.
#[derive(Default)]
pub(super) struct Gathered(Holdings);

impl Gathered {
    pub(super) fn add(&mut self, held: Holdings) {
        self.0.intact.extend(held.intact);
        self.0.damaged.extend(held.damaged);
    }

    /// In order of tokens.
    pub(super) fn finish(self) -> Holdings {
        let Gathered(mut held) = self;
        held.intact.sort_unstable();
        held
    }
}

/// The records of these keys as far as a page goes, and how many keys were looked up. A damaged row is left out and counted.
pub(super) fn records(
    conn: &Connection,
    meters: &Meters,
    keys: &[(Slot, Key)],
) -> Result<(Vec<(Key, Record)>, usize), StoreError> {
    let mut page = Page::new(usize::MAX);
    let mut looked_up = 0;
    let mut select = conn.prepare_cached(row::SELECT_RECORD).map_err(damaged)?;
    for (slot, key) in keys {
        if page.full() {
            break;
        }
        looked_up += 1;
        match row::load(&mut select, *slot, key).map_err(damaged)? {
            None => {}
            Some(Loaded { stored: Some(stored), weight }) => page.add((key.clone(), stored.record), weight.bytes),
            Some(Loaded { stored: None, .. }) => meters.damaged(*slot, key, &"checksum"),
        }
    }
    Ok((page.items, looked_up))
}
