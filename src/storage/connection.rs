//! Opening connections: one that writes, a few that read, one that checkpoints.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::migrations::{self, MigrationError};

/// Whether an acknowledgement means the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// It is on disk: it survives a power cut.
    #[default]
    Full,
    /// It is with the operating system: it survives a crash of the process, not a power cut. What other nodes were
    /// promised (registers, topology, proposal, clock) is on disk all the same.
    Normal,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Creates the file and brings its schema up to date.
    Writer(Durability),
    /// Serves reads, through the mapped file.
    Reader,
    /// Walks all rows once; maps nothing, so that the walk does not show as memory of the process.
    Counter,
    Checkpointer,
}

/// Bytes of a page. Chosen by docs/decisions/0001-record-table.md.
pub(super) const PAGE_BYTES: u64 = 4096;
/// Each connection's own pages, in KiB; the operating system's cache does the rest.
const CACHE_KIB: i64 = 2048;
/// The writer's: it meets the pages it changed again before they are in the database, and a page in the log is not
/// mapped but read with a system call.
const WRITER_CACHE_KIB: i64 = 8192;
/// How much of the file the writer and the readers map, in bytes.
const MMAP_BYTES: i64 = 1 << 30;
/// How long a connection waits for another program (a person with `sqlite3`) to let go of the database.
const BUSY: Duration = Duration::from_secs(5);
/// How long a checkpoint waits for readers, while writes wait for it.
const CHECKPOINT_BUSY: Duration = Duration::from_millis(100);

/// Opens the database in that role.
pub(super) fn open(path: &Path, role: Role) -> Result<Connection, MigrationError> {
    let access = match role {
        Role::Writer(_) => OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE,
        Role::Checkpointer => OpenFlags::SQLITE_OPEN_READ_WRITE,
        Role::Reader | Role::Counter => OpenFlags::SQLITE_OPEN_READ_ONLY,
    };
    let mut conn = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(if role == Role::Checkpointer { CHECKPOINT_BUSY } else { BUSY })?;
    conn.set_prepared_statement_cache_capacity(32);
    conn.pragma_update(None, "cache_size", if let Role::Writer(_) = role { -WRITER_CACHE_KIB } else { -CACHE_KIB })?;
    conn.pragma_update(None, "trusted_schema", false)?;
    // Else a statement with `LIMIT ?` is prepared anew each time it is run, so that the planner sees the number.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    match role {
        Role::Writer(durability) => {
            // Page size first: it can be chosen only before the file has its first page.
            conn.pragma_update(None, "page_size", PAGE_BYTES as i64)?;
            conn.pragma_update(None, "temp_store", "MEMORY")?;
            conn.pragma_update(None, "journal_mode", "WAL")?;
            // Checkpoints beside the writer: see `checkpoint`.
            conn.pragma_update(None, "wal_autocheckpoint", 0)?;
            conn.pragma_update(None, "mmap_size", MMAP_BYTES)?;
            set_synchronous(&conn, Durability::Full)?;
            migrations::migrate(&mut conn)?;
            set_synchronous(&conn, durability)?;
        }
        Role::Checkpointer => {
            conn.pragma_update(None, "wal_autocheckpoint", 0)?;
            set_synchronous(&conn, Durability::Full)?;
        }
        Role::Reader => conn.pragma_update(None, "mmap_size", MMAP_BYTES)?,
        Role::Counter => {}
    }
    Ok(conn)
}

/// Has the connection leave the log as it is when it closes. After a failed sync the operating system may have forgotten
/// what it could not write, so nothing of it may be carried over by whoever read it before.
pub(super) fn leave_log(conn: &Connection) {
    // It only fails for a connection that cannot be closed either.
    let _ = conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
}

pub(super) fn set_synchronous(conn: &Connection, durability: Durability) -> rusqlite::Result<()> {
    let level = match durability {
        Durability::Full => "FULL",
        Durability::Normal => "NORMAL",
    };
    conn.pragma_update(None, "synchronous", level)
}
