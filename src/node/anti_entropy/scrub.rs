//! The scrub: reads every row now and then, slowly, so that damage is found while other copies can still mend it.
//!
//! A row whose bytes changed on the disk leaves the sums as they were, as these are moved by writes alone; so the sums of a
//! slot's rows are held against those, too. Leaves with damaged rows, or where the two disagree, are exchanged with the slot's
//! other home replicas, and the slot is counted anew.
//!
//! Invariants:
//! - A damaged row is removed only once every other home replica of the slot has been asked and none had anything under its
//!   key: then the key is none that was written (a damaged one), or nothing that it held was ever on two disks. What they
//!   have takes its place before that.
//! - What a damaged register promised is lost, and no other copy tells it. The whole database is given up for it, but only
//!   while every other member is there and has taken what this one holds, and no slot moves.
//! - A row that no key belongs to may be any row of its slot: the whole slot is exchanged before it goes, and the leaf that
//!   its key names, as its slot may be what is damaged.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::round::Task;
use super::{AntiEntropy, Stop};
use crate::node::operations::Progress;
use crate::node::views::EventKind;
use crate::ports::{Holdings, StoreError};
use crate::protocol::hashtree;
use crate::protocol::ring::Ring;
use crate::types::{Leaf, Look, NodeNum, Slot, Span};

/// How long after its start a node begins: founding and handoff go first.
const FIRST: Duration = Duration::from_secs(10);
/// From the end of one scrub to the beginning of the next.
const EVERY: Duration = Duration::from_secs(24 * 3600);
/// The same after one that found damage: the copies that could mend it may have been out of reach.
const AGAIN: Duration = Duration::from_secs(300);
/// A slot's scrub is followed by a rest of so many times what it took, and at least of [`REST_MIN`].
const REST_FACTOR: u32 = 4;
const REST_MIN: Duration = Duration::from_millis(20);

/// What does not look as it was written.
#[derive(Debug, Default, PartialEq)]
struct Suspects {
    leaves: BTreeSet<Leaf>,
    /// Rows that are damaged, by slot and key as they read.
    rows: Vec<(i64, Vec<u8>)>,
    /// There is a register of which nobody knows what it promised.
    lost: bool,
}

/// What a scrub found.
#[derive(Debug, Default)]
struct Findings {
    /// Leaves.
    damaged: usize,
    lost: bool,
}

impl AntiEntropy {
    /// Runs for the node's life.
    pub(super) async fn keep_scrubbing(&self) {
        loop {
            sleep(FIRST).await;
            if self.parts.routing.ring().is_none() {
                continue;
            }
            let Findings { damaged: found, lost } = self.scrub().await;
            if lost {
                self.give_up().await;
            }
            let now_ms = self.parts.clock.wall_ms();
            self.scrubbed_ms.store(now_ms, Ordering::Relaxed);
            self.meters.scrubbed.set(now_ms as f64 / 1000.0);
            if found > 0 {
                tracing::warn!(damaged = found, "the scrub found damage; other copies mend it");
                let text = format!("found damage in {found} leaves; other copies mend it");
                self.parts.journal.note(self.parts.me, EventKind::Damage, text);
                sleep(AGAIN).await;
            } else {
                sleep(EVERY).await;
            }
        }
    }

    /// Every slot this node is a home replica of, once.
    async fn scrub(&self) -> Findings {
        let mut found = Findings::default();
        for slot in Slot::all() {
            let Some(ring) = self.parts.routing.ring() else { continue };
            if !ring.placement(slot).is_home(self.parts.me) {
                continue;
            }
            let began = Instant::now();
            found.damaged += match self.suspects(&ring, slot).await {
                Ok(suspects) if suspects == Suspects::default() => 0,
                Ok(suspects) => {
                    found.lost |= suspects.lost;
                    self.mend(&ring, slot, suspects).await
                }
                Err(error) => {
                    tracing::error!(%slot, %error, "a slot cannot be read");
                    Leaf::IN_SLOT
                }
            };
            sleep((began.elapsed() * REST_FACTOR).max(REST_MIN)).await;
        }
        found
    }

    /// What of a slot is not what was written.
    async fn suspects(&self, ring: &Ring, slot: Slot) -> Result<Suspects, StoreError> {
        let leaves: Vec<Leaf> = Span::of_slot(slot).leaves().collect();
        let before = self.parts.store.leaf_sums(slot);
        if before.is_none() {
            // It is being counted, or could not be: then this is when it is tried again.
            self.parts.store.count_anew(slot);
        }
        let held = self.parts.store.holdings(slot, leaves.clone()).await?;
        let after = self.parts.store.leaf_sums(slot);
        let mut suspects = Suspects::of(ring, slot, &held);
        if let (Some(before), Some(after)) = (before, after) {
            let found = |leaf: &Leaf| held.leaves.get(leaf).copied().unwrap_or_default();
            let of = leaves.into_iter().zip(before.into_iter().zip(after));
            // What changed meanwhile is not held against it.
            let is_off = of.filter(|(leaf, (before, after))| before == after && *after != found(leaf));
            suspects.leaves.extend(is_off.map(|(leaf, _)| leaf));
        }
        Ok(suspects)
    }

    /// Fetches what these leaves should hold from their slots' other home replicas, gives them what they miss, and removes
    /// the damaged rows that none of them knows. Says how many leaves it were.
    async fn mend(&self, ring: &Ring, slot: Slot, suspects: Suspects) -> usize {
        let leaves: Vec<Span> = suspects.leaves.iter().copied().map(Span::of_leaf).collect();
        let mut asked_all = true;
        for (slot, leaves) in hashtree::by_slot(&leaves) {
            asked_all &= self.exchange_with_all(ring, slot, &leaves).await;
        }
        if asked_all && !suspects.rows.is_empty() {
            match self.parts.store.discard(slot, suspects.rows).await {
                Ok(0) => {}
                Ok(rows) => tracing::warn!(%slot, rows, "damaged rows that no other copy knows were removed"),
                Err(error) => tracing::warn!(%slot, %error, "damaged rows could not be removed"),
            }
        }
        self.parts.store.count_anew(slot);
        suspects.leaves.len()
    }

    /// Whether there are other home replicas, and all of them were asked for all of it.
    async fn exchange_with_all(&self, ring: &Ring, slot: Slot, leaves: &[Leaf]) -> bool {
        let homes = ring.placement(slot).home_replicas();
        if !homes.contains(&self.parts.me) {
            return true;
        }
        let others: Vec<NodeNum> = homes.iter().copied().filter(|node| *node != self.parts.me).collect();
        let mut asked = 0;
        for peer in others.iter().filter(|node| self.parts.reach.is_reachable(**node)) {
            match self.exchange_leaves(*peer, slot, leaves).await {
                Ok(()) => asked += 1,
                Err(stop) => tracing::warn!(%slot, %peer, %stop, "damaged rows could not be fetched"),
            }
        }
        !others.is_empty() && asked == others.len()
    }

    /// A damaged register refuses for good, and keeps others from being rebuilt from here; nobody can mend it. So once every
    /// other member has all that is here the database is given up, and the node comes back as a new instance.
    async fn give_up(&self) {
        let Some(ring) = self.parts.routing.ring() else { return };
        if ring.topology().moving.is_some() {
            tracing::warn!(
                "a register is damaged; it stays until the topology has changed, as slots that move are not compared"
            );
            return;
        }
        let partners = self.partners(&ring);
        for peer in &partners {
            if !self.parts.reach.is_reachable(*peer) || self.repair(*peer, &[], &Progress::default()).await.is_err() {
                tracing::warn!(%peer, "a register is damaged; it stays until every other member has what is here");
                return;
            }
        }
        if !partners.is_empty() && self.parts.routing.epoch() == ring.epoch() {
            let text = "gives up its database, in which a register is damaged: it comes back as a new instance";
            self.parts.journal.note(self.parts.me, EventKind::Damage, text);
            self.parts.store.condemn("a register's promise is not known any more");
        }
    }

    /// When that member last ended a scrub.
    pub(super) async fn scrub_of(&self, node: NodeNum) -> (NodeNum, Option<u64>) {
        let told = self.asked(node, node, Look::Chunks).await;
        (node, told.ok().map(|told| told.scrubbed_ms).filter(|ms| *ms > 0))
    }

    async fn exchange_leaves(&self, peer: NodeNum, slot: Slot, leaves: &[Leaf]) -> Result<(), Stop> {
        let _turn = self.turn.lock().await;
        let progress = Progress::default();
        let task =
            Task { peer, look: Look::Keys, repair: true, chunks: &[], up_to: None, mends: true, progress: &progress };
        self.exchange_these(&task, slot, leaves).await
    }
}

impl Suspects {
    /// What is damaged by itself.
    fn of(ring: &Ring, slot: Slot, held: &Holdings) -> Self {
        let mut leaves: BTreeSet<Leaf> = held.damaged.iter().map(|key| Leaf::of(ring.token(key))).collect();
        if !held.strays.is_empty() {
            // It may have been any of them.
            leaves.extend(Span::of_slot(slot).leaves());
        }
        leaves.extend(held.suspects().map(|key| Leaf::of(ring.token(&key))));
        let damaged = held.damaged.iter().map(|key| (i64::from(slot.0), key.as_bytes().to_vec()));
        let rows = damaged.chain(held.strays.iter().cloned()).collect();
        Self { leaves, rows, lost: !held.lost.is_empty() }
    }
}
