//! Whether the copies agree, and repairing them at once.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderName, StatusCode, Uri};
use serde_json::Value;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::cluster::no_cluster;
use super::convergence_views::{ConvergenceBody, OperationBody, RepairBody};
use super::docs::Flag;
use super::problem::{BadParameter, Code, Problem};
use super::query::Query;
use crate::node::healing::NotBegun;
use crate::node::views::RepairRequest;
use crate::types::{Look, Span};

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(convergence)).routes(routes!(repair))
}

/// Whether the copies agree
///
/// For each pair of members and each chunk of the keyspace that they share, whether their copies are equal, since when,
/// and up to when everything written is known to be equal. Every pair is asked anew. Without `keys` or `deep` only sums are
/// compared, so that writes under way show as `differs`; with them, what was written in the last five seconds is left out.
#[utoipa::path(get, path = "/cluster/convergence", operation_id = "getConvergence", tag = "cluster",
    params(
        ("keys" = inline(Option<Flag>), Query, description = "Name the keys that differ, at most 100000 for each pair; on as a bare `?keys`. It takes longer the more they are."),
        ("deep" = inline(Option<Flag>), Query, description = "Compare every record as it is on disk, not by the sums in memory, and name the keys that differ. It reads all copies, and takes its time."),
    ),
    responses((status = 200, description = "How the copies agree, well or badly.", body = ConvergenceBody)))]
async fn convergence(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<ConvergenceBody>, Problem> {
    let mut query = Query::new(uri.query(), &["keys", "deep"]);
    let look = match (query.flag("keys"), query.flag("deep")) {
        (_, true) => Look::Deep,
        (true, false) => Look::Keys,
        (false, false) => Look::Chunks,
    };
    query.finish()?;
    let view = api.node.convergence(look).await.ok_or_else(no_cluster)?;
    Ok(Json(ConvergenceBody::of(view, look)))
}

/// Repair the copies
///
/// Compares everything that the asked node shares with its peers, and brings both sides of each difference to the newer
/// record. Anti-entropy does the same by itself in time. The answer comes at once; `Location` says where the operation's
/// progress is told.
#[utoipa::path(post, path = "/repair", operation_id = "repair", tag = "cluster",
    request_body(content = RepairBody, description = "What to do; without a body, everything."),
    responses((status = 202, description = "It has begun.", body = OperationBody,
        headers(("Location" = String, description = "The operation's path.")))))]
async fn repair(
    State(api): State<Arc<Api>>,
    request: Request,
) -> Result<(StatusCode, [(HeaderName, String); 1], Json<OperationBody>), Problem> {
    let (parts, body) = request.into_parts();
    Query::new(parts.uri.query(), &[]).finish()?;
    let wanted = wanted(&api.bodies.read(body).await?.bytes)?;
    let begun = api.node.repair(wanted).map_err(not_begun)?;
    let location = format!("/operations/{}", begun.id);
    Ok((StatusCode::ACCEPTED, [(LOCATION, location)], Json(begun.into())))
}

/// What a body asks for; every fault in it is listed.
fn wanted(body: &[u8]) -> Result<RepairRequest, Problem> {
    let mut wanted = RepairRequest::default();
    if body.trim_ascii().is_empty() {
        return Ok(wanted);
    }
    let Ok(Value::Object(members)) = serde_json::from_slice(body) else {
        return Err(Problem::new(Code::BadRequest, "the body is not a JSON object"));
    };
    let mut bad = Vec::new();
    let mut fault = |name: &str, reason: &str| bad.push(BadParameter { name: name.into(), reason: reason.into() });
    for (name, value) in &members {
        match (name.as_str(), value) {
            ("dry_run", Value::Bool(dry_run)) => wanted.dry_run = *dry_run,
            ("dry_run", _) => fault(name, "true or false"),
            ("chunks", value) => match chunks(value) {
                Some(chunks) => wanted.chunks = chunks,
                None => fault(name, "a list of numbers from 0 to 15; none of them: all"),
            },
            (name, _) => fault(name.get(..64).unwrap_or(name), "unknown; the body knows dry_run, chunks"),
        }
    }
    if bad.is_empty() { Ok(wanted) } else { Err(Problem::bad_members(bad)) }
}

/// In order, each once.
fn chunks(value: &Value) -> Option<Vec<u8>> {
    // To JSON `1.0` is the integer 1.
    let chunk = |value: &Value| (0..Span::PARTS as u8).find(|chunk| value.as_f64() == Some(f64::from(*chunk)));
    let mut chunks = value.as_array()?.iter().map(chunk).collect::<Option<Vec<u8>>>()?;
    chunks.sort_unstable();
    chunks.dedup();
    Some(chunks)
}

fn not_begun(why: NotBegun) -> Problem {
    let code = match why {
        NotBegun::NoCluster => Code::NotReady,
        NotBegun::TooMany => Code::Overloaded,
    };
    Problem::new(code, why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_says_what_to_repair_and_none_says_everything() {
        let of = |body: &str| wanted(body.as_bytes()).map(|w| (w.dry_run, w.chunks));
        for everything in ["", " \r\n", "{}", r#"{"dry_run":false,"chunks":[]}"#] {
            assert_eq!(of(everything), Ok((false, vec![])), "{everything:?}");
        }
        assert_eq!(of(r#"{"dry_run":true,"chunks":[15,0,3,0]}"#), Ok((true, vec![0, 3, 15])));
    }

    #[test]
    fn every_fault_of_a_body_is_listed() {
        for no_object in ["[]", "1", "{", "null", "\u{fffd}"] {
            assert_eq!(wanted(no_object.as_bytes()).unwrap_err().code(), Code::BadRequest, "{no_object}");
        }
        let problem = wanted(br#"{"chunks":[16],"dry_run":1,"slots":[1]}"#).unwrap_err();
        let body: Value = serde_json::from_slice(&problem.body("r")).unwrap();
        let listed: Vec<_> = body["parameters"].as_array().unwrap().iter().map(|p| p["name"].clone()).collect();
        assert_eq!(
            (&body["code"], listed),
            (&"bad-body".into(), vec!["chunks".into(), "dry_run".into(), "slots".into()])
        );
        for chunks in ["3", "[-1]", "[1.5]", "[\"1\"]", "[256]", "null"] {
            assert!(wanted(format!(r#"{{"chunks":{chunks}}}"#).as_bytes()).is_err(), "{chunks}");
        }
    }
}
