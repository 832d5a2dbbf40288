//! Taking a backup of a database that is in use.
//!
//! A thread of its own copies (`VACUUM INTO`), verifies, hashes, and hands the file out piece by piece.
//!
//! Invariants:
//! - The copy has no name any more when its first byte leaves: whatever ends this process or the client leaves nothing. One
//!   that was being made at a crash is swept at the next start (`data_dir`).
//! - It ends early when nobody waits for it, when the store closes, and before it takes the last [`RESERVE_BYTES`] of the disk.
//! - One at a time, until its last piece was taken: each takes the room of the whole database.
//!
//! Caveat: one snapshot is held while pages are copied (not while they are verified or sent), so the log grows past its cap
//! by what is written meanwhile, as while a walk through the pages runs. Its room is watched with the copy's.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use metrics::{Counter, Gauge};
use parking_lot::{Condvar, Mutex};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::verify::{self, Wrong};
use crate::metrics::{BACKUP_BYTES, BACKUP_LAST, BACKUP_SECONDS, BACKUPS, counter, gauge};
use crate::ports::{Backup, BackupError};
use crate::storage::connection::{self, Role};
use crate::storage::engine::is_damage;
use crate::storage::migrations::{KNOWN, MigrationError};
use crate::storage::status::Status;
use crate::storage::threads::thread;
use crate::storage::{examine, facts};
use crate::types::{BackupAbout, Epoch, Identity, TokenSeed};

/// What a backup leaves free of the disk, in bytes: clients' writes need room more.
const RESERVE_BYTES: u64 = 16 * 1024 * 1024;
/// Steps of SQLite's machine between two looks whether to go on: some thousand rows.
const LOOK_EVERY: i32 = 10_000;
/// One piece of the file, in bytes, and how many wait for whoever takes them.
const CHUNK_BYTES: usize = 128 * 1024;
const CHUNKS_MAX: usize = 4;

/// The backups of one store.
#[derive(Default)]
pub(in crate::storage) struct Backups {
    busy: AtomicBool,
    closing: Arc<AtomicBool>,
    /// Whether a database is being read or written.
    at_work: Mutex<bool>,
    rested: Condvar,
}

/// What is copied, and where.
pub(in crate::storage) struct Source {
    pub(in crate::storage) database: PathBuf,
    pub(in crate::storage) wal: PathBuf,
    /// Beside it; swept at a start.
    pub(in crate::storage) copy: PathBuf,
    pub(in crate::storage) identity: Identity,
}

impl Backups {
    pub(in crate::storage) fn take(
        self: &Arc<Self>,
        source: Source,
        status: &Arc<Status>,
    ) -> BoxFuture<'static, Result<Backup, BackupError>> {
        let failed = |error| std::future::ready(Err(error)).boxed();
        if self.busy.swap(true, Ordering::SeqCst) {
            return failed(BackupError::Busy);
        }
        *self.at_work.lock() = true;
        let (tell, told) = oneshot::channel();
        let wanted = Arc::new(Wanted { gone: AtomicBool::new(false), closing: Arc::clone(&self.closing) });
        let (free, waited) = (Free(Arc::clone(self)), Waited(Arc::clone(&wanted)));
        let now_ms = status.now().wall_ms;
        let started = thread("a3-backup", status, move || {
            let work = Work { source, wanted, now_ms, began: Instant::now(), meters: Meters::new() };
            let made = work.make();
            free.0.rest();
            // Whoever stopped waiting is not told. And whoever sees the end may begin the next one.
            match made {
                Ok((backup, file, chunks)) => {
                    if tell.send(Ok(backup)).is_ok() {
                        hand_out(file, &chunks);
                    }
                    drop(free);
                    drop(chunks);
                }
                Err(error) => {
                    drop(free);
                    drop(tell.send(Err(error)));
                }
            }
        });
        if let Err(error) = started {
            return failed(BackupError::Failed(format!("no thread for a backup: {error}")));
        }
        async move {
            let _waited = waited;
            told.await.unwrap_or_else(|_| Err(BackupError::Failed("the backup was given up".into())))
        }
        .boxed()
    }

    fn rest(&self) {
        *self.at_work.lock() = false;
        self.rested.notify_all();
    }

    /// Ends what is under way, and waits until the database is let go of. A file that is being handed out has no name and
    /// needs nothing.
    pub(in crate::storage) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        let mut at_work = self.at_work.lock();
        while *at_work {
            self.rested.wait(&mut at_work);
        }
    }
}

/// Lets the next one begin.
struct Free(Arc<Backups>);

impl Drop for Free {
    fn drop(&mut self) {
        self.0.rest();
        self.0.busy.store(false, Ordering::SeqCst);
    }
}

/// Whether to go on.
struct Wanted {
    gone: AtomicBool,
    closing: Arc<AtomicBool>,
}

impl Wanted {
    fn is_over(&self) -> bool {
        self.gone.load(Ordering::Relaxed) || self.closing.load(Ordering::Relaxed)
    }
}

/// Held by who waits.
struct Waited(Arc<Wanted>);

impl Drop for Waited {
    fn drop(&mut self) {
        self.0.gone.store(true, Ordering::Relaxed);
    }
}

struct Meters {
    done: Counter,
    failed: Counter,
    last: Gauge,
    seconds: Gauge,
    bytes: Gauge,
}

impl Meters {
    fn new() -> Self {
        let result = |result| counter(BACKUPS, &[("result", result)]);
        let [last, seconds, bytes] = [BACKUP_LAST, BACKUP_SECONDS, BACKUP_BYTES].map(|metric| gauge(metric, &[]));
        Self { done: result("done"), failed: result("failed"), last, seconds, bytes }
    }
}

struct Work {
    source: Source,
    wanted: Arc<Wanted>,
    now_ms: u64,
    began: Instant,
    meters: Meters,
}

type Chunks = mpsc::Sender<io::Result<Bytes>>;

impl Work {
    fn make(&self) -> Result<(Backup, File, Chunks), BackupError> {
        let made = self.copied_and_verified();
        // Whatever became of it: it has a name no longer.
        sweep(&self.source.copy);
        match &made {
            Ok((backup, ..)) => {
                self.meters.done.increment(1);
                self.meters.last.set(self.now_ms as f64 / 1e3);
                self.meters.seconds.set(self.began.elapsed().as_secs_f64());
                self.meters.bytes.set(backup.bytes as f64);
                tracing::info!(bytes = backup.bytes, took = ?self.began.elapsed(), "a backup was taken and verified");
            }
            Err(error) => {
                self.meters.failed.increment(1);
                tracing::warn!(%error, "no backup was taken");
            }
        }
        made
    }

    fn copied_and_verified(&self) -> Result<(Backup, File, Chunks), BackupError> {
        sweep(&self.source.copy);
        self.check_room()?;
        self.copy()?;
        let about = self.verified()?;
        let mut file = File::open(&self.source.copy).map_err(failed)?;
        let (bytes, sha256) = self.hash(&mut file)?;
        let (chunks, taken) = mpsc::channel(CHUNKS_MAX);
        Ok((Backup { about, bytes, sha256, chunks: taken }, file, chunks))
    }

    /// The copy takes as much as the database, and what the log has that is not in it yet.
    fn check_room(&self) -> Result<(), BackupError> {
        let length = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
        let wanted = length(&self.source.database) + length(&self.source.wal) + RESERVE_BYTES;
        let free = free_bytes(&self.source.database).map_err(failed)?;
        if free < wanted {
            let why = format!("a backup needs {wanted} bytes beside the database for a while, and {free} are free");
            return Err(BackupError::DiskFull(why));
        }
        Ok(())
    }

    fn copy(&self) -> Result<(), BackupError> {
        let conn = connection::open(&self.source.database, Role::Counter).map_err(|e| match e {
            MigrationError::Sqlite(error) => of_sqlite(&error),
            newer => BackupError::Failed(newer.to_string()),
        })?;
        let (wanted, beside) = (Arc::clone(&self.wanted), self.source.database.clone());
        let full = Arc::new(AtomicBool::new(false));
        let found_full = Arc::clone(&full);
        let look = move || {
            let lacks_room = free_bytes(&beside).is_ok_and(|free| free < RESERVE_BYTES);
            found_full.fetch_or(lacks_room, Ordering::Relaxed);
            lacks_room || wanted.is_over()
        };
        conn.progress_handler(LOOK_EVERY, Some(look)).map_err(|e| of_sqlite(&e))?;
        let copy = self.source.copy.to_str().ok_or_else(|| failed("DATA_DIR is not UTF-8"))?;
        conn.execute("VACUUM INTO ?1", [copy]).map(drop).map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) if full.load(Ordering::Relaxed) => {
                BackupError::DiskFull("the disk filled up while a backup was taken".into())
            }
            Some(ErrorCode::OperationInterrupted) => failed("the backup was given up"),
            _ => of_sqlite(&error),
        })
    }

    /// What the copy is, written into it; every page and row of it was looked at.
    fn verified(&self) -> Result<BackupAbout, BackupError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let sqlite = |error: rusqlite::Error| match error.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) => failed("the backup was given up"),
            _ => of_sqlite(&error),
        };
        let conn = Connection::open_with_flags(&self.source.copy, flags).map_err(sqlite)?;
        // It is a copy: what a crash leaves of it is swept.
        conn.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA trusted_schema = OFF")
            .map_err(sqlite)?;
        let wanted = Arc::clone(&self.wanted);
        conn.progress_handler(LOOK_EVERY, Some(move || wanted.is_over())).map_err(sqlite)?;
        let unready = || BackupError::NotReady("the node has no cluster yet".into());
        let Identity { node, instance, cluster, .. } = self.source.identity;
        let cluster = cluster.ok_or_else(unready)?;
        if let Some(what) = examine::contents(&conn, true).map_err(sqlite)? {
            return Err(BackupError::Damaged(what));
        }
        let topology = facts::topology(&conn).map_err(|e| BackupError::Damaged(e.to_string()))?;
        let rows = verify::rows(&conn, TokenSeed::of(cluster)).map_err(|wrong| match wrong {
            Wrong::Damaged(what) => BackupError::Damaged(what),
            Wrong::Sqlite(error) => sqlite(error),
        })?;
        let about = BackupAbout {
            node,
            instance,
            cluster,
            epoch: topology.map_or(Epoch(0), |topology| topology.epoch),
            taken_ms: self.now_ms,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            schema: KNOWN,
            rows,
        };
        super::describe(&conn, &about).map_err(sqlite)?;
        conn.close().map_err(|(_, error)| sqlite(error))?;
        Ok(about)
    }

    fn hash(&self, file: &mut File) -> Result<(u64, [u8; 32]), BackupError> {
        let (mut sha256, mut bytes) = (Sha256::new(), 0);
        let mut piece = vec![0; CHUNK_BYTES];
        loop {
            let read = file.read(&mut piece).map_err(failed)?;
            if read == 0 {
                break;
            }
            if self.wanted.is_over() {
                return Err(failed("the backup was given up"));
            }
            sha256.update(&piece[..read]);
            bytes += read as u64;
        }
        file.rewind().map_err(failed)?;
        Ok((bytes, sha256.finalize().into()))
    }
}

/// To whoever takes it, until nobody does.
fn hand_out(mut file: File, chunks: &Chunks) {
    loop {
        let mut piece = vec![0; CHUNK_BYTES];
        let read = file.read(&mut piece);
        let ends = !matches!(read, Ok(1..));
        let chunk = read.map(|read| {
            piece.truncate(read);
            Bytes::from(piece)
        });
        if chunk.as_ref().is_ok_and(Bytes::is_empty) || chunks.blocking_send(chunk).is_err() || ends {
            return;
        }
    }
}

/// Removes a copy, and what SQLite may have left beside it.
pub(in crate::storage) fn sweep(copy: &Path) {
    let mut journal = copy.as_os_str().to_owned();
    journal.push("-journal");
    for path in [copy, Path::new(&journal)] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %path.display(), "what is left of a backup cannot be removed");
            }
            _ => {}
        }
    }
}

/// That this node may take of the disk.
fn free_bytes(path: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(path)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn failed(error: impl std::fmt::Display) -> BackupError {
    BackupError::Failed(error.to_string())
}

fn of_sqlite(error: &rusqlite::Error) -> BackupError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => BackupError::DiskFull("the disk filled up while a backup was taken".into()),
        _ if is_damage(error) => BackupError::Damaged(error.to_string()),
        _ => failed(error),
    }
}
