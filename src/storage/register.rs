//! A key's register inside a transaction: promising and accepting, and how both lie on disk.
//!
//! Why it is laid out so:
//! - Promise and accepted state share *one row*, as every prepare needs both. The accepted value lies where a record's
//!   would: in the row while it is small, else in `large_values`. So a promise rewrites less than half a page and never a
//!   large value, and there is one way of placing those.
//! - It is a table *beside* `records`, so that plain reads and writes never meet it. The price: what a conditional write
//!   wrote lies on disk twice, accepted and in the key's row.
//! - The *seal*, xxh3-64, covers slot, key, promise, the accepted ballot, `state`, and the record's checksum and pointer
//!   to a large value. The record's other columns are covered by that checksum in turn. So a promise is verified without
//!   reading a value, and a pointer is believed only under a seal that holds.
//! - The *place*, xxh3-64 of slot and key alone, tells whose row it is where the seal does not hold any more.
//!
//! `state` is, little-endian: the op id (16 bytes), then 49 bytes for each remembered answer, oldest first: the hashes of
//! key and request (16 each), the answer (1), the version (8, 4, 4). Another layout takes a migration.
//!
//! Invariants:
//! - A lost promise is never taken for none. A damaged row refuses prepare and accept, for good. A key without a row counts
//!   as new only while the rows on either side of it are surely those of other keys, by their seal or their place: a row
//!   whose key was damaged still lies where it did, and a search that it leads astray ends beside it.
//! - What is refused changed nothing: everything is verified before anything is saved.
//! - An accepted state takes the large value of the one before with it.
//!
//! Caveat: an accept needs the promise alone. It is taken over an accepted value that is damaged, as it would replace that
//! value anyhow; a prepare, which has to tell it, is refused.

use bytes::{Buf, BufMut};
use rusqlite::{Connection, OptionalExtension, Row, params};
use smallvec::SmallVec;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::engine::{Batch, Outcome};
use super::row::{self, Columns, Loaded};
use crate::ports::{Refusal, ReplicaReply};
use crate::protocol::register;
use crate::types::limits::REMEMBERED_MAX;
use crate::types::{
    Accepted, Ballot, Hlc, Idempotency, Key, OpId, Promise, Recent, Record, Register, Remembered, RememberedAnswer,
    Slot, Version, Writer,
};

/// The columns that [`Head::of`] reads.
macro_rules! head_columns {
    () => {
        "slot, key, promised_hlc, promised_writer, ballot_hlc, ballot_writer, state, seal, checksum, large, place"
    };
}

const SELECT_HEAD: &str = concat!("SELECT ", head_columns!(), " FROM registers WHERE slot = ?1 AND key = ?2");
const HEAD_BEFORE: &str = concat!(
    "SELECT ",
    head_columns!(),
    " FROM registers WHERE (slot, key) < (?1, ?2) ORDER BY slot DESC, key DESC LIMIT 1"
);
const HEAD_AFTER: &str =
    concat!("SELECT ", head_columns!(), " FROM registers WHERE (slot, key) > (?1, ?2) ORDER BY slot, key LIMIT 1");
pub(super) const SCAN_HEADS: &str =
    concat!("SELECT ", head_columns!(), " FROM registers WHERE slot = ?1 AND key > ?2 ORDER BY key LIMIT ?3");
/// Rows from a place on, whatever slot they are of, with the length of the large value.
pub(super) const WALK_HEADS: &str =
    concat!("SELECT ", head_columns!(), ", large_bytes FROM registers WHERE (slot, key) > (?1, ?2) ORDER BY slot, key");
/// The column of [`WALK_HEADS`] after those of a head.
pub(super) const AFTER_HEAD: usize = 11;
/// Rows of [`SCAN_HEADS`]: a few milliseconds of a reader's time.
pub(super) const SCAN_ROWS: usize = 2048;
const PUT_PROMISE: &str = "INSERT INTO registers (slot, key, promised_hlc, promised_writer, seal, place) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
     ON CONFLICT DO UPDATE SET promised_hlc = ?3, promised_writer = ?4, seal = ?5, place = ?6";
/// An accepted state without a record.
const PUT_ABSENT: &str = "REPLACE INTO registers \
     (slot, key, promised_hlc, promised_writer, ballot_hlc, ballot_writer, state, seal, place) \
     VALUES (?1, ?2, ?3, ?4, ?3, ?4, ?5, ?6, ?7)";

/// Why a register cannot be read.
pub(super) enum Unread {
    /// What is not as it was written.
    Damaged(&'static str),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Unread {
    fn from(error: rusqlite::Error) -> Self {
        Unread::Sqlite(error)
    }
}

impl Batch<'_> {
    /// Promised, with what is held; or outbid, or refused as damaged, and then nothing changed.
    pub(super) fn prepare(&mut self, slot: Slot, key: &Key, ballot: Ballot) -> rusqlite::Result<ReplicaReply> {
        let reply = self.promise(slot, key, ballot);
        self.refuse_damage(slot, key, reply)
    }

    /// Accepted; or outbid, or refused as damaged, and then nothing changed.
    pub(super) fn accept(&mut self, slot: Slot, key: &Key, accepted: &Accepted) -> rusqlite::Result<ReplicaReply> {
        let reply = self.keep(slot, key, accepted);
        self.refuse_damage(slot, key, reply)
    }

    fn refuse_damage(
        &self,
        slot: Slot,
        key: &Key,
        reply: Result<ReplicaReply, Unread>,
    ) -> rusqlite::Result<ReplicaReply> {
        match reply {
            Ok(reply) => Ok(reply),
            Err(Unread::Damaged(what)) => {
                self.meters.damaged(slot, key, &what);
                Ok(ReplicaReply::Refused(Refusal::Damaged))
            }
            Err(Unread::Sqlite(error)) => Err(error),
        }
    }

    fn promise(&mut self, slot: Slot, key: &Key, ballot: Ballot) -> Result<ReplicaReply, Unread> {
        let kept = self.kept(slot);
        let Head { promised, accepted: state } = head(&self.engine.conn, slot, key)?;
        if let Err(promised) = register::prepare(promised, kept.bound(), ballot) {
            return Ok(ReplicaReply::Outbid { promised });
        }
        let accepted = state.as_ref().map(|state| accepted(&self.engine.conn, slot, key, state)).transpose()?;
        let record = sound(row::load(&mut self.select, slot, key)?, "checksum of the record under a register")?;
        put_promise(&self.engine.conn, slot, key, ballot, state.as_ref())?;
        Ok(ReplicaReply::Promised(Box::new(Promise { accepted, record, floor: kept.told() })))
    }

    fn keep(&mut self, slot: Slot, key: &Key, accepted: &Accepted) -> Result<ReplicaReply, Unread> {
        let Head { promised, accepted: before } = head(&self.engine.conn, slot, key)?;
        if let Err(promised) = register::accept(promised, self.kept(slot).bound(), accepted.ballot) {
            return Ok(ReplicaReply::Outbid { promised });
        }
        self.put_accepted(slot, key, accepted, before)?;
        Ok(ReplicaReply::Accepted)
    }

    /// Merges the register that another replica holds of the key.
    pub(super) fn merge(&mut self, slot: Slot, key: &Key, other: &Register) -> rusqlite::Result<Outcome> {
        match self.merge_register(slot, key, other) {
            Ok(()) => Ok(Outcome::Done),
            Err(Unread::Damaged(what)) => {
                self.meters.damaged(slot, key, &what);
                Ok(Outcome::Damaged)
            }
            Err(Unread::Sqlite(error)) => Err(error),
        }
    }

    fn merge_register(&mut self, slot: Slot, key: &Key, other: &Register) -> Result<(), Unread> {
        let own = head(&self.engine.conn, slot, key)?;
        let promised = own.promised.max(other.promised);
        let newer = |theirs: &&Accepted| own.accepted.as_ref().is_none_or(|mine| mine.ballot < theirs.ballot);
        match other.accepted.as_ref().filter(newer) {
            Some(accepted) => {
                self.put_accepted(slot, key, accepted, own.accepted)?;
                // That promised its ballot and no more.
                let now = head(&self.engine.conn, slot, key)?;
                put_promise(&self.engine.conn, slot, key, promised.max(accepted.ballot), now.accepted.as_ref())?;
            }
            None => put_promise(&self.engine.conn, slot, key, promised, own.accepted.as_ref())?,
        }
        Ok(())
    }

    /// Accepts, whatever was promised: its ballot is promised afterwards.
    fn put_accepted(&self, slot: Slot, key: &Key, accepted: &Accepted, before: Option<State>) -> Result<(), Unread> {
        let conn = &self.engine.conn;
        let Accepted { ballot, op, record, recent } = accepted;
        let old = before.and_then(|state| state.large);
        let columns = match (record, old) {
            (Some(record), _) => Some(Columns::place(conn, key, record, old)?),
            (None, Some(id)) => row::forget_large(conn, id).map(|()| None)?,
            (None, None) => None,
        };
        let state = State {
            ballot: *ballot,
            bytes: encode(*op, recent),
            checksum: record.as_ref().map(|record| record.checksum),
            large: columns.as_ref().and_then(Columns::large),
        };
        let seal = seal(slot.0.into(), key.as_bytes(), *ballot, Some(&state)) as i64;
        let place = place(slot.0.into(), key.as_bytes()) as i64;
        match columns {
            Some(columns) => {
                let mut put = conn.prepare_cached(row::PUT_ACCEPTED)?;
                columns.put_accepted(&mut put, (slot, key), *ballot, &state.bytes, (seal, place))?;
            }
            None => {
                let (hlc, writer) = (ballot.hlc.0 as i64, ballot.writer.0);
                let mut put = conn.prepare_cached(PUT_ABSENT)?;
                put.execute(params![slot.0, key.as_bytes(), hlc, writer, state.bytes, seal, place])?;
            }
        }
        Ok(())
    }
}

/// What stands for the key; nothing promised and accepted where it surely has no row.
fn head(conn: &Connection, slot: Slot, key: &Key) -> Result<Head, Unread> {
    let at = params![slot.0, key.as_bytes()];
    let mut select = conn.prepare_cached(SELECT_HEAD)?;
    if let Some(head) = select.query_row(at, |row| Ok(Head::of(row))).optional()? {
        return head.ok_or(Unread::Damaged("seal of a register"));
    }
    for beside in [HEAD_BEFORE, HEAD_AFTER] {
        let mut select = conn.prepare_cached(beside)?;
        if select.query_row(at, |row| Ok(!is_another(row))).optional()? == Some(true) {
            return Err(Unread::Damaged("the place of a register beside it, which may be its own"));
        }
    }
    Ok(Head::default())
}

pub(super) fn accepted(conn: &Connection, slot: Slot, key: &Key, state: &State) -> Result<Accepted, Unread> {
    let (op, recent) = decode(&state.bytes).ok_or(Unread::Damaged("state of a register"))?;
    let record = match state.checksum {
        Some(_) => {
            let mut select = conn.prepare_cached(row::SELECT_ACCEPTED)?;
            let damage = "checksum of an accepted record";
            Some(sound(row::load(&mut select, slot, key)?, damage)?.ok_or(Unread::Damaged(damage))?)
        }
        None => None,
    };
    Ok(Accepted { ballot: state.ballot, op, record, recent })
}

/// What the register of a key promised; `None` where it surely has none.
///
/// # Errors
/// What is damaged, as text.
pub(super) fn promised(conn: &Connection, slot: Slot, key: &Key) -> Result<Option<Ballot>, String> {
    match head(conn, slot, key) {
        Ok(Head { promised, accepted }) => {
            Ok(Some(promised).filter(|_| promised != Ballot::default() || accepted.is_some()))
        }
        Err(Unread::Damaged(what)) => Err(what.to_owned()),
        Err(Unread::Sqlite(error)) => Err(error.to_string()),
    }
}

/// Takes away the register of a key, which is intact.
pub(super) fn remove(conn: &Connection, slot: Slot, key: &Key) -> rusqlite::Result<()> {
    let at = params![slot.0, key.as_bytes()];
    conn.prepare_cached(
        "DELETE FROM large_values WHERE id IN (SELECT large FROM registers WHERE slot = ?1 AND key = ?2)",
    )?
    .execute(at)?;
    conn.prepare_cached("DELETE FROM registers WHERE slot = ?1 AND key = ?2")?.execute(at)?;
    Ok(())
}

/// The register of a key for whoever only reads; `None` where it surely has none.
///
/// # Errors
/// What is damaged, as text.
pub(super) fn read(conn: &Connection, slot: Slot, key: &Key) -> Result<Option<Register>, String> {
    let read = || {
        let Head { promised, accepted: state } = head(conn, slot, key)?;
        let accepted = state.map(|state| accepted(conn, slot, key, &state)).transpose()?;
        Ok(Register { promised, accepted })
    };
    match read() {
        Ok(register) => Ok((register != Register::default()).then_some(register)),
        Err(Unread::Damaged(what)) => Err(what.to_owned()),
        Err(Unread::Sqlite(error)) => Err(error.to_string()),
    }
}

/// Adds the keys, as they read, of a part of a slot's registers that are not what was written, and says after which key to
/// go on. Nobody can mend them: what they promised is not known.
pub(super) fn lost(
    conn: &Connection,
    slot: Slot,
    after: &[u8],
    lost: &mut Vec<Vec<u8>>,
) -> rusqlite::Result<Option<Vec<u8>>> {
    let (mut seen, mut last) = (0, Vec::new());
    let mut select = conn.prepare_cached(SCAN_HEADS)?;
    let mut rows = select.query(params![slot.0, after, SCAN_ROWS as i64])?;
    while let Some(row) = rows.next()? {
        seen += 1;
        last = row::bytes_of(row.get_ref(1)?).unwrap_or_default().to_vec();
        let sound = match (Head::of(row), Key::new(last.clone())) {
            (Some(Head { accepted: Some(state), .. }), Ok(key)) => match accepted(conn, slot, &key, &state) {
                Ok(_) => true,
                Err(Unread::Damaged(_)) => false,
                Err(Unread::Sqlite(error)) => return Err(error),
            },
            (head, key) => head.is_some() && key.is_ok(),
        };
        if !sound {
            lost.push(last.clone());
        }
    }
    Ok((seen == SCAN_ROWS).then_some(last))
}

fn put_promise(
    conn: &Connection,
    slot: Slot,
    key: &Key,
    ballot: Ballot,
    state: Option<&State>,
) -> rusqlite::Result<()> {
    conn.prepare_cached(PUT_PROMISE)?.execute(params![
        slot.0,
        key.as_bytes(),
        ballot.hlc.0 as i64,
        ballot.writer.0,
        seal(slot.0.into(), key.as_bytes(), ballot, state) as i64,
        place(slot.0.into(), key.as_bytes()) as i64,
    ])?;
    Ok(())
}

/// The record of a row that holds one; damage is no record.
fn sound(found: Option<Loaded>, damage: &'static str) -> Result<Option<Record>, Unread> {
    found.map(|loaded| loaded.stored.map(|s| s.record).ok_or(Unread::Damaged(damage))).transpose()
}

/// A row without the contents of the accepted record: what the seal covers. The default is no row at all.
#[derive(Default)]
pub(super) struct Head {
    pub(super) promised: Ballot,
    pub(super) accepted: Option<State>,
}

pub(super) struct State {
    pub(super) ballot: Ballot,
    /// What [`encode`] made.
    bytes: Vec<u8>,
    /// Of the record, where the state has one.
    pub(super) checksum: Option<u64>,
    large: Option<i64>,
}

impl Head {
    /// `None` where the seal is not that of the columns.
    pub(super) fn of(row: &Row<'_>) -> Option<Self> {
        let int = |column| row.get_ref(column).ok()?.as_i64_or_null().ok()?;
        let blob = |column| row.get_ref(column).ok()?.as_blob_or_null().ok()?;
        let ballot = |hlc, writer| {
            Some(Ballot { hlc: Hlc(int(hlc)? as u64), writer: Writer(u32::try_from(int(writer)?).ok()?) })
        };
        let accepted = match blob(6) {
            Some(bytes) => Some(State {
                ballot: ballot(4, 5)?,
                bytes: bytes.to_vec(),
                checksum: int(8).map(|sum| sum as u64),
                large: int(9),
            }),
            None => None,
        };
        let promised = ballot(2, 3)?;
        let sealed = int(7)? as u64 == seal(int(0)?, blob(1)?, promised, accepted.as_ref());
        sealed.then_some(Self { promised, accepted })
    }
}

/// Whether slot and key in the row are those it was written with, and so those of another key.
pub(super) fn is_another(row: &Row<'_>) -> bool {
    let placed = || {
        let found = row.get_ref(10).ok()?.as_i64().ok()?;
        let key = row.get_ref(1).ok()?.as_blob().ok()?;
        Some(found as u64 == place(row.get_ref(0).ok()?.as_i64().ok()?, key))
    };
    placed() == Some(true) || Head::of(row).is_some()
}

/// The slot as the column has it: it may be damaged, too.
fn place(slot: i64, key: &[u8]) -> u64 {
    let mut bytes = SmallVec::<[u8; 128]>::new();
    bytes.extend_from_slice(&slot.to_le_bytes());
    bytes.extend_from_slice(key);
    xxh3_64(&bytes)
}

/// The slot as in [`place`].
fn seal(slot: i64, key: &[u8], promised: Ballot, accepted: Option<&State>) -> u64 {
    let mut bytes = Vec::with_capacity(64 + key.len() + accepted.map_or(0, |state| state.bytes.len()));
    bytes.put_i64_le(slot);
    bytes.put_u32_le(key.len() as u32);
    bytes.put_slice(key);
    put_ballot(&mut bytes, promised);
    if let Some(state) = accepted {
        // Its first byte tells what there is. All parts but the last have fixed lengths, so no two rows feed the same.
        bytes.put_u8(u8::from(state.checksum.is_some()) | u8::from(state.large.is_some()) << 1);
        put_ballot(&mut bytes, state.ballot);
        bytes.put_u64_le(state.checksum.unwrap_or_default());
        bytes.put_i64_le(state.large.unwrap_or_default());
        bytes.put_slice(&state.bytes);
    }
    xxh3_64(&bytes)
}

fn put_ballot(bytes: &mut Vec<u8>, ballot: Ballot) {
    bytes.put_u64_le(ballot.hlc.0);
    bytes.put_u32_le(ballot.writer.0);
}

/// The column `state`.
fn encode(op: OpId, recent: &Recent) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + 49 * recent.entries().len());
    bytes.put_u128_le(op.0.as_u128());
    for Remembered { request, answer, version } in recent.entries() {
        bytes.put_u128_le(request.key);
        bytes.put_u128_le(request.request);
        bytes.put_u8(match answer {
            RememberedAnswer::Created => 1,
            RememberedAnswer::Replaced => 2,
            RememberedAnswer::ConditionFailed => 3,
        });
        bytes.put_u64_le(version.hlc.0);
        bytes.put_u32_le(version.writer.0);
        bytes.put_u32_le(version.rmw);
    }
    bytes
}

/// `None` for what [`encode`] never makes.
fn decode(mut bytes: &[u8]) -> Option<(OpId, Recent)> {
    let op = OpId(Uuid::from_u128(bytes.try_get_u128_le().ok()?));
    let mut entries = Vec::new();
    while bytes.has_remaining() {
        let request = Idempotency { key: bytes.try_get_u128_le().ok()?, request: bytes.try_get_u128_le().ok()? };
        let answer = match bytes.try_get_u8().ok()? {
            1 => RememberedAnswer::Created,
            2 => RememberedAnswer::Replaced,
            3 => RememberedAnswer::ConditionFailed,
            _ => return None,
        };
        let version = Version {
            hlc: Hlc(bytes.try_get_u64_le().ok()?),
            writer: Writer(bytes.try_get_u32_le().ok()?),
            rmw: bytes.try_get_u32_le().ok()?,
        };
        entries.push(Remembered { request, answer, version });
    }
    (entries.len() <= REMEMBERED_MAX).then(|| (op, Recent::new(entries)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn remembered(seed: u128) -> Remembered {
        let answers = [RememberedAnswer::Created, RememberedAnswer::Replaced, RememberedAnswer::ConditionFailed];
        Remembered {
            request: Idempotency { key: seed, request: seed.rotate_left(64) },
            answer: answers[(seed % 3) as usize],
            version: Version { hlc: Hlc(seed as u64), writer: Writer(seed as u32), rmw: !seed as u32 },
        }
    }

    proptest! {
        #[test]
        fn a_state_survives_its_bytes(op: u128, seeds in prop::collection::vec(any::<u128>(), 0..=REMEMBERED_MAX)) {
            let recent = Recent::new(seeds.into_iter().map(remembered).collect());
            let bytes = encode(OpId(Uuid::from_u128(op)), &recent);
            prop_assert_eq!(decode(&bytes), Some((OpId(Uuid::from_u128(op)), recent)));
            // Cut anywhere but between two answers it is none.
            for len in 0..bytes.len() {
                prop_assert_eq!(decode(&bytes[..len]).is_some(), len >= 16 && (len - 16) % 49 == 0);
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            decode(&bytes);
        }
    }

    #[test]
    fn a_state_of_too_many_answers_is_none() {
        let bytes = encode(OpId(Uuid::from_u128(1)), &Recent::new((1..9).map(remembered).collect()));
        let mut more = bytes.clone();
        more.extend_from_slice(&bytes[16..65]);
        assert!(decode(&bytes).is_some() && decode(&more).is_none());
    }
}
