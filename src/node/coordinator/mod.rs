//! The coordinator: carries a client's request to its replicas and tells what really happened.
//!
//! `read` and `write` drive the folds of `protocol/quorum`: they send what the fold asks for, wait for answers, and
//! tell it who has been silent for too long. Writes go on after the client was answered until every replica has
//! answered or its time is up (`stragglers`).
//!
//! Invariants:
//! - Nothing is acknowledged that the fold did not count.
//! - Every failed write says what became of it.
//! - A request costs no task of its own; its answers share one allocation.

mod before;
mod flight;
mod import;
mod meters;
mod probe;
mod read;
mod round;
mod stragglers;
#[cfg(test)]
mod tests;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::{Instant, timeout_at};

use crate::node::clock::NodeClock;
use crate::node::reach::Reach;
use crate::node::request::{Failure, FailureKind};
use crate::node::routing::Routing;
use crate::node::trace;
use crate::ports::{Peers, ReplicaCall, ReplicaRequest, ReplyTo, Spawn, Store};
use crate::protocol::quorum::Ask;
use crate::protocol::ring::{Placement, Ring};
use crate::types::{Epoch, Level, NodeNum, Topology};

pub(in crate::node) use import::{Import, Importing};
use meters::Meters;
pub(in crate::node) use round::Round;
use stragglers::Stragglers;

/// What a coordinator needs of its node.
pub struct Coordinator {
    me: NodeNum,
    peers: Arc<dyn Peers>,
    store: Arc<dyn Store>,
    routing: Arc<Routing>,
    clock: Arc<NodeClock>,
    reach: Arc<Reach>,
    stragglers: Arc<Stragglers>,
    meters: Meters,
    requests: AtomicU64,
}

impl std::fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coordinator").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Coordinator {
    pub fn new(
        me: NodeNum,
        peers: Arc<dyn Peers>,
        store: Arc<dyn Store>,
        routing: Arc<Routing>,
        clock: Arc<NodeClock>,
        reach: Arc<Reach>,
    ) -> Arc<Self> {
        let stragglers = Arc::new(Stragglers::new(Arc::clone(&peers), Arc::clone(&reach)));
        let (meters, requests) = (Meters::new(), AtomicU64::new(0));
        Arc::new(Self { me, peers, store, routing, clock, reach, stragglers, meters, requests })
    }

    /// Starts what goes on behind the answers.
    pub fn start(self: &Arc<Self>, spawn: &dyn Spawn) {
        spawn.spawn(Box::pin(Arc::clone(&self.stragglers).run()));
        spawn.spawn(Box::pin(Arc::clone(self).probe_silent()));
    }

    /// Client operations begun since the start.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Client operations that ended since the start, by the buckets of [`crate::protocol::latency`].
    pub(in crate::node) fn took(&self) -> Vec<u64> {
        self.meters.took()
    }

    pub(in crate::node) fn ring(&self, level: Level) -> Result<Arc<Ring>, Failure> {
        self.routing.ring().ok_or_else(|| Failure::before(FailureKind::NotReady, level))
    }

    /// A replica holds a newer topology: it comes into force here before the request goes on.
    /// It may have to drop slots first, and go on with that later.
    pub(in crate::node) async fn adopt(
        &self,
        topology: Arc<Topology>,
        level: Level,
        deadline: Instant,
    ) -> Result<Arc<Ring>, Failure> {
        match timeout_at(deadline, self.routing.adopt(&*self.store, &*self.peers, topology)).await {
            Ok(Ok(())) => self.ring(level),
            Ok(Err(error)) => {
                tracing::warn!(%error, "a newer topology could not be adopted");
                Err(Failure::before(FailureKind::NotReady, level))
            }
            Err(_) => Err(Failure::before(FailureKind::TimedOut, level)),
        }
    }

    /// Whom to ask of that placement: home replicas are probed where they hung, stand-ins are not.
    pub(in crate::node) fn asking<'a>(&'a self, placement: &'a Placement) -> impl Fn(NodeNum) -> Ask + 'a {
        move |n| if placement.is_home(n) { self.reach.ask(n) } else { self.reach.ask_unprobed(n) }
    }

    fn send(&self, to: NodeNum, epoch: Epoch, deadline: Instant, request: ReplicaRequest, reply_to: ReplyTo) {
        let (deadline, trace) = (Some(deadline), trace::current());
        self.peers.send(to, ReplicaCall { epoch, request, deadline, behind: false, trace }, reply_to);
    }
}

impl Failure {
    /// It failed before anything was sent.
    pub(in crate::node) fn before(kind: FailureKind, level: Level) -> Self {
        Self { kind, outcome: None, level, required: 0, sets: None, acked: Vec::new(), failed: Vec::new(), met: None }
    }
}
