//! The other side of a round: what a node answers to who compares itself with it.

use super::round::Tree;
use super::{AntiEntropy, Stop};
use crate::node::operations::Progress;
use crate::node::reaper;
use crate::ports::{PeerError, PeerReply};
use crate::protocol::hashtree::{self, Sums};
use crate::types::limits::{NAMES_BYTES_MAX, NAMES_MAX};
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
        let ring = self.parts.routing.ring().ok_or_else(no_cluster)?;
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
        let Exchange { epoch, slot, leaves, held, names_only } = exchange;
        let ours = self.parts.routing.ring().ok_or_else(no_cluster)?.epoch();
        if ours != epoch {
            return Ok(PeerReply::WrongEpoch { epoch: ours });
        }
        let refused = |error: crate::ports::StoreError| PeerError::Refused(error.to_string());
        reaper::reap(&*self.parts.store, &self.parts.clock).await.map_err(refused)?;
        let holdings = self.parts.store.holdings(slot, leaves).await.map_err(refused)?;
        let found = hashtree::differences(&held, &holdings.intact, self.parts.clock.now().ms());
        if names_only {
            let (asked, names) = (found.ours.len(), few(found.ours));
            let more = names.len() < asked;
            return Ok(PeerReply::Differences(Difference { wanted: found.theirs, records: vec![], names, more }));
        }
        let keys: Vec<(Slot, Key)> = found.ours.into_iter().map(|key| (slot, key)).collect();
        let asked = keys.len();
        let (records, looked_up) = self.parts.store.records(keys).await.map_err(refused)?;
        let more = looked_up < asked;
        Ok(PeerReply::Differences(Difference { wanted: found.theirs, records, names: vec![], more }))
    }

    /// How this node agrees with that member.
    ///
    /// # Errors
    /// `Refused` where that cannot be said, with the reason.
    pub(in crate::node) async fn answer_converge(&self, with: NodeNum, look: Look) -> Result<PeerReply, PeerError> {
        let looked = self.look(with, look, &[], &Progress::default()).await;
        let convergence = looked.map_err(|stop: Stop| PeerError::Refused(stop.to_string()))?;
        Ok(PeerReply::Convergence(Box::new(convergence)))
    }
}

/// As many as one answer may name.
fn few(keys: Vec<Key>) -> Vec<Key> {
    let mut bytes = 0;
    let fits = |key: &Key| {
        bytes += key.as_bytes().len();
        bytes <= NAMES_BYTES_MAX
    };
    keys.into_iter().take(NAMES_MAX).take_while(fits).collect()
}

fn no_cluster() -> PeerError {
    PeerError::Refused("the node has no cluster yet".into())
}
