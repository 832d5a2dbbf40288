//! Driving the proposer's fold: it says what to send, and is told what came.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::queue::{NoTurn, Turn};
use super::{Conditional, not_applied};
use crate::node::coordinator::Round;
use crate::node::events;
use crate::node::request::{Failure, FailureKind};
use crate::ports::{ReplicaReply, ReplicaRequest};
use crate::protocol::quorum::WriteFold;
use crate::protocol::register::{ProposerFold, Step};
use crate::protocol::ring::{Placement, Ring};
use crate::types::{Ballot, Hlc, Key, Level, NodeNum, PeerError, Proposal, Record, Verdict};

/// The longest pause before the second ballot; it doubles with each.
const PAUSE_FIRST: Duration = Duration::from_millis(4);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// One proposal under way.
struct Proposing<'a> {
    fold: ProposerFold,
    ring: Arc<Ring>,
    placement: Arc<Placement>,
    round: Option<Round<'a>>,
    deadline: Instant,
}

impl Conditional {
    /// Proposes at this node, when it is the operation's turn at the key.
    ///
    /// # Errors
    /// Where this node must not propose: it has no topology, is no member, or its clock is off. Nothing was done.
    pub(super) async fn propose(&self, proposal: Proposal, deadline: Instant) -> Result<Verdict, Failure> {
        let level = Level::Linearizable;
        if let Some(by_ms) = self.clock.skewed_by_ms() {
            return Err(not_applied(Failure::before(FailureKind::ClockSkew { by_ms }, level)));
        }
        let ring = self.coordinator.ring(level).map_err(not_applied)?;
        let mut turn = match self.queue.turn(&proposal.key, deadline).await {
            Ok(turn) => turn,
            Err(NoTurn::TooLate) => return Ok(Verdict::Conflict),
            Err(NoTurn::Full) => {
                let failed = vec![(self.me, PeerError::Overloaded.to_string())];
                let required = ring.placement(ring.token(&proposal.key).slot()).needed(level);
                return Ok(Verdict::Unavailable { required, acked: Vec::new(), failed });
            }
        };
        if let Some(current) = turn.known()
            && proposal.idempotency.is_none()
            && !would_do(&proposal, current.as_ref())
            && !current.as_ref().is_some_and(|r| r.expires_at_ms().is_some() && r.has_ended(self.clock.ends_by()))
        {
            return Ok(Verdict::ConditionFailed { current });
        }
        // Promises bring values with them: how many are held at once must have a bound.
        let Ok(Ok(_permit)) = timeout_at(deadline, self.under_way.acquire()).await else {
            return Ok(Verdict::Conflict);
        };
        self.decide_in_turn(proposal, ring, deadline, &mut turn).await
    }

    async fn decide_in_turn(
        &self,
        proposal: Proposal,
        ring: Arc<Ring>,
        deadline: Instant,
        turn: &mut Turn<'_>,
    ) -> Result<Verdict, Failure> {
        let placement = Arc::clone(ring.placement(ring.token(&proposal.key).slot()));
        let fold = ProposerFold::new(Arc::clone(&placement), proposal);
        let mut proposing = Proposing { fold, ring, placement, round: None, deadline };
        let mut step = self.ballot(&mut proposing, Hlc::ZERO).await?;
        loop {
            step = match step {
                Step::Done(verdict) => {
                    let definite = matches!(verdict, Verdict::Applied { .. } | Verdict::ConditionFailed { .. });
                    if let Some(current) = proposing.fold.current().filter(|_| definite) {
                        turn.settle(current.clone());
                    }
                    return Ok(verdict);
                }
                Step::Send { to, request } => {
                    if let ReplicaRequest::Prepare { .. } = request {
                        turn.begins_ballot();
                    }
                    let epoch = proposing.ring.epoch();
                    proposing.round = Some(self.coordinator.ask(&to, epoch, &request, deadline));
                    Step::Wait
                }
                Step::Wait => self.hear(&mut proposing).await,
                Step::Write { record, have } => self.write(&mut proposing, record, &have).await,
                Step::BackOff { above } => match self.pause(&mut proposing, above).await {
                    Some(step) => step,
                    None => return Ok(proposing.fold.give_up()),
                },
            }
        }
    }

    /// A ballot above that reading, and above all of this node's before.
    async fn ballot(&self, proposing: &mut Proposing<'_>, above: Hlc) -> Result<Step, Failure> {
        let stamp = self.coordinator.stamp(&proposing.ring, above, proposing.deadline).await;
        let stamp = stamp.map_err(|kind| not_applied(Failure::before(kind, Level::Linearizable)))?;
        self.meters.ballots.increment(1);
        let ballot = Ballot { hlc: stamp.hlc, writer: stamp.writer };
        Ok(proposing.fold.prepare(ballot, &self.coordinator.asking(&proposing.placement)))
    }

    /// The next answer of the round under way.
    async fn hear(&self, proposing: &mut Proposing<'_>) -> Step {
        let heard = match &mut proposing.round {
            Some(round) => round.next().await,
            None => None,
        };
        match heard {
            None => Step::Done(proposing.fold.give_up()),
            Some((_, Ok(ReplicaReply::WrongEpoch { topology }))) => {
                // An operation of the register starts again from prepare, among the replicas of the newer topology.
                let Ok(ring) = self.coordinator.adopt(topology, Level::Linearizable, proposing.deadline).await else {
                    return Step::Done(proposing.fold.give_up());
                };
                proposing.placement = Arc::clone(ring.placement(ring.token(&proposing.fold.proposal().key).slot()));
                proposing.ring = ring;
                proposing.fold.move_to(Arc::clone(&proposing.placement));
                Step::BackOff { above: Hlc::ZERO }
            }
            Some((from, answer)) => {
                let answer = answer.and_then(|reply| whole(&proposing.fold.proposal().key, reply));
                let asking = self.coordinator.asking(&proposing.placement);
                proposing.fold.on_answer(from, answer, self.clock.ends_by(), &asking)
            }
        }
    }

    async fn write(&self, proposing: &mut Proposing<'_>, record: Record, have: &[NodeNum]) -> Step {
        proposing.round = None;
        // What is told to have ended has: also where this node is no replica of it.
        self.clock.observe(record.written);
        let (key, epoch) = (proposing.fold.proposal().key.clone(), proposing.ring.epoch());
        if events::shown() {
            events::write(self.me, &key, record.version, &proposing.fold.replicas());
        }
        let placement = Arc::clone(&proposing.placement);
        let fold = WriteFold::write_back(placement, Level::Linearizable, &record, have);
        let written = self.coordinator.write_back(fold, key, record, epoch, proposing.deadline).await;
        proposing.fold.on_written(written.map_err(|failure| failure.failed))
    }

    /// Lets another proposer finish, then begins the next ballot. `None` at the deadline.
    async fn pause(&self, proposing: &mut Proposing<'_>, above: Hlc) -> Option<Step> {
        proposing.round = None;
        let doublings = proposing.fold.ballots().saturating_sub(1).min(16);
        let longest = PAUSE_FIRST.saturating_mul(1 << doublings).min(PAUSE_MAX);
        let pause = Duration::from_micros(self.entropy.below(longest.as_micros() as u64));
        let until = Instant::now() + pause;
        sleep_until(until.min(proposing.deadline)).await;
        if until >= proposing.deadline {
            return None;
        }
        self.ballot(proposing, above).await.ok()
    }
}

/// Whether it would do something where this stands.
fn would_do(proposal: &Proposal, stands: Option<&Record>) -> bool {
    let live = stands.filter(|record| !record.is_tombstone());
    proposal.condition.holds(live) && (live.is_some() || !proposal.edit.needs_a_value())
}

/// What a promise shows goes into accepts and writes of this node, whose replica takes its own requests unchecked.
fn whole(key: &Key, reply: ReplicaReply) -> Result<ReplicaReply, PeerError> {
    if let ReplicaReply::Promised(promise) = &reply {
        let accepted = promise.accepted.as_ref().and_then(|a| a.record.as_ref());
        if !promise.record.iter().chain(accepted).all(|record| record.is_intact(key)) {
            return Err(PeerError::Protocol("a record in the promise does not match its checksum".into()));
        }
    }
    Ok(reply)
}
