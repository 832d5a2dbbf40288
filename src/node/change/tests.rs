//! Changes among some drivers, each over a disk in memory, that reach each other without a network.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::sleep;

use super::*;
use crate::node::clock::NodeClock;
use crate::node::fakes::{FakeClock, FakeStore, journal, topology};
use crate::node::parts::Parts;
use crate::node::reach::Reach;
use crate::node::replica::{self, Replica};
use crate::node::world::{Seeded, Tasks};
use crate::ports::{NodeInfo, Peers, ReplicaCall, ReplyTo, Spawn, Store};
use crate::types::{
    Accepted, Ballot, Content, Epoch, Hlc, InfoStamp, InstanceId, Key, NodeState, OpId, Recent, Record, Register,
    Version, Writer,
};

const NOW_MS: u64 = 1_700_000_000_000;
const ONE: NodeNum = NodeNum(1);
const TWO: NodeNum = NodeNum(2);
const THREE: NodeNum = NodeNum(3);

/// What lies between them.
#[derive(Default)]
struct Wire {
    drivers: OnceLock<BTreeMap<NodeNum, Driver>>,
    down: Mutex<BTreeSet<NodeNum>>,
    /// They hear nothing: no request, and no answer to their own.
    deaf: Mutex<BTreeSet<NodeNum>>,
    /// Whoever has somebody accept a proposal is deaf from then on.
    deafens: AtomicBool,
}

/// One node's end of it.
struct End(NodeNum, Arc<Wire>);

impl Peers for End {
    fn send(&self, _: NodeNum, _: ReplicaCall, reply_to: ReplyTo) {
        reply_to.send(Err(PeerError::Unreachable));
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
            if wire.is_down(from) || wire.is_down(to) {
                return Err(PeerError::Unreachable);
            }
            if wire.is_deaf(to) {
                return Err(PeerError::TimedOut);
            }
            if wire.deafens.load(Ordering::Relaxed) && matches!(request, PeerRequest::Vote { proposal: Some(_), .. }) {
                wire.deaf.lock().insert(from);
            }
            let Driver { succession, rebuild, routing, .. } = &wire.drivers.get().unwrap()[&to];
            let answer = match request {
                PeerRequest::Topology => {
                    Ok(PeerReply::Topology { topology: routing.ring().map(|ring| Arc::clone(ring.topology())) })
                }
                PeerRequest::Founded { topology } => {
                    succession.adopt(topology).await;
                    Ok(PeerReply::Done)
                }
                PeerRequest::Vote { epoch, ballot, proposal } => succession.answer_vote(epoch, ballot, proposal).await,
                PeerRequest::CatchUp { epoch } => rebuild.answer_catch_up(epoch).await,
                PeerRequest::FetchSlot { epoch, slot, leaves, after } => {
                    rebuild.answer(epoch, slot, leaves, after).await
                }
                PeerRequest::CompareSlot { epoch, slot, digests } => {
                    rebuild.answer_compare(epoch, slot, &digests).await
                }
                _ => Err(PeerError::Unreachable),
            };
            if wire.is_deaf(from) { Err(PeerError::TimedOut) } else { answer }
        }
        .boxed()
    }

    fn introduce(&self, _: NodeNum, _: InstanceId, _: &str) {}

    fn connected(&self, to: NodeNum) -> bool {
        !self.1.is_down(self.0) && !self.1.is_down(to)
    }
}

impl Wire {
    fn is_down(&self, node: NodeNum) -> bool {
        self.down.lock().contains(&node)
    }

    fn is_deaf(&self, node: NodeNum) -> bool {
        self.deaf.lock().contains(&node)
    }
}

struct Driver {
    store: Arc<FakeStore>,
    routing: Arc<Routing>,
    directory: Arc<Directory>,
    succession: Arc<Succession>,
    rebuild: Arc<Rebuild>,
    changer: Arc<Changer>,
}

struct Cluster {
    wire: Arc<Wire>,
    /// They end with it.
    _tasks: Arc<Tasks>,
}

/// Nodes that all live and know it.
fn cluster(nodes: u16, rf: u8) -> Cluster {
    let (wire, tasks) = (Arc::<Wire>::default(), Arc::new(Tasks::default()));
    let drivers = (1..=nodes).map(NodeNum).map(|me| (me, driver(me, &topology(1, nodes, rf), &wire, &tasks))).collect();
    assert!(wire.drivers.set(drivers).is_ok());
    let cluster = Cluster { wire, _tasks: tasks };
    cluster.set((1..=nodes).map(NodeNum), Liveness::Alive);
    cluster
}

fn driver(me: NodeNum, topology: &Arc<Topology>, wire: &Arc<Wire>, tasks: &Arc<Tasks>) -> Driver {
    let (store, routing) = (FakeStore::of(me), Arc::new(Routing::default()));
    routing.install(Arc::clone(topology));
    let ports = Ports {
        peers: Arc::new(End(me, Arc::clone(wire))),
        store: store.clone(),
        clock: FakeClock::at(NOW_MS),
        entropy: Seeded::new(me.0.into()),
        spawn: Arc::clone(tasks) as _,
    };
    let clock = NodeClock::new(FakeClock::at(NOW_MS), Duration::from_secs(300), Hlc::ZERO);
    tasks.spawn(Arc::clone(&clock).keep_reserved(store.clone() as Arc<dyn Store>).boxed());
    let reach = Reach::new(Arc::clone(&ports.peers), me, journal());
    let options = replica::Options { node: me, value_bytes_max: 1024 };
    let replica = Replica::new(options, &Parts::of(&ports, &reach, &routing, &clock));
    let directory = Arc::<Directory>::default();
    let succession = Succession::new(me, &ports, &routing, &clock, &directory, &journal());
    let rebuild = Rebuild::new(me, &ports, &routing, &replica, &succession);
    let changer = Changer::new(me, &ports, &routing, &succession, &directory, &rebuild);
    tasks.spawn(Arc::clone(&succession).run().boxed());
    tasks.spawn(Arc::clone(&rebuild).keep_up().boxed());
    tasks.spawn(Arc::clone(&changer).run().boxed());
    Driver { store, routing, directory, succession, rebuild, changer }
}

impl Cluster {
    fn at(&self, node: NodeNum) -> &Driver {
        &self.wire.drivers.get().unwrap()[&node]
    }

    /// What all hold of some.
    fn set(&self, nodes: impl Iterator<Item = NodeNum>, liveness: Liveness) {
        for node in nodes {
            for driver in self.wire.drivers.get().unwrap().values() {
                let member = driver.routing.ring().unwrap().topology().member(node).unwrap().clone();
                driver.directory.set(node, member.instance, member.mesh_address.into(), liveness);
            }
        }
    }

    /// From now on, and everybody knows.
    fn kill(&self, node: NodeNum) {
        self.wire.down.lock().insert(node);
        self.set(std::iter::once(node), Liveness::Down);
    }

    fn epoch(&self, node: NodeNum) -> Epoch {
        self.at(node).routing.epoch()
    }
}

fn key(n: u16) -> Key {
    Key::new(n.to_string()).unwrap()
}

fn record(key: &Key, hlc: u64) -> Record {
    Record::seal(key, Version::plain(Hlc(hlc), Writer(1)), Hlc(hlc), Content::value("v"))
}

fn register(key: &Key) -> Register {
    let promised = Ballot { hlc: Hlc(9), writer: Writer(2) };
    let record = Some(record(key, 8));
    Register {
        promised,
        accepted: Some(Accepted { ballot: promised, op: OpId(uuid::Uuid::nil()), record, recent: Recent::NONE }),
    }
}

/// One of the two that had a slot is all there is to catch up from.
#[tokio::test(start_paused = true)]
async fn a_dead_member_leaves_by_itself_though_there_are_two_copies_and_nothing_strict_is_lost() {
    let cluster = cluster(3, 2);
    let ring = cluster.at(ONE).routing.ring().unwrap();
    // A value is on both of its home replicas, and so is what was accepted of a conditional write.
    for key in (0..64).map(key) {
        let token = ring.token(&key);
        for home in ring.placement(token.slot()).home_replicas() {
            cluster.at(home).store.put(token, &key, record(&key, 5));
            cluster.at(home).store.put_register(token, &key, register(&key));
        }
    }
    cluster.kill(THREE);
    let leaves = |topology: &Topology| change::begin_without(topology, THREE);
    let begun = cluster.at(ONE).succession.decide(leaves).await.unwrap().expect("two of three decide");
    assert_eq!((begun.epoch, begun.leaver()), (Epoch(2), Some(THREE)));
    sleep(Duration::from_secs(50)).await;
    assert_eq!(
        [ONE, TWO].map(|node| cluster.epoch(node)),
        [Epoch(2); 2],
        "it may come back, with writes that it alone has"
    );
    let view = cluster.at(ONE).changer.view().await.unwrap();
    let waits = |node: NodeNum| view.waiting_for.iter().find(|(waiting, _)| *waiting == node).unwrap().1.as_str();
    assert!(waits(ONE).contains("waits for n3"), "{view:?}");
    sleep(Duration::from_secs(40)).await;
    assert_eq!([ONE, TWO].map(|node| cluster.epoch(node)), [Epoch(3); 2], "{:?}", cluster.at(ONE).changer.view().await);
    let after = cluster.at(TWO).routing.ring().unwrap();
    assert!(after.topology().member(THREE).is_none() && after.topology().moving.is_none());
    for key in (0..64).map(key) {
        for store in [ONE, TWO].map(|node| &cluster.at(node).store) {
            assert_eq!(store.record(&key), Some(record(&key, 5)), "{key}");
            assert_eq!(store.register(&key), Some(register(&key)), "{key}");
        }
    }
}

/// What a member tells of itself.
fn info(me: NodeNum, epoch: Epoch) -> NodeInfo {
    let member = topology(1, 3, 2).member(me).unwrap().clone();
    NodeInfo {
        stamp: InfoStamp { node: me, instance: member.instance, generation: 1, info: 1 },
        mesh_address: member.mesh_address,
        http_address: member.http_address,
        zone: None,
        weight: 1,
        state: NodeState::Serving,
        program: "0".into(),
        epoch,
        keys: 0,
        bytes: 0,
        hints: Vec::new(),
        requests_per_second: 0,
        p99_us: None,
    }
}

/// Who told first of a newer epoch is gone, and another one has it, too.
#[tokio::test(start_paused = true)]
async fn a_newer_topology_is_fetched_from_whoever_lives() {
    let cluster = cluster(3, 2);
    cluster.kill(ONE);
    let next = Topology { epoch: Epoch(2), ..(*topology(1, 3, 2)).clone() };
    cluster.at(TWO).succession.adopt(Arc::new(next)).await;
    for node in [ONE, TWO] {
        assert!(cluster.at(THREE).directory.learn(info(node, Epoch(2))));
    }
    sleep(Duration::from_secs(5)).await;
    assert_eq!(cluster.epoch(THREE), Epoch(2));
}

/// Its vote is needed, and of the topology in force it has not heard.
#[tokio::test(start_paused = true)]
async fn who_cannot_vote_yet_is_told_why() {
    let cluster = cluster(3, 2);
    cluster.kill(TWO);
    let next = Topology { epoch: Epoch(2), ..(*topology(1, 3, 2)).clone() };
    cluster.at(ONE).succession.adopt(Arc::new(next)).await;
    assert_eq!(cluster.epoch(THREE), Epoch(1));
    let weighs = |topology: &Topology| change::begin(topology, &Wish::Weight(ONE, 2));
    let begun = cluster.at(ONE).succession.decide(weighs).await.unwrap().expect("two of three decide");
    assert_eq!((begun.epoch, cluster.epoch(THREE)), (Epoch(3), Epoch(3)));
}

/// It had the others accept it, and did not hear that they had; one of them brought it to its end, and somebody took it back.
#[tokio::test(start_paused = true)]
async fn a_change_that_was_taken_back_is_not_begun_again_by_who_asked_for_it_first() {
    let cluster = cluster(3, 2);
    cluster.wire.deafens.store(true, Ordering::Relaxed);
    let leaves = |topology: &Topology| change::begin(topology, &Wish::Leave(THREE));
    let first = cluster.at(ONE).succession.decide(leaves);
    let others = async {
        while cluster.wire.deaf.lock().is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
        cluster.wire.deafens.store(false, Ordering::Relaxed);
        let two = &cluster.at(TWO).succession;
        let begun = two.decide(leaves).await.unwrap().expect("two of three decide");
        let back = two.decide(|topology| change::abort(topology).ok_or(Unfit::Nothing)).await.unwrap();
        let back = back.expect("two of three decide");
        assert_eq!((begun.epoch, begun.leaver(), back.epoch), (Epoch(2), Some(THREE), Epoch(3)));
        cluster.wire.deaf.lock().clear();
        cluster.at(ONE).succession.adopt(back).await;
    };
    let (told, ()) = tokio::join!(first, others);
    assert_eq!(told, Ok(None), "it may have been, and be undone");
    sleep(Duration::from_secs(10)).await;
    assert_eq!([ONE, TWO, THREE].map(|node| cluster.epoch(node)), [Epoch(3); 3]);
}
