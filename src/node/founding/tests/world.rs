//! Nodes that start, over a small network.

use std::collections::BTreeSet;

use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;

use super::super::*;
use crate::node::succession::LIVES;
use crate::node::world::{Disk, DiskStore, Host, Network, NetworkPeers, Seeded};
use crate::ports::Header;
use crate::types::{Identity, NodeNum};

struct Plugged {
    founding: Arc<Founding>,
    disk: Arc<Disk>,
}

impl Host for Plugged {
    fn identity(&self) -> Identity {
        self.disk.identity.lock().clone()
    }

    fn answer(&self, from: Header, request: PeerRequest) -> BoxFuture<'static, Result<PeerReply, PeerError>> {
        let founding = self.founding.clone();
        Box::pin(async move {
            match request {
                // As members do that reach n1.
                PeerRequest::Replace { newcomer, .. } if newcomer.node == NodeNum(1) => {
                    Err(PeerError::Refused(format!("n1 {LIVES} 1 at {}", at(1))))
                }
                request => founding.answer(from, request).await,
            }
        })
    }
}

/// A running node.
pub(super) struct Life {
    pub(super) address: String,
    pub(super) network: Arc<Network>,
    pub(super) founding: Arc<Founding>,
    pub(super) routing: Arc<Routing>,
    pub(super) run: JoinHandle<Result<(), FoundingError>>,
}

impl Life {
    pub(super) fn crash(self) -> String {
        self.network.unplug(&self.address);
        self.run.abort();
        self.address
    }

    pub(super) fn cluster(&self) -> Option<ClusterId> {
        self.routing.ring().map(|r| r.topology().cluster_id)
    }

    pub(super) async fn end(self) -> FoundingError {
        let ended = tokio::time::timeout(Duration::from_secs(30), self.run).await;
        self.network.unplug(&self.address);
        ended.expect("the start must end").unwrap().expect_err("the start must fail")
    }
}

pub(super) fn at(node: u16) -> String {
    format!("10.0.0.{node}:50050")
}

pub(super) struct World {
    pub(super) network: Arc<Network>,
    pub(super) size: u16,
    pub(super) rf: u8,
    pub(super) seeds: Vec<String>,
    pub(super) place: Place,
}

impl World {
    pub(super) fn new(seed: u64, size: u16) -> Self {
        let seeds = (1..=size).map(at).collect();
        Self { network: Network::new(seed), size, rf: 2, seeds, place: Place::Any }
    }

    pub(super) fn start(&self, disk: &Arc<Disk>) -> Life {
        let node = disk.identity.lock().node;
        self.start_at(disk, &at(node.0))
    }

    pub(super) fn start_at(&self, disk: &Arc<Disk>, address: &str) -> Life {
        let options = FoundingOptions {
            seeds: self.seeds.clone(),
            cluster_size: self.size,
            rf: self.rf,
            zone: None,
            weight: 1,
            mesh_address: address.to_owned(),
            http_address: "10.0.0.1:8000".to_owned(),
        };
        let routing = Arc::new(Routing::default());
        let peers = NetworkPeers::new(&self.network, address, disk);
        let store = Arc::new(DiskStore(disk.clone()));
        let instance = disk.identity.lock().instance.0.as_u128() as u64;
        let founding = Founding::new(options, peers, store, routing.clone(), Seeded::new(instance));
        self.network.plug(address, Arc::new(Plugged { founding: founding.clone(), disk: disk.clone() }));
        let run = {
            let founding = founding.clone();
            let place = self.place;
            spawn(async move { founding.run(place).await })
        };
        Life { address: address.to_owned(), network: self.network.clone(), founding, routing, run }
    }
}

#[expect(clippy::disallowed_methods, reason = "a test's own tasks belong to no node")]
fn spawn(
    task: impl Future<Output = Result<(), FoundingError>> + Send + 'static,
) -> JoinHandle<Result<(), FoundingError>> {
    tokio::spawn(task)
}

pub(super) fn disks(nodes: std::ops::RangeInclusive<u16>) -> Vec<Arc<Disk>> {
    nodes.map(|n| Disk::fresh(n, u128::from(n))).collect()
}

pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within 30 s");
        sleep(Duration::from_millis(20)).await;
    }
}

pub(super) async fn one_cluster(lives: &[&Life]) -> ClusterId {
    until("all are members", || lives.iter().all(|l| l.cluster().is_some())).await;
    let clusters: BTreeSet<_> = lives.iter().filter_map(|l| l.cluster()).collect();
    assert_eq!(clusters.len(), 1, "one cluster: {clusters:?}");
    *clusters.first().unwrap()
}
