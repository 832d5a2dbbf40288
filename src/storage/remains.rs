//! What deleted keys left behind in a slot: the list of its tombstones, and reading that, registers and hints for purging.
//!
//! A slot is read in pieces, each a short snapshot of its own, so that reads of clients get in between. What is written
//! meanwhile is seen or not: the rules of `protocol::purge` hold either way, as they look at what was written long before.
//!
//! Invariants:
//! - The list is moved in the transaction that moves the record, and only where the old or the new one is a tombstone: other
//!   writes do not meet it.
//! - It only says where to look. What is dropped is judged by the record itself, and what the list has in excess (a damaged
//!   record was replaced) goes when purging comes by.
//!
//! Caveat: a tombstone whose row in the list was damaged is kept until the key is written again.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::engine::Batch;
use super::meters::Meters;
use super::read::{ReadQueue, damaged};
use super::register::{self, Head, Unread};
use super::row::{self, Loaded};
use super::store::read_through;
use crate::ports::StoreError;
use crate::protocol::purge::{self, UNSETTLED_MAX};
use crate::types::{
    Floor, Hlc, Key, Record, Register, Sealed, Slot, SlotDrop, SlotFloor, SlotSet, Survey, Token, Version,
};

/// Rows looked at in one piece: one or two milliseconds of a reader's time.
const ROWS_MAX: usize = 2048;
/// The same in bytes of values that have to be read.
const BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Keys dropped in one transaction, so that writes get in between.
pub(super) const DROP_STEP: usize = 256;

const PUT: &str = "REPLACE INTO tombstones VALUES (?1, ?2, ?3)";
const DELETE: &str = "DELETE FROM tombstones WHERE slot = ?1 AND written = ?2 AND key = ?3";
const COUNT: &str = "SELECT count(*) FROM tombstones WHERE slot = ?1";
const OLDEST: &str = "SELECT min(written) FROM tombstones WHERE slot = ?1";
const LISTED: &str = "SELECT written, key FROM tombstones WHERE slot = ?1 AND (written, key) > (?2, ?3) \
     AND written <= ?4 ORDER BY written, key LIMIT ?5";
const REGISTERS: &str = "SELECT g.key, g.promised_hlc, r.slot IS NULL FROM registers g \
     LEFT JOIN records r ON r.slot = g.slot AND r.key = g.key WHERE g.slot = ?1 AND g.key > ?2 ORDER BY g.key LIMIT ?3";
const CHECKSUM: &str = "SELECT checksum FROM records WHERE slot = ?1 AND key = ?2";
const HINTS: &str = "SELECT target, slot, key, ifnull(written, hlc) FROM hints \
     WHERE (target, slot, key) > (?1, ?2, ?3) ORDER BY target, slot, key LIMIT ?4";

impl Batch<'_> {
    /// The record takes the old one's place.
    pub(super) fn move_tombstone(
        &self,
        token: Token,
        key: &Key,
        old: Option<&Record>,
        new: &Record,
    ) -> rusqlite::Result<()> {
        let listed = |record: &Record| record.is_tombstone().then_some(record.written);
        let (old, new) = (old.and_then(listed), listed(new));
        if old == new {
            return Ok(());
        }
        if let Some(written) = old {
            self.unlist(token.slot(), written, key.as_bytes())?;
        }
        if let Some(written) = new {
            let mut put = self.engine.conn.prepare_cached(PUT)?;
            put.execute(params![token.slot().0, written.0 as i64, key.as_bytes()])?;
        }
        Ok(())
    }

    pub(super) fn unlist(&self, slot: Slot, written: Hlc, name: &[u8]) -> rusqlite::Result<()> {
        self.engine.conn.prepare_cached(DELETE)?.execute(params![slot.0, written.0 as i64, name])?;
        Ok(())
    }
}

/// A job of reading, done piece by piece.
pub(super) trait Pieces: Sized {
    /// Does the next piece; `false` after the last one.
    fn piece(&mut self, conn: &Connection, meters: &Meters) -> rusqlite::Result<bool>;

    /// All of it at once, for whoever has no threads.
    fn whole(mut self, conn: &Connection, meters: &Meters) -> Result<Self, StoreError> {
        while self.piece(conn, meters).map_err(|error| damaged(meters, error))? {}
        Ok(self)
    }
}

/// All of it, through the readers.
pub(super) async fn in_pieces<P: Pieces + Send + 'static>(reads: &ReadQueue, mut job: P) -> Result<P, StoreError> {
    loop {
        let piece = read_through(reads, move |conn: &Connection, meters: &Meters| {
            let more = job.piece(conn, meters).map_err(|error| damaged(meters, error))?;
            Ok((job, more))
        });
        let (back, more) = piece.await?;
        if !more {
            return Ok(back);
        }
        job = back;
    }
}

fn name_of(row: &Row<'_>, column: usize) -> rusqlite::Result<Vec<u8>> {
    Ok(row::bytes_of(row.get_ref(column)?).unwrap_or_default().to_vec())
}

fn hlc_of(row: &Row<'_>, column: usize) -> rusqlite::Result<Hlc> {
    row.get::<_, i64>(column).map(|n| Hlc(n as u64))
}

/// One survey.
pub(super) struct Surveying {
    pub(super) found: Survey,
    counted: bool,
    after: Vec<u8>,
}

impl Surveying {
    /// `tombstones`: as counted in memory, where that is known.
    pub(super) fn new(slot: Slot, floor: Floor, tombstones: Option<u64>) -> Self {
        let found = Survey { tombstones: tombstones.unwrap_or_default(), ..Survey::empty(slot, floor) };
        Self { found, counted: tombstones.is_some(), after: Vec::new() }
    }
}

impl Pieces for Surveying {
    fn piece(&mut self, conn: &Connection, _: &Meters) -> rusqlite::Result<bool> {
        let slot = self.found.slot;
        if self.after.is_empty() {
            let oldest: Option<i64> = conn.prepare_cached(OLDEST)?.query_row([slot.0], |row| row.get(0))?;
            self.found.oldest = oldest.map(|n| Hlc(n as u64));
            if !self.counted {
                let count: i64 = conn.prepare_cached(COUNT)?.query_row([slot.0], |row| row.get(0))?;
                self.found.tombstones = count as u64;
            }
        }
        let mut select = conn.prepare_cached(REGISTERS)?;
        let mut rows = select.query(params![slot.0, self.after, ROWS_MAX as i64])?;
        let mut seen = 0;
        while let Some(row) = rows.next()? {
            seen += 1;
            let promised = hlc_of(row, 1)?;
            self.found.promised = self.found.promised.max(promised);
            if row.get(2)? {
                self.found.orphans += 1;
                self.found.oldest_orphan = self.found.oldest_orphan.into_iter().chain([promised]).min();
            }
            if seen == ROWS_MAX {
                self.after = name_of(row, 0)?;
            }
        }
        Ok(seen == ROWS_MAX)
    }
}

/// Looking for the greatest version among the tombstones of a slot that were written up to some time.
pub(super) struct Greatest {
    pub(super) found: Version,
    slot: Slot,
    up_to: Hlc,
    after: (i64, Vec<u8>),
}

impl Greatest {
    pub(super) fn new(slot: Slot, up_to: Hlc) -> Self {
        Self { found: Version::default(), slot, up_to, after: (-1, Vec::new()) }
    }
}

impl Pieces for Greatest {
    fn piece(&mut self, conn: &Connection, _: &Meters) -> rusqlite::Result<bool> {
        let mut select = conn.prepare_cached(row::LISTED_TOMBSTONES)?;
        let up_to = self.up_to.0 as i64;
        let mut rows = select.query(params![self.slot.0, self.after.0, self.after.1, up_to, ROWS_MAX as i64])?;
        let mut seen = 0;
        while let Some(row) = rows.next()? {
            seen += 1;
            let name = name_of(row, row::AFTER_RECORD)?;
            if let Ok(key) = Key::new(name.clone())
                && let Some(stored) = Loaded::of(row, &key)?.stored
                && stored.record.written <= self.up_to
            {
                self.found = self.found.max(stored.record.version);
            }
            if seen == ROWS_MAX {
                self.after = (row.get(row::AFTER_RECORD + 1)?, name);
            }
        }
        Ok(seen == ROWS_MAX)
    }
}

/// Looking for the slots with hints written up to some time.
pub(super) struct Hinted {
    pub(super) found: SlotSet,
    up_to: Hlc,
    after: (i64, i64, Vec<u8>),
}

impl Hinted {
    pub(super) fn new(up_to: Hlc) -> Self {
        Self { found: SlotSet::NONE, up_to, after: (-1, -1, Vec::new()) }
    }
}

impl Pieces for Hinted {
    fn piece(&mut self, conn: &Connection, _: &Meters) -> rusqlite::Result<bool> {
        let mut select = conn.prepare_cached(HINTS)?;
        let (target, slot, name) = &self.after;
        let mut rows = select.query(params![target, slot, name, ROWS_MAX as i64])?;
        let (mut seen, mut last) = (0, None);
        while let Some(row) = rows.next()? {
            seen += 1;
            if hlc_of(row, 3)? <= self.up_to {
                self.found.insert(row.get(1).map(Slot)?);
            }
            if seen == ROWS_MAX {
                last = Some((row.get(0)?, row.get(1)?, name_of(row, 2)?));
            }
        }
        drop(rows);
        let more = last.is_some();
        self.after = last.unwrap_or_default();
        Ok(more)
    }
}

/// Looking for what a seal leaves to be settled in a slot.
pub(super) struct Unsettled {
    pub(super) found: Sealed,
    kept: SlotFloor,
    after: Vec<u8>,
}

impl Unsettled {
    pub(super) fn new(slot: Slot, kept: SlotFloor) -> Self {
        Self { found: Sealed::empty(slot), kept, after: Vec::new() }
    }
}

impl Unsettled {
    /// What is left of a register: the bytes of values that were read for it.
    fn look(&mut self, conn: &Connection, key: Key, head: Head) -> Result<u64, Unread> {
        let slot = self.found.slot;
        let recent = head.accepted.filter(|state| !purge::is_ended(state.ballot, &self.kept));
        let Some(state) = recent.filter(|state| state.checksum.is_some()) else { return Ok(0) };
        // Mostly the record is the one that was accepted: no value needs to be read to say so.
        let mut checksum = conn.prepare_cached(CHECKSUM)?;
        let stored: Option<i64> = checksum.query_row(params![slot.0, key.as_bytes()], |row| row.get(0)).optional()?;
        if stored.map(|sum| sum as u64) == state.checksum {
            return Ok(0);
        }
        let accepted = register::accepted(conn, slot, &key, &state)?;
        let stored = row::load(&mut conn.prepare_cached(row::SELECT_RECORD)?, slot, &key)?;
        let bytes = stored.as_ref().map_or(0, |loaded| loaded.weight.bytes)
            + accepted.record.as_ref().map_or(0, |record| record.content_bytes() as u64);
        // A damaged record is none that was purged.
        let version = stored.map(|loaded| loaded.stored.map_or_else(Version::default, |stored| stored.record.version));
        let register = Register { promised: head.promised, accepted: Some(accepted) };
        if purge::is_unsettled(&register, version.as_ref(), &self.kept) {
            if self.found.unsettled.len() < UNSETTLED_MAX {
                self.found.unsettled.push(key);
            } else {
                self.found.more = true;
            }
        }
        Ok(bytes)
    }
}

impl Pieces for Unsettled {
    fn piece(&mut self, conn: &Connection, meters: &Meters) -> rusqlite::Result<bool> {
        let slot = self.found.slot;
        let (mut seen, mut bytes) = (0, 0);
        let mut select = conn.prepare_cached(register::SCAN_HEADS)?;
        let mut rows = select.query(params![slot.0, std::mem::take(&mut self.after), ROWS_MAX as i64])?;
        while let Some(row) = rows.next()? {
            seen += 1;
            let name = name_of(row, 1)?;
            let looked = match (Head::of(row), Key::new(name.clone())) {
                (Some(head), Ok(key)) => self.look(conn, key, head),
                _ => Err(Unread::Damaged("a register")),
            };
            match looked {
                Ok(read) => bytes += read,
                Err(Unread::Sqlite(error)) => return Err(error),
                Err(Unread::Damaged(what)) => {
                    meters.damaged(slot, &name.escape_ascii(), &what);
                    self.found.damaged = true;
                }
            }
            if self.found.damaged || self.found.more {
                return Ok(false);
            }
            if seen == ROWS_MAX || bytes >= BYTES_MAX {
                self.after = name;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A key that may be dropped, as it reads, and under which time the list has it.
pub(super) type Candidate = (Vec<u8>, Option<Hlc>);

/// Looking for what may be dropped; a piece ends at [`DROP_STEP`] of them.
pub(super) struct Candidates {
    pub(super) found: Vec<Candidate>,
    drop: SlotDrop,
    from: Place,
}

enum Place {
    Listed(i64, Vec<u8>),
    Registers(Vec<u8>),
}

impl Candidates {
    pub(super) fn new(drop: SlotDrop) -> Self {
        Self { found: Vec::new(), drop, from: Place::Listed(-1, Vec::new()) }
    }
}

impl Candidates {
    /// The next piece, and whether there is another one.
    pub(super) async fn next(self, reads: &ReadQueue) -> Result<(Self, Vec<Candidate>, bool), StoreError> {
        let mut looking = self;
        read_through(reads, move |conn: &Connection, meters: &Meters| {
            let more = looking.piece(conn, meters).map_err(|error| damaged(meters, error))?;
            let keys = std::mem::take(&mut looking.found);
            Ok((looking, keys, more))
        })
        .await
    }
}

impl Pieces for Candidates {
    fn piece(&mut self, conn: &Connection, _: &Meters) -> rusqlite::Result<bool> {
        let next = match &self.from {
            Place::Listed(written, name) => listed(conn, &self.drop, (*written, name), &mut self.found)?,
            Place::Registers(after) => orphans(conn, &self.drop, after, &mut self.found)?,
        };
        let more = next.is_some();
        self.from = next.unwrap_or(Place::Registers(Vec::new()));
        Ok(more)
    }
}

/// The tombstones after that place in the list; gives back the next place.
fn listed(
    conn: &Connection,
    drop: &SlotDrop,
    (written, name): (i64, &[u8]),
    found: &mut Vec<Candidate>,
) -> rusqlite::Result<Option<Place>> {
    let mut select = conn.prepare_cached(LISTED)?;
    let mut rows = select.query(params![drop.slot.0, written, name, drop.up_to.0 as i64, DROP_STEP as i64])?;
    let (mut seen, mut next) = (0, Place::Registers(Vec::new()));
    while let Some(row) = rows.next()? {
        seen += 1;
        let (name, written) = (name_of(row, 1)?, hlc_of(row, 0)?);
        if seen == DROP_STEP {
            next = Place::Listed(written.0 as i64, name.clone());
        }
        found.push((name, Some(written)));
    }
    Ok(Some(next))
}

/// The registers without a record after that key; gives back the next place, if there is one.
fn orphans(
    conn: &Connection,
    drop: &SlotDrop,
    after: &[u8],
    found: &mut Vec<Candidate>,
) -> rusqlite::Result<Option<Place>> {
    let mut select = conn.prepare_cached(REGISTERS)?;
    let mut rows = select.query(params![drop.slot.0, after, ROWS_MAX as i64])?;
    let (mut seen, mut chosen) = (0, 0);
    while let Some(row) = rows.next()? {
        seen += 1;
        let name = name_of(row, 0)?;
        if row.get(2)? && hlc_of(row, 1)? <= drop.up_to {
            chosen += 1;
            found.push((name.clone(), None));
        }
        if seen == ROWS_MAX || chosen == DROP_STEP {
            return Ok(Some(Place::Registers(name)));
        }
    }
    Ok(None)
}
