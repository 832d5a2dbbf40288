//! Requests that this replica is behind for: they were computed under a newer topology than the one in force here, and by this one
//! it would refuse them. The newer one is fetched from whoever sent them, and then they are looked at again.
//!
//! Without this the first requests to a member that gets a slot would fail, each time the topology changes.
//!
//! Invariant: a request waits here once. What is refused then, is.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::replica::Replica;
use super::succession::Succession;
use crate::ports::{Deliveries, Delivery, Refusal, ReplicaReply};
use crate::types::NodeNum;

/// Requests that wait at a time; more are refused.
const WAITING_MAX: usize = 4096;

/// See the module.
#[derive(Default)]
pub(super) struct Behind {
    waiting: Mutex<Vec<(NodeNum, Delivery)>>,
    more: Notify,
}

impl Behind {
    /// Takes a request, or refuses it as that.
    pub(super) fn wait(&self, from: NodeNum, delivery: Delivery, refusal: Refusal) {
        let mut waiting = self.waiting.lock();
        if waiting.len() >= WAITING_MAX {
            delivery.reply_to.send(Ok(ReplicaReply::Refused(refusal)));
            return;
        }
        waiting.push((from, delivery));
        self.more.notify_one();
    }

    /// Runs for the node's life.
    pub(super) async fn run(self: Arc<Self>, replica: Arc<Replica>, succession: Arc<Succession>) {
        loop {
            self.more.notified().await;
            // What comes while a topology is fetched waits for the next time: it may be under a newer one still.
            let waiting = std::mem::take(&mut *self.waiting.lock());
            let Some((from, _)) = waiting.iter().max_by_key(|(_, delivery)| delivery.call.epoch) else { continue };
            succession.fetch_from(*from).await;
            let mut batch = Deliveries::new();
            let mut of: Option<NodeNum> = None;
            for (from, delivery) in waiting {
                if let Some(before) = of.replace(from).filter(|before| *before != from) {
                    replica.deliver_late(before, std::mem::take(&mut batch));
                }
                batch.push(delivery);
            }
            if let Some(from) = of {
                replica.deliver_late(from, batch);
            }
        }
    }
}

impl fmt::Debug for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Behind").finish_non_exhaustive()
    }
}
