//! `/kv/{key}`: PUT, GET, HEAD, DELETE.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_MATCH,
    IF_NONE_MATCH, IF_UNMODIFIED_SINCE, LAST_MODIFIED, LOCATION, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing;
use bytes::Bytes;
use tokio::time::Instant;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::bodies::{ReceiptBody, RecordBody, ValueBytes};
use super::docs::{EtagsText, KeyText, LevelName, TimeoutText, ViewName};
use super::error::{Operation, problem_of};
use super::etag::{VersionHeaders, none_match_names};
use super::key::key_of_path;
use super::problem::{Code, Problem};
use super::query::{self, Query};
use crate::node::request::{Found, Get, NewContent, Put, Receipt};
use crate::types::{Content, ContentType, Key, Level, Record};

static A3_VERSION: HeaderName = HeaderName::from_static("a3-version");
static A3_STRICT: HeaderName = HeaderName::from_static("a3-strict");
static A3_DELETED: HeaderName = HeaderName::from_static("a3-deleted");

/// What a page of an allowed origin may read of an answer.
pub(super) static EXPOSED_HEADERS: [HeaderName; 6] = [
    ETAG,
    LOCATION,
    HeaderName::from_static("a3-version"),
    HeaderName::from_static("a3-strict"),
    HeaderName::from_static("a3-deleted"),
    HeaderName::from_static("x-request-id"),
];

/// Latest millisecond that an HTTP date can say: the end of the year 9999.
const HTTP_DATE_MS_MAX: u64 = 253_402_300_799_000;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    // The empty key is a path of its own for the router; the handlers say what is wrong with it.
    let empty = routing::get(get).put(put).delete(delete);
    OpenApiRouter::new().routes(routes!(get, head, put, delete)).route("/kv/", empty)
}

/// Read a value
///
/// The bytes as they were stored, with the content type they were stored under. With `view=record` a JSON document
/// with the value, its version and what each replica holds.
#[utoipa::path(
    get, path = "/kv/{*key}", operation_id = "getValue", tag = "kv",
    params(
        ("key" = inline(KeyText), Path, description = KEY_HELP),
        ("consistency" = inline(Option<LevelName>), Query, description = "How many replicas must answer; `quorum` unless said."),
        ("timeout" = inline(Option<TimeoutText>), Query, description = TIMEOUT_HELP),
        ("view" = inline(Option<ViewName>), Query, description = "`record` shows the record and its copies as JSON."),
        ("If-None-Match" = inline(Option<EtagsText>), Header, description = "ETags the client has already: 304 where the value has one of them."),
    ),
    responses(
        (status = 200, description = "The value.", content((ValueBytes = "application/octet-stream"), (ValueBytes = "*/*"), (RecordBody = "application/json")),
            headers(("ETag" = String, description = "The version in quotes."), ("A3-Version" = String, description = "The version."),
                ("A3-Strict" = bool, description = "False where a stand-in was counted: the answer may miss strict writes."),
                ("Last-Modified" = String, description = "When it was written."))),
        (status = 304, description = "The client has this version already.", headers(("ETag" = String, description = "The version in quotes."))),
    ),
)]
pub(super) async fn get(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Problem> {
    let (parts, _) = request.into_parts();
    let key = key_of_path(parts.uri.path())?;
    let mut query = Query::new(parts.uri.query(), &["consistency", "timeout", "view"]);
    let asked = Asked::take(&mut query);
    let record_view = query.take("view", |text| if text == "record" { Ok(()) } else { Err("record".into()) }).is_some();
    query.finish()?;
    let get =
        Get { key: key.clone(), level: asked.level_served()?, deadline: asked.deadline(&api), every_copy: record_view };
    let found = api.node.get(get).await.map_err(|failure| problem_of(Operation::Read, failure))?;
    match &found.record {
        Some(record) if found.live => Ok(present(&parts.headers, &key, record, &found, record_view)),
        absent => Ok(missing(absent.as_ref(), found.strict)),
    }
}

/// Read a value's headers
///
/// The headers that a GET would have, without the value.
#[utoipa::path(
    head, path = "/kv/{*key}", operation_id = "headValue", tag = "kv",
    params(
        ("key" = inline(KeyText), Path, description = KEY_HELP),
        ("consistency" = inline(Option<LevelName>), Query, description = "How many replicas must answer; `quorum` unless said."),
        ("timeout" = inline(Option<TimeoutText>), Query, description = TIMEOUT_HELP),
        ("view" = inline(Option<ViewName>), Query, description = "As for GET."),
        ("If-None-Match" = inline(Option<EtagsText>), Header, description = "ETags the client has already: 304 where the value has one of them."),
    ),
    responses(
        (status = 200, description = "There is a value.",
            headers(("ETag" = String, description = "The version in quotes."), ("A3-Version" = String, description = "The version."),
                ("A3-Strict" = bool, description = "False where a stand-in was counted."),
                ("Content-Length" = u64, description = "Length of the value, in bytes."),
                ("Last-Modified" = String, description = "When it was written."))),
        (status = 304, description = "The client has this version already.", headers(("ETag" = String, description = "The version in quotes."))),
    ),
)]
pub(super) async fn head(state: State<Arc<Api>>, request: Request) -> Result<Response, Problem> {
    // The router leaves the body out of an answer to HEAD, and its length in.
    get(state, request).await
}

/// Store a value
///
/// Any bytes, kept with their content type (`application/x-www-form-urlencoded`, which `curl -d` sends unasked, is kept
/// as `application/octet-stream`). The answer says which replicas have it on disk.
#[utoipa::path(
    put, path = "/kv/{*key}", operation_id = "putValue", tag = "kv",
    params(
        ("key" = inline(KeyText), Path, description = KEY_HELP),
        ("consistency" = inline(Option<LevelName>), Query, description = "How many replicas must have it on disk; `quorum` unless said."),
        ("timeout" = inline(Option<TimeoutText>), Query, description = TIMEOUT_HELP),
    ),
    request_body(content = ValueBytes, description = "The value, of any content type; without a body it is empty.", content_type = "application/octet-stream"),
    responses(
        (status = 200, description = "Stored; there was a value before.", body = ReceiptBody,
            headers(("ETag" = String, description = "The version in quotes."), ("A3-Version" = String, description = "The version."))),
        (status = 201, description = "Stored; there was no value before.", body = ReceiptBody,
            headers(("ETag" = String, description = "The version in quotes."), ("A3-Version" = String, description = "The version."))),
    ),
)]
pub(super) async fn put(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let key = key_of_path(parts.uri.path())?;
    let mut query = Query::new(parts.uri.query(), &["consistency", "timeout", "ttl"]);
    let asked = Asked::take(&mut query);
    let ttl = query.bytes("ttl").is_some();
    query.finish()?;
    if ttl {
        return Err(not_implemented("expiry (?ttl=) is not implemented"));
    }
    let level = asked.level_served()?;
    refuse_conditions(&parts.headers)?;
    let content_type = stored_content_type(&parts)?;
    let held = api.bodies.read(body).await?;
    let content = NewContent::Value { bytes: held.bytes.clone(), content_type };
    let put = Put { key: key.clone(), content, level, deadline: asked.deadline(&api) };
    let receipt = api.node.put(put).await.map_err(|failure| problem_of(Operation::Write, failure))?;
    let status = if receipt.created { StatusCode::CREATED } else { StatusCode::OK };
    Ok(receipt_response(status, &key, &receipt, "stored"))
}

/// Delete a value
///
/// Succeeds whether or not there was one. The answer says which replicas have it on disk.
#[utoipa::path(
    delete, path = "/kv/{*key}", operation_id = "deleteValue", tag = "kv",
    params(
        ("key" = inline(KeyText), Path, description = KEY_HELP),
        ("consistency" = inline(Option<LevelName>), Query, description = "How many replicas must have it on disk; `quorum` unless said."),
        ("timeout" = inline(Option<TimeoutText>), Query, description = TIMEOUT_HELP),
    ),
    responses(
        (status = 200, description = "Deleted, or there was nothing.", body = ReceiptBody,
            headers(("ETag" = String, description = "The tombstone's version in quotes."), ("A3-Version" = String, description = "The tombstone's version."))),
    ),
)]
pub(super) async fn delete(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Problem> {
    let (parts, _) = request.into_parts();
    let key = key_of_path(parts.uri.path())?;
    let mut query = Query::new(parts.uri.query(), &["consistency", "timeout"]);
    let asked = Asked::take(&mut query);
    query.finish()?;
    let level = asked.level_served()?;
    refuse_conditions(&parts.headers)?;
    let put = Put { key: key.clone(), content: NewContent::Tombstone, level, deadline: asked.deadline(&api) };
    let receipt = api.node.put(put).await.map_err(|failure| problem_of(Operation::Write, failure))?;
    Ok(receipt_response(StatusCode::OK, &key, &receipt, "deleted"))
}

const KEY_HELP: &str = "The key: any bytes, 1 to 1024 of them, percent-encoded. Everything after `/kv/` is the key, so a `/` in it may be sent as it is or as `%2F`. It is decoded once and never folded.";
const TIMEOUT_HELP: &str = "How long the operation may take, from 50ms to 60s; the node's REQUEST_TIMEOUT unless said.";

/// What every operation on a key may be asked.
#[derive(Clone, Copy, Debug)]
struct Asked {
    level: Level,
    timeout: Option<Duration>,
}

impl Asked {
    fn take(query: &mut Query<'_>) -> Self {
        let level = query.take("consistency", |text| text.parse::<Level>().map_err(|e| e.to_string().into()));
        Self { level: level.unwrap_or_default(), timeout: query.take("timeout", query::timeout) }
    }

    fn level_served(self) -> Result<Level, Problem> {
        match self.level {
            Level::Linearizable => Err(not_implemented("consistency=linearizable is not implemented")),
            level @ (Level::One | Level::Quorum | Level::All) => Ok(level),
        }
    }

    fn deadline(self, api: &Api) -> Instant {
        Instant::now() + self.timeout.unwrap_or(api.request_timeout)
    }
}

fn not_implemented(detail: &'static str) -> Problem {
    Problem::new(Code::NotImplemented, detail)
}

/// A condition that is ignored loses somebody's write, so what is not understood is refused.
fn refuse_conditions(headers: &HeaderMap) -> Result<(), Problem> {
    if headers.contains_key(IF_MATCH)
        || headers.contains_key(IF_NONE_MATCH)
        || headers.contains_key(IF_UNMODIFIED_SINCE)
    {
        return Err(not_implemented("conditions on writes (If-Match, If-None-Match) are not implemented"));
    }
    if headers.contains_key("idempotency-key") {
        return Err(not_implemented("Idempotency-Key is not implemented"));
    }
    Ok(())
}

/// What is kept as the value's content type; none is `application/octet-stream`.
fn stored_content_type(parts: &Parts) -> Result<Option<ContentType>, Problem> {
    let headers = &parts.headers;
    if headers.contains_key(CONTENT_RANGE) {
        return Err(Problem::new(Code::BadRequest, "a part of a value (Content-Range) cannot be written"));
    }
    if headers.get(CONTENT_ENCODING).is_some_and(|e| !e.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(Problem::new(Code::UnsupportedEncoding, Code::UnsupportedEncoding.about().help));
    }
    let mut given = headers.get_all(CONTENT_TYPE).iter();
    let Some(value) = given.next() else { return Ok(None) };
    if given.next().is_some() {
        return Err(Problem::new(Code::BadRequest, "the header Content-Type is given more than once"));
    }
    let essence = value.as_bytes().split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    let anonymous: [&[u8]; 3] = [b"", b"application/octet-stream", b"application/x-www-form-urlencoded"];
    if anonymous.iter().any(|a| essence.eq_ignore_ascii_case(a)) {
        return Ok(None);
    }
    ContentType::new(Bytes::copy_from_slice(value.as_bytes()))
        .map(Some)
        .map_err(|error| Problem::new(Code::BadRequest, format!("Content-Type: {error}")))
}

fn receipt_response(status: StatusCode, key: &Key, receipt: &Receipt, message: &'static str) -> Response {
    // Strings, booleans and lists of strings: serialisation to memory has no way to fail.
    let body = serde_json::to_vec(&ReceiptBody::of(key, receipt, message)).unwrap_or_default();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let version = VersionHeaders::of(&receipt.version);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ETAG, version.etag);
    headers.insert(A3_VERSION.clone(), version.version);
    headers.insert(A3_STRICT.clone(), flag(receipt.strict));
    response
}

fn flag(value: bool) -> HeaderValue {
    HeaderValue::from_static(if value { "true" } else { "false" })
}

/// An answer with a value, or with 304 where the client has it.
fn present(asked: &HeaderMap, key: &Key, record: &Record, found: &Found, record_view: bool) -> Response {
    let version = VersionHeaders::of(&record.version);
    let unchanged = !record_view && none_match_names(asked, &version.etag);
    let mut response = if unchanged {
        StatusCode::NOT_MODIFIED.into_response()
    } else if record_view {
        let body = RecordBody::of(key, record, found).and_then(|b| serde_json::to_vec(&b).ok()).unwrap_or_default();
        with_type(body.into(), HeaderValue::from_static("application/json"))
    } else {
        value_response(record)
    };
    let headers = response.headers_mut();
    headers.reserve(8);
    headers.insert(ETAG, version.etag);
    headers.insert(A3_VERSION.clone(), version.version);
    headers.insert(A3_STRICT.clone(), flag(found.strict));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    let written = UNIX_EPOCH + Duration::from_millis(record.written.ms().min(HTTP_DATE_MS_MAX));
    if let Ok(date) = HeaderValue::from_maybe_shared(Bytes::from(httpdate::fmt_http_date(written))) {
        headers.insert(LAST_MODIFIED, date);
    }
    response
}

/// The bytes as they were stored. A browser that is led here must neither guess a type nor run anything.
fn value_response(record: &Record) -> Response {
    let (bytes, content_type) = match &record.content {
        Content::Value { bytes, content_type, .. } => (bytes.clone(), content_type.as_ref()),
        Content::Tombstone => (Bytes::new(), None),
    };
    let octets = HeaderValue::from_static("application/octet-stream");
    // A content type is printable ASCII by construction, and so a header value.
    let kind = content_type.and_then(|c| HeaderValue::from_maybe_shared(c.bytes().clone()).ok()).unwrap_or(octets);
    let mut response = with_type(bytes.into(), kind);
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    response
}

fn with_type(body: Body, kind: HeaderValue) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// No value: never written, deleted, or expired.
fn missing(record: Option<&Record>, strict: bool) -> Response {
    let detail = match record {
        None => "nothing is stored under this key",
        Some(record) if record.is_tombstone() => "the key was deleted",
        Some(_) => "the value has expired",
    };
    let mut response = Problem::new(Code::NoSuchKey, detail).into_response();
    let headers = response.headers_mut();
    headers.insert(A3_STRICT.clone(), flag(strict));
    if let Some(record) = record {
        headers.insert(A3_VERSION.clone(), VersionHeaders::of(&record.version).version);
        if record.is_tombstone() {
            headers.insert(A3_DELETED.clone(), flag(true));
        }
    }
    response
}
