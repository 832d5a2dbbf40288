//! `/kv/{key}`: PUT, GET, HEAD, PATCH, DELETE.
//!
//! A write with a condition or an `Idempotency-Key`, and one that only changes when a value ends, goes to the key's register
//! ([`Write::Conditional`]), any other to its replicas as it is ([`Write::Plain`]).

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use axum::routing;
use bytes::Bytes;
use tokio::time::Instant;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::bodies::{ReceiptBody, RecordBody, ValueBytes};
use super::conditions::{ReadConditions, WriteConditions};
use super::docs::{
    EtagsText, IdempotencyText, KeyText, LevelName, NewEndText, RegisterLevelName, TimeoutText, TtlText, ViewName,
};
use super::edge::Waited;
use super::error::{Operation, problem_of};
use super::key::key_of_path;
use super::problem::{Code, Problem};
use super::query::{self, Query};
use super::watch::Open;
use super::{Api, answer};
use crate::node::request::{ConditionalPut, Edit, Failure, Get, NewContent, Put, Receipt, Write};
use crate::types::{ContentType, ContentTypeError, Key, Level};

/// Long polls at a time; more are answered 503.
pub(super) const LONG_POLLS_MAX: usize = 512;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    // The empty key is a path of its own for the router; the handlers say what is wrong with it.
    let empty = routing::get(get).put(put).patch(touch).delete(delete);
    OpenApiRouter::new().routes(routes!(get, head, put, touch, delete)).route("/kv/", empty)
}

/// Read a value
///
/// The bytes as they were stored, with the content type they were stored under. With `view=record` a JSON document
/// with the value, its version and what each replica holds.
#[utoipa::path(
    get, path = "/kv/{*key}", operation_id = "getValue", tag = "kv",
    params(
        ("key" = inline(KeyText), Path, description = KEY_HELP),
        ("consistency" = inline(Option<LevelName>), Query, description = READ_LEVEL_HELP),
        ("timeout" = inline(Option<TimeoutText>), Query, description = TIMEOUT_HELP),
        ("view" = inline(Option<ViewName>), Query, description = "`record` shows the record and its copies as JSON."),
        ("wait" = inline(Option<TimeoutText>), Query, description = WAIT_HELP),
        ("If-Match" = inline(EtagsText), Header, description = READ_IF_MATCH_HELP),
        ("If-None-Match" = inline(EtagsText), Header, description = READ_IF_NONE_MATCH_HELP),
        ("If-Modified-Since" = inline(String), Header, description = MODIFIED_HELP),
        ("If-Unmodified-Since" = inline(String), Header, description = UNMODIFIED_HELP),
    ),
    responses(
        (status = 200, description = "The value.", content((ValueBytes = "application/octet-stream"), (ValueBytes = "*/*"), (RecordBody = "application/json")),
            headers(("ETag" = String, description = "The version in quotes."), ("A3-Version" = String, description = "The version."),
                ("A3-Strict" = bool, description = "False where a stand-in was counted: the answer may miss strict writes."),
                ("Last-Modified" = String, description = "When it was written."),
                ("A3-Expires-At" = String, description = "When it ends (RFC 3339); absent where it does not."))),
        (status = 304, description = "The client has this version already.", headers(("ETag" = String, description = "The version in quotes."))),
    ),
)]
pub(super) async fn get(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Problem> {
    let (parts, _) = request.into_parts();
    let key = key_of_path(parts.uri.path())?;
    let mut query = Query::new(parts.uri.query(), &["consistency", "timeout", "view", "wait"]);
    let asked = Asked::take(&mut query, false);
    let record_view = query.take("view", |text| if text == "record" { Ok(()) } else { Err("record".into()) }).is_some();
    let wait = query.take("wait", query::timeout);
    query.finish()?;
    let conditions = ReadConditions::of(&parts.headers)?;
    let get = Get { key: key.clone(), level: asked.level, deadline: asked.deadline(&api), every_copy: record_view };
    let found = match wait {
        None => api.node.get(get).await,
        Some(wait) => {
            let permit = Arc::clone(&api.long_polls).try_acquire_owned();
            let permit = permit.map_err(|_| Problem::new(Code::Overloaded, "too many long polls"))?;
            let (_open, until) = (Open::new("long_poll", permit), Instant::now() + wait);
            api.node.get_new(get, asked.within(&api), |found| conditions.are_news(found), until).await
        }
    };
    let found = found.map_err(|failure| problem_of(Operation::Read, failure))?;
    let mut response = answer::found(&key, &found, &conditions, record_view);
    if wait.is_some() {
        response.extensions_mut().insert(Waited);
    }
    Ok(response)
}

/// Read a value's headers
///
/// The headers that a GET would have, without the value.
#[utoipa::path(
    head, path = "/kv/{*key}", operation_id = "headValue", tag = "kv",
    params(
        ("key" = inline(KeyText), Path, description = KEY_HELP),
        ("consistency" = inline(Option<LevelName>), Query, description = READ_LEVEL_HELP),
        ("timeout" = inline(Option<TimeoutText>), Query, description = TIMEOUT_HELP),
        ("view" = inline(Option<ViewName>), Query, description = "As for GET."),
        ("wait" = inline(Option<TimeoutText>), Query, description = "As for GET."),
        ("If-Match" = inline(EtagsText), Header, description = READ_IF_MATCH_HELP),
        ("If-None-Match" = inline(EtagsText), Header, description = READ_IF_NONE_MATCH_HELP),
        ("If-Modified-Since" = inline(String), Header, description = MODIFIED_HELP),
        ("If-Unmodified-Since" = inline(String), Header, description = UNMODIFIED_HELP),
    ),
    responses(
        (status = 200, description = "There is a value.",
            headers(("ETag" = String, description = "The version in quotes."), ("A3-Version" = String, description = "The version."),
                ("A3-Strict" = bool, description = "False where a stand-in was counted."),
                ("Content-Length" = u64, description = "Length of the value, in bytes."),
                ("Last-Modified" = String, description = "When it was written."),
                ("A3-Expires-At" = String, description = "When it ends (RFC 3339); absent where it does not."))),
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
///
/// With a condition it is stored only where the condition is true, and of those who ask at once exactly one is served:
/// such writes of a key, and linearizable requests for it, happen in one order that all of them agree on, through
/// crashes, partitions and clocks that differ. They see every plain write that a majority of home replicas acknowledged
/// at once. 200, 201, 409, 412 and 422 are definite. 504 with `outcome: unknown` is not: read the key, or repeat the
/// request under its `Idempotency-Key`.
#[utoipa::path(
    put, path = "/kv/{*key}", operation_id = "putValue", tag = "kv",
    params(
        ("key" = inline(KeyText), Path, description = KEY_HELP),
        ("consistency" = inline(Option<LevelName>), Query, description = WRITE_LEVEL_HELP),
        ("timeout" = inline(Option<TimeoutText>), Query, description = TIMEOUT_HELP),
        ("ttl" = inline(Option<TtlText>), Query, description = TTL_HELP),
        ("If-Match" = inline(EtagsText), Header, description = WRITE_IF_MATCH_HELP),
        ("If-None-Match" = inline(EtagsText), Header, description = WRITE_IF_NONE_MATCH_HELP),
        ("If-Unmodified-Since" = inline(String), Header, description = UNMODIFIED_HELP),
        ("Idempotency-Key" = inline(IdempotencyText), Header, description = IDEMPOTENCY_HELP),
        ("Prefer" = inline(String), Header, description = PREFER_HELP),
    ),
    request_body(content = ValueBytes, description = "The value, of any content type; without a body it is empty.", content_type = "application/octet-stream"),
    responses(
        (status = 200, description = "Stored; there was a value before.", body = ReceiptBody,
            headers(("ETag" = String, description = "The version in quotes."), ("A3-Version" = String, description = "The version."),
                ("A3-Expires-At" = String, description = "When it ends (RFC 3339); absent where it does not."))),
        (status = 201, description = "Stored; there was no value before.", body = ReceiptBody,
            headers(("ETag" = String, description = "The version in quotes."), ("A3-Version" = String, description = "The version."),
                ("A3-Expires-At" = String, description = "When it ends (RFC 3339); absent where it does not."))),
    ),
)]
pub(super) async fn put(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let key = key_of_path(parts.uri.path())?;
    let conditions = WriteConditions::of(&parts.headers)?;
    let mut query = Query::new(parts.uri.query(), &["consistency", "timeout", "ttl"]);
    let asked = Asked::take(&mut query, !conditions.is_empty());
    let ttl = query.take("ttl", query::ttl);
    query.finish()?;
    let content_type = stored_content_type(&parts)?;
    let held = api.bodies.read(body).await?;
    let edit = Edit::Write(NewContent::Value { bytes: held.bytes.clone(), content_type, ttl });
    match write(&api, &key, &asked, &conditions, &parts.method, edit).await {
        Ok(receipt) => {
            let status = if receipt.created { StatusCode::CREATED } else { StatusCode::OK };
            Ok(answer::receipt(status, &key, &receipt, "stored"))
        }
        Err(failure) => Ok(answer::refusal(&parts.headers, failure)),
    }
}

/// Change when a value ends
///
/// The value itself is not sent, and stays; its version is a new one. Without a value (deleted or expired, too) the answer
/// is 404. Conditions and `Idempotency-Key` are as for PUT, and so is what the answers mean: it is linearizable.
#[utoipa::path(
    patch, path = "/kv/{*key}", operation_id = "touchValue", tag = "kv",
    params(
        ("key" = inline(KeyText), Path, description = KEY_HELP),
        ("ttl" = inline(NewEndText), Query, description = NEW_END_HELP),
        ("consistency" = inline(Option<RegisterLevelName>), Query, description = WRITE_LEVEL_HELP),
        ("timeout" = inline(Option<TimeoutText>), Query, description = TIMEOUT_HELP),
        ("If-Match" = inline(EtagsText), Header, description = WRITE_IF_MATCH_HELP),
        ("If-None-Match" = inline(EtagsText), Header, description = TOUCH_IF_NONE_MATCH_HELP),
        ("If-Unmodified-Since" = inline(String), Header, description = UNMODIFIED_HELP),
        ("Idempotency-Key" = inline(IdempotencyText), Header, description = IDEMPOTENCY_HELP),
        ("Prefer" = inline(String), Header, description = PREFER_HELP),
    ),
    responses(
        (status = 200, description = "It ends then, or never.", body = ReceiptBody,
            headers(("ETag" = String, description = "The version in quotes."), ("A3-Version" = String, description = "The version."),
                ("A3-Expires-At" = String, description = "When it ends (RFC 3339); absent where it does not."))),
    ),
)]
pub(super) async fn touch(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let key = key_of_path(parts.uri.path())?;
    let conditions = WriteConditions::of(&parts.headers)?;
    let mut query = Query::new(parts.uri.query(), &["ttl", "consistency", "timeout"]);
    let asked = Asked::take(&mut query, true);
    let ttl = query.needed("ttl", query::new_end);
    query.finish()?;
    if !api.bodies.read(body).await?.bytes.is_empty() {
        return Err(Problem::new(Code::BadRequest, "a value's end is changed without a body; PUT replaces the value"));
    }
    match write(&api, &key, &asked, &conditions, &parts.method, Edit::Touch { ttl: ttl.flatten() }).await {
        Ok(receipt) => Ok(answer::receipt(StatusCode::OK, &key, &receipt, "touched")),
        Err(failure) if failure.met.as_ref().is_some_and(|met| met.version.is_none()) => {
            Err(Problem::new(Code::NoSuchKey, "there is no value under this key whose end could be changed"))
        }
        Err(failure) => Ok(answer::refusal(&parts.headers, failure)),
    }
}

/// Delete a value
///
/// Succeeds whether or not there was one. The answer says which replicas have it on disk. Conditions and
/// `Idempotency-Key` are as for PUT; a deleted key never gets an old ETag back.
#[utoipa::path(
    delete, path = "/kv/{*key}", operation_id = "deleteValue", tag = "kv",
    params(
        ("key" = inline(KeyText), Path, description = KEY_HELP),
        ("consistency" = inline(Option<LevelName>), Query, description = WRITE_LEVEL_HELP),
        ("timeout" = inline(Option<TimeoutText>), Query, description = TIMEOUT_HELP),
        ("If-Match" = inline(EtagsText), Header, description = WRITE_IF_MATCH_HELP),
        ("If-None-Match" = inline(EtagsText), Header, description = WRITE_IF_NONE_MATCH_HELP),
        ("If-Unmodified-Since" = inline(String), Header, description = UNMODIFIED_HELP),
        ("Idempotency-Key" = inline(IdempotencyText), Header, description = IDEMPOTENCY_HELP),
        ("Prefer" = inline(String), Header, description = PREFER_HELP),
    ),
    responses(
        (status = 200, description = "Deleted, or there was nothing.", body = ReceiptBody,
            headers(("ETag" = String, description = "The tombstone's version in quotes."), ("A3-Version" = String, description = "The tombstone's version."))),
    ),
)]
pub(super) async fn delete(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Problem> {
    let (parts, _) = request.into_parts();
    let key = key_of_path(parts.uri.path())?;
    let conditions = WriteConditions::of(&parts.headers)?;
    let mut query = Query::new(parts.uri.query(), &["consistency", "timeout"]);
    let asked = Asked::take(&mut query, !conditions.is_empty());
    query.finish()?;
    match write(&api, &key, &asked, &conditions, &parts.method, Edit::Write(NewContent::Tombstone)).await {
        Ok(receipt) => Ok(answer::receipt(StatusCode::OK, &key, &receipt, "deleted")),
        Err(failure) => Ok(answer::refusal(&parts.headers, failure)),
    }
}

async fn write(
    api: &Api,
    key: &Key,
    asked: &Asked,
    conditions: &WriteConditions<'_>,
    method: &Method,
    edit: Edit,
) -> Result<Receipt, Failure> {
    api.node.write(write_of(key, (asked.level, asked.deadline(api)), conditions, method, edit)).await
}

/// For the register where the request asks for it, else for the replicas.
pub(super) fn write_of(
    key: &Key,
    (level, deadline): (Level, Instant),
    conditions: &WriteConditions<'_>,
    method: &Method,
    edit: Edit,
) -> Write {
    let key = key.clone();
    match edit {
        Edit::Write(content) if conditions.is_empty() => Write::Plain(Put { key, content, level, deadline }),
        edit => {
            let idempotency = conditions.idempotency(method, &edit);
            let condition = conditions.condition.clone();
            Write::Conditional(ConditionalPut { key, condition, edit, idempotency, deadline })
        }
    }
}

const KEY_HELP: &str = "The key: any bytes, 1 to 1024 of them, percent-encoded. Everything after `/kv/` is the key, so a `/` in it may be sent as it is or as `%2F`. It is decoded once and never folded.";
const TIMEOUT_HELP: &str = "How long the operation may take, from 50ms to 60s; the node's REQUEST_TIMEOUT unless said.";
const READ_LEVEL_HELP: &str = "Which answers are enough. `one`: the first home replica's, which may miss writes. `quorum` (unless said): a majority's, stand-ins counted for home replicas that cannot be reached; where they disagree the newest is written to a majority before it is told. `all`: every home replica's. `linearizable`: a majority of home replicas, no stand-ins; the answer has everything that a linearizable or conditional write, or a plain one with `strict: true`, had acknowledged before the read began.";
const WRITE_LEVEL_HELP: &str = "Who must have it on disk before the answer. `one`: any one node. `quorum` (unless said): a majority, stand-ins counted for home replicas that cannot be reached. `all`: every home replica. `linearizable`: a majority of home replicas, no stand-ins, in one order with conditional writes and linearizable reads. With a condition or an `Idempotency-Key` a write is linearizable whatever is asked; `one` and `all`, which that is not, are then refused with 400.";
const WAIT_HELP: &str = "A long poll, from 50ms to 60s: while the answer would be 304 (or, without If-None-Match, 404) it waits for a change of this key, so long at most. A deleted key is 404 at once, unless its tombstone's A3-Version is among the ETags. At most 512 at a time.";
const READ_IF_MATCH_HELP: &str =
    "The answer is 412 unless the value has one of these ETags, strongly compared (`W/` never matches), or `*`.";
const READ_IF_NONE_MATCH_HELP: &str =
    "ETags the client has already: 304 where the value has one of them, weakly compared.";
const MODIFIED_HELP: &str = "304 where the value was not written after this HTTP date. Not asked beside If-None-Match; ignored where it is no date.";
const UNMODIFIED_HELP: &str = "412 where the value was written after this HTTP date, to the second; an ETag is exact. Not asked beside If-Match; ignored where it is no date.";
const WRITE_IF_MATCH_HELP: &str = "Only where the value has one of these ETags, strongly compared (`W/` never matches); `*`: only where there is a value. Else 412, and nothing is written.";
const WRITE_IF_NONE_MATCH_HELP: &str = "`*`: only where there is no value, so that one of many creates it; ETags: only where the value has none of them. Else 412, and nothing is written.";
const IDEMPOTENCY_HELP: &str = "A name for this request, not used for another one. Sent again under it, to any node, it is done once and gets its first answer: the key's register remembers the last eight. Another request under the same name is 422.";
const PREFER_HELP: &str = "`return=representation`: a 412 carries the value that stands there in place of a problem, with `Preference-Applied`. It does not where it repeats an earlier answer under an Idempotency-Key.";

const TTL_HELP: &str = "How long the value lives, counted from its stamp: 1ms to 9999d, such as 60s, 15m, 12h or 30d. Then it reads as absent at every node and level. Without it the value has no end, also where the one that it replaces had one.";
const NEW_END_HELP: &str = "How long the value lives from now on, as for PUT; `none`: it has no end any more.";
const TOUCH_IF_NONE_MATCH_HELP: &str =
    "ETags: only where the value has none of them; `*` is never true of a value. Else 412, and nothing is written.";

/// Why a level cannot be had.
const REGISTER_LEVEL: &str = "a write with a condition or an Idempotency-Key, or of a value's end alone, is linearizable: ask for quorum (which it exceeds), linearizable, or nothing";

/// What every operation on a key may be asked.
#[derive(Clone, Copy, Debug)]
struct Asked {
    level: Level,
    timeout: Option<Duration>,
}

impl Asked {
    fn take(query: &mut Query<'_>, registered: bool) -> Self {
        let level = query.take("consistency", |text| level(text, registered));
        Self { level: level.unwrap_or_default(), timeout: query.take("timeout", query::timeout) }
    }

    fn within(self, api: &Api) -> Duration {
        self.timeout.unwrap_or(api.request_timeout)
    }

    fn deadline(self, api: &Api) -> Instant {
        Instant::now() + self.within(api)
    }
}

/// `registered`: it is for a write that the key's register decides. To say `one` or `all` of it would be a lie: it asks
/// more replicas than one and does not wait for all.
pub(super) fn level(text: &str, registered: bool) -> Result<Level, Cow<'static, str>> {
    match text.parse::<Level>() {
        Ok(Level::One | Level::All) if registered => Err(REGISTER_LEVEL.into()),
        parsed => parsed.map_err(|e| e.to_string().into()),
    }
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
    kept_type(value.as_bytes()).map_err(|error| Problem::new(Code::BadRequest, format!("Content-Type: {error}")))
}

/// Of those that a client says without meaning one, none is kept.
pub(super) fn kept_type(given: &[u8]) -> Result<Option<ContentType>, ContentTypeError> {
    let essence = given.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    let anonymous: [&[u8]; 3] = [b"", b"application/octet-stream", b"application/x-www-form-urlencoded"];
    if anonymous.iter().any(|a| essence.eq_ignore_ascii_case(a)) {
        return Ok(None);
    }
    ContentType::new(Bytes::copy_from_slice(given)).map(Some)
}
