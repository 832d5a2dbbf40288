//! `POST /batch`: several gets, puts and deletes in one request. Not a transaction: see [`crate::node::batch`].
//!
//! What is wrong with one operation is its own result and harms no other; only a body that is no batch at all is refused
//! as a whole.

mod item;
mod results;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use serde_json::Value;
use tokio::time::Instant;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::docs::{LevelName, TimeoutText};
use super::kv;
use super::problem::{BadParameter, Code, Problem};
use super::query::{self, Query};
use item::{Defaults, Item, OperationBody};
use results::BatchBody;

/// Operations of one batch.
const OPERATIONS_MAX: usize = 1000;
/// How many times the node's REQUEST_TIMEOUT a batch may take where it does not say.
const TIMEOUTS: u32 = 10;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(batch))
}

/// Several operations
///
/// Gets, puts and deletes in one request, each by itself: **a batch is not atomic**, and another client may see some of it
/// done and some not. Operations on one key are done in the order given, those on different keys in any order and at once,
/// so that they share messages and disk syncs. Up to 1,000 operations and 16 MiB; values read are 16 MiB together.
///
/// The answer is 200 where the body was a batch, and has one result for each operation in their order, with the status,
/// receipt, record or problem that the operation would have been answered with alone. One that is malformed gets a 400 of
/// its own, and harms no other.
#[utoipa::path(
    post, path = "/batch", operation_id = "batch", tag = "kv",
    params(
        ("consistency" = inline(Option<LevelName>), Query, description = "The level of operations that do not say their own; `quorum` unless said."),
        ("timeout" = inline(Option<TimeoutText>), Query, description = "How long the whole may take, from 50ms to 60s; ten times the node's REQUEST_TIMEOUT unless said. An operation whose turn has not come by then is not begun: 504, `not_applied`."),
    ),
    request_body(content = BatchRequest, description = "The operations."),
    responses((status = 200, description = "Each operation's result, good or bad.", body = BatchBody)),
)]
async fn batch(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let mut query = Query::new(parts.uri.query(), &["consistency", "timeout"]);
    let level = query.take("consistency", |text| kv::level(text, false));
    let timeout = query.take("timeout", query::timeout);
    query.finish()?;
    // Held until it is answered: what is stored of it weighs on the node as long.
    let held = api.bodies.read_batch(body).await?;
    let listed = operations(&held.bytes)?;
    let longest = (api.request_timeout * TIMEOUTS).min(query::TIMEOUT_MAX);
    let deadline = Instant::now() + timeout.unwrap_or(longest);
    let defaults = Defaults { level, deadline, bodies: &api.bodies };
    let items: Vec<Result<Item, Problem>> = listed.into_iter().map(|one| Item::of(one, &defaults)).collect();
    let asked = items.iter().flatten().map(|item| item.operation.clone()).collect();
    let answers = api.node.batch(asked, deadline).await;
    Ok(json(&BatchBody::of(&items, &answers)))
}

/// What the body lists.
fn operations(body: &[u8]) -> Result<Vec<Value>, Problem> {
    let mut members = match serde_json::from_slice(body) {
        Ok(Value::Object(members)) => members,
        Ok(_) => return Err(Problem::new(Code::BadRequest, "the body is not a JSON object")),
        Err(error) => return Err(Problem::new(Code::BadRequest, format!("the body is not JSON: {error}"))),
    };
    let mut bad = Vec::new();
    let mut fault = |name: &str, reason: String| bad.push(BadParameter { name: name.into(), reason });
    let listed = match members.remove("ops") {
        None => Err("missing".to_owned()),
        Some(Value::Array(listed)) if listed.len() <= OPERATIONS_MAX => Ok(listed),
        Some(Value::Array(listed)) => Err(format!("at most {OPERATIONS_MAX} operations; these are {}", listed.len())),
        Some(_) => Err("a list of operations".to_owned()),
    };
    let listed = listed.unwrap_or_else(|reason| {
        fault("ops", reason);
        Vec::new()
    });
    for name in members.keys() {
        fault(name.get(..64).unwrap_or(name), "unknown; the body knows ops".to_owned());
    }
    if bad.is_empty() { Ok(listed) } else { Err(Problem::bad_members(bad)) }
}

fn json(body: &BatchBody<'_>) -> Response {
    // Strings, numbers and lists under string keys: serialisation to memory has no way to fail.
    let mut response = Response::new(serde_json::to_vec(body).unwrap_or_default().into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A batch.
#[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
#[schema(as = Batch)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "it only describes a body: every fault in one is listed, which serde cannot")]
struct BatchRequest {
    /// What to do.
    #[schema(max_items = 1000, value_type = Vec<OperationBody>)]
    ops: Vec<Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_no_batch_is_refused_whole() {
        let code = |body: &str| operations(body.as_bytes()).map(|ops| ops.len()).map_err(|problem| problem.code());
        assert_eq!(code(r#"{"ops":[]}"#), Ok(0));
        assert_eq!(code(r#"{"ops":[1,{},"x"]}"#), Ok(3));
        for body in ["", "[]", "1", "{\"ops\":[}"] {
            assert_eq!(code(body), Err(Code::BadRequest), "{body}");
        }
        for body in ["{}", r#"{"ops":{}}"#, r#"{"ops":[],"atomic":true}"#] {
            assert_eq!(code(body), Err(Code::BadBody), "{body}");
        }
        let many = |n: usize| format!(r#"{{"ops":[{}]}}"#, vec!["0"; n].join(","));
        assert_eq!(code(&many(OPERATIONS_MAX)), Ok(OPERATIONS_MAX));
        assert_eq!(code(&many(OPERATIONS_MAX + 1)), Err(Code::BadBody));
    }
}
