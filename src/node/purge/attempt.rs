//! One attempt to raise the floors of this node's slots: survey, seal, hints, exchange, floor, drop.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;

use super::{ASK_DEADLINE, Purge, UNREACHABLE};
use crate::protocol::purge::{self, Next};
use crate::protocol::ring::Ring;
use crate::types::{Floor, Hlc, Key, NodeNum, PurgeReply, PurgeStep, Slot, SlotDrop, SlotSet, Survey};

/// Slots asked about at a time: what a replica does in [`ASK_DEADLINE`] has a bound.
const SLOTS_AT_ONCE: usize = 16;
/// How often the home replicas are compared all around before an attempt is given up.
const PASSES_MAX: usize = 4;
/// Registers settled at a time.
const SETTLED_AT_ONCE: usize = 8;
/// How long settling one may take.
const SETTLE_DEADLINE: Duration = Duration::from_secs(5);

/// For whom it waits, and why.
type Waiting = BTreeMap<NodeNum, String>;

/// The floors that may be raised now, each above that one.
type Floors = BTreeMap<Slot, Floor>;

impl Purge {
    /// As far as it comes; says for whom tombstones wait.
    pub(super) async fn attempt(&self, ring: Arc<Ring>) -> Waiting {
        let mut waiting = Waiting::new();
        self.drop_owed(&ring, &mut waiting).await;
        let (seal, of_age) = self.times();
        let mut floors = self.survey(&ring, (seal, of_age), &mut waiting).await;
        if floors.is_empty() || !waiting.is_empty() && self.blocks_all(&waiting) {
            return waiting;
        }
        self.seal(&ring, seal, &mut floors, &mut waiting).await;
        self.ask_for_hints(&ring, seal, &mut floors, &mut waiting).await;
        let floors = self.exchange(&ring, seal, floors, &mut waiting).await;
        if self.parts.routing.epoch() == ring.epoch() {
            self.raise(&ring, seal, &floors, &mut waiting).await;
            self.drop_owed(&ring, &mut waiting).await;
        }
        waiting
    }

    /// Whether nothing can be raised while these are waited for: every member must say that it has no hints.
    fn blocks_all(&self, waiting: &Waiting) -> bool {
        waiting.keys().any(|node| *node != self.parts.me && !self.parts.reach.is_reachable(*node))
    }

    /// What would be sealed now, and up to when what was written is of age.
    fn times(&self) -> (Hlc, Hlc) {
        let (now, grace_ms) = (self.parts.clock.now(), self.options.grace_ms());
        let skew_ms = u64::try_from(self.options.clock_skew_max.as_millis()).unwrap_or(u64::MAX);
        let age_ms = purge::seal_age_ms(grace_ms, skew_ms);
        (Hlc::from_ms(now.ms().saturating_sub(age_ms)), purge::of_age(now, grace_ms))
    }

    /// Asks the home replicas of these slots, each what concerns it. A slot of which one does not answer is taken out.
    async fn ask_homes(
        &self,
        ring: &Ring,
        slots: &mut Floors,
        waiting: &mut Waiting,
        step: impl Fn(&[Slot]) -> PurgeStep,
    ) -> Vec<(NodeNum, PurgeReply)> {
        let (mut replies, mut failed) = (Vec::new(), Waiting::new());
        let all: Vec<Slot> = slots.keys().copied().collect();
        for group in all.chunks(SLOTS_AT_ONCE) {
            let answered = |failed: &Waiting, slot: &Slot| {
                ring.placement(*slot).home_replicas().iter().all(|node| !failed.contains_key(node))
            };
            let asked: Vec<Slot> = group.iter().copied().filter(|slot| answered(&failed, slot)).collect();
            replies.extend(self.ask_group(ring, &asked, &mut failed, &step).await);
            group.iter().filter(|slot| !answered(&failed, slot)).for_each(|slot| {
                slots.remove(slot);
            });
        }
        waiting.extend(failed);
        replies
    }

    /// Asks the home replicas of a few slots, but for those that failed before: who does not answer is not asked again.
    async fn ask_group(
        &self,
        ring: &Ring,
        group: &[Slot],
        failed: &mut Waiting,
        step: &impl Fn(&[Slot]) -> PurgeStep,
    ) -> Vec<(NodeNum, PurgeReply)> {
        let mut of_node: BTreeMap<NodeNum, Vec<Slot>> = BTreeMap::new();
        for slot in group {
            for node in ring.placement(*slot).home_replicas().iter().filter(|node| !failed.contains_key(node)) {
                of_node.entry(*node).or_default().push(*slot);
            }
        }
        let asked = of_node.iter().map(|(node, slots)| {
            let step = step(slots);
            async move { (*node, self.ask(*node, ring.epoch(), step, ASK_DEADLINE).await) }
        });
        let mut replies = Vec::new();
        for (node, said) in join_all(asked).await {
            match said {
                Ok(reply) => replies.push((node, reply)),
                Err(why) => drop(failed.insert(node, why)),
            }
        }
        replies
    }

    /// What the home replicas have, and which floors are to be raised. Those that are not equal are completed.
    async fn survey(&self, ring: &Ring, times: (Hlc, Hlc), waiting: &mut Waiting) -> Floors {
        let mine: Vec<Slot> = Slot::all().filter(|slot| purge::raises(ring, self.parts.me, *slot)).collect();
        let (mut silent, mut replies) = (Waiting::new(), Vec::new());
        for group in mine.chunks(SLOTS_AT_ONCE) {
            // Where one is silent the others are asked all the same: people are told what there is.
            replies.extend(self.ask_group(ring, group, &mut silent, &|s| PurgeStep::Survey { slots: set(s) }).await);
        }
        let mut said: BTreeMap<Slot, Vec<purge::Said>> = BTreeMap::new();
        let (mut something, mut oldest) = (false, None);
        for (_, reply) in replies {
            let PurgeReply::Surveyed { now, slots } = reply else { continue };
            for Survey { slot, floor, tombstones, orphans, oldest: tombstone, oldest_orphan, .. } in slots {
                something |= tombstones + orphans > 0;
                oldest = oldest.into_iter().chain(tombstone).min();
                let first = tombstone.into_iter().chain(oldest_orphan).min();
                said.entry(slot).or_default().push((now, floor, first));
            }
        }
        self.show_oldest(oldest);
        if something {
            // Nobody is waited for where there is nothing to purge.
            let members = ring.topology().members.iter().map(|m| m.node).filter(|node| *node != self.parts.me);
            let gone = members.filter(|node| !self.parts.reach.is_reachable(*node));
            waiting.extend(gone.map(|node| (node, UNREACHABLE.to_owned())));
            waiting.extend(silent);
        }
        let (mut raise, mut complete) = (Floors::new(), Floors::new());
        for slot in mine {
            let said = said.remove(&slot).unwrap_or_default();
            if said.len() < ring.placement(slot).home_replicas().len() {
                continue;
            }
            match self.complete.lock().next(ring.epoch(), slot, &said, times) {
                Next::Nothing | Next::Wait => {}
                Next::Complete(floor) => drop(complete.insert(slot, floor)),
                Next::Raise(floor) => drop(raise.insert(slot, floor)),
            }
        }
        if !complete.is_empty() {
            self.send_floors(ring, complete, waiting).await;
        }
        raise
    }

    /// The oldest tombstone of the slots that were surveyed, for people.
    fn show_oldest(&self, oldest: Option<Hlc>) {
        let oldest_ms = oldest.map_or(0, Hlc::ms);
        self.status.lock().oldest_ms = oldest_ms;
        let age_ms = if oldest.is_some() { self.parts.clock.wall_ms().saturating_sub(oldest_ms) } else { 0 };
        self.meters.oldest.set(age_ms as f64 / 1000.0);
    }

    /// Has these floors on every home replica; gives back those that are.
    async fn send_floors(&self, ring: &Ring, mut floors: Floors, waiting: &mut Waiting) -> Floors {
        let all = floors.clone();
        let raise = |slots: &[Slot]| PurgeStep::Raise {
            floors: slots.iter().filter_map(|slot| Some((*slot, *all.get(slot)?))).collect(),
        };
        self.ask_homes(ring, &mut floors, waiting, raise).await;
        floors
    }

    /// Seals, and settles what was accepted by then.
    async fn seal(&self, ring: &Ring, seal: Hlc, floors: &mut Floors, waiting: &mut Waiting) {
        let unsettled = self.seal_once(ring, seal, floors.clone(), floors, waiting).await;
        if unsettled.is_empty() {
            return;
        }
        let of_slots = unsettled.iter().filter_map(|(slot, ..)| Some((*slot, *floors.get(slot)?))).collect();
        let settling = unsettled.into_iter().map(|(_, named_by, key)| async move {
            self.conditional.settle(named_by, key, Instant::now() + SETTLE_DEADLINE).await
        });
        stream::iter(settling).buffered(SETTLED_AT_ONCE).for_each(|()| async {}).await;
        // Whoever named it has to have it settled, and not just a majority without him: till he has the floor, others
        // would find it at him again, below theirs.
        for (slot, node, _) in self.seal_once(ring, seal, of_slots, floors, waiting).await {
            floors.remove(&slot);
            waiting.insert(node, "it has conditional writes that could not be settled".to_owned());
        }
    }

    /// Has some of the slots sealed; says what their registers have still to settle, and who named it.
    async fn seal_once(
        &self,
        ring: &Ring,
        seal: Hlc,
        mut some: Floors,
        floors: &mut Floors,
        waiting: &mut Waiting,
    ) -> BTreeSet<(Slot, NodeNum, Key)> {
        let (asked, mut unsettled) = (some.clone(), BTreeSet::new());
        let step = |slots: &[Slot]| PurgeStep::Seal { slots: set(slots), up_to: seal };
        for (node, reply) in self.ask_homes(ring, &mut some, waiting, step).await {
            let PurgeReply::Sealed(slots) = reply else { continue };
            for sealed in slots {
                if sealed.more {
                    // These are settled, and the rest at the next attempt.
                    some.remove(&sealed.slot);
                    waiting.insert(node, "it has more conditional writes to settle than go at once".to_owned());
                }
                if sealed.damaged {
                    some.remove(&sealed.slot);
                    waiting.insert(node, "a register of a key there is damaged".to_owned());
                }
                unsettled.extend(sealed.unsettled.into_iter().map(|key| (sealed.slot, node, key)));
            }
        }
        floors.retain(|slot, _| some.contains_key(slot) || !asked.contains_key(slot));
        unsettled
    }

    /// Every member must have no hint of that time. Those that have some are waited for.
    async fn ask_for_hints(&self, ring: &Ring, seal: Hlc, floors: &mut Floors, waiting: &mut Waiting) {
        if floors.is_empty() {
            return;
        }
        let asked = ring.topology().members.iter().map(|member| async move {
            let step = PurgeStep::Hints { up_to: seal };
            (member.node, self.ask(member.node, ring.epoch(), step, ASK_DEADLINE).await)
        });
        for (node, said) in join_all(asked).await {
            match said {
                Ok(PurgeReply::Hinted(slots)) => {
                    let before = floors.len();
                    floors.retain(|slot, _| !slots.contains(*slot));
                    if floors.len() < before {
                        waiting.insert(node, "it keeps hints that are not delivered".to_owned());
                    }
                }
                Ok(_) => {
                    waiting.insert(node, "an answer of the wrong kind".to_owned());
                    floors.clear();
                }
                Err(why) => {
                    waiting.insert(node, why);
                    floors.clear();
                }
            }
        }
    }

    /// Compares this node with every other home replica, all around and once more; gives back the slots of which the second
    /// time found nothing.
    async fn exchange(&self, ring: &Ring, seal: Hlc, mut floors: Floors, waiting: &mut Waiting) -> Floors {
        let (mut equal, mut unlike) = (Floors::new(), BTreeMap::new());
        for pass in 1..=PASSES_MAX {
            let mut peers: BTreeMap<NodeNum, SlotSet> = BTreeMap::new();
            for slot in floors.keys() {
                for node in ring.placement(*slot).home_replicas().iter().filter(|node| **node != self.parts.me) {
                    peers.entry(*node).or_insert(SlotSet::NONE).insert(*slot);
                }
            }
            unlike = BTreeMap::new();
            for (peer, slots) in peers {
                match self.anti_entropy.exchange(peer, slots, seal).await {
                    Ok(same) => {
                        let differ = slots.iter().filter(|slot| !same.contains(*slot));
                        unlike.extend(differ.map(|slot| (slot, peer)));
                    }
                    Err(stop) => {
                        waiting.insert(peer, stop.to_string());
                        slots.iter().for_each(|slot| {
                            floors.remove(&slot);
                        });
                    }
                }
            }
            if pass > 1 {
                let done = floors.keys().copied().filter(|slot| !unlike.contains_key(slot)).collect::<Vec<_>>();
                equal.extend(done.into_iter().filter_map(|slot| floors.remove_entry(&slot)));
            }
            if floors.is_empty() {
                break;
            }
        }
        self.say_unequal(&floors, &unlike, waiting);
        equal
    }

    /// Who is waited for where copies did not become equal.
    fn say_unequal(&self, left: &Floors, unlike: &BTreeMap<Slot, NodeNum>, waiting: &mut Waiting) {
        if left.is_empty() {
            return;
        }
        let sums = self.parts.store.slot_sums();
        for (slot, peer) in unlike.iter().filter(|(slot, _)| left.contains_key(slot)) {
            let counted = sums.get(slot.index()).is_some_and(Option::is_some);
            let (node, why) = if counted {
                (*peer, "its copies differ still, or are being counted")
            } else {
                (self.parts.me, "its copies are being counted")
            };
            waiting.entry(node).or_insert_with(|| why.to_owned());
        }
    }

    /// Puts the new floors in force everywhere, and notes what may then be dropped.
    async fn raise(&self, ring: &Ring, seal: Hlc, floors: &Floors, waiting: &mut Waiting) {
        let (now, store) = (self.parts.clock.now(), &self.parts.store);
        let mut raised = BTreeMap::new();
        for (slot, floor) in floors {
            let up_to = purge::drop_up_to(floor, now, self.options.grace_ms());
            let greatest = match store.greatest_tombstone(*slot, up_to).await {
                Ok(greatest) => greatest,
                Err(error) => {
                    tracing::warn!(%slot, %error, "the tombstones of a slot cannot be read");
                    waiting.insert(self.parts.me, "its tombstones cannot be read".to_owned());
                    continue;
                }
            };
            raised.insert(*slot, (purge::above(floor, seal, greatest), up_to));
        }
        let new: Floors = raised.iter().map(|(slot, (floor, _))| (*slot, *floor)).collect();
        let everywhere = self.send_floors(ring, new, waiting).await;
        if everywhere.is_empty() {
            return;
        }
        let wall_ms = self.parts.clock.wall_ms();
        self.status.lock().raised_ms = wall_ms;
        self.meters.raised.set(wall_ms as f64 / 1000.0);
        let mut owed = self.owed.lock();
        if owed.0 != ring.epoch() {
            *owed = (ring.epoch(), BTreeMap::new());
        }
        for (slot, floor) in everywhere {
            if let Some((_, up_to)) = raised.get(&slot) {
                owed.1.insert(slot, SlotDrop { slot, floor, up_to: *up_to });
            }
        }
    }

    /// Has every home replica drop what it may. What one does not do is asked again at the next attempt.
    async fn drop_owed(&self, ring: &Ring, waiting: &mut Waiting) {
        let owed = {
            let owed = self.owed.lock();
            if owed.0 != ring.epoch() || owed.1.is_empty() {
                return;
            }
            owed.1.clone()
        };
        let mut done: Floors = owed.iter().map(|(slot, drop)| (*slot, drop.floor)).collect();
        let step = |slots: &[Slot]| PurgeStep::Drop {
            drops: slots.iter().filter_map(|slot| owed.get(slot)).copied().collect(),
        };
        self.ask_homes(ring, &mut done, waiting, step).await;
        let mut owed = self.owed.lock();
        owed.1.retain(|slot, drop| done.get(slot) != Some(&drop.floor));
    }
}

fn set(slots: &[Slot]) -> SlotSet {
    slots.iter().copied().collect()
}
