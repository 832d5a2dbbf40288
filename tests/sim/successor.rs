//! A member that is cut off until another instance was given its place, and that comes back.
//!
//! The successor is a machine of its own with an empty disk, at an address of its own. It is let in once the members have held
//! the old instance to be down for a minute, and then there are two of one number, until the old one hears of it and ends.
//! What would go wrong goes wrong in between: the clients are quiet in the minute before, and ask the two in every other case then.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use a3::ports::Entropy;
use a3::types::NodeNum;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::clients::Client;
use crate::faults::cut;
use crate::history::Operation;
use crate::machine::Seeded;
use crate::world::{Place, World};

const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A successor that was told that the old instance lives is started again after this long.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// A successor has fetched its slots by then.
const WHOLE_WITHIN_MS: u64 = 15_000;
/// The number by which the history knows who asks both.
const CLIENT: usize = 91;
/// A write and a read each.
const PAIRS_MAX: usize = 30;
/// How long the old one is asked.
const TOGETHER: Duration = Duration::from_secs(6);

/// Which of so many founders gets a successor, where one does.
pub(crate) fn predecessor(seed: u64, founders: u16) -> Option<NodeNum> {
    let random = Seeded::new(seed, 25);
    (random.below(12) == 0).then(|| NodeNum(random.between(1, founders.into()) as u16))
}

impl World {
    /// Whether the place is the member's of its number: of two, it is the one that the topology lists.
    pub(crate) fn is_member(&self, place: &Place) -> bool {
        let topology = self.topology();
        let member = topology.as_ref().and_then(|topology| topology.member(place.number));
        member.is_some_and(|m| self.predecessor != Some(place.number) || m.instance == place.disk.instance())
    }

    /// The places of the number that gets a successor where somebody lives: two, while both do.
    pub(crate) fn rivals_for_a_place(&self) -> Vec<usize> {
        let lives = |place: &Place| self.predecessor == Some(place.number) && place.node().is_some();
        (0..self.places.len()).filter(|at| lives(&self.places[*at])).collect()
    }

    /// How many copies of what was acknowledged so nobody owes: of what was told before the disk was lost, or begun when its
    /// successor was whole, none.
    pub(crate) fn forgiven(&self, operation: &Operation) -> usize {
        let owed = self.lost_at.lock().is_none_or(|at| operation.ended < at);
        let whole = self.whole_since.lock().is_some_and(|since| since < operation.began);
        usize::from(!owed && !whole)
    }

    /// How long a node that has been replaced takes to go, where two of its number live: requests that it was sent are carried out.
    pub(crate) fn lingers(&self, place: &Place) -> Option<Duration> {
        let lasts = Duration::from_millis(Seeded::new(self.seed, 27).below(3_000));
        (self.predecessor == Some(place.number)).then_some(lasts)
    }
}

/// One member is cut off, another instance comes for its place and gets it, and after a while the cut is mended.
pub(crate) async fn succeed(world: Arc<World>, until: Instant) {
    let mut of_number = world.places.iter().filter(|place| Some(place.number) == world.predecessor);
    let (Some(old), Some(new)) = (of_number.next(), of_number.next()) else { return };
    let random = Seeded::new(world.seed, 26);
    sleep(Duration::from_millis(random.below(3_000))).await;
    let others: Vec<_> = world.places.iter().map(|p| p.socket).filter(|socket| *socket != old.socket).collect();
    let pairs = others.iter().flat_map(|other| [(old.socket, *other), (*other, old.socket)]);
    let links: BTreeSet<_> = pairs.collect();
    // In every other world it hears from nobody, and somebody from it, or the other way round, once it is replaced.
    let one_way: BTreeSet<_> = match random.below(4) {
        0 => links.iter().copied().filter(|(from, _)| *from == old.socket).collect(),
        1 => links.iter().copied().filter(|(_, to)| *to == old.socket).collect(),
        _ => BTreeSet::new(),
    };
    let mended = Notify::new();
    let one_way_for = Duration::from_millis(random.below(2_000));
    let cuts = cut(&world, &one_way, async {
        cut(&world, &links, replaced(&world, new, &random, until)).await;
        mended.notify_one();
        sleep(one_way_for).await;
    });
    tokio::join!(cuts, async {
        mended.notified().await;
        both(&world, old, random.clone()).await;
    });
}

/// While the old one is there: what is written elsewhere is asked of it at once, and the other way round.
async fn both(world: &Arc<World>, old: &Place, random: Arc<Seeded>) {
    let places = 0..world.places.len();
    let Some(at) = places.clone().find(|at| world.places[*at].socket == old.socket) else { return };
    let elsewhere: Vec<usize> = places.filter(|other| *other != at).collect();
    let mut client = Client::new(world, CLIENT, random.clone());
    let ends = Instant::now() + TOGETHER;
    let mut pairs = 0;
    while Instant::now() < ends && pairs < PAIRS_MAX && !world.is_member(old) {
        sleep(Duration::from_millis(random.between(10, 200))).await;
        if old.node().is_none() {
            // It has gone, or crashed and comes back.
            continue;
        }
        pairs += 1;
        world.history.count("succession: both were asked");
        let other = *random.pick(&elsewhere);
        let (writes, reads) = if random.below(3) > 0 { (other, at) } else { (at, other) };
        client.write(writes).await;
        client.read(reads).await;
    }
}

/// Ends when the newcomer is a member, or a moment later.
async fn replaced(world: &World, new: &Place, random: &Seeded, until: Instant) {
    sleep(Duration::from_millis(random.below(4_000))).await;
    world.shared.set_quiet(true);
    world.owe_one_copy_less(new.number);
    let mut started = None;
    while !world.is_member(new) && Instant::now() < until {
        if new.node().is_none() && started.is_none_or(|at: Instant| at.elapsed() > AGAIN_AFTER) {
            world.start(new).await;
            started = Some(Instant::now());
        }
        sleep(LOOK_EVERY).await;
    }
    world.shared.set_quiet(false);
    if world.is_member(new) {
        world.trace.note(format_args!("{} has the place", new.socket));
        world.history.count("succession: another instance had the place of one that lived");
    }
    // Mostly both are whole then: a copy that is still fetched counts for nothing.
    let waits = Duration::from_millis(*random.pick(&[0, 1_000, WHOLE_WITHIN_MS, WHOLE_WITHIN_MS]));
    let waits_until = until.min(Instant::now() + waits);
    while !new.disk.is_whole() && Instant::now() < waits_until {
        sleep(LOOK_EVERY).await;
    }
    *world.whole_since.lock() = (world.is_member(new) && new.disk.is_whole()).then(|| world.tick());
}
