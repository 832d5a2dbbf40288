//! Trying the peers that fell silent, where no client's request does.
//!
//! A peer that did not answer three times in a row is asked no more, but for one probe a second, which the next request
//! takes (`reach`). A node that nobody sends requests would hold its peers unreachable for ever.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::ports::{ReadPart, ReplicaRequest};
use crate::protocol::quorum::Ask;
use crate::types::{Key, NodeNum};

use super::Coordinator;

/// How often the peers are looked at: requests come first to a probe that is due.
const EVERY: Duration = Duration::from_millis(1_500);
/// So long it waits for an answer.
const PATIENCE: Duration = Duration::from_secs(1);

impl Coordinator {
    pub(super) async fn probe_silent(self: Arc<Self>) {
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let Some(ring) = self.routing.ring() else { continue };
            let silent = |n: &NodeNum| !self.reach.is_reachable(*n) && self.reach.ask(*n) == Ask::Probe;
            let members: Vec<NodeNum> = ring.topology().members.iter().map(|m| m.node).filter(silent).collect();
            // Whatever it says of this key, that it is not its home replica most of all, is an answer.
            let Ok(key) = Key::new("probe") else { continue };
            let request = ReplicaRequest::Read { key, part: ReadPart::Version, hints: false };
            let until = Instant::now() + PATIENCE;
            join_all(members.iter().map(|n| {
                let mut round = self.ask(std::slice::from_ref(n), ring.epoch(), &request, until);
                async move { round.next().await.map(drop) }
            }))
            .await;
        }
    }
}
