//! Who answers for which slots, and what each has told that was not looked at yet.
//!
//! Invariants:
//! - For every slot that is not missing, a majority of every write set is counted, or stand-ins in place of home replicas
//!   that cannot be had, but for one.
//! - A source's answers are complete from where the fold stands up to `next`, but for what was skipped behind an entry that
//!   says so. When such an entry goes unheard, so does everything behind it, and it is asked again from there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use smallvec::SmallVec;

use super::behind;
use crate::protocol::quorum::{Ask, Asking};
use crate::protocol::ring::{Placement, Ring};
use crate::types::{Key, NodeNum, ScanEntry, ScanPage, Slot, SlotSet, majority};

type Nodes = SmallVec<[NodeNum; 4]>;

/// One node, asked for some slots.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) node: NodeNum,
    pub(super) slots: SlotSet,
    pub(super) told: VecDeque<ScanEntry>,
    /// From where to ask on; `None`: all is told.
    pub(super) next: Option<Bytes>,
    pub(super) asked: bool,
    /// Live keys that it tells of one common prefix.
    pub(super) samples: u32,
}

impl Source {
    /// Takes what it answered. What lies before `at` is settled already.
    pub(super) fn take(&mut self, page: ScanPage, ring: &Ring, at: &Bytes) {
        self.asked = false;
        self.next = page.next.map(|next| next.max(at.clone()));
        self.told = page.entries.into_iter().filter(|entry| entry.key.as_bytes() >= &at[..]).collect();
        self.drop_foreign(ring);
    }

    /// Counts for these slots no more.
    fn lose(&mut self, slots: SlotSet, ring: &Ring) {
        slots.iter().for_each(|slot| self.slots.remove(slot));
        self.drop_foreign(ring);
    }

    fn drop_foreign(&mut self, ring: &Ring) {
        let slots = self.slots;
        let is_foreign = |entry: &ScanEntry| !slots.contains(ring.token(&entry.key).slot());
        if let Some(gap) = self.told.iter().position(|entry| entry.skips && is_foreign(entry)) {
            let place = behind(&self.told[gap].key);
            self.told.truncate(gap);
            self.again_from(place);
        }
        self.told.retain(|entry| !is_foreign(entry));
    }

    /// What it skipped behind that key is wanted after all.
    pub(super) fn unskip(&mut self, key: &Key) {
        self.told.clear();
        self.again_from(behind(key));
    }

    fn again_from(&mut self, place: Bytes) {
        self.next = Some(place);
        self.samples = self.samples.saturating_mul(2);
    }

    /// Whatever lies before that place is settled; `None`: everything.
    pub(super) fn advance(&mut self, at: Option<&Bytes>) {
        let Some(at) = at else {
            self.told.clear();
            self.next = None;
            return;
        };
        while self.told.front().is_some_and(|entry| entry.key.as_bytes() < &at[..]) {
            self.told.pop_front();
        }
        if let Some(next) = &mut self.next
            && *next < *at
        {
            *next = at.clone();
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Counted {
    nodes: Nodes,
    /// Asked before, in vain.
    failed: Nodes,
}

/// All that are asked.
#[derive(Debug)]
pub(super) struct Sources {
    me: NodeNum,
    all: Vec<Source>,
    slots: Vec<Counted>,
    missing: SlotSet,
    /// A stand-in is counted.
    stood_in: bool,
    failed: BTreeMap<NodeNum, String>,
}

impl Sources {
    pub(super) fn new(me: NodeNum) -> Self {
        Self {
            me,
            all: Vec::new(),
            slots: vec![Counted::default(); Slot::COUNT],
            missing: SlotSet::NONE,
            stood_in: false,
            failed: BTreeMap::new(),
        }
    }

    pub(super) fn me(&self) -> NodeNum {
        self.me
    }

    pub(super) fn get(&self, number: usize) -> Option<&Source> {
        self.all.get(number)
    }

    pub(super) fn get_mut(&mut self, number: usize) -> Option<&mut Source> {
        self.all.get_mut(number)
    }

    /// Those that count for some slot.
    pub(super) fn live(&self) -> impl Iterator<Item = &Source> {
        self.all.iter().filter(|source| !source.slots.is_empty())
    }

    pub(super) fn live_mut(&mut self) -> impl Iterator<Item = (usize, &mut Source)> {
        self.all.iter_mut().enumerate().filter(|(_, source)| !source.slots.is_empty())
    }

    pub(super) fn missing(&self) -> SlotSet {
        self.missing
    }

    pub(super) fn is_strict(&self) -> bool {
        !self.stood_in
    }

    pub(super) fn failed(&self) -> Vec<(NodeNum, String)> {
        self.failed.iter().map(|(node, why)| (*node, why.clone())).collect()
    }

    /// Finds a majority for every slot, from that place on.
    pub(super) fn begin(&mut self, ring: &Ring, at: &Bytes, asking: Asking<'_>) {
        let lost = self.cover(Slot::all().collect(), ring, at, asking);
        self.give_up(lost, ring);
    }

    /// This source does not count for these slots (any more): others are asked in its place. `patient`: where there is
    /// nobody else it may still answer.
    pub(super) fn fail(
        &mut self,
        number: usize,
        slots: SlotSet,
        (why, patient): (&str, bool),
        (ring, at, asking): (&Ring, &Bytes, Asking<'_>),
    ) {
        let Some(source) = self.all.get_mut(number) else { return };
        let node = source.node;
        let slots: SlotSet = slots.iter().filter(|slot| source.slots.contains(*slot)).collect();
        for slot in slots.iter() {
            let counted = &mut self.slots[slot.index()];
            counted.nodes.retain(|n| *n != node);
            counted.failed.push(node);
        }
        let mut lost = self.cover(slots, ring, at, asking);
        if patient {
            for slot in std::mem::take(&mut lost).iter() {
                let counted = &mut self.slots[slot.index()];
                counted.failed.retain(|n| *n != node);
                counted.nodes.push(node);
            }
        }
        let slots_left: SlotSet = slots.iter().filter(|s| !self.slots[s.index()].nodes.contains(&node)).collect();
        if !slots_left.is_empty() {
            self.failed.insert(node, why.to_owned());
        }
        if let Some(source) = self.all.get_mut(number) {
            source.lose(slots_left, ring);
        }
        self.give_up(lost, ring);
    }

    fn give_up(&mut self, lost: SlotSet, ring: &Ring) {
        if lost.is_empty() {
            return;
        }
        lost.iter().for_each(|slot| self.missing.insert(slot));
        // A minority's word is no answer.
        self.all.iter_mut().for_each(|source| source.lose(lost, ring));
    }

    /// Adds sources until these slots have their majorities. Answers those that cannot.
    fn cover(&mut self, slots: SlotSet, ring: &Ring, at: &Bytes, asking: Asking<'_>) -> SlotSet {
        let members = ring.topology().members.iter().map(|member| member.node);
        let asks: BTreeMap<NodeNum, Ask> = members.map(|node| (node, asking(node))).collect();
        let mut busy: BTreeSet<NodeNum> = self.live().map(|source| source.node).collect();
        let mut added: BTreeMap<NodeNum, SlotSet> = BTreeMap::new();
        let mut lost = SlotSet::NONE;
        for slot in slots.iter() {
            let placement = ring.placement(slot);
            let Some(more) = choose(placement, &self.slots[slot.index()], self.me, &asks, &busy) else {
                lost.insert(slot);
                for node in placement.home_replicas() {
                    if asks.get(&node).is_none_or(|ask| *ask == Ask::No) {
                        self.failed.entry(node).or_insert_with(|| "unreachable".to_owned());
                    }
                }
                continue;
            };
            for node in more {
                self.stood_in |= !placement.is_home(node);
                self.slots[slot.index()].nodes.push(node);
                added.entry(node).or_default().insert(slot);
                busy.insert(node);
            }
        }
        self.all.extend(added.into_iter().map(|(node, slots)| Source {
            node,
            slots,
            told: VecDeque::new(),
            next: Some(at.clone()),
            asked: false,
            samples: 1,
        }));
        lost
    }
}

/// Whether these are a majority of every write set, stand-ins counted for who is missing. One home replica of each there must be:
/// what is not told is absent, and that a key is absent a stand-in cannot say.
fn is_met(placement: &Placement, nodes: &[NodeNum]) -> bool {
    let stand_ins = nodes.iter().filter(|n| !placement.is_home(**n)).count();
    placement.write_sets.iter().all(|set| {
        let homes = set.iter().filter(|n| nodes.contains(n)).count();
        homes > 0 && (homes + stand_ins).min(set.len()) >= majority(set.len())
    })
}

/// Whom to ask in addition; `None` where that is not enough. Home replicas first, this node before the others and those that are
/// asked anyway before the rest; then stand-ins; at last those that did not answer lately.
fn choose(
    placement: &Placement,
    counted: &Counted,
    me: NodeNum,
    asks: &BTreeMap<NodeNum, Ask>,
    busy: &BTreeSet<NodeNum>,
) -> Option<Nodes> {
    let ask = |node: &NodeNum| asks.get(node).copied().unwrap_or(Ask::No);
    let mut homes = placement.home_replicas();
    homes.sort_by_key(|node| (*node != me, !busy.contains(node)));
    let (ready, slow): (Nodes, Nodes) = homes.into_iter().partition(|node| ask(node) == Ask::Yes);
    let stand_ins = |yes: bool| placement.fallbacks.iter().copied().filter(move |node| (ask(node) == Ask::Yes) == yes);
    let order = ready.into_iter().chain(stand_ins(true)).chain(slow).chain(stand_ins(false));
    let mut nodes = counted.nodes.clone();
    let before = nodes.len();
    for node in order.filter(|node| ask(node) != Ask::No && !counted.failed.contains(node)) {
        if is_met(placement, &nodes) {
            break;
        }
        if !nodes.contains(&node) {
            nodes.push(node);
        }
    }
    is_met(placement, &nodes).then(|| nodes[before..].iter().copied().collect())
}
