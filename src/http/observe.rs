//! How a node is watched: liveness, readiness, metrics, and the index that a newcomer finds.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, HeaderName, Uri};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::bodies::NodeName;
use super::docs::Flag;
use super::problem::{CheckBody, Code, Problem};
use super::query::Query;
use super::{Api, console};

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(index)).routes(routes!(livez)).routes(routes!(readyz)).routes(routes!(metrics))
}

const NO_STORE: [(HeaderName, &str); 1] = [(CACHE_CONTROL, "no-store")];

/// Where to start.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Index)]
struct IndexBody {
    #[schema(example = "a3.store")]
    name: &'static str,
    /// Of the program.
    version: &'static str,
    /// The node that was asked.
    node: NodeName,
    #[schema(format = "uuid")]
    instance: String,
    /// Null before the node has found or founded its cluster.
    #[schema(format = "uuid")]
    cluster_id: Option<String>,
    links: Links,
}

/// Paths on this node.
#[derive(Debug, Serialize, ToSchema)]
struct Links {
    kv: &'static str,
    cluster: &'static str,
    health: &'static str,
    ring: &'static str,
    placement: &'static str,
    convergence: &'static str,
    events: &'static str,
    operations: &'static str,
    hints: &'static str,
    tombstones: &'static str,
    live: &'static str,
    ready: &'static str,
    metrics: &'static str,
    openapi: &'static str,
    swagger_ui: &'static str,
}

const LINKS: Links = Links {
    kv: "/kv/{key}",
    cluster: "/cluster",
    health: "/cluster/health",
    ring: "/cluster/ring",
    placement: "/cluster/placement?key={key}",
    convergence: "/cluster/convergence",
    events: "/cluster/events",
    operations: "/operations",
    hints: "/hints",
    tombstones: "/tombstones",
    live: "/livez",
    ready: "/readyz?verbose",
    metrics: "/metrics",
    openapi: "/openapi.json",
    swagger_ui: "/swagger-ui/",
};

/// The index
///
/// Who this node is, and where to go from here; for a browser (`Accept: text/html`) the console.
#[utoipa::path(get, path = "/", operation_id = "getIndex", tag = "observe",
    responses((status = 200, description = "The index.", content((IndexBody = "application/json"), (String = "text/html")))))]
async fn index(State(api): State<Arc<Api>>, headers: HeaderMap, uri: Uri) -> Result<Response, Problem> {
    Query::new(uri.query(), &[]).finish()?;
    if console::wants_page(&headers) {
        return Ok(console::page(&headers));
    }
    let identity = api.node.identity();
    let index = IndexBody {
        name: "a3.store",
        version: env!("CARGO_PKG_VERSION"),
        node: NodeName(identity.node),
        instance: identity.instance.to_string(),
        cluster_id: identity.cluster.map(|id| id.to_string()),
        links: LINKS,
    };
    Ok(([(VARY, "accept")], Json(index)).into_response())
}

/// The process is alive.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Liveness)]
struct LiveBody {
    /// Always true: a process that is not alive does not answer.
    live: bool,
}

/// Liveness
///
/// Whether the process is alive. It depends on no peer and on no disk.
#[utoipa::path(get, path = "/livez", operation_id = "getLiveness", tag = "observe",
    responses((status = 200, description = "Alive.", body = LiveBody)))]
async fn livez(uri: Uri) -> Result<impl IntoResponse, Problem> {
    Query::new(uri.query(), &[]).finish()?;
    Ok((NO_STORE, Json(LiveBody { live: true })))
}

/// Whether the node answers clients.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Readiness)]
struct ReadyBody {
    ready: bool,
    /// Each condition, with `verbose`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    checks: Vec<CheckBody>,
}

/// Readiness
///
/// Whether the node answers clients: its storage is open, it has its cluster, and it is not stopping. Otherwise 503,
/// and with `verbose` each condition.
#[utoipa::path(get, path = "/readyz", operation_id = "getReadiness", tag = "observe",
    params(("verbose" = inline(Option<Flag>), Query, description = "List each condition; on as a bare `?verbose`.")),
    responses((status = 200, description = "Ready.", body = ReadyBody)))]
async fn readyz(State(api): State<Arc<Api>>, uri: Uri) -> Result<impl IntoResponse, Problem> {
    let mut query = Query::new(uri.query(), &["verbose"]);
    let verbose = query.flag("verbose");
    query.finish()?;
    let readiness = api.node.readiness();
    let (ready, checks) = (readiness.ready, readiness.checks);
    if ready {
        let checks = if verbose { checks.into_iter().map(CheckBody::from).collect() } else { Vec::new() };
        return Ok((NO_STORE, Json(ReadyBody { ready, checks })));
    }
    let waiting: Vec<&str> = checks.iter().filter(|c| !c.ok).map(|c| c.name).collect();
    let problem = Problem::new(Code::NotReady, format!("the node waits for: {}", waiting.join(", ")));
    Err(if verbose { problem.with_checks(checks.into_iter().map(CheckBody::from).collect()) } else { problem })
}

/// Metrics
///
/// This node's metrics, as Prometheus reads them.
#[utoipa::path(get, path = "/metrics", operation_id = "getMetrics", tag = "observe",
    responses((status = 200, description = "The metrics.", body = String, content_type = "text/plain")))]
async fn metrics(State(api): State<Arc<Api>>, uri: Uri) -> Result<impl IntoResponse, Problem> {
    Query::new(uri.query(), &[]).finish()?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], NO_STORE, (api.render_metrics)()))
}
