//! The sums of what the store holds, kept in the database from a clean stop to the next start, so that a start counts
//! nothing.
//!
//! Invariants:
//! - The copy is believed only under its mark, which is written with it, after the last change. It goes before the first
//!   change can be made, in a transaction that is synced whatever `DURABILITY` says. So a copy that is older than the rows
//!   has no mark.
//! - The mark names the copy by a checksum over all its checksums. A copy that is damaged anywhere is not believed at all.
//! - A slot that is not in the copy is counted from its rows: one without records, or whose sums were in doubt.

use rusqlite::{Connection, params};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::book::{Book, Count};
use super::connection::{self, Durability};
use super::engine::is_damage;
use super::{facts, tree};
use crate::types::{Slot, Sum};

/// One slot of the copy.
struct Saved {
    slot: Slot,
    count: Count,
    leaves: Vec<Sum>,
}

/// Writes the copy and its mark in one transaction. Whoever calls changes nothing afterwards.
pub(super) fn save(conn: &Connection, book: &Book) -> rusqlite::Result<()> {
    let transaction = conn.unchecked_transaction()?;
    transaction.execute("DELETE FROM sums", [])?;
    let mut whole = Xxh3::new();
    for slot in Slot::all() {
        let Some((count, leaves)) = book.slot(slot).filter(|(count, _)| *count != Count::default()) else { continue };
        let leaves = tree::encode(&leaves);
        let checksum = checksum(slot, count, &leaves);
        whole.update(&checksum.to_le_bytes());
        transaction.prepare_cached("INSERT INTO sums VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
            slot.0,
            count.keys,
            count.tombstones,
            count.bytes,
            leaves,
            checksum as i64
        ])?;
    }
    facts::mark_sums(&transaction, whole.digest())?;
    transaction.commit()
}

/// Takes a copy that can be believed into the book, and its mark away: on disk when it returns. The connection syncs as
/// `durability` asks afterwards.
///
/// # Errors
/// When the mark could not be taken away; nothing may be written then.
pub(super) fn restore(conn: &Connection, book: &Book, durability: Durability) -> rusqlite::Result<()> {
    let Some(mark) = facts::sums_mark(conn)? else { return Ok(()) };
    let loaded = load(conn);
    connection::set_synchronous(conn, Durability::Full)?;
    facts::unmark_sums(conn)?;
    connection::set_synchronous(conn, durability)?;
    match loaded {
        Ok((saved, whole)) if mark == Some(whole) => {
            tracing::info!(slots = saved.len(), "the sums that the last stop saved are taken over");
            saved.iter().for_each(|Saved { slot, count, leaves }| book.restore(*slot, *count, leaves));
        }
        Ok(_) => tracing::warn!("the saved sums are damaged; they are counted anew"),
        Err(error) if is_damage(&error) => tracing::warn!(%error, "the saved sums are damaged; they are counted anew"),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// The copy, and the checksum over the checksums of those rows that are intact.
fn load(conn: &Connection) -> rusqlite::Result<(Vec<Saved>, u64)> {
    let mut saved = Vec::new();
    let mut whole = Xxh3::new();
    let mut select = conn.prepare("SELECT slot, keys, tombstones, bytes, leaves, checksum FROM sums ORDER BY slot")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let slot = Slot(row.get(0)?);
        let count = Count { keys: row.get(1)?, tombstones: row.get(2)?, bytes: row.get(3)? };
        let leaves: Vec<u8> = row.get(4)?;
        let found = row.get::<_, i64>(5)? as u64;
        let Some(leaves) = tree::decode(&leaves).filter(|_| found == checksum(slot, count, &leaves)) else { continue };
        whole.update(&found.to_le_bytes());
        saved.push(Saved { slot, count, leaves });
    }
    Ok((saved, whole.digest()))
}

fn checksum(slot: Slot, count: Count, leaves: &[u8]) -> u64 {
    let mut bytes = Vec::with_capacity(25 + leaves.len());
    bytes.push(slot.0);
    [count.keys, count.tombstones, count.bytes].iter().for_each(|n| bytes.extend_from_slice(&n.to_le_bytes()));
    bytes.extend_from_slice(leaves);
    xxh3_64(&bytes)
}
