//! `/watch`: what changes, as Server-Sent Events.
//!
//! Invariants:
//! - An event's `id` is a cursor behind it and all before it, for any node. Only the last event of those that came together
//!   has one: a client that comes again with an older `id` is told some again, and misses none.
//! - A stream that cannot go on says so in a last event, `gone`. One without it was cut, and its client comes again.
//! - A client that reads slowly is cut by the connection's limits; what waits for it in memory is a page of each member.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response, Sse};
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::bodies::key_texts;
use super::cursor::{self, Through};
use super::docs::TimeoutText;
use super::edge::Named;
use super::listing::PrefixText;
use super::listing_views::names_of;
use super::problem::{Code, Problem};
use super::query::{self, Query};
use crate::metrics::{self, Gauge};
use crate::node::Node;
use crate::node::request::FailureKind;
use crate::node::watch::{Cursor, Gone, News, NoWatch, Watching};
use crate::types::limits::KEY_BYTES_MAX;
use crate::types::{ChangeKind, KeyChange, Watched};

/// Watches at a time; more are answered 503.
pub(super) const WATCHES_MAX: usize = 256;
/// A stream without changes tells its cursor this often.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How often it looks whether the node stops.
const LOOK: Duration = Duration::from_secs(1);
/// How long a client that lost the stream waits before it comes again.
const COME_AGAIN: Duration = Duration::from_secs(1);

static LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const UNBUFFERED: HeaderName = HeaderName::from_static("x-accel-buffering");

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(watch))
}

/// A place that a watch gave.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, format = "watch-cursor", pattern = "^[A-Za-z0-9_-]{20,7000}$")]
#[expect(dead_code, reason = "it only describes a parameter")]
struct WatchCursorText(String);

/// Watch keys
///
/// Server-Sent Events, from now on or from a cursor on: `put`, `delete` and `expire`, each with the key and its new version;
/// read the key for the value. Once the answer has begun, of every write that begins from then on and succeeds with
/// `strict: true` that version or a later one of its key is told: at least once, and in ascending order of one key's versions
/// where they come close together (compare versions; of a member that was away an old one may come late). Other writes that
/// succeed are told, too, unless nodes that had them restart meanwhile. Versions that were replaced soon may be left out, and a
/// write whose answer was no success may be told.
///
/// An event's `id` is a cursor for any node: send it as `Last-Event-ID` (as `EventSource` does by itself) or `cursor` to go
/// on behind it. Nodes remember their last 100,000 changes, until they restart: where too few of them reach back to the
/// cursor it is 410 (in a stream: a last event `gone`, with the problem). Then watch anew, and list the keys once that has
/// begun. Every 10 s without changes the stream tells its `id` alone. At most 256 watches at a time.
#[utoipa::path(
    get, path = "/watch", operation_id = "watchKeys", tag = "kv",
    params(
        ("prefix" = inline(Option<PrefixText>), Query, description = "Only keys that begin with these bytes, percent-encoded."),
        ("cursor" = inline(Option<WatchCursorText>), Query, description = "The `id` of the last event that was heard, from whichever node. The header counts where both are given: a browser sends it when it comes again."),
        ("timeout" = inline(Option<TimeoutText>), Query, description = "How long the watch may take to come into force, from 50ms to 60s; the node's REQUEST_TIMEOUT unless said."),
        ("Last-Event-ID" = inline(String), Header, description = "As `cursor`."),
    ),
    responses((status = 200, description = "The changes, as they happen.", content((ChangeBody = "text/event-stream")))),
)]
async fn watch(State(api): State<Arc<Api>>, headers: HeaderMap, uri: Uri) -> Result<Response, Problem> {
    let mut query = Query::new(uri.query(), &["prefix", "cursor", "timeout"]);
    let prefix = query.bytes("prefix").unwrap_or_default();
    if prefix.len() > KEY_BYTES_MAX {
        query.fault("prefix", format!("at most {KEY_BYTES_MAX} bytes long, as keys are"));
    }
    let named = query.take("cursor", |text| decoded(text).ok_or_else(|| "not the id of a watch's event".into()));
    let timeout = query.take("timeout", query::timeout);
    query.finish()?;
    let heard = headers.get(&LAST_EVENT_ID).filter(|id| !id.is_empty());
    let heard = heard.map(|id| id.to_str().ok().and_then(decoded).ok_or_else(bad_header)).transpose()?;
    let watched = Watched::Prefix(Bytes::from(prefix.into_owned()));
    let permit = Arc::clone(&api.watches).try_acquire_owned();
    let permit = permit.map_err(|_| Problem::new(Code::Overloaded, "too many watches"))?;
    let deadline = Instant::now() + timeout.unwrap_or(api.request_timeout);
    let begun = api.node.watch(watched, heard.or(named).as_ref(), deadline).await;
    let (watching, name) = (begun.map_err(problem_of)?, Named::default());
    let told = told(Telling {
        node: Arc::clone(&api.node),
        watching,
        name: name.clone(),
        begins: true,
        spoke: Instant::now(),
        _open: Open::new("watch", permit),
    });
    let mut response = Sse::new(told).into_response();
    // Else nginx holds events back until it has a few kilobytes.
    response.headers_mut().insert(UNBUFFERED, HeaderValue::from_static("no"));
    response.extensions_mut().insert(name);
    Ok(response)
}

fn decoded(text: &str) -> Option<Cursor> {
    Cursor::from_bytes(&cursor::decoded(Through::Watch, text)?).ok()
}

fn bad_header() -> Problem {
    Problem::new(Code::BadRequest, "Last-Event-ID: not the id of a watch's event")
}

fn problem_of(none: NoWatch) -> Problem {
    match none {
        NoWatch::Gone(gone) => gone_problem(gone),
        NoWatch::Failed { kind: FailureKind::NotReady, .. } => {
            Problem::new(Code::NotReady, FailureKind::NotReady.to_string())
        }
        NoWatch::Failed { kind, slots, failed } => {
            let slots = names_of(slots);
            let detail = format!("{kind}: of {} of 256 slots changes might be missed", slots.len());
            Problem::new(Code::Unavailable, detail).with_slots(slots, failed)
        }
    }
}

fn gone_problem(gone: Gone) -> Problem {
    Problem::new(Code::WatchGone, gone.to_string())
}

/// A watch or a long poll that is counted.
pub(super) struct Open {
    count: Gauge,
    _permit: OwnedSemaphorePermit,
}

impl Open {
    pub(super) fn new(kind: &'static str, permit: OwnedSemaphorePermit) -> Self {
        let count = metrics::gauge(metrics::WATCHES, &[("kind", kind)]);
        count.increment(1.0);
        Self { count, _permit: permit }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.count.decrement(1.0);
    }
}

struct Telling {
    node: Arc<Node>,
    watching: Watching,
    /// What the edge calls the request, for the problem that it may end with.
    name: Named,
    /// Nothing was told yet.
    begins: bool,
    /// When something was told last.
    spoke: Instant,
    _open: Open,
}

fn told(telling: Telling) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(Some(telling), async |telling| {
        let mut telling = telling?;
        let (events, goes_on) = telling.next().await;
        Some((stream::iter(events.into_iter().map(Ok)), goes_on.then_some(telling)))
    })
    .flatten()
}

impl Telling {
    /// What there is to tell next, and whether there will be more.
    async fn next(&mut self) -> (Vec<Event>, bool) {
        loop {
            if self.node.is_stopping() {
                return (Vec::new(), false);
            }
            let now = Instant::now();
            let until = if self.begins { now } else { now + LOOK };
            match self.watching.next(until).await {
                Ok(news) => {
                    let is_due = self.begins || self.spoke.elapsed() >= HEARTBEAT;
                    if is_due || !news.changes.is_empty() {
                        (self.begins, self.spoke) = (false, Instant::now());
                        return (events_of(&news), true);
                    }
                }
                Err(gone) => {
                    let problem = String::from_utf8_lossy(&gone_problem(gone).body(self.name.get())).into_owned();
                    return (vec![Event::default().event("gone").data(problem)], false);
                }
            }
        }
    }
}

/// The last one, or one of its own where there is no change, has the cursor.
fn events_of(news: &News) -> Vec<Event> {
    let mut events: Vec<Event> = news.changes.iter().map(event_of).collect();
    let last = events.pop().unwrap_or_default().retry(COME_AGAIN);
    events.push(last.id(cursor::encoded(Through::Watch, &news.cursor.to_bytes())));
    events
}

fn event_of(change: &KeyChange) -> Event {
    let (name, expires_at_ms) = match change.kind {
        ChangeKind::Put { expires_at_ms } => ("put", expires_at_ms),
        ChangeKind::Delete => ("delete", None),
        ChangeKind::Expire => ("expire", None),
    };
    let (key, key_base64) = key_texts(&change.key);
    let body = ChangeBody { key, key_base64, version: change.version.to_string(), expires_at_ms };
    // Strings and a number: serialisation to memory has no way to fail.
    Event::default().event(name).json_data(body).unwrap_or_default()
}

/// A version of a key that was stored: the data of the events `put`, `delete` and `expire`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = KeyChange)]
struct ChangeBody<'a> {
    /// The key as text; what is not UTF-8 in it shows as U+FFFD.
    #[schema(value_type = String, example = "name")]
    key: std::borrow::Cow<'a, str>,
    /// The exact key, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    key_base64: Option<String>,
    /// The version: the value's ETag without the quotes, or that of its tombstone.
    #[schema(example = "018f3c5a1b2c0000-1-0")]
    version: String,
    /// When the value ends, milliseconds since 1970; absent where it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    expires_at_ms: Option<u64>,
}
