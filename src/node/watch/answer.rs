//! The replica's door for watches.

use std::time::Duration;

use tokio::time::Instant;

use super::Watches;
use crate::ports::{PeerError, PeerReply};
use crate::types::{ChangesAsk, Epoch, NodeNum, Position};

impl Watches {
    /// What this node stored behind a place, for a member's watch. Where there is nothing it waits for a change, as long as
    /// it was asked to.
    ///
    /// # Errors
    /// `Refused` where this node cannot answer, `Overloaded` where too many wait.
    pub async fn answer(&self, from: NodeNum, epoch: Epoch, ask: ChangesAsk) -> Result<PeerReply, PeerError> {
        if let Err(instead) = self.routing.opens(self.me, from, epoch) {
            return instead;
        }
        let _permit = self.answering.try_acquire().map_err(|_| PeerError::Overloaded)?;
        let until = Instant::now() + Duration::from_millis(ask.wait_ms.into());
        let place = self.hub.enter(ask.watched.clone());
        let mut from = ask.from;
        loop {
            let page = self.log.page(from, &ask.watched);
            let tells = !page.reaches || page.more || !page.changes.is_empty();
            if tells || Instant::now() >= until {
                return Ok(PeerReply::Changed(page));
            }
            let quiet = place.quiet_up_to(until).await;
            from = Some(Position { seq: page.at.seq.max(quiet), ..page.at });
        }
    }
}
