//! Gossip in virtual time, with clusters of 3, 5, 30 and 100.

mod epochs;

use futures_util::future::BoxFuture;
use tokio::time::sleep;

use super::*;
use crate::node::fakes::{FakeClock, journal};
use crate::node::journal::Journal;
use crate::node::world::{Disk, DiskStore, Host, Network, NetworkPeers, Seeded, Tasks};
use crate::ports::{Announcement, Header, NodeState, PeerReply};
use crate::protocol::founding::first_topology;
use crate::types::{ClusterId, Epoch, InstanceId, Topology};
use uuid::Uuid;

const INTERVAL: Duration = Duration::from_secs(1);

struct Node {
    address: String,
    network: Arc<Network>,
    gossip: Arc<Gossip>,
    routing: Arc<Routing>,
    directory: Arc<Directory>,
    peers: Arc<NetworkPeers>,
    disk: Arc<Disk>,
    told: Arc<Mutex<Vec<(NodeNum, Liveness)>>>,
    state: Arc<Mutex<(NodeState, u64)>>,
    tasks: Arc<Tasks>,
    journal: Arc<Journal>,
}

struct Plugged(Arc<Gossip>, Arc<Disk>, Arc<Routing>);

impl Host for Plugged {
    fn identity(&self) -> Identity {
        self.1.identity.lock().clone()
    }

    fn answer(&self, from: Header, request: PeerRequest) -> BoxFuture<'static, Result<PeerReply, PeerError>> {
        let reply = match request {
            PeerRequest::Gossip(packet) => {
                assert!(packet.len() <= GOSSIP_PACKET_BYTES_MAX);
                self.0.handle(&packet);
                Ok(PeerReply::Done)
            }
            PeerRequest::NodeInfo { digest } => Ok(self.0.answer_node_info(from.node, &digest)),
            PeerRequest::Topology => {
                Ok(PeerReply::Topology { topology: self.2.ring().map(|ring| ring.topology().clone()) })
            }
            other => Err(PeerError::Protocol(format!("{other:?}"))),
        };
        Box::pin(async move { reply })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.network.unplug(&self.address);
        self.tasks.crash();
    }
}

impl Node {
    fn holds(&self, node: u16) -> Liveness {
        self.directory.liveness(NodeNum(node))
    }

    fn renewals(&self) -> u32 {
        self.gossip.machine.lock().membership.me().renewal
    }
}

fn at(node: u16) -> String {
    format!("10.0.0.{node}:50050")
}

struct World {
    network: Arc<Network>,
    seeds: Vec<String>,
    topology: Arc<Topology>,
    /// All nodes look at one: a ring of a hundred members takes a while to build unoptimised.
    routing: Arc<Routing>,
    disks: Vec<Arc<Disk>>,
}

impl World {
    fn new(seed: u64, members: u16) -> Self {
        let announce = |node: u16| Announcement {
            node: NodeNum(node),
            instance: InstanceId(Uuid::from_u128(u128::from(node))),
            zone: None,
            weight: 1,
            mesh_address: at(node),
            http_address: format!("10.0.0.{node}:8000"),
            cluster_size: members,
            rf: 2,
        };
        let founders: Vec<Announcement> = (1..=members).map(announce).collect();
        let topology = Arc::new(first_topology(&founders, ClusterId(Uuid::from_u128(7))));
        let routing = Arc::new(Routing::default());
        routing.install(topology.clone());
        Self {
            network: Network::new(seed),
            seeds: (1..=members.min(3)).map(at).collect(),
            topology,
            routing,
            disks: (1..=members).map(|n| Disk::fresh(n, u128::from(n))).collect(),
        }
    }

    fn start(&self, node: u16) -> Node {
        self.start_disk(&self.disks[usize::from(node) - 1], &at(node))
    }

    fn start_disk(&self, disk: &Arc<Disk>, address: &str) -> Node {
        self.start_at(&self.routing, disk, address)
    }

    /// A start of that disk's instance, with the next generation.
    fn start_at(&self, routing: &Arc<Routing>, disk: &Arc<Disk>, address: &str) -> Node {
        disk.identity.lock().generation += 1;
        let directory = Arc::new(Directory::default());
        let peers = NetworkPeers::new(&self.network, address, disk);
        let tasks = Arc::new(Tasks::default());
        let told: Arc<Mutex<Vec<_>>> = Arc::default();
        let state = Arc::new(Mutex::new((NodeState::Serving, 0)));
        let identity = disk.identity.lock().clone();
        let ports = Ports {
            peers: peers.clone(),
            store: Arc::new(DiskStore(disk.clone())),
            spawn: tasks.clone(),
            clock: FakeClock::at(0),
            entropy: Seeded::new(u64::from(identity.node.0) * 1000 + identity.generation),
        };
        let options = GossipOptions { interval: INTERVAL, seeds: self.seeds.clone(), mesh_address: address.to_owned() };
        let on_liveness: OnLiveness = {
            let told = told.clone();
            Box::new(move |node, liveness| told.lock().push((node, liveness)))
        };
        let own_info: OwnInfo = {
            let (state, mesh_address, routing) = (state.clone(), address.to_owned(), routing.clone());
            Box::new(move |stamp| {
                let (state, keys) = *state.lock();
                NodeInfo {
                    stamp,
                    mesh_address: mesh_address.clone(),
                    http_address: "h:1".into(),
                    zone: None,
                    weight: 1,
                    state,
                    program: "0".into(),
                    epoch: routing.epoch(),
                    keys,
                    bytes: 0,
                    hints: Vec::new(),
                    requests_per_second: 0,
                    p99_us: None,
                }
            })
        };
        let (routing, journal) = (routing.clone(), journal());
        let gossip =
            Gossip::new(options, ports, routing.clone(), directory.clone(), on_liveness, own_info, journal.clone());
        self.network.plug(address, Arc::new(Plugged(gossip.clone(), disk.clone(), routing.clone())));
        gossip.start();
        let (address, network, disk) = (address.to_owned(), self.network.clone(), disk.clone());
        Node { address, network, gossip, routing, directory, peers, disk, told, state, tasks, journal }
    }
}

/// Waits for it to hold and says how long that took.
async fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        sleep(Duration::from_millis(50)).await;
    }
    start.elapsed()
}

fn all_hold(nodes: &[Node], of: &[u16], liveness: Liveness) -> bool {
    let own = |n: &Node| n.disk.identity.lock().node.0;
    nodes.iter().all(|n| of.iter().all(|node| own(n) == *node || n.holds(*node) == liveness))
}

fn renewals(nodes: &[Node]) -> u32 {
    nodes.iter().map(Node::renewals).sum()
}

/// Join, calm, crash, return, goodbye, cut and healing, at the targets of the design.
async fn a_life(members: u16) {
    let world = World::new(u64::from(members), members);
    let everyone: Vec<u16> = (1..=members).collect();
    let second = |s| Duration::from_secs(s);
    let mut nodes: Vec<Node> = everyone[1..].iter().map(|n| world.start(*n)).collect();
    within(second(10), "the first meet", || all_hold(&nodes, &everyone[1..], Liveness::Alive)).await;

    nodes.push(world.start(1));
    let join = within(second(2), "a join", || all_hold(&nodes, &everyone, Liveness::Alive)).await;

    *world.network.lost.lock() = 20;
    sleep(second(60)).await;
    *world.network.lost.lock() = 0;
    within(second(6), "suspicions are refuted", || all_hold(&nodes, &everyone, Liveness::Alive)).await;
    assert_eq!(renewals(&nodes), 0, "nobody was held down, so nobody has to come back");

    drop(nodes.pop());
    let crash = within(second(10), "a crash", || all_hold(&nodes, &[1], Liveness::Down)).await;
    // It returns on another port.
    nodes.push(world.start_disk(&world.disks[0], "10.0.0.1:60000"));
    let again = within(second(2), "a return", || all_hold(&nodes, &everyone, Liveness::Alive)).await;
    let moved = |n: &Node| n.peers.introduced.lock().get(&NodeNum(1)).is_some_and(|(_, a)| a == "10.0.0.1:60000");
    assert!(nodes[..nodes.len() - 1].iter().all(moved), "changed ports are republished");

    let leaver = nodes.pop().unwrap();
    *leaver.state.lock() = (NodeState::Draining, 0);
    let start = Instant::now();
    leaver.gossip.leave().await;
    within(second(2), "a goodbye", || all_hold(&nodes, &[1], Liveness::Down)).await;
    let leave = start.elapsed();
    sleep(second(5)).await;
    assert!(all_hold(&nodes, &[1], Liveness::Down), "who left stays away");
    drop(leaver);
    nodes.push(world.start(1));
    within(second(3), "another return", || all_hold(&nodes, &everyone, Liveness::Alive)).await;
    assert_eq!(renewals(&nodes), 0);

    // Even against odd; all seeds are not on one side.
    let side = |address: &str| address.split(['.', ':']).nth(3).and_then(|n| n.parse::<u16>().ok()).map(|n| n % 2);
    world.network.cut_requests(move |from, to, _| side(from) != side(to));
    sleep(second(60)).await;
    let own = |n: &Node| n.disk.identity.lock().node.0;
    let cut = nodes.iter().all(|n| everyone.iter().all(|m| m % 2 == own(n) % 2 || n.holds(*m) == Liveness::Down));
    assert!(cut, "either side holds the other down");
    world.network.cut_requests(|_, _, _| false);
    let heal = within(second(15), "healing", || all_hold(&nodes, &everyone, Liveness::Alive)).await;
    let after = renewals(&nodes);
    sleep(second(10)).await;
    assert!(all_hold(&nodes, &everyone, Liveness::Alive));
    assert_eq!(renewals(&nodes), after, "no renewals once healed");
    assert!(after <= 2 * u32::from(members), "{after} renewals for {members} members");
    eprintln!(
        "{members}: join {join:?} crash {crash:?} return {again:?} leave {leave:?} heal {heal:?}, {after} renewals"
    );
}

#[tokio::test(start_paused = true)]
async fn three_members_meet_the_targets() {
    a_life(3).await;
}

#[tokio::test(start_paused = true)]
async fn five_members_meet_the_targets() {
    a_life(5).await;
}

#[tokio::test(start_paused = true)]
async fn thirty_members_meet_the_targets() {
    a_life(30).await;
}

#[tokio::test(start_paused = true)]
async fn a_hundred_members_meet_the_targets() {
    a_life(100).await;
}

#[tokio::test(start_paused = true)]
async fn swapped_ports_end_right() {
    let world = World::new(1, 3);
    let mut nodes: Vec<Node> = (1..=3).map(|n| world.start(n)).collect();
    within(Duration::from_secs(5), "all meet", || all_hold(&nodes, &[1, 2, 3], Liveness::Alive)).await;
    nodes.truncate(1);
    nodes.push(world.start_disk(&world.disks[1], &at(3)));
    nodes.push(world.start_disk(&world.disks[2], &at(2)));
    let known =
        |n: &Node, node: u16| n.peers.introduced.lock().get(&NodeNum(node)).map(|(i, a)| (i.0.as_u128(), a.clone()));
    within(Duration::from_secs(5), "the addresses are swapped", || {
        known(&nodes[0], 2) == Some((2, at(3)))
            && known(&nodes[0], 3) == Some((3, at(2)))
            && all_hold(&nodes, &[1, 2, 3], Liveness::Alive)
    })
    .await;
    let remembered = || nodes[0].disk.identity.lock().known_addresses.clone();
    within(Duration::from_secs(2), "they are remembered", || remembered() == [at(3), at(2)]).await;
}

/// All restart on ports that no topology and no seed names; only what was remembered, or one who knows, leads back.
#[tokio::test(start_paused = true)]
async fn members_that_all_moved_find_each_other_through_one_seed() {
    let world = World::new(2, 3);
    let nodes: Vec<Node> = (1..=3).map(|n| world.start(n)).collect();
    within(Duration::from_secs(5), "all meet", || all_hold(&nodes, &[1, 2, 3], Liveness::Alive)).await;
    drop(nodes);
    let moved = World { seeds: vec!["10.0.0.1:60001".into()], ..world };
    let nodes: Vec<Node> = moved
        .disks
        .iter()
        .enumerate()
        .map(|(i, d)| moved.start_disk(d, &format!("10.0.0.{}:6000{}", i + 1, i + 1)))
        .collect();
    within(Duration::from_secs(5), "all meet again", || all_hold(&nodes, &[1, 2, 3], Liveness::Alive)).await;
}

/// Announcements go on for ever: who finds nobody today finds somebody tomorrow.
#[tokio::test(start_paused = true)]
async fn a_seed_that_comes_an_hour_late_is_found() {
    let world = World { seeds: vec![at(9)], ..World::new(6, 3) };
    let disks: Vec<_> = world.disks.iter().collect();
    let mut nodes: Vec<Node> =
        disks[..2].iter().map(|d| world.start_disk(d, &format!("moved:{}", d.identity.lock().node.0))).collect();
    sleep(Duration::from_secs(3600)).await;
    assert!(nodes.iter().all(|n| n.gossip.alone()));
    nodes.push(world.start_disk(disks[2], &at(9)));
    within(Duration::from_secs(2), "all meet", || all_hold(&nodes, &[1, 2, 3], Liveness::Alive)).await;
}

#[tokio::test(start_paused = true)]
async fn strangers_are_nobody_and_members_never_heard_of_are_down() {
    let world = World::new(3, 3);
    let nodes: Vec<Node> = (1..=2).map(|n| world.start(n)).collect();
    // It calls itself n3, but the topology has another instance under that number.
    let stranger = world.start_disk(&Disk::fresh(3, 33), &at(33));
    sleep(Duration::from_secs(15)).await;
    for node in &nodes {
        assert_eq!(node.holds(3), Liveness::Down);
        assert!(!node.peers.introduced.lock().contains_key(&NodeNum(3)));
        assert!(node.directory.info(NodeNum(3)).is_none());
        assert!(node.told.lock().contains(&(NodeNum(3), Liveness::Down)));
    }
    // Once a topology lists it, it counts.
    let mut next = (*world.topology).clone();
    next.epoch = Epoch(2);
    next.members[2].instance = InstanceId(Uuid::from_u128(33));
    world.routing.install(Arc::new(next));
    within(Duration::from_secs(1), "the stranger is a member", || all_hold(&nodes, &[3], Liveness::Alive)).await;
    assert_eq!(nodes[0].peers.introduced.lock().get(&NodeNum(3)).map(|(_, a)| a.clone()), Some(at(33)));
    drop(stranger);
}

#[tokio::test(start_paused = true)]
async fn infos_are_pulled_when_they_change_and_compared_in_time() {
    let world = World::new(4, 5);
    let nodes: Vec<Node> = (1..=5).map(|n| world.start(n)).collect();
    let told = |n: &Node| n.directory.info(NodeNum(5)).map(|i| (i.state, i.keys));
    within(Duration::from_secs(5), "all know of n5", || nodes.iter().all(|n| told(n) == Some((NodeState::Serving, 0))))
        .await;
    *nodes[4].state.lock() = (NodeState::Draining, 0);
    nodes[4].gossip.refresh();
    within(Duration::from_secs(8), "a change of state", || {
        nodes.iter().all(|n| told(n) == Some((NodeState::Draining, 0)))
    })
    .await;
    *nodes[4].state.lock() = (NodeState::Draining, 17);
    within(Duration::from_secs(40), "a counter", || nodes.iter().all(|n| told(n) == Some((NodeState::Draining, 17))))
        .await;
    // A new life starts its numbers again and is believed.
    let mut nodes = nodes;
    nodes.pop();
    nodes.push(world.start(5));
    within(Duration::from_secs(8), "a new life", || nodes.iter().all(|n| told(n) == Some((NodeState::Serving, 0))))
        .await;
}

#[tokio::test(start_paused = true)]
async fn who_looks_sees_counters_of_the_last_few_seconds_and_what_happened_is_noted() {
    let world = World::new(9, 3);
    let mut nodes: Vec<Node> = (1..=3).map(|n| world.start(n)).collect();
    within(Duration::from_secs(5), "all meet", || all_hold(&nodes, &[1, 2, 3], Liveness::Alive)).await;
    let keys = |looker: &Node| looker.directory.info(NodeNum(2)).map(|info| info.keys);
    nodes[1].state.lock().1 = 1_000;
    within(Duration::from_secs(20), "keys are told", || keys(&nodes[0]) == Some(1_000)).await;
    // So little more that nobody is told of it at once.
    for more in 1..=5 {
        nodes[1].state.lock().1 = 1_000 + more;
        within(Duration::from_secs(4), "who looks sees it", || {
            nodes[0].gossip.look_around();
            keys(&nodes[0]) == Some(1_000 + more)
        })
        .await;
    }
    drop(nodes.pop());
    within(Duration::from_secs(10), "a crash", || all_hold(&nodes, &[3], Liveness::Down)).await;
    let noted = nodes[0].journal.after(0).into_iter().filter(|event| event.node == NodeNum(3));
    let texts: Vec<String> = noted.map(|event| event.text).collect();
    assert_eq!(texts, ["is up, at 10.0.0.3:50050", "did not answer a probe: it is suspected", "is down"]);
}
