//! `a3 status`: the cluster at a glance.
//!
//! One node is asked for the cluster as it sees it, and then each member for itself: its readiness, age, clock and disk.
//! Where a member cannot be asked from here, the word of the node that was asked stands.

use std::time::Duration;

use clap::Args;
use futures_util::future::join_all;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::client::{Asked, Client, Host, block_on, within};
use super::facts::{self, Facts};
use super::output::{self, Output};
use super::views::{Change, Cluster, Convergence, Health, Member, Operations, Tombstones, fetch};
use super::{Fault, health, membership};
use crate::config::units::about_bytes;

/// How long the node may take for each answer, also where it asks the others (copies, tombstones). Of these, what takes
/// longer is not shown.
const PATIENCE: Duration = Duration::from_secs(3);

/// Show the cluster's health and its members; exit code 69 where one is down, out of reach or not ready.
///
/// The members are shown as the node --host sees them, with what each says of itself: READY (why not stands below), UP
/// (how long), CLOCK (ahead of or behind the others'), DISK (what its database takes) and FREE (what its disk has left). `?`
/// is what nobody could say from here.
#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    output: Output,
}

/// All that was told.
struct Told {
    cluster: Cluster,
    health: Health,
    convergence: Option<Convergence>,
    tombstones: Option<Tombstones>,
    operations: Option<Operations>,
    change: Option<Change>,
    /// Of each member, in their order.
    facts: Vec<Facts>,
}

impl Told {
    /// A line for each member of which there is something to tell.
    fn of_each(&self, tell: impl Fn(&Facts) -> Option<String>) -> Vec<String> {
        let members = self.cluster.members.iter().zip(&self.facts);
        members.filter_map(|(member, facts)| Some(format!("{}: {}", member.id, tell(facts)?))).collect()
    }
}

/// The same as it came, for programs.
struct Raw {
    cluster: Value,
    health: Value,
    convergence: Option<Value>,
    tombstones: Option<Value>,
    operations: Option<Value>,
    change: Option<Value>,
}

impl Status {
    pub(super) fn run(self) -> Result<(), Fault> {
        let (raw, told) = block_on(ask(&Client::new(), &self.asked.host))?;
        if self.output.is_json() {
            let members = told.cluster.members.iter().zip(&told.facts);
            let members: Vec<Value> =
                members.map(|(member, facts)| json!({ "id": member.id, "facts": facts })).collect();
            output::json(&json!({
                "cluster": raw.cluster, "health": raw.health, "convergence": raw.convergence,
                "tombstones": raw.tombstones, "operations": raw.operations, "change": raw.change, "members": members,
            }))?;
        } else {
            output::line(&shown(&told))?;
        }
        let wrong = wrong(&told);
        if wrong.is_empty() { Ok(()) } else { Err(Fault::Unavailable(wrong.join("\n  "))) }
    }
}

async fn ask(client: &Client, host: &Host) -> Result<(Raw, Told), Fault> {
    let soon = async |path| within(PATIENCE, host, fetch::<Value>(client, host, path)).await;
    let cluster = match soon("/cluster").await {
        // A node without a cluster says best itself what it waits for.
        Err(fault @ Fault::Unavailable(_)) => {
            health::ready(client, host, PATIENCE).await?;
            return Err(fault);
        }
        other => other?,
    };
    let health = soon("/cluster/health").await?;
    let known: Cluster = read(Some(&cluster)).unwrap_or_default();
    let (convergence, tombstones, operations, change, facts) = tokio::join!(
        async { soon("/cluster/convergence").await.ok() },
        async { soon("/tombstones").await.ok() },
        async { soon("/operations").await.ok() },
        // Where none is under way it is not found.
        async { soon("/cluster/change").await.ok() },
        join_all(known.members.iter().map(|member| facts::of(client, &member.http_address)))
    );
    let told = Told {
        health: read(Some(&health)).unwrap_or_default(),
        convergence: read(convergence.as_ref()),
        tombstones: read(tombstones.as_ref()),
        operations: read(operations.as_ref()),
        change: read(change.as_ref()),
        cluster: known,
        facts,
    };
    Ok((Raw { cluster, health, convergence, tombstones, operations, change }, told))
}

fn read<T: DeserializeOwned>(value: Option<&Value>) -> Option<T> {
    T::deserialize(value?).ok()
}

fn shown(told: &Told) -> String {
    let Told { cluster, health, facts, .. } = told;
    let about = [about(cluster), summary(health), copies(told), tombstones(told)].join("\n");
    let mut text = format!("{about}{}{}\n\n{}", running(told), damaged(told), members(&cluster.members, facts));
    let waits = |f: &Facts| (f.ready == Some(false)).then(|| f.waits_for.join("; "));
    for (title, lines) in
        [("not ready", told.of_each(waits)), ("not asked themselves", told.of_each(|f| f.not_asked.clone()))]
    {
        if !lines.is_empty() {
            text.push_str(&format!("\n\n{title}:\n{}", lines.join("\n")));
        }
    }
    text
}

fn copies(told: &Told) -> String {
    let Some(convergence) = &told.convergence else { return "copies: not known in time".into() };
    let differing: Vec<String> = convergence
        .pairs
        .iter()
        .filter(|pair| pair.status != "equal")
        .map(|pair| format!("{} {}", pair.nodes.join("-"), pair.status))
        .collect();
    match differing.is_empty() {
        true => format!("copies: {}", convergence.status),
        false => format!("copies: {} ({})", convergence.status, differing.join(", ")),
    }
}

fn tombstones(told: &Told) -> String {
    let Some(Tombstones { tombstones, waiting_for, .. }) = &told.tombstones else {
        return "tombstones: not known in time".into();
    };
    let waiting: Vec<String> = waiting_for.iter().map(|w| format!("{} ({})", w.node, w.reason)).collect();
    match waiting.is_empty() {
        true => format!("tombstones: {tombstones}"),
        false => format!("tombstones: {tombstones}, waiting for {}", waiting.join(", ")),
    }
}

/// A line for the change of the topology that is under way, and for each operation that runs at the node that was asked.
fn running(told: &Told) -> String {
    let change = told.change.as_ref().map_or_else(String::new, |change| format!("\n{}", membership::summary(change)));
    let operations = told.operations.iter().flat_map(|o| &o.operations).filter(|o| o.state == "running");
    let done = |total: Option<u64>| total.map_or_else(String::new, |total| format!(" of {total}"));
    let operations = operations.map(|o| format!("\n{} runs: {}{} done", o.kind, o.done, done(o.total)));
    change + &operations.collect::<String>()
}

/// A line for each member that met damaged rows since its start.
fn damaged(told: &Told) -> String {
    let damaged = told.cluster.members.iter().zip(&told.facts).filter_map(|(m, f)| Some((m, f.damaged_rows?)));
    let damaged = damaged.filter(|(_, rows)| *rows > 0.0);
    damaged.map(|(m, rows)| format!("\n{} met {rows} damaged rows since its start", m.id)).collect()
}

/// What makes the exit code 69.
fn wrong(told: &Told) -> Vec<String> {
    let of = |(member, facts): (&Member, &Facts)| {
        let id = &member.id;
        match (member.liveness.as_str(), member.state.as_deref(), facts.ready) {
            ("down", ..) => Some(format!("{id} is down")),
            (_, _, Some(false)) => Some(format!("{id} is not ready: {}", facts.waits_for.join(", "))),
            (_, _, Some(true)) if member.reachable => None,
            _ if !member.reachable => Some(format!("{id} is out of reach of {}", told.cluster.node)),
            (_, Some("serving"), _) => None,
            (_, state, _) => Some(format!("{id} is not ready: {}", state.unwrap_or("it has not said how it is"))),
        }
    };
    let mut wrong: Vec<String> = told.cluster.members.iter().zip(&told.facts).filter_map(of).collect();
    if told.health.slots_unavailable > 0 {
        wrong.push(format!("{} slots cannot be served", told.health.slots_unavailable));
    }
    wrong
}

fn about(cluster: &Cluster) -> String {
    let Cluster { node, cluster_id, epoch, rf, .. } = cluster;
    let copies = if *rf == 1 { "copy" } else { "copies" };
    format!("cluster {cluster_id}, epoch {epoch}, {rf} {copies} of each key; asked {node}")
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

fn members(members: &[Member], facts: &[Facts]) -> String {
    let header = [
        "NODE",
        "STATE",
        "READY",
        "ZONE",
        "VERSION",
        "UP",
        "SLOTS",
        "KEYS",
        "SIZE",
        "HINTS OWED",
        "OPS/S",
        "CLOCK",
        "DISK",
        "FREE",
        "REST",
        "MESH",
    ];
    let row = |(m, f): (&Member, &Facts)| {
        let bytes = |bytes: f64| about_bytes(bytes as u64);
        vec![
            m.id.clone(),
            state(m),
            known(f.ready, |ready| if ready { "yes" } else { "no" }.to_owned()),
            m.zone.clone().unwrap_or_else(|| "-".into()),
            known(m.program.clone(), |version| version),
            known(f.up_seconds, age),
            m.slots.to_string(),
            known(f.keys.map(|n| n as u64).or(m.keys), |n| n.to_string()),
            known(f.bytes.map(|n| n as u64).or(m.bytes), about_bytes),
            m.hints_owed.to_string(),
            known(m.requests_per_second, |n| n.to_string()),
            known(f.clock_skew_seconds, skew),
            known(f.disk_used_bytes, bytes),
            known(f.disk_free_bytes, bytes),
            m.http_address.clone(),
            m.mesh_address.clone(),
        ]
    };
    output::rows(&header, &members.iter().zip(facts).map(row).collect::<Vec<_>>())
}

fn known<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "?".to_owned(), show)
}

/// How long ago it started, in the two greatest units.
fn age(seconds: f64) -> String {
    let s = seconds as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// Ahead of the others' clocks, or behind.
fn skew(seconds: f64) -> String {
    if seconds.abs() < 1.0 { format!("{:+.0}ms", seconds * 1000.0) } else { format!("{seconds:+.1}s") }
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

    fn told(cluster: Value, facts: Vec<Facts>) -> Told {
        Told {
            cluster: serde_json::from_value(cluster).unwrap(),
            health: Health::default(),
            convergence: None,
            tombstones: None,
            operations: None,
            change: None,
            facts,
        }
    }

    #[test]
    fn members_of_a_poorer_answer_still_show() {
        let told = told(
            json!({"node": "n1", "members": [{"id": "n1", "liveness": "alive", "reachable": true, "state": "serving"}]}),
            vec![Facts::default()],
        );
        assert_eq!(state(&told.cluster.members[0]), "alive");
        let shown = shown(&told);
        assert!(shown.lines().nth(6).is_some_and(|row| row.starts_with("n1") && row.contains('?')), "{shown}");
        assert_eq!(wrong(&told), [] as [&str; 0], "the asked node's word stands for a member that cannot be asked");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let member = |id: &str, liveness: &str, reachable: bool, state: Option<&str>| json!({"id": id, "liveness": liveness, "reachable": reachable, "state": state});
        let (some, silent) =
            (Some("serving"), || Facts { not_asked: Some("cannot connect".into()), ..Facts::default() });
        let ready = || Facts { ready: Some(true), ..Facts::default() };
        let members = json!({"node": "n1", "members": [
            member("n1", "alive", true, some), member("n2", "down", false, some), member("n3", "alive", true, some),
            member("n4", "alive", false, some), member("n5", "suspect", true, some), member("n6", "alive", true, Some("draining")),
        ]});
        let waits_for = vec!["storage: full".into()];
        let waits = Facts { ready: Some(false), waits_for, damaged_rows: Some(2.0), ..Facts::default() };
        let told = told(members, vec![ready(), silent(), waits, ready(), silent(), silent()]);
        let wanted =
            ["n2 is down", "n3 is not ready: storage: full", "n4 is out of reach of n1", "n6 is not ready: draining"];
        assert_eq!(wrong(&told), wanted);
        assert_eq!(damaged(&told), "\nn3 met 2 damaged rows since its start");
        let shown = shown(&told);
        assert!(shown.contains("\n\nnot ready:\nn3: storage: full\n\n"), "{shown}");
        assert!(
            shown.ends_with("not asked themselves:\nn2: cannot connect\nn5: cannot connect\nn6: cannot connect"),
            "{shown}"
        );
        let row = shown.lines().find(|line| line.starts_with("n3 ")).unwrap();
        assert!(!row.contains("storage"), "a reason is no column: {row}");
    }

    #[test]
    fn copies_and_tombstones_are_told_in_a_line_each() {
        let mut told = told(json!({}), Vec::new());
        assert_eq!(copies(&told), "copies: not known in time");
        let pairs = json!([{"nodes": ["n1", "n2"], "status": "equal"}, {"nodes": ["n1", "n3"], "status": "differs"}]);
        told.convergence = read(Some(&json!({"status": "differs", "pairs": pairs})));
        told.tombstones =
            read(Some(&json!({"tombstones": 3, "waiting_for": [{"node": "n2", "reason": "unreachable"}]})));
        told.operations =
            read(Some(&json!({"operations": [{"kind": "repair", "state": "running", "done": 3, "total": 16}]})));
        assert_eq!(copies(&told), "copies: differs (n1-n3 differs)");
        assert_eq!(tombstones(&told), "tombstones: 3, waiting for n2 (unreachable)");
        assert_eq!(running(&told), "\nrepair runs: 3 of 16 done");
        told.change = read(Some(&json!({"text": "n4 joins", "since": 2, "slots": 128, "done": 60, "total": 128})));
        let change = "\nn4 joins: under way since epoch 2, 128 slots move, 60 of 128 caught up on";
        assert_eq!(running(&told), format!("{change}\nrepair runs: 3 of 16 done"));
    }

    #[test]
    fn ages_and_skews_are_short() {
        assert_eq!([5.9, 61.0, 7260.0, 180_000.0].map(age), ["5s", "1m1s", "2h1m", "2d2h"]);
        assert_eq!([0.0004, -0.25, 2.04].map(skew), ["+0ms", "-250ms", "+2.0s"]);
    }
}
