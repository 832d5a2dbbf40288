//! What a slot holds, row by row and verified: for comparing lists, and for finding what is damaged (all leaves of a slot
//! are a scrub of it).
//!
//! A slot is read in pieces, each a short snapshot of its own, so that reads of clients get in between. A row that is
//! written meanwhile is listed as it was, or as it is, or (new behind the place that is reached) not at all.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row, params};

use super::meters::Meters;
use super::read::{Page, damaged};
use super::register;
use super::row::{self, COLUMN_LARGE, Loaded};
use super::walk::{self, Place, Walk};
use crate::ports::{Holdings, RecordPage, StoreError};
use crate::types::{Key, Leaf, Slot, TokenSeed};

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
    /// Registers are looked at, too.
    pub(super) fn is_all(&self) -> bool {
        self.leaves.iter().all(|wanted| *wanted)
    }

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
    /// The bytes of the key after which to go on; `None` at the end of the slot.
    pub(super) next: Option<Vec<u8>>,
}

/// The piece after those bytes of a key; none of them is the beginning of the slot.
pub(super) fn piece(conn: &Connection, meters: &Meters, wanted: &Wanted, after: &[u8]) -> Result<Piece, StoreError> {
    read_piece(conn, meters, wanted, after).map_err(|error| damaged(meters, error))
}

/// A part of a slot's registers: those that are damaged, and where to go on.
pub(super) fn registers(conn: &Connection, meters: &Meters, slot: Slot, after: &[u8]) -> Result<Piece, StoreError> {
    let mut lost = Vec::new();
    let next = register::lost(conn, slot, after, &mut lost).map_err(|error| damaged(meters, error))?;
    for name in &lost {
        meters.damaged(slot, &name.escape_ascii(), &"a register");
    }
    Ok(Piece { held: Holdings { lost, ..Holdings::default() }, next })
}

fn read_piece(conn: &Connection, meters: &Meters, wanted: &Wanted, after: &[u8]) -> rusqlite::Result<Piece> {
    let slot = wanted.slot;
    let mut piece = Piece::default();
    let (mut seen, mut bytes) = (0, 0);
    let mut walk = Walk::new(wanted.seed, slot, after);
    let mut select = conn.prepare_cached(row::WALK_OUTLINES)?;
    let mut rows = select.query(params![slot.0, after])?;
    while let Some(row) = rows.next()? {
        let place = walk.place(row)?;
        let (lies_in, name) = walk::spot(row)?;
        let token = match place {
            Place::End => break,
            Place::Stray => {
                meters.damaged(slot, &name.escape_ascii(), &"a key of another slot");
                piece.held.strays.push((lies_in, name.to_vec()));
                continue;
            }
            Place::Here(token) => token,
        };
        seen += 1;
        let loaded = match (wanted.leaves[Leaf::of(token).within_slot()], Key::new(name.to_vec())) {
            (false, _) => None,
            (true, Err(_)) => {
                meters.damaged(slot, &name.escape_ascii(), &"key");
                piece.held.strays.push((lies_in, name.to_vec()));
                None
            }
            (true, Ok(key)) => load(conn, row, slot, &key)?.map(|loaded| (key, loaded)),
        };
        if let Some((key, Loaded { weight, stored })) = loaded {
            bytes += weight.bytes;
            match stored {
                Some(stored) => piece.held.add(token, key, &stored.record),
                None => {
                    meters.damaged(slot, &key, &"checksum");
                    piece.held.damaged.push(key);
                }
            }
        }
        if seen >= ROWS_MAX || bytes >= BYTES_MAX {
            piece.next = Some(name.to_vec());
            break;
        }
    }
    Ok(piece)
}

/// The row that the walk stands on, with its large value where it has one; gone meanwhile where there is none.
fn load(conn: &Connection, row: &Row<'_>, slot: Slot, key: &Key) -> rusqlite::Result<Option<Loaded>> {
    match row.get_ref(COLUMN_LARGE)? {
        ValueRef::Null => Loaded::of(row, key).map(Some),
        _ => row::load(&mut conn.prepare_cached(row::SELECT_RECORD)?, slot, key),
    }
}

/// Puts the pieces of one slot together.
#[derive(Default)]
pub(super) struct Gathered(Holdings);

impl Gathered {
    pub(super) fn add(&mut self, held: Holdings) {
        let Gathered(all) = self;
        all.intact.extend(held.intact);
        all.damaged.extend(held.damaged);
        all.strays.extend(held.strays);
        all.lost.extend(held.lost);
        for (leaf, sum) in held.leaves {
            all.leaves.entry(leaf).or_default().add(sum);
        }
    }

    /// In order of tokens.
    pub(super) fn finish(self) -> Holdings {
        let Gathered(mut held) = self;
        held.intact.sort_unstable();
        held
    }
}

/// The records of these keys as far as a page goes, and how many keys were looked up. A damaged row is left out and counted.
pub(super) fn records(conn: &Connection, meters: &Meters, keys: &[(Slot, Key)]) -> Result<RecordPage, StoreError> {
    let mut page = Page::new(usize::MAX);
    let mut looked_up = 0;
    let damaged = |error| damaged(meters, error);
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
