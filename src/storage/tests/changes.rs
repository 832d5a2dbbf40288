//! What is stored is told to the log of changes, in the order in which it was; what is not is not.

use super::*;
use crate::ports::ChangeLog;
use crate::types::{ChangeKind, KeyChange, Position};

fn told(log: &ChangeLog) -> Vec<(String, u64, ChangeKind)> {
    let page = log.all(Position { boot: log.head().boot, seq: 0 });
    assert!(page.reaches && !page.more);
    let row = |change: &KeyChange| (change.key.to_string(), change.version.hlc.0, change.kind);
    page.changes.iter().map(row).collect()
}

#[test]
fn what_is_stored_is_a_change_and_what_is_not_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let put = |key: &str, hlc, ends| (key.to_owned(), hlc, ChangeKind::Put { expires_at_ms: ends });
    let deleted = ReplicaRequest::Write { key: key("a"), record: record(&key("a"), 7, Content::Tombstone) };
    let ends = SystemClock.wall_ms() + 1;
    let content = Content::Value { bytes: "v".into(), content_type: None, expires_at_ms: Some(ends) };
    let ending = ReplicaRequest::Write { key: key("c"), record: record(&key("c"), 4, content) };
    let requests = vec![
        write("a", 5, "five"),
        write("a", 4, "dominated"),
        hint(2, "b", 3, "kept", true),
        hint(2, "b", 2, "older", true),
        ending,
        deleted,
        read("a"),
    ];
    ask_all(&*store, requests);
    let log = store.changes();
    let mut wanted =
        vec![put("a", 5, None), put("b", 3, None), put("c", 4, Some(ends)), ("a".into(), 7, ChangeKind::Delete)];
    assert_eq!(told(&log), wanted);
    assert_eq!(rare::wait(store.end_due(Hlc::from_ms(ends), 10)).len(), 1);
    wanted.push(("c".into(), 4, ChangeKind::Expire));
    assert_eq!(told(&log), wanted);
    let before = log.head();
    store.close();
    drop(store);
    let log = open(dir.path()).changes();
    assert!(log.head().boot != before.boot && log.head().seq == 0, "another life, another log");
}
