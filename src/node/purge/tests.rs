//! Some drivers, each over a disk in memory, that reach each other without a network. The first of them raises all floors.

mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::sleep;

use super::*;
use crate::node::Ports;
use crate::node::anti_entropy;
use crate::node::clock::NodeClock;
use crate::node::coordinator::Coordinator;
use crate::node::fakes::{FakeClock, FakeEntropy, FakeStore, journal, topology};
use crate::node::reach::Reach;
use crate::node::replica;
use crate::node::routing::Routing;
use crate::node::views::Liveness;
use crate::node::world::Tasks;
use crate::ports::{Hint, Peers, Refusal, ReplicaCall, ReplicaReply, ReplicaRequest, ReplyTo, Spawn, Store};
use crate::protocol::ring::Ring;
use crate::types::{Content, Hlc, Key, Moving, Record, SlotFloor, Topology, TopologyChange, Version, Writer};

const NOW_MS: u64 = 1_700_000_000_000;
const HOUR_MS: u64 = 3_600_000;
const SKEW_MAX: Duration = Duration::from_secs(1);
const ONE: NodeNum = NodeNum(1);
const TWO: NodeNum = NodeNum(2);
const THREE: NodeNum = NodeNum(3);

/// What happens at a moment.
type Event = Box<dyn FnOnce() + Send>;

/// What lies between them.
#[derive(Default)]
struct Wire {
    stores: BTreeMap<NodeNum, Arc<FakeStore>>,
    drivers: OnceLock<BTreeMap<NodeNum, Arc<Purge>>>,
    ring: OnceLock<Arc<Ring>>,
    down: Mutex<BTreeSet<NodeNum>>,
    /// Refused wherever it is written.
    refused: Mutex<Option<Key>>,
    /// Happens when that node is asked for its sums.
    when_compared: Mutex<Option<(NodeNum, Event)>>,
}

/// One node's end of it.
struct End(NodeNum, Arc<Wire>);

impl Peers for End {
    fn send(&self, to: NodeNum, call: ReplicaCall, reply_to: ReplyTo) {
        if self.1.refused.lock().as_ref() == Some(call.request.key()) {
            return reply_to.send(Ok(ReplicaReply::Refused(Refusal::TooLarge { bytes: 1 })));
        }
        if self.1.is_cut(self.0, to) {
            return reply_to.send(Err(PeerError::Unreachable));
        }
        let token = self.1.ring.get().unwrap().token(call.request.key());
        reply_to.send(Ok(self.1.stores[&to].apply(token, call.request)));
    }

    fn ask(
        &self,
        to: Destination,
        request: PeerRequest,
        _: Instant,
    ) -> BoxFuture<'static, Result<PeerReply, PeerError>> {
        let (from, wire) = (self.0, Arc::clone(&self.1));
        async move {
            let Destination::Member(to) = to else { return Err(PeerError::Unreachable) };
            if wire.is_cut(from, to) {
                return Err(PeerError::Unreachable);
            }
            if let PeerRequest::GetChunkHash { .. } = request
                && let Some((_, event)) = wire.when_compared.lock().take_if(|(node, _)| *node == to)
            {
                event();
            }
            let driver = &wire.drivers.get().unwrap()[&to];
            match request {
                PeerRequest::Purge { epoch, step } => driver.answer(from, epoch, step).await,
                PeerRequest::GetChunkHash { epoch, left_out, spans } => {
                    driver.anti_entropy.answer_chunk_hash(from, epoch, left_out, &spans)
                }
                PeerRequest::FetchRange(exchange) => driver.anti_entropy.answer_fetch_range(exchange).await,
                PeerRequest::Propose { proposal, timeout_ms, .. } => {
                    driver.conditional.answer(*proposal, Duration::from_millis(timeout_ms)).await
                }
                _ => Err(PeerError::Unreachable),
            }
        }
        .boxed()
    }

    fn introduce(&self, _: NodeNum, _: crate::types::InstanceId, _: &str) {}

    fn connected(&self, to: NodeNum) -> bool {
        !self.1.is_cut(self.0, to)
    }
}

impl Wire {
    fn is_cut(&self, from: NodeNum, to: NodeNum) -> bool {
        let down = self.down.lock();
        from != to && (down.contains(&from) || down.contains(&to))
    }
}

struct Cluster {
    wall: Arc<FakeClock>,
    wire: Arc<Wire>,
    /// They end with it.
    _tasks: Arc<Tasks>,
}

fn three() -> Cluster {
    cluster(3)
}

/// As many copies as nodes.
fn cluster(nodes: u16) -> Cluster {
    let all = || (1..=nodes).map(NodeNum);
    let wire = Arc::new(Wire { stores: all().map(|node| (node, FakeStore::new())).collect(), ..Wire::default() });
    let (wall, tasks) = (FakeClock::at(NOW_MS), Arc::new(Tasks::default()));
    let drivers: BTreeMap<_, _> = all().map(|me| (me, driver(me, &wire, &wall, &tasks))).collect();
    let ring = drivers[&ONE].parts.routing.ring().unwrap();
    assert!(wire.ring.set(ring).is_ok() && wire.drivers.set(drivers).is_ok());
    Cluster { wall, wire, _tasks: tasks }
}

fn driver(me: NodeNum, wire: &Arc<Wire>, wall: &Arc<FakeClock>, tasks: &Arc<Tasks>) -> Arc<Purge> {
    let peers: Arc<dyn Peers> = Arc::new(End(me, Arc::clone(wire)));
    let store: Arc<dyn Store> = wire.stores[&me].clone();
    let clock = NodeClock::new(Arc::clone(wall) as _, SKEW_MAX, Hlc::ZERO);
    tasks.spawn(Arc::clone(&clock).keep_reserved(Arc::clone(&store)).boxed());
    let (reach, routing) = (Reach::new(Arc::clone(&peers), me, journal()), Arc::new(Routing::default()));
    let nodes = wire.stores.len() as u8;
    routing.install(topology(1, nodes.into(), nodes));
    let entropy: Arc<FakeEntropy> = Arc::default();
    let ports = Ports {
        peers: Arc::clone(&peers),
        store: Arc::clone(&store),
        clock: Arc::clone(wall) as _,
        entropy: Arc::clone(&entropy) as _,
        spawn: Arc::clone(tasks) as _,
    };
    let coordinator = Coordinator::new(
        me,
        Arc::clone(&peers),
        Arc::clone(&store),
        Arc::clone(&routing),
        Arc::clone(&clock),
        Arc::clone(&reach),
    );
    let conditional = Conditional::new(me, &ports, Arc::clone(&clock), Arc::clone(&reach), coordinator);
    let parts = Parts { me, store, peers, entropy, reach, routing, clock, served: Arc::default(), journal: journal() };
    let replica = Replica::new(replica::Options { node: me, value_bytes_max: 1024 }, &parts);
    let rounds = anti_entropy::Options { interval: Duration::from_secs(30) };
    let anti_entropy = AntiEntropy::new(rounds, parts.clone());
    let options = Options { grace: Duration::from_millis(HOUR_MS), clock_skew_max: SKEW_MAX };
    Purge::new(options, parts, &replica, &conditional, &anti_entropy)
}

fn key(name: &str) -> Key {
    Key::new(name.to_owned()).unwrap()
}

fn record(name: &str, content: Content) -> Record {
    let hlc = Hlc::from_ms(NOW_MS);
    Record::seal(&key(name), Version::plain(hlc, Writer(1)), hlc, content)
}

impl Cluster {
    fn driver(&self, node: NodeNum) -> &Arc<Purge> {
        &self.wire.drivers.get().unwrap()[&node]
    }

    fn slot(&self, name: &str) -> Slot {
        self.wire.ring.get().unwrap().token(&key(name)).slot()
    }

    /// Written now.
    fn delete(&self, nodes: &[NodeNum], name: &str) {
        for node in nodes {
            let (key, record) = (key(name), record(name, Content::Tombstone));
            let token = self.wire.ring.get().unwrap().token(&key);
            self.wire.stores[node].apply(token, ReplicaRequest::Write { key, record });
        }
    }

    fn cut(&self, nodes: &[NodeNum]) {
        *self.wire.down.lock() = nodes.iter().copied().collect();
    }

    /// The raiser looks after that time; for whom it waits then.
    async fn look_after(&self, ms: u64) -> Vec<(NodeNum, String)> {
        self.wall.advance(ms);
        self.driver(ONE).look().await;
        self.driver(ONE).status().waiting_for
    }

    /// Looks until the keys have come of age, and floors could be complete.
    async fn come_of_age(&self) {
        assert_eq!(self.look_after(HOUR_MS / 2).await, []);
        assert_eq!(self.kept(), [SlotFloor::default(); 3], "nothing is raised before something is of age");
        self.wall.advance(HOUR_MS / 2);
    }

    /// What the nodes keep of the slot of "k".
    fn kept(&self) -> [SlotFloor; 3] {
        [ONE, TWO, THREE].map(|node| self.wire.stores[&node].kept(self.slot("k")))
    }

    fn left(&self) -> [u64; 3] {
        [ONE, TWO, THREE].map(|node| self.wire.stores[&node].totals().tombstones)
    }
}

fn waits(node: NodeNum, why: &str) -> Vec<(NodeNum, String)> {
    vec![(node, why.to_owned())]
}

#[tokio::test(start_paused = true)]
async fn two_floors_after_it_came_of_age_a_tombstone_is_gone_everywhere() {
    let three = three();
    three.delete(&[ONE, TWO, THREE], "k");
    three.come_of_age().await;
    assert_eq!(three.driver(ONE).status().oldest_ms, NOW_MS);
    assert_eq!(three.look_after(0).await, []);
    let first = three.kept();
    assert!(first[0].floor.written.ms() >= NOW_MS && first == [first[0]; 3], "{first:?}");
    assert_eq!(three.left(), [1, 1, 1], "the floor before did not cover it");
    assert_eq!(three.look_after(HOUR_MS / 8).await, []);
    assert_eq!(three.kept(), first, "when the floor was complete is learnt now");
    assert_eq!(three.look_after(HOUR_MS / 8).await, []);
    assert!(three.kept()[0].floor.written > first[0].floor.written);
    assert_eq!(three.left(), [0, 0, 0]);
    assert_eq!([ONE, TWO, THREE].map(|node| three.driver(node).status().purged), [1, 1, 1]);
    let last = three.kept();
    three.look_after(HOUR_MS).await;
    three.look_after(HOUR_MS).await;
    assert_eq!((three.kept(), three.driver(ONE).status().oldest_ms), (last, 0), "there is nothing left");
}

#[tokio::test(start_paused = true)]
async fn what_one_replica_lacks_is_given_to_it_first() {
    let three = three();
    three.delete(&[TWO], "k");
    three.come_of_age().await;
    assert_eq!(three.look_after(0).await, []);
    assert_eq!(three.left(), [1, 1, 1]);
    assert!(three.kept()[0].floor.written.ms() >= NOW_MS);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_down_is_named_and_nothing_is_raised() {
    let three = three();
    three.delete(&[ONE, TWO, THREE], "k");
    three.come_of_age().await;
    three.cut(&[THREE]);
    assert_eq!(three.look_after(HOUR_MS).await, waits(THREE, "unreachable"));
    assert_eq!(three.look_after(HOUR_MS).await, waits(THREE, "unreachable"));
    assert_eq!(three.kept(), [SlotFloor::default(); 3]);
    assert_eq!(three.left(), [1, 1, 1]);
    assert_eq!(three.driver(ONE).status().oldest_ms, NOW_MS, "it is known all the same");
    three.cut(&[]);
    assert_eq!(three.driver(ONE).status().waiting_for, [], "before it has looked again");
    assert_eq!(three.look_after(0).await, []);
    assert!(three.kept()[2].floor.written.ms() >= NOW_MS);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_waited_for_where_there_is_nothing() {
    let three = three();
    three.cut(&[THREE]);
    assert_eq!(three.look_after(HOUR_MS).await, []);
    three.driver(ONE).parts.routing.set_rebuilding(true);
    assert_eq!(three.look_after(HOUR_MS).await, []);
    three.delete(&[ONE], "k");
    assert_eq!(three.look_after(HOUR_MS).await, waits(ONE, "it is being rebuilt"));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_raised_while_the_topology_changes() {
    let three = three();
    let install = |topology: &Topology| {
        for node in [ONE, TWO, THREE] {
            three.driver(node).parts.routing.install(Arc::new(topology.clone()));
        }
    };
    let change = TopologyChange::Weight { node: TWO, before: 2 };
    let mut next = (*topology(2, 3, 3)).clone();
    next.moving = Some(Moving { since: Epoch(2), change, rf: 3, ring: next.ring.clone() });
    install(&next);
    assert_eq!(three.look_after(HOUR_MS).await, [], "there is nothing to purge");
    three.delete(&[ONE, TWO, THREE], "k");
    let why = waits(ONE, "the topology is changing: n2 gets another weight");
    assert_eq!((three.look_after(HOUR_MS).await, three.look_after(HOUR_MS).await), (why.clone(), why));
    assert_eq!((three.kept(), three.left()), ([SlotFloor::default(); 3], [1, 1, 1]));
    let step = PurgeStep::Seal { slots: [three.slot("k")].into_iter().collect(), up_to: Hlc::from_ms(NOW_MS) };
    let asked = three.driver(TWO).answer(ONE, Epoch(2), step).await;
    assert!(matches!(asked, Err(PeerError::Refused(_))), "{asked:?}");
    install(&topology(3, 3, 3));
    assert_eq!((three.look_after(0).await, three.look_after(HOUR_MS).await), (vec![], vec![]));
    assert!(three.kept()[0].floor.written.ms() >= NOW_MS);
}

#[tokio::test(start_paused = true)]
async fn a_hint_of_that_time_holds_its_slot_up() {
    let three = three();
    ["k", "other"].iter().for_each(|name| three.delete(&[ONE, TWO, THREE], name));
    let hint = Hint {
        target: THREE,
        slot: three.slot("k"),
        key: key("k"),
        record: record("k", Content::value(b"old".to_vec())),
        counted: true,
        kept_at_ms: NOW_MS,
    };
    three.wire.stores[&TWO].put_hint(hint.clone());
    three.come_of_age().await;
    assert_eq!(three.look_after(0).await, waits(TWO, "it keeps hints that are not delivered"));
    assert_eq!(three.kept().map(|kept| kept.floor), [crate::types::Floor::default(); 3]);
    assert!(three.wire.stores[&ONE].kept(three.slot("other")).floor.written.ms() >= NOW_MS, "the other slot goes on");
    let version = hint.record.version;
    three.wire.stores[&TWO].forget_hints(vec![(THREE, hint.slot, hint.key, version)]).await.unwrap();
    assert_eq!(three.look_after(0).await, []);
    assert!(three.kept()[0].floor.written.ms() >= NOW_MS);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_register_holds_its_slot_up_and_its_key_is_not_told() {
    let three = three();
    ["k", "other"].iter().for_each(|name| three.delete(&[ONE, TWO, THREE], name));
    three.wire.stores[&TWO].damage(&key("k"), true);
    three.come_of_age().await;
    assert_eq!(three.look_after(0).await, waits(TWO, "a register of a key there is damaged"));
    assert_eq!(three.kept()[0].floor.written, Hlc::ZERO);
    assert!(three.wire.stores[&ONE].kept(three.slot("other")).floor.written.ms() >= NOW_MS, "the other slot goes on");
}

#[tokio::test(start_paused = true)]
async fn copies_that_stay_unequal_are_said_to_be() {
    let three = three();
    three.delete(&[ONE, TWO], "k");
    *three.wire.refused.lock() = Some(key("k"));
    three.come_of_age().await;
    let waiting = three.look_after(0).await;
    assert_eq!(waiting, waits(THREE, "its copies differ still, or are being counted"));
    assert_eq!(three.kept()[0].floor.written, Hlc::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_look_is_taken_soon_after_a_member_came_back() {
    let three = three();
    three.delete(&[ONE, TWO, THREE], "k");
    three.come_of_age().await;
    three.cut(&[THREE]);
    three.look_after(0).await;
    let driver = three.driver(ONE);
    let tasks = Tasks::default();
    tasks.spawn(Arc::clone(driver).run().boxed());
    sleep(Duration::from_secs(1)).await;
    driver.parts.reach.gossip(THREE, Liveness::Down);
    three.cut(&[]);
    driver.parts.reach.gossip(THREE, Liveness::Alive);
    sleep(AFTER_RETURN / 2).await;
    assert_eq!(three.kept()[0].floor.written, Hlc::ZERO, "handoff goes first");
    sleep(AFTER_RETURN).await;
    assert!(three.kept()[0].floor.written.ms() >= NOW_MS);
    tasks.crash();
}
