//! `/kv`: the keys, in order, a page at a time or all of them as a stream of lines.
//!
//! Invariants:
//! - A page is one call of the node, and so is each page of a stream: while a client reads nothing is held but the page that
//!   it is being sent.
//! - A stream's last line says that it ended, or why it did not come to its end. One without such a line was cut.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, LINK, VARY};
use axum::http::{HeaderMap, HeaderValue, Uri};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::cursor::{self, Through};
use super::docs::{Flag, TimeoutText};
use super::edge::Named;
use super::listing_views::{EndBody, EndLine, ErrorLine, LineBody, PageBody, lines_of, names_of};
use super::live::accepts;
use super::problem::{Code, Problem};
use super::query::{self, Query};
use crate::node::Node;
use crate::node::listing::{ListingFailure, Page, Question};
use crate::node::request::FailureKind;
use crate::protocol::listing::behind;
use crate::types::Key;
use crate::types::limits::{DELIMITER_BYTES_MAX, KEY_BYTES_MAX, LISTING_ITEMS_MAX};

/// Keys on a page where the request does not say.
const LIMIT: usize = 100;
/// Streams at a time; more are answered 503.
pub(super) const STREAMS_MAX: usize = 64;
/// Lines, each a JSON value.
const NDJSON: &str = "application/x-ndjson";

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(list))
}

/// A number of keys.
#[derive(Debug, ToSchema)]
#[schema(value_type = u16, minimum = 1, maximum = 1000)]
#[expect(dead_code, reason = "it only describes a parameter")]
struct LimitNumber(u16);

/// The beginning of keys.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, max_length = 1024)]
#[expect(dead_code, reason = "it only describes a parameter")]
pub(super) struct PrefixText(String);

/// A key to begin behind.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, min_length = 1, max_length = 1024)]
#[expect(dead_code, reason = "it only describes a parameter")]
struct AfterText(String);

/// A place that a page gave.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, format = "cursor", pattern = "^[A-Za-z0-9_-]{6,1500}$")]
#[expect(dead_code, reason = "it only describes a parameter")]
struct CursorText(String);

/// What ends a common prefix.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, min_length = 1, max_length = 64)]
#[expect(dead_code, reason = "it only describes a parameter")]
struct DelimiterText(String);

/// List keys
///
/// Keys in the order of their bytes, over the whole cluster, each slot answered by a majority of its home replicas. A page ends
/// after `limit` keys and common prefixes, about 1 MiB, or 10,000 keys examined, so it may be short or empty while `next` is
/// set: `next` alone says whether there may be more. Pages are reads of their own: a key that exists all the time that it takes to
/// go through them is listed exactly once, one written or deleted meanwhile may be listed or not. With
/// `Accept: application/x-ndjson` all pages come as one stream of lines; its last line is `end`, or `error` with a problem where
/// it could not go on. At most 64 streams at a time.
#[utoipa::path(
    get, path = "/kv", operation_id = "listKeys", tag = "kv",
    params(
        ("prefix" = inline(Option<PrefixText>), Query, description = "Only keys that begin with these bytes, percent-encoded."),
        ("after" = inline(Option<AfterText>), Query, description = "Only keys behind this one, percent-encoded; it need not exist. Not beside `cursor`."),
        ("cursor" = inline(Option<CursorText>), Query, description = "The `next` of the page before: go on there, at whichever node."),
        ("limit" = inline(Option<LimitNumber>), Query, description = "Keys and common prefixes on the page, at most: 1 to 1000, 100 unless said. Not for a stream."),
        ("delimiter" = inline(Option<DelimiterText>), Query, description = "Keys that have these bytes (1 to 64) behind the prefix are not listed: of all that are the same up to and with the first of them, that common prefix is, once."),
        ("values" = inline(Option<Flag>), Query, description = "With their values."),
        ("partial" = inline(Option<Flag>), Query, description = "Where slots cannot be had, go on without them and name them in `unreachable_slots`, instead of 503."),
        ("timeout" = inline(Option<TimeoutText>), Query, description = "How long a page may take, from 50ms to 60s; the node's REQUEST_TIMEOUT unless said. What is listed by then is a page."),
    ),
    responses((status = 200, description = "A page; or all, as lines.",
        content((PageBody = "application/json"), (LineBody = "application/x-ndjson")),
        headers(("Link" = String, description = "`rel=\"next\"`: the next page; absent on the last one, and for a stream.")))),
)]
async fn list(State(api): State<Arc<Api>>, headers: HeaderMap, uri: Uri) -> Result<Response, Problem> {
    let streams = accepts(&headers, NDJSON);
    let (question, timeout) = asked(&uri, streams)?;
    let timeout = timeout.unwrap_or(api.request_timeout);
    if streams {
        return all(&api, question, timeout).await;
    }
    let page = api.node.list(question.clone(), Instant::now() + timeout).await.map_err(problem_of)?;
    let cursor = page.next.as_ref().map(|place| encoded(place));
    let link = cursor.as_ref().and_then(|cursor| link(&question, cursor));
    let mut response = ([(VARY, "accept")], Json(PageBody::of(&page, cursor))).into_response();
    if let Some(link) = link {
        response.headers_mut().insert(LINK, link);
    }
    Ok(response)
}

/// What the query asks, and how long a page may take.
fn asked(uri: &Uri, streams: bool) -> Result<(Question, Option<Duration>), Problem> {
    let known = ["prefix", "after", "cursor", "limit", "delimiter", "values", "partial", "timeout"];
    let mut query = Query::new(uri.query(), &known);
    let prefix = query.bytes("prefix").unwrap_or_default();
    if prefix.len() > KEY_BYTES_MAX {
        query.fault("prefix", format!("at most {KEY_BYTES_MAX} bytes long, as keys are"));
    }
    let after = query.bytes("after").map(|bytes| Key::new(bytes.into_owned()));
    let cursor = query.take("cursor", |text| decoded(text).ok_or_else(|| "not what a page gave as its next".into()));
    let from = match (after, cursor) {
        (Some(_), Some(_)) => {
            query.fault("cursor", "not beside after: a cursor says where to begin");
            Bytes::new()
        }
        (Some(Err(error)), None) => {
            query.fault("after", error.to_string());
            Bytes::new()
        }
        (Some(Ok(key)), None) => behind(&key),
        (None, cursor) => cursor.unwrap_or_default(),
    };
    let limit = query.take("limit", |text| {
        let sound = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
        let limit = text.parse().ok().filter(|limit| sound && (1..=LISTING_ITEMS_MAX).contains(limit));
        limit.ok_or_else(|| format!("a number from 1 to {LISTING_ITEMS_MAX}").into())
    });
    if streams && limit.is_some() {
        query.fault("limit", "not for a stream, which lists everything");
    }
    let delimiter = query.bytes("delimiter");
    if delimiter.as_ref().is_some_and(|bytes| !(1..=DELIMITER_BYTES_MAX).contains(&bytes.len())) {
        query.fault("delimiter", format!("1 to {DELIMITER_BYTES_MAX} bytes long"));
    }
    let (values, partial) = (query.flag("values"), query.flag("partial"));
    let timeout = query.take("timeout", query::timeout);
    query.finish()?;
    let [prefix, delimiter] = [prefix, delimiter.unwrap_or_default()].map(|bytes| Bytes::from(bytes.into_owned()));
    let limit = if streams { LISTING_ITEMS_MAX } else { limit.unwrap_or(LIMIT) };
    Ok((Question { prefix, delimiter, from, limit, values, partial }, timeout))
}

fn encoded(place: &[u8]) -> String {
    cursor::encoded(Through::Listing, place)
}

fn decoded(text: &str) -> Option<Bytes> {
    cursor::decoded(Through::Listing, text).filter(|place| place.len() <= KEY_BYTES_MAX + 1)
}

/// The next page's address.
fn link(question: &Question, cursor: &str) -> Option<HeaderValue> {
    let text = |name: &str, bytes: &Bytes| match bytes.is_empty() {
        true => String::new(),
        false => format!("{name}={}&", percent_encode(bytes, NON_ALPHANUMERIC)),
    };
    let flag = |name: &str, is_set: bool| if is_set { format!("{name}=true&") } else { String::new() };
    let Question { prefix, delimiter, from: _, limit, values, partial } = question;
    let [prefix, delimiter] = [text("prefix", prefix), text("delimiter", delimiter)];
    let [values, partial] = [flag("values", *values), flag("partial", *partial)];
    format!("</kv?{prefix}{delimiter}{values}{partial}limit={limit}&cursor={cursor}>; rel=\"next\"").parse().ok()
}

pub(super) fn problem_of(failure: ListingFailure) -> Problem {
    let ListingFailure { kind, slots, failed } = failure;
    let code = match kind {
        FailureKind::NotReady => return Problem::new(Code::NotReady, kind.to_string()),
        FailureKind::TimedOut => Code::TimedOut,
        _ => Code::Unavailable,
    };
    let slots = names_of(slots);
    let detail = match slots.len() {
        0 => format!("{kind}: nothing was listed by then"),
        many => format!("{kind}: {many} of 256 slots have no majority; partial=true lists the others"),
    };
    Problem::new(code, detail).with_slots(slots, failed)
}

// --------------------------------------------------------------------------------------------------------- streams

/// A stream of pages.
struct Pages {
    node: Arc<Node>,
    question: Question,
    timeout: Duration,
    /// What the edge calls the request, for the problem that it may end with.
    name: Named,
    end: EndBody,
    _permit: OwnedSemaphorePermit,
}

/// Everything, page by page. The first page is read before the answer begins, so that what fails at once has its status.
async fn all(api: &Api, mut question: Question, timeout: Duration) -> Result<Response, Problem> {
    let permit = Arc::clone(&api.listings).try_acquire_owned();
    let permit = permit.map_err(|_| Problem::new(Code::Overloaded, "too many streams of keys"))?;
    let page = api.node.list(question.clone(), Instant::now() + timeout).await.map_err(problem_of)?;
    question.from = page.next.clone().unwrap_or_default();
    let (node, name) = (Arc::clone(&api.node), Named::default());
    let pages = Pages { node, question, timeout, name: name.clone(), end: EndBody::default(), _permit: permit };
    let lines = stream::unfold(Some((pages, Some(page))), |state| async {
        let (mut pages, page) = state?;
        let (lines, goes_on) = pages.next(page).await;
        Some((Ok::<_, std::convert::Infallible>(lines), goes_on.then_some((pages, None))))
    });
    let headers = [(CONTENT_TYPE, NDJSON), (VARY, "accept")];
    // Who compresses it asks once more behind its end.
    let mut response = (headers, Body::from_stream(lines.fuse())).into_response();
    response.extensions_mut().insert(name);
    Ok(response)
}

impl Pages {
    /// The lines of the next page that has any, and whether there are more.
    async fn next(&mut self, read: Option<Page>) -> (Bytes, bool) {
        let mut lines = Vec::new();
        let mut read = read;
        loop {
            let page = match read.take() {
                Some(page) => page,
                None => match self.read().await {
                    Ok(page) => page,
                    Err(problem) => {
                        ErrorLine::write(&problem.body(self.name.get()), &mut lines);
                        return (lines.into(), false);
                    }
                },
            };
            self.end.add(&page);
            lines_of(&page, &mut lines);
            match page.next {
                None => {
                    EndLine::write(&self.end, &mut lines);
                    return (lines.into(), false);
                }
                Some(place) => self.question.from = place,
            }
            if !lines.is_empty() {
                return (lines.into(), true);
            }
        }
    }

    async fn read(&self) -> Result<Page, Problem> {
        if self.node.is_stopping() {
            return Err(Problem::new(Code::NotReady, "the node is stopping"));
        }
        self.node.list(self.question.clone(), Instant::now() + self.timeout).await.map_err(problem_of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(query: &str, streams: bool) -> Result<Question, Vec<String>> {
        match asked(&format!("/kv?{query}").parse().unwrap(), streams) {
            Ok((question, _)) => Ok(question),
            Err(problem) => {
                let body: serde_json::Value = serde_json::from_slice(&problem.body("r")).unwrap();
                let listed = body["parameters"].as_array().unwrap();
                Err(listed.iter().map(|p| p["name"].as_str().unwrap().to_owned()).collect())
            }
        }
    }

    #[test]
    fn bad_parameters_are_listed_together() {
        let bad = parsed("prefix=%zz&after=&limit=1001&delimiter=&cursor=nope&values=1&more", false).unwrap_err();
        assert_eq!(bad, ["prefix", "more", "cursor", "after", "limit", "delimiter", "values"]);
        for limit in ["0", "-1", "01", "1e2", "1001", ""] {
            assert_eq!(parsed(&format!("limit={limit}"), false).unwrap_err(), ["limit"], "{limit}");
        }
        assert_eq!(parsed("limit=5", true).unwrap_err(), ["limit"]);
        let both = format!("after=a&cursor={}", encoded(b"b"));
        assert_eq!(parsed(&both, false).unwrap_err(), ["cursor"]);
        let long = "x".repeat(KEY_BYTES_MAX + 1);
        let bad = parsed(&format!("prefix={long}&after={long}&delimiter={}", "x".repeat(65)), false).unwrap_err();
        assert_eq!(bad, ["prefix", "after", "delimiter"]);
    }

    #[test]
    fn a_sound_query_is_taken_as_bytes() {
        let question = parsed("prefix=a%2F%ff&after=a%2Fb&limit=7&delimiter=%2F&values&partial=true", false).unwrap();
        let wanted = Question {
            prefix: Bytes::from_static(b"a/\xff"),
            delimiter: Bytes::from_static(b"/"),
            from: Bytes::from_static(b"a/b\0"),
            limit: 7,
            values: true,
            partial: true,
        };
        assert_eq!(question, wanted);
        let link = link(&question, "abc").unwrap();
        assert_eq!(
            link,
            "</kv?prefix=a%2F%FF&delimiter=%2F&values=true&partial=true&limit=7&cursor=abc>; rel=\"next\""
        );
        let plain = parsed("", false).unwrap();
        assert_eq!((plain.limit, plain.from.is_empty(), parsed("", true).unwrap().limit), (100, true, 1000));
    }
}
