//! The hash tree of what the store holds, in memory: 65,536 leaves, and their sums by slot.
//!
//! It knows rows only as they were booked or walked (see `book` and `count`). A bit that flips on disk changes no sum: only
//! reading the row finds that.

use super::book::{Count, Weight};
use super::row::Loaded;
use crate::types::{Leaf, Record, Slot, Sum, Token};

/// Bytes of an encoded leaf.
const LEAF_BYTES: usize = 24;

/// What a row in place of another one moves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved {
    pub(super) leaf: Leaf,
    pub(super) count: Count,
    pub(super) sum: Sum,
    /// The old row was damaged: what it had added is unknown, and the slot must be summed anew.
    pub(super) doubtful: bool,
}

impl Moved {
    /// `count` is what the row changes in the totals.
    pub(super) fn new(token: Token, old: Option<&Loaded>, new: &Record, count: Count) -> Self {
        let of = |record: &Record| Sum::of(token, &record.version, record.checksum);
        let mut sum = of(new);
        let stored = old.and_then(|loaded| loaded.stored.as_ref());
        if let Some(stored) = stored {
            sum.remove(of(&stored.record));
        }
        Self { leaf: Leaf::of(token), count, sum, doubtful: old.is_some() && stored.is_none() }
    }
}

impl Moved {
    /// A row that was taken away.
    pub(super) fn gone(token: Token, old: &Record, weight: Weight) -> Self {
        let mut sum = Sum::default();
        sum.remove(Sum::of(token, &old.version, old.checksum));
        let mut count = Count::default();
        count.add(weight, -1);
        Self { leaf: Leaf::of(token), count, sum, doubtful: false }
    }
}

/// Sums of leaves and slots, exact or not: the book knows which.
pub(super) struct Tree {
    // Apart, as together they would be padded by a third; zeroed, and so not in memory before they are used.
    hashes: Box<[u128]>,
    records: Box<[u64]>,
    slots: Box<[Sum]>,
}

impl Tree {
    pub(super) fn new() -> Self {
        Self {
            hashes: vec![0; Leaf::COUNT].into(),
            records: vec![0; Leaf::COUNT].into(),
            slots: vec![Sum::default(); Slot::COUNT].into(),
        }
    }

    pub(super) fn add(&mut self, leaf: Leaf, sum: Sum) {
        let at = leaf.index();
        self.hashes[at] = self.hashes[at].wrapping_add(sum.hash);
        self.records[at] = self.records[at].wrapping_add(sum.records);
        self.slots[leaf.slot().index()].add(sum);
    }

    pub(super) fn slot(&self, slot: Slot) -> Sum {
        self.slots[slot.index()]
    }

    /// In order.
    pub(super) fn leaves(&self, slot: Slot) -> Vec<Sum> {
        leaves_of(slot).map(|leaf| self.leaf(leaf)).collect()
    }

    fn leaf(&self, leaf: Leaf) -> Sum {
        Sum { hash: self.hashes[leaf.index()], records: self.records[leaf.index()] }
    }

    /// Takes what was `found` in place of what stood there `before`, and keeps what came since.
    pub(super) fn replace(&mut self, slot: Slot, found: &[Sum], before: &[Sum]) {
        for (leaf, (found, before)) in leaves_of(slot).zip(found.iter().zip(before)) {
            let mut change = *found;
            change.remove(*before);
            self.add(leaf, change);
        }
    }
}

fn leaves_of(slot: Slot) -> impl Iterator<Item = Leaf> {
    let first = slot.index() * Leaf::IN_SLOT;
    (first..first + Leaf::IN_SLOT).map(|leaf| Leaf(leaf as u16))
}

/// The leaves of a slot as bytes: of each the hash (16, little-endian) and the count of records (8).
pub(super) fn encode(leaves: &[Sum]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(leaves.len() * LEAF_BYTES);
    for leaf in leaves {
        bytes.extend_from_slice(&leaf.hash.to_le_bytes());
        bytes.extend_from_slice(&leaf.records.to_le_bytes());
    }
    bytes
}

/// `None` for what [`encode`] makes of no slot.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<Sum>> {
    let (leaves, rest) = bytes.as_chunks::<LEAF_BYTES>();
    if leaves.len() != Leaf::IN_SLOT || !rest.is_empty() {
        return None;
    }
    let leaf = |bytes: &[u8; LEAF_BYTES]| {
        let (hash, records) = bytes.split_first_chunk::<16>()?;
        Some(Sum { hash: u128::from_le_bytes(*hash), records: u64::from_le_bytes(records.try_into().ok()?) })
    };
    leaves.iter().map(leaf).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_the_sum_of_its_leaves_and_survives_its_bytes() {
        let mut tree = Tree::new();
        let sum = |n: u64| Sum { hash: u128::from(n) << 70 | u128::from(n), records: n };
        for n in 1..600u64 {
            tree.add(Leaf((n * 109) as u16), sum(n));
        }
        for slot in Slot::all() {
            let leaves = tree.leaves(slot);
            assert_eq!(leaves.iter().copied().sum::<Sum>(), tree.slot(slot));
            let bytes = encode(&leaves);
            assert_eq!(decode(&bytes), Some(leaves));
            assert_eq!(decode(&bytes[1..]), None);
        }
    }

    #[test]
    fn what_was_found_takes_the_place_of_what_was_booked_before() {
        let (mut tree, slot) = (Tree::new(), Slot(3));
        let sum = |n: u128| Sum { hash: n, records: 1 };
        tree.add(Leaf(0x0305), sum(1));
        let before = tree.leaves(slot);
        tree.add(Leaf(0x0305), sum(20));
        let mut found = vec![Sum::default(); Leaf::IN_SLOT];
        found[5] = sum(300);
        tree.replace(slot, &found, &before);
        assert_eq!(tree.leaves(slot)[5], Sum { hash: 320, records: 2 });
        assert_eq!(tree.slot(slot), Sum { hash: 320, records: 2 });
    }
}
