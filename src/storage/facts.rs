//! Single values in the database: topology, proposal, clock reservation, the mark of the saved sums.

use rusqlite::{Connection, OptionalExtension, params};
use xxhash_rust::xxh3::xxh3_64;

use crate::ports::StoreError;
use crate::types::{Hlc, Topology, Vote};

const TOPOLOGY: &str = "topology";
const PROPOSAL: &str = "proposal";
const CLOCK: &str = "clock";
const VOTE: &str = "vote";
const SUMS: &str = "sums";

pub(super) fn topology(conn: &Connection) -> Result<Option<Topology>, StoreError> {
    Ok(load(conn, TOPOLOGY)?.map(|body| Topology::decode(&body)).transpose()?)
}

/// An epoch that is not newer than the stored one changes nothing. The proposal ends: something is committed.
pub(super) fn save_topology(conn: &Connection, topology: &Topology) -> rusqlite::Result<()> {
    let stored = read(conn, TOPOLOGY)?.and_then(|(body, intact)| Topology::decode(&body).ok().filter(|_| intact));
    if stored.is_some_and(|s| s.epoch >= topology.epoch) {
        return Ok(());
    }
    save(conn, TOPOLOGY, &topology.encode())?;
    conn.execute("DELETE FROM facts WHERE name = ?1", [PROPOSAL])?;
    Ok(())
}

pub(super) fn proposal(conn: &Connection) -> Result<Option<Topology>, StoreError> {
    Ok(load(conn, PROPOSAL)?.map(|body| Topology::decode(&body)).transpose()?)
}

pub(super) fn save_proposal(conn: &Connection, topology: &Topology) -> rusqlite::Result<()> {
    save(conn, PROPOSAL, &topology.encode())
}

pub(super) fn vote(conn: &Connection) -> Result<Option<Vote>, StoreError> {
    Ok(load(conn, VOTE)?.map(|body| Vote::decode(&body)).transpose()?)
}

pub(super) fn save_vote(conn: &Connection, vote: &Vote) -> rusqlite::Result<()> {
    save(conn, VOTE, &vote.encode())
}

pub(super) fn clock_reservation(conn: &Connection) -> Result<Hlc, StoreError> {
    let Some(body) = load(conn, CLOCK)? else { return Ok(Hlc::ZERO) };
    let bytes = body.try_into().map_err(|_| StoreError::Damaged("the clock reservation".into()))?;
    Ok(Hlc(u64::from_be_bytes(bytes)))
}

/// A reservation never shrinks.
pub(super) fn reserve_clock(conn: &Connection, until: Hlc) -> rusqlite::Result<()> {
    let stored = read(conn, CLOCK)?.and_then(|(body, intact)| <[u8; 8]>::try_from(body).ok().filter(|_| intact));
    if stored.is_some_and(|bytes| u64::from_be_bytes(bytes) >= until.0) {
        return Ok(());
    }
    save(conn, CLOCK, &until.0.to_be_bytes())
}

/// The reservation ends there, also where it reached further.
pub(super) fn release_clock(conn: &Connection, last: Hlc) -> rusqlite::Result<()> {
    save(conn, CLOCK, &last.0.to_be_bytes())
}

/// Everything but the clock's reservation: for a copy that becomes another instance's.
pub(super) fn forget_all_but_clock(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute("DELETE FROM facts WHERE name <> ?1", [CLOCK])?;
    Ok(())
}

/// Marks the saved sums as those of the rows; `checksum` names them.
pub(super) fn mark_sums(conn: &Connection, checksum: u64) -> rusqlite::Result<()> {
    save(conn, SUMS, &checksum.to_be_bytes())
}

/// What the mark says. `Some(None)`: there is one, and it is damaged.
pub(super) fn sums_mark(conn: &Connection) -> rusqlite::Result<Option<Option<u64>>> {
    let found = read(conn, SUMS)?;
    Ok(found.map(|(body, intact)| body.try_into().ok().filter(|_| intact).map(u64::from_be_bytes)))
}

pub(super) fn unmark_sums(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute("DELETE FROM facts WHERE name = ?1", [SUMS])?;
    Ok(())
}

/// A value whose name was damaged would read as one that was never stored: a vote or a reservation forgotten.
///
/// # Errors
/// [`StoreError::Damaged`] where there is a value under another name than these.
pub(super) fn are_known(conn: &Connection) -> Result<(), StoreError> {
    let damaged = |what: String| StoreError::Damaged(format!("the single values: {what}"));
    let names = || -> rusqlite::Result<Vec<String>> {
        conn.prepare("SELECT name FROM facts")?.query_map([], |row| row.get(0))?.collect()
    };
    let known = [TOPOLOGY, PROPOSAL, CLOCK, VOTE, SUMS];
    match names().map_err(|e| damaged(e.to_string()))?.iter().find(|name| !known.contains(&&name[..])) {
        Some(name) => Err(damaged(format!("one is called {name:?}"))),
        None => Ok(()),
    }
}

fn save(conn: &Connection, name: &str, body: &[u8]) -> rusqlite::Result<()> {
    conn.prepare_cached("REPLACE INTO facts VALUES (?1, ?2, ?3)")?.execute(params![
        name,
        body,
        xxh3_64(body) as i64
    ])?;
    Ok(())
}

fn load(conn: &Connection, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    match read(conn, name) {
        Ok(Some((_, false))) => Err(StoreError::Damaged(format!("the stored {name}"))),
        Ok(found) => Ok(found.map(|(body, _)| body)),
        Err(e) => Err(StoreError::Damaged(format!("the stored {name}: {e}"))),
    }
}

/// The body and whether it is what was written.
fn read(conn: &Connection, name: &str) -> rusqlite::Result<Option<(Vec<u8>, bool)>> {
    conn.prepare_cached("SELECT body, checksum FROM facts WHERE name = ?1")?
        .query_row([name], |row| {
            let body: Vec<u8> = row.get(0)?;
            let intact = row.get::<_, i64>(1)? as u64 == xxh3_64(&body);
            Ok((body, intact))
        })
        .optional()
}
