//! Three listers, each over a disk in memory, that reach each other without a network.

use std::sync::OnceLock;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::sleep;

use super::*;
use crate::node::directory::Directory;
use crate::node::fakes::{FakeClock, FakeEntropy, FakeStore, journal, topology};
use crate::node::world::Tasks;
use crate::ports::{Refusal, ReplicaCall, ReplicaReply, ReplicaRequest, ReplyTo, StoreError};
use crate::protocol::ring::Ring;
use crate::types::{Content, Hlc, InstanceId, Record, Scan, Version, Writer};

const NOW_MS: u64 = 1_700_000_000_000;
const ONE: NodeNum = NodeNum(1);
const TWO: NodeNum = NodeNum(2);

/// What befalls scans of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Silent,
    /// Answers after that.
    Slow(Duration),
    Gone,
}

#[derive(Default)]
struct Wire {
    stores: BTreeMap<NodeNum, Arc<FakeStore>>,
    listers: OnceLock<BTreeMap<NodeNum, Arc<Lister>>>,
    fates: Mutex<BTreeMap<NodeNum, Fate>>,
    /// Whom scans were sent to.
    scans: Mutex<Vec<NodeNum>>,
}

struct End(NodeNum, Arc<Wire>, Arc<Ring>);

impl Peers for End {
    fn send(&self, to: NodeNum, call: ReplicaCall, reply_to: ReplyTo) {
        let token = self.2.token(call.request.key());
        let store = &self.1.stores[&to];
        if !call.request.writes() && store.damaged().contains(call.request.key()) {
            return reply_to.send(Ok(ReplicaReply::Refused(Refusal::Damaged)));
        }
        reply_to.send(Ok(store.apply(token, call.request)));
    }

    fn ask(
        &self,
        to: Destination,
        request: PeerRequest,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<PeerReply, PeerError>> {
        let (from, wire) = (self.0, Arc::clone(&self.1));
        Box::pin(async move {
            let Destination::Member(to) = to else { return Err(PeerError::Unreachable) };
            let lister = &wire.listers.get().unwrap()[&to];
            let PeerRequest::Scan { epoch, scan } = request else {
                return Ok(PeerReply::Topology { topology: lister.routing.ring().map(|r| Arc::clone(r.topology())) });
            };
            wire.scans.lock().push(to);
            let fate = wire.fates.lock().get(&to).copied();
            match fate {
                Some(Fate::Gone) => return Err(PeerError::Unreachable),
                Some(Fate::Silent) => {
                    tokio::time::sleep_until(deadline).await;
                    return Err(PeerError::TimedOut);
                }
                Some(Fate::Slow(by)) => sleep(by).await,
                None => {}
            }
            lister.answer(from, epoch, scan).await
        })
    }

    fn introduce(&self, _: NodeNum, _: InstanceId, _: &str) {}

    fn connected(&self, to: NodeNum) -> bool {
        self.1.fates.lock().get(&to) != Some(&Fate::Gone)
    }
}

fn three(rf: u8) -> Arc<Wire> {
    let nodes = [1, 2, 3].map(NodeNum);
    let stores = nodes.map(|node| (node, FakeStore::new())).into();
    let wire = Arc::new(Wire { stores, ..Wire::default() });
    let listers = nodes.map(|me| (me, Arc::new(lister(me, rf, &wire))));
    assert!(wire.listers.set(listers.into()).is_ok());
    wire
}

fn lister(me: NodeNum, rf: u8, wire: &Arc<Wire>) -> Lister {
    let routing = Arc::new(Routing::default());
    routing.install(topology(1, 3, rf));
    let peers: Arc<dyn Peers> = Arc::new(End(me, Arc::clone(wire), routing.ring().unwrap()));
    let store: Arc<dyn Store> = wire.stores[&me].clone();
    let wall = FakeClock::at(NOW_MS);
    let clock = NodeClock::new(Arc::clone(&wall) as _, Duration::from_secs(1), Hlc::ZERO);
    let reach = Reach::new(Arc::clone(&peers), me, journal());
    let ports = Ports {
        peers: Arc::clone(&peers),
        store: Arc::clone(&store),
        clock: wall,
        entropy: Arc::new(FakeEntropy::default()),
        spawn: Arc::new(Tasks::default()),
    };
    let coordinator = Coordinator::new(me, peers, store, Arc::clone(&routing), Arc::clone(&clock), Arc::clone(&reach));
    let succession = Succession::new(me, &ports, &routing, &clock, &Arc::<Directory>::default(), &journal());
    Lister { me, ..Lister::new(&ports, (&routing, &clock, &reach), &coordinator, &succession) }
}

impl Wire {
    fn lister(&self, node: NodeNum) -> &Arc<Lister> {
        &self.listers.get().unwrap()[&node]
    }

    /// At all home replicas.
    fn put(&self, name: &str) -> Key {
        let key = Key::new(name.to_owned()).unwrap();
        let ring = self.lister(ONE).routing.ring().unwrap();
        let token = ring.token(&key);
        let hlc = Hlc::from_ms(NOW_MS);
        let record = Record::seal(&key, Version::plain(hlc, Writer(1)), hlc, Content::value("v"));
        for node in ring.placement(token.slot()).home_replicas() {
            let write = ReplicaRequest::Write { key: key.clone(), record: record.clone() };
            self.stores[&node].apply(token, write);
        }
        key
    }

    fn fate(&self, node: NodeNum, fate: Fate) {
        self.fates.lock().insert(node, fate);
    }

    async fn list(&self, partial: bool) -> Result<(Vec<String>, Page), ListingFailure> {
        let question = Question {
            prefix: Bytes::new(),
            delimiter: Bytes::new(),
            from: Bytes::new(),
            limit: 100,
            values: false,
            partial,
        };
        let page = self.lister(ONE).page(question, Instant::now() + Duration::from_secs(1)).await?;
        Ok((page.items.iter().map(|item| item.key.to_string()).collect(), page))
    }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("k{n:02}")).collect()
}

#[tokio::test(start_paused = true)]
async fn who_is_silent_is_stood_in_for_and_who_is_only_slow_is_waited_for() {
    let wire = three(2);
    names(20).iter().for_each(|name| drop(wire.put(name)));
    wire.fate(TWO, Fate::Silent);
    let began = Instant::now();
    let (told, page) = wire.list(false).await.unwrap();
    assert_eq!((told, page.strict, page.next), (names(20), false, None));
    assert!(began.elapsed() < PATIENCE_MIN * 2, "{:?}", began.elapsed());

    // With two gone there is nobody else: it may still answer.
    wire.fate(TWO, Fate::Slow(PATIENCE_MIN * 2));
    wire.fate(NodeNum(3), Fate::Gone);
    let (told, page) = wire.list(false).await.unwrap();
    assert_eq!((told, page.strict), (names(20), false));
}

#[tokio::test(start_paused = true)]
async fn time_that_is_up_ends_it() {
    let wire = three(3);
    wire.put("k");
    wire.fate(TWO, Fate::Silent);
    wire.fate(NodeNum(3), Fate::Silent);
    let failure = wire.list(false).await.unwrap_err();
    assert_eq!((failure.kind, failure.slots), (FailureKind::TimedOut, SlotSet::NONE));
}

#[tokio::test(start_paused = true)]
async fn slots_without_a_majority_are_named() {
    let wire = three(2);
    wire.put("k");
    wire.fate(TWO, Fate::Gone);
    wire.fate(NodeNum(3), Fate::Gone);
    let failure = wire.list(false).await.unwrap_err();
    assert_eq!((failure.kind, failure.slots.count()), (FailureKind::Unavailable, 256));
    assert_eq!(failure.failed.iter().map(|(node, _)| node.0).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(wire.list(true).await.unwrap().1.missing.count(), 256);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_being_rebuilt_tells_nothing() {
    let wire = three(3);
    names(20).iter().for_each(|name| drop(wire.put(name)));
    wire.lister(TWO).routing.set_rebuilding(true);
    let (told, page) = wire.list(false).await.unwrap();
    assert_eq!((told, page.strict), (names(20), true), "the third has them");
    assert!(wire.scans.lock().contains(&TWO) && wire.scans.lock().contains(&NodeNum(3)));
    let scan = Scan {
        slots: SlotSet::NONE,
        prefix: Bytes::new(),
        from: Bytes::new(),
        delimiter: Bytes::new(),
        samples: 1,
        limit: 1,
        values: false,
        now: Hlc::ZERO,
    };
    let one = wire.lister(ONE);
    let epoch = one.routing.epoch();
    assert!(one.answer(TWO, epoch, scan.clone()).await.is_ok());
    assert!(one.answer(NodeNum(9), epoch, scan.clone()).await.is_err(), "no member");
    wire.stores[&ONE].fail_with(Some(StoreError::Damaged("a page".into())));
    assert!(one.answer(TWO, epoch, scan).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_newer_topology_is_fetched_and_the_page_goes_on() {
    let wire = three(3);
    names(20).iter().for_each(|name| drop(wire.put(name)));
    wire.lister(TWO).routing.install(topology(2, 3, 3));
    wire.lister(NodeNum(3)).routing.install(topology(2, 3, 3));
    assert_eq!(wire.list(false).await.unwrap().0, names(20));
    assert_eq!(wire.lister(ONE).routing.epoch().0, 2);
    // One that is behind serves all the same.
    wire.lister(ONE).routing.install(topology(3, 3, 3));
    assert_eq!(wire.list(false).await.unwrap().0, names(20));
}

#[tokio::test(start_paused = true)]
async fn a_damaged_copy_is_read_from_the_others_and_mended() {
    let wire = three(3);
    names(20).iter().for_each(|name| drop(wire.put(name)));
    let key = Key::new("k07").unwrap();
    wire.stores[&TWO].damage(&key, false);
    let (told, page) = wire.list(false).await.unwrap();
    assert_eq!(told, names(20));
    assert!(page.items.iter().all(|item| item.outline.is_some()));
    // Where no other copy can be had it is named all the same.
    wire.stores[&ONE].damage(&key, false);
    wire.stores[&NodeNum(3)].damage(&key, false);
    let (told, page) = wire.list(false).await.unwrap();
    assert_eq!(told, names(20));
    assert_eq!(
        page.items.iter().filter(|item| item.outline.is_none()).map(|item| &item.key).collect::<Vec<_>>(),
        [&key]
    );
}
