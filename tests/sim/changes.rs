//! Changes of the topology: nodes join, members leave, weights, zones and the number of copies become others, and some changes are
//! taken back on the way, while clients and faults are at work.
//!
//! Who was a member once and is none any more comes back with an empty disk, or not at all.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use a3::node::Node;
use a3::ports::Entropy;
use a3::protocol::succession::change::{Wish, begin};
use a3::types::{Announcement, InstanceId, NodeNum, Slot, Topology};
use tokio::time::{Instant, sleep, timeout};

use crate::machine::Seeded;
use crate::world::{Place, World};

/// How long a member may take to say whether a change has begun.
const PATIENCE: Duration = Duration::from_secs(15);

/// Nodes beside the founders, in the worlds that have changes.
pub(crate) fn outsiders(seed: u64) -> u16 {
    let random = Seeded::new(seed, 8);
    if random.below(4) == 0 { random.between(1, 2) as u16 } else { 0 }
}

/// How many copies a world that has changes begins with. Few show most of what goes wrong: less stands in for it.
pub(crate) fn copies(seed: u64) -> Option<u8> {
    (outsiders(seed) > 0).then(|| *Seeded::new(seed, 22).pick(&[1, 1, 1, 2, 2, 3, 3, 5]))
}

/// The slots that the first node to join would get, where there is one: what moves there is of interest.
pub(crate) fn wandering(seed: u64, topology: &Topology) -> BTreeSet<Slot> {
    let number = topology.members.len() as u16 + 1;
    let newcomer = Announcement {
        node: NodeNum(number),
        instance: InstanceId(Seeded::new(seed, 8).uuid()),
        zone: zone(seed, number),
        weight: 1,
        mesh_address: String::new(),
        http_address: String::new(),
        cluster_size: 1,
        rf: topology.rf,
    };
    let after = (outsiders(seed) > 0).then(|| begin(topology, &Wish::Join(newcomer))).and_then(Result::ok);
    after.iter().flat_map(Topology::moving_slots).collect()
}

/// Where a node of that number stands in the beginning. In some worlds nobody says.
pub(crate) fn zone(seed: u64, number: u16) -> Option<String> {
    let zones = Seeded::new(seed, 20).below(4) as u16;
    (outsiders(seed) > 0 && zones > 1).then(|| format!("z{}", number % zones))
}

impl World {
    /// The newest topology on any disk.
    pub(crate) fn topology(&self) -> Option<Arc<Topology>> {
        self.places.iter().filter_map(|place| place.disk.topology()).max_by_key(|topology| topology.epoch)
    }

    /// Whether the topology changes in this world.
    pub(crate) fn changes(&self) -> bool {
        outsiders(self.seed) > 0
    }

    /// The members, by the newest topology on any disk.
    pub(crate) fn members(&self) -> Vec<NodeNum> {
        self.topology().map(|topology| topology.members.iter().map(|m| m.node).collect()).unwrap_or_default()
    }

    /// The places of members.
    pub(crate) fn member_places(&self) -> Vec<&Place> {
        self.places.iter().filter(|place| self.is_member(place)).collect()
    }

    /// The places of nodes that are down, and no members.
    fn outside(&self) -> Vec<&Place> {
        let members = self.members();
        self.places.iter().filter(|p| !members.contains(&p.number) && p.node().is_none()).collect()
    }

    /// The disk of a node that is down, and no member, is emptied: it comes back as somebody else.
    pub(crate) fn forget(&self, place: &Place) {
        self.trace.note(format_args!("the disk of {} is emptied", place.number));
        place.disk.wipe(true, None);
    }

    /// No change is under way, or may still begin, whoever lives is a member, and all have the same topology in force.
    pub(crate) fn is_settled(&self) -> bool {
        let Some(last) = self.topology().filter(|topology| topology.moving.is_none()) else { return false };
        let knows = |place: &Place| match place.node() {
            Some((node, _)) => node.ring().is_some_and(|ring| ring.topology.epoch == last.epoch),
            None => !self.is_member(place),
        };
        let open = self.member_places().iter().any(|place| place.disk.may_go_on(last.epoch));
        !open && self.places.iter().all(knows)
    }
}

/// One change after the other until the time is up; then the last one's end.
pub(crate) async fn changes(world: Arc<World>, until: Instant) {
    let random = Seeded::new(world.seed, 9);
    let pause_ms = *random.pick(&[100, 500, 2_000]);
    let mut copies = world.rf;
    let first = world.topology().map(|topology| topology.epoch);
    while Instant::now() < until {
        sleep(Duration::from_millis(random.between(1, pause_ms))).await;
        count_copies(&world, &mut copies);
        let at = random.below(world.places.len() as u64) as usize;
        let wish = random.below(12);
        let Some((node, life)) = world.places[at].node().filter(|(node, _)| node.readiness().ready) else { continue };
        let word = match wish {
            0..3 if !world.outside().is_empty() => arrive(&world, &random).await,
            3 => take_back(&node).await,
            _ => ask(&world, &node, wish, &random).await,
        };
        if life.is_alive() {
            world.trace.note(format_args!("a change at {}: {word}", world.places[at].number));
            world.history.count(&format!("change: {word}"));
        }
    }
    while !world.is_settled() {
        sleep(Duration::from_millis(50)).await;
    }
    count_copies(&world, &mut copies);
    if world.topology().map(|topology| topology.epoch) > first {
        world.history.count("change: a world came to another topology");
    }
}

/// Counts a change of the number of copies that has ended, since it was looked for last.
fn count_copies(world: &World, before: &mut u8) {
    let Some(ended) = world.topology().filter(|topology| topology.moving.is_none() && topology.rf != *before) else {
        return;
    };
    world.history.count(&format!("change: copies, {before} to {}", ended.rf));
    *before = ended.rf;
}

/// A node that is no member starts, and joins by itself; what it was before, its disk forgets.
async fn arrive(world: &World, random: &Seeded) -> &'static str {
    let outside = world.outside();
    let place = outside[random.below(outside.len() as u64) as usize];
    world.forget(place);
    world.start(place).await;
    "joins"
}

async fn take_back(node: &Node) -> &'static str {
    match timeout(PATIENCE, node.abort_change()).await {
        Ok(Ok(_)) => "taken back",
        Ok(Err(_)) => "not taken back",
        Err(_) => "died",
    }
}

async fn ask(world: &World, node: &Node, wish: u64, random: &Seeded) -> &'static str {
    let members: Vec<NodeNum> = world.members();
    let Some(member) = members.get(random.below(members.len() as u64) as usize).copied() else { return "no members" };
    let (wish, word) = match wish {
        4..7 => (Wish::Leave(member), "leaves"),
        7 => (Wish::Weight(member, random.between(0, 3) as u32), "weighs"),
        8 => (Wish::Zone(member, Some(format!("z{}", random.below(3)))), "moves to a zone"),
        _ => {
            let copies: &[u8] = match world.topology().map(|topology| topology.rf) {
                Some(5) => &[3, 3, 3, 1],
                Some(3) => &[1, 1, 2, 5],
                _ => &[3, 3, 5, 2, 1],
            };
            (Wish::ReplicationFactor(*random.pick(copies)), "copies")
        }
    };
    match timeout(PATIENCE, node.begin_change(wish)).await {
        Ok(Ok(_)) => word,
        Ok(Err(_)) => "refused",
        Err(_) => "died",
    }
}
