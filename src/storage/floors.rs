//! What each slot has purged up to, and is sealed up to: on disk with a checksum, and in memory for every request.
//!
//! Invariants:
//! - What is in memory is on disk: a batch sees what it raises itself, everybody else sees it once it is committed.
//! - Neither ever goes down.
//! - A damaged row is damage of the whole database, as a floor that was forgotten would let a deleted key come back.

use std::sync::Arc;

use parking_lot::RwLock;
use rusqlite::{Connection, Row, params};
use xxhash_rust::xxh3::xxh3_64;

use crate::ports::StoreError;
use crate::types::{Ballot, Floor, Hlc, Slot, SlotFloor, Version, Writer};

const SELECT: &str =
    "SELECT slot, written, hlc, writer, rmw, ballot_hlc, ballot_writer, sealed, checksum FROM floors ORDER BY slot";
const PUT: &str = "REPLACE INTO floors VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";

/// The floors of all slots, shared by the store's threads.
pub(super) struct Floors(RwLock<Box<[SlotFloor]>>);

impl Floors {
    /// # Errors
    /// [`StoreError::Damaged`] where one is not as it was written, or cannot be read.
    pub(super) fn load(conn: &Connection) -> Result<Arc<Self>, StoreError> {
        let mut floors = vec![SlotFloor::default(); Slot::COUNT];
        let damaged = |e: rusqlite::Error| StoreError::Damaged(format!("the floors: {e}"));
        let mut select = conn.prepare(SELECT).map_err(damaged)?;
        let mut rows = select.query([]).map_err(damaged)?;
        while let Some(row) = rows.next().map_err(damaged)? {
            let (slot, floor) = read(row).ok_or_else(|| StoreError::Damaged("a slot's floor".into()))?;
            floors[slot.index()] = floor;
        }
        Ok(Arc::new(Self(RwLock::new(floors.into()))))
    }

    pub(super) fn get(&self, slot: Slot) -> SlotFloor {
        self.0.read()[slot.index()]
    }

    /// Takes over what was committed.
    pub(super) fn set(&self, raised: impl Iterator<Item = (Slot, SlotFloor)>) {
        let mut floors = self.0.write();
        raised.for_each(|(slot, floor)| floors[slot.index()] = floor);
    }
}

/// Puts a slot's floor and seal in place of those before.
pub(super) fn put(conn: &Connection, slot: Slot, kept: &SlotFloor) -> rusqlite::Result<()> {
    let SlotFloor { floor: Floor { written, version, ballot }, sealed } = kept;
    conn.prepare_cached(PUT)?.execute(params![
        slot.0,
        written.0 as i64,
        version.hlc.0 as i64,
        version.writer.0,
        version.rmw,
        ballot.hlc.0 as i64,
        ballot.writer.0,
        sealed.0 as i64,
        checksum(slot, kept) as i64,
    ])?;
    Ok(())
}

/// `None` where the row is not as it was written.
fn read(row: &Row<'_>) -> Option<(Slot, SlotFloor)> {
    let hlc = |column| row.get::<_, i64>(column).map(|n| Hlc(n as u64)).ok();
    let int = |column| row.get::<_, u32>(column).ok();
    let version = Version { hlc: hlc(2)?, writer: Writer(int(3)?), rmw: int(4)? };
    let ballot = Ballot { hlc: hlc(5)?, writer: Writer(int(6)?) };
    let kept = SlotFloor { floor: Floor { written: hlc(1)?, version, ballot }, sealed: hlc(7)? };
    let slot = Slot(row.get(0).ok()?);
    (row.get::<_, i64>(8).ok()? as u64 == checksum(slot, &kept)).then_some((slot, kept))
}

fn checksum(slot: Slot, kept: &SlotFloor) -> u64 {
    let SlotFloor { floor: Floor { written, version, ballot }, sealed } = kept;
    let parts = [
        u64::from(slot.0),
        written.0,
        version.hlc.0,
        version.writer.0.into(),
        version.rmw.into(),
        ballot.hlc.0,
        ballot.writer.0.into(),
        sealed.0,
    ];
    let mut bytes = [0; 64];
    for (place, part) in bytes.chunks_exact_mut(8).zip(parts) {
        place.copy_from_slice(&part.to_le_bytes());
    }
    xxh3_64(&bytes)
}
