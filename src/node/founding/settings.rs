//! Settings that counted once: the cluster was founded, or the node joined, and since then the topology says otherwise.

use crate::types::{Announcement, Topology};

/// The setting's default: nobody asked for it.
const WEIGHT_UNSET: u32 = 1;

/// A line for each setting of this node that says something else than the topology. An unset `ZONE` or `WEIGHT` says nothing.
pub(super) fn without_effect(me: &Announcement, topology: &Topology) -> Vec<String> {
    let node = me.node;
    let mut lines = Vec::new();
    if topology.rf != me.rf {
        let (asked, rf) = (me.rf, topology.rf);
        lines.push(format!(
            "REPLICATION_FACTOR={asked} has no effect: the cluster keeps {rf} of each key; a3 replication-factor changes that"
        ));
    }
    let Some(member) = topology.members.iter().find(|member| member.node == node) else { return lines };
    if let Some(asked) = me.zone.as_ref().filter(|_| me.zone != member.zone) {
        let stands = member.zone.as_ref().map_or_else(|| "in no zone".to_owned(), |zone| format!("in zone {zone}"));
        lines.push(format!("ZONE={asked} has no effect: {node} stands {stands}; a3 zone {node} changes that"));
    }
    if me.weight != member.weight && me.weight != WEIGHT_UNSET {
        let (asked, weight) = (me.weight, member.weight);
        lines.push(format!("WEIGHT={asked} has no effect: {node} has weight {weight}; a3 weight {node} changes that"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::fakes::topology;
    use crate::types::NodeNum;

    #[test]
    fn what_the_topology_overrules_is_named_and_the_command_that_changes_it() {
        let three = topology(1, 3, 2);
        let member = &three.members[0];
        let agreeing = Announcement {
            node: member.node,
            instance: member.instance,
            zone: None,
            weight: 1,
            mesh_address: String::new(),
            http_address: String::new(),
            cluster_size: 3,
            rf: 2,
        };
        assert_eq!(without_effect(&agreeing, &three), [""; 0]);
        let other = Announcement { zone: Some("b".into()), weight: 2, rf: 3, ..agreeing.clone() };
        let lines = without_effect(&other, &three);
        let begins = ["REPLICATION_FACTOR=3 has", "ZONE=b has no effect: n1 stands in no zone", "WEIGHT=2 has"];
        assert!(lines.len() == 3 && lines.iter().zip(begins).all(|(line, begin)| line.starts_with(begin)), "{lines:?}");
        let mut changed = (*three).clone();
        (changed.members[0].zone, changed.members[0].weight) = (Some("a".into()), 5);
        assert_eq!(without_effect(&agreeing, &changed), [""; 0], "whoever says nothing is not told");
        let outside = Announcement { node: NodeNum(9), ..other };
        assert_eq!(without_effect(&outside, &three).len(), 1, "of the cluster, not of a member");
    }
}
