//! Counting and summing what a file holds, beside everything else: slot by slot, each from a short snapshot of its own, so
//! that a large file neither delays the start nor keeps the log from being checkpointed.
//!
//! A row is verified before it adds to the sums, but for one with a large value, which a walk does not read: that adds what
//! its columns say. A row whose key does not belong to its slot was damaged there and adds nothing; it still counts in the
//! totals of the slot it says.

use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row, params};

use super::book::{Book, Count};
use super::row::{self, COLUMN_LARGE, Loaded, Stored};
use super::walk;
use crate::types::{Key, Leaf, Slot, Sum, Token, TokenSeed};

/// After how long a slot that could not be walked is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// What stood in a slot.
pub(super) struct Found {
    pub(super) count: Count,
    /// `None` where the tokens of its rows are not known.
    pub(super) leaves: Option<Vec<Sum>>,
}

/// The counter thread: walks every slot that is due, until the book says to stop. `seed` is asked under each snapshot: a
/// node that has rows has its cluster. `failed` hears what kept a slot from being walked.
pub(super) fn run(
    conn: &Connection,
    book: &Book,
    seed: impl Fn() -> Option<TokenSeed>,
    failed: impl Fn(&rusqlite::Error),
) {
    while let Some(slot) = book.wait_due(AGAIN) {
        let walked = count(conn, book, slot, &seed);
        if let Err(error) = &walked {
            book.walk_failed(slot);
            failed(error);
        }
        report(slot, walked);
    }
}

/// The same for whoever has no thread: returns once nothing is due.
pub(super) fn run_due(conn: &Connection, book: &Book, seed: Option<TokenSeed>) {
    while let Some(slot) = book.take_due() {
        report(slot, count(conn, book, slot, &|| seed));
    }
}

fn report(slot: Slot, walked: rusqlite::Result<()>) {
    if let Err(error) = walked {
        tracing::error!(%slot, %error, "the records of a slot could not be counted; it is not compared with its copies");
    }
}

fn count(conn: &Connection, book: &Book, slot: Slot, seed: &impl Fn() -> Option<TokenSeed>) -> rusqlite::Result<()> {
    let opened = {
        let _between_commits = book.gate();
        let opened = conn.execute_batch("BEGIN; SELECT 1 FROM records LIMIT 1");
        opened.map(|()| book.booked(slot))
    };
    let found = opened.and_then(|booked| Ok((booked, find(conn, slot, seed())?)));
    // Not a commit, which a damaged page would make fail.
    if !conn.is_autocommit() {
        conn.execute_batch("ROLLBACK")?;
    }
    let (booked, found) = found?;
    book.walked(slot, &found, &booked);
    Ok(())
}

fn find(conn: &Connection, slot: Slot, seed: Option<TokenSeed>) -> rusqlite::Result<Found> {
    let mut count = Count::default();
    let mut leaves = vec![Sum::default(); Leaf::IN_SLOT];
    let mut select = conn.prepare_cached(row::WALK_OUTLINES)?;
    let mut rows = select.query(params![slot.0, &[] as &[u8]])?;
    while let Some(row) = rows.next()? {
        let Ok((lies_in, name)) = walk::spot(row) else { continue };
        let token = seed.map(|seed| seed.token(name)).filter(|token| i64::from(token.slot().0) == lies_in);
        if lies_in != i64::from(slot.0) {
            // A row under another slot that belongs there ends this one.
            if token.is_some() || seed.is_none() {
                break;
            }
            continue;
        }
        count.add(row::weight(row, name)?, 1);
        if let Some((token, sum)) = token.and_then(|token| Some((token, sum_of(row, token, name).transpose()?))) {
            leaves[Leaf::of(token).within_slot()].add(sum?);
        }
    }
    let known = seed.is_some() || count == Count::default();
    Ok(Found { count, leaves: known.then_some(leaves) })
}

/// What a row adds; nothing where it is damaged, as far as its large value need not be read to see that.
fn sum_of(row: &Row<'_>, token: Token, name: &[u8]) -> rusqlite::Result<Option<Sum>> {
    let Ok(key) = Key::new(name.to_vec()) else { return Ok(None) };
    if row.get_ref(COLUMN_LARGE)? == ValueRef::Null {
        let stored = Loaded::of(row, &key)?.stored;
        return Ok(stored.map(|Stored { record, .. }| Sum::of(token, &record.version, record.checksum)));
    }
    Ok(row::stamp(row).map(|(version, checksum)| Sum::of(token, &version, checksum)))
}
