//! What may befall a world while its clients are at work: drawn from the seed, one after the other and over each other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use a3::ports::{Entropy, Spawn};
use futures_util::FutureExt;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::machine::Seeded;
use crate::network::Socket;
use crate::world::{Place, World};

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The process dies, and is started again when the fault ends.
    Crash,
    /// All of them at once.
    PowerLoss,
    /// It dies and is back at once, with its clock set back meanwhile.
    Restart,
    /// It dies after its next batch is on disk, and before that is answered.
    CrashBeforeAnswer,
    /// Nothing passes between two groups of nodes.
    Cut,
    /// Nothing passes in one direction.
    CutOneWay,
    /// Its messages are held back, both ways.
    Hang,
    /// Its clock is set.
    Step,
    /// Its clock runs faster or slower.
    Drift,
    /// Its disk takes no writes.
    Full,
    /// It dies, and its disk loses everything.
    Wipe,
}

/// How often each is drawn.
const FAULTS: [(Fault, u64); 11] = [
    (Fault::Crash, 8),
    (Fault::PowerLoss, 2),
    (Fault::Restart, 3),
    (Fault::CrashBeforeAnswer, 4),
    (Fault::Cut, 6),
    (Fault::CutOneWay, 3),
    (Fault::Hang, 6),
    (Fault::Step, 2),
    (Fault::Drift, 1),
    (Fault::Full, 2),
    (Fault::Wipe, 1),
];

fn draw(random: &Seeded) -> Fault {
    let mut at = random.below(FAULTS.iter().map(|(_, weight)| weight).sum());
    for (fault, weight) in FAULTS {
        if at < weight {
            return fault;
        }
        at -= weight;
    }
    Fault::Crash
}

/// Faults until the time is up. Then all of them end.
pub(crate) async fn faults(world: Arc<World>, until: Instant) {
    let random = Seeded::new(world.seed, 2);
    // Some seeds are calm.
    let pause_ms = *random.pick(&[100, 300, 600, 1_000, 2_000, 1_000_000]);
    loop {
        sleep(Duration::from_millis(random.between(1, pause_ms))).await;
        if Instant::now() >= until {
            return;
        }
        if world.predecessor.is_some() && world.shared.is_quiet() {
            // Who was down himself does not know who was down for a minute.
            continue;
        }
        let lasts = Duration::from_millis(*random.pick(&[30, 100, 300, 1_000, 3_000]))
            .mul_f64(random.between(50, 150) as f64 / 100.0);
        let ends = (Instant::now() + lasts).min(until);
        let at = random.below(world.places.len() as u64) as usize;
        let fault = befall(world.clone(), draw(&random), at, ends, random.u64());
        world.life.spawn(fault.boxed());
    }
}

async fn befall(world: Arc<World>, fault: Fault, at: usize, ends: Instant, chance: u64) {
    let place = &world.places[at];
    let (me, trace) = (place.socket, &world.trace);
    let one = std::slice::from_ref(place);
    match fault {
        Fault::Crash => crash(&world, one, ends).await,
        Fault::PowerLoss => crash(&world, &world.places, ends).await,
        Fault::Restart => {
            place.clock.step(-((chance % 8_000) as i64));
            crash(&world, one, Instant::now() + Duration::from_millis(chance % 50)).await;
        }
        Fault::CrashBeforeAnswer => {
            if timeout_at(ends, place.disk.synced.notified()).await.is_ok() {
                crash(&world, one, ends.min(Instant::now() + Duration::from_millis(chance % 500))).await;
            }
        }
        Fault::Cut => cut(&world, &between_groups(&world, chance, false), sleep_until(ends)).await,
        Fault::CutOneWay => cut(&world, &between_groups(&world, chance, true), sleep_until(ends)).await,
        Fault::Hang => {
            trace.note(format_args!("{me} hangs for {:?}", ends - Instant::now()));
            world.network.hang(me, ends);
        }
        Fault::Step => {
            let by_ms = (chance % 6_000) as i64 - 3_000;
            trace.note(format_args!("the clock of {me} steps by {by_ms} ms"));
            place.clock.step(by_ms);
        }
        Fault::Drift => {
            let gains_ms = (chance % 400) as i64 - 200;
            trace.note(format_args!("the clock of {me} gains {gains_ms} ms a second"));
            place.clock.drift(gains_ms);
        }
        Fault::Full => {
            trace.note(format_args!("the disk of {me} is full"));
            place.disk.set_full(true);
            sleep_until(ends).await;
            trace.note(format_args!("the disk of {me} has room"));
            place.disk.set_full(false);
        }
        Fault::Wipe if world.may_wipe(place) => {
            world.crash(place);
            // Of those that know whose they were, two of three come back with a backup.
            let backup = (!chance.is_multiple_of(3)).then_some(chance / 6);
            world.wipe(place, chance.is_multiple_of(2), backup);
            sleep_until(ends).await;
            if place.node().is_none() {
                world.start(place).await;
            }
        }
        Fault::Wipe => {}
    }
}

/// Those of them that are up die, and are started again when it ends.
async fn crash(world: &World, places: &[Place], ends: Instant) {
    let up: Vec<&Place> = places.iter().filter(|p| p.node().is_some()).collect();
    up.iter().for_each(|p| world.crash(p));
    sleep_until(ends).await;
    for place in up.into_iter().filter(|p| p.node().is_none()) {
        world.start(place).await;
    }
}

/// Whether two replicas are rivals in that world.
pub(crate) fn are_rivals(world: &World) -> bool {
    world.rf >= 3 && !world.changes() && world.predecessor.is_none() && Seeded::new(world.seed, 24).below(8) == 0
}

/// The first two home replicas of the first key do not reach each other, and both reach the rest: after some seconds, when neither is
/// connected to the other, both propose for the key.
pub(crate) async fn rivals(world: Arc<World>, until: Instant) {
    let set = world.keys().first().and_then(|key| world.write_sets(key).pop());
    if let Some([one, other, ..]) = set.as_deref() {
        let (one, other) = (Socket::of(*one), Socket::of(*other));
        cut(&world, &BTreeSet::from([(one, other), (other, one)]), sleep_until(until)).await;
    }
}

fn between_groups(world: &World, chance: u64, one_way: bool) -> BTreeSet<(Socket, Socket)> {
    let side = |at: usize| chance >> (at + 1) & 1 == 1;
    let crosses = |a: usize, b: usize| side(a) && !side(b) || !one_way && !side(a) && side(b);
    let all = 0..world.places.len();
    let pairs = all.clone().flat_map(|a| all.clone().map(move |b| (a, b)));
    pairs.filter(|(a, b)| crosses(*a, *b)).map(|(a, b)| (world.places[a].socket, world.places[b].socket)).collect()
}

/// Nothing passes from the one to the other meanwhile.
pub(crate) async fn cut(world: &World, links: &BTreeSet<(Socket, Socket)>, meanwhile: impl Future<Output = ()>) {
    world.trace.note(format_args!("cut {links:?}"));
    world.network.cut(links);
    meanwhile.await;
    world.trace.note(format_args!("mended {links:?}"));
    world.network.mend(links);
}
