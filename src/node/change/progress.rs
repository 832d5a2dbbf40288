//! How far a change is, from what its members say of themselves.

use crate::node::views::{ChangeView, MemberProgress};
use crate::types::{CatchUp, NodeNum, Topology};

/// What a member said, or why it said nothing.
type Said = Result<CatchUp, Unsaid>;

/// Why a member did not say how far it is.
#[derive(Clone, Debug)]
pub(super) struct Unsaid {
    pub why: String,
    /// It answered something, and so it lives.
    pub answers: bool,
}

/// The members that have something to do, in order.
pub(super) fn takes_part(topology: &Topology) -> Vec<NodeNum> {
    let keeps: Vec<NodeNum> =
        topology.moving_slots().flat_map(|slot| topology.home_replicas(slot).iter().copied()).collect();
    let parts = |node: &NodeNum| keeps.contains(node) || topology.leaver() == Some(*node);
    topology.members.iter().map(|m| m.node).filter(parts).collect()
}

/// Why the change cannot end for that member's sake. `dead`: it is not waited for if it leaves anyway.
pub(super) fn waits_for(topology: &Topology, node: NodeNum, said: &Said, dead: bool) -> Option<String> {
    let leaves = topology.leaver() == Some(node);
    match said {
        Err(unsaid) if leaves && dead && !unsaid.answers => None,
        Err(unsaid) => Some(unsaid.why.clone()),
        Ok(said) if leaves => (said.hints > 0).then(|| format!("it has {} hints to hand over", said.hints)),
        Ok(said) if said.caught_up => None,
        Ok(said) => {
            let stuck = said.stuck.as_ref().map_or_else(String::new, |stuck| format!("; {stuck}"));
            Some(format!("it has caught up on {} of {} slots{stuck}", said.done, said.slots))
        }
    }
}

/// The change as people see it. `None` where none is under way.
pub(super) fn view(
    topology: &Topology,
    said: Vec<(NodeNum, Said)>,
    dead: impl Fn(NodeNum) -> bool,
) -> Option<ChangeView> {
    let moving = topology.moving.as_ref()?;
    let waiting = |(node, said): &(NodeNum, Said)| Some((*node, waits_for(topology, *node, said, dead(*node))?));
    let waiting_for = said.iter().filter_map(waiting).collect();
    let keeps =
        |node: &NodeNum| topology.moving_slots().filter(|slot| topology.home_replicas(*slot).contains(node)).count();
    let members = said.into_iter().map(|(node, said)| match said {
        Ok(CatchUp { slots, done, keys, bytes, .. }) => MemberProgress { node, slots, done, keys, bytes, error: None },
        Err(Unsaid { why, .. }) => {
            MemberProgress { node, slots: keeps(&node) as u64, done: 0, keys: 0, bytes: 0, error: Some(why) }
        }
    });
    Some(ChangeView {
        since: moving.since,
        epoch: topology.epoch,
        change: moving.change.clone(),
        slots: topology.moving_slots().count() as u64,
        members: members.collect(),
        waiting_for,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fakes::topology;
    use crate::protocol::succession::change::{Wish, begin};

    fn far(slots: u64, done: u64, caught_up: bool, hints: u64) -> Said {
        Ok(CatchUp { slots, done, caught_up, hints, ..CatchUp::default() })
    }

    fn unheard(why: &str, answers: bool) -> Said {
        Err(Unsaid { why: why.to_owned(), answers })
    }

    #[test]
    fn it_waits_for_who_has_not_caught_up_and_for_a_leavers_hints_unless_that_is_dead() {
        let leaves = begin(&topology(1, 4, 2), &Wish::Leave(NodeNum(2))).unwrap();
        assert_eq!(takes_part(&leaves), [1, 2, 3, 4].map(NodeNum));
        let waits = |node: u16, said: Said, dead| waits_for(&leaves, NodeNum(node), &said, dead);
        assert_eq!(waits(1, far(40, 40, true, 9), false), None, "its own hints may stay");
        assert_eq!(waits(1, far(40, 39, false, 0), false).unwrap(), "it has caught up on 39 of 40 slots");
        assert_eq!(waits(1, unheard("unreachable", false), true).unwrap(), "unreachable", "it keeps slots");
        assert_eq!(waits(2, far(0, 0, true, 3), false).unwrap(), "it has 3 hints to hand over");
        assert_eq!(waits(2, far(0, 0, false, 0), false), None);
        assert_eq!(waits(2, unheard("unreachable", false), false).unwrap(), "unreachable", "it may come back");
        assert_eq!(waits(2, unheard("unreachable", false), true), None);
        let behind = unheard("it has epoch 1 in force still", true);
        assert!(waits(2, behind, true).is_some(), "it is back, with what it alone has");
    }

    #[test]
    fn who_says_nothing_is_named_in_the_view() {
        let copies = begin(&topology(1, 3, 2), &Wish::ReplicationFactor(3)).unwrap();
        let said = vec![(NodeNum(1), far(256, 256, true, 0)), (NodeNum(2), unheard("lost", false))];
        let view = view(&copies, said, |_| false).unwrap();
        assert_eq!((view.slots, view.members.len(), view.members[0].done), (256, 2, 256));
        assert_eq!(view.waiting_for, [(NodeNum(2), "lost".to_owned())]);
        let silent = &view.members[1];
        assert_eq!(
            (silent.slots, silent.done, silent.error.as_deref()),
            (256, 0, Some("lost")),
            "what it has to do is known"
        );
        assert_eq!(super::view(&topology(1, 3, 2), Vec::new(), |_| false), None);
    }
}
