//! What the store says when the directory, the disk or a row is not as it should be.

use super::*;
use crate::ports::{PeerError, Refusal, StoreError};
use crate::storage::checkpoint::Checkpointer;
use crate::storage::commit::{AnswerTo, Job, WriteQueue, Writer as WriterThread};
use crate::storage::status::Status;
use crate::types::{Identity, Token};
use futures_util::FutureExt;

#[test]
fn a_directory_is_opened_once_and_by_its_own_node() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let again = |options| SqliteStore::open(options, Arc::new(SystemClock), &SystemEntropy::default());
    assert!(matches!(again(options(dir.path())), Err(OpenError::Locked { .. })));
    store.close();
    let other = Options { node: NodeNum(2), ..options(dir.path()) };
    assert!(matches!(again(other), Err(OpenError::OtherNode { found: NodeNum(1), wanted: NodeNum(2), .. })));
    again(options(dir.path())).unwrap();
}

#[test]
fn a_member_whose_database_is_gone_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    ask(&*store, write("k", 1, "v"));
    let cluster = Some(ClusterId(Uuid::from_u128(1)));
    let member = Identity { cluster, ..store.identity() };
    store.save_identity(member.clone()).now_or_never();
    store.close();
    drop(store);
    let (database, aside) = (dir.path().join("a3.db"), dir.path().join("aside.db"));
    std::fs::rename(&database, &aside).unwrap();
    for _ in 0..2 {
        let refused = SqliteStore::open(options(dir.path()), Arc::new(SystemClock), &SystemEntropy::default());
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("a3.db: the database is gone") && text.contains("put the database back"), "{text}");
        assert!(!database.exists(), "nothing stands in the way of the one that is put back");
    }
    std::fs::rename(&aside, &database).unwrap();
    let store = open(dir.path());
    assert_eq!(value_of(ask(&*store, read("k"))), Some("v".into()));
    assert_eq!(store.identity(), Identity { generation: 2, ..member });
}

#[test]
fn a_newer_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).close();
    let conn = rusqlite::Connection::open(dir.path().join("a3.db")).unwrap();
    conn.pragma_update(None, "user_version", 999).unwrap();
    drop(conn);
    // As the newer program notes it down; without that the number itself would be the damage.
    let identity = dir.path().join("identity");
    let text = std::fs::read_to_string(&identity).unwrap();
    let newer = text.replace(&format!("\"schema\": {}", migrations::KNOWN), "\"schema\": 999");
    assert_ne!(text, newer);
    std::fs::write(&identity, newer).unwrap();
    let opened = SqliteStore::open(options(dir.path()), Arc::new(SystemClock), &SystemEntropy::default());
    assert!(matches!(opened, Err(OpenError::NewerSchema { found: 999, .. })));
}

#[test]
fn a_closed_store_refuses_and_a_dropped_one_ends() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.close();
    store.close();
    assert_eq!(ask(&*store, write("k", 1, "v")), ReplicaReply::Refused(Refusal::NotReady));
    assert_eq!(ask(&*store, read("k")), ReplicaReply::Refused(Refusal::NotReady));
    assert_eq!(store.topology().now_or_never(), Some(Err(StoreError::Closing)));
    drop(store);
    drop(open(dir.path()));
    open(dir.path());
}

/// Flips one bit of each byte of a value, in the file, between two runs.
#[test]
fn a_flipped_bit_is_never_served_and_a_write_heals_it() {
    let value: &[u8] = b"0123456789abcdef-the-value";
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    ask(&*store, write("k", 1, value));
    ask(&*store, write("other", 1, "fine"));
    store.close();
    drop(store);
    let file = dir.path().join("a3.db");
    let clean = std::fs::read(&file).unwrap();
    let at = clean.windows(value.len()).position(|window| window == value).unwrap();
    // Before the value lie the cell's header (15 bytes), which SQLite itself may find damaged, and the other columns.
    for offset in at - 24..at + value.len() {
        let mut bytes = clean.clone();
        bytes[offset] ^= 0x10;
        std::fs::write(&file, bytes).unwrap();
        let store = open(dir.path());
        match ask(&*store, read("k")) {
            ReplicaReply::Refused(Refusal::Damaged) | ReplicaReply::Record { record: None, .. } => {}
            reply => panic!("served {reply:?} with byte {offset} flipped"),
        }
        match ask(&*store, write("k", 1, value)) {
            ReplicaReply::Stored { replaced: None } => {
                assert_eq!(value_of(ask(&*store, read("k"))), Some(value.into()));
            }
            ReplicaReply::Refused(Refusal::Damaged) if offset < at - 9 => {}
            reply => panic!("{reply:?} with byte {offset} flipped"),
        }
        // Neither the writer nor a reader is stuck in the transaction that met the damage.
        ask(&*store, write("elsewhere", 1, "v"));
        assert_eq!(value_of(ask(&*store, read("elsewhere"))), Some("v".into()));
        store.close();
    }
}

#[test]
fn one_version_with_two_contents_converges() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let k = key("k");
    let tombstone = record(&k, 1, Content::Tombstone);
    ask(&*store, write("k", 1, "v"));
    let reply = ask(&*store, ReplicaRequest::Write { key: k.clone(), record: tombstone.clone() });
    assert!(matches!(reply, ReplicaReply::Stored { replaced: Some(_) }));
    assert!(
        matches!(ask(&*store, write("k", 1, "v")), ReplicaReply::Dominated { by } if by.checksum == tombstone.checksum)
    );
}

fn engine(dir: &Path) -> Engine {
    Engine::open(&dir.join("a3.db"), NodeNum(1), Durability::Full, 1 << 30).unwrap()
}

fn fill(engine: &mut Engine, from: u64) -> (u64, BatchError) {
    for n in from.. {
        let key = key(&format!("k{n}"));
        let record = record(&key, 1, Content::value(vec![1; 3000]));
        let change = Change::Write { token: Token(0), key, record };
        if let Err(error) = engine.apply(Now::default(), &[change]) {
            return (n, error);
        }
    }
    unreachable!("a disk without end")
}

#[test]
fn a_full_disk_refuses_whole_batches_until_there_is_space() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = engine(dir.path());
    engine.conn.pragma_update_and_check(None, "max_page_count", 64, |_| Ok(())).unwrap();
    let (stored, error) = fill(&mut engine, 0);
    assert_eq!(error, BatchError::Full);
    assert!(stored > 10);
    let rows = |engine: &Engine| engine.conn.query_row("SELECT count(*) FROM records", [], |r| r.get::<_, i64>(0));
    assert_eq!(rows(&engine).unwrap() as u64, stored);
    assert_eq!(engine.book.totals(true).keys, stored, "what was rolled back is not booked");
    engine.conn.pragma_update_and_check(None, "max_page_count", 128, |_| Ok(())).unwrap();
    assert!(fill(&mut engine, stored).0 > stored, "writes go on by themselves");
}

#[test]
fn after_a_failed_commit_nothing_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path());
    // SQLite reports what the hook does as an error of COMMIT, as it would a sync that failed.
    engine.conn.commit_hook(Some(|| true)).unwrap();
    let status = Arc::new(Status::new(Arc::new(SystemClock)));
    let (database, wal) = (dir.path().join("a3.db"), dir.path().join("a3.db-wal"));
    let checkpointer = Arc::new(Checkpointer::new(status.clone(), engine.book.clone(), 1 << 28, database, wal));
    let queue = Arc::new(WriteQueue::default());
    let (sender, answers) = mpsc::channel();
    let tray: Arc<dyn Inbox> = Arc::new(Tray(sender));
    let push = |tag| {
        let (key, record) = match write("k", tag, "v") {
            ReplicaRequest::Write { key, record } => (key, record),
            other => panic!("{other:?}"),
        };
        let change = Change::Write { token: Token(0), key, record };
        let job = Job { change, answer: AnswerTo::Replica(ReplyTo::new(tray.clone(), tag)), behind: false };
        queue.push([job].into_iter(), 10);
    };
    // A batch ends at its limit of bytes or changes; here each run of the writer is one batch.
    let writer = |engine| WriterThread {
        engine,
        queue: queue.clone(),
        status: status.clone(),
        checkpointer: checkpointer.clone(),
    };
    push(1);
    queue.close();
    writer(engine).run();
    assert_eq!(answers.try_recv().unwrap(), (1, Err(PeerError::Lost)), "it may be on disk");
    assert!(!status.writable());
    assert!(matches!(status.failure(), Some(StoreError::Failed(_))));

    let store_again = Engine::open(&dir.path().join("a3.db"), NodeNum(1), Durability::Full, 1 << 30).unwrap();
    let queue = Arc::new(WriteQueue::default());
    let (caller, told) = tokio::sync::oneshot::channel();
    let change = Change::ReserveClock(Hlc(5));
    queue.push([Job { change, answer: AnswerTo::Caller(caller), behind: false }].into_iter(), 10);
    queue.close();
    let refused = Arc::new(status.clone());
    WriterThread { engine: store_again, queue, status: (*refused).clone(), checkpointer }.run();
    assert!(matches!(told.now_or_never(), Some(Ok(Err(StoreError::Failed(_))))));
}
