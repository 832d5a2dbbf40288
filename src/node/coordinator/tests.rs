//! A coordinator among replicas that answer, fail or fall silent as they are told; time is virtual.

mod epochs;
mod import;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::*;
use crate::node::fakes::{FakeClock, FakeStore, journal, topology};
use crate::node::request::{Get, NewContent, Outcome, Put, Ttl};
use crate::ports::{Destination, PeerError, PeerReply, PeerRequest, ReplicaReply};
use crate::types::{Content, Hlc, InstanceId, Key, Record, Version, Writer};

const NOW_MS: u64 = 1_700_000_000_000;

#[derive(Clone, Debug, PartialEq)]
enum Mode {
    Up,
    Down,
    /// Takes requests and carries them out when it is woken.
    Silent,
    /// Loses every request.
    Broken(PeerError),
}

/// Replicas with a disk each, and what becomes of a request to each.
struct Net {
    ring: Ring,
    disks: BTreeMap<NodeNum, Arc<FakeStore>>,
    modes: Mutex<BTreeMap<NodeNum, Mode>>,
    /// Those whose writes wait.
    slow: Mutex<std::collections::BTreeSet<NodeNum>>,
    /// Those that answer, and never get a write.
    lossy: Mutex<std::collections::BTreeSet<NodeNum>>,
    held: Mutex<Vec<(NodeNum, ReplicaCall, ReplyTo)>>,
}

impl Net {
    fn set(&self, node: u16, mode: Mode) {
        let woken = mode == Mode::Up;
        self.modes.lock().insert(NodeNum(node), mode);
        if woken {
            let (of_it, rest) = self.held.lock().drain(..).partition(|(n, ..)| n.0 == node);
            *self.held.lock() = rest;
            let of_it: Vec<_> = of_it;
            of_it.into_iter().for_each(|(n, call, reply_to)| self.carry_out(n, call, reply_to));
        }
    }

    fn lose_writes(&self, node: u16, lost: bool) {
        let mut lossy = self.lossy.lock();
        if lost {
            lossy.insert(NodeNum(node))
        } else {
            lossy.remove(&NodeNum(node))
        };
    }

    fn hold_writes(&self, node: u16, held: bool) {
        if held {
            self.slow.lock().insert(NodeNum(node));
        } else {
            self.slow.lock().remove(&NodeNum(node));
            self.set(node, Mode::Up);
        }
    }

    fn carry_out(&self, node: NodeNum, call: ReplicaCall, reply_to: ReplyTo) {
        let token = self.ring.token(call.request.key());
        reply_to.send(Ok(self.disks[&node].apply(token, call.request)));
    }
}

impl Peers for Net {
    fn send(&self, to: NodeNum, call: ReplicaCall, reply_to: ReplyTo) {
        let mode = self.modes.lock().get(&to).cloned().unwrap_or(Mode::Up);
        if matches!(call.request, ReplicaRequest::Write { .. }) && self.lossy.lock().contains(&to) {
            return reply_to.send(Err(PeerError::Lost));
        }
        if matches!(call.request, ReplicaRequest::Write { .. }) && self.slow.lock().contains(&to) {
            return self.held.lock().push((to, call, reply_to));
        }
        match mode {
            Mode::Up => self.carry_out(to, call, reply_to),
            Mode::Down => reply_to.send(Err(PeerError::Unreachable)),
            Mode::Silent => self.held.lock().push((to, call, reply_to)),
            Mode::Broken(error) => reply_to.send(Err(error)),
        }
    }

    fn ask(&self, _: Destination, _: PeerRequest, _: Instant) -> BoxFuture<'static, Result<PeerReply, PeerError>> {
        async { Err(PeerError::Unreachable) }.boxed()
    }

    fn introduce(&self, _: NodeNum, _: InstanceId, _: &str) {}

    fn connected(&self, to: NodeNum) -> bool {
        self.modes.lock().get(&to) != Some(&Mode::Down)
    }
}

struct World {
    net: Arc<Net>,
    coordinator: Arc<Coordinator>,
    clock: Arc<FakeClock>,
}

/// Node 1 coordinates.
fn world(nodes: u16, rf: u8) -> World {
    let topology = topology(1, nodes, rf);
    let disks = (1..=nodes).map(|n| (NodeNum(n), FakeStore::new())).collect::<BTreeMap<_, _>>();
    let store = Arc::clone(&disks[&NodeNum(1)]);
    let ring = Ring::new(Arc::clone(&topology));
    let net = Arc::new(Net {
        ring,
        disks,
        modes: Mutex::default(),
        slow: Mutex::default(),
        lossy: Mutex::default(),
        held: Mutex::default(),
    });
    let routing = Arc::new(Routing::default());
    routing.install(topology);
    let clock = FakeClock::at(NOW_MS);
    let reserved = Hlc::from_ms(NOW_MS - 1);
    let node_clock =
        NodeClock::new(Arc::clone(&clock) as Arc<dyn crate::ports::Clock>, Duration::from_secs(300), reserved);
    let peers = Arc::clone(&net) as Arc<dyn Peers>;
    let reach = Reach::new(Arc::clone(&peers), NodeNum(1), journal());
    #[expect(clippy::disallowed_methods, reason = "the test's own runtime")]
    {
        tokio::spawn(Arc::clone(&node_clock).keep_reserved(Arc::clone(&store) as Arc<dyn Store>));
    }
    let coordinator = Coordinator::new(NodeNum(1), peers, store, routing, node_clock, reach);
    #[expect(clippy::disallowed_methods, reason = "the test's own runtime")]
    tokio::spawn(Arc::clone(&coordinator.stragglers).run());
    World { net, coordinator, clock }
}

impl World {
    /// A key whose first home replica is that node.
    fn key(&self, first: u16) -> Key {
        let homes = |k: &Key| self.net.ring.placement(self.net.ring.token(k).slot()).home_replicas();
        (0..).map(|i| Key::new(format!("key-{i}")).unwrap()).find(|k| homes(k)[0] == NodeNum(first)).unwrap()
    }

    async fn put(
        &self,
        key: &Key,
        value: &'static str,
        level: Level,
    ) -> Result<crate::node::request::Receipt, Failure> {
        let content = NewContent::value(value);
        let deadline = Instant::now() + Duration::from_secs(1);
        self.coordinator.put(Put { key: key.clone(), content, level, deadline }).await
    }

    async fn get(&self, key: &Key, level: Level) -> Result<Option<Bytes>, Failure> {
        let deadline = Instant::now() + Duration::from_secs(1);
        let found = self.coordinator.get(Get { key: key.clone(), level, deadline, every_copy: false }).await?;
        Ok(found.record.and_then(|r| if let Content::Value { bytes, .. } = r.content { Some(bytes) } else { None }))
    }

    fn on(&self, node: u16, key: &Key) -> Option<Record> {
        self.net.disks[&NodeNum(node)].record(key)
    }

    fn plant(&self, node: u16, key: &Key, version: Version, value: &'static str) {
        self.plant_record(node, key, Record::seal(key, version, version.hlc, Content::value(value)));
    }

    fn plant_record(&self, node: u16, key: &Key, record: Record) {
        let token = self.net.ring.token(key);
        self.net.disks[&NodeNum(node)].apply(token, ReplicaRequest::Write { key: key.clone(), record });
    }
}

fn ahead(ms: u64) -> Version {
    Version::plain(Hlc::from_ms(NOW_MS + ms), Writer(9))
}

#[tokio::test(start_paused = true)]
async fn a_write_lands_on_every_home_replica_and_is_read_back() {
    let w = world(3, 2);
    let key = w.key(2);
    let receipt = w.put(&key, "anas", Level::Quorum).await.unwrap();
    assert!(receipt.created && receipt.strict);
    assert_eq!(receipt.replicas, [NodeNum(2), NodeNum(3)]);
    assert_eq!(receipt.acked, receipt.replicas);
    assert_eq!(w.on(2, &key), w.on(3, &key));
    assert!(w.on(1, &key).is_none());
    assert_eq!(w.get(&key, Level::Quorum).await.unwrap().unwrap(), "anas");
    assert!(!w.put(&key, "b", Level::Quorum).await.unwrap().created);
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_replica_gets_a_hint_and_the_receipt_names_it() {
    let w = world(3, 2);
    let key = w.key(2);
    w.net.set(3, Mode::Down);
    let receipt = w.put(&key, "anas", Level::Quorum).await.unwrap();
    assert_eq!(receipt.hinted, [(NodeNum(3), NodeNum(1))]);
    assert!(!receipt.strict);
    assert_eq!(w.net.disks[&NodeNum(1)].hint_count(), 1);
    assert_eq!(w.get(&key, Level::Quorum).await.unwrap().unwrap(), "anas");
}

#[tokio::test(start_paused = true)]
async fn at_all_an_unreachable_replica_refuses_and_nothing_is_written() {
    let w = world(3, 2);
    let key = w.key(2);
    w.net.set(3, Mode::Down);
    let failure = w.put(&key, "anas", Level::All).await.unwrap_err();
    assert_eq!((failure.kind, failure.outcome), (FailureKind::Unavailable, Some(Outcome::NotApplied)));
    assert_eq!((failure.required, failure.failed.len()), (2, 2));
    assert!(w.on(2, &key).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_silent_replica_costs_its_patience_and_then_nothing() {
    let w = world(3, 2);
    let key = w.key(2);
    w.net.set(3, Mode::Silent);
    let took = |began: Instant| began.elapsed().as_millis();
    for _ in 0..3 {
        let began = Instant::now();
        assert_eq!(w.put(&key, "v", Level::Quorum).await.unwrap().hinted.len(), 1);
        assert!((50..60).contains(&took(began)), "{}", took(began));
        // Hangs within one patience are one hang.
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    let began = Instant::now();
    w.put(&key, "v", Level::Quorum).await.unwrap();
    assert_eq!(took(began), 0, "three in a row make it unreachable");
    w.net.set(3, Mode::Up);
    tokio::time::advance(Duration::from_secs(2)).await;
    w.put(&key, "probe", Level::Quorum).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(w.put(&key, "v", Level::Quorum).await.unwrap().hinted.is_empty(), "the probe found it alive");
}

#[tokio::test(start_paused = true)]
async fn a_lagging_clock_stamps_again_and_the_later_write_wins() {
    let w = world(3, 2);
    let key = w.key(2);
    w.plant(2, &key, ahead(60_000), "earlier");
    w.plant(3, &key, ahead(60_000), "earlier");
    let receipt = w.put(&key, "later", Level::Quorum).await.unwrap();
    assert!(receipt.strict && receipt.version > ahead(60_000));
    assert_eq!(w.get(&key, Level::One).await.unwrap().unwrap(), "later");
}

#[tokio::test(start_paused = true)]
async fn a_read_settles_what_it_tells_before_it_tells_it() {
    let w = world(3, 2);
    let key = w.key(2);
    w.plant(3, &key, ahead(0), "newer");
    assert_eq!(w.get(&key, Level::Quorum).await.unwrap().unwrap(), "newer");
    assert_eq!(w.on(2, &key), w.on(3, &key));
}

#[tokio::test(start_paused = true)]
async fn an_end_is_on_a_majority_before_it_is_told_and_at_one_only_told() {
    let w = world(3, 2);
    w.coordinator.clock.trust();
    let key = w.key(2);
    let content = NewContent::Value { bytes: "v".into(), content_type: None, ttl: Ttl::from_ms(1_000) };
    let deadline = Instant::now() + Duration::from_secs(1);
    let put = Put { key: key.clone(), content, level: Level::Quorum, deadline };
    let version = w.coordinator.put(put).await.unwrap().version;
    let read = async |level| {
        let deadline = Instant::now() + Duration::from_secs(1);
        let found = w.coordinator.get(Get { key: key.clone(), level, deadline, every_copy: false }).await.unwrap();
        (found.live, found.record.map(|r| r.version))
    };
    w.clock.advance(999);
    assert_eq!(read(Level::Quorum).await, (true, Some(version)));
    w.clock.advance(1);
    let on = |node| w.on(node, &key).map(|record| record.version);
    assert_eq!(read(Level::One).await, (false, Some(version.ended())));
    assert_eq!((on(2), on(3)), (Some(version), Some(version)));
    assert_eq!(read(Level::Quorum).await, (false, Some(version.ended())));
    assert_eq!((on(2), on(3)), (Some(version.ended()), Some(version.ended())));
    w.clock.set(NOW_MS);
    assert_eq!(read(Level::One).await, (false, Some(version.ended())));
}

#[tokio::test(start_paused = true)]
async fn with_three_copies_the_failing_third_is_left_a_hint_behind_the_answer() {
    let w = world(3, 3);
    let key = w.key(1);
    w.net.set(3, Mode::Broken(PeerError::Lost));
    let receipt = w.put(&key, "v", Level::Quorum).await.unwrap();
    assert!(receipt.strict && receipt.hinted.is_empty());
    assert_eq!(w.net.disks[&NodeNum(1)].hint_count(), 1, "there is no fallback, so a home replica keeps it");
}

#[tokio::test(start_paused = true)]
async fn a_third_that_hangs_is_left_a_hint_when_its_time_is_up() {
    let w = world(4, 3);
    let key = w.key(1);
    w.net.set(3, Mode::Silent);
    w.put(&key, "v", Level::Quorum).await.unwrap();
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(w.net.disks[&NodeNum(4)].hint_count(), 0);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(w.net.disks[&NodeNum(4)].hint_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_hint_left_behind_does_not_die_with_the_clients_deadline() {
    let w = world(4, 3);
    let key = w.key(1);
    w.net.set(3, Mode::Silent);
    w.net.set(4, Mode::Silent);
    w.put(&key, "v", Level::Quorum).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let held = w.net.held.lock();
    let hints: Vec<_> = held.iter().filter(|(node, ..)| *node == NodeNum(4)).collect();
    assert_eq!(hints.len(), 1);
    assert!(hints[0].1.deadline.is_none_or(|by| by > Instant::now()));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_again_is_found_to_without_a_request() {
    let w = world(3, 3);
    #[expect(clippy::disallowed_methods, reason = "the test's own runtime")]
    tokio::spawn(Arc::clone(&w.coordinator).probe_silent());
    w.net.set(3, Mode::Silent);
    for _ in 0..3 {
        w.put(&w.key(1), "v", Level::All).await.unwrap_err();
    }
    assert!(!w.coordinator.reach.is_reachable(NodeNum(3)));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!w.coordinator.reach.is_reachable(NodeNum(3)), "a probe alone proves nothing");
    w.net.set(3, Mode::Up);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(w.coordinator.reach.is_reachable(NodeNum(3)));
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_stalls_keeps_no_client_beyond_its_deadline() {
    let w = world(3, 2);
    let key = w.key(2);
    let c = &w.coordinator;
    // Nobody reserves this clock, as while its store hangs.
    let clock: Arc<dyn crate::ports::Clock> = FakeClock::at(NOW_MS);
    let stalled = NodeClock::new(clock, Duration::from_secs(300), Hlc::ZERO);
    let (peers, store, routing) = (Arc::clone(&c.peers), Arc::clone(&c.store), Arc::clone(&c.routing));
    let coordinator = Coordinator::new(NodeNum(1), peers, store, routing, stalled, Arc::clone(&c.reach));
    let deadline = Instant::now() + Duration::from_secs(1);
    let put = Put { key, content: NewContent::Tombstone, level: Level::Quorum, deadline };
    let failure = tokio::time::timeout(Duration::from_secs(2), coordinator.put(put)).await.unwrap().unwrap_err();
    assert_eq!((failure.kind, failure.outcome), (FailureKind::TimedOut, Some(Outcome::NotApplied)));
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_client_went_away_is_left_to_finish() {
    let w = world(3, 2);
    let key = w.key(2);
    w.net.set(3, Mode::Broken(PeerError::Lost));
    w.net.set(1, Mode::Silent);
    let put = w.put(&key, "v", Level::Quorum);
    assert!(tokio::time::timeout(Duration::from_millis(10), put).await.is_err(), "the client goes");
    w.net.set(1, Mode::Up);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(w.on(2, &key).is_some());
    assert_eq!(w.net.disks[&NodeNum(1)].hint_count(), 1, "the copy of n3 is kept for it");
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_refused_by_all_leaves_nothing() {
    let w = world(3, 2);
    let key = w.key(2);
    w.net.set(1, Mode::Broken(PeerError::Unreachable));
    w.net.set(2, Mode::Broken(PeerError::Unreachable));
    w.net.set(3, Mode::Broken(PeerError::Unreachable));
    let failure = w.put(&key, "v", Level::Quorum).await.unwrap_err();
    assert_eq!(failure.outcome, Some(Outcome::NotApplied));
    w.net.set(1, Mode::Up);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(w.net.disks[&NodeNum(1)].hint_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_confirmed_in_time_is_unknown() {
    let w = world(2, 2);
    let key = w.key(1);
    w.net.set(2, Mode::Silent);
    let failure = w.put(&key, "v", Level::Quorum).await.unwrap_err();
    assert_eq!((failure.kind, failure.outcome), (FailureKind::TimedOut, Some(Outcome::Unknown)));
    assert_eq!(failure.acked, [NodeNum(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_clock_is_off_does_not_coordinate_writes_but_reads() {
    let w = world(3, 2);
    let key = w.key(2);
    w.put(&key, "v", Level::Quorum).await.unwrap();
    w.clock.advance(3_600_000);
    for peer in [2, 3] {
        w.coordinator.clock.heard(NodeNum(peer), NOW_MS);
    }
    let failure = w.put(&key, "poison", Level::Quorum).await.unwrap_err();
    assert!(matches!(failure.kind, FailureKind::ClockSkew { by_ms } if by_ms > 3_000_000), "{failure:?}");
    assert_eq!(failure.outcome, Some(Outcome::NotApplied));
    assert_eq!(w.get(&key, Level::Quorum).await.unwrap().unwrap(), "v");
}

#[tokio::test(start_paused = true)]
async fn a_newer_topology_is_adopted_and_the_write_goes_again_under_its_version() {
    let w = world(3, 2);
    let key = w.key(2);
    let newer = topology(2, 3, 2);
    let told = Mutex::new(Some(newer));
    struct Once(Arc<Net>, Mutex<Option<Arc<Topology>>>);
    impl Peers for Once {
        fn send(&self, to: NodeNum, call: ReplicaCall, reply_to: ReplyTo) {
            match self.1.lock().take() {
                Some(topology) => reply_to.send(Ok(ReplicaReply::WrongEpoch { topology })),
                None => self.0.send(to, call, reply_to),
            }
        }
        fn ask(&self, _: Destination, _: PeerRequest, _: Instant) -> BoxFuture<'static, Result<PeerReply, PeerError>> {
            async { Err(PeerError::Unreachable) }.boxed()
        }
        fn introduce(&self, _: NodeNum, _: InstanceId, _: &str) {}
        fn connected(&self, _: NodeNum) -> bool {
            true
        }
    }
    let c = &w.coordinator;
    let peers = Arc::new(Once(Arc::clone(&w.net), told)) as Arc<dyn Peers>;
    let reach = Reach::new(Arc::clone(&peers), NodeNum(1), journal());
    let coordinator =
        Coordinator::new(NodeNum(1), peers, Arc::clone(&c.store), Arc::clone(&c.routing), Arc::clone(&c.clock), reach);
    let content = NewContent::value("v");
    let deadline = Instant::now() + Duration::from_secs(1);
    let put = Put { key: key.clone(), content, level: Level::Quorum, deadline };
    let receipt = coordinator.put(put).await.unwrap();
    assert_eq!(receipt.acked.len(), 2);
    assert_eq!(c.routing.epoch(), Epoch(2));
}
