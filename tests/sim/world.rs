//! One seed's world: its nodes with their machines, disks and network, how it comes to be, and how it is healed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use a3::node::{Node, Options, Ports};
use a3::ports::{Entropy, PeerHandler, Spawn};
use a3::types::{Key, NodeNum, Slot, TokenSeed, Version, majority};
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};

use crate::changes::{copies, outsiders, wandering, zone};
use crate::clients::Shared;
use crate::disk::{Disk, SimStore};
use crate::history::{History, Witness};
use crate::listing::List;
use crate::machine::{Life, Seeded, SimClock, Trace};
use crate::network::{Network, SimPeers, Socket, Weather};
use crate::successor::predecessor;
use crate::watch::Seen;

/// A start, and the healing at the end, must be done within this (virtual) time.
const PATIENCE: Duration = Duration::from_secs(120);

/// One node's place: what stays through its lives, and the life it has.
pub(crate) struct Place {
    pub(crate) number: NodeNum,
    pub(crate) socket: Socket,
    pub(crate) disk: Arc<Disk>,
    pub(crate) clock: Arc<SimClock>,
    life: Mutex<Option<(Arc<Node>, Arc<Life>)>>,
    lives: Mutex<u64>,
}

impl Place {
    /// The node and its life, while it is up.
    pub(crate) fn node(&self) -> Option<(Arc<Node>, Arc<Life>)> {
        self.life.lock().clone().filter(|(_, life)| life.is_alive())
    }

    /// How many it has had.
    pub(crate) fn lives(&self) -> u64 {
        *self.lives.lock()
    }
}

struct Keys {
    all: Vec<Key>,
    slots: BTreeMap<Key, Slot>,
}

pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) rf: u8,
    /// Of a thousand requests, how many are linearizable or conditional; the others are plain.
    pub(crate) exact: u64,
    /// Of a thousand values, how many have an end; where none has, nobody touches one either.
    pub(crate) ending: u64,
    /// In some worlds clocks are off by more than is allowed.
    clock_skew_max: Duration,
    /// How long tombstones are kept; in most worlds for longer than they last.
    pub(crate) grace: Option<Duration>,
    /// Where a client lists.
    pub(crate) lists: Mutex<Vec<List>>,
    /// Where a client watches.
    pub(crate) seen: Mutex<Option<Seen>>,
    /// Between two rounds of anti-entropy.
    interval: Duration,
    /// The founders first, then those who are no members in the beginning.
    pub(crate) places: Vec<Place>,
    founders: usize,
    /// The founder that is given a successor, where one is: the last place is that one's.
    pub(crate) predecessor: Option<NodeNum>,
    pub(crate) network: Arc<Network>,
    pub(crate) random: Arc<Seeded>,
    pub(crate) trace: Arc<Trace>,
    pub(crate) history: History,
    pub(crate) witness: Arc<Witness>,
    /// What is asked about, and where it lives: known once there is a cluster.
    keys: OnceLock<Keys>,
    pub(crate) shared: Shared,
    /// The node whose disk was wiped, or which got a successor: another instance, once it has its slots from the others.
    wiped: Mutex<Option<NodeNum>>,
    /// Since when that is so, and since when its successor has all of its slots, where it has one: places in the order of events.
    pub(crate) lost_at: Mutex<Option<u64>>,
    pub(crate) whole_since: Mutex<Option<u64>>,
    /// Up to which version each node has acknowledged each key to somebody who was told so.
    promised: Mutex<BTreeMap<(NodeNum, Key), Version>>,
    /// What was found wrong on the way.
    pub(crate) broken: Mutex<Vec<String>>,
    /// Tasks of clients and faults.
    pub(crate) life: Arc<Life>,
    weather: Weather,
}

impl World {
    pub(crate) fn new(seed: u64, traced: bool) -> Arc<Self> {
        let random = Seeded::new(seed, 0);
        let trace = Trace::new(traced);
        let witness = Arc::new(Witness::default());
        let rf = *random.pick(&[1, 2, 2, 3, 3, 3, 5]);
        let rf = copies(seed).unwrap_or(rf);
        let nodes = random.between(u64::from(rf.max(2)), 5) as u16;
        let exact = *random.pick(&[0, 1000, 1000, 200, 500, 800]);
        // Drawn apart, so that the other worlds are as they would be without.
        let purging = Seeded::new(seed, 3);
        let grace = (purging.below(4) == 0).then(|| Duration::from_secs(*purging.pick(&[4, 8, 15])));
        let most_ms = if grace.is_some() { 500 } else { 4_000 };
        let skew_ms = most_ms.min(*random.pick(&[0, 50, 500, 4_000]));
        let clock_skew_max = Duration::from_secs(*random.pick(&[300, 300, 300, 2]));
        let sync_ms = *random.pick(&[1, 4, 40]);
        let sql = random.below(10) == 0;
        let interval = Duration::from_secs(*random.pick(&[2, 30]));
        let ending = *random.pick(&[0, 0, 200, 600]);
        let place = |number: NodeNum, socket: Socket, lives: u64| {
            let off_ms = random.between(0, 2 * skew_ms) as i64 - skew_ms as i64;
            let random = Seeded::new(seed, 100 + lives + u64::from(number.0));
            let disk = Disk::new((number, socket), sql, sync_ms, random, witness.clone(), trace.clone());
            let (life, lives) = (Mutex::default(), Mutex::new(lives));
            Place { number, socket, disk, clock: SimClock::new(off_ms), life, lives }
        };
        let numbers = (1..=nodes + outsiders(seed)).map(NodeNum);
        let mut places: Vec<Place> = numbers.map(|number| place(number, Socket::of(number), 0)).collect();
        let weather = Weather::drawn(&random, grace.map(|_| &*purging));
        let predecessor = predecessor(seed, nodes).filter(|_| rf >= 3 && outsiders(seed) == 0);
        // Its lives are told apart from those of the other one of its number.
        places.extend(predecessor.map(|number| place(number, Socket::second_of(number), 1_000)));
        let network = Network::new(Seeded::new(seed, 1), trace.clone());
        trace.note(format_args!(
            "{} nodes, {nodes} of them founders, rf {rf}, {exact} of 1000 exact, {ending} of 1000 values end, clocks within {skew_ms} ms of {clock_skew_max:?}, syncs within {sync_ms} ms, \
             sql {sql}, tombstones kept for {grace:?}, {weather:?}",
            places.len()
        ));
        Arc::new(Self {
            seed,
            rf,
            exact,
            ending,
            clock_skew_max,
            grace,
            lists: Mutex::default(),
            seen: Mutex::default(),
            interval,
            places,
            founders: usize::from(nodes),
            predecessor,
            network,
            random,
            trace,
            history: History::default(),
            witness,
            keys: OnceLock::new(),
            shared: Shared::default(),
            wiped: Mutex::default(),
            lost_at: Mutex::default(),
            whole_since: Mutex::default(),
            promised: Mutex::default(),
            broken: Mutex::default(),
            life: Life::new(),
            weather,
        })
    }

    /// Starts a node that is down. It serves once it has joined, by itself.
    pub(crate) async fn start(&self, place: &Place) {
        let life = Life::new();
        let lives = {
            let mut lives = place.lives.lock();
            *lives += 1;
            *lives
        };
        self.trace.note(format_args!("{} starts", place.socket));
        self.check_promises(place);
        let options = Options {
            seeds: self.places.iter().map(|p| p.socket.mesh_address()).collect(),
            // Who comes later must not found another one with others that come later.
            cluster_size: if self.keys.get().is_some() && (self.changes() || self.predecessor.is_some()) {
                1
            } else {
                self.founders as u16
            },
            rf: self.rf,
            zone: zone(self.seed, place.number.0),
            weight: 1,
            mesh_address: place.socket.mesh_address(),
            http_address: format!("{}:8000", place.socket.host()),
            gossip_interval: Duration::from_secs(1),
            clock_skew_max: self.clock_skew_max,
            value_bytes_max: 1024,
            hint_window: Duration::from_secs(3600),
            anti_entropy_interval: self.interval,
            gc_grace: self.grace.unwrap_or(Duration::from_secs(86_400)),
        };
        let ports = Ports {
            peers: SimPeers::new(&self.network, (place.number, place.socket), &life),
            store: SimStore::open(place.disk.clone(), place.clock.clone(), life.clone()),
            clock: place.clock.clone(),
            entropy: Seeded::new(self.seed, u64::from(place.number.0) << 32 | lives),
            spawn: life.clone(),
        };
        let node = Node::start(options, ports).await.expect("the simulated store always opens");
        let handler: Arc<dyn PeerHandler> = node.clone();
        self.network.plug(place.socket, handler, life.clone());
        let (joining, trace, at) = (node.clone(), self.trace.clone(), place.socket);
        let (end, network) = (life.clone(), self.network.clone());
        let join = async move {
            match joining.join().await {
                Ok(()) => trace.note(format_args!("{at} serves")),
                Err(error) => {
                    trace.note(format_args!("{at} cannot start, and exits: {error}"));
                    end.end();
                    network.unplug(at);
                }
            }
        };
        let (fenced, trace, at) = (node.clone(), self.trace.clone(), place.socket);
        let (end, network, lingers) = (life.clone(), self.network.clone(), self.lingers(place));
        let replaced = async move {
            let error = fenced.replaced().await;
            trace.note(format_args!("{at} has been replaced, and exits: {error}"));
            if let Some(lasts) = lingers {
                fenced.leave().await;
                sleep(lasts).await;
            }
            end.end();
            network.unplug(at);
        };
        *place.life.lock() = Some((node, life.clone()));
        life.spawn(join.boxed());
        life.spawn(replaced.boxed());
    }

    /// The node dies, between two of its steps.
    pub(crate) fn crash(&self, place: &Place) {
        if let Some((_, life)) = place.life.lock().take() {
            self.trace.note(format_args!("{} crashes", place.socket));
            life.end();
            self.network.unplug(place.socket);
        }
    }

    /// From nothing to a cluster that serves.
    pub(crate) async fn found(&self) -> Result<(), String> {
        for place in &self.places[..self.founders] {
            self.start(place).await;
        }
        self.until("every node serves", || self.places[..self.founders].iter().all(is_ready)).await?;
        let (node, _) = self.places[0].node().ok_or("no node")?;
        self.choose_keys(&node)?;
        self.network.set_weather(self.weather);
        Ok(())
    }

    /// One to three keys, whose slots the first node to join would get; in every other world all of one slot.
    fn choose_keys(&self, node: &Node) -> Result<(), String> {
        let cluster = node.identity().cluster.ok_or("it serves and has no cluster")?;
        let slot = |key: &Key| key.token(TokenSeed::of(cluster)).slot();
        let one_slot = self.random.below(2) == 0;
        let count = self.random.between(1, 3) as usize;
        let wandering = self.topology().map(|topology| wandering(self.seed, &topology)).unwrap_or_default();
        let mut all: Vec<Key> = Vec::new();
        for key in (0..).filter_map(|n| Key::new(format!("key{n}")).ok()) {
            if all.len() == count {
                break;
            }
            let fits = !one_slot || all.first().is_none_or(|first| slot(first) == slot(&key));
            if fits && (wandering.is_empty() || wandering.contains(&slot(&key))) {
                all.push(key);
            }
        }
        let keys = Keys { slots: all.iter().map(|key| (key.clone(), slot(key))).collect(), all };
        for place in &self.places {
            *place.disk.watched.lock() = keys.slots.values().copied().collect();
        }
        self.keys.set(keys).map_err(|_| "founded twice".to_owned())
    }

    /// None before there is a cluster.
    pub(crate) fn keys(&self) -> &[Key] {
        self.keys.get().map_or(&[], |keys| &keys.all)
    }

    /// Those that keep the key, and those that kept it before while it moves, by the newest topology on any disk.
    pub(crate) fn write_sets(&self, key: &Key) -> Vec<Vec<NodeNum>> {
        let Some((topology, slot)) = self.topology().zip(self.keys.get().and_then(|keys| keys.slots.get(key))) else {
            return Vec::new();
        };
        let sets = [topology.replicas_before(*slot), Some(topology.home_replicas(*slot))];
        sets.into_iter().flatten().map(<[NodeNum]>::to_vec).collect()
    }

    /// Those of all sets.
    pub(crate) fn homes(&self, key: &Key) -> BTreeSet<NodeNum> {
        self.write_sets(key).into_iter().flatten().collect()
    }

    pub(crate) fn wiped(&self) -> Option<NodeNum> {
        *self.wiped.lock()
    }

    /// The disk of a node that is down loses everything, and what the node promised is owed no more. At most one in a
    /// world, and only where a majority of each key's home replicas stays.
    pub(crate) fn wipe(&self, place: &Place, identity_too: bool, restored: Option<u64>) {
        self.trace.note(format_args!("the disk of {} is wiped, its identity too: {identity_too}", place.number));
        place.disk.wipe(identity_too, restored);
        self.owe_one_copy_less(place.number);
    }

    /// What that node promised is owed no more.
    pub(crate) fn owe_one_copy_less(&self, of: NodeNum) {
        *self.wiped.lock() = Some(of);
        *self.lost_at.lock() = Some(self.tick());
        self.promised.lock().retain(|(node, _), _| *node != of);
    }

    /// While the number of copies changes the lesser one counts.
    pub(crate) fn may_wipe(&self, place: &Place) -> bool {
        let Some(topology) = self.topology().filter(|topology| topology.member(place.number).is_some()) else {
            return false;
        };
        let copies = topology.moving.as_ref().map_or(topology.rf, |moving| moving.rf.min(topology.rf));
        copies >= 3 && self.wiped().is_none() && self.predecessor.is_none()
    }

    /// A client was told that these nodes have it on disk.
    pub(crate) fn promise(&self, acked: &[NodeNum], key: &Key, version: Version) {
        let mut promised = self.promised.lock();
        for node in acked.iter().filter(|n| Some(**n) != self.wiped()) {
            let most = promised.entry((*node, key.clone())).or_default();
            *most = version.max(*most);
        }
    }

    /// After a crash: what was acknowledged is there.
    fn check_promises(&self, place: &Place) {
        if self.changes() {
            // It may have given the slot up since.
            return;
        }
        for ((node, key), version) in self.promised.lock().iter().filter(|((n, _), _)| *n == place.number) {
            if self.held(place, key, false) < Some(*version) {
                let lost = format!("{node} acknowledged {version:?} of {key:?}, and its disk has lost it in a crash");
                self.broken.lock().push(lost);
            }
        }
    }

    fn held(&self, place: &Place, key: &Key, hints: bool) -> Option<Version> {
        let slot = self.keys.get().and_then(|keys| keys.slots.get(key))?;
        place.disk.version(*slot, key, hints)
    }

    /// What the home replicas' disks hold of a key, without one that was wiped and is not whole again.
    pub(crate) fn copies(&self, key: &Key) -> Vec<Option<Version>> {
        self.copies_of(key, &self.homes(key))
    }

    fn copies_of(&self, key: &Key, homes: &BTreeSet<NodeNum>) -> Vec<Option<Version>> {
        let wiped = self.wiped();
        let is_home = |p: &&Place| homes.contains(&p.number) && self.is_member(p);
        let kept = self.places.iter().filter(is_home).filter(|p| Some(p.number) != wiped || p.disk.is_whole());
        kept.map(|place| self.held(place, key, false)).collect()
    }

    fn are_equal(&self, key: &Key) -> bool {
        let copies = self.copies(key);
        copies.iter().all(|copy| Some(copy) == copies.first())
    }

    /// How many home replicas a key has, wiped ones too.
    pub(crate) fn replicas(&self, key: &Key) -> usize {
        self.homes(key).len()
    }

    /// The greatest version such that a majority of the home replicas' disks hold it or something newer: of each set, while
    /// the key's slot moves.
    pub(crate) fn settled(&self, key: &Key) -> Option<Version> {
        let sets = self.write_sets(key).into_iter().map(BTreeSet::from_iter);
        let of_each = sets.map(|set| {
            let mut copies = self.copies_of(key, &set);
            copies.sort_unstable_by(|a, b| b.cmp(a));
            copies.get(majority(set.len()) - 1).copied().flatten()
        });
        of_each.min().flatten()
    }

    /// The greatest version that a floor of the key's slot names, on any disk.
    pub(crate) fn floor(&self, key: &Key) -> Version {
        let slot = self.keys.get().and_then(|keys| keys.slots.get(key));
        let floors = slot.into_iter().flat_map(|slot| self.places.iter().map(|place| place.disk.floor(*slot)));
        floors.max().unwrap_or_default()
    }

    /// The next place in the order of events.
    pub(crate) fn tick(&self) -> u64 {
        let now = self.history.tick();
        *self.witness.now.lock() = now;
        now
    }

    /// How many disks hold that version of a key or something newer, as a copy or a hint. One that another one has the place of
    /// counts for nothing.
    pub(crate) fn disks_with(&self, key: &Key, version: Version) -> usize {
        let counts = |place: &&Place| self.predecessor != Some(place.number) || self.is_member(place);
        self.places.iter().filter(counts).filter(|place| self.held(place, key, true) >= Some(version)).count()
    }

    /// All faults end, all nodes come up, and hints are delivered.
    pub(crate) async fn heal(&self) -> Result<(), String> {
        self.trace.note("healing");
        self.network.set_weather(Weather::default());
        for place in &self.places {
            place.disk.set_full(false);
            // What is stamped too far ahead of a replica's clock is refused until that has caught up.
            place.clock.set_right();
        }
        self.bring_back().await?;
        // Who was about to be replaced may have been, and its successor fetches its slots.
        let settled = || self.is_settled() && self.all_ready();
        self.until("every change of the topology ends, every member knows, and serves", settled).await?;
        // What was under way when the faults ended, hints left behind too.
        sleep(Duration::from_secs(3)).await;
        self.until("every hint is delivered", || self.hints() == 0).await?;
        self.until("all copies are equal, though nobody reads", || self.keys().iter().all(|k| self.are_equal(k)))
            .await?;
        sleep(Duration::from_secs(1)).await;
        if self.grace.is_some() {
            self.until("tombstones are purged, and registers without a record", || self.to_be_purged() == 0).await?;
            self.until("all copies are still equal", || self.keys().iter().all(|k| self.are_equal(k))).await?;
        }
        Ok(())
    }

    /// Those of its keys.
    pub(crate) fn slots(&self) -> BTreeSet<Slot> {
        self.keys.get().into_iter().flat_map(|keys| keys.slots.values().copied()).collect()
    }

    fn to_be_purged(&self) -> u64 {
        let slots = self.slots();
        let members = self.member_places();
        members.iter().flat_map(|place| slots.iter().map(|slot| place.disk.to_be_purged(*slot))).sum()
    }

    /// Starts members until they serve, as whoever supervises them would: a node whose disk was lost is another instance under
    /// an old number, and exits while the members hold the old one to be alive.
    async fn bring_back(&self) -> Result<(), String> {
        let again = async {
            while !self.all_ready() {
                for place in self.member_places().into_iter().filter(|place| place.node().is_none()) {
                    self.start(place).await;
                }
                sleep(Duration::from_millis(500)).await;
            }
        };
        timeout(PATIENCE, again).await.map_err(|_| format!("not within {PATIENCE:?}: every member serves again"))
    }

    /// Whether this node's clock was never off by more than is allowed.
    pub(crate) fn clocks_are_near(&self) -> bool {
        self.clock_skew_max > Duration::from_secs(60)
    }

    /// Hints that somebody may ask to be given.
    fn hints(&self) -> u64 {
        self.member_places().iter().map(|p| p.disk.hints()).sum()
    }

    /// One that was removed on the way, and does not know, comes to know.
    fn all_ready(&self) -> bool {
        self.member_places().into_iter().all(is_ready)
    }

    async fn until(&self, what: &str, done: impl Fn() -> bool) -> Result<(), String> {
        let wait = async {
            while !done() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, wait).await.map_err(|_| format!("not within {PATIENCE:?}: {what}"))
    }

    pub(crate) fn close(&self) {
        self.life.end();
        for place in &self.places {
            if let Some((_, life)) = place.life.lock().take() {
                life.end();
            }
        }
        self.network.close();
    }
}

fn is_ready(place: &Place) -> bool {
    place.node().is_some_and(|(node, _)| node.readiness().ready)
}
