//! Reading: threads that drain one queue, one snapshot a drain.
//!
//! Invariants:
//! - A drain opens its snapshot after it took its requests, so each of them sees every change that was acknowledged
//!   before it was submitted. No request joins an open snapshot.
//! - A snapshot lives as long as its drain, and a drain is bounded: it keeps neither the log from being checkpointed
//!   nor small reads waiting behind many scans.
//! - A row that fails its checksum is never served, and a key is not called absent where its row may be the damaged one
//!   beside its place (see `walk`): both are answered as damaged.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use rusqlite::{CachedStatement, Connection};
use smallvec::SmallVec;

use super::book::Book;
use super::floors::Floors;
use super::meters::Meters;
use super::row::{self, AFTER_RECORD, Loaded, LoadedHint};
use super::status::Status;
use super::walk;
use crate::ports::{Hint, ReadPart, Refusal, ReplicaReply, ReplyTo, Seen, StoreError};
use crate::types::{Hlc, Identity, Key, NodeNum, Record, Slot, TokenSeed};

/// Requests of the hot path in one snapshot. Small enough that all threads get work from one burst.
const DRAIN_MAX: usize = 128;
/// A page of a scan ends at this many bytes of keys and contents.
const PAGE_BYTES_MAX: usize = 1024 * 1024;

/// A read of the hot path.
pub(super) struct Read {
    pub(super) slot: Slot,
    pub(super) key: Key,
    pub(super) part: ReadPart,
    pub(super) hints: bool,
    pub(super) reply_to: ReplyTo,
}

/// A rare read: does its work and answers.
pub(super) type Rare = Box<dyn FnOnce(&Connection, &Meters) + Send>;

#[derive(Default)]
struct Waiting {
    reads: VecDeque<Read>,
    rare: VecDeque<Rare>,
    closing: bool,
}

/// Where reads wait for a thread.
#[derive(Default)]
pub(super) struct ReadQueue {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

impl ReadQueue {
    /// Gives back what came after closing.
    pub(super) fn push(&self, reads: impl Iterator<Item = Read>, limit: usize) -> Vec<(Read, Refusal)> {
        let mut refused = Vec::new();
        let mut waiting = self.waiting.lock();
        let before = waiting.reads.len();
        for read in reads {
            if waiting.closing {
                refused.push((read, Refusal::NotReady));
            } else if waiting.reads.len() >= limit {
                refused.push((read, Refusal::Overloaded));
            } else {
                waiting.reads.push_back(read);
            }
        }
        let more = waiting.reads.len() - before;
        drop(waiting);
        if more > 0 {
            self.wake.notify_one();
        }
        // A message's worth is shared.
        if more > 1 {
            self.wake.notify_one();
        }
        refused
    }

    /// A rare read that comes after closing is dropped, and with it what it would answer through.
    pub(super) fn push_rare(&self, rare: Rare) {
        let mut waiting = self.waiting.lock();
        if !waiting.closing {
            waiting.rare.push_back(rare);
            drop(waiting);
            self.wake.notify_one();
        }
    }

    pub(super) fn close(&self) {
        self.waiting.lock().closing = true;
        self.wake.notify_all();
    }

    /// Waits for work; `false` once the queue is closed and empty.
    fn take(&self, reads: &mut Vec<Read>) -> Option<Option<Rare>> {
        let mut waiting = self.waiting.lock();
        loop {
            let many = waiting.reads.len().min(DRAIN_MAX);
            reads.extend(waiting.reads.drain(..many));
            let rare = waiting.rare.pop_front();
            if !reads.is_empty() || rare.is_some() {
                return Some(rare);
            }
            if waiting.closing {
                return None;
            }
            self.wake.wait(&mut waiting);
        }
    }
}

/// One reader thread's all.
pub(super) struct Reader {
    pub(super) conn: Connection,
    pub(super) queue: Arc<ReadQueue>,
    pub(super) book: Arc<Book>,
    pub(super) floors: Arc<Floors>,
    pub(super) status: Arc<Status>,
    pub(super) identity: Arc<Mutex<Identity>>,
}

/// Where is read from.
pub(super) struct Source<'a> {
    pub(super) conn: &'a Connection,
    pub(super) meters: &'a Meters,
    /// What the tokens of its rows are seeded with, where that is known.
    pub(super) seed: Option<TokenSeed>,
}

impl Reader {
    pub(super) fn run(self) {
        let mut reads = Vec::with_capacity(DRAIN_MAX);
        while let Some(rare) = self.queue.take(&mut reads) {
            if !reads.is_empty() {
                self.drain(&mut reads);
            }
            if let Some(rare) = rare {
                rare(&self.conn, &self.status.meters);
            }
            self.status.stop_if_damaged(&self.status.meters);
        }
    }

    fn drain(&self, reads: &mut Vec<Read>) {
        let now = self.status.hlc();
        // Looked up after the requests were taken: a hint acknowledged before is booked by now.
        let targets = self.book.hint_targets();
        let seed = self.identity.lock().cluster.map(TokenSeed::of);
        let from = Source { conn: &self.conn, meters: &self.status.meters, seed };
        // The snapshot itself opens with the first statement in it. Without a transaction each read has its own.
        let open = self.conn.prepare_cached("BEGIN").and_then(|mut begin| begin.execute([])).is_ok();
        for Read { slot, key, part, hints, reply_to } in reads.drain(..) {
            let targets = if hints { &targets[..] } else { &[] };
            let reply = answer(&from, &self.floors, now, (slot, &key), part, targets);
            reply_to.send(Ok(reply));
        }
        if open && self.conn.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([])).is_err() {
            // A transaction that met a damaged page cannot be committed; left open, its snapshot would serve the past.
            let _ = self.conn.execute_batch("ROLLBACK");
        }
    }
}

/// What a replica answers to a read, with the hints it keeps for these targets merged in.
pub(super) fn answer(
    from: &Source<'_>,
    floors: &Floors,
    now: Hlc,
    (slot, key): (Slot, &Key),
    part: ReadPart,
    targets: &[NodeNum],
) -> ReplicaReply {
    let record = match newest(from, slot, key, targets) {
        Ok(record) => record,
        Err(damage) => {
            from.meters.damaged(slot, key, &damage);
            return ReplicaReply::Refused(Refusal::Damaged);
        }
    };
    // Looked up after the row was: where a tombstone is gone the floor that let it go is there.
    let floor = floors.get(slot).floor;
    match part {
        ReadPart::Record => ReplicaReply::Record { record, floor },
        ReadPart::Version => ReplicaReply::Version { seen: record.map(|r| Seen::of(&r, now)), floor },
    }
}

/// What is wrong with a row, as text.
fn newest(
    &Source { conn, meters, seed }: &Source<'_>,
    slot: Slot,
    key: &Key,
    targets: &[NodeNum],
) -> Result<Option<Record>, String> {
    let text = |e: rusqlite::Error| {
        meters.met(&e);
        e.to_string()
    };
    let mut select = conn.prepare_cached(row::SELECT_RECORD).map_err(text)?;
    let found = row::load(&mut select, slot, key).map_err(text)?;
    let mut newest = match found {
        None => match seed.map(|seed| walk::is_absent(conn, seed, slot, key)).transpose().map_err(text)? {
            Some(false) => return Err("the row beside its place, which may be its own".into()),
            _ => None,
        },
        Some(Loaded { stored: Some(stored), .. }) => Some(stored.record),
        Some(Loaded { stored: None, .. }) => return Err("checksum".into()),
    };
    for target in targets {
        let mut select = conn.prepare_cached(row::SELECT_HINT).map_err(text)?;
        let Some(hint) = row::load_hint(&mut select, *target, slot, key).map_err(text)? else { continue };
        let record = hint.row.stored.ok_or("checksum of a hint")?.record;
        if newest.as_ref().is_none_or(|n| record.beats(n)) {
            newest = Some(record);
        }
    }
    Ok(newest)
}

/// A page of hints and the damaged ones met on the way, which nobody can deliver.
pub(super) type HintPage = (Vec<Hint>, SmallVec<[(Slot, Key); 1]>);

pub(super) fn scan_hints(
    conn: &Connection,
    meters: &Meters,
    target: NodeNum,
    after: Option<&(Slot, Key)>,
    limit: usize,
) -> Result<HintPage, StoreError> {
    let damaged = |error| damaged(meters, error);
    let mut page = Page::new(limit);
    let mut lost = SmallVec::new();
    let mut select: CachedStatement<'_> = conn.prepare_cached(row::SCAN_HINTS).map_err(damaged)?;
    let (slot, key) = after.map_or((-1, &[][..]), |(slot, key)| (i64::from(slot.0), key.as_bytes()));
    let mut rows = select.query(rusqlite::params![target.0, slot, key]).map_err(damaged)?;
    while !page.full() {
        let Some(row) = rows.next().map_err(damaged)? else { break };
        let slot = row.get(AFTER_RECORD + 2).map(Slot).ok();
        let (Some(slot), Some(key)) = (slot, key_of(row, AFTER_RECORD + 3)) else {
            meters.damaged(slot.unwrap_or(Slot(0)), &"unreadable", &"key of a hint");
            continue;
        };
        let LoadedHint { row, counted, kept_at_ms } = LoadedHint::of(row, &key).map_err(damaged)?;
        match row.stored {
            Some(stored) => {
                let hint = Hint { target, slot, key, record: stored.record, counted, kept_at_ms };
                page.add(hint, row.weight.bytes);
            }
            None => {
                meters.damaged(slot, &key, &"checksum of a hint");
                lost.push((slot, key));
            }
        }
    }
    Ok((page.items, lost))
}

pub(super) fn key_of(row: &rusqlite::Row<'_>, column: usize) -> Option<Key> {
    let bytes = row.get_ref(column).ok()?.as_blob().ok()?;
    Key::new(bytes.to_vec()).ok()
}

/// A read fails nothing by itself: what cannot be read is missing and suspect. A damaged page is remembered.
pub(super) fn damaged(meters: &Meters, error: rusqlite::Error) -> StoreError {
    meters.met(&error);
    StoreError::Damaged(error.to_string())
}

/// What fits into an answer.
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    bytes: usize,
    limit: usize,
}

impl<T> Page<T> {
    pub(super) fn new(limit: usize) -> Self {
        Self { items: Vec::new(), bytes: 0, limit }
    }

    pub(super) fn full(&self) -> bool {
        self.items.len() >= self.limit || self.bytes >= PAGE_BYTES_MAX
    }

    pub(super) fn add(&mut self, item: T, bytes: u64) {
        self.items.push(item);
        self.bytes += bytes as usize;
    }
}
