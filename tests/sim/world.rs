//! One seed's world: its nodes with their machines, disks and network, how it comes to be, and what may befall it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use a3::node::{Node, Options, Ports};
use a3::ports::{Entropy, PeerHandler, Spawn};
use a3::types::{Key, NodeNum, Version, majority};
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

use crate::disk::{Disk, SimStore};
use crate::history::{History, Witness};
use crate::machine::{Life, Seeded, SimClock, Trace};
use crate::network::{Network, SimPeers, Weather, address};

/// A start, and the healing at the end, must be done within this (virtual) time.
const PATIENCE: Duration = Duration::from_secs(120);

/// One node's place: what stays through its lives, and the life it has.
pub(crate) struct Place {
    pub(crate) number: NodeNum,
    pub(crate) disk: Arc<Disk>,
    clock: Arc<SimClock>,
    life: Mutex<Option<(Arc<Node>, Arc<Life>)>>,
    lives: Mutex<u64>,
}

impl Place {
    /// The node and its life, while it is up.
    pub(crate) fn node(&self) -> Option<(Arc<Node>, Arc<Life>)> {
        self.life.lock().clone()
    }
}

pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) rf: u8,
    pub(crate) keys: Vec<Key>,
    pub(crate) places: Vec<Place>,
    pub(crate) network: Arc<Network>,
    pub(crate) random: Arc<Seeded>,
    pub(crate) trace: Arc<Trace>,
    pub(crate) history: History,
    pub(crate) witness: Arc<Witness>,
    /// The home replicas of each key.
    homes: OnceLock<BTreeMap<Key, Vec<NodeNum>>>,
    /// Up to which version each node has acknowledged each key to somebody who was told so.
    promised: Mutex<BTreeMap<(NodeNum, Key), Version>>,
    /// What was found wrong on the way.
    pub(crate) broken: Mutex<Vec<String>>,
    /// Tasks of clients and faults.
    pub(crate) life: Arc<Life>,
    weather: Weather,
}

impl World {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        let random = Seeded::new(seed, 0);
        let trace = Trace::new();
        let witness = Arc::new(Witness::default());
        let nodes = random.between(3, 5) as u16;
        let rf = random.between(1, 3) as u8;
        let keys = (0..random.between(1, 3)).filter_map(|n| Key::new(format!("key{n}")).ok()).collect();
        let skew_ms = *random.pick(&[0, 50, 500, 4_000]);
        let sync_ms = *random.pick(&[1, 4, 40]);
        let place = |n: u16| {
            let off_ms = random.between(0, 2 * skew_ms) as i64 - skew_ms as i64;
            Place {
                number: NodeNum(n),
                disk: Disk::new(
                    NodeNum(n),
                    sync_ms,
                    Seeded::new(seed, 100 + u64::from(n)),
                    witness.clone(),
                    trace.clone(),
                ),
                clock: SimClock::new(off_ms),
                life: Mutex::default(),
                lives: Mutex::default(),
            }
        };
        let places: Vec<Place> = (1..=nodes).map(place).collect();
        let rough = random.per_mille(700);
        let weather = Weather {
            lost: if rough { *random.pick(&[0, 5, 30]) } else { 0 },
            doubled: *random.pick(&[0, 20, 100]),
            late: *random.pick(&[0, 20, 100]),
            late_ms: *random.pick(&[50, 300, 2_000]),
        };
        let network = Network::new(Seeded::new(seed, 1), trace.clone());
        trace.note(format_args!(
            "{nodes} nodes, rf {rf}, clocks within {skew_ms} ms, syncs within {sync_ms} ms, {weather:?}"
        ));
        let (history, life) = (History::default(), Life::new());
        Arc::new(Self {
            seed,
            rf,
            keys,
            places,
            network,
            random,
            trace,
            history,
            witness,
            homes: OnceLock::new(),
            promised: Mutex::default(),
            broken: Mutex::default(),
            life,
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
        self.trace.note(format_args!("{} starts", place.number));
        self.check_promises(place);
        let options = Options {
            seeds: self.places.iter().map(|p| address(p.number)).collect(),
            cluster_size: self.places.len() as u16,
            rf: self.rf,
            zone: None,
            weight: 1,
            mesh_address: address(place.number),
            http_address: format!("10.0.0.{}:8000", place.number.0),
            gossip_interval: Duration::from_secs(1),
            clock_skew_max: Duration::from_secs(300),
            value_bytes_max: 1024,
            hint_window: Duration::from_secs(3600),
        };
        let ports = Ports {
            peers: SimPeers::new(&self.network, place.number, &life),
            store: SimStore::open(place.disk.clone(), place.clock.clone(), life.clone()),
            clock: place.clock.clone(),
            entropy: Seeded::new(self.seed, u64::from(place.number.0) << 32 | lives),
            spawn: life.clone(),
        };
        let node = Node::start(options, ports).await.expect("the simulated store always opens");
        let handler: Arc<dyn PeerHandler> = node.clone();
        self.network.plug(place.number, handler, life.clone());
        let (joining, trace, number) = (node.clone(), self.trace.clone(), place.number);
        let join = async move {
            match joining.join().await {
                Ok(()) => trace.note(format_args!("{number} serves")),
                Err(error) => trace.note(format_args!("{number} cannot start: {error}")),
            }
        };
        life.spawn(join.boxed());
        *place.life.lock() = Some((node, life));
    }

    /// The node dies, between two of its steps.
    pub(crate) fn crash(&self, place: &Place) {
        if let Some((_, life)) = place.life.lock().take() {
            self.trace.note(format_args!("{} crashes", place.number));
            life.end();
            self.network.unplug(place.number);
        }
    }

    /// From nothing to a cluster that serves.
    pub(crate) async fn found(&self) -> Result<(), String> {
        for place in &self.places {
            self.start(place).await;
        }
        self.until("every node serves", || self.all_ready()).await?;
        let (node, _) = self.places[0].node().ok_or("no node")?;
        let homes = |key: &Key| node.placement(key).map(|p| (key.clone(), p.home_replicas));
        self.homes.get_or_init(|| self.keys.iter().filter_map(homes).collect());
        self.network.set_weather(self.weather);
        Ok(())
    }

    /// A client was told that these nodes have it on disk.
    pub(crate) fn promise(&self, acked: &[NodeNum], key: &Key, version: Version) {
        let mut promised = self.promised.lock();
        for node in acked {
            let most = promised.entry((*node, key.clone())).or_default();
            *most = version.max(*most);
        }
    }

    /// After a crash: what was acknowledged is there.
    fn check_promises(&self, place: &Place) {
        let content = place.disk.content.lock();
        for ((node, key), version) in self.promised.lock().iter().filter(|((n, _), _)| *n == place.number) {
            if content.records.get(key).is_none_or(|r| r.version < *version) {
                let lost = format!("{node} acknowledged {version:?} of {key:?}, and its disk has lost it in a crash");
                self.broken.lock().push(lost);
            }
        }
    }

    /// What the home replicas' disks hold of a key.
    pub(crate) fn copies(&self, key: &Key) -> Vec<Option<Version>> {
        let homes = self.homes.get().map_or(&[][..], |homes| &homes[key]);
        let held = |place: &Place| place.disk.content.lock().records.get(key).map(|r| r.version);
        self.places.iter().filter(|p| homes.contains(&p.number)).map(held).collect()
    }

    /// The greatest version such that a majority of the home replicas' disks hold it or something newer.
    pub(crate) fn settled(&self, key: &Key) -> Option<Version> {
        let mut copies = self.copies(key);
        copies.sort_unstable_by(|a, b| b.cmp(a));
        copies[majority(copies.len()) - 1]
    }

    /// How many disks hold that version of a key or something newer, as a copy or a hint.
    pub(crate) fn disks_with(&self, key: &Key, version: Version) -> usize {
        let holds = |place: &&Place| {
            let content = place.disk.content.lock();
            let mut hints = content.hints.values().filter(|h| h.key == *key);
            let copy = content.records.get(key).is_some_and(|r| r.version >= version);
            copy || hints.any(|h| h.record.version >= version)
        };
        self.places.iter().filter(holds).count()
    }

    /// All faults end, all nodes come up, and hints are delivered.
    pub(crate) async fn heal(&self) -> Result<(), String> {
        self.trace.note("healing");
        self.network.set_weather(Weather::default());
        for place in &self.places {
            if place.node().is_none() {
                self.start(place).await;
            }
        }
        self.until("every node serves again", || self.all_ready()).await?;
        // What was under way when the faults ended, hints left behind too.
        sleep(Duration::from_secs(3)).await;
        self.until("every hint is delivered", || self.hints() == 0).await?;
        sleep(Duration::from_secs(1)).await;
        Ok(())
    }

    pub(crate) fn hints(&self) -> usize {
        self.places.iter().map(|p| p.disk.content.lock().hints.len()).sum()
    }

    fn all_ready(&self) -> bool {
        self.places.iter().all(|p| p.node().is_some_and(|(node, _)| node.readiness().ready))
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

/// Faults, one after the other and over each other, until the time is up. Then all of them end.
pub(crate) async fn faults(world: Arc<World>, until: Instant) {
    let random = Seeded::new(world.seed, 2);
    // Some seeds are calm.
    let pause_ms = *random.pick(&[80, 300, 600, 1_500, 1_000_000]);
    loop {
        sleep(Duration::from_millis(random.between(1, pause_ms))).await;
        if Instant::now() >= until {
            return;
        }
        let lasts = Duration::from_millis(*random.pick(&[30, 200, 1_000, 4_000]))
            .mul_f64(random.between(50, 150) as f64 / 100.0);
        let ends = (Instant::now() + lasts).min(until);
        let at = random.below(world.places.len() as u64) as usize;
        let what = random.below(10);
        let fault = fault(world.clone(), what, at, ends, random.u64());
        world.life.spawn(fault.boxed());
    }
}

async fn fault(world: Arc<World>, what: u64, at: usize, ends: Instant, chance: u64) {
    let place = &world.places[at];
    let me = place.number;
    let (trace, network) = (&world.trace, &world.network);
    match what {
        0..=3 => {
            let all = chance.is_multiple_of(8);
            let victims: Vec<&Place> = world.places.iter().filter(|p| all || p.number == me).collect();
            let up: Vec<&Place> = victims.into_iter().filter(|p| p.node().is_some()).collect();
            up.iter().for_each(|p| world.crash(p));
            tokio::time::sleep_until(ends).await;
            for place in up {
                world.start(place).await;
            }
        }
        4..=6 => {
            let numbers: Vec<NodeNum> = world.places.iter().map(|p| p.number).collect();
            let side = |n: NodeNum| chance >> n.0 & 1 == 1;
            let one_way = what == 6;
            let crosses = |a: NodeNum, b: NodeNum| side(a) && !side(b) || !one_way && !side(a) && side(b);
            let pairs = numbers.iter().flat_map(|a| numbers.iter().map(move |b| (*a, *b)));
            let links: BTreeSet<_> = pairs.filter(|(a, b)| crosses(*a, *b)).collect();
            trace.note(format_args!("cut {links:?}"));
            network.cut(&links);
            tokio::time::sleep_until(ends).await;
            trace.note(format_args!("mended {links:?}"));
            network.mend(&links);
        }
        7..=8 => {
            trace.note(format_args!("{me} hangs for {:?}", ends - Instant::now()));
            network.hang(me, ends);
        }
        _ => {
            let by_ms = (chance % 6_000) as i64 - 3_000;
            trace.note(format_args!("the clock of {me} steps by {by_ms} ms"));
            place.clock.step(by_ms);
        }
    }
}
