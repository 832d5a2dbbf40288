//! Floors, seals and purging on disk.

use super::rare::{eventually, wait};
use super::register::ballot;
use super::*;
use crate::ports::Purging;
use crate::types::{Accepted, Ballot, Dropped, Floor, OpId, Recent, Slot, SlotDrop, SlotSet};

fn slot(text: &str) -> Slot {
    key(text).token(seed()).slot()
}

fn only(text: &str) -> SlotSet {
    [slot(text)].into_iter().collect()
}

fn floor(g: u64, v: u64) -> Floor {
    Floor { written: Hlc(g), version: version(v), ballot: Ballot::sealing(Hlc(g)) }
}

fn delete(text: &str, hlc: u64) -> ReplicaRequest {
    let key = key(text);
    let record = record(&key, hlc, Content::Tombstone);
    ReplicaRequest::Write { key, record }
}

fn prepare(text: &str, hlc: u64) -> ReplicaRequest {
    ReplicaRequest::Prepare { key: key(text), ballot: ballot(hlc) }
}

fn accept(text: &str, at: u64, version: u64) -> ReplicaRequest {
    let record = Some(record(&key(text), version, Content::value(vec![7; 2000])));
    let accepted = Accepted { ballot: ballot(at), op: OpId(Uuid::nil()), record, recent: Recent::NONE };
    ReplicaRequest::Accept { key: key(text), accepted: Box::new(accepted) }
}

fn drop_of(text: &str, floor: Floor, up_to: u64) -> Vec<SlotDrop> {
    vec![SlotDrop { slot: slot(text), floor, up_to: Hlc(up_to) }]
}

#[test]
fn a_floor_refuses_what_was_purged_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    ask(&*store, delete("k", 5));
    wait(store.raise(vec![(slot("k"), floor(9, 5))]));
    let before = wait(store.survey(only("k")));
    assert_eq!((before[0].tombstones, before[0].floor), (1, floor(9, 5)));
    assert_eq!(wait(store.purge(drop_of("k", floor(10, 5), 6))), Dropped::default(), "that floor is not here");
    assert_eq!(wait(store.purge(drop_of("k", floor(9, 5), 4))), Dropped::default(), "too young");
    let gone = Dropped { tombstones: 1, ..Dropped::default() };
    assert_eq!(wait(store.purge(drop_of("k", floor(9, 5), 5))), gone);
    assert_eq!(ask(&*store, read("k")), ReplicaReply::Record { record: None, floor: floor(9, 5) });
    assert_eq!(ask(&*store, write("k", 4, "old")), ReplicaReply::BelowFloor { floor: floor(9, 5) });
    wait(store.raise(vec![(slot("k"), floor(7, 8))]));
    let both = floor(9, 5).merge(&floor(7, 8));
    eventually("the slots are counted", || store.totals().counted);
    assert_eq!(store.totals().tombstones, 0);
    store.close();
    drop(store);
    let store = open(dir.path());
    assert_eq!(wait(store.survey(only("k")))[0].floor, both, "no part goes down");
    assert_eq!(ask(&*store, write("k", 4, "old")), ReplicaReply::BelowFloor { floor: both });
    assert!(matches!(ask(&*store, write("k", 10, "new")), ReplicaReply::Stored { replaced: None }));
}

#[test]
fn a_seal_refuses_ballots_and_names_what_is_unsettled() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    ask(&*store, write("k", 3, "v"));
    assert_eq!(ask(&*store, accept("k", 5, 4)), ReplicaReply::Accepted);
    let sealed = wait(store.seal(only("k"), Hlc(7)));
    assert_eq!(sealed[0].unsettled, [key("k")]);
    let outbid = ReplicaReply::Outbid { promised: Ballot::sealing(Hlc(7)) };
    assert_eq!(ask(&*store, prepare("k", 7)), outbid);
    assert_eq!(ask(&*store, accept("k", 6, 4)), outbid);
    assert!(matches!(ask(&*store, prepare("k", 8)), ReplicaReply::Promised(_)), "and no floor ends what it accepted");
    ask(&*store, write("k", 4, "v"));
    assert!(wait(store.seal(only("k"), Hlc(7)))[0].unsettled.is_empty());
}

#[test]
fn a_tombstone_goes_with_its_register_and_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    ask(&*store, accept("k", 5, 4));
    ask(&*store, delete("k", 6));
    wait(store.raise(vec![(slot("k"), floor(4, 6))]));
    wait(store.raise(vec![(slot("k"), Floor { written: Hlc(9), ..floor(4, 6) })]));
    let reached = Floor { written: Hlc(9), ..floor(4, 6) };
    let kept = Dropped { kept: 1, ..Dropped::default() };
    assert_eq!(wait(store.purge(drop_of("k", reached, 6))), kept, "it promised more than the floor knows");
    wait(store.raise(vec![(slot("k"), floor(9, 6))]));
    let gone = Dropped { tombstones: 1, registers: 1, kept: 0 };
    assert_eq!(wait(store.purge(drop_of("k", floor(9, 6), 6))), gone);
    ask(&*store, prepare("orphan", 11));
    wait(store.raise(vec![(slot("orphan"), floor(20, 0))]));
    assert_eq!(wait(store.survey(only("orphan")))[0].orphans, 1);
    assert_eq!(wait(store.purge(drop_of("orphan", floor(20, 0), 10))).registers, 0);
    assert_eq!(wait(store.purge(drop_of("orphan", floor(20, 0), 11))).registers, 1);
    store.close();
    let conn = rusqlite::Connection::open(dir.path().join("a3.db")).unwrap();
    for table in ["records", "registers", "large_values"] {
        let count: u32 = conn.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
        assert_eq!(count, 0, "{table}");
    }
}

#[test]
fn hints_and_tombstones_are_told_by_when_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    ask(&*store, hint(2, "a", 5, "v", true));
    assert!(wait(store.hinted(Hlc(4))).is_empty());
    assert_eq!(wait(store.hinted(Hlc(5))), only("a"));
    ask(&*store, delete("k", 5));
    let found = wait(store.tombstones(slot("k"), Hlc(4)));
    assert_eq!((found.greatest, found.oldest), (Version::default(), Some(Hlc(5))));
    assert_eq!(wait(store.tombstones(slot("k"), Hlc(5))).greatest, version(5));
}

#[test]
fn a_damaged_floor_is_noticed_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    wait(store.raise(vec![(slot("k"), floor(9, 5))]));
    store.close();
    drop(store);
    for (column, value) in [("written", 8), ("rmw", 1), ("slot", 1), ("sealed", 3), ("checksum", 0)] {
        let path = dir.path().join(format!("{column}.db"));
        std::fs::copy(dir.path().join("a3.db"), &path).unwrap();
        let conn = rusqlite::Connection::open(&path).unwrap();
        conn.execute(&format!("UPDATE floors SET {column} = {value}"), []).unwrap();
        drop(conn);
        let opened = Engine::open(&path, NodeNum(1), Durability::Full, 1);
        assert!(matches!(opened, Err(OpenError::Damaged { .. })), "{column}");
    }
}
