//! Opening and closing a store, and the port over its threads.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rusqlite::{Connection, InterruptHandle};
use tokio::sync::oneshot;

use super::backup::{Backups, Source};
use super::book::Book;
use super::checkpoint::Checkpointer;
use super::commit::{AnswerTo, Job, WriteQueue, Writer, change_through};
use super::connection::{self, Durability, Role};
use super::data_dir::{DataDir, has_peers};
use super::engine::{Change, Engine, Outcome, change_of};
use super::holdings::{self, Gathered, Wanted};
use super::meters::Meters;
use super::migrations::MigrationError;
use super::opening::OpenError;
use super::read::{self, Read, ReadQueue, Reader};
use super::status::Status;
use super::threads::{join, thread};
use super::{count, dropping, ends, examine, facts, floors::Floors, identity, opening, scan, transfer};
use crate::ports::{
    Backup, BackupError, ChangeLog, Clock, Entropy, Hint, HintTotals, Holdings, RecordPage, ReplicaReply, SlotEntry,
    SlotPage, Store, StoreError, StoreTotals, Submission, Submissions,
};
use crate::types::{
    Floor, Hlc, Identity, Key, Leaf, NodeNum, Record, Scan, ScanPage, Slot, SlotSet, Sum, Token, TokenSeed, Topology,
    Version, Vote,
};

/// Most reader threads.
const READERS_MAX: usize = 4;
/// Changes, and reads, that may wait for the disk; more are refused as `Overloaded`.
const WAITING_MAX: usize = 65_536;
/// Hints dropped in one transaction, so that writes get in between.
const DROP_STEP: u64 = 1_000;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Created where it is missing. One process at a time has it.
    pub data_dir: PathBuf,
    /// Whose directory it must be, or becomes.
    pub node: NodeNum,
    pub durability: Durability,
    /// Hints kept here together, in bytes of keys and contents; more are refused.
    pub hint_bytes_max: u64,
    /// Cap of the write-ahead log, in bytes. The log passes it only while somebody holds a snapshot (a
    /// backup that copies pages, a person with `sqlite3`), and by the length of one batch.
    pub wal_bytes_max: u64,
}

/// A reader for two processors: one serves more than its node's other threads can ask of it, and each more must be woken
/// instead of finding work.
fn readers() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get() / 2).clamp(1, READERS_MAX)
}

/// The store of a node, with its threads.
pub struct SqliteStore {
    pub(super) writes: Arc<WriteQueue>,
    pub(super) reads: Arc<ReadQueue>,
    status: Arc<Status>,
    pub(super) book: Arc<Book>,
    pub(super) floors: Arc<Floors>,
    changes: Arc<ChangeLog>,
    identity: Arc<Mutex<Identity>>,
    checkpointer: Arc<Checkpointer>,
    backups: Arc<Backups>,
    threads: Mutex<Option<Threads>>,
}

/// What ends in this order.
struct Threads {
    writer: JoinHandle<()>,
    readers: Vec<JoinHandle<()>>,
    counter: JoinHandle<()>,
    walker: Option<(InterruptHandle, JoinHandle<()>)>,
    checkpointer: JoinHandle<()>,
    /// Let go of last.
    dir: Arc<DataDir>,
}

impl SqliteStore {
    /// Opens the directory, creating what is missing, and starts the store's threads. The identity's generation grows
    /// by one. Blocks for a few syncs. Metrics go to the recorder installed by then.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(options: Options, clock: Arc<dyn Clock>, entropy: &dyn Entropy) -> Result<Arc<Self>, OpenError> {
        let dir = Arc::new(DataDir::open(&options.data_dir)?);
        let database = dir.database();
        let (identity, mut engine, walked) = opening::open(&dir, &options, clock.wall_ms(), entropy)?;
        let connect = |role| {
            connection::open(&database, role).map_err(|e| match e {
                MigrationError::Newer { found } => OpenError::NewerSchema { path: database.clone(), found },
                MigrationError::Sqlite(e) => OpenError::sqlite(&database, &e),
            })
        };
        let conns = Connections {
            readers: (0..readers()).map(|_| connect(Role::Reader)).collect::<Result<_, _>>()?,
            counter: connect(Role::Counter)?,
            checkpointer: connect(Role::Checkpointer)?,
            walker: if walked { None } else { Some(connect(Role::Counter)?) },
        };
        let status = Arc::new(Status::new(clock));
        status.set_replaceable(has_peers(&identity));
        let (book, floors) = (engine.book.clone(), engine.floors());
        let changes = Arc::new(ChangeLog::new(entropy.u64()));
        engine.tell(&changes);
        let wal = dir.wal();
        let checkpointer =
            Checkpointer::new(status.clone(), book.clone(), options.wal_bytes_max, database.clone(), wal);
        let store = Self {
            writes: Arc::default(),
            reads: Arc::default(),
            status,
            book,
            floors,
            changes,
            identity: Arc::new(Mutex::new(identity)),
            checkpointer: Arc::new(checkpointer),
            backups: Arc::default(),
            threads: Mutex::new(None),
        };
        let threads = store.start(engine, conns, dir).map_err(|source| OpenError::Io { path: database, source })?;
        *store.threads.lock() = Some(threads);
        Ok(Arc::new(store))
    }

    fn start(&self, engine: Engine, conns: Connections, dir: Arc<DataDir>) -> io::Result<Threads> {
        let status = &self.status;
        let mut readers = Vec::new();
        for conn in conns.readers {
            let (queue, book, floors) = (self.reads.clone(), self.book.clone(), engine.floors());
            let (status, identity) = (self.status.clone(), self.identity.clone());
            let reader = Reader { conn, queue, book, floors, status, identity };
            readers.push(thread("a3-reader", &self.status, move || reader.run())?);
        }
        let (book, identity, counting) = (self.book.clone(), self.identity.clone(), conns.counter);
        let counted = status.clone();
        let counter = thread("a3-counter", status, move || {
            let failed = |error: &rusqlite::Error| {
                counted.meters.met(error);
                counted.stop_if_damaged(&counted.meters);
            };
            count::run(&counting, &book, || seed_of(&identity.lock()), failed);
        })?;
        let walk = |conn: Connection| {
            let (interrupt, walked) = (conn.get_interrupt_handle(), status.clone());
            thread("a3-walker", status, move || examine::run(&conn, &walked)).map(|walker| (interrupt, walker))
        };
        let walker = conns.walker.map(walk).transpose()?;
        let (checkpointer, conn) = (self.checkpointer.clone(), conns.checkpointer);
        let checkpointing = thread("a3-checkpointer", status, move || checkpointer.run(&conn))?;
        let writer = Writer {
            engine,
            queue: self.writes.clone(),
            status: status.clone(),
            checkpointer: self.checkpointer.clone(),
        };
        let writer = thread("a3-writer", status, move || writer.run())?;
        Ok(Threads { writer, readers, counter, walker, checkpointer: checkpointing, dir })
    }

    /// Finishes what is queued, empties the log into the database, ends the threads and lets go of the directory.
    /// Requests that come later are refused as not ready. Blocks for as long as that takes; a second call does nothing.
    pub fn close(&self) {
        let Some(threads) = self.threads.lock().take() else { return };
        self.backups.close();
        self.writes.close();
        join(threads.writer);
        self.reads.close();
        threads.readers.into_iter().for_each(join);
        self.book.stop_walks();
        join(threads.counter);
        if let Some((interrupt, walker)) = threads.walker {
            interrupt.interrupt();
            join(walker);
        }
        self.checkpointer.close();
        join(threads.checkpointer);
        let damage = self.status.damage();
        if self.status.writable() || damage.is_some() {
            // Where it cannot be said, the next start looks closer.
            if let Err(error) = threads.dir.closed(&self.identity.lock(), damage) {
                tracing::warn!(%error, "the stop could not be noted down");
            }
        }
        drop(threads.dir);
    }

    pub(super) fn change(&self, change: Change) -> BoxFuture<'static, Result<Outcome, StoreError>> {
        change_through(&self.writes, change)
    }

    pub(super) fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection, &Meters) -> Result<T, StoreError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        read_through(&self.reads, read)
    }
}

struct Connections {
    readers: Vec<Connection>,
    counter: Connection,
    checkpointer: Connection,
    /// Where pages are still to be walked.
    walker: Option<Connection>,
}

pub(super) fn read_through<T: Send + 'static>(
    reads: &ReadQueue,
    read: impl FnOnce(&Connection, &Meters) -> Result<T, StoreError> + Send + 'static,
) -> BoxFuture<'static, Result<T, StoreError>> {
    let (caller, answer) = oneshot::channel();
    reads.push_rare(Box::new(move |conn, meters| {
        // Whoever stopped waiting is not told.
        let _ = caller.send(read(conn, meters));
    }));
    answer.map(|answer| answer.unwrap_or(Err(StoreError::Closing))).boxed()
}

/// What the tokens of its rows are seeded with.
pub(super) fn seed_of(identity: &Identity) -> Option<TokenSeed> {
    identity.cluster.map(TokenSeed::of)
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").field("identity", &*self.identity.lock()).finish_non_exhaustive()
    }
}

impl Store for SqliteStore {
    fn submit(&self, batch: Submissions) {
        let (mut jobs, mut reads) = (Submitted::<Job>::new(), Submitted::<Read>::new());
        for Submission { token, request, reply_to, behind } in batch {
            match change_of(token, request) {
                Ok(change) => jobs.push(Job { change, answer: AnswerTo::Replica(reply_to), behind }),
                Err((key, part, hints)) => reads.push(Read { slot: token.slot(), key, part, hints, reply_to }),
            }
        }
        if !reads.is_empty() {
            for (read, refusal) in self.reads.push(reads.into_iter(), WAITING_MAX) {
                read.reply_to.send(Ok(ReplicaReply::Refused(refusal)));
            }
        }
        if !jobs.is_empty() {
            self.writes.push(jobs.into_iter(), WAITING_MAX);
        }
    }

    fn observe(&self, now: Hlc) {
        self.status.observe(now);
    }

    fn hints(
        &self,
        target: NodeNum,
        after: Option<(Slot, Key)>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<Hint>, StoreError>> {
        let page = self.read(move |conn, meters| read::scan_hints(conn, meters, target, after.as_ref(), limit));
        let writes = self.writes.clone();
        async move {
            let (hints, damaged) = page.await?;
            if !damaged.is_empty() {
                // Forgetting removes a damaged hint whatever version is named, as nobody can deliver it.
                let lost = damaged.into_iter().map(|(slot, key)| (target, slot, key, Version::default())).collect();
                change_through(&writes, Change::ForgetHints(lost)).await?;
            }
            Ok(hints)
        }
        .boxed()
    }

    fn forget_hints(
        &self,
        delivered: Vec<(NodeNum, Slot, Key, Version)>,
    ) -> BoxFuture<'static, Result<(), StoreError>> {
        done(self.change(Change::ForgetHints(delivered)))
    }

    fn drop_hints_before(&self, kept_before_ms: u64) -> BoxFuture<'static, Result<u64, StoreError>> {
        let (writes, meters) = (self.writes.clone(), self.status.meters.clone());
        async move {
            let mut all = 0;
            loop {
                let step = Change::DropHints { kept_before_ms, limit: DROP_STEP };
                let Outcome::Dropped(dropped) = change_through(&writes, step).await? else { return Ok(all) };
                meters.hints_dropped.increment(dropped);
                all += dropped;
                if dropped < DROP_STEP {
                    return Ok(all);
                }
            }
        }
        .boxed()
    }

    fn hint_totals(&self) -> Vec<(NodeNum, HintTotals)> {
        self.book.hints().targets.into_iter().collect()
    }

    fn totals(&self) -> StoreTotals {
        self.book.totals(self.status.writable())
    }

    fn scan(&self, scan: Scan) -> BoxFuture<'static, Result<ScanPage, StoreError>> {
        let (book, identity) = (self.book.clone(), self.identity.clone());
        self.read(move |conn, meters| scan::page(conn, meters, seed_of(&identity.lock()), &book.hint_targets(), &scan))
    }

    fn changes(&self) -> Arc<ChangeLog> {
        Arc::clone(&self.changes)
    }

    fn slot_sums(&self) -> Vec<Option<Sum>> {
        self.book.slot_sums()
    }

    fn leaf_sums(&self, slot: Slot) -> Option<Vec<Sum>> {
        self.book.leaf_sums(slot)
    }

    fn count_anew(&self, slot: Slot) {
        self.book.doubt(slot);
    }

    fn holdings(&self, slot: Slot, leaves: Vec<Leaf>) -> BoxFuture<'static, Result<Holdings, StoreError>> {
        let Some(seed) = seed_of(&self.identity.lock()) else {
            // There are no records before there is a cluster.
            return std::future::ready(Ok(Holdings::default())).boxed();
        };
        let (reads, book) = (self.reads.clone(), self.book.clone());
        let wanted = Arc::new(Wanted::new(seed, slot, &leaves));
        async move {
            let mut gathered = Gathered::default();
            let mut after = Some(Vec::new());
            while let Some(from) = after {
                let wanted = wanted.clone();
                let piece = move |conn: &Connection, meters: &Meters| holdings::piece(conn, meters, &wanted, &from);
                let piece = read_through(&reads, piece).await?;
                if !piece.held.strays.is_empty() {
                    // The sums still count the keys they were.
                    book.doubt(slot);
                }
                gathered.add(piece.held);
                after = piece.next;
            }
            after = wanted.is_all().then(Vec::new);
            while let Some(from) = after {
                let piece = move |conn: &Connection, meters: &Meters| holdings::registers(conn, meters, slot, &from);
                let piece = read_through(&reads, piece).await?;
                gathered.add(piece.held);
                after = piece.next;
            }
            Ok(gathered.finish())
        }
        .boxed()
    }

    fn discard(&self, slot: Slot, rows: Vec<(i64, Vec<u8>)>) -> BoxFuture<'static, Result<u64, StoreError>> {
        let Some(seed) = seed_of(&self.identity.lock()) else { return std::future::ready(Ok(0)).boxed() };
        dropped(self.change(Change::Discard { seed, slot, rows }))
    }

    fn condemn(&self, what: &str) {
        self.status.condemn(what);
    }

    fn records(&self, keys: Vec<(Slot, Key)>) -> BoxFuture<'static, Result<RecordPage, StoreError>> {
        self.read(move |conn, meters| holdings::records(conn, meters, &keys))
    }

    fn identity(&self) -> Identity {
        self.identity.lock().clone()
    }

    fn save_identity(&self, identity: Identity) -> BoxFuture<'static, Result<(), StoreError>> {
        let Some(dir) = self.threads.lock().as_ref().map(|threads| threads.dir.clone()) else {
            return std::future::ready(Err(StoreError::Closing)).boxed();
        };
        let (caller, answer) = oneshot::channel();
        let (held, status) = (self.identity.clone(), self.status.clone());
        self.writes.push_task(Box::new(move || {
            // Whoever stopped waiting is not told.
            let _ = caller.send(identity::replace(&dir, &held, &status, identity));
        }));
        answer.map(|answer| answer.unwrap_or(Err(StoreError::Closing))).boxed()
    }

    fn topology(&self) -> BoxFuture<'static, Result<Option<Topology>, StoreError>> {
        self.read(|conn, _| facts::topology(conn))
    }

    fn save_topology(&self, topology: Arc<Topology>) -> BoxFuture<'static, Result<(), StoreError>> {
        done(self.change(Change::Topology(topology)))
    }

    fn proposal(&self) -> BoxFuture<'static, Result<Option<Topology>, StoreError>> {
        self.read(|conn, _| facts::proposal(conn))
    }

    fn save_proposal(&self, topology: Arc<Topology>) -> BoxFuture<'static, Result<(), StoreError>> {
        done(self.change(Change::Proposal(topology)))
    }

    fn vote(&self) -> BoxFuture<'static, Result<Option<Vote>, StoreError>> {
        self.read(|conn, _| facts::vote(conn))
    }

    fn save_vote(&self, vote: Vote) -> BoxFuture<'static, Result<(), StoreError>> {
        done(self.change(Change::Vote(Box::new(vote))))
    }

    fn slot_page(&self, slot: Slot, after: Option<Key>) -> BoxFuture<'static, Result<SlotPage, StoreError>> {
        let (floors, seed) = (self.floors.clone(), seed_of(&self.identity.lock()));
        self.read(move |conn, meters| transfer::page(conn, meters, seed, &floors, slot, after.as_ref()))
    }

    fn absorb(&self, entries: Vec<(Token, SlotEntry)>) -> BoxFuture<'static, Result<(), StoreError>> {
        done(self.change(Change::Absorb(entries)))
    }

    fn drop_covered(&self, floor: Floor, keys: Vec<(Token, Key)>) -> BoxFuture<'static, Result<u64, StoreError>> {
        dropped(self.change(Change::DropCovered { floor, keys }))
    }

    fn drop_slots(&self, slots: SlotSet) -> BoxFuture<'static, Result<u64, StoreError>> {
        dropping::drop_slots(self.writes.clone(), seed_of(&self.identity.lock()), slots)
    }

    fn clock_reservation(&self) -> BoxFuture<'static, Result<Hlc, StoreError>> {
        self.read(|conn, _| facts::clock_reservation(conn))
    }

    fn reserve_clock(&self, until: Hlc) -> BoxFuture<'static, Result<(), StoreError>> {
        done(self.change(Change::ReserveClock(until)))
    }

    fn release_clock(&self, last: Hlc) -> BoxFuture<'static, Result<(), StoreError>> {
        done(self.change(Change::ReleaseClock(last)))
    }

    fn end_due(&self, now: Hlc, limit: usize) -> BoxFuture<'static, Result<Vec<(Key, Record)>, StoreError>> {
        ends::end_due(&self.reads, self.writes.clone(), now, limit)
    }

    fn backup(&self) -> BoxFuture<'static, Result<Backup, BackupError>> {
        let Some(dir) = self.threads.lock().as_ref().map(|threads| threads.dir.clone()) else {
            return std::future::ready(Err(BackupError::NotReady("the store is closing".into()))).boxed();
        };
        let (database, wal, copy) = (dir.database(), dir.wal(), dir.backup());
        self.backups.take(Source { database, wal, copy, identity: Store::identity(self) }, &self.status)
    }

    fn failed(&self) -> BoxFuture<'static, StoreError> {
        let mut failure = self.status.subscribe();
        async move {
            let seen = failure.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone());
            match seen {
                Some(error) => error,
                // The store is gone without having failed.
                None => std::future::pending().await,
            }
        }
        .boxed()
    }
}

type Submitted<T> = smallvec::SmallVec<[T; 1]>;

pub(super) fn done(
    outcome: BoxFuture<'static, Result<Outcome, StoreError>>,
) -> BoxFuture<'static, Result<(), StoreError>> {
    outcome.map(|outcome| outcome.map(|_| ())).boxed()
}

/// How many.
fn dropped(outcome: BoxFuture<'static, Result<Outcome, StoreError>>) -> BoxFuture<'static, Result<u64, StoreError>> {
    outcome.map(|outcome| outcome.map(|outcome| if let Outcome::Dropped(rows) = outcome { rows } else { 0 })).boxed()
}
