//! Three nodes, each with a disk in memory, that reach each other without a network.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::{FutureExt, poll};
use parking_lot::Mutex;

use super::*;
use crate::node::clock::NodeClock;
use crate::node::directory::Directory;
use crate::node::fakes::{FakeClock, FakeEntropy, FakeStore, journal, topology};
use crate::node::request::Found;
use crate::node::world::Tasks;
use crate::ports::{CHANGES_MAX, ReplicaCall, ReplicaRequest, ReplyTo, Store as _};
use crate::types::limits::CHANGES_PAGE_MAX;
use crate::types::{
    ChangeKind, Content, Epoch, Hlc, InstanceId, Key, Moving, Position, Record, TopologyChange, Version, Writer,
};

const NOW_MS: u64 = 1_700_000_000_000;
const ONE: NodeNum = NodeNum(1);
const TWO: NodeNum = NodeNum(2);
const THREE: NodeNum = NodeNum(3);
const SECOND: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Wire {
    stores: BTreeMap<NodeNum, Arc<FakeStore>>,
    nodes: OnceLock<BTreeMap<NodeNum, Arc<Watches>>>,
    gone: Mutex<Vec<NodeNum>>,
    asked: AtomicUsize,
    tasks: Arc<Tasks>,
}

struct End(NodeNum, Arc<Wire>);

impl Peers for End {
    fn send(&self, _: NodeNum, _: ReplicaCall, _: ReplyTo) {}

    fn ask(
        &self,
        to: Destination,
        request: PeerRequest,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<PeerReply, PeerError>> {
        let (from, wire) = (self.0, Arc::clone(&self.1));
        Box::pin(async move {
            let Destination::Member(to) = to else { return Err(PeerError::Unreachable) };
            if wire.gone.lock().contains(&to) {
                return Err(PeerError::Unreachable);
            }
            let node = Arc::clone(&wire.nodes.get().unwrap()[&to]);
            let PeerRequest::Changes { epoch, ask } = request else {
                return Ok(PeerReply::Topology { topology: node.routing.ring().map(|r| Arc::clone(r.topology())) });
            };
            wire.asked.fetch_add(1, Ordering::SeqCst);
            timeout_at(deadline, node.answer(from, epoch, ask)).await.unwrap_or(Err(PeerError::TimedOut))
        })
    }

    fn introduce(&self, _: NodeNum, _: InstanceId, _: &str) {}

    fn connected(&self, to: NodeNum) -> bool {
        !self.1.gone.lock().contains(&to)
    }
}

fn three(rf: u8) -> Arc<Wire> {
    let members = [ONE, TWO, THREE];
    let stores = members.map(|node| (node, FakeStore::new())).into();
    let wire = Arc::new(Wire { stores, ..Wire::default() });
    let nodes = members.map(|me| (me, node(me, rf, &wire)));
    assert!(wire.nodes.set(nodes.into()).is_ok());
    wire
}

fn node(me: NodeNum, rf: u8, wire: &Arc<Wire>) -> Arc<Watches> {
    let routing = Arc::new(Routing::default());
    routing.install(topology(1, 3, rf));
    let wall = FakeClock::at(NOW_MS);
    let ports = Ports {
        peers: Arc::new(End(me, Arc::clone(wire))),
        store: wire.stores[&me].clone(),
        clock: wall.clone(),
        entropy: Arc::new(FakeEntropy::default()),
        spawn: wire.tasks.clone(),
    };
    let clock = NodeClock::new(wall, SECOND, Hlc::ZERO);
    let directory = Arc::<Directory>::default();
    let succession = Succession::new(me, &ports, &routing, &clock, &directory, &journal());
    let watches = Watches::new(me, &ports, &routing, &succession);
    watches.start(&*ports.spawn);
    watches
}

impl Wire {
    fn at(&self, node: NodeNum) -> &Arc<Watches> {
        &self.nodes.get().unwrap()[&node]
    }

    /// Stored by all of its home replicas that are not gone.
    fn put(&self, name: &str, version: u64) {
        let key = key(name);
        let ring = self.at(ONE).routing.ring().unwrap();
        let token = ring.token(&key);
        let version = Version::plain(Hlc(version), Writer(1));
        let record = Record::seal(&key, version, version.hlc, Content::value("v"));
        for home in ring.placement(token.slot()).home_replicas().iter().filter(|n| !self.gone.lock().contains(n)) {
            self.stores[home].apply(token, ReplicaRequest::Write { key: key.clone(), record: record.clone() });
        }
    }

    fn home_of(&self, name: &str) -> NodeNum {
        let ring = self.at(ONE).routing.ring().unwrap();
        ring.placement(ring.token(&key(name)).slot()).home_replicas()[0]
    }
}

fn key(name: &str) -> Key {
    Key::new(name.to_owned()).unwrap()
}

fn everything() -> Watched {
    Watched::Prefix(Bytes::new())
}

fn soon() -> Instant {
    Instant::now() + SECOND
}

fn told(news: &News) -> Vec<(String, u64)> {
    news.changes.iter().map(|change| (change.key.to_string(), change.version.hlc.0)).collect()
}

/// Everything that is told until nothing is for a while.
async fn all(watching: &mut Watching) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    loop {
        let news = watching.next(Instant::now() + WAIT + SECOND).await.unwrap();
        if news.changes.is_empty() {
            all.sort();
            return all;
        }
        all.extend(told(&news));
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_tells_what_is_written_from_then_on_and_another_node_goes_on() {
    let wire = three(2);
    wire.put("before", 1);
    let mut watching = wire.at(ONE).begin(everything(), None, soon()).await.unwrap();
    for (name, version) in [("a", 2), ("b", 3), ("c", 4), ("a", 5)] {
        wire.put(name, version);
    }
    let told_first = all(&mut watching).await;
    assert!(told_first.contains(&("a".into(), 5)) && told_first.iter().all(|(name, _)| name != "before"));
    let cursor = watching.next(Instant::now()).await.unwrap().cursor;
    drop(watching);
    wire.gone.lock().push(ONE);
    wire.put("d", 6);
    let mut watching = wire.at(TWO).begin(everything(), Some(&cursor), soon()).await.unwrap();
    assert_eq!(all(&mut watching).await, [("d".to_owned(), 6)]);
    wire.tasks.crash();
}

#[tokio::test(start_paused = true)]
async fn a_prefix_is_all_that_is_told() {
    let wire = three(3);
    let mut watching = wire.at(ONE).begin(Watched::Prefix(Bytes::from_static(b"a/")), None, soon()).await.unwrap();
    for name in ["a", "a/1", "b/1", "a/2"] {
        wire.put(name, 2);
    }
    assert_eq!(all(&mut watching).await, [("a/1".to_owned(), 2), ("a/2".to_owned(), 2)]);
    wire.tasks.crash();
}

#[tokio::test(start_paused = true)]
async fn too_few_members_are_no_watch() {
    let wire = three(2);
    wire.gone.lock().extend([TWO, THREE]);
    let began = Instant::now();
    let none = wire.at(ONE).begin(everything(), None, soon()).await.unwrap_err();
    assert_eq!(began.elapsed(), SECOND, "it waited for them");
    let NoWatch::Failed { kind: FailureKind::Unavailable, slots, failed } = none else { panic!("{none:?}") };
    assert_eq!(failed.iter().map(|(node, _)| *node).collect::<Vec<_>>(), [TWO, THREE]);
    assert!(slots.count() > 60 && slots.count() < 100, "those of which this node has no copy: {}", slots.count());
    wire.gone.lock().pop();
    assert!(wire.at(ONE).begin(everything(), None, soon()).await.is_ok(), "with one of two copies of each");
    wire.tasks.crash();
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_while_a_change_begins_and_where_slots_moved_it_has_gone() {
    let wire = three(2);
    let mut watching = wire.at(ONE).begin(everything(), None, soon()).await.unwrap();
    let first = watching.next(Instant::now()).await.unwrap().cursor;
    let mut next = (*topology(2, 3, 3)).clone();
    let before = topology(1, 3, 2).ring.clone();
    next.moving = Some(Moving { since: Epoch(2), change: TopologyChange::ReplicationFactor, rf: 2, ring: before });
    let moving = Arc::new(next);
    // Node 1 hears of it from node 3.
    for node in [TWO, THREE] {
        wire.at(node).routing.install(Arc::clone(&moving));
    }
    wire.put("a", 2);
    let seen = all(&mut watching).await;
    assert_eq!((seen, wire.at(ONE).routing.epoch()), (vec![("a".to_owned(), 2)], Epoch(2)));
    let cursor = watching.next(Instant::now()).await.unwrap().cursor;
    assert_eq!(cursor.epoch, Epoch(2));
    let mut resumed = wire.at(TWO).begin(everything(), Some(&first), soon()).await.unwrap();
    assert_eq!(all(&mut resumed).await, [("a".to_owned(), 2)], "told again, as it is from before the change");
    for node in [ONE, TWO] {
        wire.at(node).routing.install(topology(3, 3, 3));
    }
    let gone = Gone::Epoch { from: Epoch(2), to: Epoch(3) };
    assert_eq!(watching.next(Instant::now() + WAIT * 2).await.unwrap_err(), gone);
    let none = wire.at(TWO).begin(everything(), Some(&cursor), soon()).await;
    assert_eq!(none.unwrap_err(), NoWatch::Gone(gone));
    wire.tasks.crash();
}

#[tokio::test(start_paused = true)]
async fn a_replica_waits_for_a_change_of_what_is_watched() {
    let wire = three(3);
    let one = wire.at(ONE);
    let ask = |watched, wait_ms| ChangesAsk { watched, from: Some(Position::default()), wait_ms };
    let answer = one.answer(TWO, Epoch(1), ask(Watched::One(key("a")), 3_000));
    tokio::pin!(answer);
    wire.put("b", 2);
    sleep(SECOND).await;
    assert!(poll!(&mut answer).is_pending());
    wire.put("a", 3);
    wire.put("a", 4);
    let Ok(PeerReply::Changed(page)) = answer.await else { panic!("no page") };
    assert_eq!((page.changes.len(), page.changes[0].version.hlc.0, page.at.seq), (1, 4, 3), "the last is enough");
    let began = Instant::now();
    let none = one.answer(TWO, Epoch(1), ask(Watched::Prefix(Bytes::from_static(b"x")), 3_000)).await;
    let Ok(PeerReply::Changed(page)) = none else { panic!("no page") };
    assert_eq!((page.changes.len(), page.at.seq, began.elapsed()), (0, 3, 3 * SECOND));
    wire.tasks.crash();
}

#[tokio::test(start_paused = true)]
async fn who_is_not_ready_or_knows_another_epoch_says_so() {
    let wire = three(3);
    let one = wire.at(ONE);
    let ask = || ChangesAsk { watched: everything(), from: None, wait_ms: 0 };
    assert!(matches!(one.answer(NodeNum(9), Epoch(1), ask()).await, Err(PeerError::Refused(_))));
    one.routing.install(topology(2, 3, 3));
    assert_eq!(one.answer(TWO, Epoch(1), ask()).await, Ok(PeerReply::WrongEpoch { epoch: Epoch(2) }));
    assert!(matches!(one.answer(TWO, Epoch(2), ask()).await, Ok(PeerReply::Changed(_))));
    one.routing.set_rebuilding(true);
    assert!(matches!(one.answer(TWO, Epoch(2), ask()).await, Err(PeerError::Refused(_))));
    wire.tasks.crash();
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_woken_by_its_own_key_alone() {
    let wire = three(1);
    let (reads, stops) = (AtomicUsize::new(0), AtomicBool::new(false));
    let found = |live| Found { record: None, live, strict: true, replicas: Vec::new(), copies: Vec::new() };
    let read = || {
        reads.fetch_add(1, Ordering::SeqCst);
        let store = &wire.stores[&wire.home_of("mine")];
        let live = store.record(&key("mine")).is_some();
        async move { Ok(found(live)) }
    };
    let (mine, stopping) = (key("mine"), || stops.load(Ordering::SeqCst));
    let within = |seconds| (Instant::now() + seconds * SECOND, SECOND);
    let mut wait = Box::pin(wire.at(TWO).wait(&mine, within(20), |found| found.live, stopping, read));
    for n in 0..300 {
        wire.put(&format!("other{n}"), 2);
        assert!(wait.as_mut().now_or_never().is_none());
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(reads.load(Ordering::SeqCst), 2, "at first, and once it was in force");
    wire.put("mine", 3);
    let began = Instant::now();
    assert!(wait.await.unwrap().live);
    assert!(began.elapsed() < SECOND && reads.load(Ordering::SeqCst) == 3);
    // Where there is no news the last read is told when the time is up, or the node stops.
    let began = Instant::now();
    let none = wire.at(TWO).wait(&mine, within(7), |_| false, stopping, read).await.unwrap();
    assert!(none.live && began.elapsed() == 7 * SECOND);
    stops.store(true, Ordering::SeqCst);
    let none = wire.at(TWO).wait(&mine, within(7), |_| false, stopping, read).await.unwrap();
    assert!(none.live && began.elapsed() == 7 * SECOND, "at once");
    // News are told at once, whoever else cannot be reached.
    wire.gone.lock().extend([ONE, TWO, THREE]);
    assert!(wire.at(TWO).wait(&mine, within(7), |_| true, || false, read).await.unwrap().live);
    assert_eq!(began.elapsed(), 7 * SECOND);
    wire.tasks.crash();
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_seldom_change_does_not_fall_behind_the_log() {
    let wire = three(3);
    let rare = Watched::Prefix(Bytes::from_static(b"rare"));
    let mut watching = wire.at(ONE).begin(rare, None, soon()).await.unwrap();
    // More than is remembered, within the time of one question.
    let log = wire.stores[&ONE].changes();
    let other = KeyChange { key: key("other"), version: Version::default(), kind: ChangeKind::Delete };
    for _ in 0..6 {
        assert!(told(&watching.next(Instant::now() + WAIT / 10).await.unwrap()).is_empty());
        log.add(std::iter::repeat_n(other.clone(), CHANGES_MAX / 4));
    }
    wire.put("rare", 2);
    assert_eq!(told(&watching.next(soon()).await.unwrap()), [("rare".to_owned(), 2)]);
    assert_eq!(watching.fold.cursor().places.len(), 3, "nobody's log was lost");
    wire.tasks.crash();
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_cannot_begin_holds_a_page_of_each_member() {
    let wire = three(1);
    let watching = wire.at(ONE).begin(everything(), None, soon()).await.unwrap();
    let cursor = watching.fold.cursor();
    for n in 0..5 * CHANGES_PAGE_MAX {
        wire.put(&format!("k{n}"), 2);
    }
    wire.gone.lock().push(THREE);
    wire.asked.store(0, Ordering::SeqCst);
    let begun = wire.at(ONE).begin(everything(), Some(&cursor), soon());
    assert!(matches!(begun.await, Err(NoWatch::Failed { .. })));
    assert_eq!(wire.asked.load(Ordering::SeqCst), 1);
    wire.gone.lock().clear();
    let mut watching = wire.at(ONE).begin(everything(), Some(&cursor), soon()).await.unwrap();
    assert!(watching.first.len() <= 3 * CHANGES_PAGE_MAX);
    assert_eq!(all(&mut watching).await.len(), 5 * CHANGES_PAGE_MAX, "and goes on");
    wire.tasks.crash();
}
