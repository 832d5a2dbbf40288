//! What a request for a key is answered with: a value, a receipt, or that there is nothing or the wrong thing.

use std::time::{Duration, UNIX_EPOCH};

use axum::body::Body;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, LAST_MODIFIED, LOCATION, RETRY_AFTER,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::bodies::{ReceiptBody, RecordBody};
use super::conditions::{Judgement, ReadConditions, prefers_representation};
use super::date;
use super::error::{Operation, problem_of, unmet};
use super::etag::VersionHeaders;
use super::problem::{Code, Problem};
use crate::node::request::{Failure, Found, Met, Receipt};
use crate::types::{Content, Key, Record, Version};

static A3_VERSION: HeaderName = HeaderName::from_static("a3-version");
static A3_STRICT: HeaderName = HeaderName::from_static("a3-strict");
static A3_DELETED: HeaderName = HeaderName::from_static("a3-deleted");
static A3_EXPIRES_AT: HeaderName = HeaderName::from_static("a3-expires-at");
static PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// What a page of an allowed origin may read of an answer.
pub(super) static EXPOSED_HEADERS: [HeaderName; 9] = [
    ETAG,
    LOCATION,
    RETRY_AFTER,
    HeaderName::from_static("a3-version"),
    HeaderName::from_static("a3-strict"),
    HeaderName::from_static("a3-deleted"),
    HeaderName::from_static("a3-expires-at"),
    HeaderName::from_static("preference-applied"),
    HeaderName::from_static("x-request-id"),
];

/// Latest millisecond that an HTTP date can say: the end of the year 9999.
const HTTP_DATE_MS_MAX: u64 = 253_402_300_799_000;

/// What a write did.
pub(super) fn receipt(status: StatusCode, key: &Key, receipt: &Receipt, message: &'static str) -> Response {
    // Strings, booleans and lists of strings: serialisation to memory has no way to fail.
    let body = serde_json::to_vec(&ReceiptBody::of(key, receipt, message)).unwrap_or_default();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    insert_version(headers, &receipt.version);
    headers.insert(A3_STRICT.clone(), flag(receipt.strict));
    insert_end(headers, receipt.expires_at_ms);
    response
}

/// What a read found: the value, that the client has it already, that it is another one than the client asked about, or
/// that there is none.
pub(super) fn found(key: &Key, found: &Found, conditions: &ReadConditions, record_view: bool) -> Response {
    let record = match &found.record {
        Some(record) if found.live => record,
        absent => return missing(absent.as_ref(), found.strict),
    };
    let mut response = match conditions.judge(record) {
        Judgement::Failed => {
            let mut response = unmet(Some(&record.version)).into_response();
            insert_version(response.headers_mut(), &record.version);
            response.headers_mut().insert(A3_STRICT.clone(), flag(found.strict));
            return response;
        }
        // The copies that the record view shows may have changed although the value has not.
        Judgement::NotModified if !record_view => StatusCode::NOT_MODIFIED.into_response(),
        _ if record_view => {
            let body = RecordBody::of(key, record, found).and_then(|b| serde_json::to_vec(&b).ok()).unwrap_or_default();
            with_type(body.into(), HeaderValue::from_static("application/json"))
        }
        _ => value(record),
    };
    let headers = response.headers_mut();
    headers.reserve(8);
    insert_version(headers, &record.version);
    headers.insert(A3_STRICT.clone(), flag(found.strict));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    insert_last_modified(headers, record);
    insert_end(headers, record.expires_at_ms());
    response
}

/// A write that failed. One whose condition is false says what stands there: its version, and the value itself where the
/// client prefers that to a problem and it is known.
pub(super) fn refusal(asked: &HeaderMap, failure: Failure) -> Response {
    let met = failure.met.clone();
    let problem = problem_of(Operation::Write, failure);
    let Some(met) = met else { return problem.into_response() };
    let Met { version, record } = *met;
    let mut response = match record.filter(|_| prefers_representation(asked)) {
        Some(record) => {
            let mut response = problem.told_by(value(&record));
            let applied = HeaderValue::from_static("return=representation");
            response.headers_mut().insert(PREFERENCE_APPLIED.clone(), applied);
            insert_last_modified(response.headers_mut(), &record);
            insert_end(response.headers_mut(), record.expires_at_ms());
            response
        }
        None => problem.into_response(),
    };
    if let Some(version) = version {
        insert_version(response.headers_mut(), &version);
    }
    response
}

/// No value: never written, deleted, or expired.
pub(super) fn no_value(record: Option<&Record>) -> Problem {
    let detail = match record {
        None => "nothing is stored under this key",
        Some(record) if record.version.is_end() => "the value has expired",
        Some(_) => "the key was deleted",
    };
    Problem::new(Code::NoSuchKey, detail)
}

fn missing(record: Option<&Record>, strict: bool) -> Response {
    let mut response = no_value(record).into_response();
    let headers = response.headers_mut();
    headers.insert(A3_STRICT.clone(), flag(strict));
    if let Some(record) = record {
        headers.insert(A3_VERSION.clone(), VersionHeaders::of(&record.version).version);
        headers.insert(A3_DELETED.clone(), flag(true));
    }
    response
}

/// The bytes as they were stored. A browser that is led here must neither guess a type nor run anything.
fn value(record: &Record) -> Response {
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

fn insert_version(headers: &mut HeaderMap, version: &Version) {
    let version = VersionHeaders::of(version);
    headers.insert(ETAG, version.etag);
    headers.insert(A3_VERSION.clone(), version.version);
}

fn insert_last_modified(headers: &mut HeaderMap, record: &Record) {
    let written = UNIX_EPOCH + Duration::from_millis(record.written.ms().min(HTTP_DATE_MS_MAX));
    if let Ok(date) = HeaderValue::from_maybe_shared(Bytes::from(httpdate::fmt_http_date(written))) {
        headers.insert(LAST_MODIFIED, date);
    }
}

/// When the value ends, if ever.
fn insert_end(headers: &mut HeaderMap, expires_at_ms: Option<u64>) {
    if let Some(ms) = expires_at_ms
        && let Ok(date) = HeaderValue::from_maybe_shared(Bytes::from(date::exact(ms)))
    {
        headers.insert(A3_EXPIRES_AT.clone(), date);
    }
}

fn flag(value: bool) -> HeaderValue {
    HeaderValue::from_static(if value { "true" } else { "false" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::request::{FailureKind, Outcome};
    use crate::types::{ContentType, Hlc, Level, NodeNum, Writer};
    use axum::http::header::RETRY_AFTER;
    use http_body_util::BodyExt as _;

    const ETAG_TEXT: &str = "\"0000000000050000-1-2\"";

    fn record() -> Record {
        let version = Version::plain(Hlc::from_ms(5), Writer(1)).conditional().unwrap();
        let content_type = Some(ContentType::new("text/html").unwrap());
        let content = Content::Value { bytes: "<b>".into(), content_type, expires_at_ms: None };
        Record::seal(&Key::new("k").unwrap(), version, Hlc::from_ms(5_000), content)
    }

    fn failed(version: Option<Version>, record: Option<Record>) -> Failure {
        Failure {
            kind: FailureKind::ConditionFailed,
            outcome: Some(Outcome::NotApplied),
            level: Level::Linearizable,
            required: 2,
            sets: None,
            acked: vec![NodeNum(1), NodeNum(2)],
            failed: Vec::new(),
            met: Some(Box::new(Met { version, record })),
        }
    }

    fn preferring(representation: bool) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if representation {
            headers.insert("prefer", HeaderValue::from_static("return=representation"));
        }
        headers
    }

    /// As the edge sends it.
    async fn sent(mut response: Response) -> (StatusCode, HeaderMap, Bytes) {
        let problem = Problem::of_response(&mut response);
        problem.render("r", &mut response);
        let (parts, body) = response.into_parts();
        (parts.status, parts.headers, body.collect().await.unwrap().to_bytes())
    }

    #[tokio::test]
    async fn a_false_condition_is_a_problem_with_the_version_that_it_met() {
        let version = record().version;
        let cases = [(Some(version), Some(record()), false), (Some(version), None, true), (None, None, true)];
        for (version, record, prefers) in cases {
            let (status, headers, body) = sent(refusal(&preferring(prefers), failed(version, record))).await;
            assert_eq!((status.as_u16(), headers[CONTENT_TYPE].as_bytes()), (412, &b"application/problem+json"[..]));
            let shown = (headers.get(ETAG), headers.get(&A3_VERSION)).0.map(HeaderValue::as_bytes);
            assert_eq!(shown, version.map(|_| ETAG_TEXT.as_bytes()));
            assert!(!headers.contains_key(&PREFERENCE_APPLIED) && !headers.contains_key(RETRY_AFTER));
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((&body["code"], &body["outcome"]), (&"precondition-failed".into(), &"not_applied".into()));
            assert_eq!((&body["retryable"], body.get("acked")), (&false.into(), None));
        }
    }

    #[tokio::test]
    async fn who_prefers_the_value_that_stands_there_gets_it_guarded() {
        let (status, headers, body) =
            sent(refusal(&preferring(true), failed(Some(record().version), Some(record())))).await;
        assert_eq!((status.as_u16(), &body[..]), (412, &b"<b>"[..]));
        let wanted = [
            (CONTENT_TYPE, "text/html"),
            (ETAG, ETAG_TEXT),
            (A3_VERSION.clone(), ETAG_TEXT.trim_matches('"')),
            (PREFERENCE_APPLIED.clone(), "return=representation"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (CONTENT_SECURITY_POLICY, "sandbox"),
            (LAST_MODIFIED, "Thu, 01 Jan 1970 00:00:05 GMT"),
        ];
        for (name, value) in wanted {
            assert_eq!(headers[&name], value, "{name}");
        }
    }

    #[tokio::test]
    async fn other_refusals_have_no_version_and_no_value() {
        let failure = Failure { kind: FailureKind::Conflict, met: None, ..failed(None, None) };
        let (status, headers, body) = sent(refusal(&preferring(true), failure)).await;
        assert_eq!((status.as_u16(), headers.get(ETAG)), (409, None));
        assert!(body.starts_with(br#"{"type":"/problems/conflict""#));
    }

    #[tokio::test]
    async fn a_reads_conditions_decide_between_the_value_and_its_absence_from_the_answer() {
        let key = Key::new("k").unwrap();
        let of = |record: Option<Record>, live| Found {
            record,
            live,
            strict: true,
            replicas: vec![NodeNum(1)],
            copies: Vec::new(),
        };
        let read = async |name: &'static str, value: &'static str, found_: &Found, record_view| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            sent_read(found(&key, found_, &ReadConditions::of(&headers).unwrap(), record_view)).await
        };
        let there = of(Some(record()), true);
        assert_eq!(read("if-match", ETAG_TEXT, &there, false).await, (200, true));
        assert_eq!(read("if-match", "\"x\"", &there, false).await, (412, true));
        assert_eq!(read("if-match", "\"x\"", &there, true).await, (412, true));
        assert_eq!(read("if-none-match", ETAG_TEXT, &there, false).await, (304, true));
        assert_eq!(read("if-none-match", ETAG_TEXT, &there, true).await, (200, true));
        // Where the answer is no success the conditions are not asked.
        assert_eq!(read("if-match", "*", &of(None, false), false).await, (404, false));
        assert_eq!(read("if-none-match", "*", &of(Some(record()), false), false).await, (404, false));
    }

    /// The status, and whether there is an ETag.
    async fn sent_read(response: Response) -> (u16, bool) {
        let status = response.status();
        let (status, headers) = if status.is_client_error() {
            let (status, headers, _) = sent(response).await;
            (status, headers)
        } else {
            (status, response.headers().clone())
        };
        (status.as_u16(), headers.contains_key(ETAG))
    }
}
