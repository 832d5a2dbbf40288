//! What a disk holds of keys: records, registers, hints. Two of them: [`MapRows`], ordered maps under the rules of
//! `protocol`, and [`SqlRows`](super::sql::SqlRows), the real engine. A test holds them equal.

use std::collections::{BTreeMap, BTreeSet};

use a3::ports::{Hint, HintTotals, Holdings, ReadPart, ReplicaReply, ReplicaRequest, Seen, SlotEntry};
use a3::protocol::listing::tell_all;
use a3::protocol::purge;
use a3::protocol::register;
use a3::protocol::replica::{self, HintRule, StoredRow, WriteRule};
use a3::types::{
    Accepted, Ballot, Dropped, Floor, Hlc, Key, Leaf, NodeNum, Outline, Promise, Record, Register, Scan, ScanPage,
    Sealed, Slot, SlotDrop, SlotFloor, SlotSet, Sum, Survey, Token, TokenSeed, Version,
};

/// Which hint.
pub(crate) type HintAt = (NodeNum, Slot, Key);

pub(crate) trait Rows: Send {
    /// One transaction: applies these in order, and answers each.
    fn apply(&mut self, wall_ms: u64, batch: &[(Token, ReplicaRequest)]) -> Vec<ReplicaReply>;

    /// The answer to a read; with `hints` the newest among the record and all hints of the key.
    fn read(&self, slot: Slot, key: &Key, part: ReadPart, hints: bool) -> ReplicaReply;

    /// In (slot, key) order after that one.
    fn hints(&self, target: NodeNum, after: Option<&(Slot, Key)>, limit: usize) -> Vec<Hint>;

    fn forget_hints(&mut self, delivered: Vec<(NodeNum, Slot, Key, Version)>);

    /// Drops uncounted ones kept before that, and says how many.
    fn drop_hints_before(&mut self, kept_before_ms: u64) -> u64;

    fn hint_totals(&self) -> Vec<(NodeNum, HintTotals)>;

    /// The sums of a slot's leaves, in order. `seed` as below: what this cluster's tokens are seeded with.
    fn leaf_sums(&self, seed: TokenSeed, slot: Slot) -> Option<Vec<Sum>>;

    /// The sum of each slot, in order.
    fn slot_sums(&self, seed: TokenSeed) -> Vec<Option<Sum>>;

    /// What stands in these leaves of a slot, in order of tokens.
    fn holdings(&self, seed: TokenSeed, slot: Slot, leaves: &[Leaf]) -> Holdings;

    /// All that is held of a slot.
    fn slot(&self, seed: TokenSeed, slot: Slot) -> Vec<SlotEntry>;

    /// Merges what another replica holds.
    fn absorb(&mut self, entries: &[(Token, SlotEntry)]);

    /// Drops those of these keys' records that the floor covers; how many.
    fn drop_covered(&mut self, floor: &Floor, keys: &[(Token, Key)]) -> u64;

    /// Removes all that is held of a slot; how many records and registers.
    fn drop_slot(&mut self, seed: TokenSeed, slot: Slot) -> u64;

    /// A slot's floor and seal.
    fn kept(&self, slot: Slot) -> SlotFloor;

    /// Merges floors and seals.
    fn raise(&mut self, floors: &[(Slot, SlotFloor)]);

    fn survey(&self, seed: TokenSeed, slot: Slot) -> Survey;

    fn greatest_tombstone(&self, seed: TokenSeed, slot: Slot, up_to: Hlc) -> Version;

    fn hinted(&self, up_to: Hlc) -> SlotSet;

    fn unsettled(&self, seed: TokenSeed, slot: Slot) -> Sealed;

    /// Drops what may be forgotten.
    fn purge(&mut self, seed: TokenSeed, drop: &SlotDrop) -> Dropped;

    /// Whether the time of some value is up.
    fn any_due(&self, seed: TokenSeed, now: Hlc) -> bool;

    /// Writes the tombstones of values whose time is up.
    fn end_due(&mut self, seed: TokenSeed, now: Hlc, limit: usize) -> Vec<(Key, Record)>;

    /// The records of these keys as far as one answer goes, and how many keys were looked up.
    fn records(&self, keys: &[(Slot, Key)]) -> (Vec<(Key, Record)>, usize);

    /// The keys of some slots in order, the newest of record and hints of each.
    fn scan(&self, seed: TokenSeed, scan: &Scan) -> ScanPage;
}

/// Ordered maps.
#[derive(Default)]
pub(crate) struct MapRows {
    records: BTreeMap<Key, Record>,
    registers: BTreeMap<Key, Register>,
    hints: BTreeMap<HintAt, Hint>,
    floors: BTreeMap<Slot, SlotFloor>,
}

impl MapRows {
    fn sums(&self, seed: TokenSeed) -> impl Iterator<Item = (Token, Sum)> {
        self.records.iter().map(move |(key, record)| {
            let token = key.token(seed);
            (token, Sum::of(token, &record.version, record.checksum))
        })
    }

    fn write(&mut self, key: &Key, record: &Record, floor: Floor) -> ReplicaReply {
        let stored = self.records.get(key);
        let seen = stored.map(|r| Seen::of(r, Hlc::ZERO));
        match (replica::write(stored.map(StoredRow::of).as_ref(), &floor, record), seen) {
            (WriteRule::BelowFloor, _) => ReplicaReply::BelowFloor { floor },
            (WriteRule::Dominated | WriteRule::Conflict { replace: false }, Some(by)) => ReplicaReply::Dominated { by },
            (_, replaced) => {
                self.records.insert(key.clone(), record.clone());
                ReplicaReply::Stored { replaced }
            }
        }
    }

    fn hint(&mut self, hint: Hint) -> ReplicaReply {
        let at = (hint.target, hint.slot, hint.key.clone());
        let kept = self.hints.get(&at).map(|h| (h.record.version, h.counted));
        match replica::hint(kept, hint.record.version, hint.counted, 1, u64::MAX) {
            HintRule::Keep { counted } => drop(self.hints.insert(at, Hint { counted, ..hint })),
            HintRule::Promote => drop(self.hints.get_mut(&at).map(|h| h.counted = true)),
            HintRule::Kept | HintRule::Full => {}
        }
        ReplicaReply::Hinted
    }

    fn prepare(&mut self, slot: Slot, key: &Key, ballot: Ballot) -> ReplicaReply {
        let kept = self.kept(slot);
        let promised = self.registers.get(key).map_or(Ballot::default(), |r| r.promised);
        if let Err(promised) = register::prepare(promised, kept.bound(), ballot) {
            return ReplicaReply::Outbid { promised };
        }
        let register = self.registers.entry(key.clone()).or_default();
        register.promised = ballot;
        let (accepted, record) = (register.accepted.clone(), self.records.get(key).cloned());
        ReplicaReply::Promised(Box::new(Promise { accepted, record, floor: kept.told() }))
    }

    fn accept(&mut self, slot: Slot, key: &Key, accepted: &Accepted) -> ReplicaReply {
        let promised = self.registers.get(key).map_or(Ballot::default(), |r| r.promised);
        if let Err(promised) = register::accept(promised, self.kept(slot).bound(), accepted.ballot) {
            return ReplicaReply::Outbid { promised };
        }
        let register = Register { promised: accepted.ballot, accepted: Some(accepted.clone()) };
        self.registers.insert(key.clone(), register);
        ReplicaReply::Accepted
    }
}

impl Rows for MapRows {
    fn scan(&self, seed: TokenSeed, scan: &Scan) -> ScanPage {
        let mut newest: BTreeMap<&Key, &Record> = self.records.iter().collect();
        for hint in self.hints.values() {
            let best = newest.entry(&hint.key).or_insert(&hint.record);
            if hint.record.beats(best) {
                *best = &hint.record;
            }
        }
        let here = newest.into_iter().filter(|(key, _)| scan.slots.contains(key.token(seed).slot()));
        tell_all(here.map(|(key, record)| (key.clone(), Some(Outline::of(record, scan.values)))), scan)
    }

    fn apply(&mut self, wall_ms: u64, batch: &[(Token, ReplicaRequest)]) -> Vec<ReplicaReply> {
        let mut one = |(token, request): &(Token, ReplicaRequest)| match request {
            ReplicaRequest::Write { key, record } => self.write(key, record, self.kept(token.slot()).floor),
            ReplicaRequest::Hint { target, key, record, counted } => self.hint(Hint {
                target: *target,
                slot: token.slot(),
                key: key.clone(),
                record: record.clone(),
                counted: *counted,
                kept_at_ms: wall_ms,
            }),
            ReplicaRequest::Prepare { key, ballot } => self.prepare(token.slot(), key, *ballot),
            ReplicaRequest::Accept { key, accepted } => self.accept(token.slot(), key, accepted),
            ReplicaRequest::Read { key, part, hints } => self.read(token.slot(), key, *part, *hints),
        };
        batch.iter().map(&mut one).collect()
    }

    fn read(&self, slot: Slot, key: &Key, part: ReadPart, hints: bool) -> ReplicaReply {
        let kept = self.hints.values().filter(|h| hints && h.key == *key).map(|h| &h.record);
        let newest = self.records.get(key).into_iter().chain(kept).reduce(|a, b| if b.beats(a) { b } else { a });
        let floor = self.kept(slot).floor;
        match part {
            ReadPart::Record => ReplicaReply::Record { record: newest.cloned(), floor },
            ReadPart::Version => ReplicaReply::Version { seen: newest.map(|r| Seen::of(r, Hlc::ZERO)), floor },
        }
    }

    fn hints(&self, target: NodeNum, after: Option<&(Slot, Key)>, limit: usize) -> Vec<Hint> {
        let of_target = self.hints.values().filter(|h| h.target == target);
        let fresh = of_target.filter(|h| after.is_none_or(|(slot, key)| (h.slot, &h.key) > (*slot, key)));
        fresh.take(limit).cloned().collect()
    }

    fn forget_hints(&mut self, delivered: Vec<(NodeNum, Slot, Key, Version)>) {
        for (target, slot, key, version) in delivered {
            let at = (target, slot, key);
            if self.hints.get(&at).is_some_and(|h| h.record.version == version) {
                self.hints.remove(&at);
            }
        }
    }

    fn drop_hints_before(&mut self, kept_before_ms: u64) -> u64 {
        let before = self.hints.len();
        self.hints.retain(|_, h| h.counted || h.kept_at_ms >= kept_before_ms);
        (before - self.hints.len()) as u64
    }

    fn hint_totals(&self) -> Vec<(NodeNum, HintTotals)> {
        let mut totals: BTreeMap<NodeNum, HintTotals> = BTreeMap::new();
        for (target, _, _) in self.hints.keys() {
            totals.entry(*target).or_default().count += 1;
        }
        totals.into_iter().collect()
    }

    fn leaf_sums(&self, seed: TokenSeed, slot: Slot) -> Option<Vec<Sum>> {
        let mut sums = vec![Sum::default(); Leaf::IN_SLOT];
        for (token, sum) in self.sums(seed).filter(|(token, _)| token.slot() == slot) {
            sums[Leaf::of(token).within_slot()].add(sum);
        }
        Some(sums)
    }

    fn slot_sums(&self, seed: TokenSeed) -> Vec<Option<Sum>> {
        let mut sums = vec![Sum::default(); Slot::COUNT];
        self.sums(seed).for_each(|(token, sum)| sums[token.slot().index()].add(sum));
        sums.into_iter().map(Some).collect()
    }

    fn holdings(&self, seed: TokenSeed, slot: Slot, leaves: &[Leaf]) -> Holdings {
        let mut held = Holdings::default();
        for (key, record) in &self.records {
            let token = key.token(seed);
            if token.slot() == slot && leaves.contains(&Leaf::of(token)) {
                held.add(token, key.clone(), record);
            }
        }
        held.intact.sort_unstable();
        held
    }

    fn slot(&self, seed: TokenSeed, slot: Slot) -> Vec<SlotEntry> {
        let keys: BTreeSet<&Key> = self.records.keys().chain(self.registers.keys()).collect();
        let of_slot = keys.into_iter().filter(|key| key.token(seed).slot() == slot);
        let register = |key| self.registers.get(key).filter(|r| **r != Register::default()).cloned();
        of_slot.map(|key| (key.clone(), self.records.get(key).cloned(), register(key))).collect()
    }

    fn absorb(&mut self, entries: &[(Token, SlotEntry)]) {
        for (_, (key, record, register)) in entries {
            if let Some(record) = record {
                // Another replica holds it, so it is not below any floor that both have.
                self.write(key, record, Floor::default());
            }
            if let Some(theirs) = register {
                let own = self.registers.entry(key.clone()).or_default();
                let ballot = |r: &Register| r.accepted.as_ref().map(|a| a.ballot);
                if ballot(own) < ballot(theirs) {
                    own.accepted = theirs.accepted.clone();
                }
                own.promised = own.promised.max(theirs.promised).max(ballot(own).unwrap_or_default());
            }
        }
    }

    fn drop_covered(&mut self, floor: &Floor, keys: &[(Token, Key)]) -> u64 {
        let covered = |key: &&Key| self.records.get(*key).is_some_and(|r| floor.covers(&r.version, r.written));
        let covered: Vec<Key> = keys.iter().map(|(_, key)| key).filter(covered).cloned().collect();
        covered.iter().filter(|key| self.records.remove(*key).is_some()).count() as u64
    }

    fn drop_slot(&mut self, seed: TokenSeed, slot: Slot) -> u64 {
        let before = self.records.len() + self.registers.len();
        self.records.retain(|key, _| key.token(seed).slot() != slot);
        self.registers.retain(|key, _| key.token(seed).slot() != slot);
        (before - self.records.len() - self.registers.len()) as u64
    }

    fn any_due(&self, _: TokenSeed, now: Hlc) -> bool {
        self.records.values().any(|record| record.has_ended(now))
    }

    fn end_due(&mut self, seed: TokenSeed, now: Hlc, limit: usize) -> Vec<(Key, Record)> {
        let due = self.records.iter().filter(|(_, record)| record.has_ended(now));
        // As signed numbers, as the engine has them.
        let mut due: Vec<(Option<u64>, i64, Key)> =
            due.map(|(key, record)| (record.expires_at_ms(), key.token(seed).0 as i64, key.clone())).collect();
        due.sort_unstable();
        let ended = due.into_iter().take(limit).filter_map(|(.., key)| {
            let end = self.records.get(&key)?.end(&key)?;
            self.records.insert(key.clone(), end.clone());
            Some((key, end))
        });
        ended.collect()
    }

    fn records(&self, keys: &[(Slot, Key)]) -> (Vec<(Key, Record)>, usize) {
        let found = keys.iter().filter_map(|(_, key)| Some((key.clone(), self.records.get(key)?.clone())));
        (found.collect(), keys.len())
    }

    fn kept(&self, slot: Slot) -> SlotFloor {
        self.floors.get(&slot).copied().unwrap_or_default()
    }

    fn raise(&mut self, floors: &[(Slot, SlotFloor)]) {
        for (slot, floor) in floors {
            let kept = self.floors.entry(*slot).or_default();
            *kept = kept.merge(floor);
        }
    }

    fn survey(&self, seed: TokenSeed, slot: Slot) -> Survey {
        let entries = self.slot(seed, slot);
        let tombstones = || entries.iter().filter_map(|(_, record, _)| record.as_ref()).filter(|r| r.is_tombstone());
        let registers = || entries.iter().filter_map(|(_, r, register)| Some((r, register.as_ref()?.promised.hlc)));
        let orphans = || registers().filter(|(record, _)| record.is_none());
        Survey {
            slot,
            floor: self.kept(slot).floor,
            tombstones: tombstones().count() as u64,
            orphans: orphans().count() as u64,
            promised: registers().map(|(_, promised)| promised).max().unwrap_or_default(),
            oldest: tombstones().map(|r| r.written).min(),
            oldest_orphan: orphans().map(|(_, promised)| promised).min(),
        }
    }

    fn greatest_tombstone(&self, seed: TokenSeed, slot: Slot, up_to: Hlc) -> Version {
        let entries = self.slot(seed, slot);
        let all = entries.iter().filter_map(|(_, record, _)| record.as_ref()).filter(|r| r.is_tombstone());
        all.filter(|r| r.written <= up_to).map(|r| r.version).max().unwrap_or_default()
    }

    fn hinted(&self, up_to: Hlc) -> SlotSet {
        self.hints.values().filter(|hint| hint.record.written <= up_to).map(|hint| hint.slot).collect()
    }

    fn unsettled(&self, seed: TokenSeed, slot: Slot) -> Sealed {
        let kept = self.kept(slot);
        let open = |register: &Register, record: Option<&Record>| {
            purge::is_unsettled(register, record.map(|r| &r.version), &kept)
        };
        let entries = self.slot(seed, slot).into_iter();
        let open = entries.filter(|(_, record, register)| register.as_ref().is_some_and(|r| open(r, record.as_ref())));
        Sealed { unsettled: open.map(|(key, ..)| key).collect(), ..Sealed::empty(slot) }
    }

    fn purge(&mut self, seed: TokenSeed, drop: &SlotDrop) -> Dropped {
        let (floor, mut dropped) = (self.kept(drop.slot).floor, Dropped::default());
        if floor.merge(&drop.floor) != floor {
            return dropped;
        }
        for (key, record, register) in self.slot(seed, drop.slot) {
            let promised = register.map(|r| r.promised);
            match &record {
                Some(r) if r.is_tombstone() => {
                    match purge::may_drop(&floor, drop.up_to, (&r.version, r.written), promised) {
                        Ok(true) => dropped.tombstones += 1,
                        Ok(false) => continue,
                        Err(_) => {
                            dropped.kept += 1;
                            continue;
                        }
                    }
                }
                None if promised.is_some_and(|p| purge::may_drop_orphan(&floor, drop.up_to, p)) => {}
                _ => continue,
            }
            self.records.remove(&key);
            dropped.registers += u64::from(self.registers.remove(&key).is_some());
        }
        dropped
    }
}
