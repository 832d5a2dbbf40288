//! What a node tells of its cluster: members, health, the ring, where a key lives, the hints it keeps.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use bytes::Bytes;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::docs::KeyText;
use super::key;
use super::problem::{Code, Problem};
use super::query::Query;
use super::views::{ClusterBody, HealthBody, HintsBody, PlacementBody, RingBody};

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(cluster))
        .routes(routes!(health))
        .routes(routes!(ring))
        .routes(routes!(placement))
        .routes(routes!(hints))
}

/// Before the node has found or founded its cluster there is nothing to tell.
pub(super) fn no_cluster() -> Problem {
    Problem::new(Code::NotReady, "the node has no cluster yet")
}

/// The members
///
/// Every member as the asked node sees it.
#[utoipa::path(get, path = "/cluster", operation_id = "getCluster", tag = "cluster",
    responses((status = 200, description = "The cluster.", body = ClusterBody)))]
async fn cluster(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<ClusterBody>, Problem> {
    Query::new(uri.query(), &[]).finish()?;
    api.node.cluster().map(|view| Json(view.into())).ok_or_else(no_cluster)
}

/// The cluster's health
///
/// Whether every slot can be read and written. The answer is 200 whatever the health is: `status` says it. Whether this
/// node answers clients is asked at `/readyz`.
#[utoipa::path(get, path = "/cluster/health", operation_id = "getClusterHealth", tag = "cluster",
    responses((status = 200, description = "The health, good or bad.", body = HealthBody)))]
async fn health(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<HealthBody>, Problem> {
    Query::new(uri.query(), &[]).finish()?;
    api.node.health().map(|view| Json(view.into())).ok_or_else(no_cluster)
}

/// The ring
///
/// The home replicas of each of the 256 slots, what each member keeps of them, and what the zones cannot carry. While the
/// topology changes, what slots had before.
#[utoipa::path(get, path = "/cluster/ring", operation_id = "getRing", tag = "cluster",
    responses((status = 200, description = "The ring.", body = RingBody)))]
async fn ring(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<RingBody>, Problem> {
    Query::new(uri.query(), &[]).finish()?;
    api.node.ring().map(|view| Json(view.into())).ok_or_else(no_cluster)
}

/// Where a key lives
///
/// The key's slot, its home replicas, and who stands in for them. The key need not exist.
#[utoipa::path(get, path = "/cluster/placement", operation_id = "getPlacement", tag = "cluster",
    params(("key" = inline(KeyText), Query, description = "The key, at most 1024 bytes, percent-encoded (`+` is a space).")),
    responses((status = 200, description = "The placement.", body = PlacementBody)))]
async fn placement(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<PlacementBody>, Problem> {
    let mut query = Query::new(uri.query(), &["key"]);
    let bytes = query.bytes("key");
    if bytes.is_none() {
        query.fault("key", "missing");
    }
    query.finish()?;
    let key = key::key(Bytes::from(bytes.unwrap_or_default().into_owned()))?;
    api.node.placement(&key).map(|view| Json(view.into())).ok_or_else(no_cluster)
}

/// The hints
///
/// The writes that the asked node keeps for home replicas that were unreachable, per replica.
#[utoipa::path(get, path = "/hints", operation_id = "getHints", tag = "cluster",
    responses((status = 200, description = "The hints kept here.", body = HintsBody)))]
async fn hints(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<HintsBody>, Problem> {
    Query::new(uri.query(), &[]).finish()?;
    Ok(Json(api.node.hints().into()))
}
