//! Checkpoints beside the writer: a thread of its own carries the write-ahead log into the database in steps, so that
//! no commit pays for one.
//!
//! Invariants:
//! - The log stays under its cap: past half of it the checkpointer stands between two commits (behind the book's gate),
//!   carries over what is left and lets the log start again from its beginning. A writer that reaches the cap before
//!   that waits for it. Readers are waited for too, and their snapshots are short.
//! - The log's file is kept at its length: writing over it costs a sync less metadata than growing it.
//! - A failed sync stops the store here too; a full disk only puts the checkpoint off.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rusqlite::{Connection, ErrorCode};

use super::book::Book;
use super::connection::{self, PAGE_BYTES};
use super::engine::Engine;
use super::status::Status;

/// The log's frames are a page and this many bytes.
const FRAME_BYTES: u64 = PAGE_BYTES + 24;
/// Carried over in one step, in bytes of the log: large enough that pages written again and again are carried once.
const STEP_BYTES: u64 = 16 * 1024 * 1024;
/// How long a writer at the cap waits for the log to begin anew, before it goes past the cap. Only a reader that holds
/// its snapshot, or a disk that does not keep up at all, takes that long.
const CAP_WAIT: Duration = Duration::from_secs(2);
/// After this long without a step what is left is carried over, so that an idle node's log is empty.
const IDLE: Duration = Duration::from_secs(1);

/// How far the log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Log {
    frames: u64,
    carried: u64,
}

impl Log {
    fn bytes(self) -> u64 {
        self.frames * FRAME_BYTES
    }

    fn waiting_bytes(self) -> u64 {
        self.frames.saturating_sub(self.carried) * FRAME_BYTES
    }
}

struct Signal {
    due: bool,
    wrote: bool,
    /// Bytes waiting to be carried over at which the next step is due.
    due_at: u64,
    /// How often the log began anew.
    restarts: u64,
    /// The log could not begin anew in time: somebody holds a snapshot of it. Nobody waits for that twice.
    pinned: bool,
    closing: bool,
}

/// What the writer and the checkpointer share.
pub(super) struct Checkpointer {
    signal: Mutex<Signal>,
    wake: Condvar,
    restarted: Condvar,
    status: Arc<Status>,
    book: Arc<Book>,
    wal_bytes_max: u64,
    step_bytes: u64,
    files: [PathBuf; 2],
}

enum Mode {
    /// Only look.
    Noop,
    /// Carry over what can be without waiting for anybody.
    Passive,
    /// Carry over everything, then begin the log anew.
    Restart,
    /// The same, and cut its file.
    Truncate,
}

fn checkpoint(conn: &Connection, mode: &Mode) -> rusqlite::Result<(bool, Log)> {
    let sql = match mode {
        Mode::Noop => "PRAGMA wal_checkpoint(NOOP)",
        Mode::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
        Mode::Restart => "PRAGMA wal_checkpoint(RESTART)",
        Mode::Truncate => "PRAGMA wal_checkpoint(TRUNCATE)",
    };
    conn.prepare_cached(sql)?.query_row([], |row| {
        // Minus one where there is no log.
        let frames = |column| row.get::<_, i64>(column).map(|n| n.max(0) as u64);
        Ok((row.get::<_, i64>(0)? != 0, Log { frames: frames(1)?, carried: frames(2)? }))
    })
}

impl Checkpointer {
    pub(super) fn new(
        status: Arc<Status>,
        book: Arc<Book>,
        wal_bytes_max: u64,
        database: PathBuf,
        wal: PathBuf,
    ) -> Self {
        let step_bytes = STEP_BYTES.min(wal_bytes_max / 4);
        let signal =
            Signal { due: false, wrote: false, due_at: step_bytes, restarts: 0, pinned: false, closing: false };
        let checkpointer = Self {
            signal: Mutex::new(signal),
            wake: Condvar::new(),
            restarted: Condvar::new(),
            status,
            book,
            wal_bytes_max,
            step_bytes,
            files: [database, wal],
        };
        checkpointer.measure();
        checkpointer
    }

    /// The writer committed: wakes the checkpointer where a step's worth is waiting, and waits for it at the cap.
    pub(super) fn wrote(&self, engine: &Engine) {
        self.status.wrote();
        let Ok((_, log)) = checkpoint(&engine.conn, &Mode::Noop) else { return };
        let mut signal = self.signal.lock();
        let capped = log.bytes() >= self.wal_bytes_max && !signal.pinned;
        let first = !std::mem::replace(&mut signal.wrote, true);
        signal.due |= capped || log.waiting_bytes() >= signal.due_at;
        if signal.due || first {
            self.wake.notify_one();
        }
        if capped {
            let before = signal.restarts;
            let waited = self.restarted.wait_while_for(&mut signal, |signal| signal.restarts == before, CAP_WAIT);
            if waited.timed_out() {
                signal.pinned = true;
                drop(signal);
                tracing::warn!(bytes = log.bytes(), "the log is over its cap: a reader holds a snapshot of it");
            }
        }
    }

    pub(super) fn close(&self) {
        self.signal.lock().closing = true;
        self.wake.notify_one();
    }

    /// The thread. It ends, with an empty log, once it is told to close; by then the writer is gone.
    pub(super) fn run(&self, conn: &Connection) {
        while self.wait() {
            self.step(conn);
            self.measure();
        }
        if self.status.writable() {
            self.attempt(conn, &Mode::Truncate);
        }
        if !self.status.writable() {
            connection::leave_log(conn);
        }
    }

    /// Until a step is due, or until the log has rested for [`IDLE`]; `false` when closing.
    fn wait(&self) -> bool {
        let mut signal = self.signal.lock();
        loop {
            if signal.closing {
                return false;
            }
            if std::mem::take(&mut signal.due) {
                return true;
            }
            if signal.wrote {
                if self.wake.wait_for(&mut signal, IDLE).timed_out() {
                    signal.wrote = false;
                    signal.due = false;
                    return !signal.closing;
                }
            } else {
                self.wake.wait(&mut signal);
            }
        }
    }

    fn step(&self, conn: &Connection) {
        if !self.status.writable() {
            return;
        }
        let Some((_, mut log)) = self.attempt(conn, &Mode::Passive) else { return };
        let mut restarted = false;
        if log.bytes() >= self.wal_bytes_max / 2 {
            // Once more, so that little is left to carry while the writer waits.
            self.attempt(conn, &Mode::Passive);
            let _between_commits = self.book.gate();
            if let Some((in_the_way, now)) = self.attempt(conn, &Mode::Restart) {
                (restarted, log) = (!in_the_way, now);
            }
        }
        let mut signal = self.signal.lock();
        // Counted from what could not be carried: while a snapshot is held, trying more often would only cost.
        signal.due_at = self.step_bytes + if restarted { 0 } else { log.waiting_bytes() };
        if restarted {
            signal.restarts += 1;
            signal.pinned = false;
            self.restarted.notify_one();
        }
    }

    /// Whether somebody was in the way of all of it, and how far the log is. `None` where nothing was carried; the
    /// next step tries again.
    fn attempt(&self, conn: &Connection, mode: &Mode) -> Option<(bool, Log)> {
        match checkpoint(conn, mode) {
            Ok(done) => {
                self.status.meters.checkpoints.increment(1);
                Some(done)
            }
            Err(e) => {
                match e.sqlite_error_code() {
                    Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {}
                    Some(ErrorCode::DiskFull) => self.status.disk_full(),
                    _ => drop(self.status.fail(format!("checkpoint: {e}"))),
                }
                None
            }
        }
    }

    fn measure(&self) {
        let [file, wal] = &self.files;
        let bytes = |path| std::fs::metadata(path).map_or(0, |meta| meta.len());
        self.book.measured(bytes(file), bytes(wal));
    }
}
