//! The store's books: what it holds, counted and summed, kept in memory beside the database and moved with each commit.
//!
//! Invariants:
//! - What a commit changed is booked before anybody is told of that commit.
//! - The records of a slot are counted and summed from a snapshot that is opened between two commits (behind the gate), so
//!   that what was booked before belongs to the snapshot and what is booked after does not: the result is exact.
//! - Sums are given out only of slots where they are exact. A commit over a damaged row puts its slot in doubt, since what
//!   that row had added is unknown; a walk that was on its way by then does not settle it, and the slot is walked again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use smallvec::SmallVec;

use super::count::Found;
use super::tree::{Moved, Tree};
use crate::ports::{HintTotals, StoreTotals};
use crate::types::{Key, Leaf, NodeNum, Record, Slot, Sum};

/// What one row adds to the totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Weight {
    pub(super) tombstone: bool,
    /// Key, content type and value.
    pub(super) bytes: u64,
}

impl Weight {
    pub(super) fn of(key: &Key, record: &Record) -> Self {
        let bytes = key.as_bytes().len() as u64 + record.content_bytes() as u64;
        Self { tombstone: record.is_tombstone(), bytes }
    }
}

/// What stands in a slot, or what a commit moves there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) keys: i64,
    pub(super) tombstones: i64,
    pub(super) bytes: i64,
}

impl Count {
    /// What a row of the new weight in place of the old one changes.
    pub(super) fn change(old: Option<Weight>, new: Weight) -> Self {
        let mut count = Self::default();
        count.add(new, 1);
        if let Some(old) = old {
            count.add(old, -1);
        }
        count
    }

    pub(super) fn add(&mut self, weight: Weight, sign: i64) {
        if weight.tombstone {
            self.tombstones += sign;
        } else {
            self.keys += sign;
        }
        self.bytes += sign * weight.bytes as i64;
    }

    fn merge(&mut self, other: Count, sign: i64) {
        self.keys += sign * other.keys;
        self.tombstones += sign * other.tombstones;
        self.bytes += sign * other.bytes;
    }
}

/// What a transaction will have changed once it is committed.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) rows: SmallVec<[Moved; 16]>,
    /// All hint totals as they will be; `None` where no hint changed.
    pub(super) hints: Option<HintBook>,
}

/// The kept hints by target, and all their bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct HintBook {
    pub(super) targets: BTreeMap<NodeNum, HintTotals>,
}

impl HintBook {
    pub(super) fn bytes(&self) -> u64 {
        self.targets.values().map(|t| t.bytes).sum()
    }

    pub(super) fn count(&self) -> u64 {
        self.targets.values().map(|t| t.count).sum()
    }
}

/// How far a slot is known.
#[derive(Clone, Copy, Debug)]
struct Walk {
    /// To be walked.
    due: bool,
    counted: bool,
    summed: bool,
    /// How often its sums came into doubt.
    doubts: u64,
    /// The last walk did not get to its end.
    failed: bool,
}

impl Walk {
    const DUE: Walk = Walk { due: true, counted: false, summed: false, doubts: 0, failed: false };

    fn doubt(&mut self) {
        *self = Walk { due: true, summed: false, doubts: self.doubts + 1, ..*self };
    }
}

struct Rows {
    slots: Box<[Count]>,
    all: Count,
    tree: Tree,
    walks: Box<[Walk]>,
    closing: bool,
}

impl Rows {
    fn merge(&mut self, slot: Slot, change: Count, sign: i64) {
        self.slots[slot.index()].merge(change, sign);
        self.all.merge(change, sign);
    }

    fn take_due(&mut self) -> Option<Slot> {
        let slot = Slot::all().find(|slot| self.walks[slot.index()].due)?;
        let walk = &mut self.walks[slot.index()];
        (walk.due, walk.failed) = (false, false);
        Some(slot)
    }

    fn any_failed(&self) -> bool {
        self.walks.iter().any(|walk| walk.failed)
    }
}

/// What was booked of a slot when a snapshot of it was opened.
pub(super) struct Booked {
    count: Count,
    leaves: Vec<Sum>,
    doubts: u64,
}

/// Shared by all the store's threads and by who asks for totals.
pub(super) struct Book {
    gate: Mutex<()>,
    rows: Mutex<Rows>,
    /// A slot is due, or nobody needs to walk any more.
    due: Condvar,
    hints: Mutex<HintBook>,
    hints_kept: AtomicU64,
    file_bytes: AtomicU64,
    wal_bytes: AtomicU64,
}

impl Book {
    pub(super) fn new(hints: HintBook) -> Self {
        let rows = Rows {
            slots: vec![Count::default(); Slot::COUNT].into(),
            all: Count::default(),
            tree: Tree::new(),
            walks: vec![Walk::DUE; Slot::COUNT].into(),
            closing: false,
        };
        Self {
            gate: Mutex::new(()),
            rows: Mutex::new(rows),
            due: Condvar::new(),
            hints_kept: AtomicU64::new(hints.count()),
            hints: Mutex::new(hints),
            file_bytes: AtomicU64::new(0),
            wal_bytes: AtomicU64::new(0),
        }
    }

    /// Held by the writer through each transaction until it is booked. Whoever else holds it stands between commits.
    pub(super) fn gate(&self) -> MutexGuard<'_, ()> {
        self.gate.lock()
    }

    /// Books a commit; the caller holds the gate.
    pub(super) fn enter(&self, entries: Entries) {
        if !entries.rows.is_empty() {
            let mut rows = self.rows.lock();
            for Moved { leaf, count, sum, doubtful } in entries.rows {
                rows.merge(leaf.slot(), count, 1);
                rows.tree.add(leaf, sum);
                if doubtful {
                    rows.walks[leaf.slot().index()].doubt();
                    self.due.notify_one();
                }
            }
        }
        if let Some(hints) = entries.hints {
            self.hints_kept.store(hints.count(), Ordering::Release);
            *self.hints.lock() = hints;
        }
    }

    /// What was booked for a slot so far; the caller holds the gate, and opens its snapshot under it.
    pub(super) fn booked(&self, slot: Slot) -> Booked {
        let rows = self.rows.lock();
        let doubts = rows.walks[slot.index()].doubts;
        Booked { count: rows.slots[slot.index()], leaves: rows.tree.leaves(slot), doubts }
    }

    /// Adds what a snapshot held, less what had been booked when it was opened.
    pub(super) fn walked(&self, slot: Slot, found: &Found, booked: &Booked) {
        let mut rows = self.rows.lock();
        rows.merge(slot, found.count, 1);
        rows.merge(slot, booked.count, -1);
        if let Some(leaves) = &found.leaves {
            rows.tree.replace(slot, leaves, &booked.leaves);
        }
        let walk = &mut rows.walks[slot.index()];
        walk.counted = true;
        walk.summed = found.leaves.is_some() && walk.doubts == booked.doubts;
    }

    /// The sums of that slot are not those of its rows: has it walked again.
    pub(super) fn doubt(&self, slot: Slot) {
        self.rows.lock().walks[slot.index()].doubt();
        self.due.notify_one();
    }

    /// That walk did not get to its end; it is tried again in a while.
    pub(super) fn walk_failed(&self, slot: Slot) {
        self.rows.lock().walks[slot.index()].failed = true;
    }

    /// A slot to be walked.
    pub(super) fn take_due(&self) -> Option<Slot> {
        self.rows.lock().take_due()
    }

    /// Waits for a slot to be walked; `None` once [`Book::stop_walks`] was called. One whose walk failed is due `again` later,
    /// or when it is doubted.
    pub(super) fn wait_due(&self, again: Duration) -> Option<Slot> {
        let mut rows = self.rows.lock();
        loop {
            if rows.closing {
                return None;
            }
            if let Some(slot) = rows.take_due() {
                return Some(slot);
            }
            if !rows.any_failed() {
                self.due.wait(&mut rows);
            } else if self.due.wait_for(&mut rows, again).timed_out() {
                rows.walks.iter_mut().filter(|walk| walk.failed).for_each(|walk| walk.due = true);
            }
        }
    }

    pub(super) fn stop_walks(&self) {
        self.rows.lock().closing = true;
        self.due.notify_all();
    }

    /// The sum of each slot, in order, where it is exact.
    pub(super) fn slot_sums(&self) -> Vec<Option<Sum>> {
        let rows = self.rows.lock();
        Slot::all().map(|slot| rows.walks[slot.index()].summed.then(|| rows.tree.slot(slot))).collect()
    }

    /// The sums of a slot's leaves, in order, where they are exact.
    pub(super) fn leaf_sums(&self, slot: Slot) -> Option<Vec<Sum>> {
        self.slot(slot).map(|(_, leaves)| leaves)
    }

    /// What stands in a slot and in its leaves, where that is exact.
    pub(super) fn slot(&self, slot: Slot) -> Option<(Count, Vec<Sum>)> {
        let rows = self.rows.lock();
        rows.walks[slot.index()].summed.then(|| (rows.slots[slot.index()], rows.tree.leaves(slot)))
    }

    /// Takes what a slot held as known, in place of a walk; nothing was booked before.
    pub(super) fn restore(&self, slot: Slot, count: Count, leaves: &[Sum]) {
        let mut rows = self.rows.lock();
        rows.merge(slot, count, 1);
        rows.tree.replace(slot, leaves, &[Sum::default(); Leaf::IN_SLOT]);
        rows.walks[slot.index()] = Walk { due: false, counted: true, summed: true, ..Walk::DUE };
    }

    /// Tombstones in a slot; `None` while it is counted.
    pub(super) fn tombstones(&self, slot: Slot) -> Option<u64> {
        let rows = self.rows.lock();
        rows.walks[slot.index()].counted.then(|| rows.slots[slot.index()].tombstones.max(0) as u64)
    }

    pub(super) fn hints(&self) -> HintBook {
        self.hints.lock().clone()
    }

    /// Targets with hints; empty, without a lock, where none are kept.
    pub(super) fn hint_targets(&self) -> SmallVec<[NodeNum; 4]> {
        if self.hints_kept.load(Ordering::Acquire) == 0 {
            return SmallVec::new();
        }
        self.hints.lock().targets.iter().filter(|(_, totals)| totals.count > 0).map(|(target, _)| *target).collect()
    }

    pub(super) fn measured(&self, file_bytes: u64, wal_bytes: u64) {
        self.file_bytes.store(file_bytes, Ordering::Relaxed);
        self.wal_bytes.store(wal_bytes, Ordering::Relaxed);
    }

    pub(super) fn totals(&self, writable: bool) -> StoreTotals {
        let rows = self.rows.lock();
        // A part that was booked but not counted yet may be below zero for a while.
        let shown = |n: i64| n.max(0) as u64;
        StoreTotals {
            keys: shown(rows.all.keys),
            tombstones: shown(rows.all.tombstones),
            bytes: shown(rows.all.bytes),
            counted: rows.walks.iter().all(|walk| walk.counted),
            file_bytes: self.file_bytes.load(Ordering::Relaxed),
            wal_bytes: self.wal_bytes.load(Ordering::Relaxed),
            writable,
        }
    }
}
