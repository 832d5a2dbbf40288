//! What deleted keys leave behind, and for whom it waits to be forgotten.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::bodies::NodeName;
use super::cluster::no_cluster;
use super::problem::Problem;
use super::query::Query;
use crate::node::views::{MemberTombstones, TombstonesView};

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(tombstones))
}

/// The tombstones
///
/// How many deleted keys each member still remembers, and which members keep them from being forgotten. A tombstone is purged
/// once it is `GC_GRACE` old and every member has confirmed what it must: one that is down holds all of them up, so that
/// nothing it brings back can undo a delete. Every member is asked anew how many it keeps; what it waits for is as of its last look,
/// less the members it can reach again by now.
#[utoipa::path(get, path = "/tombstones", operation_id = "getTombstones", tag = "cluster",
    responses((status = 200, description = "The tombstones.", body = TombstonesBody)))]
async fn tombstones(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<TombstonesBody>, Problem> {
    Query::new(uri.query(), &[]).finish()?;
    api.node.tombstones().await.map(|view| Json(view.into())).ok_or_else(no_cluster)
}

/// The tombstones of all members.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Tombstones)]
pub(super) struct TombstonesBody {
    /// The node that was asked.
    node: NodeName,
    /// Kept by all members that answered, each copy counted.
    tombstones: u64,
    /// The members that must come back, or finish something, before tombstones are purged. Empty where nothing is in the way:
    /// then they only have to come of age.
    waiting_for: Vec<WaitingBody>,
    members: Vec<MemberTombstonesBody>,
}

/// A member that tombstones wait for.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TombstonesWaiting)]
struct WaitingBody {
    node: NodeName,
    /// Why.
    #[schema(example = "unreachable")]
    reason: String,
}

/// The tombstones of one member.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MemberTombstones)]
struct MemberTombstonesBody {
    node: NodeName,
    /// That it keeps; null where it did not answer.
    tombstones: Option<u64>,
    /// When the oldest in the slots it looks after was written, wall milliseconds, as of its last look (an eighth of
    /// `GC_GRACE` ago at most, and ten minutes); null where there was none, it has not looked yet, or did not answer.
    oldest_ms: Option<u64>,
    /// That it purged since its start.
    purged: Option<u64>,
    /// When it last raised the floor of a slot, wall milliseconds; null where it never did since its start.
    floor_raised_ms: Option<u64>,
}

impl From<TombstonesView> for TombstonesBody {
    fn from(view: TombstonesView) -> Self {
        let TombstonesView { asked, members, waiting_for } = view;
        let waiting = |(node, reason)| WaitingBody { node: NodeName(node), reason };
        Self {
            node: NodeName(asked),
            tombstones: members.iter().filter_map(|member| member.tombstones).sum(),
            waiting_for: waiting_for.into_iter().map(waiting).collect(),
            members: members.into_iter().map(MemberTombstonesBody::from).collect(),
        }
    }
}

impl From<MemberTombstones> for MemberTombstonesBody {
    fn from(member: MemberTombstones) -> Self {
        let MemberTombstones { node, tombstones, oldest_ms, purged, raised_ms } = member;
        Self { node: NodeName(node), tombstones, oldest_ms, purged, floor_raised_ms: raised_ms }
    }
}
