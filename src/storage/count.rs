//! Counting and summing what a file holds, beside everything else: slot by slot, each from a short snapshot of its own, so
//! that a large file neither delays the start nor keeps the log from being checkpointed.
//!
//! A row adds to the sums what its columns say, unverified, so that a walk reads no large value. A row whose key does not
//! belong to its slot was damaged there; it adds nothing to the sums, and nobody can overwrite it.

use rusqlite::{Connection, params};

use super::book::{Book, Count};
use super::row::{self, AFTER_RECORD};
use crate::types::limits::KEY_BYTES_MAX;
use crate::types::{Leaf, Slot, Sum, TokenSeed};

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
    while let Some(slot) = book.wait_due() {
        let walked = walk(conn, book, slot, &seed);
        walked.as_ref().err().into_iter().for_each(&failed);
        report(slot, walked);
    }
}

/// The same for whoever has no thread: returns once nothing is due.
pub(super) fn run_due(conn: &Connection, book: &Book, seed: Option<TokenSeed>) {
    while let Some(slot) = book.take_due() {
        report(slot, walk(conn, book, slot, &|| seed));
    }
}

fn report(slot: Slot, walked: rusqlite::Result<()>) {
    if let Err(error) = walked {
        tracing::error!(%slot, %error, "the records of a slot could not be counted; it is not compared with its copies");
    }
}

fn walk(conn: &Connection, book: &Book, slot: Slot, seed: &impl Fn() -> Option<TokenSeed>) -> rusqlite::Result<()> {
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
    let mut select = conn.prepare_cached(row::SCAN_OUTLINES)?;
    let mut rows = select.query(params![slot.0, &[] as &[u8]])?;
    while let Some(row) = rows.next()? {
        let key = row::bytes_of(row.get_ref(AFTER_RECORD)?).unwrap_or_default();
        count.add(row::weight(row, key)?, 1);
        let token = seed.filter(|_| (1..=KEY_BYTES_MAX).contains(&key.len())).map(|seed| seed.token(key));
        let Some(token) = token.filter(|token| token.slot() == slot) else { continue };
        if let Some((version, checksum)) = row::stamp(row) {
            leaves[Leaf::of(token).within_slot()].add(Sum::of(token, &version, checksum));
        }
    }
    let known = seed.is_some() || count == Count::default();
    Ok(Found { count, leaves: known.then_some(leaves) })
}
