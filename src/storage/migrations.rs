//! Numbered changes of the schema. `user_version` says how far a file has come.
//!
//! Invariants:
//! - A migration that was released is never edited; a new one is appended.
//! - A file that is ahead of this program is refused untouched: an older program would not keep what the newer one
//!   promised.

use rusqlite::{Connection, TransactionBehavior};

/// Migration `n` stands at index `n - 1`.
const MIGRATIONS: &[&str] = &[
    include_str!("schema/0001.sql"),
    include_str!("schema/0002.sql"),
    include_str!("schema/0003.sql"),
    include_str!("schema/0004.sql"),
    include_str!("schema/0005.sql"),
    include_str!("schema/0006.sql"),
];

/// The schema this program writes.
pub(super) const KNOWN: u32 = MIGRATIONS.len() as u32;

/// Why a file could not be brought to the known schema. It was not changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum MigrationError {
    #[error("the file has schema {found}, this program knows {KNOWN}")]
    Newer { found: u32 },
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

/// Brings the file to [`KNOWN`] in one transaction, so that a crash leaves the old schema or the new one.
pub(super) fn migrate(conn: &mut Connection) -> Result<(), MigrationError> {
    let found: u32 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > KNOWN {
        return Err(MigrationError::Newer { found });
    }
    if found == KNOWN {
        return Ok(());
    }
    let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for migration in MIGRATIONS.iter().skip(found as usize) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", KNOWN)?;
    transaction.commit()?;
    Ok(())
}

/// Whether the file's tables and indexes are, word for word, those that the migrations make.
pub(super) fn is_as_known(conn: &Connection) -> rusqlite::Result<bool> {
    let known = Connection::open_in_memory()?;
    MIGRATIONS.iter().try_for_each(|migration| known.execute_batch(migration))?;
    let version: u32 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    Ok(version == KNOWN && schema(conn)? == schema(&known)?)
}

/// Type, name, table and text of everything in the schema.
type Schema = Vec<(String, String, String, Option<String>)>;

fn schema(conn: &Connection) -> rusqlite::Result<Schema> {
    let mut select = conn.prepare("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name")?;
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_comes_to_the_known_schema_once() {
        let mut conn = Connection::open_in_memory().unwrap();
        migrate(&mut conn).unwrap();
        conn.execute("INSERT INTO facts VALUES ('x', x'', 0)", []).unwrap();
        migrate(&mut conn).unwrap();
        let facts: u32 = conn.query_row("SELECT count(*) FROM facts", [], |row| row.get(0)).unwrap();
        let version: u32 = conn.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!((facts, version), (1, KNOWN));
    }

    #[test]
    fn a_file_of_an_older_schema_keeps_what_it_holds() {
        for from in 1..KNOWN {
            let mut conn = Connection::open_in_memory().unwrap();
            MIGRATIONS.iter().take(from as usize).for_each(|migration| conn.execute_batch(migration).unwrap());
            conn.pragma_update(None, "user_version", from).unwrap();
            conn.execute("INSERT INTO facts VALUES ('x', x'', 0)", []).unwrap();
            migrate(&mut conn).unwrap();
            let count = |table| -> u32 {
                conn.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
            };
            assert_eq!((count("facts"), count("registers")), (1, 0));
            let version: u32 = conn.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
            assert_eq!(version, KNOWN);
        }
    }

    #[test]
    fn a_newer_file_is_refused_untouched() {
        let mut conn = Connection::open_in_memory().unwrap();
        conn.pragma_update(None, "user_version", KNOWN + 1).unwrap();
        assert!(matches!(migrate(&mut conn), Err(MigrationError::Newer { found }) if found == KNOWN + 1));
        let tables: u32 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
        assert_eq!(tables, 0);
    }
}
