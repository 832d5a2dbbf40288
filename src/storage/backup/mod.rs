//! Backups: a copy of the database in one file that can be believed, and a data directory made from one.
//!
//! [`take`] copies a database that is in use, [`verify`] reads every row of a copy, [`restore`] makes a data directory of one,
//! [`export`] prints its records.
//!
//! A backup is the whole database, as `VACUUM INTO` writes it, and one table more, `backup`, with one row: what it says of
//! itself ([`BackupAbout`], as JSON) and a checksum. The table is in no live database, whose schema is compared word for
//! word.
//!
//! Invariants:
//! - What leaves a node was verified after it was copied: SQLite's own check of all pages, and the checksum of every row.
//! - A backup is never a replica. What becomes a data directory again is a new instance's.

mod export;
mod restore;
mod take;
mod verify;

pub use export::{ExportError, export};
pub use restore::{RestoreError, RestoreOptions, Restored, restore};
pub(super) use take::{Backups, Source, sweep};

use rusqlite::{Connection, OptionalExtension, params};
use xxhash_rust::xxh3::xxh3_64;

use crate::types::BackupAbout;
use verify::Wrong;

const CREATE: &str = "CREATE TABLE backup (about TEXT NOT NULL, checksum INTEGER NOT NULL) STRICT";

/// Says in the copy what it is.
fn describe(conn: &Connection, about: &BackupAbout) -> rusqlite::Result<()> {
    // Of strings and numbers: serialisation to memory has no way to fail.
    let text = serde_json::to_string(about).unwrap_or_default();
    conn.execute(CREATE, [])?;
    conn.execute("INSERT INTO backup VALUES (?1, ?2)", params![text, xxh3_64(text.as_bytes()) as i64])?;
    Ok(())
}

/// What the file says of itself.
fn described(conn: &Connection) -> Result<BackupAbout, Wrong> {
    let none = "it does not say that it is a backup of a3 (a copied a3.db is none)";
    let table: Option<String> =
        conn.query_row("SELECT sql FROM sqlite_schema WHERE name = 'backup'", [], |row| row.get(0)).optional()?;
    if table.as_deref() != Some(CREATE) {
        return Err(Wrong::Damaged(none.to_owned()));
    }
    let row = conn.query_row("SELECT about, checksum FROM backup", [], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)? as u64))
    });
    let row = row.optional()?;
    let (text, checksum) = row.ok_or_else(|| Wrong::Damaged("it says nothing of itself".to_owned()))?;
    let about = serde_json::from_str(&text).ok().filter(|_| xxh3_64(text.as_bytes()) == checksum);
    about.ok_or_else(|| Wrong::Damaged("what it says of itself is damaged".to_owned()))
}
