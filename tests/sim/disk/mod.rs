//! A simulated disk. It outlives its node: [`Disk`] is what is on it, [`SimStore`] is one life's way to it.
//!
//! A batch is applied when its virtual sync ends and answered a moment later, so a crash falls before it, or after it
//! and before the answers. A disk may be full for a while, and be wiped: then it is another instance's.

mod backups;
mod looks;
mod purge;
mod rows;
mod sql;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use a3::ports::{
    ChangeLog, Clock, Entropy, Hint, HintTotals, Holdings, RecordPage, Refusal, ReplicaReply, ReplicaRequest,
    SlotEntry, SlotPage, Spawn, Store, StoreError, StoreTotals, Submission, Submissions,
};
use a3::types::{
    Floor, Hlc, Identity, InstanceId, Key, KeyChange, Leaf, NodeNum, Record, Scan, ScanPage, Slot, SlotSet, Sum, Token,
    TokenSeed, Topology, Version, Vote,
};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::sleep;

use crate::history::{Witness, text_of};
use crate::machine::{Life, Seeded, SimClock, Trace};
use crate::network::Socket;

use rows::{MapRows, Rows};
use sql::SqlRows;

/// What is on the disk.
pub(crate) struct Content {
    rows: Box<dyn Rows>,
    identity: Identity,
    topology: Option<Arc<Topology>>,
    proposal: Option<Topology>,
    vote: Option<Vote>,
    reserved: Hlc,
}

impl Content {
    fn blank(node: NodeNum, sql: bool, random: &Seeded) -> Self {
        let identity = Identity::fresh(node, InstanceId(random.uuid()));
        let rows: Box<dyn Rows> = if sql { Box::new(SqlRows::new(node)) } else { Box::new(MapRows::default()) };
        Self { rows, identity, topology: None, proposal: None, vote: None, reserved: Hlc::ZERO }
    }

    /// What tokens are seeded with, where the time of some value is up.
    fn any_due(&self, now: Hlc) -> Option<TokenSeed> {
        self.seed().filter(|seed| self.rows.any_due(*seed, now))
    }

    /// There are no records before there is a cluster.
    fn seed(&self) -> Option<TokenSeed> {
        self.identity.cluster.map(TokenSeed::of)
    }
}

/// A node's disk.
pub(crate) struct Disk {
    /// Its machine's, by which the trace names it.
    at: Socket,
    sql: bool,
    content: Mutex<Content>,
    full: AtomicBool,
    /// A batch is on disk, and not answered yet.
    pub(crate) synced: Notify,
    /// Most syncs are done within so many milliseconds.
    sync_ms: u64,
    random: Arc<Seeded>,
    witness: Arc<Witness>,
    trace: Arc<Trace>,
    /// Slots whose floors are told of in the trace.
    pub(crate) watched: Mutex<BTreeSet<Slot>>,
    batches: Mutex<u64>,
    /// Backups of it, oldest first: their records.
    backups: Mutex<Vec<Vec<(Token, SlotEntry)>>>,
}

impl Disk {
    pub(crate) fn new(
        (node, at): (NodeNum, Socket),
        sql: bool,
        sync_ms: u64,
        random: Arc<Seeded>,
        witness: Arc<Witness>,
        trace: Arc<Trace>,
    ) -> Arc<Self> {
        let content = Mutex::new(Content::blank(node, sql, &random));
        let (full, synced, watched, batches, backups) = Default::default();
        Arc::new(Self { at, sql, content, full, synced, sync_ms, random, witness, trace, watched, batches, backups })
    }

    /// Committed here.
    pub(crate) fn topology(&self) -> Option<Arc<Topology>> {
        self.content.lock().topology.clone()
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }

    fn is_full(&self) -> bool {
        self.full.load(Ordering::SeqCst)
    }

    /// How long a sync takes this time.
    fn sync_time(&self) -> Duration {
        let slow = self.random.per_mille(10);
        Duration::from_millis(if slow { 20 + self.random.below(200) } else { 1 + self.random.below(self.sync_ms) })
    }

    /// The end of a sync.
    fn apply(&self, wall_ms: u64, batch: &[(Token, ReplicaRequest)]) -> Vec<ReplicaReply> {
        if self.is_full() {
            self.trace.note(format_args!("{} is full", self.at));
            return vec![ReplicaReply::Refused(Refusal::DiskFull); batch.len()];
        }
        self.back_up();
        let replies = self.content.lock().rows.apply(wall_ms, batch);
        batch.iter().zip(&replies).for_each(|((_, request), reply)| self.note(request, reply));
        replies
    }

    fn note(&self, request: &ReplicaRequest, reply: &ReplicaReply) {
        let (me, trace) = (self.at, &self.trace);
        match (request, reply) {
            (ReplicaRequest::Write { key, record }, ReplicaReply::Stored { .. }) => {
                self.witness.stored(key, record);
                trace.note(format_args!("{me} stores {key:?} {:?} {:?}", record.version, text_of(record)));
            }
            (ReplicaRequest::Hint { target, key, record, counted }, ReplicaReply::Hinted) => {
                self.witness.stored(key, record);
                trace.note(format_args!("{me} keeps {key:?} {:?} for {target} counted={counted}", record.version));
            }
            (ReplicaRequest::Prepare { key, ballot }, ReplicaReply::Promised(promise)) => {
                let record = promise.record.as_ref().map(|r| r.version);
                let accepted = promise.accepted.as_ref().map(|a| (a.ballot, a.version()));
                trace.note(format_args!("{me} promises {key:?} {ballot:?}: holds {record:?}, accepted {accepted:?}"));
            }
            (ReplicaRequest::Accept { key, accepted }, ReplicaReply::Accepted) => {
                self.witness.accepted(key, accepted);
                let (ballot, version, op) = (accepted.ballot, accepted.version(), accepted.op);
                let text = accepted.record.as_ref().and_then(text_of);
                trace.note(format_args!("{me} accepts {key:?} {ballot:?}: {version:?} {text:?} of {op}"));
            }
            (ReplicaRequest::Prepare { key, ballot }, ReplicaReply::Outbid { promised }) => {
                trace.note(format_args!("{me} promises not {key:?} {ballot:?}, but {promised:?}"));
            }
            (ReplicaRequest::Accept { key, accepted }, ReplicaReply::Outbid { promised }) => {
                trace.note(format_args!("{me} accepts not {key:?} {:?}: promised {promised:?}", accepted.ballot));
            }
            _ => {}
        }
    }
}

/// The store of one life.
pub(crate) struct SimStore {
    disk: Arc<Disk>,
    life: Arc<Life>,
    queue: Arc<Queue>,
    changes: Arc<ChangeLog>,
}

/// What waits for the writer.
enum Job {
    Request(Submission),
    Change(Change),
}

/// Done at the end of a sync, or not where the disk is full; what it gives back tells the caller a moment later.
type Change = Box<dyn FnOnce(Option<&mut Content>) -> Told + Send>;
type Told = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    writes: Mutex<Vec<Job>>,
    reads: Mutex<Vec<Submission>>,
    wrote: Notify,
    read: Notify,
}

impl SimStore {
    pub(crate) fn open(disk: Arc<Disk>, clock: Arc<SimClock>, life: Arc<Life>) -> Arc<Self> {
        let boot = {
            let identity = &mut disk.content.lock().identity;
            identity.generation += 1;
            identity.generation
        };
        let store = Arc::new(Self { disk, life, queue: Arc::default(), changes: Arc::new(ChangeLog::new(boot)) });
        store.life.spawn(write_batches(store.clone(), clock).boxed());
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
            if disk.is_full() {
                return Err(StoreError::DiskFull);
            }
            let changed = change(&mut disk.content.lock());
            sleep(Duration::from_millis(1)).await;
            Ok(changed)
        }
        .boxed()
    }

    /// A change that keeps its place among the requests.
    fn ordered<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Content) -> T + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let (tell, told) = oneshot::channel();
        if self.life.is_alive() {
            let change: Change = Box::new(move |content| {
                let changed = content.map(change).ok_or(StoreError::DiskFull);
                Box::new(move || drop(tell.send(changed)))
            });
            self.queue.writes.lock().push(Job::Change(change));
            self.queue.wrote.notify_one();
        }
        async move { told.await.unwrap_or(Err(StoreError::Closing)) }.boxed()
    }

    fn look<T: Send + 'static>(&self, look: impl FnOnce(&Content) -> T) -> BoxFuture<'static, Result<T, StoreError>> {
        let seen = look(&self.disk.content.lock());
        async move { Ok(seen) }.boxed()
    }
}

/// The writer: what came while the batch before was synced is the next one.
async fn write_batches(store: Arc<SimStore>, clock: Arc<SimClock>) {
    let SimStore { disk, life, queue, changes } = &*store;
    loop {
        let batch = std::mem::take(&mut *queue.writes.lock());
        if batch.is_empty() {
            queue.wrote.notified().await;
            continue;
        }
        sleep(disk.sync_time()).await;
        let mut told: Vec<Told> = Vec::new();
        let mut jobs = batch.into_iter().peekable();
        while let Some(job) = jobs.next() {
            match job {
                Job::Change(change) => {
                    let full = disk.is_full();
                    told.push(change(Some(&mut *disk.content.lock()).filter(|_| !full)));
                }
                Job::Request(first) => {
                    let mut together = vec![first];
                    while let Some(Job::Request(next)) = jobs.next_if(|job| matches!(job, Job::Request(_))) {
                        together.push(next);
                    }
                    let (requests, callers): (Vec<_>, Vec<_>) =
                        together.into_iter().map(|s| ((s.token, s.request), s.reply_to)).unzip();
                    let replies = disk.apply(clock.wall_ms(), &requests);
                    changes.add(requests.iter().zip(&replies).filter_map(|((_, request), reply)| kept(request, reply)));
                    for (caller, reply) in callers.into_iter().zip(replies) {
                        told.push(Box::new(move || caller.send(Ok(reply))));
                    }
                }
            }
        }
        disk.synced.notify_waiters();
        sleep(Duration::from_millis(1)).await;
        if !life.is_alive() {
            return;
        }
        told.into_iter().for_each(|tell| tell());
    }
}

/// What a request changed.
fn kept(request: &ReplicaRequest, reply: &ReplicaReply) -> Option<KeyChange> {
    match (request, reply) {
        (ReplicaRequest::Write { key, record }, ReplicaReply::Stored { .. })
        | (ReplicaRequest::Hint { key, record, .. }, ReplicaReply::Hinted) => Some(KeyChange::of(key, record)),
        _ => None,
    }
}

async fn read_batches(disk: Arc<Disk>, queue: Arc<Queue>) {
    loop {
        let batch = std::mem::take(&mut *queue.reads.lock());
        if batch.is_empty() {
            queue.read.notified().await;
            continue;
        }
        for Submission { token, request, reply_to, .. } in batch {
            if let ReplicaRequest::Read { key, part, hints } = request {
                let reply = disk.content.lock().rows.read(token.slot(), &key, part, hints);
                reply_to.send(Ok(reply));
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
            self.queue.writes.lock().extend(writes.into_iter().map(Job::Request));
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
        self.look(|content| content.rows.hints(target, after.as_ref(), limit))
    }

    fn forget_hints(
        &self,
        delivered: Vec<(NodeNum, Slot, Key, Version)>,
    ) -> BoxFuture<'static, Result<(), StoreError>> {
        self.change(move |content| content.rows.forget_hints(delivered))
    }

    fn drop_hints_before(&self, kept_before_ms: u64) -> BoxFuture<'static, Result<u64, StoreError>> {
        self.change(move |content| content.rows.drop_hints_before(kept_before_ms))
    }

    fn hint_totals(&self) -> Vec<(NodeNum, HintTotals)> {
        self.disk.content.lock().rows.hint_totals()
    }

    fn totals(&self) -> StoreTotals {
        StoreTotals { writable: true, counted: true, ..StoreTotals::default() }
    }

    fn scan(&self, scan: Scan) -> BoxFuture<'static, Result<ScanPage, StoreError>> {
        self.look(move |content| content.seed().map(|seed| content.rows.scan(seed, &scan)).unwrap_or_default())
    }

    fn changes(&self) -> Arc<ChangeLog> {
        Arc::clone(&self.changes)
    }

    fn slot_sums(&self) -> Vec<Option<Sum>> {
        let content = self.disk.content.lock();
        content.seed().map_or_else(|| vec![Some(Sum::default()); Slot::COUNT], |seed| content.rows.slot_sums(seed))
    }

    fn leaf_sums(&self, slot: Slot) -> Option<Vec<Sum>> {
        let content = self.disk.content.lock();
        let none = || Some(vec![Sum::default(); Leaf::IN_SLOT]);
        content.seed().map_or_else(none, |seed| content.rows.leaf_sums(seed, slot))
    }

    /// Its sums are of its rows.
    fn count_anew(&self, _: Slot) {}

    /// Memory is not damaged.
    fn condemn(&self, _: &str) {}

    fn discard(&self, _: Slot, _: Vec<(i64, Vec<u8>)>) -> BoxFuture<'static, Result<u64, StoreError>> {
        // Memory is not damaged.
        self.look(|_| 0)
    }

    fn holdings(&self, slot: Slot, leaves: Vec<Leaf>) -> BoxFuture<'static, Result<Holdings, StoreError>> {
        self.look(|content| content.seed().map(|seed| content.rows.holdings(seed, slot, &leaves)).unwrap_or_default())
    }

    fn records(&self, keys: Vec<(Slot, Key)>) -> BoxFuture<'static, Result<RecordPage, StoreError>> {
        self.look(|content| content.rows.records(&keys))
    }

    fn identity(&self) -> Identity {
        self.disk.content.lock().identity.clone()
    }

    fn save_identity(&self, identity: Identity) -> BoxFuture<'static, Result<(), StoreError>> {
        self.change(move |content| content.identity = identity)
    }

    fn topology(&self) -> BoxFuture<'static, Result<Option<Topology>, StoreError>> {
        self.look(|content| content.topology.as_deref().cloned())
    }

    fn save_topology(&self, topology: Arc<Topology>) -> BoxFuture<'static, Result<(), StoreError>> {
        self.ordered(move |content| {
            if content.topology.as_ref().is_none_or(|t| t.epoch < topology.epoch) {
                content.topology = Some(topology);
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

    fn vote(&self) -> BoxFuture<'static, Result<Option<Vote>, StoreError>> {
        self.look(|content| content.vote.clone())
    }

    fn save_vote(&self, vote: Vote) -> BoxFuture<'static, Result<(), StoreError>> {
        self.change(move |content| content.vote = Some(vote))
    }

    fn slot_page(&self, slot: Slot, after: Option<Key>) -> BoxFuture<'static, Result<SlotPage, StoreError>> {
        assert!(after.is_none(), "few keys are one page");
        self.look(|content| {
            let entries = content.seed().map(|seed| content.rows.slot(seed, slot)).unwrap_or_default();
            SlotPage { entries, floor: content.rows.kept(slot).floor, next: None }
        })
    }

    fn absorb(&self, entries: Vec<(Token, SlotEntry)>) -> BoxFuture<'static, Result<(), StoreError>> {
        let (witness, trace, me) = (self.disk.witness.clone(), self.disk.trace.clone(), self.disk.at);
        let changes = self.changes();
        self.change(move |content| {
            for (_, (key, record, register)) in &entries {
                record.iter().for_each(|record| witness.stored(key, record));
                changes.add(record.iter().map(|record| KeyChange::of(key, record)));
                trace
                    .note(format_args!("{me} absorbs {key:?}: {:?}, {register:?}", record.as_ref().map(|r| r.version)));
            }
            content.rows.absorb(&entries);
        })
    }

    fn drop_covered(&self, floor: Floor, keys: Vec<(Token, Key)>) -> BoxFuture<'static, Result<u64, StoreError>> {
        let (trace, me) = (self.disk.trace.clone(), self.disk.at);
        self.change(move |content| {
            trace.note(format_args!("{me} drops what {floor:?} covers of {keys:?}"));
            content.rows.drop_covered(&floor, &keys)
        })
    }

    fn drop_slots(&self, slots: SlotSet) -> BoxFuture<'static, Result<u64, StoreError>> {
        self.drop_each(slots)
    }

    fn clock_reservation(&self) -> BoxFuture<'static, Result<Hlc, StoreError>> {
        self.look(|content| content.reserved)
    }

    fn reserve_clock(&self, until: Hlc) -> BoxFuture<'static, Result<(), StoreError>> {
        self.change(move |content| content.reserved = until)
    }

    fn release_clock(&self, last: Hlc) -> BoxFuture<'static, Result<(), StoreError>> {
        self.change(move |content| content.reserved = last)
    }

    fn end_due(&self, now: Hlc, limit: usize) -> BoxFuture<'static, Result<Vec<(Key, Record)>, StoreError>> {
        let Some(seed) = self.disk.content.lock().any_due(now) else { return async { Ok(Vec::new()) }.boxed() };
        let (witness, trace, me) = (self.disk.witness.clone(), self.disk.trace.clone(), self.disk.at);
        let changes = self.changes();
        self.change(move |content| {
            let ended = content.rows.end_due(seed, now, limit);
            changes.add(ended.iter().map(|(key, end)| KeyChange::of(key, end)));
            for (key, end) in &ended {
                witness.stored(key, end);
                trace.note(format_args!("{me} stores {key:?} {:?}, as its time is up", end.version));
            }
            ended
        })
    }

    fn failed(&self) -> BoxFuture<'static, StoreError> {
        std::future::pending().boxed()
    }
}
