//! A world for tests of the drivers that speak rarely (founding, gossip): hosts by address, disks that outlive their
//! nodes, and a network that delays, loses, repeats and cuts, all from one seed and in virtual time.

mod purging;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use crate::ports::{
    ChangeLog, Destination, Entropy, Header, Hint, HintTotals, Holdings, PeerError, PeerReply, PeerRequest, Peers,
    RecordPage, ReplicaCall, ReplyTo, SlotEntry, SlotPage, Spawn, Store, StoreError, StoreTotals, Submissions,
};
use crate::types::{
    Floor, Hlc, Identity, InstanceId, Key, Leaf, NodeNum, Record, Scan, ScanPage, Slot, SlotSet, Sum, Token, Topology,
    Version, Vote,
};

pub(crate) struct Seeded(Mutex<StdRng>);

impl Seeded {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(StdRng::seed_from_u64(seed))))
    }
}

impl Entropy for Seeded {
    fn u64(&self) -> u64 {
        self.0.lock().next_u64()
    }
}

/// A node's tasks.
#[derive(Default)]
pub(crate) struct Tasks(Mutex<tokio::task::JoinSet<()>>);

impl Tasks {
    /// Ends them all at their next await. (Tasks hold their node, and so this: dropping it would end none.)
    pub(crate) fn crash(&self) {
        self.0.lock().abort_all();
    }
}

impl Spawn for Tasks {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        let mut tasks = self.0.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

/// What survives a crash.
pub(crate) struct Disk {
    pub(crate) identity: Mutex<Identity>,
    pub(crate) topology: Mutex<Option<Topology>>,
    pub(crate) proposal: Mutex<Option<Topology>>,
    pub(crate) vote: Mutex<Option<Vote>>,
}

impl Disk {
    pub(crate) fn fresh(node: u16, instance: u128) -> Arc<Self> {
        let identity =
            Identity { generation: 1, ..Identity::fresh(NodeNum(node), InstanceId(Uuid::from_u128(instance))) };
        Arc::new(Self {
            identity: Mutex::new(identity),
            topology: Mutex::default(),
            proposal: Mutex::default(),
            vote: Mutex::default(),
        })
    }
}

/// A store over a disk, for what these drivers need of one.
pub(crate) struct DiskStore(pub(crate) Arc<Disk>);

/// A sync of the disk.
const SYNC: Duration = Duration::from_millis(2);

impl Store for DiskStore {
    fn submit(&self, _: Submissions) {}

    fn observe(&self, _: Hlc) {}

    fn hints(&self, _: NodeNum, _: Option<(Slot, Key)>, _: usize) -> BoxFuture<'static, Result<Vec<Hint>, StoreError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn forget_hints(&self, _: Vec<(NodeNum, Slot, Key, Version)>) -> BoxFuture<'static, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    fn drop_hints_before(&self, _: u64) -> BoxFuture<'static, Result<u64, StoreError>> {
        Box::pin(async { Ok(0) })
    }

    fn hint_totals(&self) -> Vec<(NodeNum, HintTotals)> {
        Vec::new()
    }

    fn totals(&self) -> StoreTotals {
        StoreTotals::default()
    }

    fn scan(&self, _: Scan) -> BoxFuture<'static, Result<ScanPage, StoreError>> {
        Box::pin(async { Ok(ScanPage::default()) })
    }

    fn changes(&self) -> Arc<ChangeLog> {
        Arc::default()
    }

    fn slot_sums(&self) -> Vec<Option<Sum>> {
        vec![Some(Sum::default()); Slot::COUNT]
    }

    fn leaf_sums(&self, _: Slot) -> Option<Vec<Sum>> {
        Some(vec![Sum::default(); Leaf::IN_SLOT])
    }

    fn count_anew(&self, _: Slot) {}

    fn condemn(&self, _: &str) {}

    fn discard(&self, _: Slot, _: Vec<(i64, Vec<u8>)>) -> BoxFuture<'static, Result<u64, StoreError>> {
        Box::pin(async { Ok(0) })
    }

    fn holdings(&self, _: Slot, _: Vec<Leaf>) -> BoxFuture<'static, Result<Holdings, StoreError>> {
        Box::pin(async { Ok(Holdings::default()) })
    }

    fn records(&self, keys: Vec<(Slot, Key)>) -> BoxFuture<'static, Result<RecordPage, StoreError>> {
        Box::pin(async move { Ok((Vec::new(), keys.len())) })
    }

    fn identity(&self) -> Identity {
        self.0.identity.lock().clone()
    }

    fn save_identity(&self, identity: Identity) -> BoxFuture<'static, Result<(), StoreError>> {
        let disk = self.0.clone();
        Box::pin(async move {
            sleep(SYNC).await;
            *disk.identity.lock() = identity;
            Ok(())
        })
    }

    fn topology(&self) -> BoxFuture<'static, Result<Option<Topology>, StoreError>> {
        let disk = self.0.clone();
        Box::pin(async move { Ok(disk.topology.lock().clone()) })
    }

    fn save_topology(&self, topology: Arc<Topology>) -> BoxFuture<'static, Result<(), StoreError>> {
        let disk = self.0.clone();
        Box::pin(async move {
            sleep(SYNC).await;
            let mut stored = disk.topology.lock();
            if stored.as_ref().is_none_or(|t| t.epoch < topology.epoch) {
                *stored = Some((*topology).clone());
            }
            Ok(())
        })
    }

    fn proposal(&self) -> BoxFuture<'static, Result<Option<Topology>, StoreError>> {
        let disk = self.0.clone();
        Box::pin(async move { Ok(disk.proposal.lock().clone()) })
    }

    fn save_proposal(&self, topology: Arc<Topology>) -> BoxFuture<'static, Result<(), StoreError>> {
        let disk = self.0.clone();
        Box::pin(async move {
            sleep(SYNC).await;
            *disk.proposal.lock() = Some((*topology).clone());
            Ok(())
        })
    }

    fn vote(&self) -> BoxFuture<'static, Result<Option<Vote>, StoreError>> {
        let disk = self.0.clone();
        Box::pin(async move { Ok(disk.vote.lock().clone()) })
    }

    fn save_vote(&self, vote: Vote) -> BoxFuture<'static, Result<(), StoreError>> {
        let disk = self.0.clone();
        Box::pin(async move {
            sleep(SYNC).await;
            *disk.vote.lock() = Some(vote);
            Ok(())
        })
    }

    fn slot_page(&self, _: Slot, _: Option<Key>) -> BoxFuture<'static, Result<SlotPage, StoreError>> {
        Box::pin(async { Ok(SlotPage::default()) })
    }

    fn absorb(&self, _: Vec<(Token, SlotEntry)>) -> BoxFuture<'static, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    fn drop_covered(&self, _: Floor, _: Vec<(Token, Key)>) -> BoxFuture<'static, Result<u64, StoreError>> {
        Box::pin(async { Ok(0) })
    }

    fn drop_slots(&self, _: SlotSet) -> BoxFuture<'static, Result<u64, StoreError>> {
        Box::pin(async { Ok(0) })
    }

    fn clock_reservation(&self) -> BoxFuture<'static, Result<Hlc, StoreError>> {
        Box::pin(async { Ok(Hlc::ZERO) })
    }

    fn reserve_clock(&self, _: Hlc) -> BoxFuture<'static, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    fn release_clock(&self, _: Hlc) -> BoxFuture<'static, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    fn end_due(&self, _: Hlc, _: usize) -> BoxFuture<'static, Result<Vec<(Key, Record)>, StoreError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn failed(&self) -> BoxFuture<'static, StoreError> {
        Box::pin(std::future::pending())
    }
}

/// A node, as the network knows it.
pub(crate) trait Host: Send + Sync {
    fn identity(&self) -> Identity;

    fn answer(&self, from: Header, request: PeerRequest) -> BoxFuture<'static, Result<PeerReply, PeerError>>;
}

type Cut = Box<dyn Fn(&str, &str, &PeerRequest) -> bool + Send>;

/// Hosts by address, and what happens to messages between them.
pub(crate) struct Network {
    entropy: Arc<Seeded>,
    hosts: Mutex<BTreeMap<String, Arc<dyn Host>>>,
    /// Of a thousand messages, how many are lost, and how many requests arrive twice.
    pub(crate) lost: Mutex<u64>,
    pub(crate) doubled: Mutex<u64>,
    requests: Mutex<Cut>,
    replies: Mutex<Cut>,
}

impl Network {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            entropy: Seeded::new(seed),
            hosts: Mutex::default(),
            lost: Mutex::new(0),
            doubled: Mutex::new(0),
            requests: Mutex::new(Box::new(|_, _, _| false)),
            replies: Mutex::new(Box::new(|_, _, _| false)),
        })
    }

    pub(crate) fn plug(&self, address: &str, host: Arc<dyn Host>) {
        self.hosts.lock().insert(address.to_owned(), host);
    }

    pub(crate) fn unplug(&self, address: &str) {
        self.hosts.lock().remove(address);
    }

    /// Which requests (from, to) never arrive.
    pub(crate) fn cut_requests(&self, cut: impl Fn(&str, &str, &PeerRequest) -> bool + Send + 'static) {
        *self.requests.lock() = Box::new(cut);
    }

    /// To which requests (from, to) the reply never arrives.
    pub(crate) fn cut_replies(&self, cut: impl Fn(&str, &str, &PeerRequest) -> bool + Send + 'static) {
        *self.replies.lock() = Box::new(cut);
    }

    async fn travel(&self) {
        sleep(Duration::from_micros(500 + self.entropy.below(1500))).await;
        if self.entropy.below(1000) < *self.lost.lock() {
            std::future::pending().await
        }
    }

    async fn carry(&self, from: Header, me: &str, to: &str, request: PeerRequest) -> Result<PeerReply, PeerError> {
        let (cut, silent) = {
            let silent = (self.replies.lock())(me, to, &request);
            ((self.requests.lock())(me, to, &request), silent)
        };
        self.travel().await;
        if cut {
            std::future::pending().await
        }
        let Some(host) = self.hosts.lock().get(to).cloned() else { return Err(PeerError::Unreachable) };
        if let (Some(mine), Some(theirs)) = (from.cluster, host.identity().cluster)
            && mine != theirs
        {
            return Err(PeerError::ForeignCluster(theirs));
        }
        if self.entropy.below(1000) < *self.doubled.lock() {
            host.answer(from, request.clone()).await.ok();
            self.travel().await;
        }
        let reply = host.answer(from, request).await;
        self.travel().await;
        if silent {
            std::future::pending().await
        }
        reply
    }
}

/// One node's side of the network.
pub(crate) struct NetworkPeers {
    pub(crate) network: Arc<Network>,
    pub(crate) address: String,
    pub(crate) disk: Arc<Disk>,
    pub(crate) introduced: Mutex<BTreeMap<NodeNum, (InstanceId, String)>>,
}

impl NetworkPeers {
    pub(crate) fn new(network: &Arc<Network>, address: &str, disk: &Arc<Disk>) -> Arc<Self> {
        Arc::new(Self {
            network: network.clone(),
            address: address.to_owned(),
            disk: disk.clone(),
            introduced: Mutex::default(),
        })
    }
}

impl Peers for NetworkPeers {
    fn send(&self, _: NodeNum, _: ReplicaCall, reply_to: ReplyTo) {
        reply_to.send(Err(PeerError::Unreachable));
    }

    fn ask(
        &self,
        to: Destination,
        request: PeerRequest,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<PeerReply, PeerError>> {
        let to = match to {
            Destination::Address(address) => address,
            Destination::Member(node) => self.introduced.lock().get(&node).map_or(String::new(), |(_, a)| a.clone()),
        };
        let identity = self.disk.identity.lock().clone();
        let from = Header {
            cluster: identity.cluster,
            node: identity.node,
            instance: identity.instance,
            hlc: Hlc::ZERO,
            wall_ms: 0,
        };
        let (network, me) = (self.network.clone(), self.address.clone());
        Box::pin(async move {
            timeout_at(deadline, network.carry(from, &me, &to, request)).await.unwrap_or(Err(PeerError::TimedOut))
        })
    }

    fn introduce(&self, node: NodeNum, instance: InstanceId, mesh_address: &str) {
        self.introduced.lock().insert(node, (instance, mesh_address.to_owned()));
    }

    fn connected(&self, _: NodeNum) -> bool {
        true
    }
}
