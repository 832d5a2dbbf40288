//! The hash tree: how two replicas find where they differ by sending a few digests, and what each then gives the other.
//!
//! One side *descends*: it asks for the digests of the sixteen parts of a span, compares them with its own, and asks again
//! about the parts that differ, until these are leaves. In step, that is one question; one difference among a million keys
//! takes four. Then it lists what it holds in those leaves, and [`differences`] says what is newer where.
//!
//! Invariants:
//! - Both sides sum over the same slots: those they share by one epoch, less those that either cannot sum up at the moment.
//! - A comparison only ever names candidates. Whatever is sent on its word is judged by the replica's rule on arrival, so
//!   that a mistaken or outdated comparison costs bytes and nothing else.
//!
//! There is no special way for replicas that differ in most leaves: the descent costs at most 0.6 MB where all of them do,
//! which is little beside the records that then move.

use std::cmp::Ordering;

use super::ring::Ring;
use crate::types::{Digest, Entry, Hlc, Key, Leaf, NodeNum, Slot, SlotSet, Span, Sum, Token};

/// A record younger than this is in flight: its write may not have reached every replica yet, and will without help. In
/// milliseconds of its version's clock.
pub const IN_FLIGHT_MS: u64 = 5_000;

/// The slots that both are home replicas of, but for those that move: what their new replicas lack is on its way to them.
pub fn shared(ring: &Ring, one: NodeNum, other: NodeNum) -> SlotSet {
    let both = |slot: &Slot| match &ring.placement(*slot).write_sets[..] {
        [homes] => homes.contains(&one) && homes.contains(&other),
        _ => false,
    };
    Slot::all().filter(both).collect()
}

/// What one side knows of its own tree.
pub trait Sums {
    /// `None` while the slot is summed anew.
    fn slot(&self, slot: Slot) -> Option<Sum>;

    /// Of the slot's 256 leaves, in order; `None` as before.
    fn leaves(&self, slot: Slot) -> Option<Vec<Sum>>;
}

/// The digests of the sixteen parts of each of these spans, in order, summed over the slots in `of`. A slot that cannot be
/// summed up any more, though it is in `of`, counts as empty: that shows as a difference, and is looked into.
pub fn digests(sums: &dyn Sums, of: &SlotSet, spans: &[Span]) -> Vec<Digest> {
    let mut digests = Vec::with_capacity(spans.len() * Span::PARTS);
    // The spans of one slot lie side by side, and its leaves are fetched once for all of them.
    let mut fetched: Option<(Slot, Vec<Sum>)> = None;
    for part in spans.iter().flat_map(|span| span.parts()) {
        let sum = match part.slot() {
            None => part_slots(part).filter(|s| of.contains(*s)).filter_map(|s| sums.slot(s)).sum(),
            Some(slot) if !of.contains(slot) => Sum::default(),
            Some(slot) if part.digits() == 2 => sums.slot(slot).unwrap_or_default(),
            Some(slot) => {
                if fetched.as_ref().is_none_or(|(of_slot, _)| *of_slot != slot) {
                    fetched = Some((slot, sums.leaves(slot).unwrap_or_default()));
                }
                let leaves = fetched.as_ref().map_or(&[][..], |(_, leaves)| leaves);
                part.leaves().filter_map(|leaf| leaves.get(leaf.within_slot()).copied()).sum()
            }
        };
        digests.push(sum.digest());
    }
    digests
}

/// The slots of everything, or of a chunk.
fn part_slots(part: Span) -> impl Iterator<Item = Slot> {
    let of_chunk = move |slot: &Slot| part.digits() == 0 || u16::from(slot.0 >> 4) == part.bits();
    Slot::all().filter(of_chunk)
}

/// The parts of the spans that were asked about whose digests differ, in order.
pub fn differing(spans: &[Span], ours: &[Digest], theirs: &[Digest]) -> Vec<Span> {
    let parts = spans.iter().flat_map(|span| span.parts());
    let pairs = ours.iter().zip(theirs);
    parts.zip(pairs).filter(|(_, (ours, theirs))| ours != theirs).map(|(part, _)| part).collect()
}

/// Leaves, all found to differ, by their slot.
pub fn by_slot(leaves: &[Span]) -> Vec<(Slot, Vec<Leaf>)> {
    let mut slots: Vec<(Slot, Vec<Leaf>)> = Vec::new();
    for leaf in leaves.iter().flat_map(|span| span.leaves()) {
        match slots.last_mut() {
            Some((slot, of_slot)) if *slot == leaf.slot() => of_slot.push(leaf),
            _ => slots.push((leaf.slot(), vec![leaf])),
        }
    }
    slots
}

/// What two lists of one set of leaves say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Differences {
    /// They hold it newer, or alone.
    pub theirs: Vec<Token>,
    /// We hold it newer, or alone.
    pub ours: Vec<Key>,
}

/// Compares two lists, each in order of tokens, leaving out what is in flight at `now_ms`. Two contents of one version are
/// on both sides: whoever gets the other's keeps the one that beats.
pub fn differences(theirs: &[Entry], ours: &[(Entry, Key)], now_ms: u64) -> Differences {
    compare(theirs, ours, |entry| entry.version.hlc.ms() + IN_FLIGHT_MS > now_ms)
}

/// The same, of all that was stamped up to a time and of nothing else.
pub fn differences_up_to(theirs: &[Entry], ours: &[(Entry, Key)], up_to: Hlc) -> Differences {
    compare(theirs, ours, |entry| entry.version.hlc > up_to)
}

fn compare(theirs: &[Entry], ours: &[(Entry, Key)], left_out: impl Fn(&Entry) -> bool) -> Differences {
    let mut found = Differences::default();
    let (mut theirs, mut ours) = (theirs.iter().peekable(), ours.iter().peekable());
    loop {
        let order = match (theirs.peek(), ours.peek()) {
            (None, None) => return found,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(their), Some((our, _))) => their.token.cmp(&our.token),
        };
        let their = if order.is_le() { theirs.next() } else { None };
        let our = if order.is_ge() { ours.next() } else { None };
        if their.is_some_and(&left_out) || our.is_some_and(|(our, _)| left_out(our)) {
            continue;
        }
        match (their, our) {
            (Some(their), Some((our, _))) if their == our => {}
            (Some(their), Some((our, key))) => {
                if their.version >= our.version {
                    found.theirs.push(their.token);
                }
                if our.version >= their.version {
                    found.ours.push(key.clone());
                }
            }
            (Some(their), None) => found.theirs.push(their.token),
            (None, Some((_, key))) => found.ours.push(key.clone()),
            (None, None) => {}
        }
    }
}

/// Some leaves, and what is held in them.
pub type Lot<'a> = (&'a [Leaf], &'a [(Entry, Key)]);

/// Cuts the leaves of a slot into lots whose lists have at most that many entries; a lot has at least one leaf. Each with
/// its part of what is held, which is in order of tokens, and so of leaves.
pub fn lots<'a>(leaves: &'a [Leaf], held: &'a [(Entry, Key)], entries_max: usize) -> Vec<Lot<'a>> {
    let mut lots = Vec::new();
    let (mut leaf_from, mut held_from, mut held_to) = (0, 0, 0);
    for (at, leaf) in leaves.iter().enumerate() {
        let of_leaf = held[held_to..].partition_point(|(entry, _)| Leaf::of(entry.token) <= *leaf);
        if held_to + of_leaf - held_from > entries_max && at > leaf_from {
            lots.push((&leaves[leaf_from..at], &held[held_from..held_to]));
            (leaf_from, held_from) = (at, held_to);
        }
        held_to += of_leaf;
    }
    if leaf_from < leaves.len() {
        lots.push((&leaves[leaf_from..], &held[held_from..held_to]));
    }
    lots
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Version, Writer};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// One side: versions by token.
    #[derive(Clone, Debug, Default)]
    struct Side(BTreeMap<u64, u64>);

    impl Side {
        fn entries(&self) -> Vec<(Entry, Key)> {
            let entry = |(token, version): (&u64, &u64)| {
                let version = Version::plain(Hlc::from_ms(*version), Writer(1));
                let entry = Entry { token: Token(*token), version, checksum: 0 };
                (entry, Key::new(token.to_string()).unwrap())
            };
            self.0.iter().map(entry).collect()
        }

        fn sum(&self, of: impl Fn(Token) -> bool) -> Sum {
            let entries = self.entries().into_iter().map(|(entry, _)| entry).filter(|e| of(e.token));
            entries.map(|e| Sum::of(e.token, &e.version, e.checksum.into())).sum()
        }
    }

    impl Sums for Side {
        fn slot(&self, slot: Slot) -> Option<Sum> {
            Some(self.sum(|t| t.slot() == slot))
        }

        fn leaves(&self, slot: Slot) -> Option<Vec<Sum>> {
            Some(Span::of_slot(slot).leaves().map(|leaf| self.sum(|t| Leaf::of(t) == leaf)).collect())
        }
    }

    fn everywhere() -> SlotSet {
        Slot::all().collect()
    }

    /// The leaves found to differ, and how many questions that took.
    fn descend(one: &Side, other: &Side) -> (Vec<Leaf>, usize) {
        let (mut spans, mut asked) = (vec![Span::ALL], 0);
        while spans.first().is_some_and(|span| span.digits() < Span::DIGITS_MAX) {
            asked += 1;
            let (ours, theirs) = (digests(one, &everywhere(), &spans), digests(other, &everywhere(), &spans));
            spans = differing(&spans, &ours, &theirs);
        }
        (by_slot(&spans).into_iter().flat_map(|(_, leaves)| leaves).collect(), asked)
    }

    #[test]
    fn in_step_one_question_is_enough_and_one_difference_takes_four() {
        let side = Side([(1, 1), (u64::MAX, 1)].into());
        assert_eq!(descend(&side, &side.clone()), (vec![], 1));
        let mut other = side.clone();
        other.0.insert(0x1234 << 48, 7);
        assert_eq!(descend(&side, &other), (vec![Leaf(0x1234)], 4));
        assert_eq!(descend(&other, &side), (vec![Leaf(0x1234)], 4));
    }

    #[test]
    fn only_the_slots_in_question_are_summed() {
        let side = Side([(0x1234 << 48, 1)].into());
        let elsewhere: SlotSet = Slot::all().filter(|s| s.0 != 0x12).collect();
        let empty = digests(&Side::default(), &everywhere(), &[Span::ALL]);
        assert_eq!(digests(&side, &elsewhere, &[Span::ALL]), empty);
        for span in [Span::chunk(1), Span::of_slot(Slot(0x12)), Span::new(3, 0x123).unwrap()] {
            assert_eq!(digests(&side, &elsewhere, &[span]), empty);
            assert_ne!(digests(&side, &everywhere(), &[span]), empty);
        }
    }

    #[test]
    fn what_is_in_flight_is_left_out_on_either_side() {
        let old = Side([(1, 0), (2, 0)].into());
        let new = Side([(1, 10_000), (2, 0), (3, 10_000)].into());
        let list = |side: &Side| side.entries().into_iter().map(|(e, _)| e).collect::<Vec<_>>();
        for now in [10_000, 10_000 + IN_FLIGHT_MS - 1] {
            assert_eq!(differences(&list(&new), &old.entries(), now), Differences::default());
            assert_eq!(differences(&list(&old), &new.entries(), now), Differences::default());
        }
        let found = differences(&list(&new), &old.entries(), 10_000 + IN_FLIGHT_MS);
        assert_eq!((found.theirs, found.ours), (vec![Token(1), Token(3)], vec![]));
    }

    #[test]
    fn two_contents_of_one_version_go_both_ways() {
        let ours = Side([(1, 1)].into()).entries();
        let theirs = Entry { checksum: 9, ..ours[0].0 };
        let found = differences(&[theirs], &ours, u64::MAX);
        assert_eq!((found.theirs, found.ours), (vec![Token(1)], vec![ours[0].1.clone()]));
    }

    #[test]
    fn lots_are_cut_between_leaves() {
        let side = Side((0..10u64).map(|n| ((n / 4) << 48 | n, 0)).collect());
        let (leaves, held) = ([Leaf(0), Leaf(1), Leaf(2), Leaf(3)], side.entries());
        let sizes = |max| lots(&leaves, &held, max).iter().map(|(l, h)| (l.len(), h.len())).collect::<Vec<_>>();
        assert_eq!(sizes(100), [(4, 10)]);
        assert_eq!(sizes(8), [(2, 8), (2, 2)]);
        assert_eq!(sizes(1), [(1, 4), (1, 4), (1, 2), (1, 0)]);
        assert!(lots(&[], &[], 1).is_empty());
    }

    fn side() -> impl Strategy<Value = Side> {
        // Few leaves, so that they meet.
        prop::collection::btree_map((0u64..4, 0u64..6).prop_map(|(leaf, n)| leaf << 50 | n), 1u64..4, 0..12)
            .prop_map(Side)
    }

    proptest! {
        /// Whatever two sides hold, one comparison names all that differs, and what is named makes them equal.
        #[test]
        fn both_sides_end_with_the_newest(mut one in side(), mut other in side()) {
            let newest: BTreeMap<u64, u64> = one.0.keys().chain(other.0.keys())
                .map(|t| (*t, *one.0.get(t).max(other.0.get(t)).unwrap())).collect();
            let (leaves, _) = descend(&one, &other);
            let within = |side: &Side| -> Vec<(Entry, Key)> {
                side.entries().into_iter().filter(|(e, _)| leaves.contains(&Leaf::of(e.token))).collect()
            };
            let (ours, theirs) = (within(&one), within(&other));
            let mut found = Differences::default();
            let mut listed = 0;
            for (lot, held) in lots(&leaves, &ours, 3) {
                let theirs: Vec<Entry> = theirs.iter().map(|(e, _)| *e).filter(|e| lot.contains(&Leaf::of(e.token))).collect();
                listed += held.len();
                let part = differences(&theirs, held, u64::MAX);
                found.theirs.extend(part.theirs);
                found.ours.extend(part.ours);
            }
            prop_assert_eq!(listed, ours.len());
            let before = other.clone();
            for key in &found.ours {
                let token: u64 = key.to_string().parse().unwrap();
                other.0.insert(token, one.0[&token]);
            }
            for token in &found.theirs {
                one.0.insert(token.0, before.0[&token.0]);
            }
            prop_assert_eq!((&one.0, &other.0), (&newest, &newest));
        }
    }
}
