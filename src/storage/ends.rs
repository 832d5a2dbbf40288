//! Values that end: the list of their ends beside the records, and writing the tombstones of those whose time is up.
//!
//! Invariants:
//! - The list is moved in the transaction that moves the record, and only where the old or the new one has an end: other
//!   writes do not meet it.
//! - It only says where to look. What is written is judged by the record itself, and is what every replica writes.
//!
//! Caveat: the end of a row that was damaged stays in the list until it is due. Then no record agrees with it, and it goes.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rusqlite::{Connection, params};

use super::commit::WriteQueue;
use super::commit::change_through;
use super::engine::{Batch, Change, Outcome};
use super::meters::Meters;
use super::read::{ReadQueue, damaged};
use super::row;
use super::store::read_through;
use crate::ports::StoreError;
use crate::types::{Hlc, Key, Record, Token};

pub(super) const PUT: &str = "REPLACE INTO ends VALUES (?1, ?2, ?3)";
const DELETE: &str = "DELETE FROM ends WHERE expires_at_ms = ?1 AND token = ?2 AND key = ?3";
const DUE: &str =
    "SELECT expires_at_ms, token, key FROM ends WHERE expires_at_ms <= ?1 ORDER BY expires_at_ms, token, key LIMIT ?2";
const ANY_DUE: &str = "SELECT EXISTS (SELECT 1 FROM ends WHERE expires_at_ms <= ?1)";

/// Writes the tombstones that are due. Mostly there are none: a reader says so, and the writer is not troubled.
pub(super) fn end_due(
    reads: &ReadQueue,
    writes: Arc<WriteQueue>,
    now: Hlc,
    limit: usize,
) -> BoxFuture<'static, Result<Vec<(Key, Record)>, StoreError>> {
    let due = read_through(reads, move |conn, meters| any_due(conn, meters, now));
    async move {
        if !due.await? {
            return Ok(Vec::new());
        }
        match change_through(&writes, Change::EndDue { now, limit }).await? {
            Outcome::Ended(ended) => Ok(ended),
            _ => Ok(Vec::new()),
        }
    }
    .boxed()
}

/// Whether some value's time is up.
pub(super) fn any_due(conn: &Connection, meters: &Meters, now: Hlc) -> Result<bool, StoreError> {
    let mut select = conn.prepare_cached(ANY_DUE).map_err(|e| damaged(meters, e))?;
    select.query_row([now.ms() as i64], |row| row.get(0)).map_err(|e| damaged(meters, e))
}

impl Batch<'_> {
    /// The record takes the old one's place.
    pub(super) fn move_end(&self, token: Token, key: &Key, old: Option<&Record>, new: &Record) -> rusqlite::Result<()> {
        let (old, new) = (old.and_then(Record::expires_at_ms), new.expires_at_ms());
        if old == new {
            return Ok(());
        }
        let conn = &self.engine.conn;
        for (sql, at) in [(DELETE, old), (PUT, new)] {
            if let Some(at) = at {
                conn.prepare_cached(sql)?.execute(params![at as i64, token.0 as i64, key.as_bytes()])?;
            }
        }
        Ok(())
    }

    /// The record goes, and nothing takes its place.
    pub(super) fn forget_end(&self, token: Token, key: &Key, old: &Record) -> rusqlite::Result<()> {
        if let Some(at) = old.expires_at_ms() {
            let at = params![at as i64, token.0 as i64, key.as_bytes()];
            self.engine.conn.prepare_cached(DELETE)?.execute(at)?;
        }
        Ok(())
    }

    /// Writes the tombstones of at most so many values whose time is up.
    pub(super) fn end_due(&mut self, now: Hlc, limit: usize) -> rusqlite::Result<Outcome> {
        let due: Vec<(i64, i64, Vec<u8>)> = {
            let mut select = self.engine.conn.prepare_cached(DUE)?;
            let rows = select
                .query_map(params![now.ms() as i64, limit as i64], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            rows.collect::<rusqlite::Result<_>>()?
        };
        let mut ended = Vec::with_capacity(due.len());
        for (at, token, bytes) in due {
            match self.end_one(now, (at, Token(token as u64)), &bytes)? {
                Some(end) => ended.push(end),
                None => {
                    self.engine.conn.prepare_cached(DELETE)?.execute(params![at, token, bytes])?;
                }
            }
        }
        Ok(Outcome::Ended(ended))
    }

    /// `None` where no such record ends then.
    fn end_one(&mut self, now: Hlc, (at, token): (i64, Token), key: &[u8]) -> rusqlite::Result<Option<(Key, Record)>> {
        let Ok(key) = Key::new(key.to_vec()) else { return Ok(None) };
        let found = row::load(&mut self.select, token.slot(), &key)?;
        let stored = found.as_ref().and_then(|loaded| loaded.stored.as_ref()).map(|stored| &stored.record);
        let due = stored.filter(|r| r.expires_at_ms() == Some(at as u64) && r.has_ended(now));
        let Some(end) = due.and_then(|record| record.end(&key)) else { return Ok(None) };
        self.store(token, &key, &end, found.as_ref())?;
        Ok(Some((key, end)))
    }
}
