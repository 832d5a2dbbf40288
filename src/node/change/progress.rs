//! How far a change is, from what its members say of themselves.

use crate::node::views::{ChangeView, MemberProgress};
use crate::types::{CatchUp, NodeNum, Topology};

/// What a member said, or why it said nothing.
type Said = Result<CatchUp, String>;

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
        Err(_) if leaves && dead => None,
        Err(why) => Some(why.clone()),
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
    let members = said.into_iter().map(|(node, said)| match said {
        Ok(CatchUp { slots, done, keys, bytes, .. }) => MemberProgress { node, slots, done, keys, bytes, error: None },
        Err(why) => MemberProgress { node, slots: 0, done: 0, keys: 0, bytes: 0, error: Some(why) },
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
