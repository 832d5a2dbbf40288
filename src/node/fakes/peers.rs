//! Peers that answer as a test tells them to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::ports::{Answer, Destination, PeerError, PeerReply, PeerRequest, Peers, ReplicaCall, ReplyTo};
use crate::types::{InstanceId, NodeNum};

/// What becomes of a request to one peer.
pub(crate) type Behaviour = Box<dyn Fn(ReplicaCall) -> Answer + Send>;

/// Peers that answer at once, each as it was told to; unknown ones are not connected.
#[derive(Default)]
pub(crate) struct FakePeers {
    peers: Mutex<BTreeMap<NodeNum, Behaviour>>,
    sent: AtomicU64,
    introduced: Mutex<Vec<(NodeNum, InstanceId)>>,
    meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl FakePeers {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    pub(crate) fn set(&self, node: NodeNum, behaviour: impl Fn(ReplicaCall) -> Answer + Send + 'static) {
        self.peers.lock().insert(node, Box::new(behaviour));
    }

    pub(crate) fn remove(&self, node: NodeNum) {
        self.peers.lock().remove(&node);
    }

    /// In the order in which they were.
    pub(crate) fn introduced(&self) -> Vec<(NodeNum, InstanceId)> {
        self.introduced.lock().clone()
    }

    /// What happens while the next one is introduced.
    pub(crate) fn set_meanwhile(&self, happens: impl FnOnce() + Send + 'static) {
        *self.meanwhile.lock() = Some(Box::new(happens));
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }
}

impl Peers for FakePeers {
    fn send(&self, to: NodeNum, call: ReplicaCall, reply_to: ReplyTo) {
        self.sent.fetch_add(1, Ordering::SeqCst);
        let answer = self.peers.lock().get(&to).map_or(Err(PeerError::Unreachable), |peer| peer(call));
        reply_to.send(answer);
    }

    fn ask(&self, _: Destination, _: PeerRequest, _: Instant) -> BoxFuture<'static, Result<PeerReply, PeerError>> {
        async { Err(PeerError::Unreachable) }.boxed()
    }

    fn introduce(&self, node: NodeNum, instance: InstanceId, _: &str) {
        if let Some(happens) = self.meanwhile.lock().take() {
            happens();
        }
        self.introduced.lock().push((node, instance));
    }

    fn connected(&self, to: NodeNum) -> bool {
        self.peers.lock().contains_key(&to)
    }
}
