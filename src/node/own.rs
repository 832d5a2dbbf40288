//! What this node tells about itself: to its peers as [`NodeInfo`], to its clients as its state.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval};

use super::coordinator::Coordinator;
use super::routing::Routing;
use crate::ports::{InfoStamp, NodeInfo, NodeState, Store};
use crate::protocol::latency::Window;
use crate::types::Identity;

/// The facts about this node, and the parts that know those which change while it runs.
pub struct Own {
    identity: Identity,
    mesh_address: String,
    http_address: String,
    zone: Option<String>,
    weight: u32,
    store: Arc<dyn Store>,
    routing: Arc<Routing>,
    coordinator: Arc<Coordinator>,
    state: AtomicU8,
    requests_per_second: AtomicU64,
    /// Requests counted when the rate was last taken.
    requests_then: AtomicU64,
    lately: Mutex<Lately>,
}

/// How long operations took in the last ten seconds.
#[derive(Debug, Default)]
struct Lately {
    window: Window,
    p99_us: Option<u64>,
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Own").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Own {
    pub(super) fn new(
        options: &super::Options,
        store: Arc<dyn Store>,
        routing: Arc<Routing>,
        coordinator: Arc<Coordinator>,
    ) -> Arc<Self> {
        Arc::new(Self {
            identity: store.identity(),
            mesh_address: options.mesh_address.clone(),
            http_address: options.http_address.clone(),
            zone: options.zone.clone(),
            weight: options.weight,
            store,
            routing,
            coordinator,
            state: AtomicU8::new(NodeState::Starting as u8),
            requests_per_second: AtomicU64::new(0),
            requests_then: AtomicU64::new(0),
            lately: Mutex::default(),
        })
    }

    /// Where it is in its life. A store that has stopped writing outranks the rest.
    pub fn state(&self) -> NodeState {
        if !self.store.totals().writable {
            return NodeState::Failed;
        }
        match self.state.load(Ordering::Relaxed) {
            s if s == NodeState::Serving as u8 => NodeState::Serving,
            s if s == NodeState::Draining as u8 => NodeState::Draining,
            _ => NodeState::Starting,
        }
    }

    /// Whether it is past its start, whatever came then.
    pub(super) fn has_joined(&self) -> bool {
        self.state.load(Ordering::Relaxed) != NodeState::Starting as u8
    }

    /// Whether it has begun to stop, for whatever reason.
    pub(super) fn is_stopping(&self) -> bool {
        self.state.load(Ordering::Relaxed) == NodeState::Draining as u8
    }

    pub(super) fn set_state(&self, state: NodeState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// Takes the rates each second, for the node's life.
    pub(super) async fn keep_rates(self: Arc<Self>) {
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            second.tick().await;
            self.take_rates();
        }
    }

    /// The request rate and the latency.
    fn take_rates(&self) {
        let requests = self.coordinator.requests();
        let then = self.requests_then.swap(requests, Ordering::Relaxed);
        self.requests_per_second.store(requests - then, Ordering::Relaxed);
        let mut lately = self.lately.lock();
        lately.p99_us = lately.window.look(self.coordinator.took());
    }

    /// As peers hear it, under that stamp.
    pub fn info(&self, stamp: InfoStamp) -> NodeInfo {
        let totals = self.store.totals();
        let hints = self.store.hint_totals();
        NodeInfo {
            stamp,
            mesh_address: self.mesh_address.clone(),
            http_address: self.http_address.clone(),
            zone: self.zone.clone(),
            weight: self.weight,
            state: self.state(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: self.routing.epoch(),
            keys: totals.keys,
            bytes: totals.bytes,
            hints: hints.into_iter().map(|(n, t)| (n, t.count, t.bytes)).collect(),
            requests_per_second: self.requests_per_second.load(Ordering::Relaxed),
            p99_us: self.lately.lock().p99_us,
        }
    }
}
