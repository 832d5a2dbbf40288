//! Long-running work: what there is, how far it is, and ending it early.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::Uri;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures_util::stream::{self, Stream};
use tokio::time::{MissedTickBehavior, interval};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::Api;
use super::bodies::NodeName;
use super::convergence_views::{OperationBody, OperationEvent, OperationsBody};
use super::docs::OperationId;
use super::problem::{Code, Problem};
use super::query::Query;
use crate::node::views::{OperationState, OperationView};

/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(1);
/// A comment is sent after so long without an event, so that whoever is between does not take the silence for an end.
const HEARTBEAT: Duration = Duration::from_secs(10);

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(operation, abort)).routes(routes!(events))
}

/// The operations
///
/// The long-running work of the asked node, newest first. The last hundred that ended are remembered until the node
/// stops.
#[utoipa::path(get, path = "/operations", operation_id = "getOperations", tag = "operations",
    responses((status = 200, description = "The operations.", body = OperationsBody)))]
async fn list(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<OperationsBody>, Problem> {
    Query::new(uri.query(), &[]).finish()?;
    let operations = api.node.operations().into_iter().map(OperationBody::from).collect();
    Ok(Json(OperationsBody { node: NodeName(api.node.identity().node), operations }))
}

/// An operation
///
/// How far it is, or how it ended.
#[utoipa::path(get, path = "/operations/{id}", operation_id = "getOperation", tag = "operations",
    params(("id" = inline(OperationId), Path, description = "The operation's `id`.")),
    responses((status = 200, description = "The operation.", body = OperationBody)))]
async fn operation(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Json<OperationBody>, Problem> {
    Query::new(uri.query(), &[]).finish()?;
    let found = read(&id).and_then(|id| api.node.operation(id));
    found.map(|view| Json(view.into())).ok_or_else(no_operation)
}

/// End an operation early
///
/// What it did stays done. One that has ended is left as it is.
#[utoipa::path(delete, path = "/operations/{id}", operation_id = "abortOperation", tag = "operations",
    params(("id" = inline(OperationId), Path, description = "The operation's `id`.")),
    responses((status = 200, description = "The operation as it stands; it may take a moment to end.", body = OperationBody)))]
async fn abort(State(api): State<Arc<Api>>, Path(id): Path<String>, uri: Uri) -> Result<Json<OperationBody>, Problem> {
    Query::new(uri.query(), &[]).finish()?;
    let ended = read(&id).and_then(|id| api.node.abort(id));
    ended.map(|view| Json(view.into())).ok_or_else(no_operation)
}

/// An operation's progress
///
/// Server-Sent Events: `progress` each second with the operation as JSON, and when it has ended `end` with the same, after
/// which there is nothing more. A comment now and then shows that the connection lives.
#[utoipa::path(get, path = "/operations/{id}/events", operation_id = "getOperationEvents", tag = "operations",
    params(("id" = inline(OperationId), Path, description = "The operation's `id`.")),
    responses((status = 200, description = "The events.", body = OperationEvent, content_type = "text/event-stream")))]
async fn events(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Sse<impl Stream<Item = Result<Event, axum::Error>>>, Problem> {
    Query::new(uri.query(), &[]).finish()?;
    let id = read(&id).filter(|id| api.node.operation(*id).is_some()).ok_or_else(no_operation)?;
    let told = told(move || api.node.operation(id));
    Ok(Sse::new(told).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("still here")))
}

/// The events of an operation: the first at once, the last when it has ended. One that is forgotten has no more.
fn told(look: impl Fn() -> Option<OperationView>) -> impl Stream<Item = Result<Event, axum::Error>> {
    let mut ticks = interval(PROGRESS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    stream::unfold(Some((ticks, look)), async |going| {
        let (mut ticks, look) = going?;
        ticks.tick().await;
        let view = look()?;
        let runs = view.state == OperationState::Running;
        let event = Event::default().event(if runs { "progress" } else { "end" });
        Some((event.json_data(OperationBody::from(view)), runs.then_some((ticks, look))))
    })
}

fn read(id: &str) -> Option<Uuid> {
    Uuid::try_parse(id).ok()
}

fn no_operation() -> Problem {
    Problem::new(Code::NoSuchOperation, Code::NoSuchOperation.about().help)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use axum::response::IntoResponse;
    use http_body_util::BodyExt;
    use tokio::time::Instant;

    use super::*;
    use crate::http::convergence_views::tests::operation;

    /// The events of an operation that goes one further with each look, and what they took.
    async fn told_until(last: u64, then: Option<OperationState>) -> (String, Duration) {
        let (begun, looks) = (Instant::now(), AtomicU64::new(0));
        let look = move || match looks.fetch_add(1, Ordering::Relaxed) {
            done if done < last => Some(OperationView { done, ..operation(OperationState::Running) }),
            done => then.clone().map(|state| OperationView { done, ..operation(state) }),
        };
        let body = Sse::new(told(look)).into_response().into_body().collect().await.unwrap().to_bytes();
        (String::from_utf8(body.into()).unwrap(), begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn progress_is_told_each_second_and_then_the_end() {
        let (text, took) = told_until(3, Some(OperationState::Done)).await;
        let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
        assert_eq!((names, took), (vec!["progress", "progress", "progress", "end"], Duration::from_secs(3)));
        let bodies: Vec<serde_json::Value> =
            text.lines().filter_map(|l| l.strip_prefix("data: ")).map(|d| serde_json::from_str(d).unwrap()).collect();
        let states: Vec<_> =
            bodies.iter().map(|b| (b["done"].as_u64().unwrap(), b["state"].as_str().unwrap())).collect();
        assert_eq!(states, [(0, "running"), (1, "running"), (2, "running"), (3, "done")]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_ended_is_told_once_and_what_is_forgotten_no_more() {
        let (text, took) = told_until(0, Some(OperationState::Aborted)).await;
        assert!(text.starts_with("event: end\n") && text.matches("event:").count() == 1, "{text}");
        assert_eq!(took, Duration::ZERO);
        assert_eq!(told_until(1, None).await.0.matches("event: progress").count(), 1);
    }
}
