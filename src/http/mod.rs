//! REST for clients and people.
//!
//! A handler extracts, converts, makes one call of the [`Node`], and converts back; wire types stop here. Every
//! request passes the edge; every answer that is not a success is a problem (RFC 9457), but for the 412 that a client
//! prefers as the value itself.
//!
//! Invariants:
//! - The key is the raw path, decoded once ([`key`]); nothing is ever folded.
//! - What a client asks for and this version cannot do is refused, never ignored.
//! - Everything has a limit and a deadline: the head, the body, connections, requests under way.
//!
//! Reading order: this file, [`edge`], [`kv`], [`conditions`], [`answer`], [`problem`], then [`accept`] and [`guard`]
//! for what lies below HTTP.

mod accept;
mod answer;
mod backup;
mod batch;
mod bodies;
mod body;
mod change;
mod cluster;
mod conditions;
mod console;
mod convergence;
mod convergence_views;
mod cursor;
mod date;
mod docs;
mod edge;
mod error;
mod etag;
mod guard;
mod key;
mod kv;
mod listing;
mod listing_views;
mod live;
mod live_views;
mod meters;
mod moving;
mod observe;
mod operations;
mod problem;
mod query;
mod tombstones;
mod views;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::HeaderValue;
use tokio::sync::Semaphore;
use tower_http::compression::CompressionLayer;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer, ExposeHeaders};
use utoipa_axum::router::OpenApiRouter;

pub use accept::serve;
pub use docs::openapi_json;

use crate::node::Node;
use crate::ports::Entropy;
use body::Bodies;
use edge::Edge;

/// Longest path and query together, in bytes.
const URI_BYTES_MAX: usize = 8 * 1024;
/// Longest header section, in bytes: names, values, and what stands between them.
const HEADERS_BYTES_MAX: usize = 16 * 1024;

/// How REST is served.
#[derive(Debug, Clone)]
pub struct Options {
    /// Longest value, in bytes.
    pub value_bytes_max: usize,
    /// Longest batch, in bytes.
    pub batch_bytes_max: usize,
    /// How long an operation may take where the request does not say (`?timeout=`).
    pub request_timeout: Duration,
    /// How long a request's head may take from its first byte, and a new connection to its first request.
    pub header_timeout: Duration,
    /// How long a request's body may take.
    pub body_timeout: Duration,
    /// How long a connection may be idle between requests. Shorter than a client's own limit and requests meet a
    /// closing connection.
    pub idle_timeout: Duration,
    /// How long a client may leave an answer unread before the connection is cut.
    pub write_timeout: Duration,
    /// Connections open at once; more are refused.
    pub connections_max: usize,
    /// Connections open at once from one address.
    pub connections_per_address_max: usize,
    /// Requests under way at once; more are answered 503. Probes and metrics are always answered.
    pub in_flight_max: usize,
    /// Bytes of request bodies held at once; more are answered 503. At least one value or batch is always
    /// let in.
    pub body_bytes_held_max: usize,
    /// Origins whose pages may use the API from a browser, such as `https://app.example`. None: CORS is off.
    pub cors_origins: Vec<String>,
    /// How long a stopping node goes on taking connections and requests, each answer being its connection's last: so
    /// busy clients move on, and whoever polls readiness sees it end, before anything is closed.
    pub farewell: Duration,
    /// How long requests under way may take to finish after that. With the other steps of a stop it stays below 10 s.
    pub grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            value_bytes_max: 1024 * 1024,
            batch_bytes_max: 16 * 1024 * 1024,
            request_timeout: Duration::from_secs(1),
            header_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(120),
            write_timeout: Duration::from_secs(30),
            connections_max: 8192,
            connections_per_address_max: 4096,
            in_flight_max: 4096,
            body_bytes_held_max: 256 * 1024 * 1024,
            cors_origins: Vec::new(),
            farewell: Duration::from_millis(500),
            grace: Duration::from_secs(5),
        }
    }
}

/// Renders the metrics, as Prometheus reads them.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// What handlers share.
struct Api {
    node: Arc<Node>,
    bodies: Bodies,
    request_timeout: Duration,
    render_metrics: RenderMetrics,
    /// Streams of events that may begin.
    streams: Arc<Semaphore>,
    /// Streams of keys that may begin, exports among them.
    listings: Arc<Semaphore>,
    watches: Arc<Semaphore>,
    long_polls: Arc<Semaphore>,
    /// Imports that may begin.
    imports: Arc<Semaphore>,
    /// Of the change of the topology under way.
    pace: change::Pace,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

/// The whole API over one node.
pub fn router(node: Arc<Node>, entropy: Arc<dyn Entropy>, options: &Options, render_metrics: RenderMetrics) -> Router {
    let edge = Arc::new(Edge::new(&*entropy, options));
    let api = Api {
        node,
        bodies: Bodies::new(options),
        request_timeout: options.request_timeout,
        render_metrics,
        streams: Arc::new(Semaphore::new(live::STREAMS_MAX)),
        listings: Arc::new(Semaphore::new(listing::STREAMS_MAX)),
        watches: Arc::new(Semaphore::new(watch::WATCHES_MAX)),
        long_polls: Arc::new(Semaphore::new(kv::LONG_POLLS_MAX)),
        imports: Arc::new(Semaphore::new(moving::IMPORTS_MAX)),
        pace: change::Pace::default(),
    };
    let (documented, _) = routes().split_for_parts();
    let router = documented.merge(docs::swagger_ui()).merge(console::routes()).with_state(Arc::new(api));
    let router = match cors(&options.cors_origins) {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router.layer(axum::middleware::from_fn_with_state(edge, edge::edge))
}

/// Every route with its description. Values are never compressed: they are returned as they were stored. Nor are backups,
/// whose length is told.
fn routes() -> OpenApiRouter<Arc<Api>> {
    let described = OpenApiRouter::new()
        .merge(listing::routes())
        .merge(batch::routes())
        .merge(moving::routes())
        .merge(cluster::routes())
        .merge(change::routes())
        .merge(live::routes())
        .merge(convergence::routes())
        .merge(operations::routes())
        .merge(tombstones::routes())
        .merge(observe::routes())
        .merge(docs::routes())
        .layer(CompressionLayer::new());
    // Nor are watches: an event is told when it happens, not when there are enough of them to compress.
    OpenApiRouter::with_openapi(docs::base())
        .merge(kv::routes())
        .merge(watch::routes())
        .merge(backup::routes())
        .merge(described)
}

fn cors(origins: &[String]) -> Option<CorsLayer> {
    let origins: Vec<HeaderValue> = origins.iter().filter_map(|o| HeaderValue::from_str(o).ok()).collect();
    if origins.is_empty() {
        return None;
    }
    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods(AllowMethods::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(ExposeHeaders::list(answer::EXPOSED_HEADERS.iter().cloned()))
        .max_age(Duration::from_secs(600));
    Some(layer)
}
