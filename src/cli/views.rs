//! What nodes tell of their cluster, as far as commands show it. Read leniently: a field that is missing shows as
//! nothing, one that is unknown is passed over, so that a3 of one version can ask a node of another.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Fault;
use super::client::{Client, Host};

/// `GET /cluster`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Cluster {
    /// The node that was asked.
    pub(super) node: String,
    pub(super) cluster_id: String,
    pub(super) epoch: u64,
    pub(super) rf: u64,
    pub(super) members: Vec<Member>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Member {
    pub(super) id: String,
    pub(super) liveness: String,
    pub(super) state: Option<String>,
    pub(super) reachable: bool,
    pub(super) http_address: String,
    pub(super) mesh_address: String,
    pub(super) zone: Option<String>,
    pub(super) weight: Option<u64>,
    pub(super) program: Option<String>,
    pub(super) epoch: Option<u64>,
    pub(super) requests_per_second: Option<u64>,
    pub(super) slots: u64,
    pub(super) keys: Option<u64>,
    pub(super) bytes: Option<u64>,
    pub(super) hints_owed: u64,
}

/// `GET /cluster/health`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Health {
    pub(super) status: String,
    pub(super) slots_total: u64,
    pub(super) slots_full: u64,
    pub(super) slots_at_quorum: u64,
    pub(super) slots_unavailable: u64,
    pub(super) members_down: Vec<String>,
    pub(super) hints_pending: u64,
}

/// `GET /tombstones`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Tombstones {
    pub(super) tombstones: u64,
    pub(super) waiting_for: Vec<Waiting>,
    pub(super) members: Vec<MemberTombstones>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Waiting {
    pub(super) node: String,
    pub(super) reason: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct MemberTombstones {
    pub(super) node: String,
    pub(super) tombstones: Option<u64>,
    pub(super) purged: Option<u64>,
}

/// `GET /cluster/ring`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Ring {
    pub(super) epoch: u64,
    pub(super) rf: u64,
    pub(super) slots: Vec<Slot>,
    pub(super) members: Vec<Share>,
    pub(super) warnings: Vec<String>,
    pub(super) moving: Option<Moving>,
}

/// The home replicas of one slot; the slots come in their order.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Slot {
    pub(super) replicas: Vec<String>,
    pub(super) before: Option<Vec<String>>,
}

/// What a member keeps of all copies.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Share {
    pub(super) node: String,
    pub(super) zone: Option<String>,
    pub(super) weight: u64,
    pub(super) slots: u64,
    pub(super) share: f64,
    pub(super) slots_by_weight: u64,
}

/// A change of the topology, as the ring shows it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Moving {
    pub(super) since: u64,
    pub(super) text: String,
    pub(super) slots: u64,
}

/// `POST /cluster/plan`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Plan {
    pub(super) text: String,
    pub(super) epoch: u64,
    pub(super) rf: u64,
    pub(super) rf_before: u64,
    pub(super) slots: u64,
    pub(super) copies: u64,
    pub(super) copies_ideal: u64,
    pub(super) bytes_estimate: u64,
    pub(super) members: Vec<PlanMember>,
    pub(super) warnings: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PlanMember {
    pub(super) node: String,
    pub(super) zone: Option<String>,
    pub(super) weight: u64,
    pub(super) slots_before: u64,
    pub(super) slots: u64,
    pub(super) slots_by_weight: u64,
    pub(super) gained: u64,
    pub(super) given_up: u64,
    pub(super) bytes_estimate: u64,
}

/// `GET /cluster/change`. `ended` is what this program adds.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Change {
    pub(super) text: String,
    pub(super) since: u64,
    pub(super) epoch: u64,
    pub(super) slots: u64,
    pub(super) done: u64,
    pub(super) total: u64,
    pub(super) eta_ms: Option<u64>,
    pub(super) members: Vec<ChangeMember>,
    pub(super) not_heard: Vec<String>,
    pub(super) waiting_for: Vec<Waiting>,
    pub(super) ended: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ChangeMember {
    pub(super) node: String,
    pub(super) slots: u64,
    pub(super) done: u64,
    pub(super) keys: u64,
    pub(super) bytes: u64,
    pub(super) error: Option<String>,
}

/// `GET /cluster/convergence`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Convergence {
    pub(super) node: String,
    pub(super) status: String,
    pub(super) moving_slots: u64,
    pub(super) pairs: Vec<Pair>,
    pub(super) scrubs: Vec<Scrub>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Scrub {
    pub(super) node: String,
    pub(super) ended_ms: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pair {
    pub(super) nodes: Vec<String>,
    pub(super) status: String,
    pub(super) reason: String,
    pub(super) chunks: Vec<Chunk>,
    pub(super) differing: Option<u64>,
    pub(super) keys: Vec<Key>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Chunk {
    pub(super) status: String,
    pub(super) equal_up_to_ms: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Key {
    pub(super) key: String,
    pub(super) key_base64: Option<String>,
}

/// `GET /operations`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Operations {
    pub(super) operations: Vec<Operation>,
}

/// `POST /repair`, `GET /operations/{id}`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Operation {
    pub(super) id: String,
    pub(super) kind: String,
    pub(super) state: String,
    pub(super) reason: String,
    pub(super) dry_run: bool,
    pub(super) done: u64,
    pub(super) total: Option<u64>,
    pub(super) differing: u64,
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) bytes: u64,
    pub(super) per_second: f64,
    pub(super) eta_ms: Option<u64>,
}

/// One of these, of what came.
pub(super) fn read<T: DeserializeOwned>(told: &Value) -> Result<T, Fault> {
    T::deserialize(told).map_err(|e| Fault::Failed(format!("that is not what an a3 node answers: {e}")))
}

/// Asks a node for one of these.
pub(super) async fn fetch<T: DeserializeOwned>(client: &Client, host: &Host, path: &str) -> Result<T, Fault> {
    let answer = client.get(host, path).await?.success()?;
    serde_json::from_slice(&answer.body)
        .map_err(|e| Fault::Failed(format!("{host}{path} is not what an a3 node answers: {e}")))
}
