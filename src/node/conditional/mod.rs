//! Conditional writes, and what else goes through a key's register: the driver of its proposer (`protocol::register`).
//!
//! A client's request is passed on to the first live home replica of the key that proposes now, where those for one key wait
//! in line (`queue`): so proposers rarely meet. None of that is needed for correctness: any node may propose, and two that
//! meet outbid each other until one gives way (`propose`).
//!
//! Invariants:
//! - A request that was passed on and got no answer is *unknown*, and never passed on again. One that was turned away was
//!   not done: it goes to the next, so that all nodes still choose the same one.
//! - What is answered is the fold's verdict: every one but *unknown* is definite.

mod forward;
mod meters;
mod propose;
mod queue;
mod read;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::Ports;
use super::clock::NodeClock;
use super::coordinator::Coordinator;
use super::reach::Reach;
use super::request::{ConditionalPut, Failure, FailureKind, Met, Outcome, Receipt};
use crate::ports::{Entropy, PeerError, PeerReply, Peers};
use crate::types::{Level, NodeNum, OpId, Proposal, Refusal, Verdict};

use forward::Forwarded;
use meters::Meters;
use queue::Queue;

/// The part of a client's time that is left for the answer's way back from the proposer: at most this, and a tenth.
const WAY_BACK_MAX: Duration = Duration::from_millis(100);

/// Operations that are decided at once at one proposer. Each may hold the values of all replicas' promises.
const UNDER_WAY_MAX: usize = 512;

/// What conditional writes need of their node.
pub struct Conditional {
    me: NodeNum,
    peers: Arc<dyn Peers>,
    entropy: Arc<dyn Entropy>,
    clock: Arc<NodeClock>,
    reach: Arc<Reach>,
    coordinator: Arc<Coordinator>,
    queue: Queue,
    /// Those that have their turn.
    under_way: Semaphore,
    /// This node takes leave, and leaves deciding to the others.
    retired: AtomicBool,
    meters: Meters,
}

impl fmt::Debug for Conditional {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conditional").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Conditional {
    pub fn new(
        me: NodeNum,
        ports: &Ports,
        clock: Arc<NodeClock>,
        reach: Arc<Reach>,
        coordinator: Arc<Coordinator>,
    ) -> Arc<Self> {
        let (peers, entropy) = (Arc::clone(&ports.peers), Arc::clone(&ports.entropy));
        let (queue, under_way, retired) = (Queue::default(), Semaphore::new(UNDER_WAY_MAX), AtomicBool::new(false));
        let meters = Meters::new();
        Arc::new(Self { me, peers, entropy, clock, reach, coordinator, queue, under_way, retired, meters })
    }

    /// From now on what comes to this node is decided by the others, where one can, as theirs is: two proposers would only
    /// outbid each other.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    /// Writes where the condition is true, once for its `Idempotency-Key`.
    ///
    /// # Errors
    /// [`FailureKind::ConditionFailed`], [`FailureKind::Conflict`], [`FailureKind::KeyReused`],
    /// [`FailureKind::Exhausted`] and [`FailureKind::Unavailable`] are definite: nothing was written. The outcome of
    /// [`FailureKind::TimedOut`] is unknown.
    pub async fn put(&self, put: ConditionalPut) -> Result<Receipt, Failure> {
        let deletes = put.edit.deletes();
        self.coordinator.measured(deletes, Level::Linearizable, Box::pin(self.decide(put))).await
    }

    async fn decide(&self, put: ConditionalPut) -> Result<Receipt, Failure> {
        let ConditionalPut { key, condition, edit, idempotency, deadline } = put;
        let proposal = Proposal { key, condition, edit, op: OpId(self.entropy.uuid()), idempotency, ended: None };
        let (verdict, replicas) = self.verdict(proposal, deadline).await?;
        self.meters.verdict(&verdict);
        told(verdict, replicas)
    }

    /// What the key's proposer makes of it, and the key's home replicas.
    async fn verdict(&self, proposal: Proposal, deadline: Instant) -> Result<(Verdict, Vec<NodeNum>), Failure> {
        let ring = self.coordinator.ring(Level::Linearizable).map_err(not_applied)?;
        let replicas = ring.placement(ring.token(&proposal.key).slot()).home_replicas();
        for to in self.before_this_node(&replicas) {
            match self.forward(to, &proposal, deadline).await {
                Forwarded::Verdict(verdict) => return Ok((verdict, replicas.to_vec())),
                Forwarded::NotDone => {}
                Forwarded::Lost(error) => {
                    let required = Level::Linearizable.needed(replicas.len());
                    let failed = vec![(to, error.to_string())];
                    return Ok((Verdict::Unknown { required, acked: Vec::new(), failed }, replicas.to_vec()));
                }
            }
        }
        Ok((self.propose(proposal, deadline).await?, replicas.to_vec()))
    }

    /// The live home replicas whose turn it is to propose before it is this node's.
    fn before_this_node(&self, replicas: &[NodeNum]) -> Vec<NodeNum> {
        let live = replicas.iter().copied().filter(|n| self.reach.is_reachable(*n));
        if self.retired.load(Ordering::Relaxed) {
            return live.filter(|n| *n != self.me).collect();
        }
        live.take_while(|n| *n != self.me).collect()
    }

    /// Proposes what another node passed on.
    ///
    /// # Errors
    /// Where this node does not propose now. Nothing was done.
    pub async fn answer(&self, proposal: Proposal, timeout: Duration) -> Result<PeerReply, PeerError> {
        if self.retired.load(Ordering::Relaxed) {
            return Err(PeerError::Refused("it takes leave".into()));
        }
        if let Some(end) = proposal.ended {
            let ahead = |ms| PeerError::Refused(format!("an end {ms} ms ahead of its clock"));
            self.clock.take_for_past(end).map_err(ahead)?;
        }
        let verdict = self.propose(proposal, Instant::now() + timeout).await;
        let verdict = verdict.map_err(|failure| PeerError::Refused(failure.kind.to_string()))?;
        Ok(PeerReply::Proposed(Box::new(verdict)))
    }
}

/// What the client is told.
fn told(verdict: Verdict, replicas: Vec<NodeNum>) -> Result<Receipt, Failure> {
    let failure = |kind| Err(not_applied(Failure::before(kind, Level::Linearizable)));
    let met = |met| {
        let failed = Failure::before(FailureKind::ConditionFailed, Level::Linearizable);
        Err(not_applied(Failure { met: Some(Box::new(met)), ..failed }))
    };
    let level = Level::Linearizable;
    match verdict {
        Verdict::Applied { version, created, expires_at_ms, acked } => {
            Ok(Receipt { version, level, replicas, acked, hinted: Vec::new(), strict: true, created, expires_at_ms })
        }
        Verdict::ConditionFailed { current } => {
            let current = current.filter(|record| !record.is_tombstone());
            met(Met { version: current.as_ref().map(|r| r.version), record: current })
        }
        Verdict::FailedBefore { version } => met(Met { version, record: None }),
        Verdict::KeyReused => failure(FailureKind::KeyReused),
        Verdict::Conflict => failure(FailureKind::Conflict),
        Verdict::Exhausted => failure(FailureKind::Exhausted),
        Verdict::Unavailable { required, acked, failed } => {
            let full = Refusal::DiskFull.to_string();
            let disks_full = !failed.is_empty() && failed.iter().all(|(_, why)| *why == full);
            let kind = if disks_full { FailureKind::DiskFull } else { FailureKind::Unavailable };
            Err(not_applied(Failure { required, acked, failed, ..Failure::before(kind, level) }))
        }
        Verdict::Unknown { required, acked, failed } => {
            let outcome = Some(Outcome::Unknown);
            Err(Failure { outcome, required, acked, failed, ..Failure::before(FailureKind::TimedOut, level) })
        }
    }
}

fn not_applied(failure: Failure) -> Failure {
    Failure { outcome: Some(Outcome::NotApplied), ..failure }
}

/// How long before the client's deadline the proposer gives up, so that its verdict still arrives.
fn way_back(left: Duration) -> Duration {
    (left / 10).min(WAY_BACK_MAX)
}
