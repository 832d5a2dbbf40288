//! Hints inside a transaction: keeping, forgetting, dropping, and their totals.
//!
//! Invariants:
//! - The totals follow every change; [`Batch::settle_oldest`] looks the oldest up again before the commit for each
//!   target that lost a hint.
//! - A damaged hint is nothing that was kept: a new one takes its place, and forgetting it always succeeds.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};

use super::book::HintBook;
use super::engine::Batch;
use super::row::{self, Columns, LoadedHint};
use crate::ports::{HintTotals, Refusal, ReplicaReply};
use crate::protocol::replica::{self, HintRule};
use crate::types::{Key, KeyChange, NodeNum, Record, Slot, Version};

/// Counts all hints: at start only.
pub(super) fn count(conn: &Connection) -> rusqlite::Result<HintBook> {
    let mut targets = BTreeMap::new();
    let mut select = conn.prepare(
        "SELECT target, count(*), min(kept_at_ms), sum(length(key) + ifnull(length(content_type), 0) \
         + ifnull(length(value), ifnull(large_bytes, 0))) FROM hints GROUP BY target",
    )?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let int = |column| row.get::<_, i64>(column).map(|n| n as u64);
        let totals = HintTotals { count: int(1)?, bytes: int(3)?, oldest_ms: int(2)?, dropped: 0 };
        targets.insert(NodeNum(row.get(0)?), totals);
    }
    Ok(HintBook { targets })
}

impl Batch<'_> {
    pub(super) fn hint(
        &mut self,
        bytes_max: u64,
        (target, slot, key): (NodeNum, Slot, &Key),
        record: &Record,
        counted: bool,
    ) -> rusqlite::Result<ReplicaReply> {
        let conn = &self.engine.conn;
        let found = row::load_hint(&mut conn.prepare_cached(row::SELECT_HINT)?, target, slot, key)?;
        let stored = found.as_ref().and_then(|hint| hint.row.stored.as_ref());
        if found.is_some() && stored.is_none() {
            self.meters.damaged(slot, key, &"checksum of a hint");
        }
        let old_bytes = found.as_ref().map_or(0, |hint| hint.row.weight.bytes);
        let bytes = (key.as_bytes().len() + record.content_bytes()) as u64;
        let room = (bytes_max + old_bytes).saturating_sub(self.hint_book().bytes());
        let kept = found.as_ref().zip(stored).map(|(hint, stored)| (stored.record.version, hint.counted));
        match replica::hint(kept, record.version, counted, bytes, room) {
            HintRule::Full => return Ok(ReplicaReply::Refused(Refusal::HintsFull)),
            HintRule::Kept => return Ok(ReplicaReply::Hinted),
            HintRule::Promote => {
                conn.prepare_cached("UPDATE hints SET counted = 1 WHERE target = ?1 AND slot = ?2 AND key = ?3")?
                    .execute(params![target.0, slot.0, key.as_bytes()])?;
                return Ok(ReplicaReply::Hinted);
            }
            HintRule::Keep { counted } => {
                let columns = Columns::place(conn, key, record, stored.and_then(|s| s.large))?;
                let mut put = conn.prepare_cached(row::PUT_HINT)?;
                columns.put_hint(&mut put, (target, slot, key), counted, self.now.wall_ms)?;
                self.hints_stored += 1;
                self.changes.push(KeyChange::of(key, record));
            }
        }
        if let Some(old) = &found {
            self.lose(target, old);
        }
        let now_ms = self.now.wall_ms;
        let totals = self.hint_book().targets.entry(target).or_default();
        totals.oldest_ms = if totals.count == 0 { now_ms } else { totals.oldest_ms.min(now_ms) };
        totals.count += 1;
        totals.bytes += bytes;
        Ok(ReplicaReply::Hinted)
    }

    pub(super) fn forget_hints(&mut self, hints: &[(NodeNum, Slot, Key, Version)]) -> rusqlite::Result<()> {
        for (target, slot, key, version) in hints {
            self.remove_hint(*target, *slot, key, |hint| {
                hint.row.stored.as_ref().is_none_or(|s| s.record.version == *version)
            })?;
        }
        Ok(())
    }

    pub(super) fn drop_hints(&mut self, kept_before_ms: u64, limit: u64) -> rusqlite::Result<u64> {
        let conn = &self.engine.conn;
        let targets: Vec<NodeNum> = self.hint_book().targets.keys().copied().collect();
        let mut dropped = 0;
        for target in targets {
            let mut select = conn.prepare_cached(
                "SELECT slot, key FROM hints WHERE target = ?1 AND counted = 0 AND kept_at_ms < ?2 LIMIT ?3",
            )?;
            let many = (limit - dropped) as i64;
            let old = select.query_map(params![target.0, kept_before_ms as i64, many], |row| {
                // A damaged key names no hint that could be looked up.
                Ok(Key::new(row.get::<_, Vec<u8>>(1)?).ok().map(|key| (Slot(row.get(0).unwrap_or_default()), key)))
            })?;
            let old: Vec<_> = old.filter_map(Result::transpose).collect::<rusqlite::Result<_>>()?;
            let mut removed = 0;
            for (slot, key) in &old {
                removed += u64::from(self.remove_hint(target, *slot, key, |_| true)?);
            }
            self.hint_book().targets.entry(target).or_default().dropped += removed;
            dropped += removed;
        }
        Ok(dropped)
    }

    fn remove_hint(
        &mut self,
        target: NodeNum,
        slot: Slot,
        key: &Key,
        wanted: impl FnOnce(&LoadedHint) -> bool,
    ) -> rusqlite::Result<bool> {
        let conn = &self.engine.conn;
        let found = row::load_hint(&mut conn.prepare_cached(row::SELECT_HINT)?, target, slot, key)?;
        let Some(hint) = found.filter(wanted) else { return Ok(false) };
        conn.prepare_cached("DELETE FROM hints WHERE target = ?1 AND slot = ?2 AND key = ?3")?.execute(params![
            target.0,
            slot.0,
            key.as_bytes()
        ])?;
        if let Some(id) = hint.row.stored.as_ref().and_then(|stored| stored.large) {
            row::forget_large(conn, id)?;
        }
        self.lose(target, &hint);
        Ok(true)
    }

    /// The totals as this transaction leaves them.
    fn hint_book(&mut self) -> &mut HintBook {
        let book = &self.engine.book;
        self.entries.hints.get_or_insert_with(|| book.hints())
    }

    fn lose(&mut self, target: NodeNum, hint: &LoadedHint) {
        let totals = self.hint_book().targets.entry(target).or_default();
        totals.count = totals.count.saturating_sub(1);
        totals.bytes = totals.bytes.saturating_sub(hint.row.weight.bytes);
        self.bereft.insert(target);
    }

    /// Looks up the oldest hint of each target that lost one.
    pub(super) fn settle_oldest(&mut self) -> rusqlite::Result<()> {
        for target in std::mem::take(&mut self.bereft) {
            // One search at each end of the index instead of a walk over all of the target's hints.
            let oldest = self
                .engine
                .conn
                .prepare_cached(
                    "SELECT ifnull(min(oldest), 0) FROM (\
                     SELECT min(kept_at_ms) AS oldest FROM hints WHERE target = ?1 AND counted = 0 UNION ALL \
                     SELECT min(kept_at_ms) FROM hints WHERE target = ?1 AND counted = 1)",
                )?
                .query_row([target.0], |row| row.get::<_, i64>(0))?;
            self.hint_book().targets.entry(target).or_default().oldest_ms = oldest as u64;
        }
        Ok(())
    }
}
