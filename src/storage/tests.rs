//! The store as its users meet it: through the port, on a real directory.

mod backup;
mod changes;
mod damage;
mod dropping;
mod failures;
mod flips;
mod model;
mod purge;
pub(super) mod rare;
mod register;
mod scan;
mod tree;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use smallvec::SmallVec;
use uuid::Uuid;

use super::*;
use crate::ports::{Answer, Clock, Inbox, ReadPart, ReplicaReply, ReplicaRequest, ReplyTo, Seen, Store, Submission};
use crate::system::{SystemClock, SystemEntropy};
use crate::types::{ClusterId, Content, Hlc, Identity, Key, NodeNum, Record, TokenSeed, Version, Writer};

fn options(dir: &Path) -> Options {
    Options {
        data_dir: dir.to_owned(),
        node: NodeNum(1),
        durability: Durability::Full,
        hint_bytes_max: 1 << 20,
        wal_bytes_max: 256 << 20,
    }
}

fn open(dir: &Path) -> Arc<SqliteStore> {
    open_with(options(dir))
}

/// It is of a cluster before it has records, as a node sees to.
fn open_with(options: Options) -> Arc<SqliteStore> {
    let store = SqliteStore::open(options, Arc::new(SystemClock), &SystemEntropy::default()).unwrap();
    let identity = store.identity();
    if identity.cluster.is_none() {
        let named = store.save_identity(Identity { cluster: Some(cluster()), ..identity });
        futures_util::FutureExt::now_or_never(named);
        // The writer thread names it, in its turn.
        while store.identity().cluster.is_none() {
            std::thread::yield_now();
        }
    }
    store
}

fn cluster() -> ClusterId {
    ClusterId(Uuid::from_u128(1))
}

fn key(text: &str) -> Key {
    Key::new(text.to_owned()).unwrap()
}

fn seed() -> TokenSeed {
    TokenSeed::of(cluster())
}

fn version(hlc: u64) -> Version {
    Version::plain(Hlc(hlc), Writer(1))
}

fn record(key: &Key, hlc: u64, content: Content) -> Record {
    Record::seal(key, version(hlc), Hlc(hlc), content)
}

fn write(text: &str, hlc: u64, value: impl Into<bytes::Bytes>) -> ReplicaRequest {
    let key = key(text);
    let record = record(&key, hlc, Content::value(value));
    ReplicaRequest::Write { key, record }
}

fn hint(target: u16, text: &str, hlc: u64, value: impl Into<bytes::Bytes>, counted: bool) -> ReplicaRequest {
    let key = key(text);
    let record = record(&key, hlc, Content::value(value));
    ReplicaRequest::Hint { target: NodeNum(target), key, record, counted }
}

fn read(text: &str) -> ReplicaRequest {
    ReplicaRequest::Read { key: key(text), part: ReadPart::Record, hints: false }
}

struct Tray(mpsc::Sender<(u64, Answer)>);

impl Inbox for Tray {
    fn deliver(&self, tag: u64, answer: Answer) {
        let _ = self.0.send((tag, answer));
    }
}

/// Submits all in one batch; the answers in the order of the requests.
fn ask_all(store: &dyn Store, requests: Vec<ReplicaRequest>) -> Vec<Answer> {
    let (sender, receiver) = mpsc::channel();
    let tray: Arc<dyn Inbox> = Arc::new(Tray(sender));
    let many = requests.len();
    let batch = requests.into_iter().zip(0..).map(|(request, tag)| {
        let token = request.key().token(seed());
        Submission { token, request, reply_to: ReplyTo::new(tray.clone(), tag), behind: false }
    });
    store.submit(batch.collect::<SmallVec<_>>());
    drop(tray);
    let mut answers = BTreeMap::new();
    while answers.len() < many {
        let (tag, answer) = receiver.recv_timeout(Duration::from_secs(20)).expect("an answer");
        assert!(answers.insert(tag, answer).is_none(), "answered twice");
    }
    answers.into_values().collect()
}

fn ask(store: &dyn Store, request: ReplicaRequest) -> ReplicaReply {
    ask_all(store, vec![request]).remove(0).unwrap()
}

fn value_of(reply: ReplicaReply) -> Option<bytes::Bytes> {
    match reply {
        ReplicaReply::Record { record, .. } => record.map(|r| match r.content {
            Content::Value { bytes, .. } => bytes,
            Content::Tombstone => panic!("a tombstone"),
        }),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_written_is_read_at_once_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let large = vec![7u8; 1 << 20];
    {
        let store = open(dir.path());
        let stored = ReplicaReply::Stored { replaced: None };
        assert_eq!(ask(&*store, write("small", 1, "v")), stored);
        assert_eq!(ask(&*store, write("large", 1, large.clone())), stored);
        assert_eq!(ask(&*store, write("empty", 1, "")), stored);
        assert_eq!(value_of(ask(&*store, read("small"))), Some("v".into()));
        assert_eq!(value_of(ask(&*store, read("large"))), Some(large.clone().into()));
        store.close();
        assert!(!dir.path().join("a3.db-wal").exists(), "a clean stop leaves no log");
    }
    let store = open(dir.path());
    assert_eq!(value_of(ask(&*store, read("small"))), Some("v".into()));
    assert_eq!(value_of(ask(&*store, read("large"))), Some(large.into()));
    assert_eq!(value_of(ask(&*store, read("empty"))), Some("".into()));
    assert_eq!(value_of(ask(&*store, read("absent"))), None);
    assert_eq!(store.identity().generation, 2);
}

#[test]
fn an_older_write_is_dominated_and_a_newer_one_says_what_it_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    ask(&*store, write("k", 5, "five"));
    let five = Seen {
        version: version(5),
        written: Hlc(5),
        live: true,
        tombstone: false,
        checksum: record(&key("k"), 5, Content::value("five")).checksum,
    };
    assert_eq!(ask(&*store, write("k", 4, "four")), ReplicaReply::Dominated { by: five });
    assert_eq!(ask(&*store, write("k", 5, "five")), ReplicaReply::Dominated { by: five });
    assert_eq!(ask(&*store, write("k", 6, "six")), ReplicaReply::Stored { replaced: Some(five) });
}

#[test]
fn expiry_is_judged_by_the_observed_clock() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let at = SystemClock.wall_ms() + 3_600_000;
    let key = key("k");
    let content = Content::Value { bytes: "v".into(), content_type: None, expires_at_ms: Some(at) };
    let record = record(&key, 1, content);
    ask(&*store, ReplicaRequest::Write { key: key.clone(), record });
    let live = || {
        let version = ReplicaRequest::Read { key: key.clone(), part: ReadPart::Version, hints: false };
        match ask(&*store, version) {
            ReplicaReply::Version { seen: Some(seen), .. } => seen.live,
            other => panic!("{other:?}"),
        }
    };
    assert!(live());
    store.observe(Hlc::from_ms(at));
    assert!(!live());
}

#[test]
fn an_acknowledged_write_is_seen_by_a_fresh_connection() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let conn = rusqlite::Connection::open(dir.path().join("a3.db")).unwrap();
    for n in 1..50 {
        ask(&*store, write("k", n, "v"));
        let stored: i64 = conn.query_row("SELECT hlc FROM records", [], |row| row.get(0)).unwrap();
        assert_eq!(stored as u64, n);
    }
}

#[test]
fn reads_see_what_was_acknowledged_before_them_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let store = &store;
            scope.spawn(move || {
                let name = format!("k{worker}");
                for n in 1..=200u64 {
                    assert!(matches!(ask(&**store, write(&name, n, n.to_string())), ReplicaReply::Stored { .. }));
                    assert_eq!(value_of(ask(&**store, read(&name))), Some(n.to_string().into()));
                }
            });
        }
    });
    assert_eq!(store.totals().keys, 8);
}

#[test]
fn changes_of_one_key_keep_their_order_in_a_batch() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let answers = ask_all(&*store, (1..=3000).map(|n| write("k", n, "v")).collect());
    for (n, answer) in answers.into_iter().enumerate() {
        match answer.unwrap() {
            ReplicaReply::Stored { replaced } => assert_eq!(replaced.map_or(0, |s| s.version.hlc.0), n as u64),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_large_value_leaves_no_row_behind_when_it_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let conn = rusqlite::Connection::open(dir.path().join("a3.db")).unwrap();
    let large = || conn.query_row("SELECT count(*) FROM large_values", [], |row| row.get::<_, u32>(0)).unwrap();
    ask(&*store, write("k", 1, vec![1; 5000]));
    ask(&*store, write("k", 2, vec![2; 70000]));
    assert_eq!(large(), 1);
    assert_eq!(value_of(ask(&*store, read("k"))), Some(vec![2; 70000].into()));
    ask(&*store, write("k", 3, "small"));
    assert_eq!(large(), 0);
}
