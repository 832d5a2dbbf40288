//! A rebuild that begins with the rows of a backup, among sources that are real.

use super::*;
use crate::protocol::succession::change::{Wish, begin};
use crate::types::{Accepted, OpId, Recent};

/// Peers that are nodes of their own.
#[derive(Default)]
struct Others {
    nodes: Mutex<BTreeMap<NodeNum, Arc<Rebuild>>>,
    /// Records that were sent, and slots that were compared.
    sent: Arc<Mutex<Vec<Key>>>,
    compared: Mutex<usize>,
    silent: Mutex<BTreeSet<NodeNum>>,
    /// Those that compare, and send nothing.
    stingy: Mutex<BTreeSet<NodeNum>>,
}

impl Peers for Others {
    fn send(&self, _: NodeNum, _: ReplicaCall, _: ReplyTo) {}

    fn ask(
        &self,
        to: Destination,
        request: PeerRequest,
        _: Instant,
    ) -> BoxFuture<'static, Result<PeerReply, PeerError>> {
        let Destination::Member(to) = to else { return async { Err(PeerError::Unreachable) }.boxed() };
        let node = self.nodes.lock().get(&to).filter(|_| !self.silent.lock().contains(&to)).cloned();
        let Some(node) = node else { return async { Err(PeerError::Unreachable) }.boxed() };
        let answer = match request {
            PeerRequest::CompareSlot { epoch, slot, digests } => {
                *self.compared.lock() += 1;
                async move { node.answer_compare(epoch, slot, &digests).await }.boxed()
            }
            PeerRequest::FetchSlot { epoch, slot, leaves, after } if !self.stingy.lock().contains(&to) => {
                async move { node.answer(epoch, slot, leaves, after).await }.boxed()
            }
            _ => return async { Err(PeerError::Unreachable) }.boxed(),
        };
        let sent = Arc::clone(&self.sent);
        async move {
            let answer = answer.await;
            if let Ok(PeerReply::SlotPage { entries, .. }) = &answer {
                let records = entries.iter().filter(|(_, record, _)| record.is_some());
                sent.lock().extend(records.map(|(key, ..)| key.clone()));
            }
            answer
        }
        .boxed()
    }

    fn introduce(&self, _: NodeNum, _: InstanceId, _: &str) {}

    fn connected(&self, _: NodeNum) -> bool {
        true
    }
}

/// Node 1 with the rows of a backup, and two that went on.
struct Three {
    others: Arc<Others>,
    stores: Vec<Arc<FakeStore>>,
    rebuild: Arc<Rebuild>,
    routing: Arc<Routing>,
}

fn three() -> Three {
    of(3)
}

fn of(nodes: u16) -> Three {
    let others = Arc::new(Others::default());
    let stores: Vec<_> = (1..=nodes).map(|_| FakeStore::new()).collect();
    let node = |n: u16| {
        let store = Arc::clone(&stores[usize::from(n) - 1]) as Arc<dyn Store>;
        node((NodeNum(n), nodes), store, Arc::clone(&others) as Arc<dyn Peers>)
    };
    let (rebuild, routing) = node(1);
    routing.set_rebuilding(true);
    *others.nodes.lock() = (2..=nodes).map(|n| (NodeNum(n), node(n).0)).collect();
    Three { others, stores, rebuild, routing }
}

fn node((me, nodes): (NodeNum, u16), store: Arc<dyn Store>, peers: Arc<dyn Peers>) -> (Arc<Rebuild>, Arc<Routing>) {
    let routing = Arc::new(Routing::default());
    routing.install(topology(1, nodes, nodes as u8));
    let ports = Ports {
        peers,
        store,
        clock: FakeClock::at(NOW_MS),
        entropy: Seeded::new(1),
        spawn: Arc::new(Tasks::default()),
    };
    let clock = NodeClock::new(FakeClock::at(NOW_MS), Duration::from_secs(300), Hlc::ZERO);
    let reach = Reach::new(Arc::clone(&ports.peers), me, journal());
    let options = replica::Options { node: me, value_bytes_max: 1024 };
    let replica = Replica::new(options, &Parts::of(&ports, &reach, &routing, &clock));
    let succession = Succession::new(me, &ports, &routing, &clock, &Arc::default(), &journal());
    (Rebuild::new(me, &ports, &routing, &replica, &succession), routing)
}

fn version(hlc: u64) -> Version {
    Version::plain(Hlc(hlc), Writer(1))
}

fn record(key: &Key, hlc: u64, value: Option<&'static str>) -> Record {
    Record::seal(key, version(hlc), Hlc(hlc), value.map_or(Content::Tombstone, Content::value))
}

fn floor(g: u64) -> Floor {
    Floor { written: Hlc(g), version: version(g), ballot: Ballot::sealing(Hlc(g)) }
}

impl Three {
    fn put(&self, node: usize, key: &Key, record: &Record) {
        self.stores[node - 1].put(self.token(key), key, record.clone());
    }

    fn token(&self, key: &Key) -> Token {
        self.routing.ring().unwrap().token(key)
    }

    async fn rebuilt(&self) {
        tokio::time::timeout(Duration::from_secs(600), self.rebuild.run()).await.unwrap().unwrap();
    }

    fn held(&self, key: &Key) -> Option<u64> {
        self.stores[0].record(key).map(|record| record.version.hlc.0)
    }
}

fn key(name: &str) -> Key {
    Key::new(name.to_owned()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_is_equal_is_not_sent() {
    let three = three();
    let keys: Vec<Key> = (0..500).map(|n| key(&format!("k{n}"))).collect();
    for key in &keys {
        let record = record(key, 5, Some("v"));
        (1..=3).for_each(|node| three.put(node, key, &record));
    }
    // One was written since, one is new, and one only a single source has.
    for (at, nodes) in [(7, &[2, 3][..]), (8, &[3])] {
        nodes.iter().for_each(|node| three.put(*node, &keys[at], &record(&keys[at], 9, Some("w"))));
    }
    let new = key("new");
    (2..=3).for_each(|node| three.put(node, &new, &record(&new, 9, Some("n"))));
    three.rebuilt().await;
    assert_eq!([three.held(&keys[7]), three.held(&keys[8]), three.held(&new)], [Some(9); 3]);
    assert!(keys.iter().all(|key| three.held(key).is_some()));
    let sent = three.others.sent.lock().len();
    assert!((3..10).contains(&sent), "{sent} of 501 keys were sent");
    assert!(!three.routing.is_rebuilding());
}

#[tokio::test(start_paused = true)]
async fn with_nothing_to_begin_with_a_slot_is_sent_once() {
    let three = three();
    let key = key("k");
    (2..=3).for_each(|node| three.put(node, &key, &record(&key, 5, Some("v"))));
    three.rebuilt().await;
    // Who is asked second says where it is other than the first.
    let (sent, compared) = (three.others.sent.lock().len(), *three.others.compared.lock());
    assert_eq!((three.held(&key), sent, compared), (Some(5), 1, 256));
}

/// Deleted and purged after the backup was taken: its tombstone is nowhere, and only the floor knows.
#[tokio::test(start_paused = true)]
async fn what_was_purged_since_the_backup_does_not_come_back() {
    let three = three();
    let (purged, tombstone, newer, missed, other) = (key("a"), key("b"), key("c"), key("d"), key("e"));
    three.put(1, &purged, &record(&purged, 5, Some("old")));
    three.put(1, &tombstone, &record(&tombstone, 9, None));
    // A write that the others missed: above their floor, it stays.
    three.put(1, &newer, &record(&newer, 10, Some("new")));
    // A write that these hold too is no purged one, wherever the floor is; nor is one that only one of them holds.
    for node in [1, 2, 3] {
        three.put(node, &other, &record(&other, 4, Some("same")));
    }
    three.put(1, &missed, &record(&missed, 3, Some("here")));
    three.put(3, &missed, &record(&missed, 3, Some("here")));
    // Only one of them was told of the last floor.
    three.stores[1].raise_floor(floor(9));
    three.stores[2].raise_floor(floor(7));
    three.rebuilt().await;
    assert_eq!((three.held(&purged), three.held(&tombstone)), (None, None));
    assert_eq!((three.held(&newer), three.held(&other), three.held(&missed)), (Some(10), Some(4), Some(3)));
    let kept = three.stores[0].kept(three.token(&purged).slot()).floor;
    assert_eq!(kept, floor(9), "and from now on the floor guards it");
}

/// An older value than the sources', a newer one below their floor, and one that they deleted and still remember.
#[tokio::test(start_paused = true)]
async fn below_the_floor_the_sources_alone_count() {
    let three = three();
    let (behind, ahead, deleted) = (key("a"), key("b"), key("c"));
    three.put(1, &behind, &record(&behind, 5, Some("old")));
    three.put(1, &ahead, &record(&ahead, 6, Some("never acknowledged")));
    three.put(1, &deleted, &record(&deleted, 5, Some("old")));
    for node in [2, 3] {
        three.put(node, &behind, &record(&behind, 8, Some("new")));
        three.put(node, &ahead, &record(&ahead, 2, Some("acknowledged")));
        three.put(node, &deleted, &record(&deleted, 20, None));
        three.stores[node - 1].raise_floor(floor(9));
    }
    three.rebuilt().await;
    assert_eq!([three.held(&behind), three.held(&ahead), three.held(&deleted)], [Some(8), Some(2), Some(20)]);
}

#[tokio::test(start_paused = true)]
async fn registers_come_from_the_sources_though_no_record_differs() {
    let three = three();
    let key = key("k");
    let same = record(&key, 5, Some("v"));
    (1..=3).for_each(|node| three.put(node, &key, &same));
    let ballot = |hlc| Ballot { hlc: Hlc(hlc), writer: Writer(1) };
    let accepted = |hlc| Accepted {
        ballot: ballot(hlc),
        op: OpId(uuid::Uuid::nil()),
        record: Some(same.clone()),
        recent: Recent::NONE,
    };
    let registers = [(1, 3, 3), (2, 9, 4), (3, 7, 7)];
    for (node, promised, at) in registers {
        let register = Register { promised: ballot(promised), accepted: Some(accepted(at)) };
        three.stores[node - 1].put_register(three.token(&key), &key, register);
    }
    three.rebuilt().await;
    let merged = Register { promised: ballot(9), accepted: Some(accepted(7)) };
    assert_eq!(three.stores[0].register(&key), Some(merged));
    assert!(three.others.sent.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_source_is_no_majority_to_compare_with() {
    let three = three();
    let purged = key("a");
    three.put(1, &purged, &record(&purged, 5, Some("old")));
    // The one that has purged it does not answer.
    three.stores[2].raise_floor(floor(9));
    three.put(2, &purged, &record(&purged, 6, None));
    three.others.silent.lock().insert(NodeNum(3));
    let running = three.rebuild.run();
    tokio::pin!(running);
    assert!(tokio::time::timeout(Duration::from_secs(60), &mut running).await.is_err());
    assert!(three.routing.is_rebuilding());
    three.others.silent.lock().clear();
    running.await.unwrap();
    assert_eq!(three.held(&purged), Some(6), "that one still holds the tombstone");
}

/// Of four copies two are compared with, and another two fetched from: who knows the greatest floor is not always asked.
#[tokio::test(start_paused = true)]
async fn a_floor_that_was_told_once_is_not_forgotten() {
    let four = of(4);
    // The first slot, which is tried first.
    let purged = (0..).map(|n| key(&n.to_string())).find(|key| four.token(key).slot() == Slot(0)).unwrap();
    four.put(1, &purged, &record(&purged, 7, Some("old")));
    for (node, g) in [(2, 5), (3, 5), (4, 9)] {
        four.stores[node - 1].raise_floor(floor(g));
    }
    four.others.stingy.lock().insert(NodeNum(3));
    four.rebuilt().await;
    assert_eq!(four.held(&purged), None);
}

/// Who has the other copy says what differs, and sends nothing more.
#[tokio::test(start_paused = true)]
async fn what_a_member_kept_before_a_change_stays_with_it_while_it_catches_up() {
    let three = three();
    let leaves = Arc::new(begin(&topology(1, 3, 2), &Wish::Leave(NodeNum(3))).unwrap());
    three.others.nodes.lock().values().for_each(|other| other.routing.install(Arc::clone(&leaves)));
    three.routing.install(Arc::clone(&leaves));
    three.routing.set_rebuilding(false);
    let shared = |key: &Key| leaves.replicas_before(three.token(key).slot()) == Some(&[NodeNum(3), NodeNum(1)]);
    let mine = (0..).map(|n| key(&n.to_string())).find(shared).unwrap();
    three.put(1, &mine, &record(&mine, 5, Some("acknowledged")));
    three.put(3, &mine, &record(&mine, 8, Some("one copy of another")));
    for node in [0, 2] {
        three.stores[node].raise_floor(floor(9));
    }
    three.others.stingy.lock().insert(NodeNum(3));
    let running = Arc::clone(&three.rebuild).keep_up();
    tokio::pin!(running);
    assert!(tokio::time::timeout(Duration::from_secs(10), &mut running).await.is_err());
    assert_eq!(three.held(&mine), Some(5));
    three.others.stingy.lock().clear();
    assert!(tokio::time::timeout(Duration::from_secs(10), &mut running).await.is_err());
    assert_eq!(three.held(&mine), Some(8));
    assert!(three.rebuild.fetching.lock().over);
}
