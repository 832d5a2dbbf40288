//! Handoff in virtual time, against a target that takes, refuses, hangs or is down.

use super::*;
use crate::node::clock::NodeClock;
use crate::node::fakes::{FakeClock, FakeEntropy, FakePeers, FakeStore, journal, topology};
use crate::node::reach::Reach;
use crate::node::routing::Routing;
use crate::node::views::Liveness;
use crate::ports::{Hint, Peers, ReplicaRequest, Store};
use crate::types::{Content, Hlc, Key, Moving, Record, Slot, Topology, TopologyChange, Version, Writer};

const ME: NodeNum = NodeNum(1);
const TARGET: NodeNum = NodeNum(2);
const WALL: u64 = 1_700_000_000_000;

struct World {
    routing: Arc<Routing>,
    store: Arc<FakeStore>,
    peers: Arc<FakePeers>,
    /// The target's disk.
    theirs: Arc<FakeStore>,
    reach: Arc<Reach>,
}

impl World {
    /// A node whose handoff runs, and a target that takes everything.
    fn start() -> Self {
        let (store, peers, theirs) = (FakeStore::new(), FakePeers::new(), FakeStore::new());
        let reach = Reach::new(Arc::clone(&peers) as Arc<dyn Peers>, ME, journal());
        let routing = Arc::new(Routing::default());
        routing.install(topology(1, 3, 2));
        let parts = Parts {
            me: ME,
            store: Arc::clone(&store) as Arc<dyn Store>,
            peers: Arc::clone(&peers) as Arc<dyn Peers>,
            entropy: Arc::new(FakeEntropy::default()),
            reach: Arc::clone(&reach),
            routing: Arc::clone(&routing),
            clock: NodeClock::new(FakeClock::at(WALL), Duration::from_secs(300), Hlc::ZERO),
            served: Arc::default(),
            journal: journal(),
        };
        let handoff = Handoff::new(Options { hint_window: Duration::from_secs(3 * 3600) }, parts);
        #[expect(clippy::disallowed_methods, reason = "a test is its own node")]
        tokio::spawn(handoff.run());
        let world = Self { routing, store, peers, theirs, reach };
        world.target_takes_all();
        world
    }

    fn target_takes_all(&self) {
        let theirs = Arc::clone(&self.theirs);
        self.peers.set(TARGET, move |call| Ok(take(&theirs, call.request)));
    }

    fn keep(&self, count: u32) {
        (0..count).for_each(|n| self.store.put_hint(hint(&format!("k{n}"), 1)));
    }

    /// How long it takes in virtual time until that many hints are left.
    async fn left(&self, count: usize) -> Duration {
        let start = Instant::now();
        while self.store.hint_count() != count {
            assert!(start.elapsed() < Duration::from_secs(120), "{} hints left", self.store.hint_count());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        start.elapsed()
    }
}

fn take(disk: &FakeStore, request: ReplicaRequest) -> ReplicaReply {
    disk.apply(request.key().token(Default::default()), request)
}

fn hint(name: &str, hlc: u64) -> Hint {
    let key = Key::new(name.to_owned()).unwrap();
    let record = Record::seal(&key, Version::plain(Hlc(hlc), Writer(1)), Hlc(hlc), Content::value("v"));
    // Of which nodes 2 and 3 are the home replicas.
    let slot = Slot(3 * name.len() as u8 + 1);
    Hint { target: TARGET, slot, key, record, counted: false, kept_at_ms: WALL }
}

#[tokio::test(start_paused = true)]
async fn all_hints_are_delivered_once_and_forgotten() {
    let world = World::start();
    world.keep(1_000);
    assert!(world.left(0).await <= LOOK_EVERY + Duration::from_millis(10));
    assert_eq!(world.peers.sent(), 1_000);
    assert!(world.theirs.record(&Key::new("k999").unwrap()).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_down_is_left_alone_and_tried_as_soon_as_it_is_back() {
    let world = World::start();
    world.reach.gossip(TARGET, Liveness::Down);
    world.keep(10);
    tokio::time::sleep(Duration::from_millis(100_200)).await;
    assert_eq!(world.peers.sent(), 0);
    world.reach.gossip(TARGET, Liveness::Alive);
    assert!(world.left(0).await <= Duration::from_millis(5));
}

#[tokio::test(start_paused = true)]
async fn a_target_that_hangs_is_probed_with_one_hint() {
    let world = World::start();
    for _ in 0..3 {
        world.reach.hung(TARGET);
        tokio::time::sleep(world.reach.patience(TARGET)).await;
    }
    world.peers.set(TARGET, |_| Err(PeerError::TimedOut));
    world.keep(300);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!((3..=6).contains(&world.peers.sent()), "{} sent", world.peers.sent());
    world.target_takes_all();
    assert!(world.left(0).await <= Duration::from_secs(2));
    assert!(world.reach.is_reachable(TARGET));
}

#[tokio::test(start_paused = true)]
async fn a_target_that_fails_is_tried_less_and_less_and_loses_nothing() {
    let world = World::start();
    world.peers.set(TARGET, |_| Ok(ReplicaReply::Refused(Refusal::DiskFull)));
    world.keep(1);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!((7..=14).contains(&world.peers.sent()), "{} sent", world.peers.sent());
    assert_eq!(world.store.hint_count(), 1);
    world.target_takes_all();
    assert!(world.left(0).await <= Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn refused_hints_do_not_keep_the_others() {
    let world = World::start();
    let theirs = Arc::clone(&world.theirs);
    world.peers.set(TARGET, move |call| match call.request.key().as_bytes() {
        key if key < b"k5".as_slice() || key.len() < 4 => Ok(ReplicaReply::Refused(Refusal::Corrupt)),
        _ => Ok(take(&theirs, call.request)),
    });
    // The first 500 in order are refused, more than what is under way at a time.
    world.keep(600);
    assert!(world.left(500).await <= Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_newer_hint_kept_meanwhile_is_delivered_too() {
    let world = World::start();
    let (ours, theirs) = (Arc::clone(&world.store), Arc::clone(&world.theirs));
    world.peers.set(TARGET, move |call| {
        let first = matches!(&call.request, ReplicaRequest::Write { record, .. } if record.version.hlc == Hlc(1));
        if first {
            ours.put_hint(hint("k0", 2));
        }
        Ok(take(&theirs, call.request))
    });
    world.keep(1);
    world.left(0).await;
    assert_eq!(world.theirs.record(&Key::new("k0").unwrap()).unwrap().version.hlc, Hlc(2));
}

#[tokio::test(start_paused = true)]
async fn uncounted_hints_are_dropped_when_they_are_too_old_and_counted_ones_stay() {
    let world = World::start();
    world.reach.gossip(TARGET, Liveness::Down);
    let old = WALL - 3 * 3_600_000 - 1;
    world.store.put_hint(Hint { kept_at_ms: old, ..hint("a", 1) });
    world.store.put_hint(Hint { kept_at_ms: old, counted: true, ..hint("b", 1) });
    world.store.put_hint(hint("c", 1));
    assert!(world.left(2).await <= DROP_EVERY + Duration::from_millis(5));
    tokio::time::sleep(2 * DROP_EVERY).await;
    assert_eq!(world.store.hint_count(), 2);
}

/// The topology that comes next, as the test changes it.
fn next(world: &World, change: impl FnOnce(&mut Topology)) {
    let mut topology = (**world.routing.ring().unwrap().topology()).clone();
    topology.epoch = Epoch(topology.epoch.0 + 1);
    change(&mut topology);
    world.routing.install(Arc::new(topology));
}

/// A peer that takes everything, onto a disk of its own.
fn takes_all(world: &World, node: u16) -> Arc<FakeStore> {
    let disk = FakeStore::new();
    let theirs = Arc::clone(&disk);
    world.peers.set(NodeNum(node), move |call| Ok(take(&theirs, call.request)));
    disk
}

fn leave(node: NodeNum) -> impl FnOnce(&mut Topology) {
    move |topology| {
        let (since, ring) = (topology.epoch, topology.ring.clone());
        topology.moving = Some(Moving { since, change: TopologyChange::Leave { node }, rf: 2, ring });
    }
}

#[tokio::test(start_paused = true)]
async fn hints_for_who_departed_go_to_a_majority_of_the_home_replicas() {
    let world = World::start();
    world.peers.remove(TARGET);
    world.keep(1_000);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((world.store.hint_count(), world.peers.sent()), (1_000, 0), "it may come back");
    let disks = [1, 3].map(|node| takes_all(&world, node));
    next(&world, |topology| {
        topology.members.remove(1);
        topology.ring.iter_mut().for_each(|homes| *homes = vec![NodeNum(3), ME]);
    });
    assert!(world.left(0).await <= Duration::from_secs(2));
    assert!(disks.iter().all(|disk| disk.record(&Key::new("k999").unwrap()).is_some()));
    assert_eq!(world.peers.sent(), 2_000);
}

#[tokio::test(start_paused = true)]
async fn what_too_few_have_is_kept_until_enough_do() {
    let world = World::start();
    world.peers.remove(TARGET);
    let disks = [1, 3].map(|node| takes_all(&world, node));
    world.peers.set(NodeNum(3), |_| Ok(ReplicaReply::Refused(Refusal::DiskFull)));
    next(&world, |topology| {
        topology.members.remove(1);
        topology.ring.iter_mut().for_each(|homes| *homes = vec![NodeNum(3), ME]);
    });
    world.keep(10);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.store.hint_count(), 10);
    assert!(disks[0].record(&Key::new("k9").unwrap()).is_some(), "one of two has it");
    assert!(world.peers.sent() < 20 * 14, "{} sent: it is tried less and less", world.peers.sent());
    takes_all(&world, 3);
    assert!(world.left(0).await <= Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_moved_away_from_a_target_that_is_down_goes_around_it_and_the_others_wait() {
    let world = World::start();
    world.peers.remove(TARGET);
    let _disks = [1, 3].map(|node| takes_all(&world, node));
    // Of slot 7, and of slot 10.
    (0..600).for_each(|n| world.store.put_hint(hint(&format!("{n:02}"), 1)));
    world.store.put_hint(hint("far", 1));
    next(&world, |topology| topology.ring[10] = vec![NodeNum(3), ME]);
    world.left(100).await;
    assert_eq!(world.peers.sent(), 2 * 501, "500 have a name of three digits, and nobody else was troubled");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.store.hint_count(), 100);
    world.target_takes_all();
    world.reach.gossip(TARGET, Liveness::Down);
    world.reach.gossip(TARGET, Liveness::Alive);
    assert!(world.left(0).await <= Duration::from_millis(5), "at once, as it is back");
}

#[tokio::test(start_paused = true)]
async fn who_leaves_hands_over_what_it_keeps_for_a_target_that_is_down_too() {
    let world = World::start();
    world.keep(20);
    world.peers.remove(TARGET);
    let third = takes_all(&world, 3);
    next(&world, leave(NodeNum(3)));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(world.peers.sent(), 0, "another one leaves");
    let three = |topology: &mut Topology| topology.ring.iter_mut().for_each(|homes| homes.insert(0, ME));
    next(&world, |topology| {
        leave(ME)(topology);
        three(topology);
        topology.moving.as_mut().unwrap().ring = topology.ring.clone();
    });
    let own = takes_all(&world, 1);
    assert!(world.left(0).await <= Duration::from_secs(1));
    assert!([third, own].iter().all(|disk| disk.record(&Key::new("k19").unwrap()).is_some()));
    // One that can be reached gets it itself, and it alone.
    let sent = world.peers.sent();
    world.target_takes_all();
    world.keep(20);
    world.left(0).await;
    assert_eq!(world.peers.sent(), sent + 20);
}

#[test]
fn only_what_is_on_the_home_replicas_disk_is_forgotten() {
    let stop = [PeerError::Lost, PeerError::TimedOut, PeerError::Unreachable, PeerError::Overloaded];
    assert!(stop.into_iter().all(|e| fate(&Err(e)) == Fate::Stop));
    assert_eq!(fate(&Ok(ReplicaReply::Stored { replaced: None })), Fate::Delivered);
    assert_eq!(fate(&Ok(ReplicaReply::Hinted)), Fate::Stop);
    assert_eq!(fate(&Ok(ReplicaReply::Refused(Refusal::DiskFull))), Fate::Stop);
    assert_eq!(fate(&Ok(ReplicaReply::Refused(Refusal::Corrupt))), Fate::Kept);
}
