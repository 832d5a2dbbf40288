//! Proposing the next epoch: for a newcomer that asks for a place, and for a step of a change.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::sleep;

use super::{DOWN_FOR, LIVES, Succession};
use crate::ports::{Announcement, PeerError, PeerReply, PeerRequest};
use crate::protocol::succession::change::{self, Wish};
use crate::protocol::succession::{Round, replaced};
use crate::types::{Ballot, Epoch, Hlc, InstanceId, Member, NodeNum, Topology};

/// Ballots for one step before it is given up for now.
const BALLOTS_MAX: usize = 5;
/// Between two of them, in milliseconds at most: whoever proposes too gets the time to finish.
const PAUSE_MS: u64 = 300;

impl Succession {
    /// A newcomer asks for a place: that of the member of its number, whose directory it held as those instances; or one of its
    /// own, where the number is nobody's. Only as a step from the topology of that epoch, which it knows: after another one it may have
    /// been let in and removed again, and a member may have come to its number that lives.
    ///
    /// # Errors
    /// `Refused` where the member of its number lives, or it cannot become one now. Nothing was changed.
    pub async fn answer_replace(
        &self,
        epoch: Epoch,
        newcomer: Announcement,
        succeeds: Vec<InstanceId>,
    ) -> Result<PeerReply, PeerError> {
        let ring = self.routing.ring().ok_or_else(|| PeerError::Refused("it has no topology".into()))?;
        let then = |topology: &Topology| if topology.epoch == epoch { Ok(()) } else { Err(None) };
        let topology = match ring.topology().member(newcomer.node) {
            Some(listed) if listed.instance == newcomer.instance => Ok(Some(Arc::clone(ring.topology()))),
            _ if ring.epoch() != epoch => Ok(None),
            Some(listed) if listed.node == self.me => Ok(None),
            Some(listed) if succeeds.contains(&listed.instance) || self.is_gone(listed).await? => {
                self.decide(|now| then(now).and_then(|()| replaced(now, &newcomer).ok_or(None))).await
            }
            Some(_) => Ok(None),
            None => {
                let joins = Wish::Join(newcomer.clone());
                self.decide(|now| then(now).and_then(|()| change::begin(now, &joins).map_err(Some))).await
            }
        };
        match topology {
            Ok(topology) => Ok(PeerReply::Replaced { topology }),
            Err(None) => Ok(PeerReply::Replaced { topology: None }),
            Err(Some(unfit)) => Err(PeerError::Refused(unfit.to_string())),
        }
    }

    /// Whether a member may be taken for dead; not yet, where it is not known for long enough.
    ///
    /// # Errors
    /// `Refused` where it lives.
    async fn is_gone(&self, listed: &Member) -> Result<bool, PeerError> {
        if self.ask(listed.node, PeerRequest::Topology).await.is_ok() {
            let (node, instance, there) = (listed.node, listed.instance, &listed.mesh_address);
            return Err(PeerError::Refused(format!("{node} {LIVES} {instance} at {there}")));
        }
        Ok(self.down_for(listed.instance) >= DOWN_FOR)
    }

    /// Has a step decided that follows from the topology in force, whichever that is by then: in force here, and told to all,
    /// when this ends. `None`: not in a few ballots; it may be all the same, or have been and be undone by now, so that it is not
    /// proposed from a later topology than the first that somebody was to accept it under.
    ///
    /// # Errors
    /// Why there is no such step from the topology in force.
    pub(in crate::node) async fn decide<E>(
        &self,
        step: impl Fn(&Topology) -> Result<Topology, E>,
    ) -> Result<Option<Arc<Topology>>, E> {
        let _one = self.proposing.lock().await;
        let (mut above, mut wanted) = (Hlc::ZERO, None);
        let mut proposed: Option<Epoch> = None;
        let mut tell: BTreeSet<NodeNum> = BTreeSet::new();
        for _ in 0..BALLOTS_MAX {
            let Some(ring) = self.routing.ring() else { return Ok(None) };
            let topology = ring.topology();
            if wanted.as_deref() == Some(&**topology) {
                tell.extend(topology.members.iter().map(|m| m.node));
                self.tell(tell.into_iter()).await;
                return Ok(wanted);
            }
            match proposed {
                Some(epoch) if epoch < topology.epoch => break,
                // Another one was decided: its own never will be.
                Some(epoch) if epoch == topology.epoch => proposed = None,
                _ => {}
            }
            let own = match step(topology) {
                Ok(own) => own,
                Err(why) => {
                    // What somebody else had proposed may have been brought to its end on the way.
                    self.tell(tell.into_iter()).await;
                    return Err(why);
                }
            };
            let Some(member) = topology.member(self.me) else { return Ok(None) };
            let Some(hlc) = self.clock.stamp_reserved(above).await else { return Ok(None) };
            // Whoever is no member afterwards is told so, too.
            tell.extend(topology.members.iter().map(|m| m.node));
            wanted = Some(Arc::new(own.clone()));
            match self.ballot(topology, Ballot { hlc, writer: member.writer }, Some(own), &mut proposed).await {
                Ok(Some(decided)) => self.enact(decided, &tell).await,
                Ok(None) => {}
                Err(outbid) => {
                    above = outbid.unwrap_or(above);
                    sleep(Duration::from_millis(self.ports.entropy.below(PAUSE_MS))).await;
                }
            }
        }
        self.tell(tell.into_iter()).await;
        Ok(None)
    }

    /// Ends what somebody proposed and did not bring to its end, if anybody did: it may be decided, and nobody know. One ballot.
    pub(super) async fn finish(&self) {
        let _one = self.proposing.lock().await;
        let Some(ring) = self.routing.ring() else { return };
        let topology = ring.topology();
        let Some(member) = topology.member(self.me) else { return };
        let Some(hlc) = self.clock.stamp_reserved(Hlc::ZERO).await else { return };
        if let Ok(Some(decided)) = self.ballot(topology, Ballot { hlc, writer: member.writer }, None, &mut None).await {
            let all = topology.members.iter().chain(&decided.members).map(|m| m.node).collect();
            self.enact(decided, &all).await;
            self.tell(all.into_iter()).await;
        }
    }

    /// Puts a decided topology in force. A process that is no member of it ends with that, and without its vote the others may not
    /// find it out: so one of them must have it on its disk first. Until then it serves on under the one before.
    async fn enact(&self, decided: Arc<Topology>, tell: &BTreeSet<NodeNum>) {
        let stays = |node: &NodeNum| decided.member(*node).is_some();
        if stays(&self.me) || self.tell_of(&decided, tell.iter().copied().filter(stays)).await > 0 {
            self.adopt(decided).await;
        }
    }

    /// One ballot: what was decided, which may be another proposal that was under way; `None` where there was none and this node has
    /// nothing to propose. `proposed`: the epoch of its own, once somebody may have accepted that.
    ///
    /// # Errors
    /// Not in this ballot; the highest reading that was met, if one was.
    async fn ballot(
        &self,
        topology: &Topology,
        ballot: Ballot,
        own: Option<Topology>,
        proposed: &mut Option<Epoch>,
    ) -> Result<Option<Arc<Topology>>, Option<Hlc>> {
        let outbid = |round: &Round| round.outbid().map(|ballot| ballot.hlc);
        let promised = self.round(topology, ballot, None).await;
        if !promised.is_met() {
            return Err(outbid(&promised));
        }
        let wanted = own.clone();
        let Some(proposal) = promised.proposal(own).map(Arc::new) else { return Ok(None) };
        if wanted.as_ref() == Some(&*proposal) {
            proposed.get_or_insert(proposal.epoch);
        }
        let accepted = self.round(topology, ballot, Some(&proposal)).await;
        if accepted.is_met() { Ok(Some(proposal)) } else { Err(outbid(&accepted)) }
    }

    /// Asks all voters for their votes, this node too where it is one.
    async fn round(&self, topology: &Topology, ballot: Ballot, proposal: Option<&Arc<Topology>>) -> Round {
        let epoch = Epoch(topology.epoch.0 + 1);
        let votes = topology.voters().map(|m| async move {
            let answer = if m.node == self.me {
                self.answer_vote(epoch, ballot, proposal.cloned()).await
            } else {
                self.ask(m.node, PeerRequest::Vote { epoch, ballot, proposal: proposal.cloned() }).await
            };
            (m.node, answer)
        });
        let mut round = Round::new(topology, ballot);
        let mut refused = Vec::new();
        for (node, answer) in join_all(votes).await {
            match answer {
                Ok(PeerReply::Voted(vote)) if vote.epoch == epoch => round.on_vote(node, *vote),
                Err(PeerError::Refused(_)) => refused.push(node),
                _ => {}
            }
        }
        // Who has not heard of the topology in force cannot vote on the next one.
        self.tell(refused.into_iter()).await;
        round
    }
}
