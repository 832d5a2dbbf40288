//! What happens now, for whoever watches: the cluster each second, and events as they come.
//!
//! One stream tells all that the console shows of a node, so that a page keeps one connection. A second is also the
//! stream's heartbeat. Streams are bounded, and end when the node stops.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::header::{ACCEPT, VARY};
use axum::http::{HeaderMap, HeaderName, Uri};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response, Sse};
use futures_util::stream::{self, Stream, StreamExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Interval, MissedTickBehavior, interval};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::bodies::NodeName;
use super::live_views::{EventBody, EventsBody, LiveEvent, SnapshotBody};
use super::problem::{Code, Problem};
use super::query::Query;
use crate::node::Node;
use crate::types::Identity;

/// How often the cluster is told.
const EVERY: Duration = Duration::from_secs(1);
/// How long a client that lost the stream waits before it comes again.
const COME_AGAIN: Duration = Duration::from_secs(1);
/// Streams at a time; more are answered 503.
pub(super) const STREAMS_MAX: usize = 64;

static LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(events))
}

/// What happened, and what happens
///
/// The asked node's log of the cluster: members that came and went, repairs, hints, damage, the last thousand events since
/// it started. With `Accept: text/event-stream` it goes on as Server-Sent Events: each second `cluster` with a snapshot of
/// the cluster, its health, the node's hints and operations, and `event` for each event, at first those that are
/// remembered. `Last-Event-ID` leaves out what the client has. At most 64 streams at a time; they end when the node stops.
#[utoipa::path(get, path = "/cluster/events", operation_id = "getClusterEvents", tag = "cluster",
    params(("Last-Event-ID" = inline(String), Header, description = "The `id` of the last event that a stream sent; any other text is as none.")),
    responses((status = 200, description = "The events.",
        content((EventsBody = "application/json"), (LiveEvent = "text/event-stream")))))]
async fn events(State(api): State<Arc<Api>>, headers: HeaderMap, uri: Uri) -> Result<Response, Problem> {
    Query::new(uri.query(), &[]).finish()?;
    let vary = [(VARY, "accept")];
    if !wants_stream(&headers) {
        let events = api.node.events(0).into_iter().map(EventBody::from).collect();
        let body = EventsBody { node: NodeName(api.node.identity().node), events };
        return Ok((vary, Json(body)).into_response());
    }
    let permit = Arc::clone(&api.streams).try_acquire_owned();
    let permit = permit.map_err(|_| Problem::new(Code::Overloaded, "too many streams of events"))?;
    let life = life(&api.node.identity());
    let after = headers.get(&LAST_EVENT_ID).and_then(|id| number(id.to_str().ok()?, &life));
    let told = told(Arc::clone(&api.node), after.unwrap_or(0), permit);
    Ok((vary, Sse::new(told)).into_response())
}

/// Whether the client reads Server-Sent Events, as a browser's `EventSource` says.
fn wants_stream(headers: &HeaderMap) -> bool {
    accepts(headers, "text/event-stream")
}

/// Whether `Accept` names that media type, not only a range that it is in.
pub(super) fn accepts(headers: &HeaderMap, wanted: &str) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok());
    let mut kinds = accepted.flat_map(|line| line.split(',')).filter_map(|range| range.split(';').next());
    kinds.any(|kind| kind.trim().eq_ignore_ascii_case(wanted))
}

/// A name for this start of the node: events are numbered anew at each.
fn life(identity: &Identity) -> String {
    format!("{:08x}-{}", identity.instance.0.as_fields().0, identity.generation)
}

/// The number in an event's id, which is `life.number`; none of another life.
fn number(id: &str, life: &str) -> Option<u64> {
    let (of, number) = id.split_once('.')?;
    if of == life { number.parse().ok() } else { None }
}

struct Watching {
    node: Arc<Node>,
    ticks: Interval,
    /// The last event that was told.
    after: u64,
    _permit: OwnedSemaphorePermit,
}

fn told(node: Arc<Node>, after: u64, permit: OwnedSemaphorePermit) -> impl Stream<Item = Result<Event, axum::Error>> {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watching = Watching { node, ticks, after, _permit: permit };
    stream::unfold(Some(watching), async |watching| {
        let mut watching = watching?;
        watching.ticks.tick().await;
        // Asked first, so that the last snapshot says that the node stops.
        let ends = watching.node.is_stopping();
        let events = watching.look();
        Some((stream::iter(events), (!ends).then_some(watching)))
    })
    .flatten()
}

impl Watching {
    /// What there is to tell now.
    fn look(&mut self) -> Vec<Result<Event, axum::Error>> {
        self.node.look_around();
        let life = life(&self.node.identity());
        let cluster = Event::default().event("cluster").retry(COME_AGAIN).json_data(SnapshotBody::of(&self.node));
        let mut told = vec![cluster];
        for event in self.node.events(self.after) {
            self.after = event.number;
            let named = Event::default().event("event").id(format!("{life}.{}", event.number));
            told.push(named.json_data(EventBody::from(event)));
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn an_id_counts_for_the_start_that_gave_it() {
        assert_eq!(number("00c0ffee-3.17", "00c0ffee-3"), Some(17));
        for other in ["", "17", ".17", "00c0ffee-3.", "00c0ffee-3.x", "00c0ffee-4.17", "00c0ffee-3.17.1"] {
            assert_eq!(number(other, "00c0ffee-3"), None, "{other}: numbers begin anew");
        }
    }

    #[test]
    fn only_who_reads_a_stream_gets_one() {
        let asks = |line: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(line));
            wants_stream(&headers)
        };
        assert!(asks("text/event-stream") && asks("text/html, TEXT/event-stream;q=0.5"));
        assert!(!asks("*/*") && !asks("application/json") && !wants_stream(&HeaderMap::new()));
    }
}
