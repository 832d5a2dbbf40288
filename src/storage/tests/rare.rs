//! Everything but the hot path: hints, scans, facts, totals, the log.

use super::*;
use crate::ports::{HintTotals, Refusal, StoreError};
use crate::types::{Epoch, InstanceId, Member, Slot, Token, Topology};
use futures_util::future::BoxFuture;

pub(super) fn wait<T>(future: BoxFuture<'static, Result<T, StoreError>>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future).unwrap()
}

/// Polls until it holds, for what happens in the background.
pub(super) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = tokio::time::Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::yield_now();
    }
}

fn totals(store: &SqliteStore, target: u16) -> HintTotals {
    store
        .hint_totals()
        .into_iter()
        .find(|(node, _)| *node == NodeNum(target))
        .map(|(_, totals)| totals)
        .unwrap_or_default()
}

#[test]
fn hints_are_kept_listed_merged_into_reads_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let with_hints = |text| ReplicaRequest::Read { key: key(text), part: ReadPart::Record, hints: true };
    assert_eq!(ask(&*store, hint(2, "a", 5, "old", false)), ReplicaReply::Hinted);
    assert_eq!(ask(&*store, hint(3, "a", 6, "new", true)), ReplicaReply::Hinted);
    assert_eq!(ask(&*store, hint(2, "b", 7, vec![1; 4000], true)), ReplicaReply::Hinted);
    ask(&*store, write("a", 4, "own"));
    assert_eq!(value_of(ask(&*store, with_hints("a"))), Some("new".into()));
    assert_eq!(value_of(ask(&*store, read("a"))), Some("own".into()));
    let before = totals(&store, 2);
    assert_eq!((before.count, before.bytes), (2, 1 + 3 + 1 + 4000));
    store.close();
    drop(store);

    let store = open(dir.path());
    assert_eq!(totals(&store, 2), before, "the totals survive a restart");
    let all = wait(store.hints(NodeNum(2), None, 10));
    assert_eq!(all.len(), 2);
    assert!(all.is_sorted_by_key(|h| (h.slot, h.key.clone())));
    let page = wait(store.hints(NodeNum(2), Some((all[0].slot, all[0].key.clone())), 10));
    assert_eq!(page, all[1..]);
    let named = |h: &crate::ports::Hint, v| (h.target, h.slot, h.key.clone(), v);
    wait(store.forget_hints(vec![named(&all[0], version(1)), named(&all[1], all[1].record.version)]));
    assert_eq!(wait(store.hints(NodeNum(2), None, 10)), all[..1], "a newer hint stays");
    assert_eq!(totals(&store, 2).count, 1);
}

#[test]
fn hints_have_a_limit_and_old_uncounted_ones_can_be_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert_eq!(ask(&*store, hint(2, "a", 1, vec![0; 600_000], false)), ReplicaReply::Hinted);
    let full = ReplicaReply::Refused(Refusal::HintsFull);
    assert_eq!(ask(&*store, hint(3, "b", 1, vec![0; 600_000], true)), full);
    assert_eq!(ask(&*store, hint(2, "a", 2, vec![0; 900_000], false)), ReplicaReply::Hinted, "the old one makes room");
    ask(&*store, hint(2, "c", 1, "counted", true));
    assert_eq!(wait(store.drop_hints_before(1)), 0);
    assert_eq!(wait(store.drop_hints_before(u64::MAX / 2)), 1);
    let left = totals(&store, 2);
    assert_eq!((left.count, left.dropped, left.bytes), (1, 1, 8));
    assert!(left.oldest_ms > 0);
    assert_eq!(ask(&*store, hint(3, "b", 1, vec![0; 600_000], true)), ReplicaReply::Hinted);
}

#[test]
fn a_damaged_hint_is_not_served_and_does_not_stay() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    ask(&*store, hint(2, "a", 1, "aaaa", true));
    ask(&*store, hint(2, "b", 1, "bbbb", true));
    let conn = rusqlite::Connection::open(dir.path().join("a3.db")).unwrap();
    conn.execute("UPDATE hints SET value = x'62626263' WHERE value = x'62626262'", []).unwrap();
    let asked = ReplicaRequest::Read { key: key("b"), part: ReadPart::Record, hints: true };
    assert_eq!(ask(&*store, asked), ReplicaReply::Refused(Refusal::Damaged));
    assert_eq!(wait(store.hints(NodeNum(2), None, 10)).len(), 1);
    assert_eq!(totals(&store, 2).count, 1);
}

#[test]
fn totals_are_exact_after_a_restart_and_while_counting() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    ask_all(&*store, (0..5000).map(|n| write(&format!("k{n}"), 1, "value")).collect());
    let large = key("large");
    ask(&*store, write("large", 1, vec![0; 2000]));
    let tombstone = record(&large, 2, Content::Tombstone);
    ask(&*store, ReplicaRequest::Write { key: large, record: tombstone });
    eventually("counted", || store.totals().counted);
    let before = store.totals();
    assert_eq!((before.keys, before.tombstones), (5000, 1));
    store.close();
    drop(store);

    let store = open(dir.path());
    // Writes race the count.
    ask_all(&*store, (4000..6000).map(|n| write(&format!("k{n}"), 2, "other")).collect());
    eventually("counted", || store.totals().counted);
    let after = store.totals();
    assert_eq!((after.keys, after.tombstones), (6000, 1));
    let added: u64 = (5000..6000).map(|n| format!("k{n}").len() as u64 + 5).sum();
    assert_eq!(after.bytes, before.bytes + added);
}

pub(in crate::storage) fn topology(epoch: u64) -> Arc<Topology> {
    let member = Member {
        node: NodeNum(1),
        instance: InstanceId(Uuid::from_u128(9)),
        writer: Writer(1),
        zone: None,
        weight: 1,
        mesh_address: "127.0.0.1:1".into(),
        http_address: "127.0.0.1:2".into(),
    };
    Arc::new(Topology {
        epoch: Epoch(epoch),
        cluster_id: ClusterId(Uuid::from_u128(1)),
        rf: 1,
        members: vec![member],
        ring: vec![vec![NodeNum(1)]; Slot::COUNT],
        next_writer: Writer(2),
        moving: None,
    })
}

#[test]
fn facts_are_kept_and_only_move_forward() {
    let dir = tempfile::tempdir().unwrap();
    let mut durable = options(dir.path());
    durable.durability = Durability::Normal;
    let store = SqliteStore::open(durable, Arc::new(SystemClock), &SystemEntropy::default()).unwrap();
    assert_eq!(wait(store.topology()), None);
    assert_eq!(wait(store.clock_reservation()), Hlc::ZERO);
    wait(store.save_proposal(topology(1)));
    assert_eq!(wait(store.proposal()).as_ref(), Some(&*topology(1)));
    wait(store.save_topology(topology(2)));
    wait(store.save_topology(topology(1)));
    wait(store.reserve_clock(Hlc(10)));
    wait(store.reserve_clock(Hlc(9)));
    let mut identity = store.identity();
    identity.cluster = Some(ClusterId(Uuid::from_u128(1)));
    wait(store.save_identity(identity.clone()));
    wait(store.save_identity(Identity { node: NodeNum(9), cluster: None, ..identity.clone() }));
    store.close();
    drop(store);

    let store = open(dir.path());
    assert_eq!(wait(store.topology()).as_ref(), Some(&*topology(2)));
    assert_eq!(wait(store.proposal()), None, "what was committed is no proposal");
    assert_eq!(wait(store.clock_reservation()), Hlc(10));
    assert_eq!(store.identity(), Identity { generation: 2, ..identity });
    let conn = rusqlite::Connection::open(dir.path().join("a3.db")).unwrap();
    conn.execute("UPDATE facts SET checksum = checksum + 1", []).unwrap();
    let damaged = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(store.topology());
    assert!(matches!(damaged, Err(StoreError::Damaged(_))));
}

#[test]
fn the_log_stays_under_its_cap_and_is_carried_over_at_rest() {
    let dir = tempfile::tempdir().unwrap();
    let wal_bytes_max = 24 << 20;
    let small = Options { wal_bytes_max, ..options(dir.path()) };
    let store = SqliteStore::open(small, Arc::new(SystemClock), &SystemEntropy::default()).unwrap();
    for round in 0..60 {
        ask_all(&*store, (0..20).map(|n| write(&format!("k{n}"), round + 1, vec![0; 60_000])).collect());
    }
    let length = || std::fs::metadata(dir.path().join("a3.db-wal")).unwrap().len();
    assert!(length() <= wal_bytes_max + (2 << 20), "{} bytes of log for 72 MB written", length());
    // At rest the next write begins the log anew, so a copy of the database file alone has everything.
    eventually("carried over", || {
        let copy = dir.path().join("copy.db");
        std::fs::copy(dir.path().join("a3.db"), &copy).unwrap();
        let conn = rusqlite::Connection::open(&copy).unwrap();
        conn.query_row("SELECT min(hlc) FROM records", [], |row| row.get::<_, Option<i64>>(0))
            .is_ok_and(|oldest| oldest == Some(60))
    });
}

#[test]
fn a_snapshot_held_by_somebody_else_does_not_stop_writes() {
    let dir = tempfile::tempdir().unwrap();
    let small = Options { wal_bytes_max: 4 << 20, ..options(dir.path()) };
    let store = SqliteStore::open(small, Arc::new(SystemClock), &SystemEntropy::default()).unwrap();
    let conn = rusqlite::Connection::open(dir.path().join("a3.db")).unwrap();
    conn.execute_batch("BEGIN; SELECT 1 FROM records").unwrap();
    let fill = |from: u64| {
        for round in from..from + 20 {
            ask_all(&*store, (0..10).map(|n| write(&format!("k{n}"), round, vec![0; 60_000])).collect());
        }
        std::fs::metadata(dir.path().join("a3.db-wal")).unwrap().len()
    };
    let pinned = fill(1);
    assert!(pinned > 8 << 20, "{pinned}");
    conn.execute_batch("COMMIT").unwrap();
    fill(21);
    // The log's file keeps its length, and is written over from its beginning.
    assert!(fill(41) < pinned + (6 << 20));
}

#[test]
fn an_engine_in_memory_needs_no_file() {
    let mut engine = Engine::open(Path::new(":memory:"), NodeNum(1), Durability::Full, 100).unwrap();
    let (key, token) = (key("k"), Token(3 << 56));
    let record = record(&key, 1, Content::value("v"));
    let change = Change::Write { token, key: key.clone(), record };
    let stored = Outcome::Reply(ReplicaReply::Stored { replaced: None });
    assert_eq!(engine.apply(Now::default(), &[change]).unwrap(), [stored]);
    assert_eq!(value_of(engine.read(Hlc(1), token.slot(), &key, ReadPart::Record, true)), Some("v".into()));
    engine.apply(Now::default(), &[Change::ReserveClock(Hlc(1))]).unwrap();
}
