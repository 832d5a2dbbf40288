//! [`MeshPeers`]: the other nodes, reached over gRPC.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::RwLock;
use smallvec::smallvec;
use tokio::sync::SetOnce;
use tokio::time::{Instant, MissedTickBehavior};

use super::asks::Asks;
use super::exchange::Exchange;
use super::meters::Meters;
use super::peer::{Peer, Target};
use super::wire::{self, proto};
use super::{Options, link};
use crate::ports::{
    Delivery, Destination, Entropy, Header, PeerError, PeerHandler, PeerReply, PeerRequest, Peers, ReplicaCall,
    ReplyTo, Spawn,
};
use crate::types::{InstanceId, NodeNum};

/// How often deadlines are looked at. An answer may come that much after its deadline.
const SWEEP: Duration = Duration::from_millis(100);

/// What all of a node's links share.
pub(super) struct Shared {
    me: NodeNum,
    handler: SetOnce<Weak<dyn PeerHandler>>,
    pub(super) spawn: Arc<dyn Spawn>,
    pub(super) entropy: Arc<dyn Entropy>,
    pub(super) options: Options,
    pub(super) meters: Meters,
}

impl Shared {
    /// The node itself. `None` before it was bound, and after it is gone.
    pub(super) fn handler(&self) -> Option<Arc<dyn PeerHandler>> {
        self.handler.get()?.upgrade()
    }

    /// Waits for the node to be bound.
    pub(super) async fn bound(&self) {
        self.handler.wait().await;
    }

    /// Looks at the top of an answer: observes its clocks, and refuses a foreign cluster, an answer meant for somebody
    /// else, or one of another instance than the introduced one.
    pub(super) fn admit(
        &self,
        header: Option<proto::Header>,
        expected: Option<InstanceId>,
    ) -> Result<Header, PeerError> {
        let (header, to) = wire::read_header(header)?;
        self.handler().ok_or(PeerError::Lost)?.admit(&header, to)?;
        if expected.is_some_and(|instance| instance != header.instance) {
            return Err(PeerError::WrongRecipient);
        }
        Ok(header)
    }
}

/// The production [`Peers`]. Node and peers need each other: build this first, hand it to the node, then
/// [`MeshPeers::bind`] the node. Peers hold the node weakly, so that dropping the node frees both.
pub struct MeshPeers {
    shared: Arc<Shared>,
    peers: RwLock<BTreeMap<NodeNum, Arc<Peer>>>,
    asks: Arc<Asks>,
}

impl std::fmt::Debug for MeshPeers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshPeers").field("me", &self.shared.me).finish_non_exhaustive()
    }
}

impl MeshPeers {
    pub fn new(me: NodeNum, spawn: Arc<dyn Spawn>, entropy: Arc<dyn Entropy>, options: Options) -> Arc<Self> {
        let shared =
            Arc::new(Shared { me, handler: SetOnce::new(), spawn, entropy, options, meters: Meters::default() });
        let peers = Arc::new(Self {
            asks: Arc::new(Asks::new(shared.clone())),
            shared: shared.clone(),
            peers: RwLock::default(),
        });
        shared.spawn.spawn(Box::pin(sweep(Arc::downgrade(&peers))));
        peers
    }

    /// Says who this node is. Until then nothing is sent: requests queue for introduced members, or are answered
    /// `Unreachable`. A second call changes nothing.
    pub fn bind(&self, handler: Weak<dyn PeerHandler>) {
        if self.shared.handler.set(handler).is_err() {
            tracing::error!("the mesh was bound to a node twice");
        }
    }

    fn peer(&self, node: NodeNum) -> Option<Arc<Peer>> {
        self.peers.read().get(&node).cloned()
    }

    /// The local replica: the same way in, without a wire.
    fn send_to_myself(&self, call: ReplicaCall, reply_to: ReplyTo) {
        match self.shared.handler() {
            Some(handler) => handler.deliver(self.shared.me, smallvec![Delivery { call, reply_to }]),
            None => reply_to.send(Err(PeerError::Unreachable)),
        }
    }
}

impl Peers for MeshPeers {
    fn send(&self, to: NodeNum, call: ReplicaCall, reply_to: ReplyTo) {
        if to == self.shared.me {
            return self.send_to_myself(call, reply_to);
        }
        let result = match self.peer(to) {
            Some(peer) => peer.send(call, reply_to),
            None => Err((reply_to, PeerError::Unreachable)),
        };
        if let Err((reply_to, error)) = result {
            self.shared.meters.failed(&error);
            reply_to.send(Err(error));
        }
    }

    fn ask(
        &self,
        to: Destination,
        request: PeerRequest,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<PeerReply, PeerError>> {
        let target = match to {
            Destination::Member(node) if node == self.shared.me => return Box::pin(self.ask_myself(request, deadline)),
            Destination::Member(node) => self.peer(node).map(|p| p.target()).map(|t| (t.address, Some(t.instance))),
            Destination::Address(address) => Some((address, None)),
        };
        let asks = self.asks.clone();
        Box::pin(async move {
            let (address, instance) = target.ok_or(PeerError::Unreachable)?;
            within(deadline, asks.call(&address, instance, request)).await
        })
    }

    fn introduce(&self, node: NodeNum, instance: InstanceId, mesh_address: &str) {
        if node == self.shared.me {
            return;
        }
        let target = Target { instance, address: mesh_address.to_owned() };
        if let Some(peer) = self.peer(node) {
            let lost = peer.introduce(target);
            return self.shared.fail(lost, &PeerError::Lost);
        }
        let mut peers = self.peers.write();
        if let Some(peer) = peers.get(&node).cloned() {
            // Somebody else was quicker.
            drop(peers);
            let lost = peer.introduce(target);
            return self.shared.fail(lost, &PeerError::Lost);
        }
        let options = &self.shared.options;
        let exchange = Exchange::new(options.bytes_in_flight_max, options.request_timeout);
        let peer = Arc::new(Peer::new(node, target, exchange));
        peers.insert(node, peer.clone());
        drop(peers);
        self.shared.spawn.spawn(Box::pin(link::keep(peer, self.shared.clone())));
    }

    /// True also while the first attempt since the introduction is under way; false for a node never introduced.
    fn connected(&self, to: NodeNum) -> bool {
        to == self.shared.me || self.peer(to).is_some_and(|peer| peer.is_connected())
    }
}

impl MeshPeers {
    fn ask_myself(
        &self,
        request: PeerRequest,
        deadline: Instant,
    ) -> impl Future<Output = Result<PeerReply, PeerError>> + use<> {
        let handler = self.shared.handler();
        async move {
            let handler = handler.ok_or(PeerError::Unreachable)?;
            let header = handler.header();
            within(deadline, handler.answer(header, request)).await
        }
    }

    fn answer_overdue(&self) {
        let peers: Vec<_> = self.peers.read().values().cloned().collect();
        let now = Instant::now();
        for peer in peers {
            let (overdue, up) = peer.overdue(now);
            self.shared.fail(overdue.sent, &PeerError::TimedOut);
            // They never left, which a caller may rely on.
            let unsent = if up { PeerError::Overloaded } else { PeerError::Unreachable };
            self.shared.fail(overdue.queued, &unsent);
        }
    }
}

async fn within(
    deadline: Instant,
    call: impl Future<Output = Result<PeerReply, PeerError>>,
) -> Result<PeerReply, PeerError> {
    tokio::time::timeout_at(deadline, call).await.unwrap_or(Err(PeerError::TimedOut))
}

/// Answers whose deadline has passed, until the peers are gone.
async fn sweep(peers: Weak<MeshPeers>) {
    let mut ticks = tokio::time::interval(SWEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match peers.upgrade() {
            Some(peers) => peers.answer_overdue(),
            None => return,
        }
    }
}
