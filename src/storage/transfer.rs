//! What a new instance fetches from the others: a slot page by page, and how a page is merged into what is here.
//!
//! Invariants:
//! - A page is one snapshot, and complete: where a record or a register in it is damaged it is refused, since whoever asks
//!   relies on being told all that this replica ever acknowledged.
//! - Merging takes nothing back: the greater record, the higher promise, the state accepted under the higher ballot.

use rusqlite::{Connection, params};

use super::book::Weight;
use super::engine::{Batch, Outcome};
use super::floors::Floors;
use super::meters::Meters;
use super::read::damaged;
use super::register;
use super::row::{self, Loaded, Stored};
use super::tree::Moved;
use super::walk::{self, Place, Walk};
use crate::ports::{SlotEntry, SlotPage, StoreError};
use crate::types::{Floor, Key, Record, Slot, Token, TokenSeed};

/// A page ends at this many keys, or at about so many bytes of them and their contents.
const KEYS_MAX: usize = 1024;
const BYTES_MAX: usize = 512 * 1024;

const KEYS: &str = "SELECT key FROM records WHERE slot = ?1 AND key > ?2 \
     UNION SELECT key FROM registers WHERE slot = ?1 AND key > ?2 ORDER BY key LIMIT ?3";

/// The page after that key.
///
/// # Errors
/// [`StoreError::Damaged`] where anything of it cannot be told.
pub(super) fn page(
    conn: &Connection,
    meters: &Meters,
    seed: Option<TokenSeed>,
    floors: &Floors,
    slot: Slot,
    after: Option<&Key>,
) -> Result<SlotPage, StoreError> {
    let damaged = |error| damaged(meters, error);
    conn.execute_batch("BEGIN").map_err(damaged)?;
    let page =
        read(conn, slot, after).and_then(|page| complete(conn, seed, slot, after, page.1.as_ref()).map(|()| page));
    // Not a commit, which a damaged page would make fail.
    conn.execute_batch("ROLLBACK").map_err(damaged)?;
    match page {
        // Looked up after the rows were: where a tombstone is gone the floor that let it go is told.
        Ok((entries, next)) => Ok(SlotPage { entries, floor: floors.get(slot).floor, next }),
        Err((key, what)) => {
            meters.damaged(slot, &key, &what);
            Err(StoreError::Damaged(format!("{key}: {what}")))
        }
    }
}

type Unread = (String, String);

fn read(conn: &Connection, slot: Slot, after: Option<&Key>) -> Result<(Vec<SlotEntry>, Option<Key>), Unread> {
    let sqlite = |e: rusqlite::Error| ("a page".to_owned(), e.to_string());
    let mut select = conn.prepare_cached(KEYS).map_err(sqlite)?;
    let after = after.map_or(&[][..], Key::as_bytes);
    let mut rows = select.query(params![slot.0, after, KEYS_MAX as i64]).map_err(sqlite)?;
    let mut record = conn.prepare_cached(row::SELECT_RECORD).map_err(sqlite)?;
    let (mut entries, mut bytes): (Vec<SlotEntry>, usize) = (Vec::new(), 0);
    while let Some(row) = rows.next().map_err(sqlite)? {
        let key = row.get_ref(0).ok().and_then(row::bytes_of).and_then(|bytes| Key::new(bytes.to_vec()).ok());
        let key = key.ok_or_else(|| ("unreadable".to_owned(), "key".to_owned()))?;
        let of_key = |what: String| (key.to_string(), what);
        let record = match row::load(&mut record, slot, &key).map_err(|e| of_key(e.to_string()))? {
            Some(Loaded { stored: None, .. }) => return Err(of_key("checksum".into())),
            Some(Loaded { stored: Some(stored), .. }) => Some(stored.record),
            None => None,
        };
        let register = register::read(conn, slot, &key).map_err(of_key)?;
        let accepted = register.as_ref().and_then(|r| r.accepted.as_ref()).and_then(|a| a.record.as_ref());
        bytes += 64 + key.as_bytes().len() + record.iter().chain(accepted).map(Record::content_bytes).sum::<usize>();
        entries.push((key, record, register));
        if bytes >= BYTES_MAX {
            break;
        }
    }
    let full = bytes >= BYTES_MAX || entries.len() == KEYS_MAX;
    let next = entries.last().filter(|_| full).map(|(key, ..)| key.clone());
    Ok((entries, next))
}

/// Whether the rows of the page and those beside it are all where they belong: else one may be missing.
fn complete(
    conn: &Connection,
    seed: Option<TokenSeed>,
    slot: Slot,
    after: Option<&Key>,
    next: Option<&Key>,
) -> Result<(), Unread> {
    let Some(seed) = seed else { return Ok(()) };
    let sqlite = |e: rusqlite::Error| ("a page".to_owned(), e.to_string());
    let after = after.map_or(&[][..], Key::as_bytes);
    let mut walk = Walk::new(seed, slot, after);
    let mut select = conn.prepare_cached(row::WALK_OUTLINES).map_err(sqlite)?;
    let mut rows = select.query(params![slot.0, after]).map_err(sqlite)?;
    while let Some(row) = rows.next().map_err(sqlite)? {
        let (place, (_, name)) = (walk.place(row).map_err(sqlite)?, walk::spot(row).map_err(sqlite)?);
        match place {
            Place::Here(_) if next.is_some_and(|next| name > next.as_bytes()) => break,
            Place::Here(_) => {}
            Place::Stray => return Err((name.escape_ascii().to_string(), "a key of another slot".into())),
            Place::End => break,
        }
    }
    Ok(())
}

impl Batch<'_> {
    /// All of it, or `Damaged` where a register here cannot be merged into.
    pub(super) fn absorb(&mut self, entries: &[(Token, SlotEntry)]) -> rusqlite::Result<Outcome> {
        let mut outcome = Outcome::Done;
        for (token, (key, record, register)) in entries {
            if let Some(record) = record {
                // Another replica holds it, so it is not below any floor that both have.
                self.write_over(*token, key, record, &Floor::default())?;
            }
            if let Some(register) = register
                && self.merge(token.slot(), key, register)? == Outcome::Damaged
            {
                outcome = Outcome::Damaged;
            }
        }
        Ok(outcome)
    }

    /// A damaged record stays: what it was cannot be said, and whatever a source sends takes its place.
    pub(super) fn drop_covered(&mut self, floor: &Floor, keys: &[(Token, Key)]) -> rusqlite::Result<u64> {
        let mut dropped = 0;
        for (token, key) in keys {
            let found = row::load(&mut self.select, token.slot(), key)?;
            let Some(Loaded { weight, stored: Some(Stored { record, large }) }) = found else { continue };
            if !floor.covers(&record.version, record.written) {
                continue;
            }
            self.take_away(*token, key, &Stored { record, large }, weight)?;
            dropped += 1;
        }
        Ok(dropped)
    }

    /// The record goes, with all that hangs on it, and nothing takes its place.
    pub(super) fn take_away(
        &mut self,
        token: Token,
        key: &Key,
        Stored { record, large }: &Stored,
        weight: Weight,
    ) -> rusqlite::Result<()> {
        let (slot, conn) = (token.slot(), &self.engine.conn);
        conn.prepare_cached("DELETE FROM records WHERE slot = ?1 AND key = ?2")?
            .execute(params![slot.0, key.as_bytes()])?;
        large.map_or(Ok(()), |id| row::forget_large(conn, id))?;
        self.forget_end(token, key, record)?;
        if record.is_tombstone() {
            self.unlist(slot, record.written, key.as_bytes())?;
        }
        self.entries.rows.push(Moved::gone(token, record, weight));
        Ok(())
    }
}
