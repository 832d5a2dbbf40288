//! Backups: taken beside writes, refused where anything in them is wrong, and made a new instance's directory.

use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use super::damage::wait_for;
use super::rare::{eventually, wait};
use super::register::ballot;
use super::*;
use crate::ports::{Backup, BackupError, Purging};
use crate::types::{Accepted, Announcement, Ballot, Epoch, Floor, InstanceId, OpId, Recent, SlotSet, Topology};

fn topology(members: u16, rf: u8) -> Topology {
    let founder = |n: u16| Announcement {
        node: NodeNum(n),
        instance: InstanceId(Uuid::from_u128(n.into())),
        zone: None,
        weight: 1,
        mesh_address: format!("127.0.0.1:{}", 50050 + n),
        http_address: format!("127.0.0.1:{}", 8000 + n),
        cluster_size: members,
        rf,
    };
    crate::protocol::founding::first_topology(&(1..=members).map(founder).collect::<Vec<_>>(), cluster())
}

/// A store that has a bit of everything.
fn store(dir: &Path, members: u16, rf: u8) -> Arc<SqliteStore> {
    let store = open(dir);
    wait(store.save_topology(Arc::new(topology(members, rf))));
    for n in 0..200 {
        ask(&*store, write(&format!("k{n}"), 5, format!("value {n}")));
    }
    ask(&*store, write("large", 5, vec![7; 5000]));
    let gone = key("gone");
    let record = record(&gone, 6, Content::Tombstone);
    ask(&*store, ReplicaRequest::Write { key: gone, record });
    ask(&*store, hint(2, "hinted", 5, vec![1; 3000], true));
    let state = Some(super::record(&key("large"), 5, Content::value(vec![7; 5000])));
    let accepted = Accepted { ballot: ballot(7), op: OpId(Uuid::nil()), record: state, recent: Recent::NONE };
    ask(&*store, ReplicaRequest::Accept { key: key("large"), accepted: Box::new(accepted) });
    wait(store.raise(vec![(slot("k0"), floor(3))]));
    wait(store.reserve_clock(Hlc::from_ms(77)));
    store
}

fn slot(text: &str) -> crate::types::Slot {
    key(text).token(seed()).slot()
}

fn floor(g: u64) -> Floor {
    Floor { written: Hlc(g), version: version(g), ballot: Ballot::sealing(Hlc(g)) }
}

/// All of it, with its length and checksum looked at.
fn bytes_of(backup: Backup) -> Vec<u8> {
    let Backup { bytes, sha256, mut chunks, .. } = backup;
    let mut all = Vec::new();
    while let Some(chunk) = chunks.blocking_recv() {
        all.extend_from_slice(&chunk.unwrap());
    }
    assert_eq!(all.len() as u64, bytes);
    assert_eq!(<[u8; 32]>::from(Sha256::digest(&all)), sha256);
    all
}

fn backup_of(store: &SqliteStore) -> Vec<u8> {
    bytes_of(wait_for(Store::backup(store)).unwrap())
}

struct Kept {
    dir: tempfile::TempDir,
    options: RestoreOptions,
}

impl Kept {
    fn new(bytes: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("n1.db");
        std::fs::write(&file, bytes).unwrap();
        let (mesh_address, http_address) = ("127.0.0.1:50059".into(), "127.0.0.1:8009".into());
        let data_dir = dir.path().join("data");
        let options = RestoreOptions { file, data_dir, node: NodeNum(1), mesh_address, http_address };
        Self { dir, options }
    }

    fn restore(&self) -> Result<Restored, RestoreError> {
        restore(&self.options, &SystemEntropy::default())
    }

    fn refused(&self) -> String {
        let error = self.restore().unwrap_err().to_string();
        let left: Vec<_> = files(&self.options.data_dir);
        assert!(left.iter().all(|name| name == "lock"), "{error}: {left:?}");
        error
    }
}

fn files(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn a_backup_beside_writes_is_of_one_moment_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1, 1);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let bytes = std::thread::scope(|scope| {
        // Two keys, always written in one batch and so in one transaction.
        scope.spawn(|| {
            let mut n = 10;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                ask_all(&*store, vec![write("left", n, n.to_string()), write("right", n, n.to_string())]);
                n += 1;
            }
        });
        eventually("a few are written", || value_of(ask(&*store, read("left"))).is_some());
        let taken: Vec<_> = (0..3).map(|_| wait_for(Store::backup(&*store)).map(bytes_of)).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        taken.into_iter().map(Result::unwrap).collect::<Vec<_>>()
    });
    assert!(files(dir.path()).iter().all(|name| !name.starts_with("backup")));
    for bytes in bytes {
        let kept = Kept::new(&bytes);
        let restored = kept.restore().unwrap();
        assert_eq!(
            (restored.about.node, restored.about.cluster, restored.about.epoch),
            (NodeNum(1), cluster(), Epoch(1))
        );
        let copy = open(&kept.options.data_dir);
        let of = |text| value_of(ask(&*copy, read(text))).unwrap();
        assert_eq!(of("left"), of("right"));
        assert_eq!((of("k7"), of("large")), ("value 7".into(), vec![7; 5000].into()));
    }
}

#[test]
fn an_only_member_goes_on_as_the_next_epoch_with_all_it_held() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1, 1);
    let kept = Kept::new(&backup_of(&store));
    let restored = kept.restore().unwrap();
    assert!(!restored.rebuilding && restored.members == 1);
    assert_eq!(files(&kept.options.data_dir), ["a3.db", "identity", "lock"]);
    let copy = open(&kept.options.data_dir);
    let (identity, topology) = (copy.identity(), wait(copy.topology()).unwrap());
    let member = topology.member(NodeNum(1)).unwrap();
    assert_eq!((identity.instance, identity.rebuilding, identity.generation), (member.instance, false, 1));
    assert_ne!(identity.instance, store.identity().instance);
    assert_eq!((topology.epoch, topology.next_writer), (Epoch(2), Writer(member.writer.0 + 1)));
    assert!(member.writer > Writer(1));
    assert_eq!(member.mesh_address, "127.0.0.1:50059");
    assert_eq!(wait(copy.clock_reservation()), Hlc::from_ms(77), "stamps lie above those in the file");
    assert!(matches!(ask(&*copy, prepare("large", 6)), ReplicaReply::Outbid { .. }), "a register is kept");
    assert_eq!(ask(&*copy, write("k0", 2, "old")), ask(&*store, write("k0", 2, "old")));
    let survey = wait(copy.survey(SlotSet::from_iter([slot("k0")])));
    assert_eq!(survey[0].floor, floor(3));
    assert!(wait(copy.hints(NodeNum(2), None, 10)).is_empty());
}

/// Each of them serves: what one stamps the other never does.
#[test]
fn two_restores_of_one_file_are_two_writers() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = backup_of(&store(dir.path(), 1, 1));
    let writer = || {
        let kept = Kept::new(&bytes);
        kept.restore().unwrap();
        let topology = wait(open(&kept.options.data_dir).topology()).unwrap();
        topology.member(NodeNum(1)).unwrap().writer
    };
    assert_ne!(writer(), writer());
}

/// All rows of the two lists.
fn lists(database: &Path) -> Vec<(i64, i64, Vec<u8>)> {
    let conn = rusqlite::Connection::open(database).unwrap();
    let mut select = conn.prepare("SELECT * FROM ends UNION ALL SELECT * FROM tombstones").unwrap();
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
fn the_lists_beside_the_records_are_made_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1, 1);
    for (name, bytes) in [("ends", vec![1; 9]), ("ends large", vec![1; 3000])] {
        let content = Content::Value { bytes: bytes.into(), content_type: None, expires_at_ms: Some(99) };
        let record = record(&key(name), 5, content);
        ask(&*store, ReplicaRequest::Write { key: key(name), record });
    }
    let kept = Kept::new(&backup_of(&store));
    let whole = lists(&kept.options.file);
    assert_eq!(whole.len(), 3);
    // Neither has a checksum.
    let conn = rusqlite::Connection::open(&kept.options.file).unwrap();
    conn.execute_batch("DELETE FROM ends; UPDATE tombstones SET written = 1; INSERT INTO ends VALUES (7, 7, x'77')")
        .unwrap();
    conn.close().unwrap();
    kept.restore().unwrap();
    assert_eq!(lists(&kept.options.data_dir.join("a3.db")), whole);
}

#[test]
fn a_backup_may_be_read_only_and_what_is_made_is_the_owners() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt, chown};
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1, 1);
    let kept = Kept::new(&backup_of(&store));
    std::fs::set_permissions(&kept.options.file, PermissionsExt::from_mode(0o444)).unwrap();
    let data = &kept.options.data_dir;
    std::fs::create_dir(data).unwrap();
    // Root alone can see the other half of it.
    let of = |path: &Path| path.metadata().unwrap().uid();
    let root = of(data) == 0;
    if root {
        chown(data, Some(4321), Some(4321)).unwrap();
    }
    kept.restore().unwrap();
    assert_eq!(data.join("a3.db").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(files(data).iter().all(|name| of(&data.join(name)) == of(data)));
    assert_eq!(of(data) == 4321, root);
}

#[test]
fn what_is_no_file_or_lies_in_the_directory_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = Kept::new(&backup_of(&store(dir.path(), 1, 1)));
    for file in [kept.dir.path().to_owned(), "/dev/null".into()] {
        kept.options.file = file;
        let refused = kept.restore().unwrap_err().to_string();
        assert!(refused.starts_with(&*kept.options.file.to_string_lossy()) && refused.contains("no file"), "{refused}");
        assert!(!kept.options.data_dir.exists());
    }
    // What a restore that died has made is cleared by the next one: not with the backup in it.
    std::fs::create_dir(&kept.options.data_dir).unwrap();
    std::fs::write(kept.options.data_dir.join("restoring"), "").unwrap();
    kept.options.file = kept.options.data_dir.join("a3.db.kept");
    std::fs::rename(kept.dir.path().join("n1.db"), &kept.options.file).unwrap();
    assert!(matches!(kept.restore(), Err(RestoreError::Inside { .. })));
    assert_eq!(files(&kept.options.data_dir), ["a3.db.kept", "restoring"]);
}

fn prepare(text: &str, hlc: u64) -> ReplicaRequest {
    ReplicaRequest::Prepare { key: key(text), ballot: ballot(hlc) }
}

#[test]
fn among_others_only_the_records_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 3, 3);
    wait(store.save_vote(crate::types::Vote { epoch: Epoch(2), promised: ballot(9), accepted: None }));
    let kept = Kept::new(&backup_of(&store));
    let restored = kept.restore().unwrap();
    assert!(restored.rebuilding && restored.members == 3);
    let copy = open(&kept.options.data_dir);
    let identity = copy.identity();
    assert!(identity.rebuilding && identity.succeeds.is_empty(), "the old instance may be alive");
    assert_eq!(identity.known_addresses, ["127.0.0.1:50052", "127.0.0.1:50053"]);
    assert_eq!((wait(copy.topology()), wait(copy.vote())), (None, None));
    assert!(wait(copy.hints(NodeNum(2), None, 10)).is_empty());
    let survey = wait(copy.survey(SlotSet::from_iter([slot("k0")])));
    assert_eq!(survey[0].floor, Floor::default());
    assert!(matches!(ask(&*copy, prepare("large", 1)), ReplicaReply::Promised(_)), "no register is kept");
    assert_eq!(value_of(ask(&*copy, read("large"))), Some(vec![7; 5000].into()), "nor does it take a value along");
    eventually("it is counted", || copy.totals().counted);
    assert_eq!((copy.totals().keys, copy.totals().tombstones), (201, 1));
    copy.close();
    let large: u32 = rusqlite::Connection::open(kept.options.data_dir.join("a3.db"))
        .unwrap()
        .query_row("SELECT count(*) FROM large_values", [], |row| row.get(0))
        .unwrap();
    assert_eq!(large, 1, "large values of hints and registers are gone");
}

/// Wherever it stands: pages have remains of what was moved elsewhere.
fn flip(bytes: &mut [u8], text: &[u8], at: usize) {
    let places: Vec<usize> = (0..bytes.len()).filter(|place| bytes[*place..].starts_with(text)).collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|place| bytes[place + at] ^= 1);
}

#[test]
fn what_is_no_sound_backup_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 3, 3);
    let good = backup_of(&store);
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        Kept::new(&bytes).refused()
    };
    let flipped = with(&|bytes| flip(bytes, b"value 77", 0));
    assert!(flipped.contains("k77") && flipped.contains("checksum"), "{flipped}");
    let hint = with(&|bytes| flip(bytes, &[1; 3000], 9));
    assert!(hint.contains("hint for hinted"), "{hint}");
    let page = with(&|bytes| bytes[4096 * 3 + 3] ^= 0x55);
    assert!(page.contains("no sound backup"), "{page}");
    for len in [0, 50, 4096, good.len() - 4096] {
        let cut = with(&|bytes| bytes.truncate(len));
        assert!(cut.contains("no sound backup"), "{len}: {cut}");
    }
    let newer = with(&|bytes| bytes[63] += 1);
    assert!(newer.contains("newer program"), "{newer}");
    let text = with(&|bytes| *bytes = b"no database at all, but long enough for a header of a hundred bytes".repeat(4));
    assert!(text.contains("header"), "{text}");
    let said = with(&|bytes| flip(bytes, b"taken_ms", 11));
    assert!(said.contains("says of itself"), "{said}");
    store.close();
    let live = Kept::new(&std::fs::read(dir.path().join("a3.db")).unwrap()).refused();
    assert!(live.contains("does not say that it is a backup"), "{live}");
    let mut other = Kept::new(&good);
    other.options.node = NodeNum(2);
    assert!(other.refused().contains("of n1"), "{}", other.refused());
}

#[test]
fn a_directory_with_data_is_left_alone_and_an_unfinished_restore_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1, 1);
    let kept = Kept::new(&backup_of(&store));
    kept.restore().unwrap();
    let before = std::fs::read(kept.options.data_dir.join("identity")).unwrap();
    assert!(matches!(kept.restore(), Err(RestoreError::NotEmpty { .. })));
    assert_eq!(std::fs::read(kept.options.data_dir.join("identity")).unwrap(), before);
    let mut locked = Kept::new(&[]);
    (locked.options.file, locked.options.data_dir) = (kept.options.file.clone(), dir.path().to_owned());
    assert!(matches!(locked.restore(), Err(RestoreError::Open(OpenError::Locked { .. }))));
    // It died before the end: whatever is there is not started from, and done again.
    std::fs::write(kept.options.data_dir.join("restoring"), "").unwrap();
    let start = || SqliteStore::open(options(&kept.options.data_dir), Arc::new(SystemClock), &SystemEntropy::default());
    let refused = start().map(drop).unwrap_err().to_string();
    assert!(refused.contains("a3 restore"), "{refused}");
    kept.restore().unwrap();
    assert!(start().is_ok());
    assert!(kept.dir.path().exists());
}

#[test]
fn one_at_a_time_and_what_nobody_waits_for_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1, 1);
    for n in 0..40 {
        ask(&*store, write(&format!("filler {n}"), 5, vec![9; 60_000]));
    }
    let first = wait_for(Store::backup(&*store)).unwrap();
    assert_eq!(wait_for(Store::backup(&*store)).unwrap_err(), BackupError::Busy, "it is being sent");
    drop(first);
    let again = || match wait_for(Store::backup(&*store)) {
        Ok(backup) => Some(backup),
        Err(BackupError::Busy) => None,
        Err(other) => panic!("{other}"),
    };
    eventually("the next may begin", || again().is_some());
    drop(Store::backup(&*store));
    eventually("after one that nobody waited for, too", || again().is_some());
    // The store closes while one is sent.
    let mut sent = None;
    eventually("once more", || {
        sent = again();
        sent.is_some()
    });
    store.close();
    assert!(matches!(wait_for(Store::backup(&*store)), Err(BackupError::NotReady(_))));
    assert_eq!(bytes_of(sent.unwrap()).len() % 4096, 0, "what was begun is still whole");
}

#[test]
fn a_damaged_store_gives_no_backup_and_a_crash_leaves_none() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 1, 1);
    store.close();
    drop(store);
    let file = dir.path().join("a3.db");
    let mut bytes = std::fs::read(&file).unwrap();
    flip(&mut bytes, b"value 77", 0);
    std::fs::write(&file, bytes).unwrap();
    let left: [PathBuf; 2] = ["backup.tmp", "backup.tmp-journal"].map(|name| dir.path().join(name));
    left.iter().for_each(|path| std::fs::write(path, "half of one").unwrap());
    let store = open(dir.path());
    assert!(left.iter().all(|path| !path.exists()), "swept at the start");
    let refused = wait_for(Store::backup(&*store)).unwrap_err();
    assert!(matches!(&refused, BackupError::Damaged(what) if what.contains("k77")), "{refused}");
    assert!(left.iter().all(|path| !path.exists()));
}

#[test]
fn a_backup_is_read_without_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 3, 3);
    let odd = Key::new(vec![0xff, 0xfe]).unwrap();
    let content = Content::Value {
        bytes: vec![0x80].into(),
        content_type: Some(crate::types::ContentType::new(b"image/png".to_vec()).unwrap()),
        expires_at_ms: Some(99),
    };
    ask(&*store, ReplicaRequest::Write { key: odd.clone(), record: record(&odd, 5, content) });
    let kept = Kept::new(&backup_of(&store));
    let mut out = Vec::new();
    let about = export(&kept.options.file, &mut out).unwrap();
    assert_eq!(about.rows.records, 203);
    assert_eq!(files(kept.dir.path()), ["n1.db"], "nothing is made beside it");
    let lines: Vec<serde_json::Value> =
        out.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect();
    assert_eq!(lines.len(), 205);
    let end = &lines[204]["end"];
    assert_eq!([&end["records"], &end["tombstones"], &end["hints"]], [203, 1, 1]);
    // A write that this node took for another: acknowledged, and perhaps in no other file.
    let hinted = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, [1; 3000]);
    assert_eq!((&lines[203]["key"], &lines[203]["value_base64"]), (&"hinted".into(), &hinted.into()));
    let of = |key: &str| lines.iter().find(|line| line["key"] == key).unwrap();
    assert_eq!((&of("k7")["value"], &of("k7")["version"]), (&"value 7".into(), &version(5).to_string().into()));
    assert_eq!((&of("gone")["deleted"], &of("gone")["value"]), (&true.into(), &serde_json::Value::Null));
    let odd = lines.iter().find(|line| line["key_base64"] == "//4=").unwrap();
    assert_eq!((&odd["value_base64"], &odd["content_type"]), (&"gA==".into(), &"image/png".into()));
    assert_eq!((&odd["expires_at_ms"], &odd["written"]), (&99.into(), &"0000000000000005".into()));
    let bytes = std::fs::read(&kept.options.file).unwrap();
    for (text, found) in [(&b"value 77"[..], "k77"), (&[1; 3000], "a hint for hinted: checksum")] {
        let mut bytes = bytes.clone();
        flip(&mut bytes, text, 0);
        std::fs::write(&kept.options.file, bytes).unwrap();
        let mut out = Vec::new();
        let error = export(&kept.options.file, &mut out).unwrap_err().to_string();
        assert!(error.contains(found), "{error}");
        assert!(!String::from_utf8(out).unwrap().contains("\"end\""));
    }
}
