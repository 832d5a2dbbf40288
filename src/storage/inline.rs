//! The engine for whoever has no threads: its own connection answers what the readers and the counter answer in
//! production, by the same code.

use super::count;
use super::ends;
use super::engine::Engine;
use super::holdings::{self, Gathered, Wanted};
use super::read::{self, Source};
use super::{scan, transfer};
use crate::ports::{Hint, HintTotals, Holdings, ReadPart, RecordPage, ReplicaReply, SlotPage, StoreError};
use crate::types::{Hlc, Key, Leaf, NodeNum, Scan, ScanPage, Slot, Sum, TokenSeed};

impl Engine {
    /// The answer to a read.
    pub fn read(&self, now: Hlc, slot: Slot, key: &Key, part: ReadPart, hints: bool) -> ReplicaReply {
        let targets = if hints { self.book.hint_targets() } else { Default::default() };
        let from = Source { conn: &self.conn, meters: &self.meters, seed: None };
        read::answer(&from, &self.floors, now, (slot, key), part, &targets)
    }

    /// Hints for one node in (slot, key) order after `after`.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] where they cannot be read.
    pub fn hints(&self, target: NodeNum, after: Option<&(Slot, Key)>, limit: usize) -> Result<Vec<Hint>, StoreError> {
        read::scan_hints(&self.conn, &self.meters, target, after, limit).map(|(hints, _)| hints)
    }

    /// Whether the time of some value is up: `Change::EndDue` would write its tombstone.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] where that cannot be read.
    pub fn any_due(&self, now: Hlc) -> Result<bool, StoreError> {
        ends::any_due(&self.conn, &self.meters, now)
    }

    /// Per target, in order. From memory.
    pub fn hint_totals(&self) -> Vec<(NodeNum, HintTotals)> {
        self.book.hints().targets.into_iter().collect()
    }

    /// Counts and sums the slots that are not known: all of them after it was opened (but for what a clean stop saved),
    /// and those where a damaged row was written over. One that cannot be read stays unknown.
    pub fn sum_due(&self, seed: TokenSeed) {
        count::run_due(&self.conn, &self.book, Some(seed));
    }

    /// The sum of each slot, in order; `None` where it is not known. From memory.
    pub fn slot_sums(&self) -> Vec<Option<Sum>> {
        self.book.slot_sums()
    }

    /// The sums of a slot's leaves, in order. From memory.
    pub fn leaf_sums(&self, slot: Slot) -> Option<Vec<Sum>> {
        self.book.leaf_sums(slot)
    }

    /// What stands in these leaves of one slot, each row verified.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] where the slot cannot be read.
    pub fn holdings(&self, seed: TokenSeed, slot: Slot, leaves: &[Leaf]) -> Result<Holdings, StoreError> {
        let wanted = Wanted::new(seed, slot, leaves);
        let mut gathered = Gathered::default();
        let mut after = Some(Vec::new());
        while let Some(from) = after {
            let piece = holdings::piece(&self.conn, &self.meters, &wanted, &from)?;
            if !piece.held.strays.is_empty() {
                self.book.doubt(slot);
            }
            gathered.add(piece.held);
            after = piece.next;
        }
        after = wanted.is_all().then(Vec::new);
        while let Some(from) = after {
            let piece = holdings::registers(&self.conn, &self.meters, slot, &from)?;
            gathered.add(piece.held);
            after = piece.next;
        }
        Ok(gathered.finish())
    }

    /// A page of all that is held of a slot.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] where anything of it cannot be told.
    pub fn slot_page(&self, seed: TokenSeed, slot: Slot, after: Option<&Key>) -> Result<SlotPage, StoreError> {
        transfer::page(&self.conn, &self.meters, Some(seed), &self.floors, slot, after)
    }

    /// The records of these keys, until about 1 MiB is full, and how many of the keys were looked up.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] where a page cannot be read.
    pub fn records(&self, keys: &[(Slot, Key)]) -> Result<RecordPage, StoreError> {
        holdings::records(&self.conn, &self.meters, keys)
    }

    /// The keys of some slots, in order.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] where nothing can be told.
    pub fn scan(&self, seed: TokenSeed, scan: &Scan) -> Result<ScanPage, StoreError> {
        scan::page(&self.conn, &self.meters, Some(seed), &self.book.hint_targets(), scan)
    }
}
