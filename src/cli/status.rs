//! `a3 status`: the cluster at a glance.

use clap::Args;
use serde_json::{Value, json};

use super::Fault;
use super::client::{Asked, Client, block_on};
use super::output::{self, Output};
use super::views::{Cluster, Health, Member, fetch};
use crate::config::units::about_bytes;

/// Show the cluster's health and its members, as one node sees them.
#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    output: Output,
}

impl Status {
    pub(super) fn run(self) -> Result<(), Fault> {
        let (client, host) = (Client::new(), &self.asked.host);
        if self.output.is_json() {
            let (cluster, health) = block_on(async {
                let cluster: Value = fetch(&client, host, "/cluster").await?;
                Ok((cluster, fetch::<Value>(&client, host, "/cluster/health").await?))
            })?;
            return output::json(&json!({ "cluster": cluster, "health": health }));
        }
        let (cluster, health) = block_on(async {
            let cluster: Cluster = fetch(&client, host, "/cluster").await?;
            Ok((cluster, fetch::<Health>(&client, host, "/cluster/health").await?))
        })?;
        output::line(&format!("{}\n{}\n\n{}", about(&cluster), summary(&health), members(&cluster.members)))
    }
}

fn about(cluster: &Cluster) -> String {
    let Cluster { node, cluster_id, epoch, rf, .. } = cluster;
    format!("cluster {cluster_id}, epoch {epoch}, {rf} copies of each key; asked {node}")
}

/// The cluster's health in a line.
pub(super) fn summary(health: &Health) -> String {
    let Health { status, slots_total, slots_full, slots_at_quorum, slots_unavailable, .. } = health;
    let mut line =
        format!("{status}: of {slots_total} slots {slots_full} with all copies, {slots_at_quorum} at quorum");
    if *slots_unavailable > 0 {
        line.push_str(&format!(", {slots_unavailable} unavailable"));
    }
    if !health.members_down.is_empty() {
        line.push_str(&format!("; down: {}", health.members_down.join(", ")));
    }
    if health.hints_pending > 0 {
        let hints = if health.hints_pending == 1 { "hint" } else { "hints" };
        line.push_str(&format!("; {} {hints} to deliver", health.hints_pending));
    }
    line
}

fn members(members: &[Member]) -> String {
    let mut table = output::table(&["NODE", "STATE", "REST", "MESH", "ZONE", "SLOTS", "KEYS", "SIZE", "HINTS OWED"]);
    for m in members {
        let known = |number: Option<u64>, show: fn(u64) -> String| number.map_or_else(|| "?".to_owned(), show);
        table.add_row([
            m.id.clone(),
            state(m),
            m.http_address.clone(),
            m.mesh_address.clone(),
            m.zone.clone().unwrap_or_else(|| "-".into()),
            m.slots.to_string(),
            known(m.keys, |n| n.to_string()),
            known(m.bytes, about_bytes),
            m.hints_owed.to_string(),
        ]);
    }
    output::rendered(&table)
}

/// What gossip holds of a member, and what it says of itself where that is something else than serving.
fn state(member: &Member) -> String {
    let mut state = member.liveness.clone();
    if let Some(own) = member.state.as_deref().filter(|own| *own != "serving" && member.liveness == "alive") {
        state = format!("{state}, {own}");
    }
    if !member.reachable && member.liveness == "alive" {
        state.push_str(", unreachable");
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_tells_what_is_wrong_only_where_something_is() {
        let fine = Health {
            status: "healthy".into(),
            slots_total: 256,
            slots_full: 256,
            slots_at_quorum: 256,
            ..Health::default()
        };
        assert_eq!(summary(&fine), "healthy: of 256 slots 256 with all copies, 256 at quorum");
        let down = Health { members_down: vec!["n2".into()], hints_pending: 7, slots_unavailable: 1, ..fine };
        assert!(summary(&down).ends_with("256 at quorum, 1 unavailable; down: n2; 7 hints to deliver"));
    }

    #[test]
    fn members_of_a_poorer_answer_still_show() {
        let cluster: Cluster =
            serde_json::from_str(r#"{"node":"n1","members":[{"id":"n1","liveness":"alive","reachable":true}]}"#)
                .unwrap();
        assert_eq!((cluster.node.as_str(), state(&cluster.members[0])), ("n1", "alive".to_owned()));
        assert!(members(&cluster.members).lines().nth(1).is_some_and(|row| row.starts_with("n1")));
    }
}
