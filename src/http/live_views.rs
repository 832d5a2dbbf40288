//! What a watcher is told, in JSON.

use serde::Serialize;
use utoipa::ToSchema;

use super::bodies::NodeName;
use super::convergence_views::OperationBody;
use super::problem::CheckBody;
use super::views::{ClusterBody, HealthBody, HintsBody, state_name};
use crate::node::Node;
use crate::node::views::Event;

/// Operations in a snapshot: the newest.
const OPERATIONS_MAX: usize = 10;

/// The events that the asked node remembers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Events)]
pub(super) struct EventsBody {
    /// The node that was asked; others have seen other things.
    pub(super) node: NodeName,
    /// Oldest first.
    pub(super) events: Vec<EventBody>,
}

/// Something that happened.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Event)]
pub(super) struct EventBody {
    /// Counted from 1 since the asked node's start.
    number: u64,
    /// By the asked node's clock, milliseconds since 1970.
    at_ms: u64,
    /// Whom it is about.
    node: NodeName,
    /// `membership`, `topology`, `repair`, `hints` or `damage`.
    #[schema(example = "membership")]
    kind: &'static str,
    /// What happened; it goes on from the name of `node`.
    #[schema(example = "is down")]
    text: String,
}

impl From<Event> for EventBody {
    fn from(event: Event) -> Self {
        Self {
            number: event.number,
            at_ms: event.at_ms,
            node: NodeName(event.node),
            kind: event.kind.as_str(),
            text: event.text,
        }
    }
}

/// One Server-Sent Event of the cluster.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "it only describes an event")]
pub(super) struct LiveEvent {
    /// `cluster` or `event`.
    event: String,
    /// A snapshot or an event, as JSON.
    data: String,
}

/// All that the asked node knows at one moment.
#[derive(Debug, Serialize)]
pub(super) struct SnapshotBody {
    /// The node that was asked.
    node: NodeName,
    /// `starting`, `serving`, `draining` or `failed`.
    state: &'static str,
    /// By its clock, milliseconds since 1970.
    at_ms: u64,
    /// Whether it answers clients, and each condition of that.
    ready: bool,
    checks: Vec<CheckBody>,
    /// Null before it has its cluster.
    cluster: Option<ClusterBody>,
    health: Option<HealthBody>,
    hints: HintsBody,
    /// Its newest operations, newest first.
    operations: Vec<OperationBody>,
}

impl SnapshotBody {
    pub(super) fn of(node: &Node) -> Self {
        let readiness = node.readiness();
        Self {
            node: NodeName(node.identity().node),
            state: state_name(node.state()),
            at_ms: node.wall_ms(),
            ready: readiness.ready,
            checks: readiness.checks.into_iter().map(CheckBody::from).collect(),
            cluster: node.cluster().map(ClusterBody::from),
            health: node.health().map(HealthBody::from),
            hints: node.hints().into(),
            operations: node.operations().into_iter().take(OPERATIONS_MAX).map(OperationBody::from).collect(),
        }
    }
}
