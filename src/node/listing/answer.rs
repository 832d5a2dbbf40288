//! The replica's door for scans.

use super::Lister;
use crate::ports::{PeerError, PeerReply, StoreError};
use crate::types::{Epoch, NodeNum, Scan};

impl Lister {
    /// The keys of these slots, for a member's listing. One that is being rebuilt tells nothing: it may lack what it is asked
    /// about.
    ///
    /// # Errors
    /// `Refused` where this node cannot answer for these slots.
    pub async fn answer(&self, from: NodeNum, epoch: Epoch, scan: Scan) -> Result<PeerReply, PeerError> {
        if let Err(instead) = self.routing.opens(self.me, from, epoch) {
            return instead;
        }
        let refused = |why: &str| Err(PeerError::Refused(why.to_owned()));
        // Every member is a home replica or a stand-in of every slot.
        match self.store.scan(scan).await {
            Ok(page) => Ok(PeerReply::Scanned(page)),
            Err(StoreError::Damaged(_)) => refused("the rows are damaged"),
            Err(error) => refused(&error.to_string()),
        }
    }
}
