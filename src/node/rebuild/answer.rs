//! What a replica tells those who fetch its slots, and whoever asks how far its own are.

use std::sync::Arc;

use super::{Rebuild, refused};
use crate::ports::{PeerError, PeerReply};
use crate::protocol::ring::Ring;
use crate::types::{CatchUp, Epoch, Key, LeafSet, Slot};

impl Rebuild {
    /// How far this member is with the change under way.
    ///
    /// # Errors
    /// `Refused` where it answers for nothing yet.
    pub async fn answer_catch_up(&self, epoch: Epoch) -> Result<PeerReply, PeerError> {
        let ring = self.routing.ring().ok_or_else(|| refused("it has no topology".into()))?;
        if ring.epoch() != epoch {
            return Ok(PeerReply::WrongEpoch { epoch: ring.epoch() });
        }
        if self.routing.is_rebuilding() {
            return Err(refused("it is being rebuilt itself".into()));
        }
        if ring.topology().leaver() == Some(self.me) {
            // Of the hints that were let in before, none may be on its way to the disk still.
            self.let_in_is_on_disk(&ring).await?;
        }
        let hints = self.ports.store.hint_totals().iter().map(|(_, totals)| totals.count).sum();
        Ok(PeerReply::CaughtUp(CatchUp { hints, ..self.fetching.lock().told(epoch) }))
    }

    /// A page of a slot, for a member that is being rebuilt: its registers, and the records of those leaves.
    ///
    /// # Errors
    /// `Refused` where this node cannot tell all that it ever acknowledged. Nothing was told.
    pub async fn answer(
        &self,
        epoch: Epoch,
        slot: Slot,
        leaves: LeafSet,
        after: Option<Key>,
    ) -> Result<PeerReply, PeerError> {
        let ring = match self.as_source(epoch, slot)? {
            Ok(ring) => ring,
            Err(wrong_epoch) => return Ok(wrong_epoch),
        };
        if after.is_none() {
            self.let_in_is_on_disk(&ring).await?;
        }
        let page = self.ports.store.slot_page(slot, after).await.map_err(|e| refused(e.to_string()))?;
        let mut entries = page.entries;
        if leaves != LeafSet::ALL {
            for (key, record, _) in &mut entries {
                record.take_if(|_| !leaves.contains(ring.token(key)));
            }
            entries.retain(|(_, record, register)| record.is_some() || register.is_some());
        }
        self.meters.sent.increment(entries.len() as u64);
        Ok(PeerReply::SlotPage { entries, floor: page.floor, next: page.next })
    }

    /// The ring of that epoch, or what to answer where another one is in force.
    pub(super) fn as_source(&self, epoch: Epoch, slot: Slot) -> Result<Result<Arc<Ring>, PeerReply>, PeerError> {
        let ring = self.routing.ring().ok_or_else(|| refused("it has no topology".into()))?;
        if ring.epoch() != epoch {
            return Ok(Err(PeerReply::WrongEpoch { epoch: ring.epoch() }));
        }
        if self.routing.is_rebuilding() {
            return Err(refused("it is being rebuilt itself".into()));
        }
        if !ring.placement(slot).is_home(self.me) {
            return Err(refused("it has no copy of that slot".into()));
        }
        Ok(Ok(ring))
    }

    /// Whatever was let in under the epoch before is queued by now, and on disk after the next change.
    pub(super) async fn let_in_is_on_disk(&self, ring: &Ring) -> Result<(), PeerError> {
        self.replica.settle();
        let topology = Arc::clone(ring.topology());
        self.ports.store.save_topology(topology).await.map_err(|e| refused(e.to_string()))
    }
}
