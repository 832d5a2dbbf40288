//! A topology is decided, and gossip tells only its epoch: whoever is behind fetches it.

use super::*;
use crate::node::clock::NodeClock;
use crate::node::succession::Succession;
use crate::types::Hlc;

/// A node with a topology of its own in force, which keeps an eye on the others' epochs.
fn start(world: &World, node: u16, topology: &Arc<Topology>) -> Node {
    let routing = Arc::new(Routing::default());
    routing.install(topology.clone());
    let node = world.start_at(&routing, &world.disks[usize::from(node) - 1], &at(node));
    let ports = Ports {
        peers: node.peers.clone(),
        store: Arc::new(DiskStore(node.disk.clone())),
        spawn: node.tasks.clone(),
        clock: FakeClock::at(0),
        entropy: Seeded::new(0),
    };
    let me = node.disk.identity.lock().node;
    let clock = NodeClock::new(FakeClock::at(0), Duration::from_secs(300), Hlc::ZERO);
    let succession = Succession::new(me, &ports, &routing, &clock, &node.directory, &node.journal);
    ports.spawn.spawn(Box::pin(succession.run()));
    node
}

#[tokio::test(start_paused = true)]
async fn a_hundred_members_learn_of_a_newcomer_from_the_one_that_knows() {
    let world = World::new(100, 100);
    let announced = |m: &Member| Announcement {
        node: m.node,
        instance: m.instance,
        zone: None,
        weight: 1,
        mesh_address: m.mesh_address.clone(),
        http_address: m.http_address.clone(),
        cluster_size: 99,
        rf: 2,
    };
    let founders: Vec<Announcement> = world.topology.members[..99].iter().map(announced).collect();
    let founded = Arc::new(first_topology(&founders, world.topology.cluster_id));
    let grown = Arc::new(Topology { epoch: Epoch(2), ..(*world.topology).clone() });
    let everyone: Vec<u16> = (1..=99).collect();
    let second = |s| Duration::from_secs(s);

    let mut nodes: Vec<Node> = everyone.iter().map(|n| start(&world, *n, &founded)).collect();
    within(second(10), "the first meet", || all_hold(&nodes, &everyone, Liveness::Alive)).await;
    let absent = nodes.pop().unwrap();
    drop(absent);

    // Nobody tells the others, as when the one that decided falls silent at once.
    let fifty = &nodes[49];
    fifty.routing.adopt(&DiskStore(fifty.disk.clone()), &*fifty.peers, grown.clone()).await.unwrap();
    nodes.push(start(&world, 100, &grown));
    let informed = |nodes: &[Node]| nodes.iter().all(|n| n.routing.epoch() == grown.epoch);
    within(second(5), "the epoch", || informed(&nodes)).await;
    within(second(2), "the newcomer", || all_hold(&nodes, &[100], Liveness::Alive)).await;
    let stored = |n: &Node| n.disk.topology.lock().as_ref().map(|t| t.epoch);
    assert!(nodes[..98].iter().all(|n| stored(n) == Some(grown.epoch)), "what is in force is on disk");

    nodes.push(start(&world, 99, &founded));
    within(second(5), "one that was away", || informed(&nodes)).await;
}
