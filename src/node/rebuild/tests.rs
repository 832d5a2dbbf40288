//! Fetching slots from peers that answer as they are told to, and being asked for them.

mod head_start;

use std::collections::BTreeMap;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::*;
use crate::node::clock::NodeClock;
use crate::node::fakes::{FakeClock, FakeStore, journal, topology};
use crate::node::parts::Parts;
use crate::node::reach::Reach;
use crate::node::replica;
use crate::node::world::{Disk, DiskStore, Seeded, Tasks};
use crate::ports::{Peers, ReplicaCall, ReplicaReply, ReplicaRequest, ReplyTo, Store};
use crate::types::{Ballot, Content, Hlc, InstanceId, LeafSet, Register, Version, Writer};

const NOW_MS: u64 = 1_700_000_000_000;

type Answer = Box<dyn Fn(Epoch, Slot) -> Result<PeerReply, PeerError> + Send>;

/// Peers that are only asked for pages.
#[derive(Default)]
struct Sources {
    answers: Mutex<BTreeMap<NodeNum, Answer>>,
    asked: Mutex<BTreeMap<NodeNum, usize>>,
}

impl Sources {
    fn set(&self, node: u16, answer: impl Fn(Epoch, Slot) -> Result<PeerReply, PeerError> + Send + 'static) {
        self.answers.lock().insert(NodeNum(node), Box::new(answer));
    }

    fn asked(&self, node: u16) -> usize {
        self.asked.lock().get(&NodeNum(node)).copied().unwrap_or_default()
    }
}

impl Peers for Sources {
    fn send(&self, _: NodeNum, _: ReplicaCall, _: ReplyTo) {}

    fn ask(
        &self,
        to: Destination,
        request: PeerRequest,
        _: Instant,
    ) -> BoxFuture<'static, Result<PeerReply, PeerError>> {
        let (to, epoch, slot, compares) = match (to, request) {
            (Destination::Member(to), PeerRequest::FetchSlot { epoch, slot, .. }) => (to, epoch, slot, false),
            (Destination::Member(to), PeerRequest::CompareSlot { epoch, slot, .. }) => (to, epoch, slot, true),
            _ => return async { Err(PeerError::Unreachable) }.boxed(),
        };
        let mut answer = self.answers.lock().get(&to).map_or(Err(PeerError::Unreachable), |answer| answer(epoch, slot));
        if !compares {
            *self.asked.lock().entry(to).or_default() += 1;
        } else if let Ok(PeerReply::SlotPage { floor, .. }) = answer {
            answer = Ok(PeerReply::SlotCompared { differing: LeafSet::ALL, floor });
        }
        async move { answer }.boxed()
    }

    fn introduce(&self, _: NodeNum, _: InstanceId, _: &str) {}

    fn connected(&self, _: NodeNum) -> bool {
        true
    }
}

struct World<D = Disk> {
    sources: Arc<Sources>,
    disk: Arc<D>,
    routing: Arc<Routing>,
    rebuild: Arc<Rebuild>,
}

/// Node 1 of three with three copies, a new instance.
fn world() -> World {
    let disk = Disk::fresh(1, 1);
    disk.identity.lock().rebuilding = true;
    world_over(Arc::new(DiskStore(Arc::clone(&disk))), disk)
}

fn world_over<D>(store: Arc<dyn Store>, disk: Arc<D>) -> World<D> {
    let (me, sources) = (NodeNum(1), Arc::new(Sources::default()));
    let routing = Arc::new(Routing::default());
    routing.install(topology(1, 3, 3));
    routing.set_rebuilding(true);
    let ports = Ports {
        peers: Arc::clone(&sources) as Arc<dyn Peers>,
        store,
        clock: FakeClock::at(NOW_MS),
        entropy: Seeded::new(1),
        spawn: Arc::new(Tasks::default()),
    };
    let clock = NodeClock::new(FakeClock::at(NOW_MS), Duration::from_secs(300), Hlc::ZERO);
    let options = replica::Options { node: me, value_bytes_max: 1024 };
    let reach = Reach::new(Arc::clone(&ports.peers), me, journal());
    let replica = Replica::new(options, &Parts::of(&ports, &reach, &routing, &clock));
    let succession = Succession::new(me, &ports, &routing, &clock, &Arc::default(), &journal());
    let rebuild = Rebuild::new(me, &ports, &routing, &replica, &succession);
    World { sources, disk, routing, rebuild }
}

fn page(entries: Vec<SlotEntry>) -> Result<PeerReply, PeerError> {
    Ok(PeerReply::SlotPage { entries, floor: Floor::default(), next: None })
}

#[tokio::test(start_paused = true)]
async fn it_answers_only_once_a_majority_of_the_others_told_every_slot() {
    let world = world();
    world.sources.set(2, |_, _| page(Vec::new()));
    world.sources.set(3, |_, slot| if slot == Slot(200) { Err(PeerError::Unreachable) } else { page(Vec::new()) });
    let running = world.rebuild.run();
    tokio::pin!(running);
    assert!(tokio::time::timeout(Duration::from_secs(60), &mut running).await.is_err(), "one of two is no majority");
    assert!(world.routing.is_rebuilding() && world.disk.identity.lock().rebuilding);
    let waiting = world.rebuild.waiting().unwrap();
    assert!(waiting.contains("255 of 256 are here; slot c8 waits for n3 (unreachable)"), "{waiting}");
    assert_eq!(world.sources.asked(2), 256, "who told a slot is not asked for it again");
    world.sources.set(3, |_, _| page(Vec::new()));
    running.await.unwrap();
    assert!(!world.routing.is_rebuilding() && !world.disk.identity.lock().rebuilding);
    assert_eq!(world.rebuild.waiting(), None);
}

/// Two of three that lost their disks at once, with two copies: what they share they cannot have from each other.
#[tokio::test(start_paused = true)]
async fn what_has_a_source_is_fetched_though_another_slot_has_none() {
    let world = world();
    world.routing.install(topology(2, 3, 2));
    let ring = world.routing.ring().unwrap();
    let shared = Slot::all().filter(|slot| {
        let placement = ring.placement(*slot);
        placement.is_home(NodeNum(1)) && placement.is_home(NodeNum(2))
    });
    let shared = shared.count();
    assert!(shared > 20);
    world.sources.set(2, |_, _| Err(PeerError::Refused("it is being rebuilt itself".into())));
    world.sources.set(3, |_, _| page(Vec::new()));
    let running = world.rebuild.run();
    tokio::pin!(running);
    assert!(tokio::time::timeout(Duration::from_secs(60), &mut running).await.is_err());
    let waiting = world.rebuild.waiting().unwrap();
    assert!(waiting.contains(&format!("{} of 256 are here", 256 - shared)), "{waiting}");
    assert!(waiting.contains("waits for n2 (refused: it is being rebuilt itself)"), "{waiting}");
    assert!(world.sources.asked(2) < 60 * 5 + shared, "one who refuses is asked once a round");
    world.sources.set(2, |_, _| page(Vec::new()));
    running.await.unwrap();
    assert_eq!(world.rebuild.waiting(), None);
}

#[tokio::test(start_paused = true)]
async fn a_page_that_is_damaged_or_of_another_slot_is_no_page() {
    let world = world();
    let key = Key::new("k").unwrap();
    let hlc = Hlc::from_ms(1);
    let good = Record::seal(&key, Version::plain(hlc, Writer(1)), hlc, Content::value("v"));
    let bad = Record { content: Content::value("w"), ..good.clone() };
    let promised = Ballot { hlc, writer: Writer(1) };
    world.sources.set(2, |_, _| page(Vec::new()));
    for record in [Some(bad), Some(good), None] {
        // Whatever slot is asked for, this key lies in one of them at most.
        let key = key.clone();
        world
            .sources
            .set(3, move |_, _| page(vec![(key.clone(), record.clone(), Some(Register { promised, accepted: None }))]));
        assert!(tokio::time::timeout(Duration::from_secs(5), world.rebuild.run()).await.is_err());
        assert!(world.disk.identity.lock().rebuilding);
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_rebuilt_is_no_source_and_neither_is_one_of_another_epoch() {
    let world = world();
    let refused = world.rebuild.answer(Epoch(1), Slot(3), LeafSet::ALL, None).await;
    assert!(matches!(refused, Err(PeerError::Refused(_))), "{refused:?}");
    world.routing.set_rebuilding(false);
    let told = world.rebuild.answer(Epoch(2), Slot(3), LeafSet::ALL, None).await;
    assert_eq!(told, Ok(PeerReply::WrongEpoch { epoch: Epoch(1) }));
    assert!(world.disk.topology.lock().is_none());
    assert_eq!(world.rebuild.answer(Epoch(1), Slot(3), LeafSet::ALL, None).await, page(Vec::new()));
    assert!(world.disk.topology.lock().is_some(), "what was let in before is on disk by then");
}

/// The tombstone of a key is gone everywhere. What guards it is the floor alone.
#[tokio::test(start_paused = true)]
async fn what_its_sources_have_purged_does_not_come_back_at_it() {
    let store = FakeStore::new();
    let world = world_over(Arc::clone(&store) as Arc<dyn Store>, Arc::clone(&store));
    let version = |hlc| Version::plain(Hlc(hlc), Writer(1));
    let floor = |g, v| Floor { written: Hlc(g), version: version(v), ballot: Ballot::sealing(Hlc(g)) };
    // One of them was not told of the last floor yet.
    for (node, floor) in [(2, floor(9, 5)), (3, floor(7, 8))] {
        let page = PeerReply::SlotPage { entries: Vec::new(), floor, next: None };
        world.sources.set(node, move |_, _| Ok(page.clone()));
    }
    world.rebuild.run().await.unwrap();
    let (key, greatest) = (Key::new("k").unwrap(), floor(9, 5).merge(&floor(7, 8)));
    let token = world.routing.ring().unwrap().token(&key);
    let ask = |request| world.disk.apply(token, request);
    let record = Record::seal(&key, version(8), Hlc(9), Content::value("old"));
    let write = ReplicaRequest::Write { key: key.clone(), record };
    assert_eq!(ask(write), ReplicaReply::BelowFloor { floor: greatest }, "a value that was deleted");
    let prepare = |ballot| ReplicaRequest::Prepare { key: key.clone(), ballot };
    let outbid = ReplicaReply::Outbid { promised: greatest.ballot };
    assert_eq!(
        ask(prepare(Ballot { hlc: Hlc(9), writer: Writer(1) })),
        outbid,
        "what was promised to that one is forgotten"
    );
    let ReplicaReply::Promised(promise) = ask(prepare(Ballot { hlc: Hlc(10), writer: Writer(1) })) else { panic!() };
    assert_eq!(promise.floor.version, version(8), "what is created goes above it: no version is told twice");
}

/// It heard of that from a source. Whoever looks whether it must stop gets its turn.
#[tokio::test(start_paused = true)]
async fn who_is_replaced_while_it_is_rebuilt_fetches_no_more_and_holds_nobody_up() {
    let world = world();
    let mut replaced = (*topology(2, 3, 3)).clone();
    replaced.members[0].instance = InstanceId(uuid::Uuid::from_u128(99));
    let store = DiskStore(Arc::clone(&world.disk));
    world.routing.adopt(&store, &*world.sources, Arc::new(replaced)).await.unwrap();
    let run = world.rebuild.run();
    tokio::pin!(run);
    assert!(futures_util::poll!(&mut run).is_pending());
    assert_eq!((world.sources.asked(2), world.sources.asked(3)), (0, 0));
}
