//! Counting what a file holds, beside everything else: slot by slot, each from a short snapshot of its own, so that a
//! large file neither delays the start nor keeps the log from being checkpointed.

use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::Connection;

use super::book::{Book, Count};
use crate::types::Slot;

/// Counts every slot once; stops early when told to.
pub(super) fn count_all(conn: &Connection, book: &Book, stop: &AtomicBool) -> rusqlite::Result<()> {
    for slot in Slot::all() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let booked = {
            let _between_commits = book.gate();
            conn.execute_batch("BEGIN; SELECT 1 FROM records LIMIT 1")?;
            book.booked(slot)
        };
        let found = count(conn, slot);
        // Not a commit, which a damaged page would make fail.
        conn.execute_batch("ROLLBACK")?;
        book.counted(slot, found?, booked);
    }
    Ok(())
}

fn count(conn: &Connection, slot: Slot) -> rusqlite::Result<Count> {
    let mut select = conn.prepare_cached(
        "SELECT count(*), ifnull(sum(value IS NULL AND large IS NULL), 0), ifnull(sum(length(key) \
         + ifnull(length(content_type), 0) + ifnull(length(value), ifnull(large_bytes, 0))), 0) \
         FROM records WHERE slot = ?1",
    )?;
    select.query_row([slot.0], |row| {
        let (rows, tombstones): (i64, i64) = (row.get(0)?, row.get(1)?);
        Ok(Count { keys: rows - tombstones, tombstones, bytes: row.get(2)? })
    })
}
