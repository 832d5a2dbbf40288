//! Registers on disk: what was promised and accepted is there after a crash, and damage is never taken for a blank.

use super::*;
use crate::metrics::STORE_DAMAGED;
use crate::ports::Refusal;
use crate::storage::engine::change_of;
use crate::types::{Accepted, Ballot, Floor, Idempotency, OpId, Promise, Recent, Remembered, RememberedAnswer};
use metrics_exporter_prometheus::PrometheusBuilder;

pub(super) fn ballot(hlc: u64) -> Ballot {
    Ballot { hlc: Hlc(hlc), writer: Writer(3) }
}

pub(super) fn accepted(at: u64, record: Option<Record>, remembered: usize) -> Accepted {
    let entry = |n: usize| Remembered {
        request: Idempotency { key: n as u128, request: u128::MAX - n as u128 },
        answer: RememberedAnswer::Replaced,
        version: version(at),
    };
    let recent = Recent::new((0..remembered).map(entry).collect());
    Accepted { ballot: ballot(at), op: OpId(Uuid::from_u128(at.into())), record, recent }
}

fn value(text: &str, hlc: u64, value: impl Into<bytes::Bytes>) -> Option<Record> {
    Some(record(&key(text), hlc, Content::value(value)))
}

fn prepare(text: &str, hlc: u64) -> ReplicaRequest {
    ReplicaRequest::Prepare { key: key(text), ballot: ballot(hlc) }
}

fn accept(text: &str, accepted: Accepted) -> ReplicaRequest {
    ReplicaRequest::Accept { key: key(text), accepted: Box::new(accepted) }
}

fn promised(accepted: Option<Accepted>, record: Option<Record>) -> ReplicaReply {
    ReplicaReply::Promised(Box::new(Promise { accepted, record, floor: Floor::default() }))
}

const DAMAGED: ReplicaReply = ReplicaReply::Refused(Refusal::Damaged);

fn engine(dir: &Path) -> Engine {
    Engine::open(&dir.join("a3.db"), NodeNum(1), Durability::Full, 1 << 30).unwrap()
}

/// All in one transaction.
fn apply(engine: &mut Engine, requests: Vec<ReplicaRequest>) -> Vec<Outcome> {
    engine.apply(Now::default(), &changes(requests)).unwrap()
}

fn changes(requests: Vec<ReplicaRequest>) -> Vec<Change> {
    let change = |request: ReplicaRequest| {
        let token = request.key().token(seed());
        change_of(token, request).unwrap()
    };
    requests.into_iter().map(change).collect()
}

fn large_values(conn: &rusqlite::Connection) -> u32 {
    conn.query_row("SELECT count(*) FROM large_values", [], |row| row.get(0)).unwrap()
}

#[test]
fn what_was_promised_and_accepted_survives_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let normal = Options { durability: Durability::Normal, ..options(dir.path()) };
    let store = SqliteStore::open(normal, Arc::new(SystemClock), &SystemEntropy::default()).unwrap();
    let small = accepted(5, value("small", 5, "v"), 2);
    let large = accepted(5, value("large", 5, vec![5; 1 << 20]), 8);
    let none = accepted(5, None, 0);
    for (text, state) in [("small", &small), ("large", &large), ("none", &none)] {
        assert_eq!(ask(&*store, prepare(text, 5)), promised(None, None));
        assert_eq!(ask(&*store, accept(text, state.clone())), ReplicaReply::Accepted);
        assert_eq!(ask(&*store, prepare(text, 9)), promised(Some(state.clone()), None));
    }
    // As a crash leaves them: the store is neither closed nor checkpointed.
    let crashed = tempfile::tempdir().unwrap();
    for file in ["a3.db", "a3.db-wal"] {
        std::fs::copy(dir.path().join(file), crashed.path().join(file)).unwrap();
    }
    let mut engine = engine(crashed.path());
    for (text, state) in [("small", small), ("large", large), ("none", none)] {
        let asked = vec![prepare(text, 9), accept(text, accepted(8, None, 0)), prepare(text, 10)];
        let outbid = || Outcome::Reply(ReplicaReply::Outbid { promised: ballot(9) });
        let told = Outcome::Reply(promised(Some(state), None));
        assert_eq!(apply(&mut engine, asked), [outbid(), outbid(), told], "{text}");
    }
}

#[test]
fn register_steps_sync_whatever_the_durability() {
    let step = |request| changes(vec![request]).remove(0).always_syncs();
    assert!(step(prepare("k", 1)) && step(accept("k", accepted(1, None, 0))));
    assert!(!step(write("k", 1, "v")) && !step(hint(2, "k", 1, "v", true)));
}

#[test]
fn a_prepare_sees_the_writes_before_it_in_its_batch() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = engine(dir.path());
    let (one, two) = (value("k", 1, "one"), value("k", 2, "two"));
    let state = accepted(3, value("k", 3, "three"), 0);
    let asked = vec![
        write("k", 1, "one"),
        prepare("k", 2),
        accept("k", state.clone()),
        write("k", 2, "two"),
        prepare("k", 4),
        prepare("k", 4),
    ];
    let said = apply(&mut engine, asked);
    assert_eq!(said[1], Outcome::Reply(promised(None, one)));
    assert_eq!(
        said[2],
        Outcome::Reply(ReplicaReply::Accepted),
        "a higher ballot than was promised is promised with it"
    );
    assert_eq!(said[4], Outcome::Reply(promised(Some(state), two.clone())));
    assert_eq!(said[5], Outcome::Reply(ReplicaReply::Outbid { promised: ballot(4) }));
    // Reads see none of it.
    let (key, slot) = (key("k"), key("k").token(seed()).slot());
    let read = engine.read(Hlc(9), slot, &key, ReadPart::Record, false);
    assert_eq!(read, ReplicaReply::Record { record: two, floor: Floor::default() });
}

#[test]
fn the_large_value_of_a_state_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = engine(dir.path());
    apply(&mut engine, vec![write("k", 1, vec![1; 5000])]);
    for (at, bytes, kept) in [
        (1, Some(5000), 2),
        (2, Some(70_000), 2),
        (3, Some(5), 1),
        (4, Some(1 << 20), 2),
        (5, None, 1),
        (6, Some(600), 2),
    ] {
        let state = accepted(at, bytes.and_then(|many| value("k", at, vec![at as u8; many])), 0);
        let said = apply(&mut engine, vec![accept("k", state.clone()), prepare("k", at + 1)]);
        let told = promised(Some(state), value("k", 1, vec![1; 5000]));
        // The promise is one more than the next state's ballot has to beat.
        assert_eq!(said[1], Outcome::Reply(told));
        assert_eq!(large_values(&engine.conn), kept, "after {bytes:?}");
    }
    apply(&mut engine, vec![accept("k", accepted(4, None, 0)), write("k", 2, "small")]);
    assert_eq!(large_values(&engine.conn), 1, "an accept that was outbid takes nothing away");
}

#[test]
fn a_promise_rewrites_no_accepted_value() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = engine(dir.path());
    apply(&mut engine, vec![accept("k", accepted(1, value("k", 1, vec![1; 1 << 20]), 8))]);
    engine.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    apply(&mut engine, vec![prepare("k", 2)]);
    let log = std::fs::metadata(dir.path().join("a3.db-wal")).unwrap().len();
    assert!((1..20_000).contains(&log), "{log} bytes of log for a promise");
}

/// Flips one bit of each byte of a register's row, in the file, between two runs.
#[test]
fn a_flipped_bit_never_takes_a_promise_back() {
    let dir = tempfile::tempdir().unwrap();
    let marker: &[u8] = b"the-key-of-the-damaged-register";
    let text = std::str::from_utf8(marker).unwrap();
    let state = accepted(5, value(text, 5, "a-value-in-the-row"), 2);
    let slot = key(text).token(seed()).slot();
    let in_slot = |key: Key, ballot| Change::Prepare { slot, key, ballot };
    let mut first = engine(dir.path());
    apply(&mut first, vec![accept(text, state.clone()), prepare(text, 9)]);
    // Neighbours on both sides, in the same slot.
    first.apply(Now::default(), &[in_slot(key("a"), ballot(3)), in_slot(key("z"), ballot(3))]).unwrap();
    drop(first);
    let file = dir.path().join("a3.db");
    let clean = std::fs::read(&file).unwrap();
    let at = clean.windows(marker.len()).position(|window| window == marker).unwrap();
    let mut found = 0;
    // Before the key lie the cell's header and the slot, behind it the other columns, to the end of the page: it was the
    // first row there.
    let flips = (at - 24..(at / 4096 + 1) * 4096).flat_map(|offset| [0x01, 0x10, 0x80].map(|bit| (offset, bit)));
    for (offset, bit) in flips {
        let mut bytes = clean.clone();
        bytes[offset] ^= bit;
        std::fs::write(&file, bytes).unwrap();
        let mut engine = engine(dir.path());
        // A thousand lives, and none meets a power cut.
        engine.conn.pragma_update(None, "synchronous", "OFF").unwrap();
        let mut say = |request| match apply(&mut engine, vec![request, write("other", 1, "v")]).remove(0) {
            Outcome::Reply(reply) => reply,
            Outcome::Damaged => DAMAGED,
            other => panic!("{other:?}"),
        };
        let outbid = ReplicaReply::Outbid { promised: ballot(9) };
        let said = [say(prepare(text, 8)), say(accept(text, accepted(8, None, 0)))];
        assert!(
            said.iter().all(|reply| *reply == outbid || *reply == DAMAGED),
            "{said:?} with {bit:#x} of byte {offset} flipped"
        );
        let told = say(prepare(text, 10));
        assert!(
            told == DAMAGED || told == promised(Some(state.clone()), None),
            "{told:?} with {bit:#x} of byte {offset} flipped"
        );
        found += usize::from(said[0] == DAMAGED);
    }
    assert!(found > 300, "only {found} flips were noticed");
}

#[test]
fn a_damaged_row_refuses_is_counted_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = PrometheusBuilder::new().build_recorder();
    let mut engine = metrics::with_local_recorder(&recorder, || engine(dir.path()));
    let counted = || {
        let text = recorder.handle().render();
        let line = text.lines().find(|line| line.starts_with(STORE_DAMAGED.name)).map(str::to_owned);
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
    };
    let state = accepted(5, value("k", 5, vec![5; 5000]), 0);
    apply(&mut engine, vec![write("k", 1, "record"), accept("k", state.clone())]);
    let refused = Outcome::Reply(DAMAGED);

    // The promise.
    engine.conn.execute("UPDATE registers SET promised_hlc = 0", []).unwrap();
    let asked = vec![prepare("k", 6), accept("k", accepted(6, None, 0)), write("other", 1, "v")];
    let said = apply(&mut engine, asked);
    assert!(said[..2].iter().all(|outcome| *outcome == refused), "{said:?}");
    assert_eq!(said[2], Outcome::Reply(ReplicaReply::Stored { replaced: None }), "the rest of the batch goes on");
    assert_eq!((counted(), large_values(&engine.conn)), (2, 1));
    engine.conn.execute("UPDATE registers SET promised_hlc = 5", []).unwrap();

    // The record under it.
    engine.conn.execute("UPDATE records SET value = x'00' WHERE key = x'6b'", []).unwrap();
    assert_eq!(apply(&mut engine, vec![prepare("k", 7)])[0], refused);
    apply(&mut engine, vec![write("k", 2, "healed")]);
    assert_eq!(
        apply(&mut engine, vec![prepare("k", 6)]),
        [Outcome::Reply(promised(Some(state), value("k", 2, "healed")))]
    );

    // The accepted value: the promise is known, so that a new state may take its place.
    engine.conn.execute("UPDATE large_values SET value = x'00'", []).unwrap();
    assert_eq!(apply(&mut engine, vec![prepare("k", 9)]), [refused]);
    let next = accepted(7, value("k", 7, "next"), 0);
    let said = apply(&mut engine, vec![accept("k", next.clone()), prepare("k", 8)]);
    assert_eq!(said[1], Outcome::Reply(promised(Some(next), value("k", 2, "healed"))));
    assert_eq!(large_values(&engine.conn), 0);
}

#[test]
fn a_damaged_register_refuses_its_own_key_alone_while_it_is_known_whose_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = engine(dir.path());
    // The only register: every other key lies beside it.
    apply(&mut engine, vec![accept("k", accepted(5, value("k", 5, "v"), 1))]);
    let refused = Outcome::Reply(DAMAGED);
    engine.conn.execute("UPDATE registers SET promised_hlc = 0", []).unwrap();
    let said = apply(&mut engine, vec![prepare("before", 1), prepare("k", 9), prepare("z", 1)]);
    assert_eq!(said, [Outcome::Reply(promised(None, None)), refused.clone(), Outcome::Reply(promised(None, None))]);
    // Its key is damaged, or its place: then the row may be that of any key that is looked for there.
    for damage in ["key = x'6c'", "place = place + 1", "place = NULL", "slot = slot + 1"] {
        engine.conn.execute("DELETE FROM registers WHERE promised_hlc > 0", []).unwrap();
        engine.conn.execute(&format!("UPDATE registers SET {damage}"), []).unwrap();
        assert_eq!(apply(&mut engine, vec![prepare("other", 1)]), [refused.clone()], "{damage}");
        engine.conn.execute("DELETE FROM registers", []).unwrap();
        apply(&mut engine, vec![accept("k", accepted(5, value("k", 5, "v"), 1))]);
        engine.conn.execute("UPDATE registers SET promised_hlc = 0", []).unwrap();
    }
}

#[test]
fn a_damaged_page_spoils_one_change_and_not_its_batch() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = engine(dir.path());
    apply(&mut first, vec![accept("k", accepted(5, value("k", 5, vec![7; 100_000]), 0))]);
    drop(first);
    let file = dir.path().join("a3.db");
    let mut bytes = std::fs::read(&file).unwrap();
    // A page of the value's overflow begins with the number of the next one.
    let page = bytes.chunks(4096).position(|page| page[4..].iter().all(|b| *b == 7)).unwrap();
    bytes[page * 4096..][..4].fill(0xff);
    std::fs::write(&file, bytes).unwrap();
    let mut engine = engine(dir.path());
    let asked = vec![prepare("a", 1), prepare("k", 9), accept("b", accepted(1, None, 0)), write("c", 1, "v")];
    let said = apply(&mut engine, asked);
    assert_eq!(said[0], Outcome::Reply(promised(None, None)));
    assert_eq!(said[1], Outcome::Damaged);
    assert_eq!(said[2], Outcome::Reply(ReplicaReply::Accepted));
    assert_eq!(said[3], Outcome::Reply(ReplicaReply::Stored { replaced: None }));
    let again = apply(&mut engine, vec![prepare("k", 5), prepare("a", 1)]);
    assert_eq!(again[0], Outcome::Reply(ReplicaReply::Outbid { promised: ballot(5) }), "nothing was promised");
    assert_eq!(again[1], Outcome::Reply(ReplicaReply::Outbid { promised: ballot(1) }));
}

#[test]
fn a_full_disk_promises_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = engine(dir.path());
    apply(&mut engine, vec![prepare("k", 1)]);
    let limit = |engine: &Engine, pages: u32| {
        engine.conn.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
    };
    limit(&engine, 20);
    let asked = || changes(vec![prepare("k", 2), accept("k", accepted(2, value("k", 2, vec![2; 200_000]), 0))]);
    assert_eq!(engine.apply(Now::default(), &asked()), Err(BatchError::Full));
    limit(&engine, 200);
    let said = engine.apply(Now::default(), &asked()).unwrap();
    assert_eq!(said, [Outcome::Reply(promised(None, None)), Outcome::Reply(ReplicaReply::Accepted)]);
}

#[test]
fn an_accept_weighs_what_its_record_does() {
    let weight = |request| changes(vec![request]).remove(0).content_bytes();
    assert_eq!(weight(accept("k", accepted(1, value("k", 1, vec![0; 700]), 8))), 700);
    assert_eq!(weight(accept("k", accepted(1, None, 8))), 0);
    assert_eq!(weight(prepare("k", 1)), 0);
}
