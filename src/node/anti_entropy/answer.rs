//! The other side of a round: what a node answers to who compares itself with it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::round::Tree;
use super::{AntiEntropy, Room, Stop};
use crate::node::reaper;
use crate::ports::{PeerError, PeerReply};
use crate::protocol::hashtree::{self, Sums};
use crate::protocol::ring::Ring;
use crate::types::{ChunkHashes, Difference, Epoch, Exchange, Key, Look, NodeNum, Slot, SlotSet, Span};

impl AntiEntropy {
    /// The digests of these spans' parts, over the slots shared with that peer.
    ///
    /// # Errors
    /// `Refused` before there is a cluster.
    pub(in crate::node) fn answer_chunk_hash(
        &self,
        from: NodeNum,
        epoch: Epoch,
        left_out: SlotSet,
        spans: &[Span],
    ) -> Result<PeerReply, PeerError> {
        let ring = self.ring_to_compare_under()?;
        if ring.epoch() != epoch {
            return Ok(PeerReply::WrongEpoch { epoch: ring.epoch() });
        }
        let tree = Tree::of(&*self.parts.store);
        let shared = hashtree::shared(&ring, self.parts.me, from);
        let asked = |slot: &Slot| shared.contains(*slot) && !left_out.contains(*slot);
        let is_summed = |slot: &Slot| tree.slot(*slot).is_some();
        let summed: SlotSet = shared.iter().filter(asked).filter(is_summed).collect();
        let unknown = shared.iter().filter(asked).filter(|slot| !is_summed(slot)).collect();
        let digests = hashtree::digests(&tree, &summed, spans);
        Ok(PeerReply::ChunkHashes(ChunkHashes { left_out: unknown, digests }))
    }

    /// What differs between the asker's list and what is held here.
    ///
    /// # Errors
    /// `Refused` before there is a cluster, or where the rows cannot be read.
    pub(in crate::node) async fn answer_fetch_range(&self, exchange: Exchange) -> Result<PeerReply, PeerError> {
        let Exchange { epoch, slot, leaves, held, names_only, up_to } = exchange;
        let ours = self.ring_to_compare_under()?.epoch();
        if ours != epoch {
            return Ok(PeerReply::WrongEpoch { epoch: ours });
        }
        let refused = |error: crate::ports::StoreError| PeerError::Refused(error.to_string());
        reaper::reap(&*self.parts.store, &self.parts.clock).await.map_err(refused)?;
        let holdings = self.parts.store.holdings(slot, leaves).await.map_err(refused)?;
        let found = match up_to {
            Some(up_to) => hashtree::differences_up_to(&held, &holdings.intact, up_to),
            None => hashtree::differences(&held, &holdings.intact, self.parts.clock.now().ms()),
        };
        let served = self.parts.served.so_far();
        let serving = self.served_then.swap(served, Ordering::Relaxed) != served;
        if names_only {
            // What is damaged here is no copy, on whichever side.
            let differing: Vec<Key> = found.ours.into_iter().chain(holdings.suspects()).collect();
            let (asked, names) = (differing.len(), few(differing));
            let more = names.len() < asked;
            return Ok(PeerReply::Differences(Difference {
                wanted: found.theirs,
                records: vec![],
                names,
                more,
                serving,
            }));
        }
        let keys: Vec<(Slot, Key)> = found.ours.into_iter().map(|key| (slot, key)).collect();
        let asked = keys.len();
        let (records, looked_up) = self.parts.store.records(keys).await.map_err(refused)?;
        let more = looked_up < asked;
        Ok(PeerReply::Differences(Difference { wanted: found.theirs, records, names: vec![], more, serving }))
    }

    /// # Errors
    /// `Refused` where there is nothing to compare yet: what a node that is being rebuilt lacks is on its way to it.
    fn ring_to_compare_under(&self) -> Result<Arc<Ring>, PeerError> {
        if self.parts.routing.is_rebuilding() {
            return Err(PeerError::Refused("the node is being rebuilt".into()));
        }
        self.parts.routing.ring().ok_or_else(|| PeerError::Refused("the node has no cluster yet".into()))
    }

    /// How this node agrees with that member.
    ///
    /// # Errors
    /// `Refused` where that cannot be said, with the reason.
    pub(in crate::node) async fn answer_converge(&self, with: NodeNum, look: Look) -> Result<PeerReply, PeerError> {
        let convergence =
            self.look_in_time(with, look).await.map_err(|stop: Stop| PeerError::Refused(stop.to_string()))?;
        Ok(PeerReply::Convergence(Box::new(convergence)))
    }
}

/// As many as one answer may name.
fn few(keys: Vec<Key>) -> Vec<Key> {
    let mut room = Room::default();
    keys.into_iter().take_while(|key| room.takes(key)).collect()
}
