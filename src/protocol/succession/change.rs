//! The steps that a topology may take: what a change makes of it, how the change ends, and how it is taken back.
//!
//! A change takes two epochs. [`begin`] puts what slots are to have beside what they have had: until the change ends both count
//! (`Topology::moving`). [`complete`] drops what was before, once every replica of what is to be has caught up; [`abort`] drops
//! what was to be, at any time: what was before has counted all along, so it misses nothing.
//!
//! Invariant: the same topology and the same wish give the same step on every node, so that a voter can tell whether a proposal
//! follows. (Nodes of different versions must plan alike, or they refuse each other's changes.)

use crate::protocol::catch_up::can_do_without_one;
use crate::protocol::planner;
use crate::types::limits::{MEMBERS_MAX, REPLICATION_FACTOR_MAX, WEIGHT_MAX, ZONE_BYTES_MAX};
use crate::types::{Announcement, Epoch, Member, Moving, NodeNum, Topology, TopologyChange, Writer};

/// A change that somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A node that is no member becomes one.
    Join(Announcement),
    /// A member hands over what it keeps, and goes. It may be dead.
    Leave(NodeNum),
    /// A member's share becomes another one.
    Weight(NodeNum, u32),
    /// A member stands in another zone.
    Zone(NodeNum, Option<String>),
    /// Another number of copies of each key.
    ReplicationFactor(u8),
}

/// Why a change cannot begin. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("{0} is not a member")]
    NotAMember(NodeNum),
    #[error("{0} is a member already")]
    Member(NodeNum),
    #[error("that changes nothing")]
    Nothing,
    #[error("another change of the topology is under way: {0}")]
    UnderWay(String),
    #[error("{rf} copies of each key need {rf} members that keep slots, and there would be {left}")]
    TooFew { rf: u8, left: usize },
    #[error(
        "{0} is down and has the only copy of slots: start it again, or have its place taken without what it has (a3 replace {0}), then let it leave"
    )]
    OnlyCopy(NodeNum),
    #[error("{what} must be {low} to {high}")]
    OutOfRange { what: &'static str, low: u64, high: u64 },
    #[error("the cluster has as many members as it may: {MEMBERS_MAX}")]
    TooMany,
    #[error("no number is left for another writer")]
    Exhausted,
}

/// The topology in which the change is under way.
///
/// # Errors
/// Why there is none.
pub fn begin(topology: &Topology, wish: &Wish) -> Result<Topology, Unfit> {
    if let Some(moving) = &topology.moving {
        return Err(Unfit::UnderWay(moving.change.to_string()));
    }
    let mut next = topology.clone();
    let change = apply(&mut next, wish)?;
    next.epoch = Epoch(topology.epoch.0 + 1);
    let (since, rf, ring) = (next.epoch, topology.rf, topology.ring.clone());
    next.moving = Some(Moving { since, change, rf, ring });
    let leaver = next.leaver();
    let stay: Vec<Member> = next.members.iter().filter(|m| Some(m.node) != leaver).cloned().collect();
    let keep = stay.iter().filter(|m| m.weight > 0).count();
    // A cluster that was founded with fewer members than copies may grow.
    let had = topology.members.iter().filter(|m| m.weight > 0).count();
    if keep < usize::from(next.rf) && (keep < had || next.rf > topology.rf) {
        return Err(Unfit::TooFew { rf: next.rf, left: keep });
    }
    next.ring = planner::plan(&stay, next.rf, Some(&topology.ring));
    Ok(next)
}

/// The topology in which a member leaves that does not answer.
///
/// # Errors
/// Why there is none; where nobody else knows what it keeps, such a change would never end.
pub fn begin_without(topology: &Topology, leaver: NodeNum) -> Result<Topology, Unfit> {
    let known = |homes: &Vec<NodeNum>| !homes.contains(&leaver) || can_do_without_one(homes.len());
    let next = begin(topology, &Wish::Leave(leaver))?;
    if topology.ring.iter().all(known) { Ok(next) } else { Err(Unfit::OnlyCopy(leaver)) }
}

/// Changes members and copies as is wished; the ring is still to be planned.
fn apply(next: &mut Topology, wish: &Wish) -> Result<TopologyChange, Unfit> {
    let find = |next: &Topology, node: NodeNum| {
        next.members.binary_search_by_key(&node, |m| m.node).map_err(|_| Unfit::NotAMember(node))
    };
    match wish {
        Wish::Join(newcomer) => join(next, newcomer),
        Wish::Leave(node) => find(next, *node).map(|_| TopologyChange::Leave { node: *node }),
        Wish::Weight(node, weight) => {
            let at = find(next, *node)?;
            if *weight > WEIGHT_MAX {
                return Err(Unfit::OutOfRange { what: "a weight", low: 0, high: WEIGHT_MAX.into() });
            }
            let before = std::mem::replace(&mut next.members[at].weight, *weight);
            if before == *weight { Err(Unfit::Nothing) } else { Ok(TopologyChange::Weight { node: *node, before }) }
        }
        Wish::Zone(node, zone) => {
            let at = find(next, *node)?;
            if zone.as_ref().is_some_and(|zone| zone.is_empty() || zone.len() > ZONE_BYTES_MAX) {
                return Err(Unfit::OutOfRange {
                    what: "the bytes of a zone's name",
                    low: 1,
                    high: ZONE_BYTES_MAX as u64,
                });
            }
            let before = std::mem::replace(&mut next.members[at].zone, zone.clone());
            if before == *zone { Err(Unfit::Nothing) } else { Ok(TopologyChange::Zone { node: *node, before }) }
        }
        Wish::ReplicationFactor(rf) => {
            if *rf == 0 || usize::from(*rf) > REPLICATION_FACTOR_MAX {
                let high = REPLICATION_FACTOR_MAX as u64;
                return Err(Unfit::OutOfRange { what: "the number of copies", low: 1, high });
            }
            let before = std::mem::replace(&mut next.rf, *rf);
            if before == *rf { Err(Unfit::Nothing) } else { Ok(TopologyChange::ReplicationFactor) }
        }
    }
}

fn join(next: &mut Topology, newcomer: &Announcement) -> Result<TopologyChange, Unfit> {
    let known = |m: &Member| m.node == newcomer.node || m.instance == newcomer.instance;
    if next.members.iter().any(known) {
        return Err(Unfit::Member(newcomer.node));
    }
    if next.members.len() >= MEMBERS_MAX {
        return Err(Unfit::TooMany);
    }
    let writer = next.next_writer;
    next.next_writer = Writer(writer.0.checked_add(1).ok_or(Unfit::Exhausted)?);
    next.members.push(Member {
        node: newcomer.node,
        instance: newcomer.instance,
        writer,
        zone: newcomer.zone.clone(),
        weight: newcomer.weight,
        mesh_address: newcomer.mesh_address.clone(),
        http_address: newcomer.http_address.clone(),
    });
    next.members.sort_by_key(|m| m.node);
    Ok(TopologyChange::Join { node: newcomer.node })
}

/// The topology after the change. `None` where none is under way.
pub fn complete(topology: &Topology) -> Option<Topology> {
    let mut next = topology.clone();
    let leaver = topology.leaver();
    next.moving.take()?;
    next.members.retain(|m| Some(m.node) != leaver);
    next.epoch = Epoch(topology.epoch.0 + 1);
    Some(next)
}

/// The topology as if the change had not begun; a member that was replaced meanwhile stays so. `None` where none is under way.
pub fn abort(topology: &Topology) -> Option<Topology> {
    let mut next = topology.clone();
    let Moving { change, rf, ring, .. } = next.moving.take()?;
    (next.rf, next.ring, next.epoch) = (rf, ring, Epoch(topology.epoch.0 + 1));
    let member = |node: NodeNum| move |m: &&mut Member| m.node == node;
    match change {
        TopologyChange::Join { node } => next.members.retain(|m| m.node != node),
        TopologyChange::Weight { node, before } => {
            next.members.iter_mut().filter(member(node)).for_each(|m| m.weight = before);
        }
        TopologyChange::Zone { node, before } => {
            next.members.iter_mut().filter(member(node)).for_each(|m| m.zone.clone_from(&before));
        }
        TopologyChange::Leave { .. } | TopologyChange::ReplicationFactor => {}
    }
    Some(next)
}

/// What was wished for, told from a topology in which it is under way.
fn wish(proposal: &Topology) -> Option<Wish> {
    let moving = proposal.moving.as_ref()?;
    Some(match &moving.change {
        TopologyChange::Join { node } => Wish::Join(announced(proposal.member(*node)?, proposal.rf)),
        TopologyChange::Leave { node } => Wish::Leave(*node),
        TopologyChange::Weight { node, .. } => Wish::Weight(*node, proposal.member(*node)?.weight),
        TopologyChange::Zone { node, .. } => Wish::Zone(*node, proposal.member(*node)?.zone.clone()),
        TopologyChange::ReplicationFactor => Wish::ReplicationFactor(proposal.rf),
    })
}

/// A member as it announced itself.
pub(super) fn announced(member: &Member, rf: u8) -> Announcement {
    Announcement {
        node: member.node,
        instance: member.instance,
        zone: member.zone.clone(),
        weight: member.weight,
        mesh_address: member.mesh_address.clone(),
        http_address: member.http_address.clone(),
        cluster_size: 0,
        rf,
    }
}

/// Whether a proposal is a step of a change from the topology in force.
pub(super) fn follows(topology: &Topology, proposal: &Topology) -> bool {
    match &topology.moving {
        Some(_) => [complete(topology), abort(topology)].iter().flatten().any(|next| next == proposal),
        None => wish(proposal).is_some_and(|wish| begin(topology, &wish).as_ref() == Ok(proposal)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::founding::first_topology;
    use crate::protocol::ring::Ring;
    use crate::types::{ClusterId, InstanceId, Slot};
    use proptest::prelude::*;
    use std::sync::Arc;
    use uuid::Uuid;

    fn newcomer(node: u16) -> Announcement {
        Announcement {
            node: NodeNum(node),
            instance: InstanceId(Uuid::from_u128(node.into())),
            zone: None,
            weight: 1,
            mesh_address: format!("10.0.0.{node}:1"),
            http_address: "h:1".into(),
            cluster_size: 3,
            rf: 2,
        }
    }

    fn topology(members: u16, rf: u8) -> Topology {
        let founders: Vec<_> = (1..=members).map(|n| Announcement { rf, ..newcomer(n) }).collect();
        first_topology(&founders, ClusterId(Uuid::from_u128(9)))
    }

    #[test]
    fn a_member_that_joins_has_its_share_beside_what_was_before() {
        let old = topology(3, 2);
        let next = begin(&old, &Wish::Join(newcomer(4))).unwrap();
        next.check().unwrap();
        assert_eq!((next.epoch, next.joiner(), next.next_writer), (Epoch(2), Some(NodeNum(4)), Writer(5)));
        let gained = next.ring.iter().filter(|homes| homes.contains(&NodeNum(4))).count();
        assert_eq!((gained, next.moving_slots().count()), (128, 128));
        let ring = Ring::new(Arc::new(next.clone()));
        let slot = next.moving_slots().next().unwrap();
        let placement = ring.placement(slot);
        assert_eq!(placement.write_sets[0].as_slice(), old.home_replicas(slot), "what has everything is asked first");
        assert_eq!(placement.write_sets[1].as_slice(), next.home_replicas(slot));
        let still = Slot::all().find(|slot| next.replicas_before(*slot).is_none()).unwrap();
        assert_eq!(ring.placement(still).write_sets.len(), 1);
        assert_eq!(next.voters().count(), 3, "who only joins has no say in it");
        let after = complete(&next).unwrap();
        after.check().unwrap();
        assert_eq!((after.epoch, &after.moving, &after.ring), (Epoch(3), &None, &next.ring));
        let back = abort(&next).unwrap();
        assert_eq!((&back.members, &back.ring, back.epoch), (&old.members, &old.ring, Epoch(3)));
        assert_eq!(back.next_writer, Writer(5), "a number that was given is not given again");
    }

    #[test]
    fn a_leaver_is_a_member_until_the_change_ends() {
        let old = topology(4, 3);
        let next = begin(&old, &Wish::Leave(NodeNum(2))).unwrap();
        next.check().unwrap();
        assert!(next.member(NodeNum(2)).is_some() && next.ring.iter().all(|homes| !homes.contains(&NodeNum(2))));
        let after = complete(&next).unwrap();
        after.check().unwrap();
        assert_eq!((after.members.len(), after.member(NodeNum(2))), (3, None));
        assert_eq!(Topology { epoch: old.epoch, ..abort(&next).unwrap() }, old);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let old = topology(3, 3);
        let refused = |wish: Wish| begin(&old, &wish).unwrap_err();
        assert_eq!(refused(Wish::Join(newcomer(2))), Unfit::Member(NodeNum(2)));
        assert_eq!(refused(Wish::Leave(NodeNum(9))), Unfit::NotAMember(NodeNum(9)));
        assert_eq!(refused(Wish::Leave(NodeNum(1))), Unfit::TooFew { rf: 3, left: 2 });
        assert_eq!(refused(Wish::ReplicationFactor(4)), Unfit::TooFew { rf: 4, left: 3 });
        assert!(matches!(refused(Wish::ReplicationFactor(0)), Unfit::OutOfRange { .. }));
        assert_eq!(refused(Wish::Weight(NodeNum(1), 1)), Unfit::Nothing);
        assert_eq!(refused(Wish::Weight(NodeNum(1), 0)), Unfit::TooFew { rf: 3, left: 2 });
        assert!(matches!(refused(Wish::Zone(NodeNum(1), Some(String::new()))), Unfit::OutOfRange { .. }));
        assert_eq!(begin_without(&topology(4, 1), NodeNum(4)), Err(Unfit::OnlyCopy(NodeNum(4))));
        assert_eq!(begin_without(&topology(2, 2), NodeNum(2)), Err(Unfit::TooFew { rf: 2, left: 1 }));
        for rf in [2, 3] {
            assert!(begin_without(&topology(4, rf), NodeNum(4)).is_ok(), "another copy of each slot is left");
        }
        let under_way = begin(&old, &Wish::Join(newcomer(4))).unwrap();
        let second = begin(&under_way, &Wish::Join(newcomer(5)));
        assert_eq!(second, Err(Unfit::UnderWay("n4 joins".into())));
    }

    fn wishes() -> impl Strategy<Value = Wish> {
        let node = || (1u16..9).prop_map(NodeNum);
        prop_oneof![
            (1u16..9).prop_map(|n| Wish::Join(newcomer(n))),
            node().prop_map(Wish::Leave),
            (node(), 0u32..4).prop_map(|(node, weight)| Wish::Weight(node, weight)),
            (node(), prop::option::of("[ab]")).prop_map(|(node, zone)| Wish::Zone(node, zone)),
            (1u8..5).prop_map(Wish::ReplicationFactor),
        ]
    }

    proptest! {
        /// Every step is sound and follows; nothing else does; the old majority and the new one always meet.
        #[test]
        fn steps_follow_each_other(wishes in prop::collection::vec((wishes(), any::<bool>()), 1..12)) {
            let mut now = topology(3, 2);
            for (wished, aborted) in wishes {
                let Ok(next) = begin(&now, &wished) else { continue };
                prop_assert!(next.check().is_ok(), "{:?}", next.check());
                prop_assert!(follows(&now, &next) && !follows(&next, &next) && !follows(&now, &now));
                let end = if aborted { abort(&next) } else { complete(&next) }.unwrap();
                prop_assert!(end.check().is_ok(), "{:?}", end.check());
                prop_assert!(follows(&next, &end) && !follows(&now, &end));
                let mut wrong = next.clone();
                wrong.ring.swap(0, 1);
                prop_assert!(wrong == next || !follows(&now, &wrong));
                now = end;
            }
        }
    }
}
