//! Rounds between two drivers, each over a disk in memory, that reach each other without a network.

mod moving;

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::*;
use crate::node::clock::NodeClock;
use crate::node::fakes::{FakeClock, FakeEntropy, FakeStore, journal, topology};
use crate::node::reach::Reach;
use crate::node::routing::Routing;
use crate::node::views::Liveness;
use crate::ports::{Peers, Refusal, ReplicaCall, ReplicaReply, ReplyTo, Store};
use crate::protocol::ring::Ring;
use crate::types::{Agreement, Ballot, Content, Floor, Hlc, Key, Record, Version, Writer};

const NOW_MS: u64 = 1_700_000_000_000;

/// Both ends of the wire: requests reach the other side at once, and calls are noted.
#[derive(Default)]
struct Wire {
    stores: BTreeMap<NodeNum, Arc<FakeStore>>,
    drivers: OnceLock<BTreeMap<NodeNum, Arc<AntiEntropy>>>,
    ring: OnceLock<Arc<Ring>>,
    asked: Mutex<Vec<&'static str>>,
    written: Mutex<u64>,
    /// Refused wherever it is written, for a reason of its own.
    refused: Mutex<Option<Key>>,
    /// What a peer sends is damaged on the way.
    damaging: AtomicBool,
    /// So many questions, and writes, more find a replica with too much to do.
    overloaded: [AtomicU64; 2],
    /// Nobody is connected.
    cut: AtomicBool,
}

/// One side's end of it.
struct End(NodeNum, Arc<Wire>);

impl Peers for End {
    fn send(&self, to: NodeNum, call: ReplicaCall, reply_to: ReplyTo) {
        if to != self.0 {
            *self.1.written.lock() += 1;
        }
        if self.1.is_overloaded(1) {
            return reply_to.send(Ok(ReplicaReply::Refused(Refusal::Overloaded)));
        }
        if self.1.refused.lock().as_ref() == Some(call.request.key()) {
            return reply_to.send(Ok(ReplicaReply::Refused(Refusal::TooLarge { bytes: 1 })));
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
        let Destination::Member(to) = to else { return std::future::ready(Err(PeerError::Unreachable)).boxed() };
        let driver = Arc::clone(&self.1.drivers.get().unwrap()[&to]);
        let (from, wire) = (self.0, Arc::clone(&self.1));
        async move {
            if wire.is_overloaded(0) {
                return Err(PeerError::Overloaded);
            }
            match request {
                PeerRequest::GetChunkHash { epoch, left_out, spans } => {
                    wire.asked.lock().push("hashes");
                    driver.answer_chunk_hash(from, epoch, left_out, &spans)
                }
                PeerRequest::FetchRange(exchange) => {
                    wire.asked.lock().push("range");
                    let mut answer = driver.answer_fetch_range(exchange).await;
                    if wire.damaging.load(Ordering::Relaxed)
                        && let Ok(PeerReply::Differences(found)) = &mut answer
                    {
                        found.records.iter_mut().for_each(|(_, record)| record.content = Content::Tombstone);
                    }
                    answer
                }
                PeerRequest::Converge { with, look } => driver.answer_converge(with, look).await,
                _ => Err(PeerError::Unreachable),
            }
        }
        .boxed()
    }

    fn introduce(&self, _: NodeNum, _: crate::types::InstanceId, _: &str) {}

    fn connected(&self, _: NodeNum) -> bool {
        !self.1.cut.load(Ordering::Relaxed)
    }
}

impl Wire {
    fn is_overloaded(&self, what: usize) -> bool {
        self.overloaded[what].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

struct Two {
    wall: Arc<FakeClock>,
    wire: Arc<Wire>,
    routing: Arc<Routing>,
    drivers: BTreeMap<NodeNum, Arc<AntiEntropy>>,
}

const ONE: NodeNum = NodeNum(1);
const OTHER: NodeNum = NodeNum(2);

fn two() -> Two {
    let stores = [ONE, OTHER].map(|node| (node, FakeStore::new())).into();
    let wire = Arc::new(Wire { stores, ..Wire::default() });
    let (wall, routing) = (FakeClock::at(NOW_MS), Arc::new(Routing::default()));
    routing.install(topology(1, 2, 2));
    assert!(wire.ring.set(routing.ring().unwrap()).is_ok());
    let driver = |me: NodeNum| {
        let peers: Arc<dyn Peers> = Arc::new(End(me, Arc::clone(&wire)));
        let store: Arc<dyn Store> = wire.stores[&me].clone();
        let clock =
            NodeClock::new(Arc::clone(&wall) as Arc<dyn crate::ports::Clock>, Duration::from_secs(300), Hlc::ZERO);
        let reach = Reach::new(Arc::clone(&peers), me, journal());
        let entropy = Arc::new(FakeEntropy::default());
        let routing = Arc::clone(&routing);
        let parts =
            Parts { me, store, peers, entropy, reach, routing, clock, served: Arc::default(), journal: journal() };
        (me, AntiEntropy::new(Options { interval: Duration::from_secs(30) }, parts))
    };
    let drivers: BTreeMap<NodeNum, Arc<AntiEntropy>> = [ONE, OTHER].map(driver).into();
    assert!(wire.drivers.set(drivers.clone()).is_ok());
    Two { wall, wire, routing, drivers }
}

impl Two {
    fn put(&self, node: NodeNum, name: &str, ms: u64, value: &str) {
        let key = Key::new(name.to_owned()).unwrap();
        let hlc = Hlc::from_ms(ms);
        let record =
            Record::seal(&key, Version::plain(hlc, Writer(1)), hlc, Content::value(value.to_owned().into_bytes()));
        let token = self.wire.ring.get().unwrap().token(&key);
        self.wire.stores[&node].apply(token, crate::ports::ReplicaRequest::Write { key, record });
    }

    fn record(&self, node: NodeNum, name: &str) -> Option<Record> {
        self.wire.stores[&node].record(&Key::new(name.to_owned()).unwrap())
    }

    async fn round(&self) -> (u64, u64) {
        let progress = Progress::default();
        self.drivers[&ONE].repair(OTHER, &[], &progress).await.unwrap();
        progress.moved()
    }

    async fn look(&self, look: Look) -> Convergence {
        self.drivers[&ONE].look(OTHER, look, &[], &Progress::default()).await.unwrap()
    }

    fn asked(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.wire.asked.lock())
    }
}

#[tokio::test(start_paused = true)]
async fn in_step_a_round_is_one_question_and_with_one_difference_six() {
    let two = two();
    for n in 0..100 {
        for node in [ONE, OTHER] {
            two.put(node, &format!("k{n}"), 1, "same");
        }
    }
    assert_eq!((two.round().await, two.asked()), ((0, 0), vec!["hashes"]));
    two.put(ONE, "k7", 2, "newer");
    assert_eq!(two.round().await, (1, 0));
    assert_eq!(two.asked(), ["hashes", "hashes", "hashes", "hashes", "range"]);
    assert_eq!(*two.wire.written.lock(), 1, "the sixth is the write");
    assert_eq!(two.record(OTHER, "k7"), two.record(ONE, "k7"));
    two.round().await;
    assert_eq!(two.asked(), ["hashes"]);
}

#[tokio::test(start_paused = true)]
async fn each_gives_the_other_what_is_newer_there() {
    let two = two();
    for n in 0..2_000 {
        two.put(ONE, &format!("k{n}"), 1 + n % 3, "a");
        if n % 5 > 0 {
            two.put(OTHER, &format!("k{n}"), 2, "b");
        }
        two.put(OTHER, &format!("l{n}"), 1, "c");
    }
    assert!(two.look(Look::Keys).await.differing > 2_000);
    let (sent, received) = two.round().await;
    assert!(sent > 400 && received > 2_000, "{sent} sent, {received} received");
    let after = two.look(Look::Deep).await;
    assert_eq!((after.differing, after.keys), (0, vec![]));
    assert!(after.chunks.len() == 16 && after.chunks.iter().all(|c| c.agreement == Agreement::Equal));
    for n in 0..2_000 {
        for name in [format!("k{n}"), format!("l{n}")] {
            assert_eq!(two.record(ONE, &name), two.record(OTHER, &name));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_differs_is_named_and_since_when() {
    let two = two();
    two.put(ONE, "a", 1, "x");
    two.put(OTHER, "b", 1, "y");
    two.put(ONE, "young", NOW_MS, "in flight");
    let found = two.look(Look::Keys).await;
    let names: Vec<String> = found.keys.iter().map(Key::to_string).collect();
    assert_eq!((names, found.differing), (vec!["a".to_owned(), "b".to_owned()], 2));
    assert!(found.chunks.iter().any(|c| c.agreement == Agreement::Differs && c.since_ms == NOW_MS));
    assert!(two.record(OTHER, "a").is_none(), "looking changes nothing");
    two.round().await;
    assert!(two.record(OTHER, "young").is_none(), "its write will arrive without help");
    let view = two.drivers[&OTHER].convergence(Look::Keys).await.unwrap();
    let [(ONE, OTHER, Ok(agreed))] = &view.pairs[..] else { panic!("{view:?}") };
    assert_eq!(agreed.differing, 0);
}

#[tokio::test(start_paused = true)]
async fn only_the_chunks_asked_for_are_repaired() {
    let two = two();
    let chunk_of = |name: &str| two.wire.ring.get().unwrap().token(&Key::new(name.to_owned()).unwrap()).slot().0 >> 4;
    for n in 0..50 {
        two.put(ONE, &format!("k{n}"), 1, "x");
    }
    let chunk = chunk_of("k0");
    let progress = Progress::default();
    two.drivers[&ONE].repair(OTHER, &[chunk], &progress).await.unwrap();
    for n in 0..50 {
        let name = format!("k{n}");
        assert_eq!(two.record(OTHER, &name).is_some(), chunk_of(&name) == chunk, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_aborted_round_ends_at_its_next_step() {
    let two = two();
    two.put(ONE, "a", 1, "x");
    let progress = Progress::default();
    progress.abort();
    assert_eq!(two.drivers[&ONE].repair(OTHER, &[], &progress).await, Err(Stop::Aborted));
    assert!(two.record(OTHER, "a").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_peer_under_another_epoch_is_not_compared_with() {
    let two = two();
    let reply = two.drivers[&OTHER].answer_chunk_hash(ONE, Epoch(7), crate::types::SlotSet::NONE, &[]);
    assert_eq!(reply, Ok(PeerReply::WrongEpoch { epoch: Epoch(1) }));
}

#[tokio::test(start_paused = true)]
async fn one_record_that_is_refused_keeps_no_other_from_being_repaired() {
    let two = two();
    for n in 0..300 {
        two.put(if n % 2 == 0 { ONE } else { OTHER }, &format!("k{n}"), 1, "x");
    }
    let ring = two.wire.ring.get().unwrap();
    let name = |n: &u64| Key::new(format!("k{n}")).unwrap();
    let first = (0..300).map(|n| name(&n)).min_by_key(|key| ring.token(key)).unwrap();
    *two.wire.refused.lock() = Some(first.clone());
    assert_eq!(
        {
            let (sent, received) = two.round().await;
            sent + received
        },
        299
    );
    let left = two.look(Look::Keys).await;
    assert_eq!((left.keys, left.differing), (vec![first], 1));
}

#[tokio::test(start_paused = true)]
async fn what_comes_damaged_is_not_stored() {
    let two = two();
    two.put(ONE, "k", 1, "good");
    two.put(OTHER, "k", 2, "better");
    two.wire.damaging.store(true, Ordering::Relaxed);
    let ended = two.drivers[&ONE].repair(OTHER, &[], &Progress::default()).await;
    assert!(matches!(ended, Err(Stop::Peer(PeerError::Protocol(_)))), "{ended:?}");
    assert_eq!(two.record(ONE, "k").map(|r| r.content), Some(Content::value("good")));
}

#[tokio::test(start_paused = true)]
async fn much_content_is_listed_about_once_whoever_has_it() {
    for from in [ONE, OTHER] {
        let two = two();
        let ring = two.wire.ring.get().unwrap();
        let slot_of = |name: &str| ring.token(&Key::new(name.to_owned()).unwrap()).slot();
        let names: Vec<String> = (0..).map(|n| format!("k{n}")).filter(|k| slot_of(k).0 == 0x3f).take(200).collect();
        let value = "x".repeat(100 * 1024);
        names.iter().for_each(|name| two.put(from, name, 1, &value));
        let (sent, received) = two.round().await;
        assert_eq!(sent + received, 200);
        let listed = two.wire.stores[&from].listed();
        assert!(listed <= 3 * 200, "twenty answers, and {listed} rows were read to make them");
        assert_eq!(two.look(Look::Deep).await.differing, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_with_too_much_to_do_is_waited_for_but_not_for_ever() {
    let two = two();
    (0..300).for_each(|n| two.put(if n % 2 == 0 { ONE } else { OTHER }, &format!("k{n}"), 1, "x"));
    let overloaded = |what: usize, times| two.wire.overloaded[what].store(times, Ordering::Relaxed);
    for what in [0, 1] {
        overloaded(what, 500);
        let ended = two.drivers[&ONE].repair(OTHER, &[], &Progress::default()).await;
        assert_eq!(ended, Err(Stop::Peer(PeerError::Overloaded)));
        overloaded(what, 0);
    }
    overloaded(0, 3);
    overloaded(1, 3);
    let (sent, received) = two.round().await;
    assert_eq!(sent + received, 300);
}

#[tokio::test(start_paused = true)]
async fn a_repair_that_waits_for_its_turn_can_be_aborted() {
    let two = two();
    let _turn = two.drivers[&ONE].turn.lock().await;
    let progress = Progress::default();
    let repair = two.drivers[&ONE].repair(OTHER, &[], &progress);
    let aborting = async { progress.abort() };
    assert_eq!(futures_util::future::join(repair, aborting).await.0, Err(Stop::Aborted));
}

#[tokio::test(start_paused = true)]
async fn whoever_is_being_rebuilt_is_not_compared() {
    let two = two();
    two.put(ONE, "k", 1, "x");
    two.routing.set_rebuilding(true);
    assert_eq!(two.drivers[&ONE].repair(OTHER, &[], &Progress::default()).await, Err(Stop::Rebuilding));
    let asked = two.drivers[&OTHER].answer_chunk_hash(ONE, Epoch(1), crate::types::SlotSet::NONE, &[]);
    assert!(matches!(asked, Err(PeerError::Refused(_))), "{asked:?}");
    two.routing.set_rebuilding(false);
    assert_eq!(two.round().await, (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_pair_that_cannot_be_had_is_said_to_be_at_once() {
    let two = two();
    two.wire.cut.store(true, Ordering::Relaxed);
    let began = Instant::now();
    let view = two.drivers[&ONE].convergence(Look::Keys).await.unwrap();
    let [(ONE, OTHER, Err(why))] = &view.pairs[..] else { panic!("{view:?}") };
    assert_eq!((why.as_str(), began.elapsed()), ("unreachable", Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_look_that_waits_for_others_ends_in_time() {
    let two = two();
    let _looks = two.drivers[&ONE].looks.acquire_many(LOOKS_AT_ONCE as u32).await.unwrap();
    let view = two.drivers[&ONE].convergence(Look::Chunks).await.unwrap();
    assert!(matches!(&view.pairs[..], [(ONE, OTHER, Err(why))] if why == "timed out"), "{view:?}");
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_was_repaired_is_equal_since_then() {
    let two = two();
    let since = |found: Convergence| found.chunks.iter().map(|chunk| chunk.since_ms).collect::<Vec<_>>();
    two.round().await;
    let before = since(two.look(Look::Chunks).await);
    two.wall.advance(60_000);
    two.put(ONE, "k", 1, "x");
    assert_eq!(two.round().await, (1, 0));
    let after = since(two.look(Look::Chunks).await);
    assert_eq!(after.iter().zip(&before).filter(|(after, before)| *after - *before == 60_000).count(), 1);
}

#[test]
fn names_are_bounded_for_all_pairs_together() {
    let mut room = Room { names: 3, bytes: 10 };
    let takes = |room: &mut Room, name: &str| room.takes(&Key::new(name.to_owned()).unwrap());
    assert!(takes(&mut room, "12345") && !takes(&mut room, "123456"));
    assert!(!takes(&mut room, "1"), "what is named is in order and has no gaps");
    let mut room = Room { names: 1, bytes: 10 };
    assert!(takes(&mut room, "1") && !takes(&mut room, "1"));
}

/// Nodes of a lower number hold the rounds; but who was started anew saw nobody return.
#[tokio::test(start_paused = true)]
async fn a_return_brings_a_round_with_whoever_came_back() {
    let two = two();
    two.put(OTHER, "k", 1, "x");
    let driver = Arc::clone(&two.drivers[&OTHER]);
    #[expect(clippy::disallowed_methods, reason = "a test is its own node")]
    tokio::spawn(async move { driver.keep_comparing().await });
    sleep(Duration::from_secs(120)).await;
    assert!(two.record(ONE, "k").is_none(), "the other one would hold it");
    let reach = &two.drivers[&OTHER].parts.reach;
    reach.gossip(ONE, Liveness::Down);
    reach.gossip(ONE, Liveness::Alive);
    sleep(AFTER_RETURN[1]).await;
    assert!(two.record(ONE, "k").is_some());
}

impl Two {
    fn hurt(&self, node: NodeNum, name: &str, register: bool) {
        self.wire.stores[&node].damage(&Key::new(name.to_owned()).unwrap(), register);
    }

    /// Ten minutes: a scrub and, where it found something, the next.
    async fn scrub(&self, node: NodeNum) {
        let driver = Arc::clone(&self.drivers[&node]);
        let _ = timeout(Duration::from_secs(600), driver.keep_scrubbing()).await;
    }

    fn cut(&self, cut: bool) {
        let liveness = if cut { Liveness::Down } else { Liveness::Alive };
        self.drivers[&ONE].parts.reach.gossip(OTHER, liveness);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_damaged_on_both_sides_is_not_equal() {
    let two = two();
    for node in [ONE, OTHER] {
        two.put(node, "k", 1, "x");
        two.hurt(node, "k", false);
    }
    let found = two.look(Look::Deep).await;
    assert_eq!((found.differing, found.keys.len()), (1, 1));
    assert!(found.chunks.iter().any(|chunk| chunk.agreement == Agreement::Differs));
}

#[tokio::test(start_paused = true)]
async fn a_scrub_mends_what_others_have_and_removes_what_they_all_do_not() {
    let two = two();
    for node in [ONE, OTHER] {
        two.put(node, "k", 1, "x");
    }
    two.put(ONE, "nobody's", 1, "x");
    two.hurt(ONE, "k", false);
    two.hurt(ONE, "nobody's", false);
    two.cut(true);
    two.scrub(ONE).await;
    assert_eq!(two.wire.stores[&ONE].damaged().len(), 2, "whoever could have it was not asked");
    two.cut(false);
    two.scrub(ONE).await;
    assert_eq!(two.wire.stores[&ONE].damaged(), []);
    assert_eq!(two.record(ONE, "k"), two.record(OTHER, "k"));
    assert_eq!((two.record(ONE, "nobody's"), two.record(OTHER, "nobody's")), (None, None));
    let told = two.drivers[&OTHER].convergence(Look::Deep).await.unwrap();
    assert!(told.scrubs[0].1.is_some_and(|ms| ms >= NOW_MS) && told.scrubs[1] == (OTHER, None), "{told:?}");
}

/// A floor refuses what is not there as purged. A row that was lost was not.
#[tokio::test(start_paused = true)]
async fn a_row_that_was_lost_is_mended_though_a_floor_covers_it() {
    let two = two();
    for node in [ONE, OTHER] {
        two.put(node, "k", 1, "x");
        let written = Hlc::from_ms(NOW_MS * 2);
        let version = Version::plain(written, Writer(1));
        two.wire.stores[&node].raise_floor(Floor { written, version, ballot: Ballot::sealing(written) });
    }
    two.wire.stores[&ONE].misname(&Key::new("k").unwrap());
    two.round().await;
    assert_eq!(two.record(ONE, "k"), None, "nothing tells a round that it was not purged");
    two.scrub(ONE).await;
    assert_eq!(two.record(ONE, "k"), two.record(OTHER, "k"));
}

#[tokio::test(start_paused = true)]
async fn a_promise_that_is_lost_gives_the_database_up_once_others_have_what_is_in_it() {
    let two = two();
    two.put(ONE, "k", 1, "x");
    two.put(ONE, "only here", 1, "x");
    two.hurt(ONE, "k", true);
    two.cut(true);
    two.scrub(ONE).await;
    assert!(!two.wire.stores[&ONE].is_condemned());
    two.cut(false);
    two.scrub(ONE).await;
    assert!(two.wire.stores[&ONE].is_condemned() && two.record(OTHER, "only here").is_some());
}
