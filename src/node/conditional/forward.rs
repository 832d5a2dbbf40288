//! Passing a conditional write on to its proposer.

use tokio::time::{Instant, timeout};

use super::{Conditional, way_back};
use crate::node::trace;
use crate::ports::{Destination, PeerError, PeerReply, PeerRequest, ReadPart, ReplicaRequest};
use crate::types::{Level, NodeNum, Proposal, Verdict};

/// What came of it.
pub(super) enum Forwarded {
    Verdict(Verdict),
    /// It never got there, or was turned away: somebody else may propose it.
    NotDone,
    /// It may have been done.
    Lost(PeerError),
}

impl Conditional {
    pub(super) async fn forward(&self, to: NodeNum, proposal: &Proposal, deadline: Instant) -> Forwarded {
        self.meters.forwarded.increment(1);
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout_ms = u64::try_from((left - way_back(left)).as_millis()).unwrap_or(u64::MAX);
        let request =
            PeerRequest::Propose { proposal: Box::new(proposal.clone()), timeout_ms, trace: trace::current() };
        let mut asked = self.peers.ask(Destination::Member(to), request, deadline);
        let reply = match timeout(self.reach.patience(to), &mut asked).await {
            Ok(reply) => reply,
            Err(_) => self.await_late(to, proposal, deadline, asked).await,
        };
        match reply {
            Ok(PeerReply::Proposed(verdict)) => Forwarded::Verdict(*verdict),
            Ok(_) => Forwarded::Lost(PeerError::Protocol("answered another question".into())),
            Err(error) if error.maybe_done() => Forwarded::Lost(error),
            Err(error) => {
                tracing::debug!(%to, %error, "does not propose");
                Forwarded::NotDone
            }
        }
    }

    /// The proposer takes long. A read tells one that has much to do from one that hangs, so that requests after this
    /// one are passed on to another.
    async fn await_late(
        &self,
        to: NodeNum,
        proposal: &Proposal,
        deadline: Instant,
        mut asked: impl Future<Output = Result<PeerReply, PeerError>> + Unpin,
    ) -> Result<PeerReply, PeerError> {
        let probe = async {
            if let Ok(ring) = self.coordinator.ring(Level::Linearizable) {
                let (key, part) = (proposal.key.clone(), ReadPart::Version);
                let request = ReplicaRequest::Read { key, part, hints: false };
                self.coordinator.ask(&[to], ring.epoch(), &request, deadline).next().await;
            }
        };
        tokio::select! {
            biased;
            reply = &mut asked => return reply,
            () = probe => {}
        }
        asked.await
    }
}
