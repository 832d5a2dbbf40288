//! The store's books: what it holds, kept in memory beside the database and moved with each commit.
//!
//! Invariants:
//! - What a commit changed is booked before anybody is told of that commit.
//! - The records of a slot are counted from a snapshot that is opened between two commits (behind the gate), so that
//!   what was booked before belongs to the snapshot and what is booked after does not: the sum is exact.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use crate::ports::{HintTotals, StoreTotals};
use crate::types::{Key, NodeNum, Record, Slot};

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

    fn add(&mut self, weight: Weight, sign: i64) {
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
    pub(super) rows: SmallVec<[(Slot, Count); 16]>,
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

struct Rows {
    slots: Box<[Count]>,
    all: Count,
    slots_counted: usize,
}

/// Shared by all the store's threads and by who asks for totals.
pub(super) struct Book {
    gate: Mutex<()>,
    rows: Mutex<Rows>,
    hints: Mutex<HintBook>,
    hints_kept: AtomicU64,
    file_bytes: AtomicU64,
    wal_bytes: AtomicU64,
}

impl Book {
    pub(super) fn new(hints: HintBook) -> Self {
        let rows = Rows { slots: vec![Count::default(); Slot::COUNT].into(), all: Count::default(), slots_counted: 0 };
        Self {
            gate: Mutex::new(()),
            rows: Mutex::new(rows),
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
            for (slot, change) in entries.rows {
                rows.slots[slot.index()].merge(change, 1);
                rows.all.merge(change, 1);
            }
        }
        if let Some(hints) = entries.hints {
            self.hints_kept.store(hints.count(), Ordering::Release);
            *self.hints.lock() = hints;
        }
    }

    /// What was booked for a slot so far; the caller holds the gate, and opens its snapshot under it.
    pub(super) fn booked(&self, slot: Slot) -> Count {
        self.rows.lock().slots[slot.index()]
    }

    /// Adds what a snapshot held, less what had been booked when it was opened.
    pub(super) fn counted(&self, slot: Slot, found: Count, booked: Count) {
        let mut rows = self.rows.lock();
        for (count, sign) in [(found, 1), (booked, -1)] {
            rows.slots[slot.index()].merge(count, sign);
            rows.all.merge(count, sign);
        }
        rows.slots_counted += 1;
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
            counted: rows.slots_counted >= Slot::COUNT,
            file_bytes: self.file_bytes.load(Ordering::Relaxed),
            wal_bytes: self.wal_bytes.load(Ordering::Relaxed),
            writable,
        }
    }
}
