//! What the storage does on this machine: `cargo bench --bench storage [shapes|store]`. A minute or two each.
//!
//! `shapes` compares ways to lay out the record table, in plain SQL; docs/decisions/0001-record-table.md draws on it.
//! `store` drives the real store through its port with a fixed number of requests under way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use a3::ports::{Answer, Entropy, Inbox, ReadPart, ReplicaReply, ReplicaRequest, ReplyTo, Store, Submission};
use a3::storage::{Durability, Options, SqliteStore};
use a3::system::{SystemClock, SystemEntropy};
use a3::types::{
    Accepted, Ballot, ClusterId, Content, Hlc, Key, NodeNum, OpId, Recent, Record, TokenSeed, Version, Writer,
};
use rusqlite::{Connection, params};
use smallvec::smallvec;
use tokio::time::Instant;
use uuid::Uuid;

fn main() {
    let which = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    if which.as_deref().is_none_or(|name| name == "shapes") {
        shapes();
    }
    if which.as_deref().is_none_or(|name| name == "store") {
        store();
    }
}

fn key(number: u64) -> Key {
    Key::new(format!("key-{number:08}")).unwrap()
}

fn slot_of(key: &Key) -> u8 {
    key.token(TokenSeed::of(ClusterId(Uuid::from_u128(1)))).slot().0
}

// ---------------------------------------------------------------------------------------------------------- shapes

/// One way to lay records out.
struct Shape {
    page_bytes: usize,
    /// Values up to this size lie in the row.
    inline_bytes_max: usize,
}

const PUT: &str = "REPLACE INTO records VALUES (?1, ?2, ?3, 1, 0, NULL, NULL, ?3, NULL, ?4, ?5)";
const GET: &str = "SELECT r.hlc, r.value, l.value, r.large FROM records r LEFT JOIN large_values l ON l.id = r.large \
                   WHERE slot = ?1 AND key = ?2";
const SCAN: &str = "SELECT r.key, r.value, l.value FROM records r LEFT JOIN large_values l ON l.id = r.large \
                    WHERE slot = ?1 ORDER BY key";
const SCHEMA: &str = "CREATE TABLE records (slot INTEGER NOT NULL, key BLOB NOT NULL, hlc INTEGER NOT NULL, \
    writer INTEGER NOT NULL, rmw INTEGER NOT NULL, written INTEGER, expires_at_ms INTEGER, checksum INTEGER NOT NULL, \
    content_type BLOB, value BLOB, large INTEGER, PRIMARY KEY (slot, key)) STRICT, WITHOUT ROWID; \
    CREATE TABLE large_values (id INTEGER PRIMARY KEY, value BLOB NOT NULL) STRICT";
const BATCH: u64 = 256;

fn shapes() {
    println!("value  page  inline    insert/s  update/s    read/s   (mapped)    scan/s  bytes/row");
    for value_bytes in [100, 400, 700, 1024] {
        let keys = 60_000_000 / (value_bytes as u64 + 500);
        for page_bytes in [4096, 8192] {
            for inline_bytes_max in [0, value_bytes] {
                let shape = Shape { page_bytes, inline_bytes_max };
                print!("{value_bytes:>5} {page_bytes:>5}  {:<6}  ", inline_bytes_max > 0);
                measure_shape(&shape, value_bytes, keys);
            }
        }
    }
}

fn connect(path: &Path, shape: &Shape) -> Connection {
    let conn = Connection::open(path).unwrap();
    conn.pragma_update(None, "page_size", shape.page_bytes as i64).unwrap();
    conn.pragma_update(None, "journal_mode", "WAL").unwrap();
    conn.pragma_update(None, "synchronous", "FULL").unwrap();
    conn.pragma_update(None, "cache_size", -2048).unwrap();
    conn.pragma_update(None, "wal_autocheckpoint", (16 << 20) / shape.page_bytes as i64).unwrap();
    conn
}

fn measure_shape(shape: &Shape, value_bytes: usize, keys: u64) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shape.db");
    let conn = connect(&path, shape);
    conn.execute_batch(SCHEMA).unwrap();
    let entropy = SystemEntropy::default();
    // Inserted in an order that is random for the table, as keys are hashed into slots.
    let insert = rate(keys, |from| put_batch(&conn, shape, value_bytes, 1, from..from + BATCH));
    let updates = 40_000;
    let update = rate(updates, |from| {
        let chosen: Vec<u64> = (0..BATCH).map(|_| entropy.below(keys)).collect();
        put_batch(&conn, shape, value_bytes, 2 + from, chosen.into_iter());
    });
    let reader = connect(&path, shape);
    let read = read_rate(&reader, keys, value_bytes);
    reader.pragma_update(None, "mmap_size", 1i64 << 30).unwrap();
    let mapped = read_rate(&reader, keys, value_bytes);
    let started = Instant::now();
    let mut rows_seen = 0u64;
    for slot in 0..=255u8 {
        let mut scan = reader.prepare_cached(SCAN).unwrap();
        let mut rows = scan.query([slot]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let value = row.get_ref(1).unwrap().as_blob().or(row.get_ref(2).unwrap().as_blob()).unwrap();
            assert_eq!(value.len(), value_bytes);
            rows_seen += 1;
        }
    }
    let scan = rows_seen as f64 / started.elapsed().as_secs_f64();
    conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let bytes = std::fs::metadata(&path).unwrap().len() / rows_seen;
    println!("{insert:>10.0}{update:>10.0}{read:>10.0} {mapped:>10.0}{scan:>10.0}{bytes:>11}");
}

fn read_rate(reader: &Connection, keys: u64, value_bytes: usize) -> f64 {
    let entropy = SystemEntropy::default();
    rate(200_000, |_| {
        reader.execute_batch("BEGIN").unwrap();
        let mut get = reader.prepare_cached(GET).unwrap();
        for _ in 0..BATCH {
            let key = key(entropy.below(keys));
            let found: bool = get
                .query_row(params![slot_of(&key), key.as_bytes()], |row| {
                    Ok(row.get_ref(1)?.as_blob().or(row.get_ref(2)?.as_blob()).is_ok_and(|v| v.len() == value_bytes))
                })
                .unwrap();
            assert!(found);
        }
        reader.execute_batch("COMMIT").unwrap();
    })
}

/// Each round writes other values: SQLite leaves a page alone that would not change.
fn put_batch(conn: &Connection, shape: &Shape, value_bytes: usize, round: u64, numbers: impl Iterator<Item = u64>) {
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut get = conn.prepare_cached(GET).unwrap();
    let mut put = conn.prepare_cached(PUT).unwrap();
    for number in numbers {
        let key = key(number);
        let slot = slot_of(&key);
        let value = vec![(number ^ round) as u8; value_bytes];
        let mut old = None;
        let mut rows = get.query(params![slot, key.as_bytes()]).unwrap();
        if let Some(row) = rows.next().unwrap() {
            old = row.get::<_, Option<i64>>(3).unwrap();
        }
        drop(rows);
        let stamp = 0x0190_0000_0000_0000i64 + round as i64;
        if value_bytes <= shape.inline_bytes_max {
            put.execute(params![slot, key.as_bytes(), stamp, value, None::<i64>]).unwrap();
        } else {
            let mut large = conn.prepare_cached("REPLACE INTO large_values VALUES (?1, ?2)").unwrap();
            let id = large.insert(params![old, value]).unwrap();
            put.execute(params![slot, key.as_bytes(), stamp, None::<Vec<u8>>, id]).unwrap();
        }
    }
    conn.execute_batch("COMMIT").unwrap();
}

/// Rows a second over batches that together have that many.
fn rate(rows: u64, mut batch: impl FnMut(u64)) -> f64 {
    let started = Instant::now();
    for from in (0..rows).step_by(BATCH as usize) {
        batch(from);
    }
    rows.next_multiple_of(BATCH) as f64 / started.elapsed().as_secs_f64()
}

// ----------------------------------------------------------------------------------------------------------- store

const KEYS: u64 = 500_000;
const ROUND: Duration = Duration::from_secs(3);

struct Tray(mpsc::Sender<(u64, Answer)>);

impl Inbox for Tray {
    fn deliver(&self, tag: u64, answer: Answer) {
        let _ = self.0.send((tag, answer));
    }
}

fn write(number: u64, hlc: u64) -> ReplicaRequest {
    let key = key(number);
    let content = Content::value(vec![number as u8; 100]);
    let record = Record::seal(&key, Version::plain(Hlc(hlc), Writer(1)), Hlc(hlc), content);
    ReplicaRequest::Write { key, record }
}

fn accept(number: u64, ballot: Ballot) -> ReplicaRequest {
    let key = key(number);
    let version = Version { rmw: 2, ..Version::plain(Hlc(1), Writer(1)) };
    let record = Some(Record::seal(&key, version, ballot.hlc, Content::value(vec![number as u8; 100])));
    let accepted = Accepted { ballot, op: OpId(Uuid::from_u128(ballot.hlc.0.into())), record, recent: Recent::NONE };
    ReplicaRequest::Accept { key, accepted: Box::new(accepted) }
}

fn store() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        data_dir: dir.path().to_owned(),
        node: NodeNum(1),
        durability: Durability::Full,
        hint_bytes_max: 1 << 30,
        wal_bytes_max: 256 << 20,
    };
    let open = || SqliteStore::open(options.clone(), Arc::new(SystemClock), &SystemEntropy::default()).unwrap();
    let store = open();
    let mut next = 0;
    let filled = under_way(&*store, 4096, KEYS, Duration::MAX, || {
        next += 1;
        write(next - 1, 1)
    });
    println!("fill with {KEYS} keys of 100 B: {}", filled.text());
    let entropy = SystemEntropy::default();
    let mut hlc = 1 << 40;
    for many in [1, 16, 64, 256] {
        let puts = under_way(&*store, many, u64::MAX, ROUND, || {
            hlc += 1;
            write(entropy.below(KEYS), hlc)
        });
        println!("put, {many:>3} under way: {}  log {} MiB", puts.text(), store.totals().wal_bytes >> 20);
    }
    for many in [1, 64, 256] {
        let gets = under_way(&*store, many, u64::MAX, ROUND, || {
            let key = key(entropy.below(KEYS));
            ReplicaRequest::Read { key, part: ReadPart::Record, hints: false }
        });
        println!("get, {many:>3} under way: {}", gets.text());
    }
    for many in [1, 16, 64] {
        let mut open = None;
        let steps = under_way(&*store, many, u64::MAX, ROUND, || match open.take() {
            None => {
                hlc += 1;
                let (number, ballot) = (entropy.below(KEYS), Ballot { hlc: Hlc(hlc), writer: Writer(1) });
                open = Some((number, ballot));
                ReplicaRequest::Prepare { key: key(number), ballot }
            }
            Some((number, ballot)) => accept(number, ballot),
        });
        println!("prepare and accept in turn, {many:>3} under way: {}", steps.text());
    }
    let started = Instant::now();
    store.close();
    println!("close: {} ms", started.elapsed().as_millis());
    drop(store);
    let started = Instant::now();
    let store = open();
    let opened = started.elapsed();
    while !store.totals().counted {
        std::thread::yield_now();
    }
    println!(
        "open: {} ms, counted {} keys after {} ms",
        opened.as_millis(),
        store.totals().keys,
        started.elapsed().as_millis()
    );
}

struct Measured {
    many: u64,
    took: Duration,
    latencies: Vec<Duration>,
}

impl Measured {
    fn text(&self) -> String {
        let at = |share: f64| self.latencies[(self.latencies.len() as f64 * share) as usize].as_secs_f64() * 1e3;
        let rate = self.many as f64 / self.took.as_secs_f64();
        format!("{rate:>8.0}/s  p50 {:.2} ms  p99 {:.2} ms  p999 {:.2} ms", at(0.5), at(0.99), at(0.999))
    }
}

/// Keeps that many requests under way until `total` were answered or the time is over.
fn under_way(
    store: &dyn Store,
    many: u64,
    total: u64,
    limit: Duration,
    mut next: impl FnMut() -> ReplicaRequest,
) -> Measured {
    let (sender, answers) = mpsc::channel();
    let tray: Arc<dyn Inbox> = Arc::new(Tray(sender));
    let seed = TokenSeed::of(ClusterId(Uuid::from_u128(1)));
    let mut sent = vec![Instant::now(); many as usize];
    let mut submit = |tag: u64, sent: &mut Vec<Instant>| {
        let request = next();
        sent[tag as usize] = Instant::now();
        let token = request.key().token(seed);
        store.submit(smallvec![Submission {
            token,
            request,
            reply_to: ReplyTo::new(tray.clone(), tag),
            behind: false
        }]);
    };
    let started = Instant::now();
    let many = many.min(total);
    (0..many).for_each(|tag| submit(tag, &mut sent));
    let (mut latencies, mut left) = (Vec::new(), many);
    while left > 0 {
        let (tag, answer) = answers.recv().unwrap();
        assert!(!matches!(answer.unwrap(), ReplicaReply::Refused(_)));
        latencies.push(sent[tag as usize].elapsed());
        if latencies.len() as u64 + left > total || started.elapsed() >= limit {
            left -= 1;
        } else {
            submit(tag, &mut sent);
        }
    }
    let took = started.elapsed();
    latencies.sort_unstable();
    Measured { many: latencies.len() as u64, took, latencies }
}
