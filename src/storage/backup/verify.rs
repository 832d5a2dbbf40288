//! Reading a copy from end to end: every row is what was written, and lies where it belongs.

use rusqlite::Connection;

use crate::storage::register;
use crate::storage::row::{self, AFTER_RECORD, Loaded};
use crate::types::{BackupRows, Key, Record, Slot, TokenSeed};

/// Why a copy is not what it should be.
#[derive(Debug)]
pub(super) enum Wrong {
    /// What is damaged, for a person.
    Damaged(String),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Wrong {
    fn from(error: rusqlite::Error) -> Self {
        Wrong::Sqlite(error)
    }
}

/// Every record in the order they lie in, each verified.
pub(super) fn each_record<E: From<Wrong>>(
    conn: &Connection,
    seed: TokenSeed,
    mut see: impl FnMut(&Key, Record) -> Result<(), E>,
) -> Result<u64, E> {
    let mut last: Option<(Slot, Key)> = None;
    let mut seen = 0;
    let mut select = conn.prepare(row::ALL_RECORDS).map_err(Wrong::from)?;
    let mut rows = select.query([]).map_err(Wrong::from)?;
    while let Some(row) = rows.next().map_err(Wrong::from)? {
        let name = row.get_ref(AFTER_RECORD).ok().and_then(row::bytes_of).unwrap_or_default();
        let damaged = |what: &str| Wrong::Damaged(format!("the record of {}: {what}", name.escape_ascii()));
        let slot: i64 = row.get(AFTER_RECORD + 1).map_err(Wrong::from)?;
        let key = Key::new(name.to_vec()).map_err(|_| damaged("it is no key"))?;
        let slot = Some(key.token(seed).slot()).filter(|of_key| i64::from(of_key.0) == slot);
        let slot = slot.ok_or_else(|| damaged("it lies in another slot than its key"))?;
        let stored = Loaded::of(row, &key).map_err(Wrong::from)?.stored.ok_or_else(|| damaged("checksum"))?;
        let here = (slot, key);
        if last.as_ref().is_some_and(|last| *last >= here) {
            return Err(damaged("it is out of order").into());
        }
        see(&here.1, stored.record)?;
        last = Some(here);
        seen += 1;
    }
    Ok(seen)
}

/// Every row of a copy of the known schema.
pub(super) fn rows(conn: &Connection, seed: TokenSeed) -> Result<BackupRows, Wrong> {
    let records = each_record::<Wrong>(conn, seed, |_, _| Ok(()))?;
    let hints = each_hint::<Wrong>(conn, seed, |_, _| Ok(()))?;
    Ok(BackupRows { records, registers: registers(conn, seed)?, hints })
}

fn registers(conn: &Connection, seed: TokenSeed) -> Result<u64, Wrong> {
    let mut seen = 0;
    let mut select = conn.prepare("SELECT slot, key FROM registers")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let name = row.get_ref(1).ok().and_then(row::bytes_of).unwrap_or_default();
        let damaged = |what: &str| Wrong::Damaged(format!("the register of {}: {what}", name.escape_ascii()));
        let key = Key::new(name.to_vec()).map_err(|_| damaged("it is no key"))?;
        let slot = key.token(seed).slot();
        if row.get::<_, i64>(0)? != i64::from(slot.0) {
            return Err(damaged("it lies in another slot than its key"));
        }
        register::read(conn, slot, &key).map_err(|what| damaged(&what))?.ok_or_else(|| damaged("it holds nothing"))?;
        seen += 1;
    }
    Ok(seen)
}

/// Every hint, each verified: what a stand-in keeps for another replica, of any number of them for a key.
pub(super) fn each_hint<E: From<Wrong>>(
    conn: &Connection,
    seed: TokenSeed,
    mut see: impl FnMut(&Key, Record) -> Result<(), E>,
) -> Result<u64, E> {
    let mut seen = 0;
    let mut select = conn.prepare(row::ALL_HINTS).map_err(Wrong::from)?;
    let mut rows = select.query([]).map_err(Wrong::from)?;
    while let Some(row) = rows.next().map_err(Wrong::from)? {
        let name = row.get_ref(AFTER_RECORD).ok().and_then(row::bytes_of).unwrap_or_default();
        let damaged = |what: &str| Wrong::Damaged(format!("a hint for {}: {what}", name.escape_ascii()));
        let slot: i64 = row.get(AFTER_RECORD + 1).map_err(Wrong::from)?;
        let key = Key::new(name.to_vec()).map_err(|_| damaged("it is no key"))?;
        let stored = Loaded::of(row, &key).map_err(Wrong::from)?.stored.ok_or_else(|| damaged("checksum"))?;
        if i64::from(key.token(seed).slot().0) != slot {
            return Err(damaged("it lies in another slot than its key").into());
        }
        see(&key, stored.record)?;
        seen += 1;
    }
    Ok(seen)
}
