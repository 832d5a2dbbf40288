//! How copies agree, and what long-running work does, in JSON.

use serde::Serialize;
use utoipa::ToSchema;

use super::bodies::{NodeName, key_texts};
use crate::node::views::{ConvergenceView, OperationState, OperationView};
use crate::types::{Agreement, ChunkState, Convergence, Key, Look, NodeNum};

/// How the copies agree.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Convergence)]
pub(super) struct ConvergenceBody {
    /// The node that was asked.
    node: NodeName,
    /// `equal` where all pairs are and no slot moves, `differs` where any pair does, else `unknown`.
    #[schema(example = "equal")]
    status: &'static str,
    /// Slots that move to other members: they are compared when the change of the topology has ended.
    #[schema(minimum = 0, maximum = 256)]
    moving_slots: usize,
    /// The pairs of members that share slots.
    pairs: Vec<PairBody>,
    /// When each member last read all its rows.
    scrubs: Vec<ScrubBody>,
}

/// The last scrub of a member: it verified every row it has, and had others mend what was damaged.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Scrub)]
pub(super) struct ScrubBody {
    node: NodeName,
    /// When it ended, milliseconds since 1970; null where none did since the node started, or it does not answer.
    ended_ms: Option<u64>,
}

/// How the copies on two members agree.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Pair)]
pub(super) struct PairBody {
    /// The two.
    #[schema(min_items = 2, max_items = 2)]
    nodes: Vec<NodeName>,
    /// `equal` where all chunks are, `differs` where any chunk does, else `unknown`.
    #[schema(example = "equal")]
    status: &'static str,
    /// Why neither of the two could say.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
    /// The chunks in which they share slots.
    chunks: Vec<ChunkBody>,
    /// How many keys differ, where keys were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    differing: Option<u64>,
    /// The keys that differ, where they were asked for; the first 100000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    keys: Option<Vec<KeyBody>>,
}

/// One of 16 pieces of the keyspace, on two members.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Chunk)]
pub(super) struct ChunkBody {
    /// The first digit of the tokens in it.
    #[schema(minimum = 0, maximum = 15)]
    chunk: u8,
    /// `equal`, `differs`, or `unknown` while a part of it is being counted anew or was never compared.
    #[schema(example = "equal")]
    status: &'static str,
    /// Since when it is so, milliseconds since 1970.
    since_ms: u64,
    /// They were equal in all that was written up to then, milliseconds since 1970; null when that was never found since
    /// the node started.
    equal_up_to_ms: Option<u64>,
}

/// A key.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Key)]
pub(super) struct KeyBody {
    /// The key as text; what is not UTF-8 in it shows as U+FFFD.
    key: String,
    /// The exact key, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    key_base64: Option<String>,
}

impl From<&Key> for KeyBody {
    fn from(key: &Key) -> Self {
        let (text, key_base64) = key_texts(key);
        Self { key: text.into_owned(), key_base64 }
    }
}

impl ConvergenceBody {
    /// As closely as it was looked.
    pub(super) fn of(view: ConvergenceView, look: Look) -> Self {
        let pairs: Vec<PairBody> =
            view.pairs.into_iter().map(|(a, b, told)| PairBody::of([a, b], told, look)).collect();
        let scrubs = view.scrubs.into_iter().map(|(node, ended_ms)| ScrubBody { node: NodeName(node), ended_ms });
        let moving = (view.moving > 0).then_some(UNKNOWN);
        let status = overall(pairs.iter().map(|pair| pair.status).chain(moving));
        Self { node: NodeName(view.asked), status, moving_slots: view.moving, pairs, scrubs: scrubs.collect() }
    }
}

impl PairBody {
    fn of(nodes: [NodeNum; 2], told: Result<Convergence, String>, look: Look) -> Self {
        let nodes = nodes.map(NodeName).into();
        let told = match told {
            Ok(told) => told,
            Err(reason) => {
                let (chunks, reason) = (Vec::new(), Some(reason));
                return Self { nodes, status: UNKNOWN, reason, chunks, differing: None, keys: None };
            }
        };
        let named = look > Look::Chunks;
        let by_keys = (named && told.differing > 0).then_some(DIFFERS);
        let by_chunks = told.chunks.iter().map(|chunk| agreement(chunk.agreement));
        Self {
            nodes,
            status: overall(by_chunks.chain(by_keys)),
            reason: None,
            differing: named.then_some(told.differing),
            keys: named.then(|| told.keys.iter().map(KeyBody::from).collect()),
            chunks: told.chunks.into_iter().map(ChunkBody::from).collect(),
        }
    }
}

impl From<ChunkState> for ChunkBody {
    fn from(state: ChunkState) -> Self {
        Self {
            chunk: state.chunk,
            status: agreement(state.agreement),
            since_ms: state.since_ms,
            equal_up_to_ms: (state.equal_up_to_ms > 0).then_some(state.equal_up_to_ms),
        }
    }
}

const EQUAL: &str = "equal";
const DIFFERS: &str = "differs";
const UNKNOWN: &str = "unknown";

fn agreement(agreement: Agreement) -> &'static str {
    match agreement {
        Agreement::Equal => EQUAL,
        Agreement::Differs => DIFFERS,
        Agreement::Unknown => UNKNOWN,
    }
}

/// What parts say together: one that differs decides, then one that is not known.
fn overall(parts: impl Iterator<Item = &'static str> + Clone) -> &'static str {
    let any = |wanted| parts.clone().any(|status| status == wanted).then_some(wanted);
    any(DIFFERS).or_else(|| any(UNKNOWN)).unwrap_or(EQUAL)
}

/// What a repair is to do.
#[derive(Debug, serde::Deserialize, ToSchema)]
#[schema(as = Repair)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "it only describes a body: every fault in one is listed, which serde cannot")]
pub(super) struct RepairBody {
    /// Count what differs and change nothing; false unless said.
    #[schema(required = false, default = false)]
    dry_run: bool,
    /// Only these of the 16 chunks, by their numbers from 0 to 15; all of them unless said.
    #[schema(required = false, default = json!([]), value_type = Vec<ChunkNumber>)]
    chunks: Vec<u8>,
}

/// The number of a chunk: the first hexadecimal digit of the tokens in it.
#[derive(Debug, ToSchema)]
#[schema(minimum = 0, maximum = 15)]
#[expect(dead_code, reason = "it only describes a member")]
pub(super) struct ChunkNumber(u8);

/// One Server-Sent Event of an operation.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "it only describes an event")]
pub(super) struct OperationEvent {
    /// `progress`, or `end` for the last one.
    event: String,
    /// The operation, as JSON.
    data: String,
}

/// The asked node's operations.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Operations)]
pub(super) struct OperationsBody {
    /// The node that was asked; others have operations of their own.
    pub(super) node: NodeName,
    /// Newest first.
    pub(super) operations: Vec<OperationBody>,
}

/// A long-running operation.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Operation)]
pub(super) struct OperationBody {
    #[schema(format = "uuid")]
    id: String,
    /// What it is.
    #[schema(example = "repair")]
    kind: &'static str,
    /// `running`, `done`, `failed` or `aborted`.
    #[schema(example = "running")]
    state: &'static str,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
    /// When it began, milliseconds since 1970.
    started_ms: u64,
    /// When it ended; null while it runs.
    ended_ms: Option<u64>,
    /// Whether it only counts.
    dry_run: bool,
    /// Leaves of the hash tree that were compared.
    done: u64,
    /// Leaves to compare, peers that were not reached yet being taken to be like the others; null until the first was.
    total: Option<u64>,
    /// Records found to differ.
    differing: u64,
    /// Records sent to peers.
    sent: u64,
    /// Records taken from peers.
    received: u64,
    /// Bytes of those records, and of the lists that were compared. In a dry run the records' are those they would be by the
    /// mean size of this node's records.
    bytes: u64,
    /// Leaves compared a second since it began.
    per_second: f64,
    /// Milliseconds that are left at that rate; null when unknown.
    eta_ms: Option<u64>,
}

impl From<OperationView> for OperationBody {
    fn from(view: OperationView) -> Self {
        let (state, reason) = match view.state {
            OperationState::Running => ("running", None),
            OperationState::Done => ("done", None),
            OperationState::Failed(reason) => ("failed", Some(reason)),
            OperationState::Aborted => ("aborted", None),
        };
        Self {
            id: view.id.to_string(),
            kind: view.kind,
            state,
            reason,
            started_ms: view.started_ms,
            ended_ms: view.ended_ms,
            dry_run: view.dry_run,
            done: view.done,
            total: view.total,
            differing: view.differing,
            sent: view.sent,
            received: view.received,
            bytes: view.bytes,
            per_second: view.per_second,
            eta_ms: view.eta_ms,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;
    use uuid::Uuid;

    pub(in crate::http) fn operation(state: OperationState) -> OperationView {
        OperationView {
            id: Uuid::nil(),
            kind: "repair",
            state,
            started_ms: 5,
            ended_ms: None,
            dry_run: true,
            done: 1,
            total: None,
            differing: 2,
            sent: 3,
            received: 4,
            bytes: 5,
            per_second: 1.5,
            eta_ms: Some(6),
        }
    }

    fn told(agreements: &[Agreement], keys: &[&[u8]]) -> Convergence {
        let chunk = |(n, agreement): (usize, &Agreement)| ChunkState {
            chunk: n as u8,
            agreement: *agreement,
            since_ms: 7,
            equal_up_to_ms: 9 * n as u64,
        };
        Convergence {
            chunks: agreements.iter().enumerate().map(chunk).collect(),
            keys: keys.iter().map(|key| Key::new(key.to_vec()).unwrap()).collect(),
            differing: keys.len() as u64,
            scrubbed_ms: 0,
        }
    }

    fn body(pairs: Vec<Result<Convergence, String>>, look: Look) -> serde_json::Value {
        let pairs = pairs.into_iter().map(|told| (NodeNum(1), NodeNum(2), told)).collect();
        let scrubs = vec![(NodeNum(1), Some(5)), (NodeNum(2), None)];
        let view = ConvergenceView { asked: NodeNum(3), pairs, moving: 0, scrubs };
        serde_json::to_value(ConvergenceBody::of(view, look)).unwrap()
    }

    #[test]
    fn a_pair_is_told_as_closely_as_it_was_looked_at() {
        use Agreement::{Differs, Equal};
        let chunks = json!([
            {"chunk": 0, "status": "equal", "since_ms": 7, "equal_up_to_ms": null},
            {"chunk": 1, "status": "differs", "since_ms": 7, "equal_up_to_ms": 9},
        ]);
        let pair = json!({"nodes": ["n1", "n2"], "status": "differs", "chunks": chunks});
        assert_eq!(
            body(vec![Ok(told(&[Equal, Differs], &[]))], Look::Chunks),
            json!({"node": "n3", "status": "differs", "moving_slots": 0, "pairs": [pair],
                "scrubs": [{"node": "n1", "ended_ms": 5}, {"node": "n2", "ended_ms": null}]})
        );
        let named = body(vec![Ok(told(&[Equal, Differs], &[b"k", b"\xff"]))], Look::Keys);
        assert_eq!(named["pairs"][0]["differing"], 2);
        assert_eq!(named["pairs"][0]["keys"], json!([{"key": "k"}, {"key": "\u{fffd}", "key_base64": "/w=="}]));
    }

    #[test]
    fn one_difference_decides_and_then_what_is_not_known() {
        use Agreement::{Differs, Equal, Unknown};
        let status = |pairs: Vec<Result<Convergence, String>>| body(pairs, Look::Deep)["status"].clone();
        assert_eq!(status(vec![]), "equal", "a node alone");
        assert_eq!(status(vec![Ok(told(&[Equal, Equal], &[])), Ok(told(&[], &[]))]), "equal");
        assert_eq!(status(vec![Ok(told(&[Equal, Unknown], &[]))]), "unknown");
        assert_eq!(status(vec![Ok(told(&[Equal], &[])), Err("down".into())]), "unknown");
        assert_eq!(status(vec![Ok(told(&[Unknown, Differs], &[])), Err("down".into())]), "differs");
        assert_eq!(status(vec![Ok(told(&[Equal], &[b"k"]))]), "differs", "what the sums did not show");
        let pairs = vec![(NodeNum(1), NodeNum(2), Ok(told(&[Equal], &[])))];
        let view = ConvergenceView { asked: NodeNum(3), pairs, moving: 7, scrubs: vec![] };
        let moving = serde_json::to_value(ConvergenceBody::of(view, Look::Deep)).unwrap();
        assert_eq!((&moving["status"], &moving["moving_slots"]), (&json!("unknown"), &json!(7)));
        let silent = body(vec![Err("both are down".into())], Look::Keys);
        assert_eq!(
            silent["pairs"][0],
            json!({"nodes": ["n1", "n2"], "status": "unknown", "reason": "both are down", "chunks": []})
        );
    }

    #[test]
    fn an_operation_says_why_it_failed_and_nothing_where_it_did_not() {
        let of = |state| serde_json::to_value(OperationBody::from(operation(state))).unwrap();
        let failed = of(OperationState::Failed("the disk is full".into()));
        assert_eq!((&failed["state"], &failed["reason"]), (&"failed".into(), &"the disk is full".into()));
        assert_eq!(
            of(OperationState::Running),
            json!({
                "id": "00000000-0000-0000-0000-000000000000", "kind": "repair", "state": "running", "started_ms": 5,
                "ended_ms": null, "dry_run": true, "done": 1, "total": null, "differing": 2, "sent": 3, "received": 4,
                "bytes": 5, "per_second": 1.5, "eta_ms": 6,
            })
        );
    }
}
