//! Changes of the topology: what one would do, beginning one, how far it is, and taking it back.

mod pace;
mod shapes;
mod views;
mod wanted;

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderName, StatusCode, Uri};
use tokio::time::Instant;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::problem::{Code, Problem};
use super::query::Query;
use crate::node::change::ChangeFailure;
use crate::node::request::Outcome;
use crate::protocol::succession::change::{Unfit, Wish};
pub(super) use pace::Pace;
use shapes::{CopiesBody, MemberBody, NodeText};
pub(super) use views::kind;
use views::{ChangeBody, PlanBody};

/// Where the change under way is told of.
const CHANGE: &str = "/cluster/change";

type Begun = (StatusCode, [(HeaderName, &'static str); 1], Json<ChangeBody>);

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(plan))
        .routes(routes!(leave))
        .routes(routes!(change_member))
        .routes(routes!(replication_factor))
        .routes(routes!(change, abort))
}

/// What a change would do
///
/// The slots and bytes that a change of the topology would move, what each member would keep then, and what the zones could
/// not carry. Nothing is changed, and the change is not promised to be the same later: it goes from the topology of then.
#[utoipa::path(post, path = "/cluster/plan", operation_id = "planChange", tag = "cluster",
    request_body(content = shapes::PlanBody, description = "The change."),
    responses((status = 200, description = "The plan.", body = PlanBody)))]
async fn plan(State(api): State<Arc<Api>>, request: Request) -> Result<Json<PlanBody>, Problem> {
    let (parts, body) = request.into_parts();
    Query::new(parts.uri.query(), &[]).finish()?;
    let wish = wanted::plan(&api.bodies.read(body).await?.bytes)?;
    api.node.plan(&wish).map(|view| Json(view.into())).map_err(problem)
}

/// Have a member leave
///
/// It hands over what it keeps to the others, and is no member any more when they have it; until then it goes on serving. It
/// may be dead. The answer comes when the change has begun; `GET /cluster/change` says how far it is.
#[utoipa::path(post, path = "/cluster/members/{node}/leave", operation_id = "leaveCluster", tag = "cluster",
    params(("node" = inline(NodeText), Path, description = "The member.")),
    responses((status = 202, description = "It has begun.", body = ChangeBody,
        headers(("Location" = String, description = "Where the change is told of.")))))]
async fn leave(State(api): State<Arc<Api>>, Path(node): Path<String>, uri: Uri) -> Result<Begun, Problem> {
    Query::new(uri.query(), &[]).finish()?;
    let node = wanted::node(&node).ok_or_else(|| no_member(&node))?;
    begin(&api, Wish::Leave(node)).await
}

/// Give a member another weight or zone
///
/// Exactly one of the two. The slots that it is to keep then, or no more, move. A weight of 0 has it keep nothing and stay a
/// member.
#[utoipa::path(put, path = "/cluster/members/{node}", operation_id = "changeMember", tag = "cluster",
    params(("node" = inline(NodeText), Path, description = "The member.")),
    request_body(content = MemberBody, description = "What it is to have."),
    responses((status = 202, description = "It has begun.", body = ChangeBody,
        headers(("Location" = String, description = "Where the change is told of.")))))]
async fn change_member(
    State(api): State<Arc<Api>>,
    Path(node): Path<String>,
    request: Request,
) -> Result<Begun, Problem> {
    let (parts, body) = request.into_parts();
    Query::new(parts.uri.query(), &[]).finish()?;
    let node = wanted::node(&node).ok_or_else(|| no_member(&node))?;
    let wish = wanted::member(node, &api.bodies.read(body).await?.bytes)?;
    begin(&api, wish).await
}

/// Keep another number of copies
///
/// As many members must keep slots. More copies are fetched from those that are there; fewer are dropped at the end.
#[utoipa::path(put, path = "/cluster/replication-factor", operation_id = "changeReplicationFactor", tag = "cluster",
    request_body(content = CopiesBody, description = "How many."),
    responses((status = 202, description = "It has begun.", body = ChangeBody,
        headers(("Location" = String, description = "Where the change is told of.")))))]
async fn replication_factor(State(api): State<Arc<Api>>, request: Request) -> Result<Begun, Problem> {
    let (parts, body) = request.into_parts();
    Query::new(parts.uri.query(), &[]).finish()?;
    let wish = wanted::replication_factor(&api.bodies.read(body).await?.bytes)?;
    begin(&api, wish).await
}

/// The change under way
///
/// How far each member is that has something to do, asked anew. 404 where the topology is not changing.
#[utoipa::path(get, path = "/cluster/change", operation_id = "getChange", tag = "cluster",
    responses((status = 200, description = "The change.", body = ChangeBody)))]
async fn change(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<ChangeBody>, Problem> {
    Query::new(uri.query(), &[]).finish()?;
    let view = api.node.change().await.ok_or_else(|| problem(ChangeFailure::None))?;
    let rate = api.pace.look(&view, Instant::now());
    Ok(Json(ChangeBody::of(view, rate)))
}

/// Take the change back
///
/// Slots are kept by whom they were kept before it. What was before has counted all along, so nothing is missed.
#[utoipa::path(delete, path = "/cluster/change", operation_id = "abortChange", tag = "cluster",
    responses((status = 200, description = "The change that was taken back.", body = ChangeBody)))]
async fn abort(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<ChangeBody>, Problem> {
    Query::new(uri.query(), &[]).finish()?;
    api.node.abort_change().await.map(|view| Json(ChangeBody::of(view, None))).map_err(problem)
}

async fn begin(api: &Api, wish: Wish) -> Result<Begun, Problem> {
    let view = api.node.begin_change(wish).await.map_err(problem)?;
    Ok((StatusCode::ACCEPTED, [(LOCATION, CHANGE)], Json(ChangeBody::of(view, None))))
}

fn no_member(name: &str) -> Problem {
    let shown: String = name.chars().take(64).collect();
    Problem::new(Code::NoSuchMember, format!("{shown} is not a member"))
}

fn problem(failure: ChangeFailure) -> Problem {
    let code = match &failure {
        ChangeFailure::Unfit(Unfit::NotAMember(_)) => Code::NoSuchMember,
        ChangeFailure::Unfit(Unfit::UnderWay(_)) => Code::ChangeUnderWay,
        ChangeFailure::Unfit(Unfit::OutOfRange { .. }) => Code::BadBody,
        ChangeFailure::Unfit(_) => Code::ChangeUnfit,
        ChangeFailure::NotReady => Code::NotReady,
        ChangeFailure::Undecided => Code::ChangeUndecided,
        ChangeFailure::None => Code::NoSuchChange,
    };
    let told = Problem::new(code, failure.to_string());
    if failure == ChangeFailure::Undecided { told.with_outcome(Outcome::Unknown) } else { told }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeNum;

    #[test]
    fn every_failure_is_a_problem_of_its_own_kind() {
        let of = |failure: ChangeFailure| {
            let body: serde_json::Value = serde_json::from_slice(&problem(failure).body("r")).unwrap();
            (body["status"].as_u64().unwrap(), body["code"].as_str().unwrap().to_owned(), body["outcome"].clone())
        };
        let unfit = |unfit: Unfit| of(ChangeFailure::Unfit(unfit));
        let null = serde_json::Value::Null;
        assert_eq!(unfit(Unfit::NotAMember(NodeNum(9))), (404, "no-such-member".into(), null.clone()));
        assert_eq!(unfit(Unfit::UnderWay("n2 leaves".into())), (409, "change-under-way".into(), null.clone()));
        let under_way: serde_json::Value =
            serde_json::from_slice(&problem(Unfit::UnderWay("n2 leaves".into()).into()).body("r")).unwrap();
        let [title, detail] = ["title", "detail"].map(|name| under_way[name].as_str().unwrap().to_lowercase());
        assert_eq!(detail, format!("{title}: n2 leaves"), "so that a person is told it once");
        assert_eq!(unfit(Unfit::OutOfRange { what: "a", low: 0, high: 1 }), (400, "bad-body".into(), null.clone()));
        for other in [Unfit::Nothing, Unfit::Member(NodeNum(1)), Unfit::TooFew { rf: 3, left: 2 }, Unfit::TooMany] {
            assert_eq!(unfit(other), (409, "change-unfit".into(), null.clone()));
        }
        assert_eq!(of(ChangeFailure::NotReady).0, 503);
        assert_eq!(of(ChangeFailure::Undecided), (504, "change-undecided".into(), "unknown".into()));
        assert_eq!(of(ChangeFailure::None), (404, "no-such-change".into(), null));
    }
}
