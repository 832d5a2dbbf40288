//! Looking at a database before it is believed.
//!
//! SQLite believes what it reads: a flipped bit in the header or the schema shows as an error of its own kind, or not at
//! all. So the header's constants are compared, the schema with what this program writes, the single values with their
//! checksums, and where it is worth its time SQLite walks all pages itself (`integrity_check`).
//!
//! Caveats: rows are not read here, they are verified whenever they leave the disk. Of a row whose *key* was damaged the
//! walk sees only whether it is out of order; what else becomes of it `walk` says. And a log is believed up to its first
//! frame that does not fit, as after a power cut.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use rusqlite::{Connection, ErrorCode};

use super::engine::is_damage;
use super::floors::Floors;
use super::status::Status;
use super::{facts, migrations};

/// Files up to this many bytes are walked at every start: it takes a blink.
const ALWAYS_BYTES: u64 = 64 * 1024 * 1024;
/// And up to this many after a stop that was not in order: a second or a few. Others are walked beside the serving.
const UNCLEAN_BYTES: u64 = 256 * 1024 * 1024;

/// Where every database of this program has the same bytes: where they begin, and what they are.
const HEADER: [(usize, &[u8]); 5] = [
    (0, b"SQLite format 3\0"),
    // Pages of 4,096 bytes, without a reserve; what is behind the two versions is fixed by the format.
    (16, &[0x10, 0]),
    (20, &[0, 64, 32, 32]),
    // No vacuum; no reserved byte is in use.
    (52, &[0; 4]),
    (64, &[0; 28]),
];

/// And where they are zero until the first page of a new file was carried over from the log: schema format 4, UTF-8.
const HEADER_LATER: [(usize, &[u8]); 2] = [(44, &[0, 0, 0, 4]), (56, &[0, 0, 0, 1])];

/// What is wrong with the header of the file, if there is one and it is a database's first page.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn header(path: &Path) -> io::Result<Option<&'static str>> {
    let mut bytes = Vec::with_capacity(100);
    File::open(path)?.take(100).read_to_end(&mut bytes)?;
    let part = |at: usize, len: usize| bytes.get(at..at + len);
    let versions = part(18, 2).is_some_and(|versions| versions.iter().all(|v| matches!(v, 1 | 2)));
    let fixed = HEADER.iter().all(|(at, known)| part(*at, known.len()) == Some(*known));
    let later = |(at, known): &(usize, &[u8])| {
        part(*at, known.len()).is_some_and(|found| found == *known || found.iter().all(|byte| *byte == 0))
    };
    let sound = bytes.is_empty() || (versions && fixed && HEADER_LATER.iter().all(later));
    Ok((!sound).then_some("its header is not one"))
}

/// Whether SQLite is to walk all pages.
pub(super) fn is_worth_walking(bytes: u64, unclean: bool) -> bool {
    bytes <= if unclean { UNCLEAN_BYTES } else { ALWAYS_BYTES }
}

/// What is wrong with an open database of the known schema. Blocks for as long as a walk takes.
///
/// # Errors
/// When it cannot be read for another reason than damage.
pub(super) fn contents(conn: &Connection, walk: bool) -> rusqlite::Result<Option<String>> {
    match examine(conn, walk) {
        Err(error) if is_unsound(&error) => Ok(Some(error.to_string())),
        other => other,
    }
}

fn examine(conn: &Connection, walk: bool) -> rusqlite::Result<Option<String>> {
    if !migrations::is_as_known(conn)? {
        return Ok(Some("its schema is not the one it was given".into()));
    }
    let facts = [
        facts::topology(conn).map(drop).err(),
        facts::proposal(conn).map(drop).err(),
        facts::vote(conn).map(drop).err(),
        facts::clock_reservation(conn).map(drop).err(),
        Floors::load(conn).map(drop).err(),
        facts::are_known(conn).err(),
    ];
    if let Some(error) = facts.into_iter().flatten().next() {
        return Ok(Some(error.to_string()));
    }
    if walk {
        return walk_pages(conn);
    }
    Ok(None)
}

/// Has SQLite walk all pages: what it finds wrong first.
///
/// # Errors
/// When it cannot be read.
pub(super) fn walk_pages(conn: &Connection) -> rusqlite::Result<Option<String>> {
    // Not `quick_check`: that passes over rows of a `WITHOUT ROWID` table which are out of order.
    let found: String = conn.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    Ok((found != "ok").then(|| found.replace('\n', " ")))
}

/// Walks the pages of a database that was too large for it at its start, beside everything else, and gives up a database in
/// which it finds something. Blocks its thread for as long as that takes; an interrupt ends it.
///
/// Caveat: it holds one snapshot all the while, so the log grows past its cap by what is written meanwhile.
pub(super) fn run(conn: &Connection, status: &Status) {
    let started = tokio::time::Instant::now();
    match walk_pages(conn) {
        Ok(None) => tracing::info!(took = ?started.elapsed(), "all pages of the database were looked at"),
        Ok(Some(what)) => status.condemn(&what),
        Err(error) if is_damage(&error) => status.condemn(&error.to_string()),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {}
        Err(error) => tracing::warn!(%error, "the pages of the database could not be looked at"),
    }
}

/// Whether the error of a statement of this program's own means that the database is not as it was written.
pub(super) fn is_unsound(error: &rusqlite::Error) -> bool {
    // The general error: a name the statement uses is not in the schema.
    is_damage(error) || error.sqlite_error_code() == Some(ErrorCode::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Durability, Engine};
    use crate::types::NodeNum;

    #[test]
    fn a_file_of_this_program_has_the_known_header() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a3.db");
        let engine = Engine::open(&path, NodeNum(1), Durability::Full, 1).unwrap();
        assert_eq!(contents(&engine.conn, true), Ok(None));
        assert_eq!(header(&path).unwrap(), None, "as a crash leaves it");
        drop(engine);
        assert_eq!(header(&path).unwrap(), None);
        let clean = std::fs::read(&path).unwrap();
        for at in (0..24).chain(44..48).chain(52..60).chain(64..92) {
            let mut bytes = clean.clone();
            bytes[at] ^= 0x40;
            std::fs::write(&path, bytes).unwrap();
            assert!(header(&path).unwrap().is_some(), "byte {at}");
        }
        std::fs::write(&path, &clean[..50]).unwrap();
        assert!(header(&path).unwrap().is_some());
    }

    #[test]
    fn a_schema_that_was_tampered_with_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(&dir.path().join("a3.db"), NodeNum(1), Durability::Full, 1).unwrap();
        engine.conn.execute_batch("ALTER TABLE hints RENAME COLUMN counted TO xounted").unwrap();
        assert!(contents(&engine.conn, false).unwrap().is_some());
    }

    #[test]
    fn rows_out_of_order_end_the_store_of_a_member() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a3.db");
        let engine = Engine::open(&path, NodeNum(1), Durability::Full, 1).unwrap();
        let row = |key: &str| {
            format!(
                "INSERT INTO records VALUES (1, CAST('{key}' AS BLOB), 1, 1, 0, NULL, NULL, 7, NULL, NULL, NULL, NULL);"
            )
        };
        engine.conn.execute_batch(&["key-a", "key-b", "key-c"].map(row).concat()).unwrap();
        drop(engine);
        let walked = |replaceable| {
            let status = Status::new(std::sync::Arc::new(crate::system::SystemClock));
            status.set_replaceable(replaceable);
            run(&Connection::open(&path).unwrap(), &status);
            status.damage()
        };
        assert_eq!(walked(true), None);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(5).position(|window| window == b"key-b").unwrap();
        bytes[at + 4] = b'x';
        std::fs::write(&path, bytes).unwrap();
        assert!(walked(true).unwrap().contains("order"));
        assert_eq!(walked(false), None, "what can be read is all there is");
    }

    #[test]
    fn small_files_are_walked_always_and_larger_ones_after_a_crash() {
        assert!(is_worth_walking(ALWAYS_BYTES, false) && is_worth_walking(UNCLEAN_BYTES, true));
        assert!(!is_worth_walking(ALWAYS_BYTES + 1, false) && !is_worth_walking(UNCLEAN_BYTES + 1, true));
    }
}
