//! A round before tombstones are purged: are two replicas equal in all that was written up to a time?
//!
//! It is a round like any other, and moves what it finds. But nothing of that time is left out for being in flight, and it says
//! of each slot whether something had to be moved. What a replica has purged already counts as being there.

use super::round::Task;
use super::{AntiEntropy, Stop};
use crate::node::operations::Progress;
use crate::types::{Hlc, Look, NodeNum, SlotSet};

impl AntiEntropy {
    /// The slots, of those given and shared with that peer, in which nothing written up to that time differed. A slot that
    /// one of the two cannot sum up now is not among them.
    ///
    /// # Errors
    /// See [`Stop`]. What was moved until then stays.
    pub(in crate::node) async fn exchange(&self, peer: NodeNum, slots: SlotSet, up_to: Hlc) -> Result<SlotSet, Stop> {
        let _turn = self.turn.lock().await;
        self.check(peer)?;
        let (progress, up_to) = (Progress::default(), Some((up_to, slots)));
        let task = Task { peer, look: Look::Keys, repair: true, chunks: &[], up_to, mends: false, progress: &progress };
        self.exchange_round(&task).await
    }
}
