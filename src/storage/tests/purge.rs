//! Floors, seals and purging on disk.

use super::rare::{eventually, wait};
use super::register::ballot;
use super::*;
use crate::ports::Purging;
use crate::protocol::purge::UNSETTLED_MAX;
use crate::storage::remains::DROP_STEP;
use crate::types::{Accepted, Ballot, Dropped, Floor, OpId, Recent, Sealed, Slot, SlotDrop, SlotSet, Survey};

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
    let ReplicaReply::Promised(promise) = ask(&*store, prepare("k", 8)) else { panic!("it is above the seal") };
    assert_eq!(promise.floor, Floor::default(), "no floor has ended what it accepted, and a seal ends nothing");
    assert_eq!(promise.accepted.map(|accepted| accepted.ballot), Some(ballot(5)));
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

/// Two proposers found the tombstone, and would create the key anew.
#[test]
fn a_promise_above_the_floor_outlives_the_tombstone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    ask(&*store, delete("k", 5));
    for at in [11, 12] {
        assert!(matches!(ask(&*store, prepare("k", at)), ReplicaReply::Promised(_)));
    }
    wait(store.raise(vec![(slot("k"), floor(9, 5))]));
    wait(store.purge(drop_of("k", floor(9, 5), 5)));
    let outbid = ReplicaReply::Outbid { promised: ballot(12) };
    assert_eq!(ask(&*store, accept("k", 11, 6)), outbid, "else both are accepted under one version");
    assert_eq!(ask(&*store, accept("k", 12, 6)), ReplicaReply::Accepted);
}

#[test]
fn hints_and_tombstones_are_told_by_when_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    ask(&*store, hint(2, "a", 5, "v", true));
    assert!(wait(store.hinted(Hlc(4))).is_empty());
    assert_eq!(wait(store.hinted(Hlc(5))), only("a"));
    ask(&*store, delete("k", 5));
    assert_eq!(wait(store.greatest_tombstone(slot("k"), Hlc(4))), Version::default());
    assert_eq!(wait(store.greatest_tombstone(slot("k"), Hlc(5))), version(5));
    assert_eq!(wait(store.survey(only("k")))[0].oldest, Some(Hlc(5)));
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

/// So many keys of one slot.
fn of_one_slot(count: usize) -> Vec<String> {
    let wanted = slot("k");
    (0..).map(|n| format!("many-{n}")).filter(|text| slot(text) == wanted).take(count).collect()
}

#[test]
fn a_seal_names_so_many_and_says_when_there_are_more() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let keys = of_one_slot(UNSETTLED_MAX + 1);
    let all = |keys: &[String]| keys.iter().for_each(|key| drop(ask(&*store, accept(key, 5, 4))));
    all(&keys[..UNSETTLED_MAX]);
    let sealed = |at| wait(store.seal(only("k"), Hlc(at))).remove(0);
    assert_eq!((sealed(7).unsettled.len(), sealed(7).more), (UNSETTLED_MAX, false));
    // A ballot below the seal is refused from now on.
    ask(&*store, accept(&keys[UNSETTLED_MAX], 8, 4));
    assert_eq!((sealed(7).unsettled.len(), sealed(7).more), (UNSETTLED_MAX, true));
    for key in &keys {
        let record = record(&super::key(key), 4, Content::value(vec![7; 2000]));
        ask(&*store, ReplicaRequest::Write { key: super::key(key), record });
    }
    assert_eq!(sealed(7), Sealed::empty(slot("k")), "each record is the one that was accepted");
}

#[test]
fn what_was_overwritten_since_is_settled_and_what_was_not_written_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for (accepted, written) in [(4, 6), (8, 7)] {
        ask(&*store, accept("k", accepted + 1, accepted));
        ask(&*store, write("k", written, "plain"));
        let unsettled = wait(store.seal(only("k"), Hlc(3))).remove(0).unsettled;
        assert_eq!(!unsettled.is_empty(), accepted > written, "{accepted} {written}");
    }
    wait(store.raise(vec![(slot("k"), floor(10, 1))]));
    assert_eq!(wait(store.seal(only("k"), Hlc(3))), [Sealed::empty(slot("k"))], "the floor ended it");
}

#[test]
fn a_tombstone_that_was_purged_is_not_asked_to_be_settled() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    wait(store.raise(vec![(slot("k"), floor(9, 5))]));
    let record = Some(record(&key("k"), 5, Content::Tombstone));
    let accepted = Accepted { ballot: ballot(12), op: OpId(Uuid::nil()), record, recent: Recent::NONE };
    ask(&*store, ReplicaRequest::Accept { key: key("k"), accepted: Box::new(accepted) });
    assert!(matches!(ask(&*store, delete("k", 5)), ReplicaReply::BelowFloor { .. }), "nobody can write it");
    assert_eq!(wait(store.seal(only("k"), Hlc(9))), [Sealed::empty(slot("k"))]);
    // A record that is damaged may be what was accepted, or older.
    ask(&*store, write("k", 10, "v"));
    let conn = rusqlite::Connection::open(dir.path().join("a3.db")).unwrap();
    conn.execute("UPDATE records SET hlc = hlc + 1", []).unwrap();
    assert_eq!(wait(store.seal(only("k"), Hlc(9)))[0].unsettled, [key("k")]);
}

#[test]
fn a_damaged_register_spoils_the_seal_of_its_slot_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let other = (0..).map(|n| format!("other-{n}")).find(|text| slot(text) != slot("k")).unwrap();
    ask(&*store, accept("k", 5, 4));
    ask(&*store, accept(&other, 5, 4));
    let conn = rusqlite::Connection::open(dir.path().join("a3.db")).unwrap();
    conn.execute("UPDATE registers SET promised_hlc = 6 WHERE key = x'6b'", []).unwrap();
    let mut both = only("k");
    both.insert(slot(&other));
    let sealed = wait(store.seal(both, Hlc(3)));
    for of_slot in sealed {
        let spoiled = of_slot.slot == slot("k");
        assert_eq!((of_slot.damaged, of_slot.unsettled.is_empty()), (spoiled, spoiled), "{}", of_slot.slot);
    }
}

#[test]
fn all_tombstones_and_registers_of_a_slot_go_in_several_steps() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let keys = of_one_slot(2 * DROP_STEP + 10);
    let (orphans, tombstones) = keys.split_at(DROP_STEP + 5);
    orphans.iter().for_each(|key| drop(ask(&*store, prepare(key, 4))));
    tombstones.iter().for_each(|key| drop(ask(&*store, delete(key, 5))));
    ask(&*store, write("k", 5, "stays"));
    let survey = wait(store.survey(only("k"))).remove(0);
    assert_eq!((survey.tombstones, survey.orphans), (tombstones.len() as u64, orphans.len() as u64));
    assert_eq!((survey.oldest, survey.oldest_orphan, survey.promised), (Some(Hlc(5)), Some(Hlc(4)), Hlc(4)));
    wait(store.raise(vec![(slot("k"), floor(9, 5))]));
    let dropped = wait(store.purge(drop_of("k", floor(9, 5), 5)));
    let all = Dropped { tombstones: tombstones.len() as u64, registers: orphans.len() as u64, kept: 0 };
    assert_eq!(dropped, all);
    let survey = wait(store.survey(only("k"))).remove(0);
    assert_eq!(survey, Survey::empty(slot("k"), floor(9, 5)));
    assert!(matches!(ask(&*store, read("k")), ReplicaReply::Record { record: Some(_), .. }));
}

#[test]
fn the_list_of_tombstones_follows_the_records() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let conn = rusqlite::Connection::open(dir.path().join("a3.db")).unwrap();
    let listed = || -> Vec<i64> {
        let mut select = conn.prepare("SELECT written FROM tombstones ORDER BY written").unwrap();
        select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    let mut steps = vec![];
    for request in [delete("k", 5), delete("k", 7), write("k", 8, "again"), delete("k", 9)] {
        ask(&*store, request);
        steps.push(listed());
    }
    assert_eq!(steps, [vec![5], vec![7], vec![], vec![9]]);
    // A damaged tombstone may be one; what the list has in excess goes when purging comes by.
    conn.execute("INSERT INTO tombstones VALUES (?1, 2, x'6b'), (?1, 3, x'6162')", [slot("k").0]).unwrap();
    conn.execute("UPDATE records SET hlc = hlc + 1", []).unwrap();
    wait(store.raise(vec![(slot("k"), floor(9, 5))]));
    assert_eq!(wait(store.purge(drop_of("k", floor(9, 5), 9))), Dropped::default());
    assert_eq!(listed(), [2, 9]);
    ask(&*store, write("k", 10, "healed"));
    assert_eq!(wait(store.purge(drop_of("k", floor(9, 5), 9))), Dropped::default());
    assert!(listed().is_empty());
}

#[test]
fn whoever_fetches_a_slot_is_told_its_floor() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    wait(store.raise(vec![(slot("k"), floor(9, 5))]));
    assert_eq!(wait(store.slot_page(slot("k"), None)).floor, floor(9, 5));
}

#[test]
fn a_database_without_the_list_gets_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    ask(&*store, delete("k", 5));
    store.close();
    drop(store);
    let conn = rusqlite::Connection::open(dir.path().join("a3.db")).unwrap();
    conn.execute_batch("DROP TABLE tombstones; PRAGMA user_version = 5").unwrap();
    drop(conn);
    let store = open(dir.path());
    let survey = wait(store.survey(only("k"))).remove(0);
    assert_eq!((survey.tombstones, survey.oldest), (1, Some(Hlc(5))));
}
