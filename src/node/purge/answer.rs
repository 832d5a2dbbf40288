//! What a replica does for purging, asked by whoever raises a floor.
//!
//! A step is let in under the epoch in force and queued at the store before a newer one can come into force: so what a
//! replica tells of itself after a change of the topology holds all that it was asked before (see `rebuild`).

use futures_util::future::BoxFuture;

use super::Purge;
use crate::ports::{PeerError, PeerReply, StoreError};
use crate::protocol::purge;
use crate::protocol::ring::Ring;
use crate::types::{Dropped, Epoch, Floor, Hlc, NodeNum, PurgeReply, PurgeStep, Sealed, SlotSet, Survey};

impl Purge {
    /// Takes a step.
    ///
    /// # Errors
    /// `Refused` where this node cannot, with the reason. Of a drop some may be done.
    pub(in crate::node) async fn answer(
        &self,
        from: NodeNum,
        epoch: Epoch,
        step: PurgeStep,
    ) -> Result<PeerReply, PeerError> {
        if step == PurgeStep::Status {
            return Ok(PeerReply::Purge(PurgeReply::Status(self.status())));
        }
        self.take(from, epoch, step).await.map(PeerReply::Purge)
    }

    async fn take(&self, from: NodeNum, epoch: Epoch, step: PurgeStep) -> Result<PurgeReply, PeerError> {
        let refused = |error: StoreError| PeerError::Refused(error.to_string());
        let store = &self.parts.store;
        // The future is made, and with it the change is queued, before a newer epoch can be in force.
        let queued = {
            let _under_way = self.replica.enter();
            let Some(ring) = self.parts.routing.ring() else {
                return Err(PeerError::Refused("it has no topology".into()));
            };
            if ring.epoch() != epoch {
                return Ok(PurgeReply::WrongEpoch { epoch: ring.epoch() });
            }
            if self.parts.routing.is_rebuilding() {
                return Err(PeerError::Refused("it is being rebuilt".into()));
            }
            self.check(from, &ring, &step).map_err(|why| PeerError::Refused(why.into()))?;
            match step {
                PurgeStep::Survey { slots } => Queued::Survey(store.survey(slots)),
                PurgeStep::Seal { slots, up_to } => Queued::Seal(store.seal(slots, up_to)),
                PurgeStep::Hints { up_to } => Queued::Hints(store.hinted(up_to)),
                PurgeStep::Raise { floors } => Queued::Raise(store.raise(floors)),
                PurgeStep::Drop { drops } => Queued::Drop(store.purge(drops)),
                PurgeStep::Status => return Err(PeerError::Protocol("a status is no step".into())),
            }
        };
        Ok(match queued {
            Queued::Survey(survey) => {
                let slots = survey.await.map_err(refused)?;
                // What was promised before a restart may be ahead of the clock since.
                let promised = slots.iter().map(|survey| survey.promised).max().unwrap_or_default();
                PurgeReply::Surveyed { now: self.parts.clock.now().max(promised), slots }
            }
            Queued::Seal(sealed) => PurgeReply::Sealed(sealed.await.map_err(refused)?),
            Queued::Hints(slots) => PurgeReply::Hinted(slots.await.map_err(refused)?),
            Queued::Raise(raised) => {
                raised.await.map_err(refused)?;
                PurgeReply::Raised
            }
            Queued::Drop(dropped) => {
                let dropped = dropped.await.map_err(refused)?;
                self.meters.purged.increment(dropped.tombstones);
                self.meters.registers.increment(dropped.registers);
                self.status.lock().purged += dropped.tombstones;
                PurgeReply::Dropped(dropped)
            }
        })
    }
}

impl Purge {
    /// Whether a step comes from whom it may, and is about nothing that is still to come here: nothing lowers a floor or a seal
    /// again, and they refuse whatever lies below them.
    fn check(&self, from: NodeNum, ring: &Ring, step: &PurgeStep) -> Result<(), &'static str> {
        let slots: SlotSet = match step {
            PurgeStep::Survey { slots } | PurgeStep::Seal { slots, .. } => *slots,
            PurgeStep::Raise { floors } => floors.iter().map(|(slot, _)| *slot).collect(),
            PurgeStep::Drop { drops } => drops.iter().map(|drop| drop.slot).collect(),
            PurgeStep::Hints { .. } | PurgeStep::Status => SlotSet::NONE,
        };
        if !slots.iter().all(|slot| ring.placement(slot).is_home(self.parts.me)) {
            return Err("it is no home replica of a slot");
        }
        if !slots.iter().all(|slot| purge::raises(ring, from, slot)) {
            return Err("another node raises the floor of a slot");
        }
        let latest = |floor: &Floor| floor.written.max(floor.version.hlc).max(floor.ballot.hlc);
        let latest = match step {
            PurgeStep::Seal { up_to, .. } => *up_to,
            PurgeStep::Raise { floors } => floors.iter().map(|(_, floor)| latest(floor)).max().unwrap_or_default(),
            PurgeStep::Drop { drops } => drops.iter().map(|d| latest(&d.floor).max(d.up_to)).max().unwrap_or_default(),
            PurgeStep::Survey { .. } | PurgeStep::Hints { .. } | PurgeStep::Status => Hlc::ZERO,
        };
        if latest.ms() > self.parts.clock.wall_ms() { Err("it lies ahead of this node's clock") } else { Ok(()) }
    }
}

type Answer<T> = BoxFuture<'static, Result<T, StoreError>>;

/// What the store was asked.
enum Queued {
    Survey(Answer<Vec<Survey>>),
    Seal(Answer<Vec<Sealed>>),
    Hints(Answer<SlotSet>),
    Raise(Answer<()>),
    Drop(Answer<Dropped>),
}
