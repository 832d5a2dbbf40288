//! Small stand-ins for the node's world, for the tests of its drivers.

mod damage;
mod peers;
mod purging;
mod transfer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use uuid::Uuid;

pub(crate) use peers::FakePeers;

use super::journal::Journal;
use crate::ports::{
    ChangeLog, Clock, Entropy, Hint, HintTotals, Holdings, ReadPart, RecordPage, ReplicaReply, ReplicaRequest, Seen,
    SlotEntry, SlotPage, Store, StoreError, StoreTotals, Submissions,
};
use crate::protocol::listing::tell_all;
use crate::protocol::register;
use crate::protocol::replica::{self, StoredRow, WriteRule};
use crate::types::{
    ClusterId, Epoch, Floor, Hlc, Identity, InstanceId, Key, KeyChange, Leaf, Member, NodeNum, Outline, Promise,
    Record, Register, Scan, ScanPage, Slot, SlotFloor, SlotSet, Sum, Token, Topology, Version, Vote, Writer,
};

/// A page of records, in bytes of contents.
const PAGE_BYTES: usize = 1024 * 1024;

/// A wall clock that stands still until it is set.
#[derive(Debug)]
pub(crate) struct FakeClock(AtomicU64);

impl FakeClock {
    pub(crate) fn at(wall_ms: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(wall_ms)))
    }

    pub(crate) fn set(&self, wall_ms: u64) {
        self.0.store(wall_ms, Ordering::SeqCst);
    }

    pub(crate) fn advance(&self, by_ms: u64) {
        self.0.fetch_add(by_ms, Ordering::SeqCst);
    }
}

impl Clock for FakeClock {
    fn wall_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// A journal at that clock's beginning.
pub(crate) fn journal() -> Arc<Journal> {
    Journal::new(FakeClock::at(0))
}

/// A counter, spread over the range: repeatable "randomness".
#[derive(Debug, Default)]
pub(crate) struct FakeEntropy(AtomicU64);

impl Entropy for FakeEntropy {
    fn u64(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

type HintKey = (NodeNum, Slot, Key);

/// A disk in memory that answers at once. It takes what it is given as the real one does, by the replica's rules.
#[derive(Default)]
pub(crate) struct FakeStore {
    /// Whose it is; the first's unless said.
    node: Option<NodeNum>,
    records: Mutex<BTreeMap<Key, (Token, Record)>>,
    registers: Mutex<BTreeMap<Key, (Token, Register)>>,
    hints: Mutex<BTreeMap<HintKey, Hint>>,
    reserved: Mutex<Hlc>,
    reservations: AtomicU64,
    failing: Mutex<Option<StoreError>>,
    submitted: Mutex<Vec<usize>>,
    observed: Mutex<Hlc>,
    listed: AtomicU64,
    /// Keys whose rows are not what was written.
    damaged: Mutex<BTreeSet<Key>>,
    /// Rows that no key belongs to, by their slot.
    strays: Mutex<Vec<(Slot, Vec<u8>)>>,
    floor: Mutex<Floor>,
    /// Of single slots.
    kept: Mutex<BTreeMap<Slot, SlotFloor>>,
    /// Keys of registers that are not.
    lost: Mutex<BTreeSet<Key>>,
    condemned: AtomicBool,
    changes: Arc<ChangeLog>,
}

impl FakeStore {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    pub(crate) fn of(node: NodeNum) -> Arc<Self> {
        Arc::new(Self { node: Some(node), ..Self::default() })
    }

    /// Rare requests fail with this from now on.
    pub(crate) fn fail_with(&self, error: Option<StoreError>) {
        *self.failing.lock() = error;
    }

    /// How often the clock was reserved.
    pub(crate) fn reservations(&self) -> u64 {
        self.reservations.load(Ordering::SeqCst)
    }

    pub(crate) fn record(&self, key: &Key) -> Option<Record> {
        self.records.lock().get(key).map(|(_, record)| record.clone())
    }

    /// Rows that were read for lists.
    pub(crate) fn listed(&self) -> u64 {
        self.listed.load(Ordering::SeqCst)
    }

    pub(crate) fn hint_count(&self) -> usize {
        self.hints.lock().len()
    }

    pub(crate) fn put_hint(&self, hint: Hint) {
        self.hints.lock().insert((hint.target, hint.slot, hint.key.clone()), hint);
    }

    /// The greatest clock reading it was told of.
    pub(crate) fn observed(&self) -> Hlc {
        *self.observed.lock()
    }

    /// How many requests each submitted batch had.
    pub(crate) fn batches(&self) -> Vec<usize> {
        self.submitted.lock().clone()
    }

    /// What a replica with this disk answers.
    pub(crate) fn apply(&self, token: Token, request: ReplicaRequest) -> ReplicaReply {
        let kept = self.kept(token.slot());
        let floor = kept.floor;
        match request {
            ReplicaRequest::Read { key, part: ReadPart::Record, .. } => {
                ReplicaReply::Record { record: self.record(&key), floor }
            }
            ReplicaRequest::Read { key, part: ReadPart::Version, .. } => {
                ReplicaReply::Version { seen: self.record(&key).map(|r| Seen::of(&r, Hlc::ZERO)), floor }
            }
            ReplicaRequest::Write { key, record } => {
                let mut records = self.records.lock();
                let intact = !self.damaged.lock().remove(&key);
                let stored = records.get(&key).map(|(_, record)| record).filter(|_| intact);
                let seen = stored.map(|r| Seen::of(r, Hlc::ZERO));
                match (replica::write(stored.map(StoredRow::of).as_ref(), &floor, &record), seen) {
                    (WriteRule::Dominated, Some(by)) => ReplicaReply::Dominated { by },
                    (WriteRule::BelowFloor, _) if intact => ReplicaReply::BelowFloor { floor },
                    (_, replaced) => {
                        self.changes.add([KeyChange::of(&key, &record)]);
                        records.insert(key, (token, record));
                        ReplicaReply::Stored { replaced }
                    }
                }
            }
            ReplicaRequest::Hint { target, key, record, counted } => {
                self.put_hint(Hint { target, slot: token.slot(), key, record, counted, kept_at_ms: 0 });
                ReplicaReply::Hinted
            }
            ReplicaRequest::Prepare { key, ballot } => {
                let mut registers = self.registers.lock();
                let (_, held) = registers.entry(key.clone()).or_insert((token, Register::default()));
                match register::prepare(held.promised, kept.bound(), ballot) {
                    Ok(()) => held.promised = ballot,
                    Err(promised) => return ReplicaReply::Outbid { promised },
                }
                let (accepted, record) = (held.accepted.clone(), self.record(&key));
                ReplicaReply::Promised(Box::new(Promise { accepted, record, floor: kept.told() }))
            }
            ReplicaRequest::Accept { key, accepted } => {
                let mut registers = self.registers.lock();
                let (_, held) = registers.entry(key).or_insert((token, Register::default()));
                match register::accept(held.promised, kept.bound(), accepted.ballot) {
                    Ok(()) => *held = Register { promised: accepted.ballot, accepted: Some(*accepted) },
                    Err(promised) => return ReplicaReply::Outbid { promised },
                }
                ReplicaReply::Accepted
            }
        }
    }

    fn rare<T: Send + 'static>(&self, value: T) -> BoxFuture<'static, Result<T, StoreError>> {
        let answer = self.failing.lock().clone().map_or(Ok(value), Err);
        async move {
            tokio::task::yield_now().await;
            answer
        }
        .boxed()
    }
}

impl Store for FakeStore {
    fn submit(&self, batch: Submissions) {
        self.submitted.lock().push(batch.len());
        for submission in batch {
            let answer = self.apply(submission.token, submission.request);
            submission.reply_to.send(Ok(answer));
        }
    }

    fn observe(&self, now: Hlc) {
        let mut observed = self.observed.lock();
        *observed = now.max(*observed);
    }

    fn hints(
        &self,
        target: NodeNum,
        after: Option<(Slot, Key)>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<Hint>, StoreError>> {
        let hints = self.hints.lock();
        let page = hints
            .iter()
            .filter(|((t, slot, key), _)| *t == target && after.as_ref().is_none_or(|(s, k)| (slot, key) > (s, k)))
            .map(|(_, hint)| hint.clone())
            .take(limit)
            .collect();
        drop(hints);
        self.rare(page)
    }

    fn forget_hints(
        &self,
        delivered: Vec<(NodeNum, Slot, Key, Version)>,
    ) -> BoxFuture<'static, Result<(), StoreError>> {
        let mut hints = self.hints.lock();
        for (target, slot, key, version) in delivered {
            let at = (target, slot, key);
            if hints.get(&at).is_some_and(|h| h.record.version == version) {
                hints.remove(&at);
            }
        }
        drop(hints);
        self.rare(())
    }

    fn drop_hints_before(&self, kept_before_ms: u64) -> BoxFuture<'static, Result<u64, StoreError>> {
        let mut hints = self.hints.lock();
        let before = hints.len();
        hints.retain(|_, h| h.counted || h.kept_at_ms >= kept_before_ms);
        let dropped = (before - hints.len()) as u64;
        drop(hints);
        self.rare(dropped)
    }

    fn hint_totals(&self) -> Vec<(NodeNum, HintTotals)> {
        let mut totals: BTreeMap<NodeNum, HintTotals> = BTreeMap::new();
        for (target, _, _) in self.hints.lock().keys() {
            totals.entry(*target).or_default().count += 1;
        }
        totals.into_iter().collect()
    }

    fn totals(&self) -> StoreTotals {
        let tombstones = self.records.lock().values().filter(|(_, record)| record.is_tombstone()).count() as u64;
        StoreTotals { tombstones, ..StoreTotals::default() }
    }

    fn scan(&self, scan: Scan) -> BoxFuture<'static, Result<ScanPage, StoreError>> {
        let records = self.records.lock();
        let here = records.iter().filter(|(_, (token, _))| scan.slots.contains(token.slot()));
        let damaged = self.damaged.lock();
        let told = |key, record| (!damaged.contains(key)).then(|| Outline::of(record, scan.values));
        let held = here.map(|(key, (_, record))| (key.clone(), told(key, record)));
        let page = tell_all(held, &scan);
        drop((records, damaged));
        self.rare(page)
    }

    fn changes(&self) -> Arc<ChangeLog> {
        Arc::clone(&self.changes)
    }

    fn slot_sums(&self) -> Vec<Option<Sum>> {
        let mut sums = vec![Sum::default(); Slot::COUNT];
        for (token, record) in self.records.lock().values() {
            sums[token.slot().index()].add(Sum::of(*token, &record.version, record.checksum));
        }
        sums.into_iter().map(Some).collect()
    }

    fn leaf_sums(&self, slot: Slot) -> Option<Vec<Sum>> {
        let mut sums = vec![Sum::default(); Leaf::IN_SLOT];
        for (token, record) in self.records.lock().values().filter(|(token, _)| token.slot() == slot) {
            sums[Leaf::of(*token).within_slot()].add(Sum::of(*token, &record.version, record.checksum));
        }
        Some(sums)
    }

    fn count_anew(&self, _: Slot) {}

    fn condemn(&self, _: &str) {
        self.condemned.store(true, Ordering::SeqCst);
    }

    fn discard(&self, slot: Slot, rows: Vec<(i64, Vec<u8>)>) -> BoxFuture<'static, Result<u64, StoreError>> {
        let keys = rows.into_iter().filter_map(|(_, name)| Key::new(name).ok());
        let mut removed = 0;
        for key in keys.filter(|key| self.damaged.lock().remove(key)) {
            self.records.lock().remove(&key);
            removed += 1;
        }
        let before = self.strays.lock().len();
        self.strays.lock().retain(|(of, _)| *of != slot);
        self.rare(removed + (before - self.strays.lock().len()) as u64)
    }

    fn holdings(&self, slot: Slot, leaves: Vec<Leaf>) -> BoxFuture<'static, Result<Holdings, StoreError>> {
        let records = self.records.lock();
        let wanted = |token: &Token| token.slot() == slot && leaves.contains(&Leaf::of(*token));
        let (mut held, damaged) = (Holdings::default(), self.damaged.lock().clone());
        for (key, (token, record)) in records.iter().filter(|(_, (token, _))| wanted(token)) {
            if damaged.contains(key) {
                held.damaged.push(key.clone());
            } else {
                held.add(*token, key.clone(), record);
            }
            if self.lost.lock().contains(key) {
                held.lost.push(key.as_bytes().to_vec());
            }
        }
        drop(records);
        let strays = self.strays.lock();
        held.strays =
            strays.iter().filter(|(of, _)| *of == slot).map(|(_, name)| (slot.0.into(), name.clone())).collect();
        drop(strays);
        held.intact.sort_unstable();
        self.listed.fetch_add(held.intact.len() as u64, Ordering::SeqCst);
        self.rare(held)
    }

    fn records(&self, keys: Vec<(Slot, Key)>) -> BoxFuture<'static, Result<RecordPage, StoreError>> {
        let (mut found, mut looked_up, mut bytes) = (Vec::new(), 0, 0);
        for (_, key) in keys {
            if bytes >= PAGE_BYTES {
                break;
            }
            looked_up += 1;
            if let Some(record) = self.record(&key) {
                bytes += record.content_bytes();
                found.push((key, record));
            }
        }
        self.rare((found, looked_up))
    }

    fn identity(&self) -> Identity {
        let node = self.node.unwrap_or(NodeNum(1));
        Identity { generation: 1, ..Identity::fresh(node, InstanceId(Uuid::from_u128(node.0.into()))) }
    }

    fn save_identity(&self, _: Identity) -> BoxFuture<'static, Result<(), StoreError>> {
        self.rare(())
    }

    fn topology(&self) -> BoxFuture<'static, Result<Option<Topology>, StoreError>> {
        self.rare(None)
    }

    fn save_topology(&self, _: Arc<Topology>) -> BoxFuture<'static, Result<(), StoreError>> {
        self.rare(())
    }

    fn proposal(&self) -> BoxFuture<'static, Result<Option<Topology>, StoreError>> {
        self.rare(None)
    }

    fn save_proposal(&self, _: Arc<Topology>) -> BoxFuture<'static, Result<(), StoreError>> {
        self.rare(())
    }

    fn vote(&self) -> BoxFuture<'static, Result<Option<Vote>, StoreError>> {
        self.rare(None)
    }

    fn save_vote(&self, _: Vote) -> BoxFuture<'static, Result<(), StoreError>> {
        self.rare(())
    }

    fn slot_page(&self, slot: Slot, _: Option<Key>) -> BoxFuture<'static, Result<SlotPage, StoreError>> {
        self.rare(self.page_of(slot))
    }

    fn absorb(&self, entries: Vec<(Token, SlotEntry)>) -> BoxFuture<'static, Result<(), StoreError>> {
        entries.into_iter().for_each(|(token, entry)| self.take_over(token, entry));
        self.rare(())
    }

    fn drop_covered(&self, floor: Floor, keys: Vec<(Token, Key)>) -> BoxFuture<'static, Result<u64, StoreError>> {
        self.rare(self.forget_covered(&floor, &keys))
    }

    fn drop_slots(&self, slots: SlotSet) -> BoxFuture<'static, Result<u64, StoreError>> {
        self.rare(self.forget_slots(&slots))
    }

    fn clock_reservation(&self) -> BoxFuture<'static, Result<Hlc, StoreError>> {
        self.rare(*self.reserved.lock())
    }

    fn reserve_clock(&self, until: Hlc) -> BoxFuture<'static, Result<(), StoreError>> {
        if self.failing.lock().is_none() {
            *self.reserved.lock() = until;
            self.reservations.fetch_add(1, Ordering::SeqCst);
        }
        self.rare(())
    }

    fn release_clock(&self, last: Hlc) -> BoxFuture<'static, Result<(), StoreError>> {
        *self.reserved.lock() = last;
        self.rare(())
    }

    fn end_due(&self, now: Hlc, limit: usize) -> BoxFuture<'static, Result<Vec<(Key, Record)>, StoreError>> {
        let mut records = self.records.lock();
        let due = records.iter_mut().filter(|(_, (_, record))| record.has_ended(now)).take(limit);
        let ended = due.filter_map(|(key, (_, record))| {
            *record = record.end(key)?;
            Some((key.clone(), record.clone()))
        });
        let ended = ended.collect();
        drop(records);
        self.rare(ended)
    }

    fn failed(&self) -> BoxFuture<'static, StoreError> {
        std::future::pending().boxed()
    }
}

/// A topology of nodes 1 to `nodes`, slot s on `rf` of them from node s mod `nodes` on.
pub(crate) fn topology(epoch: u64, nodes: u16, rf: u8) -> Arc<Topology> {
    let member = |n: u16| Member {
        node: NodeNum(n),
        instance: InstanceId(Uuid::from_u128(n.into())),
        writer: Writer(n.into()),
        zone: None,
        weight: 1,
        mesh_address: format!("127.0.0.1:{}", 50050 + n),
        http_address: format!("127.0.0.1:{}", 8000 + n),
    };
    let homes = |slot: Slot| (0..u16::from(rf)).map(|i| NodeNum((u16::from(slot.0) + i) % nodes + 1)).collect();
    Arc::new(Topology {
        epoch: Epoch(epoch),
        cluster_id: ClusterId(Uuid::from_u128(7)),
        rf,
        members: (1..=nodes).map(member).collect(),
        ring: Slot::all().map(homes).collect(),
        next_writer: Writer(u32::from(nodes) + 1),
        moving: None,
    })
}
