//! Members that hear late of an epoch: one or two are cut off just when it begins, and go on under the one before.
//!
//! What would go wrong then does so between two requests: one that is carried out under the older epoch, and one under the
//! newer that should know of it. Other clients' requests in between hide it, or mend it. So both are asked here, at the right
//! moments, and in most worlds that have changes the other clients ask seldom.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use a3::ports::Entropy;
use tokio::time::{Instant, sleep};

use crate::clients::Client;
use crate::faults::cut;
use crate::machine::Seeded;
use crate::world::World;

/// How soon after an epoch is on a disk somebody is cut off.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// The number by which the history knows who asks.
const CLIENT: usize = 90;

/// Milliseconds that the other clients wait at most after each request, in that world; `None`: as in others.
pub(crate) fn pause_ms(seed: u64) -> Option<u64> {
    (Seeded::new(seed, 23).below(3) > 0).then_some(3_000)
}

/// Until the time is up.
pub(crate) async fn hearers(world: Arc<World>, until: Instant) {
    let random = Seeded::new(world.seed, 21);
    let mut client = Client::new(&world, CLIENT, random.clone());
    let mut known = world.topology().map(|topology| topology.epoch);
    while Instant::now() < until {
        sleep(LOOK_EVERY).await;
        let Some(topology) = world.topology().filter(|topology| Some(topology.epoch) != known) else { continue };
        known = Some(topology.epoch);
        if random.below(2) == 0 {
            continue;
        }
        let many = world.places.len() as u64;
        let late: BTreeSet<usize> = (0..random.between(1, 2)).map(|_| random.below(many) as usize).collect();
        let at = *random.pick(&Vec::from_iter(late.iter().copied()));
        let elsewhere = (at + random.between(1, many - 1) as usize) % many as usize;
        let ends = Instant::now() + Duration::from_millis(*random.pick(&[100, 300, 1_000, 3_000]));
        tokio::join!(cut_off(&world, &late, ends.min(until)), async {
            client.write(elsewhere).await;
            client.read(at).await;
        });
        client.write(at).await;
        while Instant::now() < until && world.topology().is_some_and(|topology| topology.moving.is_some()) {
            sleep(LOOK_EVERY).await;
        }
        client.read(elsewhere).await;
    }
}

async fn cut_off(world: &World, late: &BTreeSet<usize>, ends: Instant) {
    let number = |at: &usize| world.places[*at].number;
    let others = (0..world.places.len()).filter(|at| !late.contains(at));
    let pairs = others.flat_map(|other| late.iter().map(move |late| (number(late), number(&other))));
    let links: BTreeSet<_> = pairs.flat_map(|(a, b)| [(a, b), (b, a)]).collect();
    cut(world, &links, ends).await;
}
