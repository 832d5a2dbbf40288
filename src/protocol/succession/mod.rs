//! What comes after a topology: epoch e+1 is decided once, by the members of epoch e, and never gossiped.
//!
//! The members are the acceptors of one single-decree Paxos an epoch, and any member proposes: it prepares with a ballot of
//! its own clock and writer number, takes over what a majority shows to be accepted already, and has it accepted. What a
//! majority *of all members* accepted under one ballot is decided; whoever hears of it stores it. The member that is replaced
//! counts among those all, though it cannot answer: two replacements of different members must not both be decided. A member
//! that is only joining is the one that does not count.
//!
//! Invariants:
//! - A vote is on disk before it is told, and belongs to one instance: a new instance has voted for nothing.
//! - Only what follows from the topology in force is accepted: one member under a new instance and the next writer number,
//!   with the ring as it was; or a step of a change ([`change`]).
//!
//! Source: Lamport, "Paxos Made Simple" (2001). Caveat: of one or two members no majority survives the loss of one; such a
//! cluster's damaged member stays out until a person decides (docs/decisions/0007-damage-makes-a-new-instance.md).

pub mod change;

use std::collections::BTreeSet;

use crate::types::{Announcement, Ballot, Epoch, NodeNum, Slot, Topology, Vote, Writer, majority};

/// The topology in which that newcomer is the member of its number. `None` where the number is not a member's, or is the
/// newcomer's already.
pub fn replaced(topology: &Topology, newcomer: &Announcement) -> Option<Topology> {
    let mut next = topology.clone();
    let member = next.members.iter_mut().find(|m| m.node == newcomer.node && m.instance != newcomer.instance)?;
    member.instance = newcomer.instance;
    member.writer = next.next_writer;
    member.mesh_address.clone_from(&newcomer.mesh_address);
    member.http_address.clone_from(&newcomer.http_address);
    next.next_writer = Writer(next.next_writer.0.checked_add(1)?);
    next.epoch = Epoch(topology.epoch.0 + 1);
    Some(next)
}

/// Members whose instance is another one in the newer topology, or who are gone.
pub fn gone(older: &Topology, newer: &Topology) -> Vec<NodeNum> {
    let stays = |node| newer.member(node).map(|m| m.instance);
    older.members.iter().filter(|m| stays(m.node) != Some(m.instance)).map(|m| m.node).collect()
}

/// Members who may have lost by the newer topology what they acknowledged of that slot under the older: those who are gone; those
/// who begin anew with it; and after more than one change any.
pub fn void(older: &Topology, newer: &Topology, slot: Slot) -> Vec<NodeNum> {
    if newer.epoch.0 > older.epoch.0 + 2 {
        return newer.members.iter().map(|m| m.node).collect();
    }
    let mut void = gone(older, newer);
    let begun = newer.moving.as_ref().is_some_and(|moving| moving.since > older.epoch);
    if let Some(before) = newer.replicas_before(slot).filter(|_| begun) {
        void.extend(newer.home_replicas(slot).iter().filter(|node| !before.contains(node)));
    }
    void
}

/// Whether a proposal is one step from the topology in force.
fn follows(topology: &Topology, proposal: &Topology) -> bool {
    let replaces = || {
        let [node] = gone(topology, proposal)[..] else { return false };
        let newcomer = proposal.member(node).map(|member| change::announced(member, topology.rf));
        newcomer.and_then(|newcomer| replaced(topology, &newcomer)).as_ref() == Some(proposal)
    };
    proposal.check().is_ok() && (change::follows(topology, proposal) || replaces())
}

/// The rule of a member that has that topology in force and that vote on its disk: what it votes next, to be put on disk
/// before it is told. Without a proposal it is asked to promise.
///
/// # Errors
/// The vote that stands, where it is for a ballot as high or higher; or none, where the question does not belong to the
/// epoch in force or the proposal does not follow from it.
pub fn vote(
    topology: &Topology,
    held: Option<Vote>,
    epoch: Epoch,
    ballot: Ballot,
    proposal: Option<&Topology>,
) -> Result<Vote, Option<Box<Vote>>> {
    if epoch.0 != topology.epoch.0 + 1 || proposal.is_some_and(|proposal| !follows(topology, proposal)) {
        return Err(None);
    }
    let blank = Vote { epoch, promised: Ballot::default(), accepted: None };
    let mut vote = held.filter(|held| held.epoch == epoch).unwrap_or(blank);
    let outbid = if proposal.is_some() { ballot < vote.promised } else { ballot <= vote.promised };
    if outbid {
        return Err(Some(Box::new(vote)));
    }
    vote.promised = ballot;
    if let Some(proposal) = proposal {
        vote.accepted = Some((ballot, proposal.clone()));
    }
    Ok(vote)
}

/// One round of one ballot: the fold over the votes.
#[derive(Debug)]
pub struct Round {
    ballot: Ballot,
    needed: usize,
    with: BTreeSet<NodeNum>,
    accepted: Option<(Ballot, Topology)>,
    outbid: Option<Ballot>,
}

impl Round {
    pub fn new(topology: &Topology, ballot: Ballot) -> Self {
        let needed = majority(topology.voters().count());
        Self { ballot, needed, with: BTreeSet::new(), accepted: None, outbid: None }
    }

    pub fn on_vote(&mut self, from: NodeNum, vote: Vote) {
        if vote.promised == self.ballot {
            self.with.insert(from);
        } else {
            self.outbid = self.outbid.max(Some(vote.promised));
        }
        if let Some(accepted) = vote.accepted
            && self.accepted.as_ref().is_none_or(|(ballot, _)| *ballot < accepted.0)
        {
            self.accepted = Some(accepted);
        }
    }

    /// A majority voted as it was asked to.
    pub fn is_met(&self) -> bool {
        self.with.len() >= self.needed
    }

    /// What has to be proposed after this round, if a majority promised: what may be decided already goes before one's own.
    pub fn proposal(self, own: Option<Topology>) -> Option<Topology> {
        self.accepted.map(|(_, topology)| topology).or(own)
    }

    /// The highest other ballot that was met.
    pub fn outbid(&self) -> Option<Ballot> {
        self.outbid
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::founding::first_topology;
    use crate::types::{ClusterId, Hlc, InstanceId};
    use proptest::prelude::*;
    use uuid::Uuid;

    fn newcomer(node: u16, instance: u128) -> Announcement {
        Announcement {
            node: NodeNum(node),
            instance: InstanceId(Uuid::from_u128(instance)),
            zone: None,
            weight: 1,
            mesh_address: format!("10.0.0.{node}:{instance}"),
            http_address: "h:1".into(),
            cluster_size: 3,
            rf: 2,
        }
    }

    fn topology(members: u16) -> Topology {
        let founders: Vec<_> = (1..=members).map(|n| newcomer(n, n.into())).collect();
        first_topology(&founders, ClusterId(Uuid::from_u128(9)))
    }

    fn ballot(hlc: u64, writer: u32) -> Ballot {
        Ballot { hlc: Hlc(hlc), writer: Writer(writer) }
    }

    #[test]
    fn a_newcomer_takes_the_place_with_a_number_of_its_own() {
        let old = topology(3);
        let next = replaced(&old, &newcomer(2, 20)).unwrap();
        next.check().unwrap();
        let member = next.member(NodeNum(2)).unwrap();
        assert_eq!((member.writer, next.next_writer, next.epoch), (Writer(4), Writer(5), Epoch(2)));
        assert_eq!((&next.ring, gone(&old, &next)), (&old.ring, vec![NodeNum(2)]));
        assert_eq!(replaced(&old, &newcomer(2, 2)), None, "it is there already");
        assert_eq!(replaced(&old, &newcomer(9, 20)), None, "nobody's number");
    }

    #[test]
    fn only_one_step_from_the_topology_in_force_is_voted_for() {
        let old = topology(3);
        let next = replaced(&old, &newcomer(2, 20)).unwrap();
        let ask = |epoch, proposal: Option<&Topology>| vote(&old, None, Epoch(epoch), ballot(1, 1), proposal);
        assert!(ask(2, Some(&next)).is_ok() && ask(2, None).is_ok());
        assert_eq!(ask(3, None), Err(None));
        let mut two = replaced(&next, &newcomer(3, 30)).unwrap();
        two.epoch = Epoch(2);
        let mut same_writer = next.clone();
        same_writer.members[1].writer = Writer(2);
        let mut moved = next.clone();
        moved.ring[0].reverse();
        for wrong in [two, same_writer, moved, Topology { cluster_id: ClusterId(Uuid::nil()), ..next }] {
            assert_eq!(ask(2, Some(&wrong)), Err(None));
        }
    }

    #[test]
    fn a_vote_never_goes_back() {
        let old = topology(3);
        let next = replaced(&old, &newcomer(2, 20)).unwrap();
        let promised = vote(&old, None, Epoch(2), ballot(5, 1), None).unwrap();
        let ask = |ballot, proposal| vote(&old, Some(promised.clone()), Epoch(2), ballot, proposal);
        assert_eq!(ask(ballot(5, 1), None), Err(Some(Box::new(promised.clone()))), "a ballot is prepared once");
        assert_eq!(ask(ballot(4, 9), Some(&next)), Err(Some(Box::new(promised.clone()))));
        let accepted = ask(ballot(5, 1), Some(&next)).unwrap();
        let later = vote(&old, Some(accepted.clone()), Epoch(2), ballot(6, 1), None).unwrap();
        assert_eq!((later.promised, later.accepted), (ballot(6, 1), accepted.accepted.clone()));
        let stale = vote(&next, Some(accepted), Epoch(3), ballot(1, 1), None).unwrap();
        assert_eq!(stale.accepted, None, "a vote is for one epoch");
    }

    /// Proposers that stop anywhere, over messages that arrive or do not: at most one topology gets a majority.
    fn decided(members: u16, steps: &[(u8, u8, bool)]) -> Vec<Topology> {
        let old = topology(members);
        let mut votes: Vec<Option<Vote>> = vec![None; members.into()];
        let mut decided = Vec::new();
        for (at, (proposer, reached, accepts)) in steps.iter().enumerate() {
            let ballot = ballot(u64::from(*proposer) + at as u64 % 3, u32::from(*proposer) + 1 + 100 * at as u32);
            let own =
                replaced(&old, &newcomer(1 + u16::from(*proposer) % members, 100 + u128::from(*proposer))).unwrap();
            let ask = |votes: &mut Vec<Option<Vote>>, mask: u8, proposal: Option<&Topology>| {
                let mut round = Round::new(&old, ballot);
                for (n, held) in votes.iter_mut().enumerate().filter(|(n, _)| mask >> n & 1 == 1) {
                    match vote(&old, held.clone(), Epoch(2), ballot, proposal) {
                        Ok(vote) => {
                            *held = Some(vote.clone());
                            round.on_vote(NodeNum(n as u16 + 1), vote);
                        }
                        Err(stands) => stands.into_iter().for_each(|vote| round.on_vote(NodeNum(n as u16 + 1), *vote)),
                    }
                }
                round
            };
            let prepared = ask(&mut votes, *reached, None);
            if !prepared.is_met() {
                continue;
            }
            let Some(proposal) = prepared.proposal(Some(own)) else { continue };
            let mask = if *accepts { *reached } else { reached.rotate_left(3) };
            if ask(&mut votes, mask, Some(&proposal)).is_met() {
                decided.push(proposal);
            }
        }
        decided
    }

    proptest! {
        #[test]
        fn one_epoch_has_one_topology(
            members in 3u16..6,
            steps in prop::collection::vec((0u8..4, any::<u8>(), any::<bool>()), 1..12),
        ) {
            let decided = decided(members, &steps);
            prop_assert!(decided.windows(2).all(|pair| pair[0] == pair[1]));
        }
    }
}
