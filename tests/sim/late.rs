//! Members that hear late of an epoch: one or two are cut off just when it begins, and go on under the one before.
//!
//! What would go wrong then does so between two requests: one that is carried out under the older epoch, and one under the
//! newer that should know of it. Both are asked here, at the right moments. Other clients' requests in between hide it, or mend
//! it: mostly they are quiet meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use a3::ports::Entropy;
use a3::types::{Key, NodeNum, Version};
use tokio::time::{Instant, sleep, sleep_until};

use crate::clients::Client;
use crate::faults::cut;
use crate::machine::Seeded;
use crate::world::World;

/// How soon after an epoch is on a disk somebody is cut off.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// How long somebody is cut off at most until the others have caught up.
const OVERTAKEN_WITHIN: Duration = Duration::from_secs(10);
/// The number by which the history knows who asks.
const CLIENT: usize = 90;

/// Until the time is up.
pub(crate) async fn hearers(world: Arc<World>, until: Instant) {
    let Some(key) = world.keys().first().cloned() else { return };
    let random = Seeded::new(world.seed, 21);
    let client = Client::new(&world, CLIENT, random.clone());
    Late { world, client, key, random, until }.run().await;
}

/// Who asks for the first key, at the right moments.
struct Late {
    world: Arc<World>,
    client: Client,
    key: Key,
    random: Arc<Seeded>,
    until: Instant,
}

impl Late {
    async fn run(mut self) {
        self.client.write(0).await;
        let mut known = self.world.topology().map(|topology| topology.epoch);
        let mut kept = None;
        while Instant::now() < self.until {
            sleep(LOOK_EVERY).await;
            let Some(topology) = self.world.topology().filter(|topology| Some(topology.epoch) != known) else {
                kept = self.world.settled(&self.key);
                continue;
            };
            known = Some(topology.epoch);
            let lacking = self.world.settled(&self.key) < kept;
            let drawn = self.random.below(6);
            match self.bystander() {
                _ if drawn == 0 => continue,
                Some(at) if lacking && drawn < 5 => {
                    self.world.shared.set_quiet(true);
                    self.overtaken(at, kept).await;
                }
                _ => {
                    self.world.shared.set_quiet(drawn > 2);
                    self.in_between().await;
                }
            }
            self.world.shared.set_quiet(false);
        }
    }

    /// One or two do not hear of the epoch for a while, and are asked meanwhile.
    async fn in_between(&mut self) {
        let (at, other) = (self.anywhere(), self.anywhere());
        let elsewhere = self.elsewhere(at);
        let ends = Instant::now() + Duration::from_millis(*self.random.pick(&[100, 300, 1_000, 3_000]));
        let late = BTreeSet::from([at, other]);
        let cut_off = cut_off(&self.world, &late, sleep_until(ends.min(self.until)));
        tokio::join!(cut_off, async {
            self.client.write(elsewhere).await;
            self.client.read(at).await;
        });
        self.client.write(at).await;
        self.ended().await;
        self.client.read(elsewhere).await;
    }

    /// One does not hear of the epoch until those that get the key hold what was kept of it before; then it is asked at once.
    async fn overtaken(&mut self, at: usize, kept: Option<Version>) {
        let ends = self.until.min(Instant::now() + OVERTAKEN_WITHIN);
        let world = &self.world;
        let overtaken = async {
            while Instant::now() < ends && world.settled(&self.key) < kept {
                sleep(LOOK_EVERY).await;
            }
        };
        cut_off(world, &BTreeSet::from([at]), overtaken).await;
        self.client.write(at).await;
        self.ended().await;
        self.client.read(self.elsewhere(at)).await;
    }

    /// The change under way has.
    async fn ended(&self) {
        let moves = || self.world.topology().is_some_and(|topology| topology.moving.is_some());
        while Instant::now() < self.until && moves() {
            sleep(LOOK_EVERY).await;
        }
    }

    fn anywhere(&self) -> usize {
        self.random.below(self.world.places.len() as u64) as usize
    }

    fn elsewhere(&self, at: usize) -> usize {
        let many = self.world.places.len() as u64;
        (at + self.random.between(1, many - 1) as usize) % many as usize
    }

    /// A member that neither kept the key nor will, so that nobody who does waits for it.
    fn bystander(&self) -> Option<usize> {
        let (members, homes) = (self.world.members(), self.world.homes(&self.key));
        let is_one = |number: &NodeNum| members.contains(number) && !homes.contains(number);
        let all = (0..self.world.places.len()).filter(|at| is_one(&self.world.places[*at].number));
        let all = Vec::from_iter(all);
        (!all.is_empty()).then(|| *self.random.pick(&all))
    }
}

/// Nothing passes between these and the others meanwhile.
async fn cut_off(world: &World, late: &BTreeSet<usize>, meanwhile: impl Future<Output = ()>) {
    let socket = |at: &usize| world.places[*at].socket;
    let others = (0..world.places.len()).filter(|at| !late.contains(at));
    let pairs = others.flat_map(|other| late.iter().map(move |late| (socket(late), socket(&other))));
    let links: BTreeSet<_> = pairs.flat_map(|(a, b)| [(a, b), (b, a)]).collect();
    cut(world, &links, meanwhile).await;
}
