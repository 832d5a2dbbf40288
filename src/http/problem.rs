//! Problems: every answer that is not a success, as `application/problem+json` (RFC 9457).
//!
//! A handler fails with a [`Problem`]; turned into a response it travels in the response's extensions, without a body.
//! The edge ([`super::edge`]) is the one place that renders it, because only it knows the request id. It does the same
//! for errors that the router makes by itself (unknown routes, wrong methods), so nothing else ever leaves a node.

use std::borrow::Cow;

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::bodies::NodeName;
use super::moving::ImportBody;
use crate::node::request::Outcome;
use crate::node::views::Check;
use crate::types::NodeNum;

/// What a problem page says of a code.
#[derive(Clone, Copy, Debug)]
pub(super) struct About {
    pub(super) name: &'static str,
    pub(super) status: StatusCode,
    pub(super) title: &'static str,
    /// Whether the same request, sent again, may succeed. PUT and DELETE may be sent again whatever the outcome was.
    pub(super) retryable: bool,
    pub(super) help: &'static str,
}

macro_rules! codes {
    ($($variant:ident = $name:literal, $status:ident, $retryable:literal, $title:literal, $help:literal;)*) => {
        /// The kinds of problems a client may meet. The names are part of the API.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Code { $($variant),* }

        impl Code {
            pub(super) const ALL: &'static [Code] = &[$(Code::$variant),*];

            pub(super) fn about(self) -> About {
                match self {
                    $(Code::$variant => About {
                        name: $name, status: StatusCode::$status, title: $title, retryable: $retryable, help: $help,
                    },)*
                }
            }
        }
    };
}

codes! {
    BadRequest = "bad-request", BAD_REQUEST, false, "The request is malformed",
        "The request could not be understood. The detail says what is wrong with it.";
    BadKey = "bad-key", BAD_REQUEST, false, "That is no key",
        "A key is 1 to 1024 bytes: everything after /kv/, percent-decoded once. A % must be followed by two hexadecimal digits.";
    BadParameters = "bad-parameters", BAD_REQUEST, false, "Query parameters are wrong",
        "Each wrong, unknown or repeated query parameter is listed in the member parameters.";
    BadBody = "bad-body", BAD_REQUEST, false, "The request's body is wrong",
        "Each wrong or unknown member of the body is listed in the member parameters. Nothing was begun.";
    BadLine = "bad-line", BAD_REQUEST, false, "A line of an import is wrong",
        "Said of a line within an import's answer: it is no record, or none that a node would have written. The detail says what is wrong with it. It was not written; the others were.";
    CrossSite = "cross-site", FORBIDDEN, false, "Writes from another site are refused",
        "A browser sent this write on behalf of a page of another origin. Write from a page of this node, of an origin in CORS_ORIGINS, or without a browser.";
    NoSuchKey = "no-such-key", NOT_FOUND, false, "The key has no value",
        "Nothing is stored under this key. The header A3-Deleted: true says that it was deleted, A3-Version when.";
    NoSuchPage = "no-such-page", NOT_FOUND, false, "There is nothing at this path",
        "The path is none of the API's. GET / lists where to start, /openapi.json describes everything.";
    NoSuchOperation = "no-such-operation", NOT_FOUND, false, "There is no such operation",
        "Operations are known to the node that began them, until it stops; of those that ended, the last hundred are.";
    NoSuchMember = "no-such-member", NOT_FOUND, false, "There is no such member",
        "No member of the cluster has this name. GET /cluster lists them.";
    NoSuchChange = "no-such-change", NOT_FOUND, false, "No change of the topology is under way",
        "The last one has ended or was taken back, or another node has begun one that this node has not heard of yet.";
    MethodNotAllowed = "method-not-allowed", METHOD_NOT_ALLOWED, false, "The path does not know this method",
        "The header Allow lists the methods that the path knows.";
    BodyTimeout = "body-timeout", REQUEST_TIMEOUT, true, "The body did not arrive in time",
        "The request's body was not complete when its deadline passed, or of an import's nothing came any more. Nothing was written but what import says.";
    Conflict = "conflict", CONFLICT, true, "Other conditional writes were always first",
        "Other conditional writes of this key were decided before this one until it gave up. It was not applied and never will be; send it again, with a condition on what is there now.";
    VersionConflict = "version-conflict", CONFLICT, false, "Another content has this version",
        "Said of a line within an import's answer: its version stands there with another content, as where two clusters went on from one export, or a line was edited. What is there stays. With restamp=true, or without version and written, the line is written above it.";
    Exhausted = "condition-count-exhausted", CONFLICT, false, "The key cannot take another conditional write",
        "A version counts the conditional writes since the last plain one, and this key's count is used up. PUT it once without a condition and without an Idempotency-Key: that begins a new count.";
    ChangeUnderWay = "change-under-way", CONFLICT, true, "Another change of the topology is under way",
        "There is one at a time. GET /cluster/change says how far it is, DELETE /cluster/change takes it back. Nothing was begun.";
    ChangeUnfit = "change-unfit", CONFLICT, false, "The cluster cannot be changed so",
        "The detail says why: it would change nothing, or leave fewer members than copies, or the node is a member already. Nothing was begun.";
    WatchGone = "watch-gone", GONE, false, "What changed since is remembered no more",
        "Each node remembers its last 100,000 changes until it restarts, and too few of them reach back to this watch's place; or the topology changed since. Changes may have been missed: watch anew without a cursor, and once that has begun list the keys that matter (GET /kv?prefix=).";
    PreconditionFailed = "precondition-failed", PRECONDITION_FAILED, false, "The condition is false",
        "What the request asked of the value (If-Match, If-None-Match, If-Unmodified-Since) is not so. Nothing was written. ETag is the version that it met; without that header it met no value. With Prefer: return=representation a write is answered with the value itself.";
    ValueTooLarge = "value-too-large", PAYLOAD_TOO_LARGE, false, "The value is too large",
        "The value is longer than VALUE_BYTES_MAX allows on this node; the detail names the limit. Nothing was written.";
    BodyTooLarge = "body-too-large", PAYLOAD_TOO_LARGE, false, "The request's body is too large",
        "The body is longer than this path takes; the detail names the limit. Nothing was begun.";
    LineTooLong = "line-too-long", PAYLOAD_TOO_LARGE, false, "A line of an import is too long",
        "Said of a line within an import's answer: it is longer than one with the largest value can be. It was not written; the others were.";
    BatchFull = "batch-answer-full", PAYLOAD_TOO_LARGE, true, "The batch has read as many values as one may",
        "The values read before this one are 16 MiB together. Ask for it in another batch, or alone.";
    KeyTooLong = "key-too-long", URI_TOO_LONG, false, "The key is too long",
        "A key is at most 1024 bytes long, counted after percent-decoding.";
    UriTooLong = "uri-too-long", URI_TOO_LONG, false, "The request target is too long",
        "Path and query together are at most 8192 bytes long.";
    UnsupportedEncoding = "unsupported-encoding", UNSUPPORTED_MEDIA_TYPE, false, "Content-Encoding is not kept",
        "A value's Content-Type is kept with it, its Content-Encoding is not. Send the bytes without that header.";
    KeyReused = "idempotency-key-reused", UNPROCESSABLE_ENTITY, false, "The Idempotency-Key belongs to another request",
        "This key answered another request under the same Idempotency-Key: another method, condition, content type or body. Nothing was written. Give each request a key of its own.";
    HeadersTooLarge = "headers-too-large", REQUEST_HEADER_FIELDS_TOO_LARGE, false, "The headers are too large",
        "All header fields together are at most 16384 bytes long.";
    Internal = "internal", INTERNAL_SERVER_ERROR, true, "The node failed to answer",
        "A defect in the node. Its log has an entry under the same request id.";
    StoreDamaged = "store-damaged", INTERNAL_SERVER_ERROR, true, "What is stored is damaged",
        "A page or a row on this node's disk is not what was written, and a copy of it would be no backup. A scrub mends rows from the other copies (POST /repair, GET /cluster/convergence?deep=true); then ask again.";
    Overloaded = "overloaded", SERVICE_UNAVAILABLE, true, "Too many requests are under way",
        "The node or its replicas have as much under way as they can hold. Send it again a little later.";
    Unavailable = "unavailable", SERVICE_UNAVAILABLE, true, "Not enough replicas can be reached",
        "required says how many answers the level needs (of either set of replicas, where the slot moves; detail counts both), acked who gave one, failed who did not and why.";
    NotReady = "not-ready", SERVICE_UNAVAILABLE, true, "The node is not ready",
        "The node has no cluster yet, or is stopping. /readyz?verbose says what it waits for.";
    ClockSkew = "clock-skew", SERVICE_UNAVAILABLE, true, "This node's clock is off",
        "The node's clock differs too much from its peers', so it does not coordinate writes. Another node will; set the clock right.";
    BackupRunning = "backup-running", SERVICE_UNAVAILABLE, true, "Another backup is under way",
        "A node takes and sends one backup of itself at a time. Ask again when that one is through.";
    TimedOut = "timed-out", GATEWAY_TIMEOUT, true, "Not enough replicas answered in time",
        "For a write, outcome says what is known of it: unknown means that it may be found later.";
    ChangeUndecided = "change-undecided", GATEWAY_TIMEOUT, true, "No majority of the members decided in time",
        "The change may have been decided, or be decided yet. Once a majority of the members answers, GET /cluster/change tells.";
    DiskFull = "disk-full", INSUFFICIENT_STORAGE, true, "The replicas' disks are full",
        "Not enough replicas have room for the write.";
}

impl Code {
    pub(super) fn named(name: &str) -> Option<Code> {
        Self::ALL.iter().copied().find(|c| c.about().name == name)
    }

    /// For an error response that somebody else made.
    fn of_status(status: StatusCode) -> Code {
        match status {
            StatusCode::NOT_FOUND => Code::NoSuchPage,
            StatusCode::METHOD_NOT_ALLOWED => Code::MethodNotAllowed,
            s if s.is_client_error() => Code::BadRequest,
            _ => Code::Internal,
        }
    }
}

/// A query parameter, or a member of a body, that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct BadParameter {
    pub(super) name: String,
    pub(super) reason: String,
}

/// A replica that did not do its part, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct FailedReplica {
    pub(super) node: NodeName,
    pub(super) reason: String,
}

/// One condition of readiness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Check)]
pub(super) struct CheckBody {
    pub(super) name: &'static str,
    pub(super) ok: bool,
    /// What is missing, or a fact worth knowing.
    pub(super) detail: String,
}

impl From<Check> for CheckBody {
    fn from(check: Check) -> Self {
        Self { name: check.name, ok: check.ok, detail: check.detail }
    }
}

/// What the replicas did of a failed operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Replies {
    pub(super) required: usize,
    pub(super) acked: Vec<NodeNum>,
    pub(super) failed: Vec<(NodeNum, String)>,
}

/// Why a request is not answered with success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem(Box<Inner>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Inner {
    code: Code,
    detail: Cow<'static, str>,
    outcome: Option<Outcome>,
    replies: Option<Replies>,
    parameters: Vec<BadParameter>,
    checks: Vec<CheckBody>,
    slots: Vec<String>,
    /// What was done of an import.
    import: Option<ImportBody>,
    /// Replicas that did not answer for all of theirs.
    failed: Vec<(NodeNum, String)>,
    /// The response has a body that is sent in the problem's place.
    told: bool,
}

impl Problem {
    pub(super) fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            code,
            detail: detail.into(),
            outcome: None,
            replies: None,
            parameters: Vec::new(),
            checks: Vec::new(),
            slots: Vec::new(),
            import: None,
            failed: Vec::new(),
            told: false,
        }))
    }

    pub(super) fn bad_parameters(parameters: Vec<BadParameter>) -> Self {
        let detail = match parameters.as_slice() {
            [one] => format!("{}: {}", one.name, one.reason),
            many => format!("{} query parameters are wrong", many.len()),
        };
        let mut problem = Self::new(Code::BadParameters, detail);
        problem.0.parameters = parameters;
        problem
    }

    /// Members of a body.
    pub(super) fn bad_members(members: Vec<BadParameter>) -> Self {
        let detail = match members.as_slice() {
            [one] => format!("{}: {}", one.name, one.reason),
            many => format!("{} members of the body are wrong", many.len()),
        };
        let mut problem = Self::new(Code::BadBody, detail);
        problem.0.parameters = members;
        problem
    }

    pub(super) fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.0.outcome = Some(outcome);
        self
    }

    pub(super) fn with_replies(mut self, replies: Replies) -> Self {
        self.0.replies = Some(replies);
        self
    }

    pub(super) fn with_checks(mut self, checks: Vec<CheckBody>) -> Self {
        self.0.checks = checks;
        self
    }

    /// Slots without a majority, and which replicas did not answer.
    pub(super) fn with_slots(mut self, slots: Vec<String>, failed: Vec<(NodeNum, String)>) -> Self {
        self.0.slots = slots;
        self.0.failed = failed;
        self
    }

    /// The same, said of a part of the request.
    pub(super) fn about(mut self, part: &str) -> Self {
        self.0.detail = format!("{part}: {}", self.0.detail).into();
        self
    }

    /// What an import did before this ended it.
    pub(super) fn with_import(mut self, import: ImportBody) -> Self {
        self.0.import = Some(import);
        self
    }

    /// Makes an error of a response whose body says more than the problem would: it is sent as it is.
    pub(super) fn told_by(mut self, mut response: Response) -> Response {
        *response.status_mut() = self.0.code.about().status;
        self.0.told = true;
        response.extensions_mut().insert(self);
        response
    }

    pub(super) fn code(&self) -> Code {
        self.0.code
    }

    pub(super) fn detail(&self) -> &str {
        &self.0.detail
    }

    /// The problem a response stands for that is not a success. Whoever made it, its headers stay.
    pub(super) fn of_response(response: &mut Response) -> Self {
        response.extensions_mut().remove::<Problem>().unwrap_or_else(|| {
            let status = response.status();
            let code = Code::of_status(status);
            let detail = match code {
                Code::BadRequest => status.canonical_reason().unwrap_or("the request could not be understood"),
                _ => code.about().help,
            };
            Self::new(code, detail)
        })
    }

    /// Adds what became of a write where nothing is said of it yet.
    pub(super) fn or_outcome(mut self, outcome: Outcome) -> Self {
        self.0.outcome.get_or_insert(outcome);
        self
    }

    /// The body that a client gets.
    pub(super) fn body(&self, request_id: &str) -> Vec<u8> {
        // Strings and numbers under string keys: serialisation to memory has no way to fail.
        serde_json::to_vec(&self.shown(Some(request_id))).unwrap_or_default()
    }

    /// As JSON. Within another answer it has no request id of its own.
    pub(super) fn shown<'a>(&'a self, request_id: Option<&'a str>) -> ProblemBody<'a> {
        let inner = &*self.0;
        let about = inner.code.about();
        let replies = inner.replies.as_ref();
        let failed = replies.map(|r| &r.failed).or(Some(&inner.failed).filter(|failed| !failed.is_empty()));
        ProblemBody {
            kind: format!("/problems/{}", about.name),
            title: about.title,
            status: about.status.as_u16(),
            detail: &inner.detail,
            code: about.name,
            retryable: about.retryable,
            request_id,
            outcome: inner.outcome.map(Outcome::as_str),
            required: replies.map(|r| r.required),
            acked: replies.map(|r| r.acked.iter().copied().map(NodeName).collect()),
            failed: failed.map(|failed| failed.iter().map(FailedReplica::from).collect()),
            parameters: &inner.parameters,
            checks: &inner.checks,
            unreachable_slots: &inner.slots,
            import: inner.import.as_ref(),
        }
    }

    /// Makes the response of this problem out of one that may carry headers already. One that tells it by itself stays.
    pub(super) fn render(&self, request_id: &str, response: &mut Response) {
        if self.0.told {
            return;
        }
        let about = self.0.code.about();
        *response.status_mut() = about.status;
        let headers = response.headers_mut();
        headers.remove(axum::http::header::CONTENT_LENGTH);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if about.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.entry(RETRY_AFTER).or_insert(HeaderValue::from_static("1"));
        }
        *response.body_mut() = self.body(request_id).into();
    }
}

impl From<&(NodeNum, String)> for FailedReplica {
    fn from((node, reason): &(NodeNum, String)) -> Self {
        Self { node: NodeName(*node), reason: reason.clone() }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.0.code.about().status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// A problem, as RFC 9457 describes it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct ProblemBody<'a> {
    /// A page of this node about this kind of problem.
    #[serde(rename = "type")]
    #[schema(format = "uri-reference", example = "/problems/unavailable")]
    kind: String,
    #[schema(example = "Not enough replicas can be reached")]
    title: &'a str,
    /// The status of the response.
    #[schema(example = 503, minimum = 400, maximum = 599)]
    status: u16,
    /// What happened to this request.
    detail: &'a str,
    /// The kind of problem, for programs.
    #[schema(example = "unavailable")]
    code: &'a str,
    /// Whether the same request, sent again, may succeed.
    retryable: bool,
    /// What the node's log calls this request. Absent where the problem is part of a larger answer, whose header
    /// `X-Request-Id` says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    request_id: Option<&'a str>,
    /// Of a failed write: `applied` (a majority of home replicas has it), `not_applied`, or `unknown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "not_applied")]
    outcome: Option<&'static str>,
    /// How many replicas had to answer; the most that were needed of one set, while the slot moves.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    required: Option<usize>,
    /// Home replicas that did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    acked: Option<Vec<NodeName>>,
    /// Replicas that did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    failed: Option<Vec<FailedReplica>>,
    /// The query parameters, or the members of the body, that are wrong: all of them.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false)]
    parameters: &'a [BadParameter],
    /// What the node waits for until it is ready.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false)]
    checks: &'a [CheckBody],
    /// Of a listing: slots that have no majority now.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false)]
    unreachable_slots: &'a [String],
    /// Of an import that could not go on: what it did before.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    import: Option<&'a ImportBody>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn codes_have_unique_names_of_their_own_page() {
        let names: BTreeSet<_> = Code::ALL.iter().map(|c| c.about().name).collect();
        assert_eq!(names.len(), Code::ALL.len());
        for code in Code::ALL {
            assert_eq!(Code::named(code.about().name), Some(*code));
            assert!(code.about().status.as_u16() >= 400);
        }
        assert_eq!(Code::named("no-such-code"), None);
    }

    #[test]
    fn a_failed_write_says_what_became_of_it() {
        let problem =
            Problem::new(Code::Unavailable, "1 of 2 replicas answered").with_outcome(Outcome::Unknown).with_replies(
                Replies { required: 2, acked: vec![NodeNum(1)], failed: vec![(NodeNum(2), "unreachable".into())] },
            );
        let body: serde_json::Value = serde_json::from_slice(&problem.body("r-1")).unwrap();
        assert_eq!(
            body,
            serde_json::json!({
                "type": "/problems/unavailable", "title": "Not enough replicas can be reached", "status": 503,
                "detail": "1 of 2 replicas answered", "code": "unavailable", "retryable": true, "request_id": "r-1",
                "outcome": "unknown", "required": 2, "acked": ["n1"],
                "failed": [{"node": "n2", "reason": "unreachable"}],
            })
        );
    }

    #[test]
    fn a_response_of_somebody_else_becomes_a_problem_and_keeps_its_headers() {
        let mut response = (StatusCode::METHOD_NOT_ALLOWED, [("allow", "GET")], "nope").into_response();
        let problem = Problem::of_response(&mut response);
        assert_eq!(problem.code(), Code::MethodNotAllowed);
        problem.render("r", &mut response);
        assert_eq!(response.headers()["allow"], "GET");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert!(!response.headers().contains_key(RETRY_AFTER));
    }

    #[test]
    fn what_may_be_retried_says_when() {
        let mut response = Problem::new(Code::Overloaded, "").into_response();
        let problem = Problem::of_response(&mut response);
        problem.render("r", &mut response);
        assert_eq!(response.headers()[RETRY_AFTER], "1");
    }

    #[test]
    fn an_outcome_that_is_known_stays() {
        let known = Problem::new(Code::TimedOut, "").with_outcome(Outcome::Applied).or_outcome(Outcome::NotApplied);
        assert_eq!(known.0.outcome, Some(Outcome::Applied));
        let unknown = Problem::new(Code::BadKey, "").or_outcome(Outcome::NotApplied);
        assert_eq!(unknown.0.outcome, Some(Outcome::NotApplied));
    }
}
