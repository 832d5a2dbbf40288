//! The keys of many slots in one order: a merge over the slots' ranges, and over those of the hints kept for them.
//!
//! Each range is read in chunks, small at first, and read on where its chunk is used up; a place that is far ahead is sought
//! and not read up to. All of it is one snapshot, and bounded: see `protocol::listing`, which says when to stop.
//!
//! Damage: a row that fails its checksum is told as damaged. Where a row does not belong to its slot, or the row before the
//! place where a range is entered is not the one that was written there, a key may be missing, and the slot is named. Rows out of
//! order fail the whole, as they do every walk.
//!
//! Caveat: a large value is read only where values are asked for. Else such a row is told by its columns; that its key
//! belongs to its slot is all that is verified of it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use bytes::Bytes;
use rusqlite::{Connection, params};

use super::meters::Meters;
use super::read::{damaged, key_of};
use super::row::{self, AFTER_RECORD, Loaded, Sketch, load};
use super::walk::{self, Place, Walk};
use crate::ports::StoreError;
use crate::protocol::listing::{Step, Telling, behind};
use crate::types::{Key, NodeNum, Outline, Scan, ScanPage, Slot, SlotSet, TokenSeed};

/// Rows of the largest chunk.
const CHUNK_MAX: usize = 64;

/// The answer to that scan. Without a seed there are no records.
///
/// # Errors
/// [`StoreError::Damaged`] where nothing can be told.
pub(super) fn page(
    conn: &Connection,
    meters: &Meters,
    seed: Option<TokenSeed>,
    targets: &[NodeNum],
    scan: &Scan,
) -> Result<ScanPage, StoreError> {
    let Some(seed) = seed else { return Ok(ScanPage::default()) };
    let damaged = |error| damaged(meters, error);
    conn.execute_batch("BEGIN").map_err(damaged)?;
    let page = Merge::new(conn, meters, seed, targets, scan).run();
    // Not a commit, which a damaged page would make fail.
    conn.execute_batch("ROLLBACK").map_err(damaged)?;
    page.map_err(damaged)
}

/// What lies under a key in one range; `None`: something damaged.
type Held = Option<Outline>;

/// One range: of a slot's records, or of the hints for one node in it.
struct Range {
    slot: Slot,
    hints_of: Option<NodeNum>,
    read: VecDeque<(Key, Held)>,
    /// Where to read on; `None` at its end.
    next: Option<Bytes>,
    chunk: usize,
}

struct Merge<'a> {
    conn: &'a Connection,
    meters: &'a Meters,
    seed: TokenSeed,
    scan: &'a Scan,
    ranges: Vec<Range>,
    /// The first key of each range that has one, and the range's number.
    heads: BinaryHeap<Reverse<(Key, usize)>>,
    doubtful: SlotSet,
}

impl<'a> Merge<'a> {
    fn new(conn: &'a Connection, meters: &'a Meters, seed: TokenSeed, targets: &[NodeNum], scan: &'a Scan) -> Self {
        let from = scan.from.clone().max(scan.prefix.clone());
        // Common prefixes are in every slot; other keys are spread over them.
        let even = if scan.delimiter.is_empty() { scan.limit as usize / scan.slots.count().max(1) } else { 0 };
        let range =
            |slot, hints_of, chunk| Range { slot, hints_of, read: VecDeque::new(), next: Some(from.clone()), chunk };
        let records = scan.slots.iter().map(|slot| range(slot, None, even.clamp(1, CHUNK_MAX / 2) + 1));
        let hints = targets.iter().flat_map(|target| scan.slots.iter().map(|slot| range(slot, Some(*target), 2)));
        let ranges = records.chain(hints).collect();
        Self { conn, meters, seed, scan, ranges, heads: BinaryHeap::new(), doubtful: SlotSet::NONE }
    }

    fn run(mut self) -> rusqlite::Result<ScanPage> {
        for number in 0..self.ranges.len() {
            self.enter(number)?;
        }
        let mut telling = Telling::new(self.scan);
        while let Some((key, held)) = self.next()? {
            match telling.tell(key, held) {
                Step::On => {}
                Step::Skip(place) => self.seek(&place)?,
                Step::Stop => break,
            }
        }
        Ok(ScanPage { doubtful: self.doubtful, ..telling.finish() })
    }

    /// The next key with the newest of what is held of it.
    fn next(&mut self) -> rusqlite::Result<Option<(Key, Held)>> {
        let Some(Reverse((key, first))) = self.heads.pop() else { return Ok(None) };
        let slot = self.ranges[first].slot;
        let mut newest = self.take(first)?;
        while self.heads.peek().is_some_and(|Reverse((next, _))| *next == key) {
            let Some(Reverse((_, number))) = self.heads.pop() else { break };
            let held = self.take(number)?;
            newest = match (newest, held) {
                (Some(newest), Some(held)) => Some(if held.0.beats(&newest.0) { held } else { newest }),
                _ => None,
            };
        }
        let held = match newest {
            Some((outline, hints_of)) => self.with_value(outline, (slot, &key), hints_of)?,
            None => None,
        };
        Ok(Some((key, held)))
    }

    /// Takes the first of a range, which its head just said, and lets the range come again.
    fn take(&mut self, number: usize) -> rusqlite::Result<Option<(Outline, Option<NodeNum>)>> {
        let range = &mut self.ranges[number];
        let (hints_of, first) = (range.hints_of, range.read.pop_front());
        self.come(number)?;
        Ok(first.and_then(|(_, held)| held).map(|outline| (outline, hints_of)))
    }

    /// Puts the first key of a range among the heads.
    fn come(&mut self, number: usize) -> rusqlite::Result<()> {
        if self.ranges[number].read.is_empty() {
            self.read_on(number)?;
        }
        if let Some((key, _)) = self.ranges[number].read.front() {
            self.heads.push(Reverse((key.clone(), number)));
        }
        Ok(())
    }

    /// Goes on at that place in every range.
    fn seek(&mut self, place: &Bytes) -> rusqlite::Result<()> {
        self.heads.clear();
        for number in 0..self.ranges.len() {
            let range = &mut self.ranges[number];
            while range.read.front().is_some_and(|(key, _)| key.as_bytes() < &place[..]) {
                range.read.pop_front();
            }
            if range.read.is_empty() && range.next.as_ref().is_some_and(|next| next < place) {
                range.next = Some(place.clone());
                self.enter(number)?;
            } else {
                self.come(number)?;
            }
        }
        Ok(())
    }

    /// Begins to read a range at its next place, which nothing led up to.
    fn enter(&mut self, number: usize) -> rusqlite::Result<()> {
        let Range { slot, hints_of, next, .. } = &self.ranges[number];
        if let (None, Some(place)) = (hints_of, next)
            && !walk::is_sound_before(self.conn, self.seed, *slot, place)?
        {
            self.meters.damaged(*slot, &place.escape_ascii(), &"the row before that place");
            self.doubtful.insert(*slot);
        }
        self.come(number)
    }

    fn read_on(&mut self, number: usize) -> rusqlite::Result<()> {
        let range = &mut self.ranges[number];
        let Some(from) = range.next.take() else { return Ok(()) };
        match range.hints_of {
            None => {
                read_records(self.conn, self.meters, self.seed, (range, &from), &self.scan.prefix, &mut self.doubtful)?
            }
            Some(target) => read_hints(self.conn, self.meters, (range, target, &from), &self.scan.prefix)?,
        }
        range.chunk = (range.chunk * 2).min(CHUNK_MAX);
        if let Some((last, _)) = range.read.back().filter(|_| range.next.is_some()) {
            range.next = Some(behind(last));
        }
        Ok(())
    }

    /// Where values are asked for, those that lie elsewhere are read, and verified with the rest.
    fn with_value(
        &self,
        outline: Outline,
        (slot, key): (Slot, &Key),
        hints_of: Option<NodeNum>,
    ) -> rusqlite::Result<Held> {
        if !self.scan.values {
            return Ok(Some(Outline { value: None, ..outline }));
        }
        if outline.tombstone || outline.value.is_some() {
            return Ok(Some(outline));
        }
        let loaded = match hints_of {
            None => load(&mut self.conn.prepare_cached(row::SELECT_RECORD)?, slot, key)?,
            Some(target) => row::load_hint(&mut self.conn.prepare_cached(row::SELECT_HINT)?, target, slot, key)?
                .map(|hint| hint.row),
        };
        let stored = loaded.and_then(|Loaded { stored, .. }| stored);
        if stored.is_none() {
            self.meters.damaged(slot, key, &"checksum");
        }
        Ok(stored.map(|stored| Outline::of(&stored.record, true)))
    }
}

/// A chunk of a slot's records. `next` stays set where there may be more.
fn read_records(
    conn: &Connection,
    meters: &Meters,
    seed: TokenSeed,
    (range, from): (&mut Range, &Bytes),
    prefix: &[u8],
    doubtful: &mut SlotSet,
) -> rusqlite::Result<()> {
    let slot = range.slot;
    let mut walk = Walk::at(seed, slot, from);
    let mut select = conn.prepare_cached(row::SCAN_OUTLINES)?;
    let mut rows = select.query(params![slot.0, &from[..]])?;
    while let Some(row) = rows.next()? {
        match walk.place(row)? {
            Place::Here(_) => {}
            Place::Stray => {
                let (_, name) = walk::spot(row)?;
                meters.damaged(slot, &name.escape_ascii(), &"a key of another slot");
                doubtful.insert(slot);
                continue;
            }
            Place::End => return Ok(()),
        }
        let Some(key) = key_of(row, AFTER_RECORD) else {
            meters.damaged(slot, &"unreadable", &"key");
            doubtful.insert(slot);
            continue;
        };
        if !key.as_bytes().starts_with(prefix) {
            // One whose key was damaged may hide others, or itself.
            if !walk::is_sound(row, seed)? {
                meters.damaged(slot, &key, &"the row behind the prefix");
                doubtful.insert(slot);
            }
            return Ok(());
        }
        let held = held(row, slot, &key, meters, "checksum")?;
        range.read.push_back((key, held));
        if range.read.len() >= range.chunk {
            range.next = Some(from.clone());
            return Ok(());
        }
    }
    Ok(())
}

/// A chunk of the hints for one node.
fn read_hints(
    conn: &Connection,
    meters: &Meters,
    (range, target, from): (&mut Range, NodeNum, &Bytes),
    prefix: &[u8],
) -> rusqlite::Result<()> {
    let mut select = conn.prepare_cached(row::SCAN_HINT_OUTLINES)?;
    let mut rows = select.query(params![target.0, range.slot.0, &from[..], range.chunk as i64])?;
    let mut seen = 0;
    while let Some(row) = rows.next()? {
        seen += 1;
        let Some(key) = key_of(row, AFTER_RECORD) else {
            // Nobody can deliver it, and nobody counts on it: as everywhere where hints are read.
            meters.damaged(range.slot, &"unreadable", &"key of a hint");
            continue;
        };
        if !key.as_bytes().starts_with(prefix) {
            return Ok(());
        }
        let held = held(row, range.slot, &key, meters, "checksum of a hint")?;
        range.read.push_back((key, held));
    }
    range.next = (seen == range.chunk && !range.read.is_empty()).then(|| from.clone());
    Ok(())
}

fn held(row: &rusqlite::Row<'_>, slot: Slot, key: &Key, meters: &Meters, what: &str) -> rusqlite::Result<Held> {
    Ok(match row::sketch(row, key)? {
        Sketch::Whole(record) => Some(Outline::of(&record, true)),
        Sketch::Part(outline) => Some(outline),
        Sketch::Damaged => {
            meters.damaged(slot, key, &what);
            None
        }
    })
}
