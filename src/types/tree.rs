//! The words of the hash tree, by which replicas compare what they hold without sending it.
//!
//! A *span* is a node of the tree: all tokens that begin with some hexadecimal digits. None of them is everything, one is a
//! chunk, two are a slot, four a leaf; so the tree has sixteen branches everywhere. What stands in a span is summed up by a
//! [`Sum`], and sums of disjoint spans add up, so that any set of slots has its sum for the price of adding.
//!
//! Source: Merkle (1987) for comparing by a tree of hashes; Bellare and Micciancio, "A New Paradigm for Collision-Free
//! Hashing: Incrementality at Reduced Cost" (1997) for sums that move with each change. Caveat: the hash of a record is
//! xxh3-128, fast and not cryptographic: it tells accidents apart, not an adversary who chooses his own records.

use std::fmt;

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::key::{Slot, Token};
use super::record::Record;
use super::version::Version;

/// All tokens that begin with these hexadecimal digits, 0 to [`Span::DIGITS_MAX`] of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    digits: u8,
    bits: u16,
}

impl Span {
    /// Every token.
    pub const ALL: Span = Span { digits: 0, bits: 0 };
    /// Digits of a leaf.
    pub const DIGITS_MAX: u8 = 4;
    /// Parts of a span.
    pub const PARTS: usize = 16;

    /// The span of those digits; `None` where there are too many, or `bits` has more.
    pub fn new(digits: u8, bits: u16) -> Option<Self> {
        (digits <= Self::DIGITS_MAX && u32::from(bits) < 1 << (4 * u32::from(digits))).then_some(Self { digits, bits })
    }

    /// One of the 16 chunks.
    pub fn chunk(number: u8) -> Self {
        Self { digits: 1, bits: u16::from(number & 0xf) }
    }

    pub fn of_slot(slot: Slot) -> Self {
        Self { digits: 2, bits: slot.0.into() }
    }

    pub fn of_leaf(leaf: Leaf) -> Self {
        Self { digits: 4, bits: leaf.0 }
    }

    pub fn digits(self) -> u8 {
        self.digits
    }

    pub fn bits(self) -> u16 {
        self.bits
    }

    /// The sixteen spans it consists of, in order; a leaf has none.
    pub fn parts(self) -> impl Iterator<Item = Span> {
        let count = if self.digits < Self::DIGITS_MAX { Self::PARTS as u16 } else { 0 };
        (0..count).map(move |part| Span { digits: self.digits + 1, bits: self.bits << 4 | part })
    }

    /// The slot it lies in; `None` where it has more than one.
    pub fn slot(self) -> Option<Slot> {
        (self.digits >= 2).then(|| Slot((self.bits >> (4 * (self.digits - 2))) as u8))
    }

    /// The leaves it consists of, in order.
    pub fn leaves(self) -> impl Iterator<Item = Leaf> {
        let below = 4 * u32::from(Self::DIGITS_MAX - self.digits);
        let first = u32::from(self.bits) << below;
        (first..first + (1 << below)).map(|leaf| Leaf(leaf as u16))
    }
}

impl fmt::Display for Span {
    /// The digits, then an asterisk: `3f*`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match usize::from(self.digits) {
            0 => f.write_str("*"),
            digits => write!(f, "{:0digits$x}*", self.bits),
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One of the 256 pieces of a slot: the first two bytes of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Leaf(pub u16);

impl Leaf {
    /// Leaves of a slot.
    pub const IN_SLOT: usize = 256;
    /// All leaves.
    pub const COUNT: usize = Slot::COUNT * Self::IN_SLOT;

    pub fn of(token: Token) -> Self {
        Self((token.0 >> 48) as u16)
    }

    pub fn slot(self) -> Slot {
        Slot((self.0 >> 8) as u8)
    }

    /// Its place among the leaves of its slot.
    pub fn within_slot(self) -> usize {
        usize::from(self.0 as u8)
    }

    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A set of records, summed up: equal sets have equal sums, and different ones almost certainly different ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sum {
    /// The wrapping sum of the records' hashes.
    pub hash: u128,
    /// How many records (tombstones are records).
    pub records: u64,
}

impl Sum {
    /// Of one record.
    pub fn of(token: Token, version: &Version, checksum: u64) -> Self {
        // The checksum covers key, content, expiry and what else the record is.
        let mut bytes = [0u8; 32];
        bytes[..8].copy_from_slice(&token.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&version.hlc.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&version.writer.0.to_le_bytes());
        bytes[20..24].copy_from_slice(&version.rmw.to_le_bytes());
        bytes[24..].copy_from_slice(&checksum.to_le_bytes());
        Self { hash: xxh3_128(&bytes), records: 1 }
    }

    /// The sum of both sets together.
    pub fn add(&mut self, other: Sum) {
        self.hash = self.hash.wrapping_add(other.hash);
        self.records = self.records.wrapping_add(other.records);
    }

    /// Takes a set away again.
    pub fn remove(&mut self, other: Sum) {
        self.hash = self.hash.wrapping_sub(other.hash);
        self.records = self.records.wrapping_sub(other.records);
    }

    /// What is sent in its place.
    pub fn digest(&self) -> Digest {
        let mut bytes = [0u8; 24];
        bytes[..16].copy_from_slice(&self.hash.to_le_bytes());
        bytes[16..].copy_from_slice(&self.records.to_le_bytes());
        Digest(xxh3_64(&bytes))
    }
}

impl std::iter::Sum for Sum {
    fn sum<I: Iterator<Item = Sum>>(sums: I) -> Sum {
        sums.fold(Sum::default(), |mut all, sum| {
            all.add(sum);
            all
        })
    }
}

/// A sum in 64 bits: two that differ are taken for equal once in 2^64 comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest(pub u64);

/// A set of slots.
#[derive(Default, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlotSet([u64; 4]);

impl SlotSet {
    pub const NONE: SlotSet = SlotSet([0; 4]);

    pub fn insert(&mut self, slot: Slot) {
        self.0[slot.index() / 64] |= 1 << (slot.index() % 64);
    }

    pub fn remove(&mut self, slot: Slot) {
        self.0[slot.index() / 64] &= !(1 << (slot.index() % 64));
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub fn contains(&self, slot: Slot) -> bool {
        self.0[slot.index() / 64] & 1 << (slot.index() % 64) != 0
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::NONE
    }

    pub fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        self.0.iter().zip(0..).flat_map(|(word, at)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let least = (left != 0).then(|| Slot(at * 64 + left.trailing_zeros() as u8));
                left &= left.wrapping_sub(1);
                least
            })
        })
    }

    /// 32 bytes, the least slot in the lowest bit of the first.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let mut set = Self::NONE;
        for slot in Slot::all() {
            if bytes[slot.index() / 8] & 1 << (slot.index() % 8) != 0 {
                set.insert(slot);
            }
        }
        set
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        let mut set = Self::NONE;
        slots.into_iter().for_each(|slot| set.insert(slot));
        set
    }
}

/// A set of the leaves of one slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeafSet(SlotSet);

impl LeafSet {
    pub const NONE: LeafSet = LeafSet(SlotSet::NONE);
    pub const ALL: LeafSet = LeafSet(SlotSet([u64::MAX; 4]));

    /// By their places within the slot.
    pub fn of(places: impl IntoIterator<Item = u8>) -> Self {
        Self(places.into_iter().map(Slot).collect())
    }

    /// Whether the leaf of that token is among them; whose slot it is, the caller knows.
    pub fn contains(&self, token: Token) -> bool {
        self.0.contains(Slot(Leaf::of(token).0 as u8))
    }

    /// Those that are in both.
    #[must_use]
    pub fn and(&self, other: &LeafSet) -> LeafSet {
        let mut both = self.0;
        both.0.iter_mut().zip(other.0.0).for_each(|(word, other)| *word &= other);
        Self(both)
    }

    /// Those that are in either.
    #[must_use]
    pub fn or(&self, other: &LeafSet) -> LeafSet {
        let mut either = self.0;
        either.0.iter_mut().zip(other.0.0).for_each(|(word, other)| *word |= other);
        Self(either)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn count(&self) -> usize {
        self.0.count()
    }

    /// As leaves of that slot, in order.
    pub fn of_slot(&self, slot: Slot) -> impl Iterator<Item = Leaf> + '_ {
        self.0.iter().map(move |place| Leaf(u16::from(slot.0) << 8 | u16::from(place.0)))
    }

    /// As [`SlotSet::to_bytes`].
    pub fn to_bytes(self) -> [u8; 32] {
        self.0.to_bytes()
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(SlotSet::from_bytes(bytes))
    }
}

impl fmt::Debug for LeafSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} leaves", self.count(), Leaf::IN_SLOT)
    }
}

impl fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// One record in a list of what a replica holds: enough to see whether two copies are the same, and which is newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    pub token: Token,
    pub version: Version,
    /// The low half of the record's checksum.
    pub checksum: u32,
}

impl Entry {
    /// What it takes in a list on its way.
    pub const BYTES: usize = 28;

    pub fn of(token: Token, record: &Record) -> Self {
        Self { token, version: record.version, checksum: record.checksum as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Hlc, Writer};
    use proptest::prelude::*;

    #[test]
    fn a_span_is_made_of_its_parts() {
        assert_eq!(Span::ALL.parts().collect::<Vec<_>>(), (0..16).map(Span::chunk).collect::<Vec<_>>());
        let slot = Span::of_slot(Slot(0x3f));
        assert_eq!(slot.to_string(), "3f*");
        let leaves: Vec<Leaf> = slot.parts().flat_map(Span::leaves).collect();
        assert_eq!(leaves, slot.leaves().collect::<Vec<_>>());
        assert_eq!((leaves[0], leaves[255]), (Leaf(0x3f00), Leaf(0x3fff)));
        assert!(leaves.iter().all(|leaf| leaf.slot() == Slot(0x3f) && Span::of_leaf(*leaf).slot() == Some(Slot(0x3f))));
        assert_eq!(Span::of_leaf(leaves[0]).parts().count(), 0);
        assert_eq!((Span::ALL.slot(), Span::chunk(3).slot()), (None, None));
        assert_eq!((Span::new(5, 0), Span::new(1, 16)), (None, None));
    }

    #[test]
    fn a_set_of_slots_tells_them_in_order() {
        assert_eq!(SlotSet::NONE.iter().count(), 0);
        assert_eq!(Slot::all().collect::<SlotSet>().iter().collect::<Vec<_>>(), Slot::all().collect::<Vec<_>>());
        let some = [0, 1, 63, 64, 127, 200, 255].map(Slot);
        let set: SlotSet = some.into_iter().rev().collect();
        assert_eq!((set.iter().collect::<Vec<_>>(), set.count()), (some.to_vec(), some.len()));
    }

    #[test]
    fn a_leaf_begins_like_its_tokens() {
        let leaf = Leaf::of(Token(0x1234_5678_9abc_def0));
        assert_eq!((leaf, leaf.slot(), leaf.within_slot()), (Leaf(0x1234), Slot(0x12), 0x34));
    }

    #[test]
    fn a_set_of_leaves_knows_them_by_their_place_in_the_slot() {
        let set = LeafSet::of([0x34, 0xff]);
        assert_eq!(set.of_slot(Slot(0x12)).collect::<Vec<_>>(), [Leaf(0x1234), Leaf(0x12ff)]);
        let token = |bits: u64| Token(bits << 48);
        assert!(set.contains(token(0x1234)) && set.contains(token(0x9934)) && !set.contains(token(0x1235)));
        assert_eq!((LeafSet::ALL.count(), LeafSet::ALL.and(&set), LeafSet::NONE.and(&set)), (256, set, LeafSet::NONE));
        assert_eq!((set.or(&LeafSet::of([7])), set.or(&LeafSet::ALL)), (LeafSet::of([7, 0x34, 0xff]), LeafSet::ALL));
        assert_eq!(LeafSet::from_bytes(set.to_bytes()), set);
    }

    proptest! {
        #[test]
        fn sums_forget_order_and_what_was_taken_away(hlcs in prop::collection::vec(any::<u64>(), 1..20), gone: u64) {
            let of = |hlc: u64| Sum::of(Token(hlc), &Version::plain(Hlc(hlc), Writer(1)), hlc);
            let forward: Sum = hlcs.iter().copied().map(of).sum();
            let mut backward: Sum = hlcs.iter().rev().copied().map(of).chain([of(gone)]).sum();
            prop_assert_ne!(forward.digest(), backward.digest());
            backward.remove(of(gone));
            prop_assert_eq!(forward, backward);
        }

        #[test]
        fn a_set_of_slots_survives_its_bytes(slots in prop::collection::vec(any::<u8>(), 0..40)) {
            let set: SlotSet = slots.iter().copied().map(Slot).collect();
            prop_assert_eq!(SlotSet::from_bytes(set.to_bytes()), set);
            prop_assert!(slots.iter().all(|s| set.contains(Slot(*s))));
        }
    }
}
