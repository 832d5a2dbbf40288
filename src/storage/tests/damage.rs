//! A member's database that was cut, flipped or lost: it is moved aside and kept, and never answers for what it lost.

use super::*;
use crate::metrics::STORE_SET_ASIDE;
use crate::types::Identity;
use metrics_exporter_prometheus::PrometheusBuilder;

const KEYS: usize = 400;

pub(super) fn value(n: usize) -> String {
    format!("value {n} {}", "x".repeat(n % 90))
}

/// A member among others that holds [`KEYS`] keys, closed in order.
fn member(dir: &Path) -> Identity {
    let store = open(dir);
    for n in 0..KEYS {
        ask(&*store, write(&format!("k{n}"), 1, value(n)));
    }
    let known_addresses = vec!["127.0.0.1:1".into()];
    let identity = Identity { cluster: Some(ClusterId(Uuid::from_u128(1))), known_addresses, ..store.identity() };
    assert_eq!(wait_for(store.save_identity(identity.clone())), Ok(()));
    store.close();
    identity
}

pub(super) fn wait_for<T>(future: futures_util::future::BoxFuture<'static, T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// The same, left as a crash leaves it: not closed, its log beside it.
fn crashed(dir: &Path) -> Identity {
    let live = tempfile::tempdir().unwrap();
    let identity = member(live.path());
    let store = open(live.path());
    for n in 0..KEYS {
        ask(&*store, write(&format!("k{n}"), 2, value(n)));
    }
    for name in ["identity", "a3.db", "a3.db-wal"] {
        std::fs::copy(live.path().join(name), dir.join(name)).unwrap();
    }
    identity
}

/// It came back as another instance, without records, and kept what was there.
fn assert_replaced(dir: &Path, was: &Identity, what: &str) {
    let store = open(dir);
    let now = store.identity();
    assert_ne!(now.instance, was.instance, "{what}");
    assert_eq!(
        (now.succeeds.as_slice(), now.rebuilding, now.cluster),
        (&[was.instance][..], true, was.cluster),
        "{what}"
    );
    for n in 0..KEYS {
        assert_eq!(value_of(ask(&*store, read(&format!("k{n}")))), None, "{what}");
    }
    assert!(matches!(ask(&*store, write("new", 1, "v")), ReplicaReply::Stored { .. }), "{what}");
    store.close();
    let again = open(dir);
    assert_eq!(again.identity(), Identity { generation: 2, ..now }, "{what}: once");
}

fn kept(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut kept: Vec<_> = names.filter(|name| name.contains("damaged-")).collect();
    kept.sort();
    kept
}

#[test]
fn what_cannot_be_believed_is_moved_aside_and_counted() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let mut count = 0;
    metrics::with_local_recorder(&recorder, || {
        let mut case = |what: &str, files: usize, closed: bool, harm: &dyn Fn(&Path)| {
            let dir = tempfile::tempdir().unwrap();
            let was = if closed { member(dir.path()) } else { crashed(dir.path()) };
            harm(dir.path());
            assert_replaced(dir.path(), &was, what);
            assert_eq!(kept(dir.path()).len(), files, "{what}: {:?}", kept(dir.path()));
            count += 1;
        };
        let file = |dir: &Path| dir.join("a3.db");
        let cut = |dir: &Path, to: u64| {
            std::fs::OpenOptions::new().write(true).open(file(dir)).unwrap().set_len(to).unwrap();
        };
        let flip = |dir: &Path, at: usize| {
            let mut bytes = std::fs::read(file(dir)).unwrap();
            bytes[at] ^= 4;
            std::fs::write(file(dir), bytes).unwrap();
        };
        case("cut to half", 1, true, &|dir| cut(dir, std::fs::metadata(file(dir)).unwrap().len() / 2 / 4096 * 4096));
        case("cut within its header", 1, true, &|dir| cut(dir, 60));
        case("cut to nothing", 1, true, &|dir| cut(dir, 0));
        case("gone", 0, true, &|dir| std::fs::remove_file(file(dir)).unwrap());
        case("a flipped magic", 1, true, &|dir| flip(dir, 3));
        case("a flipped schema version", 1, true, &|dir| flip(dir, 63));
        case("the log gone after a crash", 1, false, &|dir| std::fs::remove_file(dir.join("a3.db-wal")).unwrap());
        case("gone after a crash", 1, false, &|dir| std::fs::remove_file(file(dir)).unwrap());
        let schema = |dir: &Path| {
            let bytes = std::fs::read(file(dir)).unwrap();
            let at = bytes.windows(11).position(|w| w == b"content_typ").unwrap();
            flip(dir, at);
        };
        case("a flipped name in the schema", 1, true, &schema);
    });
    let line = format!("{} {count}", STORE_SET_ASIDE.name);
    assert!(metrics.render().lines().any(|l| l == line), "{line} in {}", metrics.render());
}

#[test]
fn a_crash_alone_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let was = crashed(dir.path());
    let store = open(dir.path());
    assert_eq!(store.identity().instance, was.instance);
    for n in 0..KEYS {
        assert_eq!(value_of(ask(&*store, read(&format!("k{n}")))), Some(value(n).into()));
    }
}

#[test]
fn without_others_a_damaged_database_is_left_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let alone = Identity { cluster: Some(ClusterId(Uuid::from_u128(1))), ..store.identity() };
    assert_eq!(wait_for(store.save_identity(alone)), Ok(()));
    store.close();
    let file = dir.path().join("a3.db");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let refused = SqliteStore::open(options(dir.path()), Arc::new(SystemClock), &SystemEntropy::default());
    assert!(matches!(refused, Err(OpenError::Damaged { .. })));
    assert_eq!((std::fs::read(&file).unwrap(), kept(dir.path())), (bytes, vec![]));
}
