//! A simulated disk. It outlives its node: [`Disk`] is what is on it, [`SimStore`] is one life's way to it.
//!
//! Records and hints follow the rules of `protocol::replica`, as storage does. A batch is applied when its virtual sync
//! ends and answered a moment later, so a crash falls before it, or after it and before the answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use a3::ports::{
    Clock, Entropy, Hint, HintTotals, ReadPart, ReplicaReply, ReplicaRequest, Seen, Spawn, Store, StoreError,
    StoreTotals, Submission, Submissions,
};
use a3::protocol::replica::{self, HintRule, StoredRow, WriteRule};
use a3::types::{Floor, Hlc, Identity, InstanceId, Key, NodeNum, Record, Slot, Topology, Version};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::history::Witness;
use crate::machine::{Life, Seeded, SimClock, Trace};

pub(crate) type HintAt = (NodeNum, Slot, Key);

/// What is on the disk.
pub(crate) struct Content {
    pub(crate) records: BTreeMap<Key, Record>,
    pub(crate) hints: BTreeMap<HintAt, Hint>,
    identity: Identity,
    topology: Option<Topology>,
    proposal: Option<Topology>,
    reserved: Hlc,
}

/// A node's disk.
pub(crate) struct Disk {
    pub(crate) node: NodeNum,
    pub(crate) content: Mutex<Content>,
    /// Most syncs are done within so many milliseconds.
    sync_ms: u64,
    random: Arc<Seeded>,
    witness: Arc<Witness>,
    trace: Arc<Trace>,
}

impl Disk {
    pub(crate) fn new(
        node: NodeNum,
        sync_ms: u64,
        random: Arc<Seeded>,
        witness: Arc<Witness>,
        trace: Arc<Trace>,
    ) -> Arc<Self> {
        let identity = Identity {
            node,
            instance: InstanceId(random.uuid()),
            cluster: None,
            generation: 0,
            known_addresses: Vec::new(),
        };
        let content = Content {
            records: BTreeMap::new(),
            hints: BTreeMap::new(),
            identity,
            topology: None,
            proposal: None,
            reserved: Hlc::ZERO,
        };
        Arc::new(Self { node, content: Mutex::new(content), sync_ms, random, witness, trace })
    }

    /// How long a sync takes this time.
    fn sync_time(&self) -> Duration {
        let slow = self.random.per_mille(10);
        Duration::from_millis(if slow { 20 + self.random.below(200) } else { 1 + self.random.below(self.sync_ms) })
    }

    fn write(&self, key: &Key, record: Record) -> ReplicaReply {
        let mut content = self.content.lock();
        let stored = content.records.get(key);
        let seen = stored.map(|r| Seen::of(r, Hlc::ZERO));
        match (replica::write(stored.map(StoredRow::of).as_ref(), &Floor::default(), &record), seen) {
            (WriteRule::Dominated | WriteRule::Conflict { replace: false }, Some(by)) => ReplicaReply::Dominated { by },
            (_, replaced) => {
                self.witness.stored(key, &record);
                self.trace.note(format_args!("{} stores {key:?} {:?}", self.node, record.version));
                content.records.insert(key.clone(), record);
                ReplicaReply::Stored { replaced }
            }
        }
    }

    fn hint(&self, hint: Hint) -> ReplicaReply {
        let mut content = self.content.lock();
        let at = (hint.target, hint.slot, hint.key.clone());
        let kept = content.hints.get(&at).map(|h| (h.record.version, h.counted));
        match replica::hint(kept, hint.record.version, hint.counted, 1, u64::MAX) {
            HintRule::Keep { counted } => {
                self.witness.stored(&hint.key, &hint.record);
                let (target, key, version) = (hint.target, &hint.key, hint.record.version);
                self.trace.note(format_args!("{} keeps {key:?} {version:?} for {target} counted={counted}", self.node));
                content.hints.insert(at, Hint { counted, ..hint });
            }
            HintRule::Promote => drop(content.hints.get_mut(&at).map(|h| h.counted = true)),
            HintRule::Kept | HintRule::Full => {}
        }
        ReplicaReply::Hinted
    }

    fn read(&self, key: &Key, part: ReadPart, hints: bool) -> ReplicaReply {
        let content = self.content.lock();
        let kept = content.hints.values().filter(|h| hints && h.key == *key).map(|h| &h.record);
        let newest = content.records.get(key).into_iter().chain(kept).reduce(|a, b| if b.beats(a) { b } else { a });
        let floor = Floor::default();
        match part {
            ReadPart::Record => ReplicaReply::Record { record: newest.cloned(), floor },
            ReadPart::Version => ReplicaReply::Version { seen: newest.map(|r| Seen::of(r, Hlc::ZERO)), floor },
        }
    }
}

/// The store of one life.
pub(crate) struct SimStore {
    disk: Arc<Disk>,
    clock: Arc<SimClock>,
    life: Arc<Life>,
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    writes: Mutex<Vec<Submission>>,
    reads: Mutex<Vec<Submission>>,
    wrote: Notify,
    read: Notify,
}

impl SimStore {
    pub(crate) fn open(disk: Arc<Disk>, clock: Arc<SimClock>, life: Arc<Life>) -> Arc<Self> {
        disk.content.lock().identity.generation += 1;
        let store = Arc::new(Self { disk, clock, life, queue: Arc::default() });
        store.life.spawn(write_batches(store.disk.clone(), store.clock.clone(), store.queue.clone()).boxed());
        store.life.spawn(read_batches(store.disk.clone(), store.queue.clone()).boxed());
        store
    }

    /// A rare change: on disk when it answers, unless the node dies first.
    fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Content) -> T + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let (disk, life) = (self.disk.clone(), self.life.clone());
        async move {
            sleep(disk.sync_time()).await;
            if !life.is_alive() {
                return Err(StoreError::Closing);
            }
            let changed = change(&mut disk.content.lock());
            sleep(Duration::from_millis(1)).await;
            Ok(changed)
        }
        .boxed()
    }

    fn look<T: Send + 'static>(&self, look: impl FnOnce(&Content) -> T) -> BoxFuture<'static, Result<T, StoreError>> {
        let seen = look(&self.disk.content.lock());
        async move { Ok(seen) }.boxed()
    }
}

/// The writer: what came while the batch before was synced is the next one.
async fn write_batches(disk: Arc<Disk>, clock: Arc<SimClock>, queue: Arc<Queue>) {
    loop {
        let batch = std::mem::take(&mut *queue.writes.lock());
        if batch.is_empty() {
            queue.wrote.notified().await;
            continue;
        }
        sleep(disk.sync_time()).await;
        let mut answers = Vec::with_capacity(batch.len());
        for Submission { token, request, reply_to } in batch {
            let reply = match request {
                ReplicaRequest::Write { key, record } => disk.write(&key, record),
                ReplicaRequest::Hint { target, key, record, counted } => {
                    let kept_at_ms = clock.wall_ms();
                    disk.hint(Hint { target, slot: token.slot(), key, record, counted, kept_at_ms })
                }
                ReplicaRequest::Read { key, part, hints } => disk.read(&key, part, hints),
                ReplicaRequest::Prepare { .. } | ReplicaRequest::Accept { .. } => todo!(),
            };
            answers.push((reply_to, reply));
        }
        sleep(Duration::from_millis(1)).await;
        answers.into_iter().for_each(|(reply_to, reply)| reply_to.send(Ok(reply)));
    }
}

async fn read_batches(disk: Arc<Disk>, queue: Arc<Queue>) {
    loop {
        let batch = std::mem::take(&mut *queue.reads.lock());
        if batch.is_empty() {
            queue.read.notified().await;
            continue;
        }
        for Submission { request, reply_to, .. } in batch {
            if let ReplicaRequest::Read { key, part, hints } = request {
                reply_to.send(Ok(disk.read(&key, part, hints)));
            }
        }
    }
}

impl Store for SimStore {
    fn submit(&self, batch: Submissions) {
        if !self.life.is_alive() {
            return;
        }
        let (writes, reads): (Vec<_>, Vec<_>) = batch.into_iter().partition(|s| s.request.writes());
        if !writes.is_empty() {
            self.queue.writes.lock().extend(writes);
            self.queue.wrote.notify_one();
        }
        if !reads.is_empty() {
            self.queue.reads.lock().extend(reads);
            self.queue.read.notify_one();
        }
    }

    fn observe(&self, _: Hlc) {}

    fn hints(
        &self,
        target: NodeNum,
        after: Option<(Slot, Key)>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<Hint>, StoreError>> {
        self.look(|content| {
            let of_target = content.hints.values().filter(|h| h.target == target);
            let fresh = of_target.filter(|h| after.as_ref().is_none_or(|(s, k)| (h.slot, &h.key) > (*s, k)));
            fresh.take(limit).cloned().collect()
        })
    }

    fn forget_hints(
        &self,
        delivered: Vec<(NodeNum, Slot, Key, Version)>,
    ) -> BoxFuture<'static, Result<(), StoreError>> {
        self.change(move |content| {
            for (target, slot, key, version) in delivered {
                let at = (target, slot, key);
                if content.hints.get(&at).is_some_and(|h| h.record.version == version) {
                    content.hints.remove(&at);
                }
            }
        })
    }

    fn drop_hints_before(&self, kept_before_ms: u64) -> BoxFuture<'static, Result<u64, StoreError>> {
        self.change(move |content| {
            let before = content.hints.len();
            content.hints.retain(|_, h| h.counted || h.kept_at_ms >= kept_before_ms);
            (before - content.hints.len()) as u64
        })
    }

    fn hint_totals(&self) -> Vec<(NodeNum, HintTotals)> {
        let mut totals: BTreeMap<NodeNum, HintTotals> = BTreeMap::new();
        for (target, _, _) in self.disk.content.lock().hints.keys() {
            totals.entry(*target).or_default().count += 1;
        }
        totals.into_iter().collect()
    }

    fn totals(&self) -> StoreTotals {
        StoreTotals { writable: true, counted: true, ..StoreTotals::default() }
    }

    fn scan(&self, _: Slot, _: Option<Key>, _: usize) -> BoxFuture<'static, Result<Vec<(Key, Record)>, StoreError>> {
        // Nothing in node/ scans yet.
        self.look(|_| Vec::new())
    }

    fn identity(&self) -> Identity {
        self.disk.content.lock().identity.clone()
    }

    fn save_identity(&self, identity: Identity) -> BoxFuture<'static, Result<(), StoreError>> {
        self.change(move |content| content.identity = identity)
    }

    fn topology(&self) -> BoxFuture<'static, Result<Option<Topology>, StoreError>> {
        self.look(|content| content.topology.clone())
    }

    fn save_topology(&self, topology: Arc<Topology>) -> BoxFuture<'static, Result<(), StoreError>> {
        self.change(move |content| {
            if content.topology.as_ref().is_none_or(|t| t.epoch < topology.epoch) {
                content.topology = Some((*topology).clone());
                content.proposal = None;
            }
        })
    }

    fn proposal(&self) -> BoxFuture<'static, Result<Option<Topology>, StoreError>> {
        self.look(|content| content.proposal.clone())
    }

    fn save_proposal(&self, topology: Arc<Topology>) -> BoxFuture<'static, Result<(), StoreError>> {
        self.change(move |content| content.proposal = Some((*topology).clone()))
    }

    fn clock_reservation(&self) -> BoxFuture<'static, Result<Hlc, StoreError>> {
        self.look(|content| content.reserved)
    }

    fn reserve_clock(&self, until: Hlc) -> BoxFuture<'static, Result<(), StoreError>> {
        self.change(move |content| content.reserved = until)
    }

    fn failed(&self) -> BoxFuture<'static, StoreError> {
        std::future::pending().boxed()
    }
}
