//! What a member does by itself about a change of the topology: it catches up on the slots that move, and afterwards gives up
//! what it keeps no more.
//!
//! Unlike one that is rebuilt it answers for its slots all the while: until the change ends each counts by what it had before,
//! too (`Topology::moving`). Whoever keeps a slot that moves when the change ends catches up, those too that kept it before: what
//! a majority of five had, a majority of three of them need not.
//!
//! Invariants:
//! - It has caught up on a slot when it has all that a majority of the set before held under the epoch of the change. From then on
//!   these refuse whatever was computed under an older epoch, so nothing is decided any more that it does not hear of. Where one of
//!   two that had it leaves and has been dead for a minute, the other is enough (`protocol::catch_up`).
//! - What a member had before, it keeps all the while: the others may have it from nobody else.
//! - One thing after the other: a slot that comes back while it is given up is caught up on only after that. What was stored or promised
//!   for it meanwhile and is dropped comes back with that, as the set before counted all along.
//! - What it keeps no more it gives up once every member has the epoch in force in which that is so. Nobody asks for it then.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::Rebuild;
use super::pending::Pending;
use crate::ports::StoreError;
use crate::protocol::catch_up::Sources;
use crate::protocol::ring::Ring;
use crate::types::{NodeNum, Slot, SlotSet};

/// How often it is looked whether all members have an epoch in force.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Rebuild {
    /// Runs for the node's life, once it serves.
    pub async fn keep_up(self: Arc<Self>) {
        let mut epoch = self.routing.subscribe();
        loop {
            epoch.borrow_and_update();
            if let Some(ring) = self.routing.ring()
                && let Err(error) = self.keep_up_with(&ring).await
            {
                tracing::warn!(%error, "slots could not be fetched, or given up; it is tried again");
                sleep(LOOK_EVERY).await;
                continue;
            }
            // The sender lives in `routing`, which we hold.
            let _ = epoch.changed().await;
        }
    }

    /// What that topology asks of this member; ends early where a newer one is in force.
    async fn keep_up_with(&self, ring: &Ring) -> Result<(), StoreError> {
        if ring.topology().moving.is_some() { self.catch_up(ring).await } else { self.give_up(ring).await }
    }

    /// The member that leaves in the change under way, if it is not waited for any more.
    pub(super) fn gone(&self, ring: &Ring) -> Option<NodeNum> {
        ring.topology().leaver().filter(|leaver| self.succession.is_given_up(ring.topology(), *leaver))
    }

    async fn catch_up(&self, ring: &Ring) -> Result<(), StoreError> {
        let (topology, me) = (ring.topology(), self.me);
        let mine = topology.moving_slots().filter(|slot| topology.home_replicas(*slot).contains(&me));
        let sources = |slot: Slot| Sources::to_catch_up(ring.placement(slot), me);
        let pending: Vec<Pending> = mine.map(|slot| Pending::new(slot, sources(slot))).collect();
        let slots = pending.len();
        if slots > 0 {
            tracing::info!(slots, epoch = %ring.epoch(), "{me} catches up on slots that move");
        }
        let fetched = self.fetch(ring, pending).await;
        // Also where the change was taken back: what was left then, nobody fetches any more.
        self.meters.slots.set(0.0);
        self.fetching.lock().over = fetched?;
        Ok(())
    }

    async fn give_up(&self, ring: &Ring) -> Result<(), StoreError> {
        let others: SlotSet = Slot::all().filter(|slot| !ring.placement(*slot).is_home(self.me)).collect();
        if others.is_empty() {
            return Ok(());
        }
        while !self.succession.is_everywhere(ring) {
            sleep(LOOK_EVERY).await;
            if self.routing.epoch() != ring.epoch() {
                return Ok(());
            }
        }
        let gone = self.routing.give_up(&*self.ports.store, ring.epoch(), others).await?;
        if gone > 0 {
            tracing::info!(gone, epoch = %ring.epoch(), "{} gave up records and registers of slots that others keep now", self.me);
        }
        Ok(())
    }
}
