//! The engine: applies a batch of changes to the database in one transaction. Synchronous; production runs it in the
//! writer thread, tests inline.
//!
//! Invariants:
//! - A batch is applied whole or not at all, and its outcomes may be told only after [`Engine::apply`] returned `Ok`:
//!   then it is on disk, as far as `durability` asks.
//! - What one change does is whole too: where one meets a damaged page the batch is rolled back (SQLite commits nothing
//!   more in such a transaction) and applied again without that change.
//! - After [`BatchError::Failed`] nothing is known of that batch, and the engine must not be used again: an operating
//!   system forgets what it could not write, so a second sync that succeeds proves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use rusqlite::{CachedStatement, Connection, ErrorCode, ffi};

use super::book::{Book, Count, Entries};
use super::connection::{self, Durability, Role};
use super::facts;
use super::floors::Floors;
use super::hints;
use super::meters::Meters;
use super::migrations::MigrationError;
use super::row::{self, Columns, Loaded};
use super::saved;
use super::tree::Moved;
use crate::ports::{ChangeLog, ReadPart, ReplicaReply, ReplicaRequest, Seen, SlotEntry};
use crate::protocol::replica::{self, StoredRow, WriteRule};
use crate::types::{
    Accepted, Ballot, Dropped, Floor, Hlc, Key, KeyChange, NodeNum, Record, Slot, SlotDrop, SlotFloor, Token,
    TokenSeed, Topology, Version, Vote,
};

/// What a batch consists of.
#[derive(Clone, Debug)]
pub enum Change {
    Write {
        token: Token,
        key: Key,
        record: Record,
    },
    Hint {
        target: NodeNum,
        slot: Slot,
        key: Key,
        record: Record,
        counted: bool,
    },
    Prepare {
        slot: Slot,
        key: Key,
        ballot: Ballot,
    },
    Accept {
        slot: Slot,
        key: Key,
        accepted: Box<Accepted>,
    },
    /// Deletes those hints that hold that version, or that are damaged.
    ForgetHints(Vec<(NodeNum, Slot, Key, Version)>),
    /// Drops at most that many uncounted hints kept before that wall time.
    DropHints {
        kept_before_ms: u64,
        limit: u64,
    },
    /// Commits a topology newer than the stored one, and ends the proposal.
    Topology(Arc<Topology>),
    Proposal(Arc<Topology>),
    Vote(Box<Vote>),
    ReserveClock(Hlc),
    ReleaseClock(Hlc),
    /// Writes the tombstones of at most that many values whose time is up then.
    EndDue {
        now: Hlc,
        limit: usize,
    },
    /// Merges what another replica holds of these keys.
    Absorb(Vec<(Token, SlotEntry)>),
    /// Drops those of these keys' records that the floor covers.
    DropCovered {
        floor: Floor,
        keys: Vec<(Token, Key)>,
    },
    /// Removes a part of what is held of a slot.
    DropSlot {
        seed: TokenSeed,
        slot: Slot,
    },
    /// Merges floors and seals into those of these slots.
    Raise(Vec<(Slot, SlotFloor)>),
    /// Drops those of these keys that may be forgotten, as they read; beside each when the list of tombstones has it as
    /// written.
    Purge {
        seed: TokenSeed,
        drop: SlotDrop,
        keys: Vec<(Vec<u8>, Option<Hlc>)>,
    },
    /// Removes those of these rows (slot and key as they read) that are not what was written.
    Discard {
        seed: TokenSeed,
        slot: Slot,
        rows: Vec<(i64, Vec<u8>)>,
    },
}

impl Change {
    /// What it holds of values and content types.
    pub(super) fn content_bytes(&self) -> usize {
        match self {
            Change::Write { record, .. } | Change::Hint { record, .. } => record.content_bytes(),
            Change::Accept { accepted, .. } => accepted.record.as_ref().map_or(0, Record::content_bytes),
            Change::Absorb(entries) => {
                entries.iter().flat_map(|(_, (_, record, _))| record).map(Record::content_bytes).sum()
            }
            _ => 0,
        }
    }

    /// Must be on disk when it is answered, whatever `DURABILITY` says: a promise to other nodes hangs on it. A register
    /// that forgot its promise in a power cut would let two conditional writes win.
    pub(super) fn always_syncs(&self) -> bool {
        match self {
            Change::Prepare { .. } | Change::Accept { .. } => true,
            Change::Topology(_) | Change::Proposal(_) | Change::Vote(_) | Change::ReserveClock(_) => true,
            Change::ReleaseClock(_) | Change::Absorb(_) | Change::Raise(_) | Change::DropSlot { .. } => true,
            Change::Purge { .. } | Change::DropCovered { .. } => false,
            Change::Write { .. } | Change::Hint { .. } | Change::ForgetHints(_) | Change::DropHints { .. } => false,
            Change::EndDue { .. } | Change::Discard { .. } => false,
        }
    }
}

/// What became of one change of a committed batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// To `Write`, `Hint`, `Prepare` and `Accept`.
    Reply(ReplicaReply),
    /// To `DropHints` and `Discard`: how many.
    Dropped(u64),
    /// To `DropSlot`: how many records and registers, and whether there may be more.
    DroppedPart(u64, bool),
    /// To `Purge`.
    Purged(Dropped),
    /// To `EndDue`: which.
    Ended(Vec<(Key, Record)>),
    Done,
    /// The database is damaged where the change belongs. That change did nothing.
    Damaged,
}

/// Why a whole batch was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Rolled back: nothing changed. A later batch may find space.
    #[error("the disk is full")]
    Full,
    /// Rolled back: another program holds the database. Nothing changed.
    #[error("another program holds the database")]
    Busy,
    /// A write or a sync failed. It is not known whether the batch is on disk.
    #[error("{0}")]
    Failed(String),
}

/// The times a batch is judged by.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// The node's hybrid clock shows at least this: expiry goes by it.
    pub hlc: Hlc,
    /// Ages of hints go by it.
    pub wall_ms: u64,
}

/// One connection that writes.
pub struct Engine {
    pub(super) conn: Connection,
    pub(super) book: Arc<Book>,
    pub(super) floors: Arc<Floors>,
    changes: Arc<ChangeLog>,
    node: NodeNum,
    durability: Durability,
    hint_bytes_max: u64,
    pub(super) meters: Meters,
}

impl Engine {
    /// Opens a database file, or a private one in memory for `:memory:`, and brings its schema up to date.
    ///
    /// # Errors
    /// When the file is no database, comes from a newer program, or cannot be written.
    pub fn open(
        path: &Path,
        node: NodeNum,
        durability: Durability,
        hint_bytes_max: u64,
    ) -> Result<Self, super::OpenError> {
        let failed = |e: MigrationError| match e {
            MigrationError::Newer { found } => super::OpenError::NewerSchema { path: path.to_owned(), found },
            MigrationError::Sqlite(e) => super::OpenError::sqlite(path, &e),
        };
        let conn = connection::open(path, Role::Writer(durability)).map_err(failed)?;
        let hints = hints::count(&conn).map_err(|e| super::OpenError::sqlite(path, &e))?;
        let floors = Floors::load(&conn).map_err(|e| super::OpenError::damaged(path, &e))?;
        let book = Arc::new(Book::new(hints));
        saved::restore(&conn, &book, durability).map_err(|e| super::OpenError::sqlite(path, &e))?;
        let changes = Arc::default();
        Ok(Self { conn, book, floors, changes, node, durability, hint_bytes_max, meters: Meters::new() })
    }

    /// What it stores is told to that log.
    pub(super) fn tell(&mut self, changes: &Arc<ChangeLog>) {
        self.changes = Arc::clone(changes);
    }

    pub(super) fn floors(&self) -> Arc<Floors> {
        self.floors.clone()
    }

    /// Applies a batch in order, in one transaction; one outcome for each change.
    ///
    /// # Errors
    /// When none of it was applied, or when that is unknown: see [`BatchError`].
    pub fn apply(&mut self, now: Now, changes: &[Change]) -> Result<Vec<Outcome>, BatchError> {
        let sync = self.durability == Durability::Normal && changes.iter().any(Change::always_syncs);
        if sync {
            connection::set_synchronous(&self.conn, Durability::Full).map_err(|e| BatchError::of(&e))?;
        }
        let mut spoiled = Vec::new();
        let applied = loop {
            match self.attempt(now, changes, &spoiled) {
                Ok(outcomes) => break Ok(outcomes),
                Err(stop) => {
                    self.roll_back()?;
                    match stop {
                        Stop::Spoiled(index) => spoiled.push(index),
                        Stop::Batch(error) => break Err(error),
                    }
                }
            }
        };
        if sync {
            connection::set_synchronous(&self.conn, Durability::Normal).map_err(|e| BatchError::of(&e))?;
        }
        applied
    }

    /// Keeps what is known of the slots for the next opening, which then need not count them. Nothing may be applied
    /// afterwards: what is kept would be wrong, and believed.
    ///
    /// # Errors
    /// When it could not be written; then the next opening counts.
    pub fn save_sums(self) -> Result<(), BatchError> {
        saved::save(&self.conn, &self.book).map_err(|e| BatchError::of(&e))
    }

    fn attempt(&self, now: Now, changes: &[Change], spoiled: &[usize]) -> Result<Vec<Outcome>, Stop> {
        // Whoever counts or checkpoints stands between commits while it holds the gate.
        let _gate = self.book.gate();
        let mut batch = Batch::begin(self, now)?;
        let mut outcomes = Vec::with_capacity(changes.len());
        for (index, change) in changes.iter().enumerate() {
            if spoiled.contains(&index) {
                outcomes.push(Outcome::Damaged);
                continue;
            }
            match batch.perform(change) {
                Ok(outcome) => outcomes.push(outcome),
                Err(e) if is_damage(&e) => {
                    self.note_damage(change, &e);
                    return Err(Stop::Spoiled(index));
                }
                Err(e) => return Err(Stop::Batch(BatchError::of(&e))),
            }
        }
        batch.commit()?;
        Ok(outcomes)
    }

    fn note_damage(&self, change: &Change, error: &rusqlite::Error) {
        self.meters.met(error);
        match change {
            Change::Write { token, key, .. } => self.meters.damaged(token.slot(), key, error),
            Change::Hint { slot, key, .. } | Change::Prepare { slot, key, .. } | Change::Accept { slot, key, .. } => {
                self.meters.damaged(*slot, key, error);
            }
            _ => tracing::error!(%error, "the database is damaged"),
        }
    }

    fn roll_back(&self) -> Result<(), BatchError> {
        // SQLite has rolled back by itself after some errors.
        if self.conn.is_autocommit() {
            return Ok(());
        }
        self.conn.execute_batch("ROLLBACK").map_err(|e| BatchError::Failed(e.to_string()))
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("node", &self.node).field("durability", &self.durability).finish_non_exhaustive()
    }
}

impl BatchError {
    fn of(error: &rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => BatchError::Full,
            // The index of the log could not grow for a full disk; what was written of the batch is not committed.
            _ if error.sqlite_error().is_some_and(|e| e.extended_code == ffi::SQLITE_IOERR_SHMSIZE) => BatchError::Full,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => BatchError::Busy,
            _ => BatchError::Failed(error.to_string()),
        }
    }
}

/// Whether the error says that what lies on disk is not a sound database there.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    match error.sqlite_error_code() {
        // A statement that rewrites a row meets a column of another type than it was declared with.
        _ if error.sqlite_error().is_some_and(|e| e.extended_code == ffi::SQLITE_CONSTRAINT_DATATYPE) => true,
        Some(code) => matches!(code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase),
        // Not SQLite's: a column is not of the type it was written with.
        None => true,
    }
}

enum Stop {
    /// The change at that index met damage.
    Spoiled(usize),
    Batch(BatchError),
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Stop::Batch(BatchError::of(&error))
    }
}

/// An open transaction, with the statements of the hot path at hand.
pub(super) struct Batch<'e> {
    pub(super) engine: &'e Engine,
    pub(super) now: Now,
    pub(super) entries: Entries,
    pub(super) meters: &'e Meters,
    pub(super) select: CachedStatement<'e>,
    put: CachedStatement<'e>,
    pub(super) hints_stored: u64,
    /// Floors that this batch raised.
    pub(super) raised: BTreeMap<Slot, SlotFloor>,
    /// Targets that lost a hint: their oldest may be another one now.
    pub(super) bereft: BTreeSet<NodeNum>,
    pub(super) changes: Vec<KeyChange>,
}

impl<'e> Batch<'e> {
    fn begin(engine: &'e Engine, now: Now) -> Result<Self, rusqlite::Error> {
        let conn = &engine.conn;
        conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(Self {
            engine,
            now,
            entries: Entries::default(),
            meters: &engine.meters,
            select: conn.prepare_cached(row::SELECT_RECORD)?,
            put: conn.prepare_cached(row::PUT_RECORD)?,
            hints_stored: 0,
            raised: BTreeMap::new(),
            bereft: BTreeSet::new(),
            changes: Vec::new(),
        })
    }

    fn perform(&mut self, change: &Change) -> rusqlite::Result<Outcome> {
        let conn = &self.engine.conn;
        match change {
            Change::Write { token, key, record } => self.write(*token, key, record).map(Outcome::Reply),
            Change::Hint { target, slot, key, record, counted } => {
                let room = self.engine.hint_bytes_max;
                self.hint(room, (*target, *slot, key), record, *counted).map(Outcome::Reply)
            }
            Change::Prepare { slot, key, ballot } => self.prepare(*slot, key, *ballot).map(Outcome::Reply),
            Change::Accept { slot, key, accepted } => self.accept(*slot, key, accepted).map(Outcome::Reply),
            Change::ForgetHints(hints) => self.forget_hints(hints).map(|()| Outcome::Done),
            Change::DropHints { kept_before_ms, limit } => {
                self.drop_hints(*kept_before_ms, *limit).map(Outcome::Dropped)
            }
            Change::Topology(topology) => facts::save_topology(conn, topology).map(|()| Outcome::Done),
            Change::Proposal(topology) => facts::save_proposal(conn, topology).map(|()| Outcome::Done),
            Change::Vote(vote) => facts::save_vote(conn, vote).map(|()| Outcome::Done),
            Change::Absorb(entries) => self.absorb(entries),
            Change::DropCovered { floor, keys } => self.drop_covered(floor, keys).map(Outcome::Dropped),
            Change::DropSlot { seed, slot } => self.drop_slot(*seed, *slot),
            Change::Raise(floors) => self.raise(floors).map(|()| Outcome::Done),
            Change::Purge { seed, drop, keys } => self.purge(*seed, drop, keys).map(Outcome::Purged),
            Change::Discard { seed, slot, rows } => self.discard(*seed, *slot, rows).map(Outcome::Dropped),
            Change::ReserveClock(until) => facts::reserve_clock(conn, *until).map(|()| Outcome::Done),
            Change::ReleaseClock(last) => facts::release_clock(conn, *last).map(|()| Outcome::Done),
            Change::EndDue { now, limit } => self.end_due(*now, *limit),
        }
    }

    pub(super) fn write(&mut self, token: Token, key: &Key, record: &Record) -> rusqlite::Result<ReplicaReply> {
        let floor = self.kept(token.slot()).floor;
        self.write_over(token, key, record, &floor)
    }

    /// The same under another floor than the slot's.
    pub(super) fn write_over(
        &mut self,
        token: Token,
        key: &Key,
        record: &Record,
        floor: &Floor,
    ) -> rusqlite::Result<ReplicaReply> {
        let slot = token.slot();
        let found = row::load(&mut self.select, slot, key)?;
        let stored = found.as_ref().and_then(|loaded| loaded.stored.as_ref());
        let rule = match (&found, stored) {
            // Missing and suspect: whatever comes from a peer is better than this row.
            (Some(_), None) => {
                self.meters.damaged(slot, key, &"checksum");
                WriteRule::Store
            }
            _ => replica::write(stored.map(|s| StoredRow::of(&s.record)).as_ref(), floor, record),
        };
        let seen = stored.map(|s| Seen::of(&s.record, self.now.hlc));
        let keep = |seen: Option<Seen>| match seen {
            Some(by) => ReplicaReply::Dominated { by },
            None => ReplicaReply::BelowFloor { floor: *floor },
        };
        match rule {
            WriteRule::BelowFloor | WriteRule::Dominated => return Ok(keep(seen)),
            WriteRule::Conflict { replace } => {
                self.meters.conflict(slot, key, &record.version);
                if !replace {
                    return Ok(keep(seen));
                }
            }
            WriteRule::Store => {}
        }
        self.store(token, key, record, found.as_ref())?;
        Ok(ReplicaReply::Stored { replaced: seen })
    }

    pub(super) fn store(
        &mut self,
        token: Token,
        key: &Key,
        record: &Record,
        old: Option<&Loaded>,
    ) -> rusqlite::Result<()> {
        let stored = old.and_then(|loaded| loaded.stored.as_ref());
        let large = stored.and_then(|stored| stored.large);
        let columns = Columns::place(&self.engine.conn, key, record, large)?;
        columns.put_record(&mut self.put, token.slot(), key)?;
        self.move_end(token, key, stored.map(|stored| &stored.record), record)?;
        self.move_tombstone(token, key, stored.map(|stored| &stored.record), record)?;
        let count = Count::change(old.map(|loaded| loaded.weight), columns.weight(key));
        self.entries.rows.push(Moved::new(token, old, record, count));
        self.changes.push(KeyChange::of(key, record));
        Ok(())
    }

    /// On disk and booked when it returns.
    fn commit(mut self) -> Result<(), rusqlite::Error> {
        self.settle_oldest()?;
        self.engine.conn.prepare_cached("COMMIT")?.execute([])?;
        self.engine.book.enter(self.entries);
        self.engine.floors.set(self.raised.into_iter());
        self.engine.changes.add(self.changes);
        self.meters.hints_stored.increment(self.hints_stored);
        Ok(())
    }
}

/// The change a request of the hot path asks for; gives a read back.
pub(super) fn change_of(token: Token, request: ReplicaRequest) -> Result<Change, (Key, ReadPart, bool)> {
    let slot = token.slot();
    match request {
        ReplicaRequest::Write { key, record } => Ok(Change::Write { token, key, record }),
        ReplicaRequest::Hint { target, key, record, counted } => {
            Ok(Change::Hint { target, slot, key, record, counted })
        }
        ReplicaRequest::Prepare { key, ballot } => Ok(Change::Prepare { slot, key, ballot }),
        ReplicaRequest::Accept { key, accepted } => Ok(Change::Accept { slot, key, accepted }),
        ReplicaRequest::Read { key, part, hints } => Err((key, part, hints)),
    }
}
