//! How a record lies in a row, of `records`, `hints` and `registers` alike.
//!
//! Invariants:
//! - What is read is verified: a row whose columns do not make the record its checksum was made for is *damaged*, and
//!   nothing in it is believed, its pointer to a large value least of all.
//! - How a row counts in the totals depends on its raw columns alone, damaged or not, and in one way wherever it is
//!   counted.

use rusqlite::types::ValueRef;
use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, params};

use super::book::Weight;
use crate::types::{Ballot, Content, ContentType, Hlc, Key, NodeNum, Outline, Record, Slot, Version, Writer};

/// Key, content type and value lie in the row itself up to this many bytes together; a larger value has a row of its
/// own in `large_values`. Chosen by docs/decisions/0001-record-table.md.
pub(super) const INLINE_BYTES_MAX: usize = 512;

/// The columns of a record in its own row.
macro_rules! own_columns {
    () => {
        "r.hlc, r.writer, r.rmw, r.written, r.expires_at_ms, r.checksum, r.content_type, r.value, r.large, \
         r.large_bytes"
    };
}
/// The columns of a record, in the order that [`Loaded::of`] reads; `l` is the row of its large value.
macro_rules! record_columns {
    () => {
        concat!(own_columns!(), ", l.value")
    };
}

pub(super) const SELECT_RECORD: &str = concat!(
    "SELECT ",
    record_columns!(),
    " FROM records r LEFT JOIN large_values l ON l.id = r.large WHERE r.slot = ?1 AND r.key = ?2"
);
/// Rows from a place on without looking for large values, whatever slot they are of: whole where [`COLUMN_LARGE`] is NULL.
pub(super) const WALK_OUTLINES: &str = concat!(
    "SELECT ",
    own_columns!(),
    ", NULL, r.key, r.slot FROM records r WHERE (r.slot, r.key) > (?1, ?2) ORDER BY r.slot, r.key"
);
/// The same with the row of just that slot and key, where there is one.
pub(super) const SCAN_OUTLINES: &str = concat!(
    "SELECT ",
    own_columns!(),
    ", NULL, r.key, r.slot FROM records r WHERE (r.slot, r.key) >= (?1, ?2) ORDER BY r.slot, r.key"
);
/// The tombstones of a slot that the list has up to a time, from a place in it on. The list is walked, and not the rows.
pub(super) const LISTED_TOMBSTONES: &str = concat!(
    "SELECT ",
    own_columns!(),
    ", NULL, t.key, t.written FROM tombstones t CROSS JOIN records r ON r.slot = t.slot AND r.key = t.key \
     WHERE t.slot = ?1 AND (t.written, t.key) > (?2, ?3) AND t.written <= ?4 AND r.value IS NULL AND r.large IS NULL \
     ORDER BY t.written, t.key LIMIT ?5"
);
/// The last row before a place, and the first one behind it.
pub(super) const OUTLINE_BEFORE: &str = concat!(
    "SELECT ",
    own_columns!(),
    ", NULL, r.key, r.slot FROM records r WHERE (r.slot, r.key) < (?1, ?2) ORDER BY r.slot DESC, r.key DESC LIMIT 1"
);
pub(super) const OUTLINE_AFTER: &str = concat!(
    "SELECT ",
    own_columns!(),
    ", NULL, r.key, r.slot FROM records r WHERE (r.slot, r.key) > (?1, ?2) ORDER BY r.slot, r.key LIMIT 1"
);
/// All records, and all hints, in the order they lie in, with their large values.
pub(super) const ALL_RECORDS: &str = concat!(
    "SELECT ",
    record_columns!(),
    ", r.key, r.slot FROM records r LEFT JOIN large_values l ON l.id = r.large ORDER BY r.slot, r.key"
);
pub(super) const ALL_HINTS: &str =
    concat!("SELECT ", record_columns!(), ", r.key, r.slot FROM hints r LEFT JOIN large_values l ON l.id = r.large");
pub(super) const SELECT_HINT: &str = concat!(
    "SELECT ",
    record_columns!(),
    ", r.counted, r.kept_at_ms FROM hints r LEFT JOIN large_values l ON l.id = r.large \
     WHERE r.target = ?1 AND r.slot = ?2 AND r.key = ?3"
);
pub(super) const SCAN_HINTS: &str = concat!(
    "SELECT ",
    record_columns!(),
    ", r.counted, r.kept_at_ms, r.slot, r.key FROM hints r LEFT JOIN large_values l ON l.id = r.large \
     WHERE r.target = ?1 AND (r.slot, r.key) > (?2, ?3) ORDER BY r.slot, r.key"
);
/// The hints of one node and slot, from a key's place on; their large values are not looked for.
pub(super) const SCAN_HINT_OUTLINES: &str = concat!(
    "SELECT ",
    own_columns!(),
    ", NULL, r.key FROM hints r WHERE r.target = ?1 AND r.slot = ?2 AND r.key >= ?3 ORDER BY r.key LIMIT ?4"
);
/// The record of an accepted state.
pub(super) const SELECT_ACCEPTED: &str = concat!(
    "SELECT ",
    record_columns!(),
    " FROM registers r LEFT JOIN large_values l ON l.id = r.large WHERE r.slot = ?1 AND r.key = ?2"
);
/// The first column after those of a record.
pub(super) const AFTER_RECORD: usize = 11;
/// Where the pointer to a large value is.
pub(super) const COLUMN_LARGE: usize = 8;

/// `REPLACE` on a table without secondary indexes is one insertion into its tree, whether a row stood there or not.
pub(super) const PUT_RECORD: &str = "REPLACE INTO records VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";
pub(super) const PUT_HINT: &str =
    "REPLACE INTO hints VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)";
/// What is accepted is promised, too.
pub(super) const PUT_ACCEPTED: &str = "REPLACE INTO registers \
     VALUES (?1, ?2, ?3, ?4, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)";

/// A row as it was found.
pub(super) struct Loaded {
    pub(super) weight: Weight,
    /// `None`: damaged.
    pub(super) stored: Option<Stored>,
}

/// A row that is what was written.
pub(super) struct Stored {
    pub(super) record: Record,
    /// Its row in `large_values`.
    pub(super) large: Option<i64>,
}

impl Loaded {
    /// Reads the columns of [`record_columns`], which come first in the row.
    pub(super) fn of(row: &Row<'_>, key: &Key) -> rusqlite::Result<Self> {
        let weight = weight(row, key.as_bytes())?;
        let stored = columns(row).filter(|stored| stored.record.is_intact(key));
        Ok(Self { weight, stored })
    }
}

/// How a row counts in the totals.
pub(super) fn weight(row: &Row<'_>, key: &[u8]) -> rusqlite::Result<Weight> {
    let content_type = row.get_ref(6)?;
    let value = row.get_ref(7)?;
    let large = row.get_ref(COLUMN_LARGE)?;
    let value_bytes = match value {
        ValueRef::Null => row.get_ref(9)?.as_i64().map_or(0, |n| n.max(0) as u64),
        value => bytes_of(value).map_or(0, |b| b.len() as u64),
    };
    let bytes = key.len() as u64 + bytes_of(content_type).map_or(0, |b| b.len() as u64) + value_bytes;
    let tombstone = matches!((value, large), (ValueRef::Null, ValueRef::Null));
    Ok(Weight { tombstone, bytes })
}

/// The version and checksum that the columns spell, unverified; `None` where they spell none.
pub(super) fn stamp(row: &Row<'_>) -> Option<(Version, u64)> {
    let int = |column| row.get_ref(column).ok()?.as_i64().ok();
    let writer = Writer(u32::try_from(int(1)?).ok()?);
    let version = Version { hlc: Hlc(int(0)? as u64), writer, rmw: u32::try_from(int(2)?).ok()? };
    Some((version, int(5)? as u64))
}

/// A row without its large value.
pub(super) enum Sketch {
    Whole(Record),
    /// Its value is elsewhere and was not verified.
    Part(Outline),
    Damaged,
}

/// Reads the columns of a row that has its large value's column NULL.
pub(super) fn sketch(row: &Row<'_>, key: &Key) -> rusqlite::Result<Sketch> {
    if row.get_ref(COLUMN_LARGE)? == ValueRef::Null {
        return Ok(Loaded::of(row, key)?.stored.map_or(Sketch::Damaged, |stored| Sketch::Whole(stored.record)));
    }
    let int = |column| row.get_ref(column).ok()?.as_i64_or_null().ok();
    let part = || {
        let (version, checksum) = stamp(row)?;
        let content_type = match bytes_of(row.get_ref(6).ok()?) {
            Some(text) => Some(ContentType::new(text.to_vec()).ok()?),
            None => None,
        };
        let (expires_at_ms, bytes) = (int(4)?.map(|ms| ms as u64), int(9)?? as u64);
        let written = int(3)?.map_or(version.hlc, |written| Hlc(written as u64));
        Some(Outline { version, written, tombstone: false, checksum, bytes, content_type, expires_at_ms, value: None })
    };
    Ok(part().map_or(Sketch::Damaged, Sketch::Part))
}

pub(super) fn bytes_of(value: ValueRef<'_>) -> Option<&[u8]> {
    value.as_bytes_or_null().ok().flatten()
}

/// The record that the columns spell, unverified; `None` where they spell none.
fn columns(row: &Row<'_>) -> Option<Stored> {
    let int = |column| row.get_ref(column).ok()?.as_i64_or_null().ok()?;
    let blob = |column| row.get_ref(column).ok().and_then(bytes_of);
    let (version, checksum) = stamp(row)?;
    let written = int(3).map_or(version.hlc, |ms| Hlc(ms as u64));
    let large = int(COLUMN_LARGE);
    let value = if large.is_some() { Some(blob(10)?) } else { blob(7) };
    let content = match value {
        None => Content::Tombstone,
        Some(bytes) => Content::Value {
            bytes: bytes.to_vec().into(),
            content_type: match blob(6) {
                Some(text) => Some(ContentType::new(text.to_vec()).ok()?),
                None => None,
            },
            expires_at_ms: int(4).map(|ms| ms as u64),
        },
    };
    Some(Stored { record: Record { version, written, content, checksum }, large })
}

/// The record of a key, if a row stands there.
pub(super) fn load(select: &mut CachedStatement<'_>, slot: Slot, key: &Key) -> rusqlite::Result<Option<Loaded>> {
    select.query_row(params![slot.0, key.as_bytes()], |row| Loaded::of(row, key)).optional()
}

/// A kept hint with what only a hint has.
pub(super) struct LoadedHint {
    pub(super) row: Loaded,
    pub(super) counted: bool,
    pub(super) kept_at_ms: u64,
}

impl LoadedHint {
    pub(super) fn of(row: &Row<'_>, key: &Key) -> rusqlite::Result<Self> {
        Ok(Self {
            row: Loaded::of(row, key)?,
            counted: row.get_ref(AFTER_RECORD)?.as_i64().is_ok_and(|n| n != 0),
            kept_at_ms: row.get_ref(AFTER_RECORD + 1)?.as_i64().map_or(0, |ms| ms as u64),
        })
    }
}

pub(super) fn load_hint(
    select: &mut CachedStatement<'_>,
    target: NodeNum,
    slot: Slot,
    key: &Key,
) -> rusqlite::Result<Option<LoadedHint>> {
    select.query_row(params![target.0, slot.0, key.as_bytes()], |row| LoadedHint::of(row, key)).optional()
}

/// A record about to be written: its columns, and where its value lies.
pub(super) struct Columns<'a> {
    record: &'a Record,
    content_type: Option<&'a [u8]>,
    expires_at_ms: Option<i64>,
    inline: Option<&'a [u8]>,
    large: Option<i64>,
    large_bytes: Option<i64>,
}

impl<'a> Columns<'a> {
    /// Puts a large value into its own row first, in place of the one that stood there (`old`), or takes that away.
    pub(super) fn place(conn: &Connection, key: &Key, record: &'a Record, old: Option<i64>) -> rusqlite::Result<Self> {
        let mut columns =
            Self { record, content_type: None, expires_at_ms: None, inline: None, large: None, large_bytes: None };
        let mut spilled = None;
        if let Content::Value { bytes, content_type, expires_at_ms } = &record.content {
            columns.content_type = content_type.as_ref().map(|c| &c.bytes()[..]);
            columns.expires_at_ms = expires_at_ms.map(|ms| ms as i64);
            let size = key.as_bytes().len() + record.content_bytes();
            if size <= INLINE_BYTES_MAX {
                columns.inline = Some(&bytes[..]);
            } else {
                spilled = Some(&bytes[..]);
            }
        }
        columns.large = match (spilled, old) {
            (None, None) => None,
            (None, Some(id)) => {
                forget_large(conn, id)?;
                None
            }
            (Some(value), Some(id)) => {
                conn.prepare_cached("REPLACE INTO large_values VALUES (?1, ?2)")?.execute(params![id, value])?;
                Some(id)
            }
            (Some(value), None) => {
                Some(conn.prepare_cached("INSERT INTO large_values (value) VALUES (?1)")?.insert(params![value])?)
            }
        };
        columns.large_bytes = spilled.map(|value| value.len() as i64);
        Ok(columns)
    }

    /// Whether the value reads as a tombstone, and what it weighs.
    pub(super) fn weight(&self, key: &Key) -> Weight {
        Weight::of(key, self.record)
    }

    pub(super) fn put_record(&self, put: &mut CachedStatement<'_>, slot: Slot, key: &Key) -> rusqlite::Result<()> {
        let (version, written) = (&self.record.version, self.written());
        put.execute(params![
            slot.0,
            key.as_bytes(),
            version.hlc.0 as i64,
            version.writer.0,
            version.rmw,
            written,
            self.expires_at_ms,
            self.record.checksum as i64,
            self.content_type,
            self.inline,
            self.large,
            self.large_bytes,
        ])?;
        Ok(())
    }

    pub(super) fn put_hint(
        &self,
        put: &mut CachedStatement<'_>,
        (target, slot, key): (NodeNum, Slot, &Key),
        counted: bool,
        kept_at_ms: u64,
    ) -> rusqlite::Result<()> {
        let (version, written) = (&self.record.version, self.written());
        put.execute(params![
            target.0,
            slot.0,
            key.as_bytes(),
            version.hlc.0 as i64,
            version.writer.0,
            version.rmw,
            written,
            self.expires_at_ms,
            self.record.checksum as i64,
            self.content_type,
            self.inline,
            self.large,
            self.large_bytes,
            counted,
            kept_at_ms as i64,
        ])?;
        Ok(())
    }

    /// `state`, seal and place as `register` makes them.
    pub(super) fn put_accepted(
        &self,
        put: &mut CachedStatement<'_>,
        (slot, key): (Slot, &Key),
        ballot: Ballot,
        state: &[u8],
        (seal, place): (i64, i64),
    ) -> rusqlite::Result<()> {
        let (version, written) = (&self.record.version, self.written());
        put.execute(params![
            slot.0,
            key.as_bytes(),
            ballot.hlc.0 as i64,
            ballot.writer.0,
            state,
            seal,
            version.hlc.0 as i64,
            version.writer.0,
            version.rmw,
            written,
            self.expires_at_ms,
            self.record.checksum as i64,
            self.content_type,
            self.inline,
            self.large,
            self.large_bytes,
            place,
        ])?;
        Ok(())
    }

    /// The row of the value in `large_values`.
    pub(super) fn large(&self) -> Option<i64> {
        self.large
    }

    fn written(&self) -> Option<i64> {
        (self.record.written != self.record.version.hlc).then_some(self.record.written.0 as i64)
    }
}

pub(super) fn forget_large(conn: &Connection, id: i64) -> rusqlite::Result<()> {
    conn.prepare_cached("DELETE FROM large_values WHERE id = ?1")?.execute([id])?;
    Ok(())
}
