//! Linearizable reads, and what else asks a register what stands under its key. Most reads need none; one that finds that a
//! value has ended does.
//!
//! A conditional write upon that value may have been accepted by a minority. Told by the rows alone, the end would be
//! undone when somebody finishes that write. So the end is proposed like a write, and told when a majority accepted it.

use tokio::time::Instant;

use super::Conditional;
use crate::node::request::{Failure, FailureKind, Found, Get};
use crate::types::{Condition, Edit, Hlc, Key, Level, NewContent, NodeNum, OpId, Proposal, Verdict};

impl Conditional {
    /// Reads a key at `linearizable`.
    ///
    /// # Errors
    /// When too few home replicas answered, or an end could not be settled in time.
    pub async fn get(&self, get: Get) -> Result<Found, Failure> {
        self.coordinator.measured_read(get.level, self.read(get)).await
    }

    async fn read(&self, get: Get) -> Result<Found, Failure> {
        let (key, deadline) = (get.key.clone(), get.deadline);
        let found = self.coordinator.read(get).await?;
        let Some(end) = found.record.as_ref().filter(|record| record.version.is_end()) else { return Ok(found) };
        let ended = Some(end.written);
        let proposal = self.question(key, ended);
        let (verdict, _) =
            Box::pin(self.verdict(proposal, deadline)).await.map_err(|f| Failure { outcome: None, ..f })?;
        let failed = |kind, required, acked, failed| {
            Err(Failure { required, acked, failed, ..Failure::before(kind, Level::Linearizable) })
        };
        match verdict {
            Verdict::ConditionFailed { current } => {
                let live = current.as_ref().is_some_and(|record| !record.is_tombstone());
                Ok(Found { record: current, live, ..found })
            }
            Verdict::Unavailable { required, acked, failed: why } => {
                failed(FailureKind::Unavailable, required, acked, why)
            }
            Verdict::Unknown { required, acked, failed: why } => failed(FailureKind::TimedOut, required, acked, why),
            // It waited behind others, or was outbid by them, until its time was up.
            _ => {
                failed(FailureKind::TimedOut, Level::Linearizable.needed(found.replicas.len()), Vec::new(), Vec::new())
            }
        }
    }

    /// Asks one home replica to find out what stands under a key: what its register may have decided is accepted once more
    /// and written. Whether it was done shows there.
    pub(in crate::node) async fn settle(&self, at: NodeNum, key: Key, deadline: Instant) {
        let proposal = self.question(key, None);
        if at == self.me {
            let _ = self.propose(proposal, deadline).await;
        } else {
            self.forward(at, &proposal, deadline).await;
        }
    }

    /// A write whose condition is never true: it is told what stands there.
    fn question(&self, key: Key, ended: Option<Hlc>) -> Proposal {
        let (condition, edit) = (Condition::never(), Edit::Write(NewContent::Tombstone));
        Proposal { key, condition, edit, op: OpId(self.entropy.uuid()), idempotency: None, ended }
    }
}
