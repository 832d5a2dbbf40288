//! The scrub: reads every row now and then, slowly, so that damage is found while other copies can still mend it.
//!
//! A row whose bytes changed on the disk leaves the sums as they were, as these are moved by writes alone; so a slot's rows
//! are counted and held against its sums, too. Leaves with damaged rows, or where the two disagree, are exchanged with the slot's
//! other home replicas, and the slot is counted anew. Caveat: sums that are off with the right count are not noticed.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::round::Task;
use super::{AntiEntropy, Stop};
use crate::node::operations::Progress;
use crate::protocol::ring::Ring;
use crate::types::{Key, Leaf, Look, NodeNum, Slot, Span, Sum};

/// How long after its start a node begins: founding and handoff go first.
const FIRST: Duration = Duration::from_secs(10);
/// From the end of one scrub to the beginning of the next.
const EVERY: Duration = Duration::from_secs(24 * 3600);
/// The same after one that found damage: the copies that could mend it may have been out of reach.
const AGAIN: Duration = Duration::from_secs(300);
/// A slot's scrub is followed by a rest of so many times what it took, and at least of [`REST_MIN`].
const REST_FACTOR: u32 = 4;
const REST_MIN: Duration = Duration::from_millis(20);

impl AntiEntropy {
    /// Runs for the node's life.
    pub(super) async fn keep_scrubbing(&self) {
        loop {
            sleep(FIRST).await;
            if self.parts.routing.ring().is_none() {
                continue;
            }
            let found = self.scrub().await;
            self.meters.scrubbed.set(self.parts.clock.wall_ms() as f64 / 1000.0);
            if found > 0 {
                tracing::warn!(damaged = found, "the scrub found damage; other copies mend it");
                sleep(AGAIN).await;
            } else {
                sleep(EVERY).await;
            }
        }
    }

    /// Every slot this node is a home replica of, once. Says how many leaves were damaged.
    async fn scrub(&self) -> usize {
        let mut found = 0;
        for slot in Slot::all() {
            let Some(ring) = self.parts.routing.ring() else { continue };
            if !ring.placement(slot).is_home(self.parts.me) {
                continue;
            }
            let began = Instant::now();
            let suspects = self.suspects(&ring, slot).await;
            if !suspects.is_empty() {
                found += suspects.len();
                self.mend(&ring, slot, &suspects).await;
            }
            sleep((began.elapsed() * REST_FACTOR).max(REST_MIN)).await;
        }
        found
    }

    /// The leaves of a slot whose rows are not what was written.
    async fn suspects(&self, ring: &Ring, slot: Slot) -> Vec<Leaf> {
        let leaves: Vec<Leaf> = Span::of_slot(slot).leaves().collect();
        let before = self.parts.store.leaf_sums(slot);
        if before.is_none() {
            // It is being counted, or could not be: then this is when it is tried again.
            self.parts.store.count_anew(slot);
        }
        let held = match self.parts.store.holdings(slot, leaves.clone()).await {
            Ok(held) => held,
            Err(error) => {
                tracing::error!(%slot, %error, "a slot cannot be read");
                return Vec::new();
            }
        };
        let damaged: BTreeSet<Leaf> = held.damaged.iter().map(|key: &Key| Leaf::of(ring.token(key))).collect();
        let after = self.parts.store.leaf_sums(slot);
        let mut counted = vec![0u64; Leaf::IN_SLOT];
        for (entry, _) in &held.intact {
            counted[Leaf::of(entry.token).within_slot()] += 1;
        }
        // What changed meanwhile is not held against it, nor what is counted anew anyway.
        let is_off = |leaf: &Leaf| {
            let of = |sums: &Option<Vec<Sum>>| sums.as_ref().and_then(|sums| sums.get(leaf.within_slot()).copied());
            let (before, after) = (of(&before), of(&after));
            before == after && after.is_some_and(|sum| sum.records != counted[leaf.within_slot()])
        };
        leaves.into_iter().filter(|leaf| damaged.contains(leaf) || is_off(leaf)).collect()
    }

    /// Fetches what these leaves should hold from the slot's other home replicas, and gives them what they miss.
    async fn mend(&self, ring: &Ring, slot: Slot, leaves: &[Leaf]) {
        let homes = ring.placement(slot).home_replicas();
        let others = homes.into_iter().filter(|node| *node != self.parts.me && self.parts.reach.is_reachable(*node));
        for peer in others {
            if let Err(stop) = self.exchange_leaves(peer, slot, leaves).await {
                tracing::warn!(%slot, %peer, %stop, "damaged rows could not be fetched");
            }
        }
        self.parts.store.count_anew(slot);
    }

    async fn exchange_leaves(&self, peer: NodeNum, slot: Slot, leaves: &[Leaf]) -> Result<(), Stop> {
        let _turn = self.turn.lock().await;
        let progress = Progress::default();
        let task = Task { peer, look: Look::Keys, repair: true, chunks: &[], progress: &progress };
        self.exchange_these(&task, slot, leaves).await
    }
}
