//! The hash tree and the lists it leads to: whatever happened, they are those of the rows.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::rare::{eventually, wait};
use super::*;
use crate::ports::Holdings;
use crate::types::{Entry, Leaf, Slot, Span, Sum, Token};

fn engine(dir: &Path, durability: Durability) -> Engine {
    Engine::open(&dir.join("a3.db"), NodeNum(1), durability, 1 << 30).unwrap()
}

fn put(engine: &mut Engine, key: &Key, record: &Record) {
    let change = Change::Write { token: key.token(seed()), key: key.clone(), record: record.clone() };
    engine.apply(Now::default(), &[change]).unwrap();
}

fn sum_of(key: &Key, record: &Record) -> Sum {
    Sum::of(key.token(seed()), &record.version, record.checksum)
}

fn leaves_of(slot: Slot) -> Vec<Leaf> {
    Span::of_slot(slot).leaves().collect()
}

/// The engine's sums and lists against those records.
fn check(engine: &Engine, records: &BTreeMap<Key, Record>) {
    let mut leaves = vec![Sum::default(); Leaf::COUNT];
    records.iter().for_each(|(key, record)| leaves[Leaf::of(key.token(seed())).index()].add(sum_of(key, record)));
    let slots: Vec<Option<Sum>> = leaves.chunks(Leaf::IN_SLOT).map(|slot| Some(slot.iter().copied().sum())).collect();
    assert_eq!(engine.slot_sums(), slots);
    let used: BTreeSet<Slot> = records.keys().map(|key| key.token(seed()).slot()).chain([Slot(0)]).collect();
    for slot in used {
        let first = slot.index() * Leaf::IN_SLOT;
        assert_eq!(engine.leaf_sums(slot).unwrap(), leaves[first..first + Leaf::IN_SLOT]);
        let of_slot = records.iter().map(|(key, record)| (Entry::of(key.token(seed()), record), key.clone()));
        let mut intact: Vec<_> = of_slot.filter(|(entry, _)| entry.token.slot() == slot).collect();
        intact.sort();
        let mut held = engine.holdings(seed(), slot, &leaves_of(slot)).unwrap();
        let found = leaves_of(slot).iter().map(|leaf| held.leaves.remove(leaf).unwrap_or_default()).collect::<Vec<_>>();
        assert_eq!(found, leaves[first..first + Leaf::IN_SLOT]);
        assert_eq!(held, Holdings { intact, ..Holdings::default() });
    }
    let totals = engine.book.totals(true);
    let tombstones = records.values().filter(|record| record.is_tombstone()).count() as u64;
    assert_eq!((totals.keys, totals.tombstones), (records.len() as u64 - tombstones, tombstones));
    assert!(totals.counted);
}

#[derive(Clone, Debug)]
enum Step {
    Batch(Vec<(u8, u64, Option<usize>)>),
    /// Sums what is due now.
    Sum,
    CleanStop,
    Kill,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![Just(None), (0usize..20).prop_map(Some), (500usize..2000).prop_map(Some)];
    let step = prop_oneof![
        6 => prop::collection::vec((0u8..12, 1u64..9, size), 1..8).prop_map(Step::Batch),
        2 => Just(Step::Sum),
        2 => Just(Step::CleanStop),
        1 => Just(Step::Kill),
    ];
    prop::collection::vec(step, 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_tree_is_that_of_the_rows(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let open = || engine(dir.path(), Durability::Normal);
        let mut engine = open();
        let mut records: BTreeMap<Key, Record> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Batch(writes) => for (name, hlc, size) in writes {
                    let key = key(&format!("key {name}"));
                    let content = size.map_or(Content::Tombstone, |size| Content::value(vec![name; size]));
                    let record = record(&key, hlc, content);
                    put(&mut engine, &key, &record);
                    let newer = records.get(&key).is_none_or(|stored| record.beats(stored));
                    if newer {
                        records.insert(key, record);
                    }
                },
                Step::Sum => {
                    engine.sum_due(seed());
                    check(&engine, &records);
                }
                Step::CleanStop => {
                    engine.save_sums().unwrap();
                    engine = open();
                }
                Step::Kill => {
                    drop(engine);
                    engine = open();
                }
            }
        }
        engine.sum_due(seed());
        check(&engine, &records);
    }
}

/// Ten keys, summed.
fn filled(dir: &Path) -> (Engine, BTreeMap<Key, Record>) {
    let mut engine = engine(dir, Durability::Full);
    let records: BTreeMap<Key, Record> = (0..10)
        .map(|n| {
            let key = key(&format!("k{n}"));
            let record = record(&key, n + 1, Content::value(vec![n as u8; 20]));
            put(&mut engine, &key, &record);
            (key, record)
        })
        .collect();
    engine.sum_due(seed());
    (engine, records)
}

fn known(engine: &Engine) -> usize {
    engine.slot_sums().into_iter().flatten().filter(|sum| sum.records > 0).count()
}

#[test]
fn a_saved_copy_is_believed_once_and_only_whole() {
    let dir = tempfile::tempdir().unwrap();
    let open = || engine(dir.path(), Durability::Normal);
    let (engine, records) = filled(dir.path());
    let slots = known(&engine);
    engine.save_sums().unwrap();
    let engine = open();
    assert_eq!(known(&engine), slots, "nothing had to be summed");
    drop(engine);
    let engine = open();
    assert_eq!(known(&engine), 0, "the stop was not clean");
    engine.sum_due(seed());
    check(&engine, &records);
    engine.save_sums().unwrap();
    let conn = rusqlite::Connection::open(dir.path().join("a3.db")).unwrap();
    for damage in [
        "UPDATE sums SET keys = keys + 1 WHERE slot = (SELECT max(slot) FROM sums)",
        "UPDATE sums SET leaves = x'00' WHERE slot = (SELECT max(slot) FROM sums)",
        "DELETE FROM sums WHERE slot = (SELECT max(slot) FROM sums)",
        "UPDATE facts SET body = x'00' WHERE name = 'sums'",
    ] {
        assert_eq!(conn.execute(damage, []).unwrap(), 1, "{damage}");
        let engine = open();
        assert_eq!(known(&engine), 0, "{damage}");
        engine.sum_due(seed());
        check(&engine, &records);
        engine.save_sums().unwrap();
    }
}

#[test]
fn a_damaged_row_is_named_and_writing_over_it_has_its_slot_summed_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut engine, mut records) = filled(dir.path());
    let hurt = key("k3");
    let slot = hurt.token(seed()).slot();
    for damage in ["hlc = hlc + 64", "value = x'00'", "checksum = checksum + 1", "writer = 1 << 40"] {
        let sums = engine.slot_sums();
        let rows = engine.conn.execute(&format!("UPDATE records SET {damage} WHERE key = 'k3' OR key = x'6b33'"), []);
        assert_eq!(rows.unwrap(), 1);
        assert_eq!(engine.slot_sums(), sums, "what flips on disk moves no sum");
        let held = engine.holdings(seed(), slot, &leaves_of(slot)).unwrap();
        assert_eq!(held.damaged, std::slice::from_ref(&hurt), "{damage}");
        assert!(held.intact.iter().all(|(_, key)| *key != hurt));
        let (found, looked_up) = engine.records(&[(slot, hurt.clone()), (slot, key("none"))]).unwrap();
        assert_eq!((found.len(), looked_up), (0, 2));
        let newer = record(&hurt, records[&hurt].version.hlc.0 + 1, Content::value("new"));
        put(&mut engine, &hurt, &newer);
        records.insert(hurt.clone(), newer);
        assert_eq!((engine.slot_sums()[slot.index()], engine.leaf_sums(slot)), (None, None), "in doubt");
        engine.sum_due(seed());
        check(&engine, &records);
    }
}

#[test]
fn a_walk_on_its_way_does_not_settle_a_doubt_that_came_since() {
    let dir = tempfile::tempdir().unwrap();
    let (mut engine, mut records) = filled(dir.path());
    let hurt = key("k3");
    let slot = hurt.token(seed()).slot();
    engine.book.doubt(slot);
    assert_eq!(engine.book.take_due(), Some(slot));
    let booked = engine.book.booked(slot);
    // The walk reads the row as it is now; then it is damaged and written over.
    let mut leaves = vec![Sum::default(); Leaf::IN_SLOT];
    leaves[Leaf::of(hurt.token(seed())).within_slot()] = sum_of(&hurt, &records[&hurt]);
    engine.conn.execute("UPDATE records SET hlc = hlc + 64 WHERE key = x'6b33'", []).unwrap();
    let newer = record(&hurt, 100, Content::value("new"));
    put(&mut engine, &hurt, &newer);
    records.insert(hurt, newer);
    let found = count::Found { count: Default::default(), leaves: Some(leaves) };
    engine.book.walked(slot, &found, &booked);
    assert_eq!(engine.leaf_sums(slot), None);
    engine.sum_due(seed());
    check(&engine, &records);
}

#[test]
fn a_key_that_was_damaged_is_missing_once_its_slot_was_listed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut engine, mut records) = filled(dir.path());
    let lost = key("k3");
    let slot = lost.token(seed()).slot();
    // Not through the key's own column, which would move the row to its place: as the disk does it.
    engine.conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    drop(engine);
    let file = dir.path().join("a3.db");
    let mut bytes = std::fs::read(&file).unwrap();
    let name = [b"k3".as_slice(), &4u64.to_be_bytes()[7..]].concat();
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes[at + 1] ^= 0x40;
    std::fs::write(&file, bytes).unwrap();
    engine = tree::engine(dir.path(), Durability::Full);
    engine.sum_due(seed());
    records.remove(&lost);
    // The walk left it out; a tree that was moved by writes would still have it, until somebody lists the slot.
    engine.book.restore(slot, Default::default(), &{
        let mut stale = vec![Sum::default(); Leaf::IN_SLOT];
        stale[7] = Sum { hash: 1, records: 1 };
        stale
    });
    let held = engine.holdings(seed(), slot, &leaves_of(slot)).unwrap();
    assert!(held.damaged.is_empty(), "it cannot be named");
    assert_eq!(held.strays, [(slot.0.into(), b"k\x73".to_vec())]);
    assert_eq!(engine.leaf_sums(slot), None, "and so the slot is summed again");
    engine.sum_due(seed());
    let left: Vec<_> = records.iter().filter(|(key, _)| key.token(seed()).slot() == slot).collect();
    let sum: Sum = left.iter().map(|(key, record)| sum_of(key, record)).sum();
    assert_eq!(engine.slot_sums()[slot.index()], Some(sum));
}

#[test]
fn the_store_sums_beside_writes_and_starts_with_what_it_saved() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    ask_all(&*store, (0..5000).map(|n| write(&format!("k{n}"), 1, "value")).collect());
    let conn = rusqlite::Connection::open(dir.path().join("a3.db")).unwrap();
    let marked =
        || conn.query_row("SELECT count(*) FROM facts WHERE name = 'sums'", [], |r| r.get::<_, u32>(0)).unwrap();
    let summed = |store: &SqliteStore| store.slot_sums().into_iter().collect::<Option<Vec<Sum>>>();
    eventually("summed", || summed(&store).is_some());
    let before = summed(&store).unwrap();
    assert_eq!(before.iter().map(|sum| sum.records).sum::<u64>(), 5000);
    store.close();
    assert_eq!(marked(), 1);
    let store = open(dir.path());
    assert_eq!(marked(), 0, "before anything can be written");
    assert_eq!(summed(&store), Some(before));
    store.close();
    // As after a kill: without its mark nothing is believed, and writes race the walk.
    conn.execute("DELETE FROM facts WHERE name = 'sums'", []).unwrap();
    let store = open(dir.path());
    ask_all(&*store, (4000..6000).map(|n| write(&format!("k{n}"), 2, "other")).collect());
    eventually("summed", || summed(&store).is_some());
    let sums = summed(&store).unwrap();
    let mut listed = 0;
    for slot in Slot::all() {
        let held = wait(store.holdings(slot, leaves_of(slot)));
        assert!(held.intact.is_sorted() && held.damaged.is_empty());
        let keys: Vec<(Slot, Key)> = held.intact.iter().map(|(_, key)| (slot, key.clone())).collect();
        let (records, looked_up) = wait(store.records(keys));
        assert_eq!(looked_up, held.intact.len());
        assert_eq!(records.iter().map(|(key, record)| sum_of(key, record)).sum::<Sum>(), sums[slot.index()]);
        let leaf = held.intact.first().map(|(entry, _)| Leaf::of(entry.token));
        let some = wait(store.holdings(slot, leaf.into_iter().collect()));
        assert!(some.intact.iter().all(|(entry, _)| Some(Leaf::of(entry.token)) == leaf));
        listed += held.intact.len();
    }
    assert_eq!(listed, 6000);
}

#[test]
fn a_long_slot_is_listed_in_pieces_and_records_come_up_to_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    // By their tokens all of one slot: as a cluster's seed would have it.
    let names: Vec<String> =
        (0u32..).map(|n| format!("k{n}")).filter(|k| key(k).token(seed()).slot() == Slot(5)).take(5000).collect();
    ask_all(&*store, names.iter().map(|name| write(name, 1, vec![1; 600])).collect());
    let held = wait(store.holdings(Slot(5), leaves_of(Slot(5))));
    assert_eq!(held.intact.len(), names.len());
    assert!(held.intact.is_sorted());
    let keys: Vec<(Slot, Key)> = held.intact.into_iter().map(|(_, key)| (Slot(5), key)).collect();
    let (records, looked_up) = wait(store.records(keys.clone()));
    assert_eq!(records.len(), looked_up);
    assert!((1600..2000).contains(&looked_up), "{looked_up}");
    assert!(records.iter().zip(&keys).all(|((found, _), (_, asked))| found == asked));
    assert_eq!(wait(store.holdings(Slot(5), vec![Leaf::of(Token(0))])), Holdings::default(), "a leaf of another slot");
}
