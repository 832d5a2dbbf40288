//! Dropping whole slots: nothing of them is left, and nothing else is touched.

use super::rare::{eventually, wait};
use super::register::{accepted, ballot};
use super::*;
use crate::ports::Purging;
use crate::storage::dropping::ROWS_MAX;
use crate::types::{Floor, Slot, SlotSet, Sum};

/// The slot that goes, and one that stays.
const GOES: Slot = Slot(7);
const STAYS: Slot = Slot(8);

/// Keys of a slot, in no order.
fn keys_of(slot: Slot) -> impl Iterator<Item = Key> {
    (0u32..).map(|n| key(&format!("k{n}"))).filter(move |key| key.token(seed()).slot() == slot)
}

fn only(slot: Slot) -> SlotSet {
    [slot].into_iter().collect()
}

fn put(key: &Key, content: Content) -> ReplicaRequest {
    ReplicaRequest::Write { key: key.clone(), record: record(key, 5, content) }
}

fn accept(key: &Key, size: usize) -> ReplicaRequest {
    let state = accepted(9, Some(record(key, 6, Content::value(vec![6; size]))), 1);
    ReplicaRequest::Accept { key: key.clone(), accepted: Box::new(state) }
}

/// One of everything: small and large values, one that ends, a tombstone, registers beside a record and alone, hints.
fn fill(store: &SqliteStore, slot: Slot) -> Vec<Key> {
    let keys: Vec<Key> = keys_of(slot).take(6).collect();
    let ends = Content::Value { bytes: "v".into(), content_type: None, expires_at_ms: Some(1 << 40) };
    let requests = vec![
        put(&keys[0], Content::value("small")),
        put(&keys[1], Content::value(vec![slot.0; 5000])),
        put(&keys[2], ends),
        put(&keys[3], Content::Tombstone),
        accept(&keys[1], 3000),
        accept(&keys[4], 10),
        ReplicaRequest::Prepare { key: keys[5].clone(), ballot: ballot(4) },
        ReplicaRequest::Hint {
            target: NodeNum(2),
            key: keys[0].clone(),
            record: record(&keys[0], 7, Content::value(vec![7; 900])),
            counted: true,
        },
    ];
    ask_all(store, requests).into_iter().for_each(|answer| assert!(answer.is_ok()));
    keys
}

fn count(conn: &rusqlite::Connection, table: &str) -> u32 {
    conn.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

fn by_hand(dir: &Path) -> rusqlite::Connection {
    let conn = rusqlite::Connection::open(dir.join("a3.db")).unwrap();
    conn.busy_timeout(Duration::from_secs(20)).unwrap();
    conn
}

const TABLES: [&str; 6] = ["records", "registers", "large_values", "ends", "tombstones", "hints"];

#[test]
fn a_slot_goes_with_all_that_is_of_it_and_nothing_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    fill(&store, STAYS);
    eventually("the slots are counted", || store.totals().counted);
    let conn = by_hand(dir.path());
    let counts = || TABLES.map(|table| count(&conn, table));
    let (stays, totals, sums) = (counts(), store.totals(), store.slot_sums());
    let kept = wait(store.slot_page(STAYS, None));
    let keys = fill(&store, GOES);
    let floor = Floor { written: Hlc(3), version: version(3), ballot: ballot(3) };
    wait(store.raise(vec![(GOES, floor)]));
    wait(store.seal(only(GOES), Hlc(3)));
    assert_eq!(counts(), stays.map(|rows| 2 * rows));
    let told = store.changes().head();
    assert_eq!(wait(store.drop_slots(only(GOES))), 4 + 3);
    let mut left = stays;
    // The hint, and its large value.
    (left[2], left[5]) = (left[2] + 1, left[5] + 1);
    assert_eq!(counts(), left);
    let now = store.totals();
    assert_eq!((now.keys, now.tombstones, now.bytes), (totals.keys, totals.tombstones, totals.bytes));
    assert_eq!(store.slot_sums(), sums, "moved with the rows, and not counted anew");
    assert_eq!(wait(store.slot_page(STAYS, None)), kept);
    assert_eq!(store.changes().head(), told, "it is no news to anybody");
    assert_eq!(wait(store.survey(only(GOES)))[0].floor, floor, "a floor never goes down");
    let outbid = |at| {
        let prepare = ReplicaRequest::Prepare { key: keys[5].clone(), ballot: ballot(at) };
        matches!(ask(&*store, prepare), ReplicaReply::Outbid { .. })
    };
    assert!(outbid(3) && !outbid(4), "the floor's ballot still holds, and the promise does not");
    assert_eq!(wait(store.drop_slots(only(GOES))), 1);
    assert_eq!(wait(store.drop_slots(only(GOES))), 0);
    assert_eq!(wait(store.hints(NodeNum(2), None, 10)).len(), 2);
}

#[test]
fn many_rows_go_in_many_transactions() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let keys: Vec<Key> = keys_of(GOES).take(2 * ROWS_MAX + 3).collect();
    let beside = keys_of(STAYS).take(3);
    ask_all(&*store, keys.iter().cloned().chain(beside).map(|key| put(&key, Content::value("v"))).collect());
    let prepare = |key: &Key| ReplicaRequest::Prepare { key: key.clone(), ballot: ballot(4) };
    ask_all(&*store, keys[..ROWS_MAX].iter().map(prepare).collect());
    eventually("the slots are counted", || store.totals().counted);
    let step = || match wait(store.change(Change::DropSlot { seed: seed(), slot: GOES })) {
        Outcome::DroppedPart(gone, more) => (gone, more, store.totals().keys, store.slot_sums()[GOES.index()]),
        other => panic!("{other:?}"),
    };
    let (most, held) = (ROWS_MAX as u64, |sum: Option<Sum>| sum.unwrap().records);
    let (gone, more, keys_left, sum) = step();
    assert_eq!((gone, more, keys_left, held(sum)), (most, true, most + 6, most + 3), "cut here, it is exact");
    // What is left of the records is few, and as many registers as one transaction has.
    assert_eq!(wait(store.drop_slots(only(GOES))), most + 3 + most);
    assert_eq!(store.totals().keys, 3);
    assert_eq!(store.slot_sums()[GOES.index()], Some(Sum::default()));
}

#[test]
fn large_values_go_a_few_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for key in keys_of(GOES).take(6) {
        ask_all(&*store, vec![put(&key, Content::value(vec![1; 1 << 20])), accept(&key, 1 << 20)]);
    }
    let step = || wait(store.change(Change::DropSlot { seed: seed(), slot: GOES }));
    let steps: Vec<_> = std::iter::repeat_with(step).take(3).collect();
    assert_eq!(steps, [(4, true), (2 + 4, true), (2, false)].map(|(gone, more)| Outcome::DroppedPart(gone, more)));
    assert_eq!(count(&by_hand(dir.path()), "large_values"), 0);
}

#[test]
fn damaged_rows_and_strays_go_too_but_no_register_that_may_be_anothers() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (keys, beside) = (fill(&store, GOES), fill(&store, STAYS));
    eventually("the slots are counted", || store.totals().counted);
    let stays = store.slot_sums()[STAYS.index()];
    let conn = by_hand(dir.path());
    let change = |sql: &str, key: &Key| {
        let of_slot = i64::from(key.token(seed()).slot().0);
        assert_eq!(conn.execute(sql, rusqlite::params![of_slot, key.as_bytes()]).unwrap(), 1, "{sql}");
    };
    // Content, a pointer to another's large value, a key, and a slot that became this one's.
    change("UPDATE records SET value = x'00' WHERE slot = ?1 AND key = ?2", &keys[0]);
    let others = "SELECT large FROM records WHERE slot = 8 AND large IS NOT NULL";
    change(&format!("UPDATE records SET large = ({others}) WHERE slot = ?1 AND key = ?2"), &keys[1]);
    change("UPDATE records SET key = x'ff' WHERE slot = ?1 AND key = ?2", &keys[3]);
    change("UPDATE records SET slot = 7 WHERE slot = ?1 AND key = ?2", &beside[0]);
    // A promise, and a key.
    change("UPDATE registers SET promised_hlc = 1 WHERE slot = ?1 AND key = ?2", &keys[4]);
    change("UPDATE registers SET key = x'ff' WHERE slot = ?1 AND key = ?2", &keys[5]);
    assert_eq!(wait(store.drop_slots(only(GOES))), 5 + 2);
    let left = |table| conn.query_row(&format!("SELECT count(*) FROM {table} WHERE slot = 7"), [], |row| row.get(0));
    assert_eq!((left("records"), left("tombstones")), (Ok(0u32), Ok(0)));
    assert_eq!(left("registers"), Ok(1), "of which it cannot be said whose it is");
    let large = ReplicaRequest::Read { key: beside[1].clone(), part: ReadPart::Record, hints: false };
    assert_eq!(value_of(ask(&*store, large)).map(|value| value.len()), Some(5000), "it was pointed to by another");
    eventually("both are counted anew", || store.slot_sums().iter().all(Option::is_some) && store.totals().keys == 2);
    assert_eq!(store.slot_sums()[GOES.index()], Some(Sum::default()));
    assert_eq!(store.slot_sums()[STAYS.index()].unwrap().records, stays.unwrap().records - 1, "it misses its row now");
}

#[test]
fn what_was_dropped_stays_so_after_a_power_cut() {
    let drop = Change::DropSlot { seed: seed(), slot: GOES };
    assert!(drop.always_syncs());
}
