//! The ports and shared parts that healing works with, handoff and anti-entropy, and the replica they make way for.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Ports;
use super::clock::NodeClock;
use super::journal::Journal;
use super::reach::Reach;
use super::routing::Routing;
use crate::ports::{Entropy, Peers, Store};
use crate::types::NodeNum;

/// See the module.
#[derive(Clone)]
pub struct Parts {
    pub me: NodeNum,
    pub store: Arc<dyn Store>,
    pub peers: Arc<dyn Peers>,
    pub entropy: Arc<dyn Entropy>,
    pub reach: Arc<Reach>,
    pub routing: Arc<Routing>,
    pub clock: Arc<NodeClock>,
    pub served: Arc<Served>,
    pub journal: Arc<Journal>,
}

impl Parts {
    pub fn of(ports: &Ports, reach: &Arc<Reach>, routing: &Arc<Routing>, clock: &Arc<NodeClock>) -> Self {
        Self {
            me: ports.store.identity().node,
            store: Arc::clone(&ports.store),
            peers: Arc::clone(&ports.peers),
            entropy: Arc::clone(&ports.entropy),
            reach: Arc::clone(reach),
            routing: Arc::clone(routing),
            clock: Arc::clone(clock),
            served: Arc::default(),
            journal: Arc::clone(reach.journal()),
        }
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("me", &self.me).finish_non_exhaustive()
    }
}

/// What this replica was asked on behalf of clients since its start, whoever coordinated it: while that grows, healing
/// leaves it time.
#[derive(Debug, Default)]
pub struct Served(AtomicU64);

impl Served {
    pub(super) fn add(&self, requests: u64) {
        self.0.fetch_add(requests, Ordering::Relaxed);
    }

    pub(super) fn so_far(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
