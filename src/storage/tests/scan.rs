//! Scans: the merge against an ordered map, its bounds, and what it says of damage.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::rare::wait;
use super::*;
use crate::protocol::listing::tell_all;
use crate::types::limits::{SCAN_BYTES_MAX, SCAN_ROWS_MAX};
use crate::types::{Outline, Scan, ScanPage, Slot, SlotSet};

/// All there is, from the beginning.
pub(super) fn every_slot() -> Scan {
    Scan {
        slots: Slot::all().collect(),
        prefix: Bytes::new(),
        from: Bytes::new(),
        delimiter: Bytes::new(),
        samples: 1,
        limit: u32::MAX,
        values: false,
        now: Hlc::ZERO,
    }
}

/// As `tell_all` tells it of an ordered map.
fn model(held: &BTreeMap<Key, Record>, scan: &Scan) -> ScanPage {
    let here = held.iter().filter(|(key, _)| scan.slots.contains(key.token(seed()).slot()));
    tell_all(here.map(|(key, record)| (key.clone(), Some(Outline::of(record, scan.values)))), scan)
}

#[test]
fn a_scan_is_the_merge_of_records_and_hints_in_key_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut held: BTreeMap<Key, Record> = BTreeMap::new();
    let mut batch = Vec::new();
    for n in 0..3000u64 {
        let name = format!("{}/{}{}", n % 7, ["", "b/", "c/d/"][n as usize % 3], n);
        let content = match n % 11 {
            3 => Content::Tombstone,
            7 => Content::value(vec![n as u8; 2000]),
            _ => Content::value(n.to_string()),
        };
        let record = record(&key(&name), n % 3 + 1, content);
        batch.push(ReplicaRequest::Write { key: key(&name), record: record.clone() });
        held.insert(key(&name), record);
    }
    // Hints: newer, older and of keys that have no record.
    for n in (0..3000u64).step_by(50) {
        let name = format!("{}/{}{}", n % 7, ["", "b/", "c/d/"][n as usize % 3], n + n % 100);
        let hinted = record(&key(&name), n % 4, Content::value(vec![7; if n % 200 == 0 { 3000 } else { 3 }]));
        for target in [2, 3] {
            let (target, record) = (NodeNum(target), hinted.clone());
            batch.push(ReplicaRequest::Hint { target, key: key(&name), record, counted: true });
        }
        if held.get(&key(&name)).is_none_or(|record| hinted.beats(record)) {
            held.insert(key(&name), hinted);
        }
    }
    ask_all(&*store, batch);
    let some: SlotSet = Slot::all().filter(|slot| slot.0 % 3 == 1).collect();
    let mut compared = 0;
    for slots in [every_slot().slots, some, SlotSet::NONE] {
        for prefix in ["", "3", "3/b/", "4/c/d/1", "9"] {
            for (delimiter, samples) in [("", 1), ("/", 1), ("/", 3), ("d/", 1)] {
                for (limit, from, values) in [(1, "", false), (40, "3/b/2", true), (u32::MAX, "", false)] {
                    let [prefix, delimiter, from] = [prefix, delimiter, from].map(Bytes::from);
                    let scan = Scan { slots, prefix, delimiter, samples, limit, from, values, now: Hlc::from_ms(1) };
                    assert_eq!(wait(store.scan(scan.clone())), model(&held, &scan), "{scan:?}");
                    compared += 1;
                }
            }
        }
    }
    assert_eq!(compared, 180);
}

#[test]
fn a_scan_is_bounded_and_goes_on_where_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    ask_all(&*store, (0..5000).map(|n| write(&format!("k{n:04}"), 1, "v")).collect());
    ask_all(&*store, (0..10).map(|n| write(&format!("large{n}"), 1, vec![1; 200_000])).collect());
    let mut scan = every_slot();
    let mut found = Vec::new();
    let mut pages = 0;
    loop {
        let page = wait(store.scan(scan.clone()));
        assert!(page.entries.len() <= SCAN_ROWS_MAX);
        found.extend(page.entries.into_iter().map(|entry| entry.key.to_string()));
        pages += 1;
        let Some(next) = page.next else { break };
        scan.from = next;
    }
    assert_eq!((found.len(), pages, found.is_sorted()), (5010, 3, true));
    let values = Scan { prefix: Bytes::from_static(b"large"), values: true, ..every_slot() };
    let page = wait(store.scan(values));
    let bytes: usize = page.entries.iter().map(|e| e.copy.as_ref().unwrap().value.as_ref().unwrap().len()).sum();
    assert!((SCAN_BYTES_MAX..SCAN_BYTES_MAX + 200_000).contains(&bytes) && page.next.is_some(), "{bytes}");
}

#[test]
fn what_ended_is_told_and_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let ended = key("a/1");
    let content = Content::Value { bytes: "v".into(), content_type: None, expires_at_ms: Some(5) };
    ask(&*store, ReplicaRequest::Write { record: record(&ended, 1, content), key: ended });
    ask_all(&*store, ["a/2", "a/3", "b"].map(|name| write(name, 1, "v")).to_vec());
    let told = |now| {
        let scan = Scan { delimiter: Bytes::from_static(b"/"), limit: 1, now: Hlc::from_ms(now), ..every_slot() };
        wait(store.scan(scan)).entries.into_iter().map(|entry| entry.key.to_string()).collect::<Vec<_>>()
    };
    assert_eq!((told(4), told(5)), (vec!["a/1".to_owned()], vec!["a/1".to_owned(), "a/2".to_owned()]));
}

fn tampered(sql: &str, at: impl rusqlite::Params) -> (tempfile::TempDir, Arc<SqliteStore>) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    ask_all(&*store, (0..1000).map(|n| write(&format!("k{n:03}"), 1, format!("value {n}"))).collect());
    let conn = rusqlite::Connection::open(dir.path().join("a3.db")).unwrap();
    assert_eq!(conn.execute(sql, at).unwrap(), 1);
    (dir, store)
}

#[test]
fn a_damaged_row_is_told_as_such_and_ends_nothing() {
    let (_dir, store) = tampered("UPDATE records SET value = x'00' WHERE key = CAST('k500' AS BLOB)", []);
    let page = wait(store.scan(every_slot()));
    assert_eq!((page.entries.len(), page.next, page.doubtful), (1000, None, SlotSet::NONE));
    let damaged: Vec<_> = page.entries.iter().filter(|entry| entry.copy.is_none()).collect();
    assert_eq!(damaged.len(), 1);
    assert_eq!(damaged[0].key, key("k500"));
}

#[test]
fn a_slot_with_a_row_of_another_ones_key_is_named() {
    let slot = key("k500").token(seed()).slot();
    // The first of the slot gets a key that belongs elsewhere, before all others.
    let sql = "UPDATE records SET key = CAST(?2 AS BLOB) WHERE slot = ?1 AND key = (SELECT min(key) FROM records WHERE slot = ?1)";
    let stray = (0..).map(|n| format!("a{n}")).find(|name| key(name).token(seed()).slot() != slot).unwrap();
    let (_dir, store) = tampered(sql, rusqlite::params![slot.0, stray]);
    let page = wait(store.scan(every_slot()));
    assert_eq!((page.entries.len(), page.next), (999, None));
    // It lies between two slots, and may have been the last of the one before.
    assert!(page.doubtful.contains(slot) && page.doubtful.count() <= 2, "{:?}", page.doubtful);
    // Who enters behind it does not know either whether its key was one from there on.
    let behind = Scan { prefix: Bytes::from_static(b"k"), ..every_slot() };
    assert!(wait(store.scan(behind)).doubtful.contains(slot));
}
